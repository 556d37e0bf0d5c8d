"""The one bridge from the engine's threads to asyncio."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextvars import copy_context

from gemma3_core.engine.api import Event, StageEvent

_TICK_S = 1.0


async def in_event_loop(events: Iterator[Event]) -> AsyncGenerator[Event]:
    """Yields the events of a blocking iterator, which runs in its own thread; closing this closes it within one event.

    A stage is sent at most once a second, and is repeated while the iterator is silent: a server notices that a visitor
    has left only when it sends something. The thread has the caller's context, by which a ZeroGPU Space knows the
    visitor. Re-raises the iterator's exceptions; a BaseException, such as a panic in Rust code, becomes a RuntimeError,
    since asyncio would end with it.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
    closed = threading.Event()

    def hand_over(item: Event | BaseException | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def pull() -> None:
        try:
            for event in events:
                if closed.is_set():
                    break
                hand_over(event)
            hand_over(None)
        except Exception as error:  # noqa: BLE001  raised again in the event loop, which can show it
            hand_over(error)
        except BaseException as error:  # noqa: BLE001  as above
            fault = RuntimeError(f"{type(error).__name__}: {error}")
            fault.__cause__ = error
            hand_over(fault)
        finally:
            if (close := getattr(events, "close", None)) is not None:
                close()

    threading.Thread(target=copy_context().run, args=(pull,), name="answer", daemon=True).start()
    stage, said = StageEvent("queued", "Sending the question"), time.monotonic()
    try:
        while True:
            try:
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with an event.
                async with asyncio.timeout(said + _TICK_S - time.monotonic()):
                    item = await arrived.get()
            except TimeoutError:
                item = stage
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            if item == stage and time.monotonic() < said + _TICK_S:
                continue
            if isinstance(item, StageEvent):
                stage = item
            said = time.monotonic()
            yield item
    finally:
        closed.set()
