"""Replicas against the engine in this process: throughput, what Serve costs a token, and what faults cost.

    python -m benchmarks.serving --replicas
    python -m benchmarks.serving --replicas --kills 0 --hangs 0     (speed only)
    python -m benchmarks.serving --replicas --rounds 0 --kills 0    (hangs only; what was measured before stays)

Needs `pip install -r requirements/ray.txt`. Everything runs on this machine with the demo model, one thread a replica.
First one long answer is written by the engine here and by a replica in turns; then 16 visitors ask at once, of one
replica and of two. Then 8 visitors ask all the time while one of two replicas is killed again and again, and stopped
without dying a few times. Prints what it finds and writes benchmarks/results/replicas.json. Nothing leaves the machine.
"""

import json
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo_app import ROOT
from benchmarks.timing import machine
from gemma3_core.engine import DoneEvent, Engine, Request, TokenEvent, Turn
from gemma3_core.errors import ReplicaLostError
from gemma3_core.replicas.options import ReplicaOptions
from gemma3_core.replicas.start import RemoteRegistry, replicas

RESULT = ROOT / "benchmarks" / "results" / "replicas.json"
AT_ONCE, VISITORS, ASKING = 8, 16, 8
_LONG = "Write a line of text."
_QUESTIONS = ("How many shapes are there?", "Describe the picture.", "What color is the star?", "Where is the heart?")
_PICTURES = tuple(sorted((ROOT / "assets" / "examples").glob("*.png"))[:4])
_BACK_WITHIN_S = 120.0


@contextmanager
def running(number: int) -> Iterator[RemoteRegistry]:
    """So many replicas of the demo model, each with one thread."""
    models = {"device": "cpu", "dtype": "float32", "at_once": AT_ONCE}
    with replicas(ReplicaOptions(models, replicas=number, cpus=0.5, threads=1)) as registry:
        until(lambda: len(processes(registry)) == number)
        for visitor in range(4 * number):  # torch's one-time setup in each
            list(registry.first.stream(request(visitor)))
        yield registry


def processes(registry: RemoteRegistry) -> dict[int, int]:
    """The replicas' processes, and how many calls run in each; empty while one of them does not answer."""
    return {one["pid"]: one["running"] for one in registry.fleet.ask_all("record_routing_stats", seconds=3)}


def until(condition: Any) -> float:
    """Waits for a condition; the seconds that it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + _BACK_WITHIN_S:
            raise RuntimeError(f"Not within {_BACK_WITHIN_S:.0f} s.")
        time.sleep(0.05)
    return time.monotonic() - began


def request(number: int, longest: int = 48) -> Request:
    """A visitor's question about one of four pictures, of 16 questions in all."""
    picture, text = _PICTURES[number % 4], _QUESTIONS[number // 4 % 4]
    turn = Turn("user", text, (picture,))
    return Request((turn,), visitor=f"visitor {number}", max_new_tokens=longest, reuse=False)


def decode_s(engine: Engine, asked: Request) -> tuple[float, int]:
    """Seconds from an answer's first token to its last as the page sees them, and how many tokens lie between."""
    times = [time.perf_counter() for event in engine.stream(asked) if isinstance(event, TokenEvent)]
    return times[-1] - times[0], len(times) - 1


def overhead(rounds: int) -> dict[str, Any]:
    """Milliseconds a token of the same answers, here and from one replica, in turns."""
    torch.set_num_threads(1)
    here, asked = Engine.load(device="cpu", dtype="float32"), [request(number) for number in range(16)]
    for one in asked[:4]:
        list(here.stream(one))
    spent: dict[str, list[float]] = {"here": [], "replica": []}
    with running(1) as registry:
        for _ in range(rounds):
            for name, engine in (("here", here), ("replica", registry.first)):
                done = [decode_s(engine, one) for one in asked]
                spent[name].append(1000 * sum(seconds for seconds, _ in done) / sum(tokens for _, tokens in done))
    here_ms, there_ms = (statistics.median(spent[name]) for name in ("here", "replica"))
    return {
        "rounds": rounds,
        "engine_ms_per_token": round(here_ms, 3),
        "replica_ms_per_token": round(there_ms, 3),
        "overhead_ms": round(there_ms - here_ms, 3),
        "overhead_share": round(there_ms / here_ms - 1, 4),
    }


def throughput(number: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of 16 visitors who ask at once, and the processor's time that the front spends on a token."""
    speeds, spent, tokens = [], 0.0, 0
    with running(number) as registry, ThreadPoolExecutor(VISITORS) as threads:
        for _ in range(rounds):
            used, began = time.process_time(), time.monotonic()
            done = list(threads.map(lambda one: list(registry.first.stream(request(one)))[-1], range(VISITORS)))
            written = sum(one.stats.new_tokens for one in done if isinstance(one, DoneEvent))
            speeds.append(written / (time.monotonic() - began))
            spent, tokens = spent + time.process_time() - used, tokens + written
    return {
        "replicas": number,
        "visitors": VISITORS,
        "tokens_per_s": round(statistics.median(speeds), 1),
        "answers_per_s": round(statistics.median(speeds) * VISITORS * rounds / tokens, 2),
        "tokens_per_answer": round(tokens / VISITORS / rounds, 1),
        "front_cpu_ms_per_token": round(1000 * spent / tokens, 3),
    }


class Asking:
    """Visitors who ask all the time, and what becomes of each of their questions."""

    def __init__(self, registry: RemoteRegistry, right: Sequence[str]):
        self._engine, self._right = registry.first, right
        self.found: Counter[str] = Counter()
        self._ending, self._lock = threading.Event(), threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(ASKING)]

    def __enter__(self) -> "Asking":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, visitor: int) -> None:
        number = visitor
        while not self._ending.is_set():
            asked = replace(request(number), visitor=f"visitor {visitor}")
            outcome = self._outcome(asked, self._right[number % 16])
            with self._lock:
                self.found[outcome] += 1
            number += ASKING + 1

    def _outcome(self, asked: Request, right: str) -> str:
        shown = False
        try:
            for event in self._engine.stream(asked):
                shown = shown or isinstance(event, TokenEvent)
        except ReplicaLostError:
            return "said" if shown else "said_before_a_token"
        if not isinstance(event, DoneEvent):
            return "lost_without_a_word"
        return "right" if event.text == right else "wrong"


