"""The models that a server offers: the one it started with, and others that load when they are first chosen.

Visitors choose by name from the operator's list; they never supply sources (folders, Hub ids).
"""

import itertools
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gemma3_core.adapters.files import StoredAdapter, read_adapter
from gemma3_core.engine.api import Event, ModelInfo, Request, StageEvent
from gemma3_core.engine.async_bridge import in_event_loop
from gemma3_core.engine.engine import AT_ONCE, DEMO_MODEL, Engine
from gemma3_core.engine.memory import free_bytes
from gemma3_core.engine.sequence import never_begun
from gemma3_core.engine.zero_gpu import BorrowingEngine, Lend
from gemma3_core.errors import (
    AttentionError,
    CheckpointError,
    Gemma3Error,
    QueueFullError,
    StoppedError,
    UnsupportedOptionError,
)
from gemma3_core.files.download import Watch
from gemma3_core.files.hub import UNGATED as UNGATED_REPOSITORY
from gemma3_core.files.weight_files import weight_files
from gemma3_core.gguf.checkpoint import weights_of
from gemma3_core.gguf.tensors import hub_tensors
from gemma3_core.int4.linear import int4_obstacle
from gemma3_core.models.pretrained import resolve_checkpoint
from gemma3_core.parallel.processes import Starter

PUBLISHED = "google/gemma-3-4b-it"
UNGATED_NAME = "gemma-3-4b-it-Q4_K_M"
UNGATED = f"{UNGATED_REPOSITORY}:{UNGATED_NAME}.gguf"
"""Gemma 3 4B for those without a license and without a token: a file of 2.5 GB, and one of 0.8 GB for pictures."""
_KNOWN_BYTES = {PUBLISHED: 8_600_158_944, UNGATED: 3_341_000_000}
"""Approximate download sizes of Hub ids: the weights in bfloat16, or of the file's two parts."""

NO_INT4_TO_LEND = (
    "A server whose GPU is lent for each call can't start with int4 weights. Start it in full precision (without "
    "--int4 or GEMMA_INT4, and from a checkpoint in full precision); visitors may choose int4."
)
_NO_ROOM = "The GPU has no room for {}. Choose another model, or try again later."
_TICK_S, _TOLD_EACH_S = 0.1, 5
# Each request that waits for a model to load holds a thread. Loaded models have a queue with its own bound.
_MOST_WAITING = 64


@dataclass(frozen=True)
class ModelEntry:
    """A model that visitors may choose by name; do not show them `source`, which may be a folder.

    A `from_hub` model is downloaded when it is first chosen, unless it is in the Hub's cache; `download_bytes` is the
    size, or None if unknown. `int4` is the precision that it is loaded in, or None for the server's setting.
    """

    name: str
    source: str
    from_hub: bool = False
    download_bytes: int | None = None
    int4: bool | None = None


def entries_of(
    also: Sequence[str], first: str | None = None, first_name: str = "", taken_names: Sequence[str] = ()
) -> tuple[ModelEntry, ...]:
    """The models offered besides the one a server starts with (`first`: folder, Hub id, or None for the demo).

    A name is the last part of a folder or id; equal names are numbered. Repeated sources, and `first` itself, are left
    out. Raises CheckpointError for a source that is neither a folder nor a possible Hub id.
    """
    taken, seen, found = {first_name, *taken_names}, {_identity(str(DEMO_MODEL) if first is None else first)}, []
    for source in also:
        identity = _identity(source)
        if identity in seen:
            continue
        seen.add(identity)
        name = next(name for name in _numbered(_last_part(identity)) if name not in taken)
        taken.add(name)
        from_hub = not Path(identity).exists()
        in_int4 = True if identity == UNGATED else None
        found.append(ModelEntry(name, identity, from_hub, _KNOWN_BYTES.get(identity), in_int4))
    return tuple(found)


