"""Many visitors at once: tokens a second together, waiting times, and whether each gets the right answer and its own.

    python -m benchmarks.serving
    python -m benchmarks.serving --rounds 1 --requests 0
    python -m benchmarks.serving --replicas              (see benchmarks/replicas.py)

Starts `python app.py` with the demo model twice: answering one question at a time, and eight at once. 1, 8 and 50
visitors each upload a held-out picture of their own, ask about it through `/ask` and read the stream; the two apps take
turns. Then so many visitors come one after another, eight at a time; the server's memory is read each hundred, and each
five hundred once more at rest, after its own clean-up. Prints a table and writes benchmarks/results/serving.json. Linux
only; nothing leaves this machine.
"""

import argparse
import itertools
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import httpx

from benchmarks.demo_app import ROOT
from benchmarks.timing import machine
from benchmarks.visitors import NO_EVENTS, Visitor
from benchmarks.watched_app import WatchedApp, watched_app
from components.serving.server import SWEEP_S
from training.evaluation.dialogues import SEED, dialogues_of_kind
from training.worlds.registry import is_right

RESULT = ROOT / "benchmarks" / "results" / "serving.json"
KINDS = ("describe", "where", "color", "read", "count_shape")
"""Of questions: their answers are sentences of 6 to 60 tokens."""
VISITORS = (1, 8, 50)
AT_ONCE = (1, 8)
_PART, _REST_EVERY = 100, 500
"""Requests, after which the memory is read: while it answers, and at rest."""


@dataclass(frozen=True)
class Question:
    """A question about a picture in PNG, and what a right answer says."""

    kind: str
    text: str
    key: str
    picture: bytes


@dataclass(frozen=True)
class Reply:
    """What came of a question: the answer, or None and why it was refused; tokens, and seconds since it was sent."""

    answer: str | None
    refusal: str
    tokens: int
    first_s: float
    last_s: float


