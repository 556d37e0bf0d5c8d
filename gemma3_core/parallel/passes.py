"""The passes of a model in several processes: the first one leads, as if it were alone, and the others follow.

The leader tells each pass of its decoder, and the followers run their shares of the same layers. Embeddings, pictures,
the head, sampling and the queue are the leader's alone:

    leader       prompts, pictures, embeddings -> | layers | -> norm, head, sampling
                            Pass, x [B, T, E]  ->     ||  sums after attention and after the MLP
    follower                                      | layers |

A pass names its KV caches, and how many tokens each of them holds: so a follower's caches are made, shortened, trimmed
and dropped with the leader's, whoever does it there. Where a look reads a layer's queries and keys (`WeightReader`), it
gets those of all heads; meanwhile the followers wait, and may follow other passes, which the look lets pass.
"""

import itertools
import logging
import os
import pickle
import socket
import threading
import traceback
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from functools import partial
from inspect import signature
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import distributed

from gemma3_core.errors import ReplicaLostError, UnsupportedOptionError
from gemma3_core.nn.cache import CopiedRows, KVCache, RowCaches
from gemma3_core.nn.layers import WeightReader

logger = logging.getLogger(__name__)

PROCESS_LOST = (
    "A part of this model is gone, because a process that held it has ended. Whoever runs this server must start it "
    "again."
)
_SUMS_PER_LAYER = 2
_SENT = ("attention_mask", "position_ids", "image_blocks", "use_cache")
"""The arguments of the decoder's `forward` that followers get from the leader, beside x and the caches."""


@dataclass(frozen=True)
class CacheState:
    """A cache by its number, the tokens that it holds before the pass, and those that it has room for. One that is new
    may be copied from the cache of a number: positions and blocks [R, T] of its rows, and what it reserves."""

    number: int
    length: int
    reserved: int
    copied: tuple[int, torch.Tensor, torch.Tensor, int] | None = None


@dataclass(frozen=True)
class Pass:
    """A pass of the decoder over x of this `shape` [B, T, E], which is sent after it.

    `rows` says that each of the caches is one row. `inputs` are the decoder's others, on the CPU. With `is_read`,
    queries and keys of each layer are asked for. The caches `dropped` are needed no more; those `trimmed` are kept for
    later.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    caches: tuple[CacheState, ...]
    rows: bool
    inputs: dict[str, Any]
    is_read: bool
    dropped: tuple[int, ...]
    trimmed: tuple[int, ...] = ()


class Word(Enum):
    """What becomes of a pass whose layer was read."""

    GO_ON = "go on"
    LEAVE = "leave"


class _LeftError(Exception):
    """The leader has left a pass within a look, with this error."""


class _ApartError(Exception):
    """The processes no longer are at the same place, or one of them has ended."""


class Exchange:
    """What the processes compute together."""

    def __init__(self) -> None:
        self.layers = 0
        """The decoder's."""
        self._sums: list[int] = []
        """Those of the running pass come last; before it, those of passes whose look lets it pass."""

    def add_up(self, x: torch.Tensor) -> None:
        """Adds the tensors of all processes to one another, in place."""
        distributed.all_reduce(x)
        self._sums[-1] += 1

    def heads(self, own: torch.Tensor) -> torch.Tensor:
        """The heads [B, H, T, D] of all processes, in the model's order."""
        own = own.contiguous()
        parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, own)
        return torch.cat(parts, dim=1)

    def run(self, forward: Callable[[], Any], x: torch.Tensor, is_read: bool) -> Any:
        """Runs a pass over x [B, T, E].

        If it fails in one process, such as for lack of memory, it fails in all of them, and the next one may succeed.
        Raises _ApartError otherwise.
        """
        self._sums.append(0)
        failed: Exception | None = None
        try:
            out = forward()
        except _LeftError:
            self._sums.pop()
            raise
        except Exception as error:  # noqa: BLE001  raised again below
            traceback.clear_frames(error.__traceback__)  # they hold the memory that was too little
            failed = error
        missing = _SUMS_PER_LAYER * self.layers - self._sums.pop()
        if failed is not None and is_read:
            raise _ApartError from failed
        try:
            for _ in range(missing):
                distributed.all_reduce(torch.zeros_like(x))
            verdict = 0 if failed is None else 1 if isinstance(failed, torch.OutOfMemoryError | MemoryError) else 2
            worst = torch.tensor([verdict], device=x.device)
            distributed.all_reduce(worst, distributed.ReduceOp.MAX)
        except RuntimeError as error:
            raise _ApartError from failed or error
        if failed is not None:
            raise failed
        if int(worst) == 1:
            raise torch.OutOfMemoryError("another process that holds a part of the model has not enough memory")
        if int(worst):
            raise RuntimeError("another process that holds a part of the model has failed; the log says why")
        return out