def faults(kills: int, hangs: int) -> dict[str, Any]:
    """Kills a replica so many times under load; then stops one so many times without killing it."""
    report: dict[str, Any] = {}
    with running(2) as registry:
        right = [list(registry.first.stream(request(number)))[-1].text for number in range(16)]  # type: ignore[union-attr]
        if kills:
            report |= _kills(registry, right, kills)
        if hangs:
            report["hang"] = _hangs(registry, right, hangs)
    return report


def _kills(registry: RemoteRegistry, right: Sequence[str], kills: int) -> dict[str, Any]:
    back = []
    with Asking(registry, right) as asking:
        for number in range(kills):
            time.sleep(1)
            victim = sorted(processes(registry))[number % 2]
            os.kill(victim, signal.SIGKILL)
            back.append(until(lambda victim=victim: _whole_without(registry, victim)))
    back_after_s = round(statistics.median(back), 1)
    return {"machine": machine(), "kills": kills, "questions": _outcomes(asking), "back_after_s": back_after_s}


def _hangs(registry: RemoteRegistry, right: Sequence[str], hangs: int) -> dict[str, Any]:
    """The seconds until a stopped replica is ended, and until another one answers in its place."""
    found, replaced = [], []
    with Asking(registry, right) as asking:
        for _ in range(hangs):
            time.sleep(5)  # between two of Serve's checks, or three: they are not in step with this
            hanging = max(processes(registry))
            os.kill(hanging, signal.SIGSTOP)
            began = time.monotonic()
            until(lambda pid=hanging: _has_ended(pid))
            found.append(round(time.monotonic() - began, 1))
            until(lambda pid=hanging: _whole_without(registry, pid))
            replaced.append(round(time.monotonic() - began, 1))
    report = {"machine": machine(), "hangs": hangs, "ended_after_s": found, "replaced_after_s": replaced}
    return report | {"questions": _outcomes(asking)}


def _outcomes(asking: Asking) -> dict[str, int]:
    outcomes = ("right", "said", "said_before_a_token", "lost_without_a_word", "wrong")
    return {name: asking.found[name] for name in outcomes}


def _has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _whole_without(registry: RemoteRegistry, victim: int) -> bool:
    found = processes(registry)
    return len(found) == 2 and victim not in found


def measure(rounds: int, kills: int, hangs: int) -> None:
    """Runs what is asked for, prints it, and writes it into the results, which keep what was not measured again."""
    report: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    if rounds:
        report |= {"machine": machine(), "overhead": overhead(rounds)}
        print(json.dumps(report["overhead"]), flush=True)
        report["throughput"] = [throughput(number, rounds) for number in (1, 2)]
        print(json.dumps(report["throughput"]), flush=True)
    if kills or hangs:
        found = faults(kills, hangs)
        print(json.dumps(found), flush=True)
        report["faults"] = report.get("faults", {}) | found
    RESULT.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
