"""An engine whose answers are written by replicas; it stands behind the same door as one in this process."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from gemma3_core.adapters.files import StoredAdapter
from gemma3_core.engine.api import (
    Answered,
    DoneEvent,
    Event,
    ModelInfo,
    PicturePreview,
    Request,
    StageEvent,
    TokenEvent,
    Turn,
)
from gemma3_core.engine.engine import Engine, check_stop
from gemma3_core.engine.explain import PromptView, look_at_attention, look_without_region
from gemma3_core.engine.sequence import never_begun
from gemma3_core.engine.why import look_at_word
from gemma3_core.errors import AttentionError, Gemma3Error, ImageError, ReplicaLostError, UnsupportedOptionError
from gemma3_core.images.crops import Crops
from gemma3_core.images.load import ImageSource
from gemma3_core.inspection.mask_view import MaskView
from gemma3_core.replicas.fleet import ATTEMPTS, NO_REPLICA, Fleet, Gone, new_key
from gemma3_core.replicas.wire import Failed, Parcel

_TICK_S = 0.1
_STOP_AGAIN_S, _STOPS_WITHIN_S = 1.0, 5.0
_LOOKS = {look_at_attention: "attention", look_at_word: "why", look_without_region: "occlude"}
"""An engine's method for each Look."""
LOST = "The machine that was writing this answer has failed. Ask again: another one will answer."


