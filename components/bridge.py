"""Calls into the engine that may wait in its queue and can be cancelled. A browser window has one call of each kind."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from contextvars import copy_context
from typing import Any, TypeVar

import gradio as gr

from gemma3_core.engine import Answered, Event, Request

Ask = Callable[[gr.Request, str | None, Request, threading.Event | None], AsyncGenerator[Event]]
"""Asks a model, by its name, a question for whoever is at the page; setting the event stops the answer."""

T = TypeVar("T")

Look = Callable[[gr.Request, Answered], AbstractAsyncContextManager[Any]]
"""For the time of a look inside an answer: who is at the page, and the answer. Gives the look's account, whose
`outcome` becomes "failed" where nothing was found."""

_SOON_S, _TICK_S = 0.25, 0.5


class Call:
    """One call: the engine checks `stop` while it works, and reports what it waits for through `tell`."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.told = ""

    def tell(self, text: str) -> None:
        self.told = text


class Calls:
    """The running calls of all windows. A new call cancels the earlier one of the same kind and window."""

    def __init__(self, threads: ThreadPoolExecutor):
        self._threads = threads
        self._running: dict[tuple[str, str], Call] = {}

    @contextmanager
    def entry(self, window: str, kind: str) -> Iterator[Call]:
        """Starts a call of this kind; leaving the `with` block cancels it."""
        self.give_up(window, kind)
        call = self._running[window, kind] = Call()
        try:
            yield call
        finally:
            call.stop.set()
            if self._running.get((window, kind)) is call:
                del self._running[window, kind]

    def give_up(self, window: str, *kinds: str) -> None:
        """Cancels the window's calls of these kinds, or all of them if none is named.

        The engine stops within one layer of a forward pass.
        """
        for key, call in self._running.items():
            if key[0] == window and (not kinds or key[1] in kinds):
                call.stop.set()

    async def results(
        self,
        window: str,
        kind: str,
        work: Callable[[Call], T],
        waiting: Callable[[str], str],
        entered: Call | None = None,
    ) -> AsyncGenerator[str | T | None, None]:
        """Runs `work` in a thread: yields `waiting(...)` of what it waits for until it ends, then its result.

        It is a new call, unless the caller has `entered` one. A cancelled call ends with None. The waiting text is
        repeated even if it hasn't changed, because Gradio notices that a visitor has left only when it sends something.
        """
        with self.entry(window, kind) if entered is None else nullcontext(entered) as call:
            future = asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, work, call)
            try:
                tick_s = _SOON_S
                while not (await asyncio.wait([future], timeout=tick_s))[0]:
                    if call.stop.is_set():
                        yield None
                        return
                    yield waiting(call.told)
                    tick_s = _TICK_S
                yield None if call.stop.is_set() else future.result()
            finally:
                future.cancel()  # only has an effect before a thread has started it


def window_of(request: gr.Request) -> str:
    """Identifies a browser window (or client session)."""
    return request.session_hash or ""