class Lead:
    """Leads the passes of a decoder, whose layers hold this process's share; the followers are at `connections`."""

    def __init__(self, decoder: Any, exchange: Exchange, connections: Sequence[Connection]):
        self._decoder, self._forward, self._exchange = decoder, decoder.forward, exchange
        self._signature = signature(decoder.forward)
        self._connections = tuple(connections)
        self.kept: object = None
        """What must last as long as the followers."""
        self._lock = threading.RLock()
        self._numbers: weakref.WeakKeyDictionary[KVCache, int] = weakref.WeakKeyDictionary()
        self._next, self._dropped, self._trimmed = itertools.count(), list[int](), list[int]()
        self.is_whole = True
        """False once a follower has ended: then there are no more passes."""
        decoder.forward = self._pass
        for connection in self._connections:
            threading.Thread(target=self._watch, args=(connection,), name="follower", daemon=True).start()

    def close(self) -> None:
        """Ends the followers."""
        self.is_whole = False
        for connection in self._connections:
            hang_up(connection)

    def trim(self, cache: KVCache) -> None:
        """Trims a cache here, and in the followers with the next pass."""
        if cache in self._numbers:
            self._trimmed.append(self._numbers[cache])
        cache.trim()

    def _watch(self, connection: Connection) -> None:
        """Waits for the follower's end; it says nothing otherwise."""
        with suppress(OSError, EOFError):
            connection.recv_bytes()
        connection.close()
        if self.is_whole:
            logger.error("a process that holds a part of the model has ended")
            self.is_whole = False

    def _say(self, message: Pass | Word) -> None:
        data = pickle.dumps(message)
        try:
            for connection in self._connections:
                connection.send_bytes(data)
        except OSError as error:
            raise _ApartError from error

    def _pass(self, *given: Any, **named: Any) -> Any:
        """The decoder's `forward`, in all processes. Raises ReplicaLostError once one of them has ended."""
        asked = dict(self._signature.bind(*given, **named).arguments)
        asked |= asked.pop("unknown", {})  # which forward refuses
        reader = asked.pop("output_attentions", None)
        if (reader and not callable(reader)) or self._decoder.eager:
            raise UnsupportedOptionError("Each of several devices has some of the heads. Read weights with a function.")
        if (x := asked.get("inputs_embeds")) is None:
            x = self._decoder.embed_tokens(asked["input_ids"])
        past_key_values = asked.get("past_key_values")
        reads = partial(self._read, reader) if callable(reader) else None
        forward = partial(self._forward, **asked | {"input_ids": None, "inputs_embeds": x}, output_attentions=reads)
        with self._lock:
            if not self.is_whole:
                raise ReplicaLostError(PROCESS_LOST)
            states = self._states(past_key_values)
            dropped, trimmed = (
                tuple(numbers.pop() for _ in range(len(numbers))) for numbers in (self._dropped, self._trimmed)
            )
            sent = {name: _on_cpu(asked.get(name)) for name in _SENT}
            is_batch = isinstance(past_key_values, RowCaches)
            told = Pass(tuple(x.shape), x.dtype, states, is_batch, sent, reads is not None, dropped, trimmed)
            try:
                self._say(told)
                _broadcast(x.contiguous())
                return self._exchange.run(forward, x, told.is_read)
            except _LeftError as left:
                raise left.args[0] from None
            except _ApartError:
                logger.exception("the processes that share the model are no longer together")
                self.close()
                raise ReplicaLostError(PROCESS_LOST) from None

    def _read(
        self,
        reader: WeightReader,
        layer: int,
        queries: torch.Tensor,
        keys: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """What a look reads from a layer. An error of its own, such as a stop, ends the pass alone."""
        queries, keys = self._exchange.heads(queries), self._exchange.heads(keys)
        try:
            found = reader(layer, queries, keys, mask, scale)
        except Exception as error:
            self._say(Word.LEAVE)
            raise _LeftError(error) from error
        self._say(Word.GO_ON)
        return found

    def _states(self, cache: KVCache | RowCaches | None) -> tuple[CacheState, ...]:
        caches = () if cache is None else cache.rows if isinstance(cache, RowCaches) else (cache,)
        return tuple(self._state(one) for one in caches)

    def _state(self, cache: KVCache) -> CacheState:
        copied, known = None, cache in self._numbers
        if not known and cache.length:
            made = cache.copied
            if made is None or made.source not in self._numbers:
                raise UnsupportedOptionError(
                    "Several devices share this model, so it can't go on from a cache that was filled elsewhere. Fill "
                    "one by this model."
                )
            copied = (self._numbers[made.source], made.positions.cpu(), made.blocks.cpu(), made.reserve)
        if not known:
            self._numbers[cache] = next(self._next)
            weakref.finalize(cache, self._dropped.append, self._numbers[cache]).atexit = False
        return CacheState(self._numbers[cache], cache.length, cache.reserved, copied)


class Follower:
    """Follows the leader's passes with this process's share of a decoder's layers."""

    def __init__(self, decoder: Any, exchange: Exchange, connection: Connection, device: torch.device):
        self._decoder, self._exchange, self._connection, self._device = decoder, exchange, connection, device
        self._caches: dict[int, KVCache] = {}

    @torch.inference_mode()
    def follow(self) -> None:
        """Until a look lets the pass around it go on. Raises EOFError once the leader has ended."""
        while True:
            message = pickle.loads(self._connection.recv_bytes())
            if message is Word.GO_ON:
                return
            if message is Word.LEAVE:
                raise _LeftError
            self._pass(message)

    def _pass(self, told: Pass) -> None:
        for number in told.dropped:
            self._caches.pop(number, None)
        for number in told.trimmed:
            if number in self._caches:
                with suppress(RuntimeError, MemoryError):  # no memory for the copy: it is kept as it is
                    self._caches[number].trim()
        x = torch.empty(told.shape, dtype=told.dtype, device=self._device)
        _broadcast(x)
        caches = [self._cache(state) for state in told.caches]
        cache = None if not caches else RowCaches(caches) if told.rows else caches[0]
        forward = partial(
            self._decoder,
            **{name: _on_device(value, self._device) for name, value in told.inputs.items()},
            inputs_embeds=x,
            past_key_values=cache,
            output_attentions=self._read if told.is_read else None,
        )
        try:
            self._exchange.run(forward, x, told.is_read)
        except (_LeftError, torch.OutOfMemoryError, MemoryError):
            pass  # the leader knows
        except RuntimeError:
            logger.exception("a pass failed here or in another process")

    def _cache(self, state: CacheState) -> KVCache:
        if state.number in self._caches:
            cache = self._caches[state.number]
        elif state.copied is not None:
            source, positions, blocks, reserve = state.copied
            rows = (positions.to(self._device), blocks.to(self._device))
            cache = CopiedRows(self._caches[source], *rows, reserve).cache()
        else:
            cache = KVCache(self._decoder.config)
        self._caches[state.number] = cache
        cache.length = state.length
        cache.reserve(state.reserved)
        return cache

    def _read(self, _layer: int, queries: torch.Tensor, keys: torch.Tensor, *_: Any) -> torch.Tensor:
        self._exchange.heads(queries)
        self._exchange.heads(keys)
        self.follow()
        return queries.new_empty(0)


def hang_up(connection: Connection) -> None:
    """Ends a connection, also while another thread reads from it, which `close` would wait for."""
    with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _broadcast(x: torch.Tensor) -> None:
    try:
        distributed.broadcast(x, 0)
    except RuntimeError as error:
        raise _ApartError from error


def _on_cpu(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _on_cpu(one) for name, one in value.items()}
    return value.cpu() if isinstance(value, torch.Tensor) else value


def _on_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {name: _on_device(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, torch.Tensor) else value
