"""An engine's synchronous answer, carried from a thread of its own into the event loop.

Gradio's own threads are not used: an answer that waits in the engine's queue would hold one of them,
and forty such would stop the page for everyone. The engine's queue bounds how many threads there are.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import TracebackType

from gemma3_core.engine import Event

_TICK_S = 1.0


class Answer:
    """One running answer: iterate over its events; leaving the `with` block stops the engine's work.

    Iteration also yields None once a second where nothing happens: Gradio notices a vanished visitor
    only when its handler yields.
    """

    def __init__(self, events: Iterator[Event]):
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        self._stopped = threading.Event()
        self.discarded = False  # nobody wants to see what has been written
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._pump, name="answer", daemon=True)

    def __enter__(self) -> "Answer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._ended.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Ends the iteration at once; the engine's iterator is closed at its next event, a token at most."""
        self._stopped.set()
        self._arrived.put_nowait(None)

    async def ended(self) -> None:
        """Waits until whoever iterates over this answer has left it."""
        await self._ended.wait()

    async def __aiter__(self) -> AsyncIterator[Event | None]:
        while not self._stopped.is_set():
            try:
                event = await asyncio.wait_for(self._arrived.get(), _TICK_S)
            except TimeoutError:
                yield None
                continue
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event

    def _pump(self) -> None:
        try:
            for event in self._events:
                if self._stopped.is_set():
                    break
                self._hand_over(event)
            self._hand_over(None)
        except Exception as error:  # noqa: BLE001  raised again in the event loop, where it can be shown
            self._hand_over(error)
        finally:
            self._close()

    def _close(self) -> None:
        close = getattr(self._events, "close", None)
        if close is not None:
            close()

    def _hand_over(self, event: Event | BaseException | None) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, event)


class RunningAnswers:
    """Which answer each browser window is waiting for; at most one per window."""

    def __init__(self) -> None:
        self._running: dict[str, Answer] = {}

    def __contains__(self, window: str) -> bool:
        return window in self._running

    @contextmanager
    def entry(self, window: str, answer: Answer) -> Iterator[None]:
        """The window's running answer, for as long as the `with` block lasts."""
        self._running[window] = answer
        try:
            yield
        finally:
            del self._running[window]

    def stop(self, window: str) -> None:
        """Stops the window's answer, if one is running."""
        if answer := self._running.get(window):
            answer.stop()

    async def discard(self, window: str) -> None:
        """Stops the window's answer and waits until nothing more of it can reach the page."""
        if answer := self._running.get(window):
            answer.discarded = True
            answer.stop()
            await answer.ended()
