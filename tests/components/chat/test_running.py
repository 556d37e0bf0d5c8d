"""What a browser window waits for: stopped it ends by itself, discarded at once."""

import asyncio
from types import SimpleNamespace

import pytest

from components.chat import running
from components.chat.running import Pace, RunningAnswers
from gemma3_core.engine import StageEvent, TokenEvent


class Source:
    """Events for asyncio; after the first it waits for `gate`."""

    def __init__(self, first=TokenEvent("a")):  # noqa: B008  it is frozen
        self.first, self.gate, self.closed = first, asyncio.Event(), False

    async def stream(self):
        try:
            yield self.first
            await self.gate.wait()
            yield TokenEvent("b")
        finally:
            self.closed = True


async def listen(running, window, source, seen):
    with running.entry(window) as answer:
        async for event in answer.events(source.stream()):
            seen.append(event.text)
    return answer


async def begun(seen):
    """Waits until the first event has come."""
    while not seen:
        await asyncio.sleep(0)


def test_a_discarded_answer_ends_at_once_and_is_closed():
    async def go():
        running, source, seen = RunningAnswers(), Source(), []
        listening = asyncio.create_task(listen(running, "one", source, seen))
        await begun(seen)
        assert "one" in running
        await asyncio.wait_for(running.discard("one"), 20)
        assert "one" not in running
        answer = await listening
        assert (answer.discarded, answer.stop.is_set(), source.closed, seen) == (True, False, True, ["a"])

    asyncio.run(go())


def test_a_stopped_answer_goes_on_to_its_end():
    async def go():
        running, source, seen = RunningAnswers(), Source(), []
        listening = asyncio.create_task(listen(running, "one", source, seen))
        await begun(seen)
        running.stop("nobody")
        running.stop("one")
        source.gate.set()
        answer = await listening
        assert (answer.discarded, answer.stop.is_set(), source.closed, seen) == (False, True, True, ["a", "b"])

    asyncio.run(go())


def test_an_answer_that_is_stopped_before_its_first_token_ends_at_once():
    """The engine may be in a long pass: whoever has nothing to keep need not wait for it."""

    async def go():
        running, source, seen = RunningAnswers(), Source(StageEvent("reading", "Reading 9,000 tokens")), []
        listening = asyncio.create_task(listen(running, "one", source, seen))
        await begun(seen)
        running.stop("one")
        answer = await asyncio.wait_for(listening, 20)
        assert (answer.discarded, answer.stop.is_set(), source.closed) == (False, True, True)
        assert seen == ["Reading 9,000 tokens"]

    asyncio.run(go())


def test_windows_are_kept_apart():
    async def go():
        running = RunningAnswers()
        with running.entry("one") as one, running.entry("two") as two:
            running.stop("one")
            assert (one.stop.is_set(), two.stop.is_set()) == (True, False)
        assert "one" not in running
        await running.discard("one")

    asyncio.run(go())


def test_a_handler_that_is_cancelled_closes_its_answer():
    async def go():
        source, seen = Source(), []
        listening = asyncio.create_task(listen(RunningAnswers(), "one", source, seen))
        await begun(seen)
        listening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listening
        assert source.closed

    asyncio.run(go())


def test_an_error_of_the_engine_is_raised():
    async def broken():
        yield TokenEvent("a")
        raise ValueError("no")

    async def go():
        with RunningAnswers().entry("one") as answer:
            return [event async for event in answer.events(broken())]

    with pytest.raises(ValueError, match="no"):
        asyncio.run(go())


def test_redraws_keep_a_pace(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(running, "time", SimpleNamespace(monotonic=lambda: clock.now))
    pace, drawn = Pace(), 0
    for _ in range(300):  # 3 s of events, one each 10 ms
        clock.now += 0.01
        drawn += pace.due()
    assert 50 <= drawn <= 61
