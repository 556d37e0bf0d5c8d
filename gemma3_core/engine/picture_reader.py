"""Decodes pictures for all visitors of a server: two jobs at a time, within a memory budget.

Decoding takes CPU time and memory in proportion to the picture, so it is bounded over all requests together. A job that
does not fit into the remaining memory waits; smaller jobs behind it may overtake it, and one thread always stays free
for them. Where the system allows it, these threads run at a lower priority than the model's.
"""

import os
import sys
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from PIL import Image

from gemma3_core.engine.own_thread import start_in_own_thread
from gemma3_core.images.limits import DEFAULT_LIMITS

Result = TypeVar("Result")

MAX_HELD_BYTES = 1_000_000_000
"""Memory for the tiles of all waiting requests: about 400 tiles of 896 x 896 pixels."""

_NICENESS = 10
_LARGE_BYTES = 100_000_000  # memory for decoding a picture of about 20 megapixels
_BLOCK_BYTES = 64 * 1024**2
"""Pillow's block size. glibc maps blocks of 32 MiB and more one by one, so freed blocks go back to the system."""


@dataclass(frozen=True)
class _Job:
    work: Callable[[], Any]
    num_bytes: int
    future: Future[Any]


class PictureReader:
    """Runs each job in a thread of its own; safe to use from many threads."""

    def __init__(self, max_bytes: int = DEFAULT_LIMITS.max_decoding_bytes, at_a_time: int = 2):
        """Runs at most `at_a_time` jobs together, one fewer if they are large; they use `max_bytes` at most, or are one
        job."""
        self._max_bytes, self._at_a_time = max_bytes, at_a_time
        self._lock = threading.Lock()
        self._waiting: list[_Job] = []
        self._running: list[_Job] = []
        Image.core.set_block_size(_BLOCK_BYTES)

    def submit(self, work: Callable[[], Result], num_bytes: int = 0) -> Future[Result]:
        """Queues `work`, which needs about `num_bytes` of memory; cancelling the future gives up its place."""
        future: Future[Result] = Future()
        with self._lock:
            self._waiting.append(_Job(work, num_bytes, future))
            self._start()
        return future

    def _start(self) -> None:
        """Starts all jobs that fit, first come, first served; the caller holds the lock."""
        for job in list(self._waiting):
            if len(self._running) >= self._at_a_time:
                return
            if self._running and not self._fits(job):
                continue
            self._waiting.remove(job)
            if job.future.set_running_or_notify_cancel():
                try:
                    start_in_own_thread(partial(self._run, job), "pictures")
                except RuntimeError as error:  # the system has no thread left
                    job.future.set_exception(error)
                else:
                    self._running.append(job)

    def _fits(self, job: _Job) -> bool:
        together = [*self._running, job]
        large = sum(other.num_bytes >= _LARGE_BYTES for other in together)
        leaves_a_thread = job.num_bytes < _LARGE_BYTES or large < self._at_a_time
        return leaves_a_thread and sum(other.num_bytes for other in together) <= self._max_bytes

    def _run(self, job: _Job) -> None:
        try:
            _yield_to_the_model()
            result, error = job.work(), None
        except BaseException as raised:  # noqa: BLE001  raised again where the result is awaited
            result, error = None, raised
        with self._lock:
            self._running.remove(job)
            self._start()
        if error is None:
            job.future.set_result(result)
        else:
            job.future.set_exception(error)


class HeldTiles:
    """Counts the tiles that all requests hold until their turn; safe to use from many threads."""

    def __init__(self, max_bytes: int = MAX_HELD_BYTES):
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._held: dict[Hashable, int] = {}

    def hold(self, owner: Hashable, num_bytes: int, seconds: float) -> bool:
        """Waits up to `seconds` for room for an owner's tiles, in place of what it held; True if there is. A single
        owner always has room."""

        def fits() -> bool:
            others = sum(held for other, held in self._held.items() if other != owner)
            return not num_bytes or not others or others + num_bytes <= self._max_bytes

        with self._changed:
            if not self._changed.wait_for(fits, seconds):
                return False
            self._held[owner] = num_bytes
            return True

    def release(self, owner: Hashable) -> None:
        """Releases the owner's tiles; harmless if it holds none."""
        with self._changed:
            self._held.pop(owner, None)
            self._changed.notify_all()


def _yield_to_the_model() -> None:
    if sys.platform == "linux":  # niceness is per thread there
        with suppress(OSError):  # as in a sandbox that forbids it
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
