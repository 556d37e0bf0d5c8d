"""A soak test: visitors ask, look inside, leave, reload and break off for minutes; the server's use of resources must
return to its early level.

    python -m benchmarks.soak
    python -m benchmarks.soak --minutes 60 --visitors 16

Starts `python app.py` with the demo model in its own process and samples its resources once a second. Prints a table,
writes benchmarks/results/soak.json, and exits with 1 if a resource did not return to its level after the first minute.
Linux only; nothing leaves this machine.
"""

import argparse
import json
import random
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, fields
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from benchmarks.demo_app import PICTURES, ROOT
from benchmarks.timing import machine
from benchmarks.visitors import API, PageEvents, Visitor, answered, changed, new_id, read_events, succeeded
from benchmarks.watched_app import Taken, WatchedApp, watched_app

RESULT = ROOT / "benchmarks" / "results" / "soak.json"
FIRST_S = 60.0  # the time after which the baseline is taken
SETTLE_S = 240.0  # how long to wait after the last visitor has left
_EVERY_S = 1.0
_WINDOW = 10  # the number of samples whose median is the baseline

SLACK = Taken(memory=200_000_000, threads=8, descriptors=16, connections=2, disk=50_000_000)
"""How far each resource may exceed its baseline at the end.

Memory: allocators return it late. Threads: pools grow up to their bound. Disk: uploads stay a while by design.
"""

QUESTIONS = ("How many hearts are there?", "What color is the star?", "What does the sign say?", "Hello", "Why?")


@dataclass(frozen=True)
class Verdict:
    """One resource: its level at each time, and whether it returned."""

    after_first_minute: float
    most: float
    end: float
    slack: float

    @property
    def held(self) -> bool:
        return self.end <= self.after_first_minute + self.slack


def verdicts(samples: Sequence[Taken], first: int, end: Taken | None = None) -> dict[str, Verdict]:
    """The verdict on each resource; `first` is the number of samples in the first minute, `end` is the last one by
    default."""
    if not 0 < first < len(samples):
        raise ValueError(f"{len(samples)} samples leave nothing to compare after the first {first}. Run for longer.")
    end = samples[-1] if end is None else end
    early = samples[max(0, first - _WINDOW) : first]
    return {
        name: Verdict(
            statistics.median(getattr(sample, name) for sample in early),
            max(getattr(sample, name) for sample in (*samples, end)),
            getattr(end, name),
            getattr(SLACK, name),
        )
        for name in (field.name for field in fields(Taken))
    }