def questions(number: int) -> list[Question]:
    """As many held-out questions as asked for, each about a picture of its own, of all kinds in turn."""
    kinds = [dialogues_of_kind(kind, -(-number // len(KINDS)), "heldout", SEED) for kind in KINDS]
    found = []
    for dialogue in itertools.islice(itertools.chain.from_iterable(zip(*kinds, strict=True)), number):
        data, asked = BytesIO(), dialogue.questions[0]
        dialogue.pictures[0].save(data, "PNG")
        found.append(Question(asked.kind, asked.question, asked.key, data.getvalue()))
    return found


def ask(app: WatchedApp, question: Question, ready: threading.Barrier | None = None) -> Reply:
    """One visitor's question. With `ready`, all upload first and then ask together."""
    with Visitor(app.url, NO_EVENTS) as visitor:
        try:
            try:
                file = visitor.upload("picture.png", question.picture)
            finally:  # those who wait for all must not wait for ever
                if ready is not None:
                    ready.wait(timeout=120)
            sent, first = time.monotonic(), None
            for kind, said in visitor.asking_by_name(question.text, [file], longest=64):
                if kind == "error":
                    return Reply(None, str(said), 0, 0.0, 0.0)
                if first is None and kind in ("generating", "complete") and said[0]:
                    first = time.monotonic() - sent
                if kind == "complete":
                    return Reply(said[0], "", said[1]["new_tokens"], first or 0.0, time.monotonic() - sent)
        except httpx.HTTPError as error:
            return Reply(None, type(error).__name__, 0, 0.0, 0.0)
    return Reply(None, "no end within the time allowed", 0, 0.0, 0.0)


def together(app: WatchedApp, asked: Sequence[Question]) -> list[Reply]:
    """The replies to visitors who ask at the same time."""
    ready = threading.Barrier(len(asked))
    with ThreadPoolExecutor(len(asked)) as threads:
        return list(threads.map(lambda question: ask(app, question, ready), asked))


def measure(rounds: int, requests: int) -> dict[str, Any]:
    """The figures of all numbers of visitors, and the memory over so many requests."""
    asked = questions(max(VISITORS))
    replies: dict[tuple[int, int], list[list[Reply]]] = {}
    with ExitStack() as stack:
        apps = {number: stack.enter_context(watched_app("--at-once", str(number))) for number in AT_ONCE}
        alone = {question: ask(apps[1], question).answer for question in asked}
        together(apps[AT_ONCE[-1]], asked[:8])  # torch's one-time setup
        for visitors in VISITORS:
            for _ in range(rounds if visitors < max(VISITORS) else 1):
                for number, app in apps.items():
                    replies.setdefault((visitors, number), []).append(together(app, asked[:visitors]))
        memory = _memory_over(apps[AT_ONCE[-1]], asked, requests) if requests else None
    return {
        "machine": machine(),
        "rounds": rounds,
        "visitors": [
            {"visitors": visitors, "at_once": number, **_figures(asked[:visitors], of_all, alone)}
            for (visitors, number), of_all in replies.items()
        ],
        "memory": memory,
    }


def _figures(
    asked: Sequence[Question], rounds: Sequence[Sequence[Reply]], alone: dict[Question, str | None]
) -> dict[str, Any]:
    pairs = [pair for replies in rounds for pair in zip(asked, replies, strict=True)]
    done = [(question, reply) for question, reply in pairs if reply.answer is not None]
    if not done:
        raise RuntimeError(f"No question was answered: {rounds[0][0].refusal}")
    first = sorted(reply.first_s for _, reply in done)
    speeds = [sum(reply.tokens for reply in replies) / _last_s(replies) for replies in rounds]
    right = [is_right(question.kind, question.key, reply.answer or "") for question, reply in done]
    return {
        "tokens_per_s": round(statistics.median(speeds), 1),
        "first_token_s": round(statistics.median(first), 2),
        "first_token_95_s": round(first[int(0.95 * (len(first) - 1))], 2),
        "last_s": round(statistics.median(_last_s(replies) for replies in rounds), 2),
        "right": round(statistics.mean(right), 3),
        "as_alone": round(statistics.mean(reply.answer == alone[question] for question, reply in done), 3),
        "refused": len(pairs) - len(done),
    }


def _last_s(replies: Sequence[Reply]) -> float:
    return max((reply.last_s for reply in replies if reply.answer is not None), default=float("inf"))


def _memory_over(
    app: WatchedApp, asked: Sequence[Question], requests: int, rest_s: float = 1.5 * SWEEP_S
) -> dict[str, Any]:
    """Resident MB after each hundred requests, which memory that torch frees and takes again moves up and down, and at
    rest, once the server's clean-up has given back what is free."""
    sizes, rested = [], []
    with ThreadPoolExecutor(AT_ONCE[-1]) as threads:
        for part in _parts(requests):
            refused = [
                reply.refusal for reply in threads.map(lambda number: ask(app, asked[number % len(asked)]), part)
            ]
            if any(refused):
                raise RuntimeError(f"A question was refused: {next(filter(None, refused))}")
            sizes.append(round(app.memory() / 1e6))
            if part.stop % _REST_EVERY == 0 or part.stop == requests:
                time.sleep(rest_s)
                rested.append(round(app.memory() / 1e6))
    return {
        "requests": requests,
        "mb": sizes,
        "rested_mb": rested,
        "most_mb": round(app.peak() / 1e6),
    }


def _parts(requests: int) -> Iterator[range]:
    for start in range(0, requests, _PART):
        yield range(start, min(requests, start + _PART))


def table(report: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| visitors | answered at once | tokens/s together | first token, median | 95 % | last answer | right "
        "| as asked alone | refused |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["visitors"]:
        lines.append(
            f"| {row['visitors']} | {row['at_once']} | {row['tokens_per_s']} | {row['first_token_s']} s "
            f"| {row['first_token_95_s']} s | {row['last_s']} s | {row['right']:.0%} "
            f"| {row['as_alone']:.0%} | {row['refused']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rounds", type=int, default=5, help="with 1 and 8 visitors (50 come once); with --replicas 0 leaves speed out"
    )
    parser.add_argument("--requests", type=int, default=1000, help="over which the memory is read")
    parser.add_argument("--replicas", action="store_true", help="measure replicas behind Ray Serve instead")
    parser.add_argument("--kills", type=int, default=20, help="of a replica under load, with --replicas")
    parser.add_argument("--hangs", type=int, default=3, help="of a replica under load, with --replicas")
    arguments = parser.parse_args()
    if arguments.replicas:
        from benchmarks import replicas  # needs Ray

        replicas.measure(arguments.rounds, arguments.kills, arguments.hangs)
        return
    report = measure(arguments.rounds, arguments.requests)
    print(table(report))
    if report["memory"]:
        print(
            "Memory over {requests} requests in MB, after each hundred: {mb}; at rest after each five hundred: "
            "{rested_mb}".format(**report["memory"])
        )
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