def _last_part(source: str) -> str:
    """The last part of a folder, file or id; of a GGUF file on the Hub its name."""
    name = Path(source.rpartition(":")[2] if source.endswith(".gguf") else source)
    return name.stem if name.suffix == ".gguf" and ":" in source else name.name


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name} ({number})" for number in itertools.count(2))


def _identity(source: str) -> str:
    """A folder's or file's full path, so that it is never looked up on the Hub later; a Hub id unchanged."""
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.exists():  # in the Hub's cache a file is a link, beside which lies what belongs to it
        return str(path.absolute())
    try:
        repo_id, _, _ = source.partition(":")
        validate_repo_id(repo_id if "/" in repo_id else source)
    except HFValidationError:
        raise CheckpointError(
            f"{source} is neither a folder or GGUF file on this machine nor a Hub id of the form owner/name. Check its "
            "spelling."
        ) from None
    return source


@dataclass(frozen=True)
class Loading:
    """How far a model is that is being loaded, in words; `share` of its download, or None once that is done."""

    text: str
    share: float | None = None


@dataclass
class _Load:
    """One attempt to load a model; everyone who waits for the model shares its result.

    `stop` ends its download, of which `share` is done; None where there is none.
    """

    stage: str
    began: float
    share: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    engine: Engine | None = None
    error: BaseException | None = None
    ended: bool = False

    def text(self) -> str:
        return self.stage + (_so_far(self.began) if self.share is None else "")

    def tell(self, stage: str, share: float) -> None:
        self.stage, self.share = stage, share


@dataclass
class _Slot:
    """The state of one offered model; guarded by the lock of ModelRegistry.

    `users` counts running and waiting requests, which prevent eviction. `takes_room` is True from the start of loading;
    `used` grows with each use, so the least recently used model has the lowest.
    """

    entry: ModelEntry
    engine: Engine | None = None
    load: _Load | None = None
    takes_room: bool = False
    users: int = 0
    used: int = 0


