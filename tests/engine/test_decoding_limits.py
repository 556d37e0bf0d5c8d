"""Large pictures: what one question, and several at once, make the server hold is bounded, and others notice little.

A PNG of one color, 64 megapixels in some 200 KB, takes 192 MB and more once it is decoded. The server runs in a process
of its own, with a limit on its memory.
"""

import functools
import statistics
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from places import EXAMPLES
from plain_words import failures_in, is_plain
from running_app import free_port
from warm import Program

from benchmarks.visitors import PageEvents, Visitor, answered, read_events
from benchmarks.watched_app import WatchedApp, watched_app

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from Linux's /proc")

SIDE = 8000  # pixels; 64 megapixels are the most that a picture may have
ONE_QUESTION, SEVERAL_QUESTIONS = 600_000_000, 900_000_000  # bytes that they may make the server hold
SERVER_MAY_GROW = 2_500_000_000  # bytes of data; beyond that the system gives it nothing
AT_ONCE, TIMES_EACH = 4, 2
SMALL_QUESTIONS, ROUNDS = 5, 4
DECODING_AFTER_S = 0.15  # then it has begun and has not ended
TIMES_USUAL = 2.0


def large_png(color: tuple[int, int, int]) -> bytes:
    """SIDE x SIDE pixels of one color. Written by hand: a hundredth of them is packed, and repeated."""
    packer, times = zlib.compressobj(6, wbits=-zlib.MAX_WBITS), 100
    rows = (b"\0" + bytes(color) * SIDE) * (SIDE // times)
    repeated = (packer.compress(rows) + packer.flush(zlib.Z_FULL_FLUSH)) * times
    sum_of_all = functools.reduce(lambda total, _: zlib.adler32(rows, total), range(times), 1)
    packed = b"\x78\x9c" + repeated + packer.flush() + struct.pack(">I", sum_of_all)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", packed), (b"IEND", b""))
    written = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


@pytest.fixture(scope="module")
def large_files() -> list[bytes]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(large_png, [(30 * number, 200, 255 - 30 * number) for number in range(8)]))


@pytest.fixture(scope="module")
def app() -> Iterator[WatchedApp]:
    with watched_app(start=Program, port=free_port()) as running:
        with Visitor(running.url) as visitor:
            assert small_question(running, read_events(visitor.client)) > 0  # what torch sets up once is no one's cost
        running.limit_data(SERVER_MAY_GROW)
        yield running


def small_question(app: WatchedApp, events: PageEvents) -> float:
    """Seconds until a new visitor has the answer to a question about a small picture."""
    with Visitor(app.url, events) as visitor:
        file = visitor.upload("hearts.png", (EXAMPLES / "hearts.png").read_bytes())
        start = time.monotonic()
        messages = visitor.ask("How many hearts are there?", [file])
        seconds = time.monotonic() - start
    assert answered(messages), list(failures_in(messages))
    return seconds


def ask_about(app: WatchedApp, events: PageEvents, files: list[bytes], times: int = 1) -> tuple[str, object]:
    """`/ask` about these files, each named so many times; what came of it."""
    with Visitor(app.url, events) as visitor:
        uploads = [visitor.upload(f"large{number}.png", data) for number, data in enumerate(files)]
        return visitor.ask_by_name("What color is this?", uploads * times, longest=4)


def answered_or_refused(outcome: tuple[str, object]) -> bool:
    """An answer, or one sentence or two that say why there is none."""
    kind, said = outcome
    return kind == "complete" or (kind == "error" and is_plain(said))


def test_the_files_are_small_and_large(large_files):
    from io import BytesIO

    from PIL import Image

    assert len(set(large_files)) == 8
    assert all(150_000 < len(file) < 250_000 for file in large_files)
    picture = Image.open(BytesIO(large_files[2]))
    assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
    assert picture.getpixel((SIDE - 1, SIDE - 1)) == (60, 200, 195)


@pytest.mark.parametrize("which", ["one file named 16 times", "eight different files"])
def test_one_question_about_large_pictures_is_bounded(app, large_files, which):
    with Visitor(app.url) as visitor:
        events = read_events(visitor.client)
    before = app.memory()
    app.forget_peak()
    files, times = (large_files[:1], 16) if which.startswith("one") else (large_files, 1)
    outcome = ask_about(app, events, files, times)
    assert app.alive(), "the server has ended"
    more = app.peak() - before
    print(f"{which}: {outcome}, {more / 1e6:.0f} MB more")
    assert answered_or_refused(outcome), outcome
    assert more <= ONE_QUESTION, f"{more / 1e6:.0f} MB more; {outcome}"
    assert small_question(app, events) > 0


def test_several_such_questions_at_once_are_bounded(app, large_files):
    """From sessions of their own, each again and again."""
    with Visitor(app.url) as visitor:
        events = read_events(visitor.client)
    before = app.memory()
    app.forget_peak()

    def insist(number: int) -> list[tuple[str, object]]:
        files, times = (large_files[number : number + 1], 16) if number % 2 else (large_files, 1)
        return [ask_about(app, events, files, times) for _ in range(TIMES_EACH)]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        outcomes = [outcome for outcomes in pool.map(insist, range(AT_ONCE)) for outcome in outcomes]
    assert app.alive(), "the server has ended"
    more = app.peak() - before
    print(f"{more / 1e6:.0f} MB more, {[kind for kind, _ in outcomes]}")
    assert [outcome for outcome in outcomes if not answered_or_refused(outcome)] == []
    assert more <= SEVERAL_QUESTIONS, f"{more / 1e6:.0f} MB more"
    assert small_question(app, events) > 0


def test_another_visitor_notices_little(app, large_files):
    """A small question takes its usual time, or twice that while large pictures are decoded for somebody else.

    Both are measured in turns, so that a slow moment of the machine hits both; where it hits more of one than of the
    other, they are measured again. Two large pictures, or one where the server refuses two, take it longer than the
    small question.
    """
    with Visitor(app.url) as visitor, ThreadPoolExecutor(1) as pool:
        events = read_events(visitor.client)
        uploads = [visitor.upload(f"large{number}.png", data) for number, data in enumerate(large_files[:2])]

        def ask(count: int) -> tuple[str, object]:
            return visitor.ask_by_name("What color is this?", uploads[:count], longest=1)

        def medians() -> tuple[float, float]:
            """Seconds as usual, and beside the large pictures."""
            usual, meanwhile = [], []
            for _ in range(SMALL_QUESTIONS):
                usual.append(small_question(app, events))
                asked = pool.submit(ask, count)
                time.sleep(DECODING_AFTER_S)
                assert not asked.done(), "the large pictures were decoded before anybody could notice"
                meanwhile.append(small_question(app, events))
                assert asked.result()[0] == "complete"
            return statistics.median(usual), statistics.median(meanwhile)

        count = next((count for count in (2, 1) if ask(count)[0] == "complete"), 0)
        assert count, "the server takes no large picture at all"
        rounds = []
        for _ in range(ROUNDS):
            rounds.append(medians())
            usual, meanwhile = rounds[-1]
            if meanwhile <= TIMES_USUAL * usual:
                break
    print(f"seconds as usual and beside {count} pictures: {rounds}")
    assert meanwhile <= TIMES_USUAL * usual, rounds
