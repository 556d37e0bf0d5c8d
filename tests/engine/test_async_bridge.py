"""The bridge between an engine's iterator and the event loop: order, errors, and that leaving always closes."""

import asyncio
import threading
import time
from contextlib import aclosing

import pytest

from gemma3_core.engine import Gemma3Error, StageEvent, TokenEvent, async_bridge
from gemma3_core.engine.async_bridge import in_event_loop


class Source:
    """An iterator that records when it is closed; `gate` holds it before its second event."""

    def __init__(self, events, gate=None, error=None):
        self.closed = threading.Event()
        self.events, self.gate, self.error = events, gate, error

    def stream(self):
        try:
            for number, event in enumerate(self.events):
                if number == 1 and self.gate:
                    self.gate.wait(60)
                yield event
            if self.error:
                raise self.error
        finally:
            self.closed.set()


def collect(source):
    async def run():
        return [event async for event in in_event_loop(source.stream())]

    return asyncio.run(run())


def test_events_arrive_in_order_and_the_iterator_is_closed():
    events = [StageEvent("reading", "Reading"), TokenEvent("a"), TokenEvent("b")]
    source = Source(events)
    assert collect(source) == events
    assert source.closed.wait(60)


def test_an_error_of_the_engine_is_raised_where_the_answer_is_awaited():
    source = Source([TokenEvent("a")], error=Gemma3Error("There is no question."))
    with pytest.raises(Gemma3Error, match="no question"):
        collect(source)
    assert source.closed.wait(60)


class Panic(BaseException):
    """As Python raises where Rust code panics."""


@pytest.mark.parametrize("error", [Panic("index out of bounds"), SystemExit("index out of bounds")], ids=repr)
def test_what_is_no_exception_reaches_who_awaits_the_answer_as_one(error):
    source = Source([TokenEvent("a")], error=error)
    seen = []

    async def run():
        async with asyncio.timeout(5):
            async for event in in_event_loop(source.stream()):
                seen.append(event)

    with pytest.raises(RuntimeError, match=f"^{type(error).__name__}: index out of bounds") as told:
        asyncio.run(run())
    assert told.value.__cause__ is error
    assert seen == [TokenEvent("a")]
    assert source.closed.wait(2)


def test_a_cancelled_handler_closes_the_iterator():
    gate = threading.Event()
    source = Source([TokenEvent("a"), TokenEvent("b")], gate)

    async def handler():
        async with aclosing(in_event_loop(source.stream())) as events:
            async for event in events:
                yield event

    async def run():
        task = asyncio.ensure_future(_drain(handler()))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    gate.set()
    assert source.closed.wait(60)


@pytest.mark.parametrize("steps", range(5))
def test_a_handler_cancelled_as_an_event_arrives_is_cancelled(steps):
    gate, over = threading.Event(), threading.Event()

    def source():
        gate.wait(60)
        yield TokenEvent("a")
        over.wait(60)

    async def run():
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(_drain(in_event_loop(source())))
        await asyncio.sleep(0.05)
        gate.set()
        time.sleep(0.05)  # the event arrives in the next step of the loop

        def cancel_after(left):
            loop.call_soon(cancel_after, left - 1) if left else task.cancel()

        cancel_after(steps)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    over.set()


async def _drain(events):
    async for _ in events:
        pass


def test_a_closed_handler_closes_the_iterator():
    source = Source([TokenEvent("a"), TokenEvent("b"), TokenEvent("c")])

    async def handler():
        async with aclosing(in_event_loop(source.stream())) as events:
            async for event in events:
                yield event

    async def run():
        events = handler()
        await anext(events)
        await events.aclose()

    asyncio.run(run())
    assert source.closed.wait(60)


def test_the_latest_stage_comes_again_in_a_silence_and_otherwise_once(monkeypatch):
    monkeypatch.setattr(async_bridge, "_TICK_S", 3.0)
    gate = threading.Event()
    stage = StageEvent("reading", "Reading")
    source = Source([stage, stage, stage, TokenEvent("a")], gate)

    async def listed():
        seen = []
        async for event in in_event_loop(source.stream()):
            seen.append(event)
            if len(seen) == 3:
                gate.set()
        return seen

    seen = asyncio.run(listed())
    assert seen[:3] == [stage] * 3  # one from the engine, two for the silence
    assert seen[3:] == [TokenEvent("a")]
