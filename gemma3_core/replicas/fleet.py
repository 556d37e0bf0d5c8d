"""The replicas as one page in front sees them: calls, their number, and the queue before them."""

import asyncio
import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import grpc
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from gemma3_core.engine.fair_queue import FairQueue
from gemma3_core.engine.picture_reader import HeldTiles
from gemma3_core.errors import ReplicaLostError
from gemma3_core.replicas.wire import Failed, Found, Told, program_version

logger = logging.getLogger(__name__)

SILENT_S = 25.0
"""A replica that has not been heard for so long is taken for lost; it sends something every second."""
ATTEMPTS = 4
MAX_IN_FLIGHT_BYTES = 256_000_000
"""Pictures of all questions that are being answered, as a page in front holds them while it sends them."""
MOST_WAITING = 256
"""Questions that wait at one page. Each looks at its place ten times a second, which costs with the square of them."""
_TICK_S = 0.1
_COUNTED_EACH_S = 2.0

NO_REPLICA = "No machine answers at the moment. Ask again in a minute."


class Gone(Exception):  # noqa: N818  it is no fault of the program's
    """The replica of a call has died, hangs or can't be reached; another one may take the call."""


@dataclass(frozen=True)
class FleetHealth:
    """What a page in front knows of its replicas: how many are `wanted` and `running`, how many questions wait here.

    `reached` is False while Serve's controller doesn't answer (a head node that restarts): the running replicas go on
    answering, and the numbers are the last known. `draining` says that no further question is taken.
    """

    wanted: int
    running: int
    waiting: int
    reached: bool
    draining: bool

    @property
    def ready(self) -> bool:
        """Whether a question that comes now will be answered."""
        return self.running > 0 and not self.draining


class Call:
    """One streaming call on a replica; safe to read from one thread."""

    def __init__(self, handle: DeploymentHandle, arguments: tuple[Any, ...], loop: asyncio.AbstractEventLoop):
        self._arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._work = asyncio.run_coroutine_threadsafe(self._read(handle, arguments), loop)

    async def _read(self, handle: DeploymentHandle, arguments: tuple[Any, ...]) -> None:
        answers = handle.remote(*arguments)
        assert isinstance(answers, DeploymentResponseGenerator)
        try:
            async for batch in answers:
                self._arrived.put(batch)
            self._arrived.put(None)
        except asyncio.CancelledError:
            answers.cancel()
            raise
        except Exception as error:  # noqa: BLE001  raised again where the answer is read
            self._arrived.put(error)

    def batches(self) -> Iterator[list[Any]]:
        """The batches up to the end; an empty one at least each tenth of a second.

        Raises Gone, and what the replica raised unawares.
        """
        heard = time.monotonic()
        while True:
            try:
                batch = self._arrived.get(timeout=_TICK_S)
            except queue.Empty:
                if time.monotonic() > heard + SILENT_S:
                    raise Gone(f"silent for {SILENT_S:.0f} s") from None
                yield []
                continue
            if batch is None:
                return
            if isinstance(batch, RayError | RayServeException | grpc.RpcError) and not isinstance(batch, RayTaskError):
                raise Gone(type(batch).__name__) from batch
            if isinstance(batch, BaseException):
                raise batch
            heard = time.monotonic()
            yield batch

    def close(self) -> None:
        """Cancels the call, on the replica too; harmless after its end."""
        self._work.cancel()


