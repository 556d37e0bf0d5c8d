"""One replica: an ordinary ModelRegistry, whose events go out in batches."""

import asyncio
import os
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch

from gemma3_core.engine.api import Event, Request, TokenEvent
from gemma3_core.engine.registry import ModelRegistry
from gemma3_core.errors import CheckpointError, Gemma3Error, UnsupportedOptionError
from gemma3_core.parallel.passes import PROCESS_LOST
from gemma3_core.replicas.wire import LOOKS, Description, Failed, Found, Told, program_version

Item = Event | Told | Found | Failed
Emit = Callable[[Item], None]

BEAT_S = 1.0
"""A silent call sends an empty batch this often, by which the page in front knows that the replica lives."""
PACE_S = 0.03
"""Tokens that come so soon after others go out together, since each batch costs both sides about a millisecond. A page
draws an answer no more often."""
STUCK_S = {"cuda": 20.0}
STUCK_ELSEWHERE_S = 300.0
"""A pass that takes longer means that the device hangs. On a CPU the encoding of one picture may take half a minute."""

OTHER_VERSION = (
    "This page and the replicas behind it run different versions of the program. Deploy them again from the same one."
)


class Replica:
    """What Serve starts on each machine. Its methods are coroutines: they share one event loop, which never waits."""

    def __init__(self, models: dict[str, Any], threads: int | None = None):
        """Loads the models. Raises what `ModelRegistry.load` raises."""
        if threads is not None:
            torch.set_num_threads(threads)
        self._options, self._version = models, program_version()
        if models.get("tensor_parallel", 1) > 1:
            from gemma3_core.replicas.span import RayProcesses

            models = {**models, "start": RayProcesses()}
        self._models = ModelRegistry.load(**models)
        self._stops: dict[str, threading.Event] = {}

    async def describe(self) -> Description:
        entries = self._models.entries
        chosen = {entry.name for entry in entries}
        infos = tuple(info for name in self._models.names if name not in chosen and (info := self._models.info(name)))
        return Description(self._version, infos, entries, self._options)

    async def prepared(self, version: str, key: str, name: str) -> AsyncGenerator[list[Item]]:
        """Loads a model; its last item is its ModelInfo."""

        def work(emit: Emit, stop: threading.Event) -> None:
            for event in self._models.prepare(name, stop):
                emit(event)
            emit(Found(self._models.info(name)))

        async for batch in self._batches(version, key, work):
            yield batch

    async def stream(self, version: str, key: str, name: str, request: Request) -> AsyncGenerator[list[Item]]:
        """The events of an answer, in batches of what there is. Ending the call ends the answer within a step."""

        def work(emit: Emit, stop: threading.Event) -> None:
            for event in self._models.stream(name, request, stop):
                emit(event)

        async for batch in self._batches(version, key, work):
            yield batch

    async def look(
        self, version: str, key: str, name: str, method: str, arguments: tuple[Any, ...]
    ) -> AsyncGenerator[list[Item]]:
        """What one of LOOKS gives for a model, which is loaded first if it is not in memory here."""

        def work(emit: Emit, stop: threading.Event) -> None:
            if method not in LOOKS:
                raise UnsupportedOptionError(f"A replica has no method {method[:40]!r}. {OTHER_VERSION}")
            for event in self._models.prepare(name, stop):
                emit(Told(getattr(event, "text", "")))
            with self._models.held(name) as engine:
                if engine is None:
                    raise CheckpointError(f"{name} could not be kept in memory. Try again in a minute.")
                call = partial(getattr(engine, method), *arguments)
                if method in ("attention", "why", "occlude"):
                    emit(Found(call(stop=stop, tell=lambda text: emit(Told(text)))))
                elif method == "preview":
                    for preview in call():
                        emit(Found(preview))
                else:
                    emit(Found(call()))

        async for batch in self._batches(version, key, work):
            yield batch

    async def stop(self, key: str) -> None:
        """Stops the answer of this key, which then ends with its figures; nothing happens where it runs elsewhere."""
        if (stop := self._stops.get(key)) is not None:
            stop.set()

    async def forget(self, visitor: str) -> None:
        self._models.forget(visitor)

    async def evict(self) -> None:
        self._models.evict()

    async def check_health(self) -> None:
        """Serve replaces a replica for which this fails, or does not end, three times in a row."""
        engine = self._models.first
        if engine.device_is_lost:
            raise RuntimeError("the device can't go on in this process")
        if not engine.is_ready:
            raise RuntimeError(PROCESS_LOST)
        device = engine.info.device.partition(":")[0]
        if engine.silent_s > STUCK_S.get(device, STUCK_ELSEWHERE_S):
            raise RuntimeError(f"the device has not ended a pass for {engine.silent_s:.0f} s")

    async def record_routing_stats(self) -> dict[str, Any]:
        """Which models are in memory, for the router; the process, and how many calls run in it."""
        return {"models": self._models.in_memory, "running": len(self._stops), "pid": os.getpid()}

    async def _batches(
        self, version: str, key: str, work: Callable[[Emit, threading.Event], None]
    ) -> AsyncGenerator[list[Item]]:
        """Runs `work` in a thread of its own and yields what it emits: the first token and the end at once, the tokens
        between in the pace of PACE_S; an empty batch after a second of silence.

        Closing it stops the work. A Gemma3Error becomes the last item.
        """
        if version != self._version:
            yield [Failed(UnsupportedOptionError(OTHER_VERSION))]
            return
        loop, arrived = asyncio.get_running_loop(), deque[Item | BaseException | None]()
        changed, ended = asyncio.Event(), asyncio.Event()
        self._stops[key] = stop = threading.Event()

        def tell(event: asyncio.Event) -> None:
            try:
                loop.call_soon_threadsafe(event.set)
            except RuntimeError:
                if not loop.is_closed():
                    raise
                stop.set()  # the replica ends, and nobody waits for the call

        def emit(item: Item | BaseException | None) -> None:
            arrived.append(item)
            tell(changed)

        def run() -> None:
            try:
                work(emit, stop)
            except Gemma3Error as error:
                emit(Failed(error))
            except BaseException as error:  # noqa: BLE001  raised again where the call is answered
                emit(error)
            emit(None)
            tell(ended)

        threading.Thread(target=run, name="call", daemon=True).start()
        try:
            while True:
                try:
                    async with asyncio.timeout(BEAT_S):
                        await changed.wait()
                except TimeoutError:
                    yield []
                    continue
                changed.clear()
                batch: list[Item] = []
                while arrived:
                    item = arrived.popleft()
                    if item is None or isinstance(item, BaseException):
                        if batch:
                            yield batch
                        if item is not None:
                            raise item
                        return
                    batch.append(item)
                yield batch
                if batch and isinstance(batch[-1], TokenEvent):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(PACE_S):
                            await ended.wait()
        finally:
            stop.set()
            del self._stops[key]
