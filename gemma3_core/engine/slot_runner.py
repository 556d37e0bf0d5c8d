"""Decode steps on CUDA: answers in slots of static shapes, the fused step captured once for each number of rows, and
the next step launched before the host has read the last one's tokens.

Steps are captured one by one in the background; until then they are launched part by part. An answer that has no slot
(too long, or no memory) is decoded plainly, as on a CPU. `GEMMA_CUDA_GRAPHS=0` leaves slots out altogether.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gemma3_core.generation.fused_decoder import FusedDecoder, why_not_fused
from gemma3_core.generation.loop import DecodePass, decode_together
from gemma3_core.generation.row_sampler import SampledRows, on_device, sample_rows
from gemma3_core.kernels import decode as kernels
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.slots import Slot, SlotCache, slot_bytes

log = logging.getLogger(__name__)
LENGTHS = (1024, 4096, 16384, 65536, 131072)
"""Tokens of a slot: an answer gets the shortest that its prompt and its longest answer fit into."""
_OFF = "GEMMA_CUDA_GRAPHS"
_STEPS_BEFORE_CAPTURE = 3
"""They compile the kernels; a capture must not."""

Background = Callable[[Iterator[None]], None]
"""Takes work that is done a step at a time between the passes of answers, in their thread."""
Replay = Callable[[], torch.Tensor]


@dataclass
class _Ahead:
    """A step that was launched before the tokens that it reads were known to the host."""

    slots: list[Slot]
    tokens: list[torch.Tensor]
    """What it reads: the very tensors that its passes will bring."""
    lengths: list[int]
    logits: torch.Tensor
    sampled: SampledRows | None
    """None if a row's next token must fit what the host is still to read."""


@dataclass(frozen=True)
class CapturePool:
    """Where the steps of one model are captured: their memory, and their stream.

    cuBLAS keeps a workspace for each stream, which lies in the memory of the first capture there and is part of later
    ones. So on torch's one stream for all captures, a model's steps would need memory that goes with another model's
    (pytorch#193402).
    """

    memory: Any
    stream: Any


class _Captures:
    """Captures the decode steps of one model, until one can't be captured. All share one pool: they are replayed one
    after another, and each one's logits are copied before the next."""

    def __init__(self, wanted: bool):
        self.go_on = wanted
        self._pool: CapturePool | None = None

    def capture(self, run: Callable[[], torch.Tensor], rows: int) -> Replay | None:
        """What runs the step again; None if it can't be captured, which the log explains."""
        try:
            if self._pool is None:
                self._pool = new_pool()
            return captured(run, self._pool)
        except RuntimeError as error:
            self.go_on = False
            log.warning("A decode step of %d rows can't be captured, so it is launched part by part: %s", rows, error)
            return None

    def begin_anew(self) -> None:
        """To be called when no captured step is left: the pool ends with its last one, and torch 2.8 to 2.11 can't
        capture into one that has ended."""
        self._pool = None


def new_pool() -> CapturePool:
    return CapturePool(torch.cuda.graph_pool_handle(), torch.cuda.Stream())


def captured(run: Callable[[], torch.Tensor], pool: CapturePool) -> Replay:
    """A CUDA graph of `run`; a call replays it and returns the tensor that it writes. Raises RuntimeError."""
    graph, before = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    torch.cuda.synchronize()
    try:
        # Other threads may use the device meanwhile, to resize pictures.
        with torch.cuda.graph(graph, pool=pool.memory, stream=pool.stream, capture_error_mode="thread_local"):
            written = run()
    except RuntimeError:
        torch.cuda.set_stream(before)  # torch leaves the stream of a capture that fails in place
        raise

    def replay() -> torch.Tensor:
        graph.replay()
        return written

    return replay