class ModelRegistry:
    """The models of one server, by name; safe to use from many threads."""

    def __init__(
        self,
        first: Engine,
        others: Sequence[ModelEntry] = (),
        load: Callable[[ModelEntry], Engine] | None = None,
        keep: int = 1,
        beside: Sequence[Engine] = (),
        fetch: Callable[[ModelEntry, Watch], object] | None = None,
    ):
        """`load` makes the engine of an entry; at most `keep` of them stay in memory besides the first. `fetch` brings
        its files to this machine before.

        The engines `beside` the first share its weights, and stay too.

        Raises UnsupportedOptionError if `keep` is less than 1.
        """
        if keep < 1:
            raise UnsupportedOptionError(f"At least 1 model must be kept besides the first, got {keep}.")
        if others and load is None:
            raise UnsupportedOptionError(
                "Models besides the first need a `load` function that makes their engines. Pass one."
            )
        self.first, self._load, self._fetch, self._keep = first, load, fetch, keep
        self.first_source = ""
        """Where the first model's files are: a folder, a GGUF file or a Hub id."""
        self._slots = {entry.name: _Slot(entry) for entry in others}
        self._staying = {engine.info.name: engine for engine in (first, *beside)}
        self._infos: dict[str, ModelInfo] = {name: engine.info for name, engine in self._staying.items()}
        self._changed = threading.Condition()
        self._uses = itertools.count(1)
        self._waiting = 0

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        also: Sequence[str] = (),
        device: str = "auto",
        dtype: str = "auto",
        int4: bool = False,
        keep: int = 1,
        lend: Lend | None = None,
        at_once: int = AT_ONCE,
        mmproj: str | Path | None = None,
        adapters: Sequence[str | Path] = (),
        merge_adapter: bool = False,
        tensor_parallel: int = 1,
        start: Starter | None = None,
    ) -> "ModelRegistry":
        """Loads the first model as `Engine.load` does; `also` lists folders, GGUF files and Hub ids that visitors may
        choose.

        All models share one device and together answer `at_once` questions at once. Raises what `Engine.load` raises,
        and CheckpointError for an entry of `also` that is neither a folder nor a possible Hub id. Where a GPU is lent
        for each call (`lend`), they answer one at a time, and all of them are loaded now, since a child sees only what
        was there before it.

        `adapters` are folders or Hub ids of LoRA adapters for the first model. The first of them answers unless a
        visitor chooses another or the model without them; with `merge_adapter` the one adapter is part of the weights.
        With `tensor_parallel` several processes share the first model, which is then the only one.
        """
        if tensor_parallel > 1 and (also or adapters or lend is not None):
            raise UnsupportedOptionError(
                "With --tensor-parallel several devices share one model. Leave out --also and --adapter, or that."
            )
        if merge_adapter and len(adapters) != 1:
            raise UnsupportedOptionError(f"--merge-adapter merges one adapter, got {len(adapters)}. Name one.")
        source = None if model is None else str(model)
        if also:
            entries_of(also, source)  # reports a wrong entry before the first model loads, which can take minutes
        stored = [read_adapter(adapter) for adapter in adapters]  # before the model, which can take minutes to load
        merged = {"adapter": stored[0], "merge_adapter": True} if merge_adapter else {}
        options = {"at_once": at_once if lend is None else 1, "mmproj": mmproj, **merged}
        if tensor_parallel > 1:
            options |= {"tensor_parallel": tensor_parallel, "start": start}
        base = first = _engine(lend, model, device, dtype, int4, **options)
        beside: list[Engine] = []
        if adapters and not merge_adapter:
            first, *beside = [*_adapted(base, stored), base]
        others = entries_of(also, source, base.info.name, [engine.info.name for engine in (first, *beside)])

        def load(entry: ModelEntry) -> Engine:
            folder, in_int4 = _folder(entry), int4 if entry.int4 is None else entry.int4
            if entry.int4 and int4_obstacle(torch.device(first.info.device)):  # such as Apple's GPUs
                in_int4 = False
            if not in_int4:  # the size of int4 weights is known only after they are made
                _require_room(folder, entry.name, torch.device(first.info.device))
            try:
                return _engine(lend, folder, device, dtype, in_int4, name=entry.name, beside=base)
            except torch.OutOfMemoryError:
                raise UnsupportedOptionError(_NO_ROOM.format(entry.name)) from None

        registry = cls(first, others, load, keep if lend is None else max(keep, len(others)), beside, _fetch)
        registry.first_source = _identity(str(DEMO_MODEL) if source is None else source)
        if lend is not None:
            registry._load_all()
        return registry

    def _load_all(self) -> None:
        """Loads all models in this thread. Raises what loading one raises."""
        for slot in self._slots.values():
            assert self._load is not None
            slot.engine, slot.takes_room = self._load(slot.entry), True
            self._infos[slot.entry.name] = slot.engine.info

    @property
    def entries(self) -> tuple[ModelEntry, ...]:
        """The models that can be chosen besides the first."""
        return tuple(slot.entry for slot in list(self._slots.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """All names that can be chosen; the first model comes first."""
        return (*self._staying, *self._slots)

    def offer(self, entry: ModelEntry) -> ModelEntry:
        """Offers a further model from now on; gives the entry under a name of its own.

        An entry of the same source that is not in memory is replaced, so that it may be loaded in another precision.
        Raises UnsupportedOptionError where nothing more can be offered.
        """
        if self._load is None:
            raise UnsupportedOptionError(
                "This server can't load further models. Start it with the model that you want."
            )
        with self._changed:
            for slot in self._slots.values():
                if slot.entry.source == entry.source:
                    if slot.entry.int4 != entry.int4 and not slot.users and slot.load is None:
                        if slot.engine is not None:
                            _evict(slot)
                        slot.entry = replace(slot.entry, int4=entry.int4)
                    return slot.entry
            named = replace(entry, name=next(name for name in _numbered(entry.name) if name not in self.names))
            self._slots[named.name] = _Slot(named)
            return named

    def aprepare(self, name: str) -> AsyncGenerator[Event]:
        """`prepare` for an event loop."""
        return in_event_loop(self.prepare(name))

    def prepare(self, name: str, stop: threading.Event | None = None) -> Iterator[Event]:
        """Loads a model before it is asked, and tells how far it is; `stop` ends the waiting, not the loading.

        Raises as `stream`, and StoppedError after `stop_loading`.
        """
        name = self._checked(name)
        if name in self._staying:
            return
        slot = self._slots[name]
        with self._changed:
            slot.users += 1
            slot.used = next(self._uses)
        try:
            yield from self._loaded(slot, stop)
        finally:
            self._release(slot)

    @property
    def loading(self) -> dict[str, Loading]:
        """The models that are being downloaded or loaded, by name."""
        with self._changed:
            loads = {name: slot.load for name, slot in self._slots.items()}
            return {name: Loading(load.text(), load.share) for name, load in loads.items() if load is not None}

    @property
    def in_memory(self) -> tuple[str, ...]:
        """The models that are loaded; the first one always is."""
        with self._changed:
            return (*self._staying, *(name for name, slot in self._slots.items() if slot.engine is not None))

    def makes_way(self) -> tuple[str, ...]:
        """The models that would leave memory for another one."""
        with self._changed:
            kept = [slot for slot in self._slots.values() if slot.takes_room]
            idle = sorted((slot for slot in kept if slot.engine and not slot.users), key=lambda slot: slot.used)
            return tuple(slot.entry.name for slot in idle[: max(0, len(kept) - self._keep + 1)])

    def stop_loading(self, name: str) -> None:
        """Ends the download of a model; everyone who waits for it gets a StoppedError. What has arrived is kept."""
        with self._changed:
            slot = self._slots.get(name)
            if slot is not None and slot.load is not None:
                slot.load.stop.set()
                self._changed.notify_all()

    def info(self, name: str | None = None) -> ModelInfo | None:
        """What is known of a model (None is the first); None if it isn't offered or has never been loaded."""
        with self._changed:
            return self.first.info if name is None else self._infos.get(name)

    @contextmanager
    def held(self, name: str | None = None) -> Iterator[Engine | None]:
        """The engine of that name, or None if it is not in memory; the `with` block keeps it there."""
        name = self._checked(name)
        if name in self._staying:
            yield self._staying[name]
            return
        slot = self._slots[name]
        with self._changed:
            engine = slot.engine
            slot.users += engine is not None
        try:
            yield engine
        finally:
            if engine is not None:
                self._release(slot)

    @contextmanager
    def that_answered(self, name: str) -> Iterator[Engine]:
        """The engine that gave an answer, by the name in its figures.

        Raises AttentionError if it is no longer in memory.
        """
        if name in self.names:
            with self.held(name) as engine:
                if engine is not None:
                    yield engine
                    return
            why = "is not loaded now: other models took its place"
        else:
            why = "is not offered here"
        raise AttentionError(f"{name}, which gave this answer, {why}. Ask again to look at the new answer.")

    def stream(self, name: str | None, request: Request, stop: threading.Event | None = None) -> Iterator[Event]:
        """`Engine.stream` on the model of that name (None is the first), which is loaded if necessary.

        If loading fails, everyone who waits for it gets the error; asking again tries again. Raises
        UnsupportedOptionError for a name that isn't offered, QueueFullError if too many requests wait for a model.
        """
        name = self._checked(name)
        if name in self._staying:
            yield from self._staying[name].stream(request, stop)
            return
        slot = self._slots[name]
        with self._changed:
            slot.users += 1
        try:
            engine = slot.engine
            if engine is None:
                engine = yield from self._loaded(slot, stop)
            if engine is None:
                yield never_begun(request, name)
                return
            yield from engine.stream(request, stop)
        finally:
            with self._changed:
                slot.used = next(self._uses)
            self._release(slot)

    def astream(self, name: str | None, request: Request, stop: threading.Event | None = None) -> AsyncGenerator[Event]:
        """`Engine.astream` on the model of that name."""
        return in_event_loop(self.stream(name, request, stop))

    def forget(self, visitor: str) -> None:
        """Evicts what all models keep for a visitor's next question."""
        with self._changed:  # no model is evicted meanwhile
            for engine in self._engines():
                engine.forget(visitor)

    @property
    def is_ready(self) -> bool:
        """Whether a question that comes now will be answered."""
        return self.first.is_ready

    @property
    def is_idle(self) -> bool:
        """Whether nobody's question is being answered or waits."""
        with self._changed:
            return not any(sum(engine.queue.counts()) for engine in self._engines())

    def evict(self) -> None:
        """Evicts what all models keep for visitors who have not come back for a while."""
        with self._changed:
            for engine in self._engines():
                engine.evict()

    @contextmanager
    def loaded(self) -> Iterator[list[Engine]]:
        """The engines in memory; none is evicted within the `with` block, which must be short."""
        with self._changed:
            yield self._engines()

    def _engines(self) -> list[Engine]:
        """The engines in memory; the caller holds the lock."""
        return [
            engine
            for engine in (*self._staying.values(), *(slot.engine for slot in self._slots.values()))
            if engine is not None
        ]

    def _checked(self, name: str | None) -> str:
        if name is None:
            return self.first.info.name
        if name not in self.names:
            raise UnsupportedOptionError(
                f"This server offers no model {str(name)[:80]!r}. Choose one of {', '.join(self.names)}."
            )
        return name

    def _release(self, slot: _Slot) -> None:
        with self._changed:
            slot.users -= 1
            self._changed.notify_all()

    def _loaded(self, slot: _Slot, stop: threading.Event | None) -> Generator[Event, None, Engine | None]:
        """Waits for the slot's model; loads it in its own thread unless that has begun.

        Returns None if `stop` is set meanwhile.
        """
        with self._changed:
            if slot.engine is not None:
                return slot.engine
            if self._waiting >= _MOST_WAITING:
                raise QueueFullError(f"{self._waiting} questions wait for a model already. Try again in a minute.")
            self._waiting += 1
            attempt = slot.load
            if attempt is None:
                attempt = slot.load = _Load(_stage(slot.entry), time.monotonic())
                name = f"load {slot.entry.name}"
                threading.Thread(target=self._attempt, args=(slot, attempt), name=name, daemon=True).start()
        try:
            while not attempt.ended:
                # Sent again each tick: the server notices a closed page only when it sends something.
                yield StageEvent("loading", attempt.text())
                if stop is not None and stop.is_set():
                    return None
                with self._changed:
                    self._changed.wait_for(lambda: attempt.ended, timeout=_TICK_S)
        finally:
            with self._changed:
                self._waiting -= 1
        if isinstance(attempt.error, Gemma3Error):
            raise type(attempt.error)(str(attempt.error))  # a new object: several threads raise it
        if attempt.error is not None:
            raise attempt.error
        assert attempt.engine is not None
        return attempt.engine

    def _attempt(self, slot: _Slot, attempt: _Load) -> None:
        """Loads the slot's model once there is room, and wakes everyone who waits for it."""
        try:
            if not self._takes_room(slot, attempt):
                return
            assert self._load is not None
            if self._fetch is not None:
                self._fetch(slot.entry, Watch(attempt.tell, attempt.stop))
            if attempt.share is not None:  # something was downloaded
                attempt.stage, attempt.began, attempt.share = _loading(slot.entry), time.monotonic(), None
            attempt.engine = self._load(slot.entry)
        except BaseException as error:  # noqa: BLE001  raised again where an answer waits for the model
            attempt.error = error
        with self._changed:
            slot.engine, slot.load, attempt.ended = attempt.engine, None, True
            slot.takes_room = attempt.engine is not None
            if attempt.engine is not None:
                self._infos[slot.entry.name] = attempt.engine.info
            self._changed.notify_all()

    def _takes_room(self, slot: _Slot, attempt: _Load) -> bool:
        """Evicts other models until the slot's model may load; False if nobody waits for it any more."""
        with self._changed:
            while slot.users:
                kept = [other for other in self._slots.values() if other.takes_room]
                if len(kept) < self._keep:
                    slot.takes_room, attempt.stage = True, _stage(slot.entry)
                    return True
                if idle := [other for other in kept if other.engine is not None and not other.users]:
                    _evict(min(idle, key=lambda other: other.used))
                    continue
                names = " and ".join(other.entry.name for other in kept)
                attempt.stage = f"Waiting for memory: {names} still at work"
                self._changed.wait()
                if attempt.stop.is_set():
                    raise StoppedError(f"Loading {slot.entry.name} was stopped. Start it again when you like.")
            slot.load = None
            return False


def _engine(lend: Lend | None, *arguments: Any, **options: Any) -> Engine:
    """`Engine.load`, or the same for an engine whose GPU is lent."""
    if lend is None:
        return Engine.load(*arguments, **options)
    try:
        engine = BorrowingEngine.load(*arguments, **options)
    except NotImplementedError:  # this process has no GPU, and only a GPU packs int4 weights for one
        raise UnsupportedOptionError(NO_INT4_TO_LEND) from None
    assert isinstance(engine, BorrowingEngine)
    return engine.borrow(lend)


def _adapted(base: Engine, adapters: Sequence[StoredAdapter]) -> list[Engine]:
    """The base's engine with each adapter. Raises what `Engine.adapted` raises, and UnsupportedOptionError for two of
    one name."""
    engines = [base.adapted(adapter) for adapter in adapters]
    names = [engine.info.name for engine in engines]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UnsupportedOptionError(f"Two adapters are {twice}. Give one of them another folder's name.")
    return engines


def _evict(slot: _Slot) -> None:
    assert slot.engine is not None
    slot.engine.close()
    slot.engine, slot.takes_room = None, False


def _loading(entry: ModelEntry) -> str:
    return f"Loading {entry.name}"


def _stage(entry: ModelEntry) -> str:
    if not entry.from_hub:
        return _loading(entry)
    size = "" if entry.download_bytes is None else f" of {entry.download_bytes / 1e9:.1f} GB"
    return f"Loading {entry.name}, after a download{size} if it is not on this machine yet"


def _so_far(began: float) -> str:
    """The time loading has taken, in steps, since screen readers read out each change; empty at first."""
    steps = int((time.monotonic() - began) / _TOLD_EACH_S)
    return f" ({steps * _TOLD_EACH_S} s so far)" if steps else ""


def _folder(entry: ModelEntry) -> Path:
    if not entry.from_hub and not Path(entry.source).exists():
        raise CheckpointError(f"{entry.name} is no longer there. Choose another model.")
    return resolve_checkpoint(entry.source)


def _fetch(entry: ModelEntry, watch: Watch) -> None:
    if entry.from_hub:
        resolve_checkpoint(entry.source, watch=watch)


def _bytes_needed(folder: Path) -> int:
    """Bytes of the checkpoint's weights in memory."""
    if (gguf := weights_of(folder)) is not None:
        return sum(tensor.loaded_bytes for path in gguf for _, tensor in hub_tensors(path))
    return sum(file.stat().st_size for file in weight_files(folder))


def _require_room(folder: Path, name: str, device: torch.device) -> None:
    """Raises UnsupportedOptionError if a GPU has less memory left than the checkpoint's files need."""
    free = free_bytes(device)
    if free is not None and _bytes_needed(folder) > free:
        raise UnsupportedOptionError(_NO_ROOM.format(name))
