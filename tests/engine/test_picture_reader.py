"""Decoding is bounded over all requests: how many at a time, and how much memory they take."""

import threading
import time
from concurrent.futures import wait

import pytest

from gemma3_core.engine.picture_reader import HeldTiles, PictureReader


class Gate:
    """Work that runs until it is let go, and says that it runs."""

    def __init__(self, result=None):
        self.began, self.go, self.result = threading.Event(), threading.Event(), result

    def __call__(self):
        self.began.set()
        assert self.go.wait(60)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_two_at_a_time_first_come_first_served():
    reader, gates = PictureReader(), [Gate(number) for number in range(4)]
    futures = [reader.submit(gate) for gate in gates]
    assert gates[0].began.wait(60)
    assert gates[1].began.wait(60)
    assert not gates[2].began.wait(0.1)
    gates[1].go.set()
    assert futures[1].result(60) == 1
    assert gates[2].began.wait(60)
    assert not gates[3].began.wait(0.1)
    for gate in gates:
        gate.go.set()
    assert [future.result(60) for future in futures] == [0, 1, 2, 3]


def test_what_does_not_fit_waits_and_smaller_ones_go_first():
    reader = PictureReader(max_bytes=100)
    large, larger, small, huge = Gate(), Gate(), Gate(), Gate()
    futures = [reader.submit(large, 70), reader.submit(larger, 60), reader.submit(small, 30)]
    assert large.began.wait(60)
    assert small.began.wait(60)
    assert not larger.began.wait(0.1)
    small.go.set()
    futures[2].result(60)
    assert not larger.began.wait(0.1)  # a thread is free, the memory is not
    large.go.set()
    assert larger.began.wait(60)
    futures.append(reader.submit(huge, 1000))
    assert not huge.began.wait(0.1)
    larger.go.set()
    assert huge.began.wait(60)  # alone it may be larger than the budget
    huge.go.set()
    assert not wait(futures, 60).not_done


def test_one_thread_is_left_to_small_ones():
    reader, first, second, small = PictureReader(), Gate(), Gate(), Gate()
    futures = [reader.submit(first, 200_000_000), reader.submit(second, 200_000_000), reader.submit(small, 1)]
    assert first.began.wait(60)
    assert small.began.wait(60)
    assert not second.began.wait(0.1)
    small.go.set()
    futures[2].result(60)
    assert not second.began.wait(0.1)
    for gate in (first, second):
        gate.go.set()
    assert not wait(futures, 60).not_done


def test_who_gives_up_leaves_the_line_and_errors_come_back():
    reader, first, second = PictureReader(at_a_time=1), Gate(ValueError("broken")), Gate("second")
    running, waiting, last = reader.submit(first), reader.submit(Gate()), reader.submit(second)
    assert waiting.cancel()
    second.go.set()
    first.go.set()
    with pytest.raises(ValueError, match="broken"):
        running.result(60)
    assert last.result(60) == "second"


def test_the_threads_yield_to_the_models():
    import os

    def niceness():
        time.sleep(0.05)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    reader = PictureReader()
    assert all(future.result(60) == min(19, 10) for future in [reader.submit(niceness) for _ in range(2)])
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


def test_where_the_system_refuses_a_lower_priority_pictures_are_decoded_all_the_same(monkeypatch):
    refused = []

    def forbidden(*given):
        refused.append(given)
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr("os.setpriority", forbidden)
    reader = PictureReader(at_a_time=1)
    assert [reader.submit(lambda: "decoded").result(5) for _ in range(2)] == ["decoded"] * 2
    assert refused


def test_tiles_that_wait_are_bounded_over_all_requests():
    tiles = HeldTiles(max_bytes=100)
    assert tiles.hold("a", 60, 0)
    assert not tiles.hold("b", 50, 0.05)
    assert tiles.hold("c", 40, 0)
    threading.Timer(0.1, tiles.release, ["a"]).start()
    assert tiles.hold("b", 50, 60)
    for owner in "abc":
        tiles.release(owner)
    assert tiles.hold("larger than all, and alone", 1000, 0)
    assert not tiles.hold("d", 1, 0)
