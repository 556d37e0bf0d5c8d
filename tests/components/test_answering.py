"""The bridge between an engine's iterator and the event loop: order, errors, and that Stop always closes."""

import asyncio
import threading
import time

import pytest

from components.answering import Answer, RunningAnswers
from gemma3_core.engine import Gemma3Error, StageEvent, TokenEvent


class Source:
    """An iterator that records when it is closed; `gate` holds it before its second event."""

    def __init__(self, events, gate=None, error=None):
        self.closed = threading.Event()
        self.events, self.gate, self.error = events, gate, error

    def stream(self):
        try:
            for number, event in enumerate(self.events):
                if number == 1 and self.gate:
                    self.gate.wait(5)
                yield event
            if self.error:
                raise self.error
        finally:
            self.closed.set()


def collect(source):
    async def run():
        with Answer(source.stream()) as answer:
            return [event async for event in answer]

    return asyncio.run(run())


def test_events_arrive_in_order_and_the_iterator_is_closed():
    events = [StageEvent("reading", "Reading"), TokenEvent("a"), TokenEvent("b")]
    source = Source(events)
    assert collect(source) == events
    assert source.closed.wait(2)


def test_an_error_of_the_engine_is_raised_where_the_answer_is_awaited():
    source = Source([TokenEvent("a")], error=Gemma3Error("There is no question."))
    with pytest.raises(Gemma3Error, match="no question"):
        collect(source)
    assert source.closed.wait(2)


def test_stop_ends_at_once_and_closes_at_the_next_event():
    gate = threading.Event()
    source = Source([TokenEvent("a"), TokenEvent("b"), TokenEvent("c")], gate)

    async def run():
        seen = []
        with Answer(source.stream()) as answer:
            async for event in answer:
                seen.append(event)
                answer.stop()
        return seen

    start = time.monotonic()
    assert asyncio.run(run()) == [TokenEvent("a")]
    assert time.monotonic() - start < 1
    gate.set()
    assert source.closed.wait(2)


def test_a_cancelled_handler_closes_the_iterator():
    gate = threading.Event()
    source = Source([TokenEvent("a"), TokenEvent("b")], gate)

    async def handler():
        with Answer(source.stream()) as answer:
            async for event in answer:
                yield event

    async def run():
        task = asyncio.ensure_future(_drain(handler()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    gate.set()
    assert source.closed.wait(2)


async def _drain(events):
    async for _ in events:
        pass


def test_a_closed_handler_closes_the_iterator():
    source = Source([TokenEvent("a"), TokenEvent("b"), TokenEvent("c")])

    async def handler():
        with Answer(source.stream()) as answer:
            async for event in answer:
                yield event

    async def run():
        events = handler()
        await anext(events)
        await events.aclose()

    asyncio.run(run())
    assert source.closed.wait(2)


def test_silence_is_told_once_a_second(monkeypatch):
    monkeypatch.setattr("components.answering._TICK_S", 0.05)
    gate = threading.Event()
    source = Source([TokenEvent("a"), TokenEvent("b")], gate)

    async def run():
        with Answer(source.stream()) as answer:
            async for event in answer:
                if event is None:
                    gate.set()
                yield event

    async def listed():
        return [event async for event in run()]

    events = asyncio.run(listed())
    assert None in events
    assert [event for event in events if event] == [TokenEvent("a"), TokenEvent("b")]


def test_windows_are_kept_apart():
    async def run():
        running = RunningAnswers()
        first, second = (Answer(iter([TokenEvent("a")])) for _ in range(2))
        with first, second, running.entry("one", first), running.entry("two", second):
            running.stop("one")
            running.stop("nobody")
            assert first.stopped
            assert not second.stopped
        assert "one" not in running
        await running.discard("one")

    asyncio.run(run())
