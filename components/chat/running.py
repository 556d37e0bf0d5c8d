"""The answer that each browser window waits for, and how often the page is redrawn meanwhile."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from components.chat.conversation import NOTHING
from gemma3_core.engine import TokenEvent, Turn

T = TypeVar("T")

_REDRAW_S = 0.05


class RunningAnswer:
    """One answer that a window waits for, to a question that nothing else holds yet (or to none). The engine looks at
    `stop`; nobody wants to see a `discarded` answer."""

    def __init__(self, question: Turn = NOTHING) -> None:
        self.question = question
        self.stop = threading.Event()
        self.discarded = False
        self._has_tokens = False
        self._left = asyncio.Event()
        self._ended = asyncio.Event()

    async def events(self, answer: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Yields the answer's events, or what comes before it; ends at None, and at once if the answer is discarded, or
        stopped before its first token."""
        left = asyncio.ensure_future(self._left.wait())
        following: asyncio.Future[Any] = left
        try:
            while not self._left.is_set():
                following = asyncio.ensure_future(anext(answer, None))
                await asyncio.wait((following, left), return_when=asyncio.FIRST_COMPLETED)
                if not following.done() or (event := following.result()) is None:
                    return
                self._has_tokens = self._has_tokens or isinstance(event, TokenEvent)
                yield event
        finally:
            for task in (following, left):
                task.cancel()
            await asyncio.wait((following, left))
            await answer.aclose()

    def halt(self) -> None:
        """Stops the answer: after the token that is being decoded, or at once where nothing is written yet."""
        self.stop.set()
        if not self._has_tokens:
            self._left.set()

    async def discard(self) -> None:
        """Ends the answer, and waits until none of it can reach the page any more."""
        self.discarded = True
        self._left.set()
        await self._ended.wait()

    def end(self) -> None:
        self._ended.set()


class RunningAnswers:
    """At most one running answer for each browser window."""

    def __init__(self) -> None:
        self._running: dict[str, RunningAnswer] = {}

    def __contains__(self, window: str) -> bool:
        return window in self._running

    def question(self, window: str) -> Turn:
        """That of the window's running answer, if nothing else holds it."""
        return self._running[window].question if window in self._running else NOTHING

    @contextmanager
    def entry(self, window: str, question: Turn = NOTHING) -> Iterator[RunningAnswer]:
        """Registers a running answer of the window for the duration of the `with` block."""
        answer = self._running[window] = RunningAnswer(question)
        try:
            yield answer
        finally:
            del self._running[window]
            answer.end()

    def stop(self, window: str) -> None:
        """Stops the window's running answer, if any; the text so far stays."""
        if answer := self._running.get(window):
            answer.halt()

    async def discard(self, window: str) -> Turn:
        """Ends the window's running answer, if any; nothing of it stays. Returns its question."""
        answer = self._running.get(window)
        if answer is None:
            return NOTHING
        await answer.discard()
        return answer.question


class Pace:
    """Limits redrawing to twenty times a second."""

    def __init__(self) -> None:
        self._last = 0.0

    def due(self) -> bool:
        """Whether to redraw now; if so, restarts the interval."""
        if time.monotonic() - self._last < _REDRAW_S:
            return False
        self._last = time.monotonic()
        return True