class Soaking:
    """Visitors one after another in one thread; each does one thing and leaves."""

    def __init__(self, app: WatchedApp, events: PageEvents, number: int, end: float):
        self._app, self._events, self._end = app, events, end
        self._random = random.Random(number)
        self.done: Counter[str] = Counter()

    def run(self, least: int = 0) -> None:
        """Until the end, and until `least` acts are done."""
        acts: tuple[tuple[Callable[[Visitor], bool], int], ...] = (
            (self._ask_about_a_picture, 4), (self._talk, 2), (self._look_inside, 2), (self._ask_by_name, 2),
            (self._open_the_page, 1), (self._break_off_an_upload, 1), (self._break_off_an_answer, 2),
            (self._never_listen, 1), (self._stop, 1), (self._send_what_is_no_picture, 1), (self._leave_at_once, 1),
        )  # fmt: skip
        while (time.monotonic() < self._end or self.done.total() < least) and self._app.alive():
            (act,) = self._random.choices([act for act, _ in acts], [weight for _, weight in acts])
            name = act.__name__.strip("_")
            try:
                with Visitor(self._app.url, self._events) as visitor:
                    self.done[name if act(visitor) else f"{name}, refused"] += 1
            except (httpx.HTTPError, OSError) as error:
                self.done[f"{name}, {type(error).__name__}"] += 1
                time.sleep(0.5)

    def _picture(self) -> bytes:
        """An example picture that nobody has uploaded yet."""
        picture = Image.open(self._random.choice(sorted(PICTURES.glob("*.png")))).convert("RGB")
        for _ in range(8):
            place = self._random.randrange(picture.width), self._random.randrange(picture.height)
            picture.putpixel(place, tuple(self._random.randrange(256) for _ in range(3)))
        data = BytesIO()
        picture.save(data, "PNG")
        return data.getvalue()

    def _asked(self, visitor: Visitor, files: list[dict[str, Any]], longest: int = 24) -> bool:
        """Sends a question and does what the page does after an answer."""
        done = answered(visitor.ask(self._random.choice(QUESTIONS), files, longest))
        for name in ("hand_back", "preview"):
            list(visitor.call(visitor.events.named(name)))
        return done

    def _ask_about_a_picture(self, visitor: Visitor) -> bool:
        with visitor.heartbeat():
            file = visitor.upload("picture.png", self._picture())
            preview = visitor.events.named("preview")
            list(visitor.call(preview, changed(preview, {"multimodaltextbox": {"text": "", "files": [file]}})))
            return self._asked(visitor, [file])

    def _talk(self, visitor: Visitor) -> bool:
        """Two questions, a retry, and a new chat."""
        with visitor.heartbeat():
            first = self._asked(visitor, [visitor.upload("picture.png", self._picture())])
            further = self._asked(visitor, [])
            for name in ("retry", "clear"):
                list(visitor.call(visitor.events.named(name)))
            return first and further

    def _look_inside(self, visitor: Visitor) -> bool:
        with visitor.heartbeat():
            done = self._asked(visitor, [visitor.upload("picture.png", self._picture())], longest=4)
            for name, takes in (("open", "number"), ("look", "number"), ("mask", ""), ("hide", "")):
                event = visitor.events.named(name, takes)
                values = {takes: 0} if takes else {}
                done = succeeded(list(visitor.call(event, changed(event, values)))) and done
            return done

    def _ask_by_name(self, visitor: Visitor) -> bool:
        """Asks `/ask`, as programs do."""
        files = [visitor.upload("picture.png", self._picture())]
        return visitor.ask_by_name(self._random.choice(QUESTIONS), files, longest=24)[0] == "complete"

    def _open_the_page(self, visitor: Visitor) -> bool:
        """Loads the page twice."""
        for _ in range(2):
            with visitor.heartbeat():
                for path in ("/", "/config"):
                    visitor.client.get(path).raise_for_status()
            visitor.session = new_id()
        return True

    def _break_off_an_upload(self, visitor: Visitor) -> bool:
        """Sends half a file and then nothing more."""
        url = httpx.URL(self._app.url)
        data = self._picture()
        with closing(socket.create_connection((url.host, url.port or 80), timeout=10)) as connection:
            head = f"POST {API}/upload?upload_id={visitor.session} HTTP/1.1\r\nHost: {url.host}:{url.port}\r\n"
            head += f"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {len(data) + 200}\r\n\r\n"
            head += '--b\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
            connection.sendall(head.encode() + data[: len(data) // 2])
            time.sleep(self._random.random() / 4)
        return True

    def _break_off_an_answer(self, visitor: Visitor) -> bool:
        """Closes the window during an answer."""
        with visitor.heartbeat():
            messages = visitor.asking("Hello", [visitor.upload("picture.png", self._picture())], longest=256)
            for _ in zip(range(self._random.randrange(1, 6)), messages, strict=False):
                pass
            messages.close()  # type: ignore[attr-defined]
        return True

    def _never_listen(self, visitor: Visitor) -> bool:
        """Asks, and leaves without collecting the answer."""
        event = visitor.events.named("send")
        data = changed(event, {"multimodaltextbox": {"text": "Hello", "files": []}, "Longest answer": 8})
        body = {"data": data, "fn_index": event.number, "session_hash": visitor.session}
        visitor.client.post(f"{API}/queue/join", json=body).raise_for_status()
        return True

    def _stop(self, visitor: Visitor) -> bool:
        with visitor.heartbeat():
            messages = visitor.asking("What is this?", [visitor.upload("picture.png", self._picture())], longest=256)
            next(messages)
            list(visitor.call(visitor.events.named("stop")))
            return succeeded(list(messages))

    def _send_what_is_no_picture(self, visitor: Visitor) -> bool:
        """The upload or the question may be refused; there must never be an answer."""
        try:
            file = visitor.upload("picture.png", self._random.randbytes(50_000))
        except httpx.HTTPStatusError as error:
            return error.response.status_code < 500
        list(visitor.asking("What is this?", [file], longest=8))
        return True

    def _leave_at_once(self, visitor: Visitor) -> bool:
        with visitor.heartbeat():
            visitor.upload("picture.png", self._picture())
        return True


def measure(minutes: float, visitors: int, settle_s: float = SETTLE_S, least: int = 0) -> dict[str, Any]:
    """Runs a soak, for longer where a visitor has not done `least` acts by then; reports how often each act was done,
    and the verdict on each resource."""
    seconds = 60 * minutes
    first_s = min(FIRST_S, seconds / 2)
    samples: list[Taken] = []
    with watched_app() as app:
        with Visitor(app.url) as visitor:
            events = read_events(visitor.client)
        start = time.monotonic()
        soaking = [Soaking(app, events, number, start + seconds) for number in range(visitors)]
        threads = [threading.Thread(target=one.run, args=(least,)) for one in soaking]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and app.alive():
            samples.append(app.taken())
            time.sleep(_EVERY_S)
        for thread in threads:
            thread.join()
        if not app.alive():
            raise RuntimeError(f"app.py exited with status {app.process.returncode}: {app.log.read_text()[-2000:]}")
        first = max(1, min(round(first_s / _EVERY_S), len(samples) - 1))
        found = _settled(app, samples, first, settle_s)
        log_bytes = app.log.stat().st_size
    done = sum((one.done for one in soaking), Counter[str]())
    return {
        "machine": machine(),
        "minutes": minutes,
        "visitors": visitors,
        "done": dict(sorted(done.items())),
        "log_bytes": log_bytes,
        "resources": {name: asdict(verdict) | {"held": verdict.held} for name, verdict in found.items()},
    }


def _settled(app: WatchedApp, samples: list[Taken], first: int, settle_s: float) -> dict[str, Verdict]:
    """The verdicts once all hold, or after `settle_s`, which gives timed caches time to expire."""
    end = time.monotonic() + settle_s
    while True:
        found = verdicts(samples, first, app.taken())
        if all(verdict.held for verdict in found.values()) or time.monotonic() > end:
            return found
        time.sleep(_EVERY_S)


def table(report: dict[str, Any]) -> str:
    """The resources as a Markdown table; memory and disk in MB."""
    lines = [
        "| | after the first minute | peak | at the end | allowed excess | returned |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in report["resources"].items():
        unit = 1e6 if name in ("memory", "disk") else 1
        figures = [f"{row[key] / unit:,.0f}" for key in ("after_first_minute", "most", "end", "slack")]
        title = f"{name}, MB" if unit > 1 else name
        lines.append(f"| {title} | {' | '.join(figures)} | {'yes' if row['held'] else 'NO'} |")
    return "\n".join(lines)


def save(report: dict[str, Any], path: Path = RESULT) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--visitors", type=int, default=8, help="at once")
    parser.add_argument("--settle", type=float, default=SETTLE_S, help="seconds that resources may take to return")
    arguments = parser.parse_args()
    report = measure(arguments.minutes, arguments.visitors, arguments.settle)
    print(table(report))
    print("\n".join(f"{count:6} {name}" for name, count in report["done"].items()))
    save(report)
    sys.exit(0 if all(row["held"] for row in report["resources"].values()) else 1)


if __name__ == "__main__":
    main()
