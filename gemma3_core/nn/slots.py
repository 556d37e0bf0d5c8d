"""Keys and values of many rows in static shapes, as a captured decode step needs them.

A row is a slot for one KVCache while its answer is decoded: `admit` copies what the cache holds, decode steps write one
token at a time, and `release` copies the new tokens back. So caches stay what prefill, reuse and truncation know.
"""

from dataclasses import dataclass

import torch

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.nn.cache import KVCache


@dataclass
class Slot:
    """A row in use: its number, its cache, and how many tokens the cache held when it was admitted."""

    row: int
    cache: KVCache
    admitted: int


class SlotCache:
    """Room for `rows` answers of up to `length` tokens each: `length` columns on global layers, a ring of the window on
    local ones. Token t lies in column t modulo the columns."""

    def __init__(
        self, config: Gemma3TextConfig, rows: int, length: int, dtype: torch.dtype, device: torch.device | str
    ):
        self.rows, self.length = rows, length
        shapes = slot_shapes(config, rows, length)
        with torch.inference_mode(False):  # or they could not be written to outside of it
            self.keys = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
            self.values = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
        self._free = set(range(rows))

    def admit(self, cache: KVCache) -> Slot | None:
        """The lowest free row, with the tokens of a cache of one row without padding; None if all are in use."""
        assert cache.batch_size == 1
        assert not cache.has_padding
        if not self._free:
            return None
        row = min(self._free)
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            for store, held in zip((keys, values), cache.stored(layer), strict=True):
                store[row, :, : held.shape[2]].copy_(held[0])
        self._free.remove(row)
        return Slot(row, cache, cache.length)

    def release(self, slot: Slot) -> None:
        """Copies the tokens that were decoded, up to `cache.length`, to the slot's cache, and frees the row."""
        try:
            if slot.cache.length > slot.admitted:
                tokens = torch.arange(slot.admitted, slot.cache.length, device=self.keys[0].device)
                layers = [self._tokens(layer, slot.row, tokens) for layer in range(len(self.keys))]
                slot.cache.restore(slot.admitted, layers)
        finally:
            self._free.add(slot.row)

    def _tokens(self, layer: int, row: int, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [1, KV heads, T, D] of the tokens [T] that the layer still holds, in their order."""
        keys, values = self.keys[layer], self.values[layer]
        columns = tokens[-keys.shape[2] :] % keys.shape[2]
        return keys[row][None, :, columns], values[row][None, :, columns]


def slot_shapes(config: Gemma3TextConfig, rows: int, length: int) -> list[tuple[int, int, int, int]]:
    """The shape of the keys (and of the values) of each layer."""
    windows = [config.window(config.layer_type(layer)) for layer in range(config.num_hidden_layers)]
    heads, width = config.num_key_value_heads, config.head_dim
    return [(rows, heads, length if window is None else min(window, length), width) for window in windows]


def slot_bytes(config: Gemma3TextConfig, rows: int, length: int, dtype: torch.dtype) -> int:
    """Bytes of a SlotCache."""
    numbers = sum(rows * heads * columns * width for rows, heads, columns, width in slot_shapes(config, rows, length))
    return 2 * numbers * dtype.itemsize