class RemoteEngine(Engine):
    """One model of a fleet. What `Engine` says of a method holds here too; each may raise ReplicaLostError besides."""

    def __init__(self, fleet: Fleet, info: ModelInfo):
        self._fleet, self.info, self.queue = fleet, info, fleet.queue

    @classmethod
    def load(cls, *_: Any, **__: Any) -> Self:
        raise UnsupportedOptionError("A replica loads its models itself. Use `gemma3_core.replicas.start`.")

    def adapted(self, _adapter: str | Path | StoredAdapter) -> Self:
        raise UnsupportedOptionError("Replicas take their adapters when they start. Name it with --adapter.")

    @property
    def is_ready(self) -> bool:
        return self._fleet.health.ready

    # The replicas look after their own devices.
    @property
    def device_is_lost(self) -> bool:
        return False

    @property
    def silent_s(self) -> float:
        return 0.0

    @property
    def kept_bytes(self) -> int:
        return 0  # they are in the replicas' memory

    def stream(self, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        """`Engine.stream`. A replica that is lost before the first token costs the visitor time, later the answer."""
        parcel, entered = Parcel(request, self.info.context_length), time.monotonic()
        ticket = self.queue.enter(request.visitor)
        try:
            for event in self._wait_for_turn(ticket):
                yield event
                if stop is not None and stop.is_set():
                    yield never_begun(request, self.info.name)
                    return
            while not self._fleet.sent.hold(ticket, parcel.num_bytes, _TICK_S):
                yield StageEvent("queued", "Waiting until there is room for these pictures")
                if stop is not None and stop.is_set():
                    yield never_begun(request, self.info.name)
                    return
            began = time.monotonic()
            yield from self._answer(parcel.request(), stop, began - entered)
            if stop is None or not stop.is_set():
                self.queue.remember(time.monotonic() - began)
        finally:
            self._fleet.sent.release(ticket)
            self.queue.leave(ticket)

    def _answer(self, request: Request, stop: threading.Event | None, queued_s: float) -> Iterator[Event]:
        """A replica's events; another one's if it is lost before the first token. Raises ReplicaLostError."""
        shown = False
        for attempt in range(ATTEMPTS):
            try:
                for event in self._attempt(request, stop, attempt):
                    shown = shown or isinstance(event, TokenEvent)
                    if isinstance(event, DoneEvent):
                        stats = replace(event.stats, queue_s=round(event.stats.queue_s + queued_s, 4))
                        event = replace(event, stats=stats)
                    yield event
                return
            except Gone:
                if shown:
                    raise ReplicaLostError(LOST) from None
            if stop is not None and stop.is_set():
                yield never_begun(request, self.info.name)
                return
        raise ReplicaLostError(NO_REPLICA)

    def _attempt(self, request: Request, stop: threading.Event | None, attempt: int) -> Iterator[Event]:
        """One replica's events up to the DoneEvent. Raises Gone, and the Gemma3Error that ended the answer there."""
        key, stopped, told = new_key(), 0.0, 0.0
        pieces: list[str] = []
        stage: StageEvent | None = StageEvent("queued", "Sending the question")
        call = self._fleet.start("stream", key, self.info.name, request, visitor=request.visitor, attempt=attempt)
        try:
            for batch in call.batches():
                now = time.monotonic()
                if stop is not None and stop.is_set() and now > told + _STOP_AGAIN_S:
                    stopped, told = stopped or now, now
                    self._fleet.tell_all("stop", key)
                for event in batch:
                    if isinstance(event, Failed):
                        if isinstance(event.error, ReplicaLostError):  # a part of the replica has ended
                            raise Gone(type(event.error).__name__)
                        raise event.error
                    yield event
                    if isinstance(event, DoneEvent):
                        return
                    stage = event if isinstance(event, StageEvent) else None
                    if isinstance(event, TokenEvent):
                        pieces.append(event.text)
                if stopped and now > stopped + _STOPS_WITHIN_S:  # nobody answers, or a replica that hangs
                    yield replace(never_begun(request, self.info.name), text="".join(pieces))
                    return
                if not batch and stage is not None:
                    yield stage  # a server notices a closed page only when it sends something
        finally:
            call.close()
        raise Gone("ended without an end")

    def forget(self, visitor: str) -> None:
        self._fleet.tell_all("forget", visitor)

    def evict(self) -> None:
        """Replicas evict by themselves."""

    def preview(
        self, pictures: Sequence[ImageSource], pan_and_scan: bool, crops: Sequence[Crops] = ()
    ) -> Iterator[PicturePreview]:
        self._check_sees(len(pictures))
        with self._room(Request((Turn("user", "", tuple(pictures)),))) as parcel:
            yield from self._values("preview", parcel.request().turns[0].pictures, pan_and_scan, tuple(crops))

    def picture_tokens(self, width: int, height: int, pan_and_scan: bool) -> int:
        return self._value("picture_tokens", width, height, pan_and_scan)  # type: ignore[no-any-return]

    def inspect(self, request: Request) -> PromptView:
        with self._room(request) as parcel:
            return self._value("inspect", parcel.request(), visitor=request.visitor)  # type: ignore[no-any-return]

    def mask(self, request: Request) -> MaskView:
        with self._room(request) as parcel:
            return self._value("mask", parcel.request(), visitor=request.visitor)  # type: ignore[no-any-return]

    def _looked(
        self,
        look: Callable[..., Any],
        answered: Answered,
        arguments: tuple[Any, ...],
        stop: threading.Event | None,
        tell: Callable[[str], None] | None,
    ) -> Any:
        waits: dict[str, Any] = {"visitor": answered.request.visitor, "tick": partial(check_stop, stop), "tell": tell}
        try:
            with self._room(answered.request, waits["tick"]) as parcel:
                sent = replace(answered, request=parcel.request())
                return self._value(_LOOKS[look], sent, *arguments, **waits)
        except ImageError as error:
            raise AttentionError(f"The pictures of this answer are gone ({error}). Add them and ask again.") from None

    def close(self) -> None:
        """The replicas keep the model, for other pages in front."""

    @contextmanager
    def _room(self, request: Request, tick: Callable[[], None] = lambda: None) -> Iterator[Parcel]:
        """Waits until there is room for the request's pictures, which its parcel may then read; calls `tick`
        meanwhile."""
        parcel, owner = Parcel(request, self.info.context_length), object()
        while not self._fleet.sent.hold(owner, parcel.num_bytes, _TICK_S):
            tick()
        try:
            yield parcel
        finally:
            self._fleet.sent.release(owner)

    def _value(self, method: str, *arguments: Any, **options: Any) -> Any:
        """The one value of a look."""
        for value in self._values(method, *arguments, **options):
            return value
        raise Gemma3Error(f"A replica's look inside ({method}) ended without a result. Try again.")

    def _values(self, method: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        """The values of a look, by the visitor's replica: it, or any other, reads the prompt and the answer again."""
        return self._fleet.values("look", self.info.name, method, arguments, **options)