class Fleet:
    """The replicas behind a handle; safe to use from many threads.

    `count` tells how many replicas are wanted and run; it raises where Serve's controller doesn't answer.
    """

    def __init__(self, handle: DeploymentHandle, at_once: int, count: Callable[[], tuple[int, int]]):
        self._handle, self._at_once, self._count = handle, at_once, count
        self._version = program_version()
        self._wanted = self._running = 1
        self._reached, self._ended = True, threading.Event()
        self.queue = FairQueue(max_running=at_once)
        self.sent = HeldTiles(MAX_IN_FLIGHT_BYTES)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True).start()
        self._look_around()
        threading.Thread(target=self._watch, name="count replicas", daemon=True).start()

    def _watch(self) -> None:
        while not self._ended.wait(_COUNTED_EACH_S):
            try:
                self._look_around()
            except Exception:
                logger.exception("counting the replicas failed; the last count stays")

    def _look_around(self) -> None:
        """Counts the replicas; the queue lets as many questions run as they answer at once."""
        try:
            self._wanted, self._running = self._count()
        except (RayError, RayServeException, grpc.RpcError, TimeoutError, ConnectionError) as error:
            if self._reached:
                logger.warning("Serve's controller does not answer (%s); the replicas go on", type(error).__name__)
            self._reached = False
            return
        self._reached = True
        running = max(1, self._running)
        self.queue.resize(running * self._at_once, min(MOST_WAITING, running * 64))

    @property
    def health(self) -> FleetHealth:
        return FleetHealth(self._wanted, self._running, self.queue.waiting, self._reached, self.queue.closed)

    def start(self, method: str, key: str, model: str, *arguments: Any, visitor: str = "", attempt: int = 0) -> Call:
        """Calls a streaming method of a replica: the visitor's own, or another where that one was lost."""
        session = blake2b(visitor.encode(), digest_size=16).hexdigest() if visitor else ""
        handle = self._handle.options(
            method_name=method,
            stream=True,
            session_id=f"{session}/{attempt}" if attempt else session,
            multiplexed_model_id=model,
            # By gRPC, past the object store: a token costs a fraction, and nothing of a visitor's spills to disk.
            _by_reference=False,
        )
        return Call(handle, (self._version, key, model, *arguments), self._loop)

    def values(
        self,
        method: str,
        model: str,
        *arguments: Any,
        visitor: str = "",
        tick: Callable[[], None] = lambda: None,
        tell: Callable[[str], None] | None = None,
    ) -> Iterator[Any]:
        """The values of a call. If its replica is lost, another one gives those that are missing.

        Calls `tick` often, whose errors end the call. Raises the call's Gemma3Error, and ReplicaLostError.
        """
        given = 0
        for attempt in range(ATTEMPTS):
            call, found = self.start(method, new_key(), model, *arguments, visitor=visitor, attempt=attempt), 0
            try:
                for batch in call.batches():
                    tick()
                    for item in batch:
                        if isinstance(item, Failed):
                            if isinstance(item.error, ReplicaLostError):  # a part of the replica has ended
                                raise Gone(type(item.error).__name__)
                            raise item.error
                        if isinstance(item, Found):
                            found += 1
                            if found > given:
                                given += 1
                                yield item.value
                        elif tell is not None and isinstance(item, Told):
                            tell(item.text)
                return
            except Gone as gone:
                logger.warning("a replica was lost (%s); asking another one", gone)
            finally:
                call.close()
        raise ReplicaLostError(NO_REPLICA)

    def tell_all(self, method: str, *arguments: Any) -> None:
        """Calls a method of every replica and waits for none of them."""

        async def told() -> None:
            try:
                await self._handle.broadcast(method, *arguments).results_async(timeout_s=SILENT_S)
            except (RayError, RayServeException, grpc.RpcError, TimeoutError) as error:
                logger.info("not every replica was told to %s (%s)", method, type(error).__name__)

        asyncio.run_coroutine_threadsafe(told(), self._loop)

    def ask_all(self, method: str, *arguments: Any, seconds: float = SILENT_S) -> list[Any]:
        """What a method of every replica gives; nothing if one of them does not answer in time."""
        try:
            return list(self._handle.broadcast(method, *arguments).results(timeout_s=seconds))
        except (RayError, RayServeException, grpc.RpcError, TimeoutError):
            return []

    def drain(self, seconds: float) -> bool:
        """Takes no further question and waits for the running ones; False if some are left."""
        self.queue.close()
        return self.queue.wait_until_empty(seconds)

    def close(self) -> None:
        self._ended.set()
        self._handle.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)


def new_key() -> str:
    """A call's name, by which it can be stopped."""
    return uuid.uuid4().hex
