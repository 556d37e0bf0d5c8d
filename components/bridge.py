"""Calls into the engine that wait for its turn and can be given up: of each kind one in a browser window."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

_SOON_S, _TICK_S = 0.25, 0.5


class Call:
    """One call: the engine looks at `stop`, and tells what it waits for."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.told = ""

    def tell(self, text: str) -> None:
        self.told = text


class Calls:
    """The running calls of all windows. A new one of the same kind and window gives up the one before it."""

    def __init__(self, threads: ThreadPoolExecutor):
        self._threads = threads
        self._running: dict[tuple[str, str], Call] = {}

    @contextmanager
    def entry(self, window: str, kind: str) -> Iterator[Call]:
        """A call of this kind; leaving the `with` block gives it up."""
        self.give_up(window, kind)
        call = self._running[window, kind] = Call()
        try:
            yield call
        finally:
            call.stop.set()
            if self._running.get((window, kind)) is call:
                del self._running[window, kind]

    def give_up(self, window: str, *kinds: str) -> None:
        """Ends the window's calls of these kinds, without one of all kinds: the engine within one layer of a pass."""
        for key, call in self._running.items():
            if key[0] == window and (not kinds or key[1] in kinds):
                call.stop.set()

    async def results(
        self, window: str, kind: str, work: Callable[[Call], str | None], waiting: Callable[[str], str]
    ) -> AsyncGenerator[str | None, None]:
        """`waiting` of what is waited for in words, as long as it lasts, and then what `work` gives in a thread.

        The last of a call that is given up is None. What is waited for comes again and again: Gradio notices a
        vanished visitor only when something is sent.
        """
        with self.entry(window, kind) as call:
            future = asyncio.get_running_loop().run_in_executor(self._threads, work, call)
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
                future.cancel()  # where no thread has begun with it
