"""KV cache: every column on global layers, a ring of the last `window` columns on local ones.

Both take memory as they fill. The cache stores the position and the image block of every key, and
`masks.attention_mask` decides by these, never by lengths. Each row of a batch has its own positions (left padding is
PADDING); all rows share the columns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gemma3_core.config.gemma3 import GLOBAL, LOCAL, Gemma3Config, Gemma3TextConfig
from gemma3_core.errors import ConfigError
from gemma3_core.kernels.cpu_layer import CachePlace
from gemma3_core.nn.masks import NO_BLOCK, PADDING

_LEAST_GROWTH = 256


class GrowingBuffer:
    """Keeps every column along `dim`.

    Allocates `reserve` columns at once. Beyond them it grows by a quarter, but at least by _LEAST_GROWTH columns, so
    that copies stay rare. It never allocates ahead beyond `most` columns, the model's longest context.
    """

    def __init__(self, dim: int, reserve: int, most: int):
        self.reserve = reserve
        self._dim, self._most = dim, most
        self._buffer: torch.Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return 0 if self._buffer is None else self._buffer.nbytes

    @property
    def rows(self) -> int | None:
        return None if self._buffer is None else self._buffer.shape[0]

    def held(self, length: int) -> torch.Tensor:
        """The columns that hold the first `length` tokens, as far as they are kept, in the buffer's order (a view)."""
        assert self._buffer is not None
        return self._buffer.narrow(self._dim, 0, min(length, self._buffer.shape[self._dim]))

    def column(self, start: int) -> tuple[torch.Tensor, int, int]:
        """For a caller who stores the token of column `start` itself: the buffer, which has held tokens before, the
        place along `dim`, and how many of the buffer's columns then count."""
        buffer = self._buffer
        assert buffer is not None
        if buffer.shape[self._dim] <= start:
            buffer = self._with_room(start + 1, buffer.narrow(self._dim, 0, 1), keep=start)
        return buffer, start, start + 1

    def write(self, new: torch.Tensor, start: int) -> torch.Tensor:
        """Stores `new` at column `start`; returns every column so far (a view)."""
        end = start + new.shape[self._dim]
        buffer = self._with_room(end, new, keep=start)
        buffer.narrow(self._dim, start, end - start).copy_(new)
        return buffer.narrow(self._dim, 0, end)

    def trim(self, length: int) -> None:
        """Gives back the room behind the first `length` tokens, unless growing would have left as much."""
        self.reserve = 0
        if self._buffer is None or self._buffer.shape[self._dim] <= length + max(_LEAST_GROWTH, length // 4):
            return
        with torch.inference_mode(False):  # as in `_with_room`
            self._buffer = self.held(length).clone(memory_format=torch.contiguous_format)

    def _with_room(self, columns: int, like: torch.Tensor, keep: int) -> torch.Tensor:
        """The buffer with room for `columns`; a larger one takes over the first `keep`."""
        old = self._buffer
        if old is not None and old.shape[self._dim] >= columns:
            return old
        room = self.reserve if columns <= self.reserve else columns + max(_LEAST_GROWTH, columns // 4)
        shape = list(like.shape)
        shape[self._dim] = max(columns, min(room, self._most))
        # Not an inference tensor: it could not be written to once generation is over.
        with torch.inference_mode(False):
            self._buffer = like.new_zeros(shape)
        if old is not None:
            keep = min(keep, old.shape[self._dim])
            self._buffer.narrow(self._dim, 0, keep).copy_(old.narrow(self._dim, 0, keep))
        return self._buffer


class RingBuffer(GrowingBuffer):
    """Keeps the last `window` columns: column c lies in slot c % window. It grows up to the window."""

    def __init__(self, dim: int, reserve: int, window: int):
        super().__init__(dim, reserve, most=window)

    def column(self, start: int) -> tuple[torch.Tensor, int, int]:
        if start < self._most:
            return super().column(start)
        buffer = self._buffer
        assert buffer is not None
        if (held := buffer.shape[self._dim]) < self._most:
            buffer = self._with_room(self._most, buffer.narrow(self._dim, 0, 1), held)
        return buffer, start % self._most, self._most

    def write(self, new: torch.Tensor, start: int) -> torch.Tensor:
        """Stores `new` at column `start`; returns the columns that its queries may need: those kept before, and `new`.

        They are not in the order of columns; the positions that are stored with them tell them apart.
        """
        count, window = new.shape[self._dim], self._most
        if start + count <= window:
            return super().write(new, start)
        held = min(start, window)
        buffer = self._with_room(window, new, keep=held)
        if count == 1:
            buffer.narrow(self._dim, start % window, 1).copy_(new)
            return buffer
        seen = torch.cat([buffer.narrow(self._dim, 0, held), new], dim=self._dim)
        kept = min(count, window)
        slots = torch.arange(start + count - kept, start + count, device=new.device) % window
        buffer.index_copy_(self._dim, slots, new.narrow(self._dim, count - kept, kept))
        return seen


@dataclass(frozen=True)
class CopiedRows:
    """The tokens of `source`, a cache of one row, in rows [R, T] with positions (or PADDING) and image blocks of their
    own; with room for `reserve` tokens."""

    source: "KVCache"
    positions: torch.Tensor
    blocks: torch.Tensor
    reserve: int

    def cache(self) -> "KVCache":
        """Must be asked for before `source` reads more."""
        new = KVCache(self.source.config, self.reserve)
        new.begin(self.positions, self.blocks, may_have_padding=True)
        for layer in range(self.source.config.num_hidden_layers):
            keys, values = (one.expand(len(self.positions), -1, -1, -1) for one in self.source.in_order(layer))
            new.update(layer, keys, values)
        new.advance()
        new.copied = self
        return new


class KVCache:
    """Keys and values of every layer for one batch of rows.

    A forward pass calls `begin` with the positions and blocks of the new tokens, `update` for each layer, and then
    `advance`, which counts the tokens. After a pass that failed, the cache is good only for reading the same single
    token again at the same length.
    """

    def __init__(self, config: Gemma3TextConfig | Gemma3Config, reserve: int = 0):
        """The first allocation has room for `reserve` tokens (in a ring for the window at most)."""
        config = config.text_config if isinstance(config, Gemma3Config) else config
        if not isinstance(config, Gemma3TextConfig):
            raise ConfigError(f"A KVCache needs the model's config (model.config), got {type(config).__name__}.")
        self.length = 0
        """Tokens read so far, padding included."""
        self.has_padding = False
        self.copied: CopiedRows | None = None
        """How this cache was made from another one."""
        self.config = config
        self._new = 0
        kinds = [config.layer_type(i) for i in range(config.num_hidden_layers)]
        self._keys = [self._columns(kind, 2, reserve) for kind in kinds]
        self._values = [self._columns(kind, 2, reserve) for kind in kinds]
        self._positions = {kind: self._columns(kind, 1, reserve) for kind in (LOCAL, GLOBAL)}
        self._blocks = {kind: self._columns(kind, 1, reserve) for kind in (LOCAL, GLOBAL)}
        self._seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def _columns(self, layer_type: str, dim: int, reserve: int) -> GrowingBuffer:
        window = self.config.window(layer_type)
        if window is not None:
            return RingBuffer(dim, reserve, window)
        return GrowingBuffer(dim, reserve, self.config.max_position_embeddings)

    def reserve(self, tokens: int) -> None:
        """Makes the next allocation large enough for `tokens` tokens."""
        for columns in self._all_columns():
            columns.reserve = max(columns.reserve, tokens)

    def trim(self) -> None:
        """Gives back the room that was reserved and not used, before the cache is kept. Copies one tensor at a time."""
        self._seen.clear()
        for columns in self._all_columns():
            columns.trim(self.length)

    @property
    def reserved(self) -> int:
        """The tokens that `reserve` asked room for, or that the cache holds."""
        return max(self.length, *(columns.reserve for columns in self._all_columns()))

    @property
    def batch_size(self) -> int | None:
        """Rows in the cache; None while it is empty."""
        return self._positions[GLOBAL].rows

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors in the cache, including columns not yet used."""
        return sum(columns.num_bytes for columns in self._all_columns())

    def _all_columns(self) -> Iterator[GrowingBuffer]:
        yield from (*self._keys, *self._values, *self._positions.values(), *self._blocks.values())

    def get_seq_length(self) -> int:
        """Tokens read so far, padding included (the name that transformers' caches use)."""
        return self.length

    def next_columns(self, tokens: int, device: torch.device) -> torch.Tensor:
        """The columns [1, T] of as many new tokens."""
        return torch.arange(self.length, self.length + tokens, device=device)[None]

    def can_truncate(self, tokens: int) -> bool:
        """Whether `truncate` is possible: not once a ring has overwritten columns."""
        window = self.config.window(LOCAL)
        return tokens == self.length or (tokens < self.length and (window is None or self.length <= window))

    def truncate(self, tokens: int) -> None:
        """Keeps only the first `tokens` tokens. Raises ValueError if `can_truncate` is false."""
        if not self.can_truncate(tokens):
            raise ValueError(f"a cache of {self.length} tokens can't be truncated to {tokens}")
        self.length = tokens

    def begin(self, positions: torch.Tensor, blocks: torch.Tensor, may_have_padding: bool) -> None:
        """Announces new tokens, with their positions (or PADDING) and image blocks, both [B, T]."""
        self._new = positions.shape[1]
        for kind in (LOCAL, GLOBAL):
            self._seen[kind] = (
                self._positions[kind].write(positions, self.length),
                self._blocks[kind].write(blocks, self.length),
            )
        if may_have_padding and not self.has_padding:
            self.has_padding = bool((positions == PADDING).any())

    def seen(self, layer_type: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Positions and blocks [B, S] of the keys that `update` returns on a layer of this type, in the same order."""
        return self._seen[layer_type]

    def update(self, layer_index: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new keys and values [B, KV heads, T, D]; returns all to attend to [B, KV heads, S, D]."""
        return (
            self._keys[layer_index].write(keys, self.length),
            self._values[layer_index].write(values, self.length),
        )

    def places(self, layer_index: int) -> list[CachePlace] | None:
        """Where the one announced token of each row goes, in place of `update`; None if a row has none before it, or
        padding."""
        if self._new != 1 or not self.length or self.has_padding:
            return None
        keys, column, seen = self._keys[layer_index].column(self.length)
        values, _, _ = self._values[layer_index].column(self.length)
        return [CachePlace(keys, values, column, seen)]

    def advance(self) -> None:
        """Counts the announced tokens as read, once every layer has stored them."""
        self.length += self._new
        self._new = 0

    def stored(self, layer_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, KV heads, S, D] that a layer holds, in the order of its buffer (a view)."""
        return self._keys[layer_index].held(self.length), self._values[layer_index].held(self.length)

    def in_order(self, layer_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [B, KV heads, T, D] of a layer in the order of their columns; what a ring has dropped is
        0."""
        stored = self.stored(layer_index)
        if stored[0].shape[2] == self.length:
            return stored
        at = torch.arange(self.length - stored[0].shape[2], self.length, device=stored[0].device)
        both = []
        for ring in stored:
            whole = ring.new_zeros(*ring.shape[:2], self.length, ring.shape[3])
            whole[:, :, at] = ring[:, :, at % ring.shape[2]]
            both.append(whole)
        return both[0], both[1]

    def restore(self, start: int, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Stores text tokens from `start` to `length`, which were counted elsewhere: for each layer the keys and values
        [B, KV heads, T, D] of all, or of the last ones that a ring holds."""
        for layer, both in enumerate(layers):
            for columns, new in zip((self._keys[layer], self._values[layer]), both, strict=True):
                columns.write(new, self.length - new.shape[2])
        positions = torch.arange(start, self.length, device=layers[0][0].device)[None].expand(self.batch_size or 1, -1)
        for kind in (LOCAL, GLOBAL):
            self._positions[kind].write(positions, start)
            self._blocks[kind].write(torch.full_like(positions, NO_BLOCK), start)


class RowCaches:
    """Caches of one row each as one batch, for a pass that reads one token of every row.

    The rows have lengths of their own and no padding: each sees its own keys, as if it were alone. Stands for a KVCache
    in `forward`; the rows' own caches are moved on.
    """

    def __init__(self, rows: Sequence[KVCache]):
        assert not any(row.has_padding for row in rows)
        self.rows = tuple(rows)

    @property
    def batch_size(self) -> int:
        return len(self.rows)

    def get_seq_length(self) -> int:
        """Tokens of the longest row."""
        return max(row.length for row in self.rows)

    def next_columns(self, tokens: int, device: torch.device) -> torch.Tensor:
        """The columns [B, 1] of the new tokens."""
        assert tokens == 1
        return torch.tensor([[row.length] for row in self.rows], device=device)

    def begin(self, positions: torch.Tensor, blocks: torch.Tensor, may_have_padding: bool) -> None:
        """Announces new tokens [B, 1]; see KVCache."""
        assert not may_have_padding
        for row, at, block in zip(self.rows, positions.split(1), blocks.split(1), strict=True):
            row.begin(at, block, may_have_padding=False)

    def update(
        self, layer_index: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Stores new keys and values [B, KV heads, 1, D]; returns each row's own [1, KV heads, S, D]."""
        new = zip(self.rows, keys.split(1), values.split(1), strict=True)
        rows = [row.update(layer_index, key, value) for row, key, value in new]
        return tuple(key for key, _ in rows), tuple(value for _, value in rows)

    def places(self, layer_index: int) -> list[CachePlace] | None:
        """As of a KVCache, for each row."""
        rows = [row.places(layer_index) for row in self.rows]
        return [place for row in rows if row is not None for place in row] if None not in rows else None

    def advance(self) -> None:
        """Counts the announced tokens as read."""
        for row in self.rows:
            row.advance()


def cache_bytes(config: Gemma3TextConfig, tokens: int, dtype: torch.dtype, batch: int = 1) -> int:
    """Bytes of a full cache with a reserve of `tokens` tokens a row, counted on torch's meta device."""
    cache = KVCache(config, reserve=tokens)
    columns = torch.empty(batch, tokens, dtype=torch.long, device="meta")
    new = torch.empty(batch, config.num_key_value_heads, tokens, config.head_dim, dtype=dtype, device="meta")
    cache.begin(columns, columns, may_have_padding=False)
    for layer in range(config.num_hidden_layers):
        cache.update(layer, new, new)
    cache.advance()
    return cache.num_bytes