class _Group:
    """Slots of one length, and the captured steps of 1, 2, 4 … of their rows."""

    def __init__(self, step: FusedDecoder, cache: SlotCache, device: torch.device, captures: _Captures, later: bool):
        """With `later`, steps are captured by `warm` alone, otherwise as soon as they have run a few times."""
        self.cache, self.slots = cache, dict[int, Slot]()
        self.ahead: _Ahead | None = None
        self._step, self.captures, self._later = step, captures, later
        self._tokens = torch.zeros(cache.rows, dtype=torch.long, device=device)
        self._lengths = torch.zeros(cache.rows, dtype=torch.long, device=device)
        self._captured: dict[int, Replay] = {}
        self._runs: dict[int, int] = {}

    @property
    def has_captured(self) -> bool:
        return bool(self._captured)

    def logits(self, slots: Sequence[Slot], tokens: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
        """Logits [n, vocabulary] of the slots' tokens [n]."""
        numbers = [slot.row for slot in slots]
        self._set_lengths(dict(zip(numbers, lengths, strict=True)))
        places = on_device(numbers, self._tokens.device)
        self._tokens.index_copy_(0, places, tokens)
        return self._run(next(rows for rows in self.sizes() if rows > max(numbers)))[places]

    def sizes(self) -> list[int]:
        """The numbers of rows for which there are steps: 1, 2, 4 …, and all."""
        return [*(2**n for n in range(self.cache.rows.bit_length()) if 2**n < self.cache.rows), self.cache.rows]

    def warm(self, rows: int, capture: bool) -> None:
        """Launches the step of so many rows a few times, or captures it."""
        if capture:
            self._capture(rows)
            return
        # It writes where the next step of each answer will, even where that was launched already.
        self.ahead = None
        self._set_lengths({})
        for _ in range(_STEPS_BEFORE_CAPTURE):
            self._launch(rows)

    def capture_when_used(self) -> None:
        """After a failed warm-up: steps are captured when they have run a few times."""
        self._later = False

    def _set_lengths(self, known: dict[int, int]) -> None:
        """The tokens before the next one, of each row. Rows that wait read a token too: what it stores is written over
        by their own next step."""
        lengths = [0] * self.cache.rows
        for slot in self.slots.values():
            lengths[slot.row] = slot.cache.length
        for row, length in known.items():
            lengths[row] = length
        self._lengths.copy_(on_device(lengths, self._lengths.device))

    def _run(self, rows: int) -> torch.Tensor:
        if rows not in self._captured and not self._later and self.captures.go_on:
            self._runs[rows] = self._runs.get(rows, 0) + 1
            if self._runs[rows] > _STEPS_BEFORE_CAPTURE:
                self._capture(rows)
        return self._captured[rows]() if rows in self._captured else self._launch(rows)

    def _launch(self, rows: int) -> torch.Tensor:
        return self._step(self._tokens[:rows], self._lengths[:rows], self.cache)

    def _capture(self, rows: int) -> None:
        replay = self.captures.capture(lambda: self._launch(rows), rows)
        if replay is not None:
            self._captured[rows] = replay


class SlotRunner:
    """Runs the decode steps of one model; in one thread."""

    def __init__(
        self, model: Any, rows: int, most_bytes: int, captures: bool = True, background: Background | None = None
    ):
        """All slots together may take `most_bytes`. Without `background`, a step is captured when it has run a few
        times."""
        self._model, self._rows, self._background = model, rows, background
        self._captures = _Captures(captures)
        self._most_bytes = most_bytes
        self._step = FusedDecoder(model)
        self._groups: dict[int, _Group | None] = {}
        self._plain: set[int] = set()

    @classmethod
    def for_model(
        cls, model: Any, rows: int, most_bytes: int, background: Background | None = None
    ) -> "SlotRunner | None":
        """None on other devices than CUDA, and for a model whose decode step can't be fused, which the log explains."""
        if not has_slots(model.device):
            return None
        try:
            import triton  # noqa: F401
        except ImportError:
            reason: str | None = "Triton is not installed"
        else:
            reason = why_not_fused(model) or why_no_kernels(model)
        if reason is not None:
            log.warning("Answers are decoded without captured steps: %s.", reason)
            return None
        try:
            return cls(model, rows, most_bytes, background=background)
        except torch.OutOfMemoryError:
            log.warning("Answers are decoded without captured steps: there is no memory to fuse the weights in.")
            return None

    def warm_up(self) -> None:
        """Makes the shortest slots, so that their steps are captured before an answer needs them."""
        self._group(LENGTHS[0])

    def decode(self, passes: Sequence[DecodePass]) -> None:
        """Runs the passes, those in slots of one length together; the others as `decode_together` does. After an error,
        those that are not done may be run again; the others must not be."""
        by_group: dict[_Group, list[DecodePass]] = {}
        plain: list[DecodePass] = []
        lengths = [one.cache.length for one in passes]
        try:
            for one in passes:
                group = None if one.row is None else self._admitted(one.cache)
                (plain if group is None else by_group.setdefault(group, [])).append(one)
            for group, some in by_group.items():
                self._decode(group, some)
            if plain:
                decode_together(plain)
        except BaseException:
            for one, length in zip(passes, lengths, strict=True):
                if not one.is_done:
                    one.cache.length = length
            raise

    def _admitted(self, cache: KVCache) -> _Group | None:
        """The group in which the cache has a slot, admitting it if there is room; else None."""
        for group in self._groups.values():
            if group is not None and id(cache) in group.slots:
                return group
        if id(cache) in self._plain:
            return None  # it began without a slot, and stays so
        # A step that is launched ahead stores one token more than the answer has.
        length = next((length for length in LENGTHS if length > cache.reserved), None)
        group = None if length is None else self._group(length)
        slot = None if group is None else group.cache.admit(cache)
        if group is None or slot is None:
            self._plain.add(id(cache))
            return None
        group.slots[id(cache)] = slot
        return group

    def _group(self, length: int) -> _Group | None:
        """The slots of that length; None if there is no memory for them."""
        if length not in self._groups:
            config, dtype, device = self._model.text_config, self._model.dtype, self._model.device
            self._groups[length] = None
            taken = sum(slot_bytes(config, self._rows, other, dtype) for other, group in self._groups.items() if group)
            if taken + slot_bytes(config, self._rows, length, dtype) <= self._most_bytes:
                try:
                    slots = SlotCache(config, self._rows, length, dtype, device)
                except torch.OutOfMemoryError:
                    log.warning(
                        "There is no memory for slots of %d tokens, so such answers are decoded plainly.", length
                    )
                else:
                    later = self._background is not None
                    self._groups[length] = group = _Group(self._step, slots, device, self._captures, later)
                    if self._background is not None and self._captures.go_on:
                        self._background(_warming_up(weakref.ref(group), length, group.sizes()))
        return self._groups[length]

    def give_back(self) -> None:
        """Frees the slots of each length of which none is in use. They are made again when they are needed."""
        self._groups = {length: group for length, group in self._groups.items() if group is not None and group.slots}
        if not any(group.has_captured for group in self._groups.values() if group is not None):
            self._captures.begin_anew()

    def release(self, cache: KVCache) -> None:
        """Ends an answer: what was decoded goes to its cache, and its slot is free."""
        self._plain.discard(id(cache))
        for group in self._groups.values():
            if group is not None and (slot := group.slots.pop(id(cache), None)) is not None:
                group.ahead = None
                group.cache.release(slot)

    def _decode(self, group: _Group, passes: list[DecodePass]) -> None:
        slots = [group.slots[id(one.cache)] for one in passes]
        tokens, lengths = [one.token_ids for one in passes], [one.cache.length for one in passes]
        rows = [one.row for one in passes if one.row is not None]
        ahead, group.ahead = group.ahead, None
        if ahead is not None and _same(ahead, slots, tokens, lengths):
            sampled = ahead.sampled or sample_rows(ahead.logits, rows)
        else:
            sampled = sample_rows(group.logits(slots, torch.cat(tokens), lengths), rows)
        longer, logits, following = [length + 1 for length in lengths], None, None
        try:
            if not sampled.needs_host:
                logits = group.logits(slots, sampled.tokens, longer)
                if all(row.constraint is None for row in rows):
                    following = sample_rows(logits, rows, ahead=1)
        finally:
            # Even where the step ahead fails: it has stored a token in the column of a ring's oldest one, which running
            # this step again would read.
            found = sampled.read()
            for one, token in zip(passes, found, strict=True):
                one.sampled = token
                one.cache.length += 1
        if logits is not None and not sampled.needs_host:  # reading may have changed a token
            group.ahead = _Ahead(slots, [token.token for token in found], longer, logits, following)


def has_slots(device: torch.device) -> bool:
    """Whether answers are decoded in slots on this device, if the model allows it."""
    return device.type == "cuda" and os.environ.get(_OFF, "1") != "0"


def _warming_up(alive: "weakref.ref[_Group]", length: int, sizes: Sequence[int]) -> Iterator[None]:
    """Captures the steps of a group as long as it is in use, each after it was launched."""
    for number, rows in enumerate(sizes, start=1):
        for capture in (False, True):
            group = alive()
            if group is None or not group.captures.go_on:
                return
            try:
                group.warm(rows, capture)
            except BaseException:
                group.capture_when_used()
                raise
            if capture and group.captures.go_on:
                done, total = number, len(sizes)
                log.info("Decode steps of answers up to %s tokens: %d of %d captured.", f"{length:,}", done, total)
            del group
            yield


def why_no_kernels(model: Any) -> str | None:
    """Why the kernels of a decode step can't run here; None if they can. They are built the first time, which needs a C
    compiler."""
    config, dtype, device = model.text_config, model.dtype, model.device
    heads, kv_heads, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    x, weight = torch.ones(1, config.hidden_size, dtype=dtype, device=device), torch.ones(1, device=device)
    table, lengths = torch.ones(1, width, dtype=dtype, device=device), torch.zeros(1, dtype=torch.long, device=device)
    keys = torch.zeros(1, kv_heads, 2, width, dtype=dtype, device=device)
    norm, head_norm = weight.expand(config.hidden_size).contiguous(), weight.expand(width).contiguous()
    qkv = torch.ones(1, (heads + 2 * kv_heads) * width, dtype=dtype, device=device)
    try:
        kernels.rms_norm(x, norm, 1e-6)
        kernels.add_norms(x, x, norm, norm, 1e-6)
        kernels.gelu_multiply(torch.cat((x, x), dim=1))
        queries = kernels.rotate_and_store(qkv, head_norm, head_norm, table, table, lengths, keys, keys.clone(), 1e-6)
        out = kernels.attend_slots(queries, keys, keys, lengths, 1.0)
        return None if bool(out.isfinite().all()) else "their kernels compute NaN"
    except Exception as error:  # noqa: BLE001  Triton raises any error where it can't build or launch
        return f"their kernels can't run: {type(error).__name__}: {str(error)[:200]}"


def _same(ahead: _Ahead, slots: list[Slot], tokens: list[torch.Tensor], lengths: list[int]) -> bool:
    """Whether that step is the one that is needed now."""
    if len(slots) != len(ahead.slots) or lengths != ahead.lengths:
        return False
    pairs = [*zip(slots, ahead.slots, strict=True), *zip(tokens, ahead.tokens, strict=True)]
    return all(one is other for one, other in pairs)
