"""Calls cpu.c's decoder_layer: a decoder layer for one new token of each row in one call.

A layer's parts are a dozen small products and norms, and attention to a cache. In a small model torch and Python take
longer to call these one by one than a processor takes to compute them.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gemma3_core.kernels.cpu import BLOCKS, DTYPES, FEW_ROWS, PLAIN

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_MULTIPLE = 32
"""Sizes of a layer are multiples of two vector registers."""
_MANY_ROWS = 64
"""As integers, so many rows stay in a processor's own cache."""


class Weight(ctypes.Structure):
    """A weight [N, K] without bias, as cpu.c takes it. It does not keep the tensors that it points to."""

    _fields_ = (
        ("weight", _POINTER),
        ("scale_and_zero", _POINTER),
        ("inputs", _SIZE),
        ("outputs", _SIZE),
        ("group", _SIZE),
        ("symmetric", _SIZE),
        ("block", _SIZE),
    )
    inputs: int
    outputs: int
    group: int
    """The group size of int4 weights; 0 for dense ones."""


class Layer(ctypes.Structure):
    """A decoder layer's weights; norms are pointers to tensors in the model's type."""

    _fields_ = (
        *((name, Weight) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, _POINTER) for name in ("input_norm", "query_norm", "key_norm")),
        *((name, _POINTER) for name in ("after_attention_norm", "before_mlp_norm", "after_mlp_norm")),
        ("heads", _SIZE),
        ("kv_heads", _SIZE),
        ("head_dim", _SIZE),
        ("scale", ctypes.c_float),
        ("eps", ctypes.c_float),
        ("bfloat16", ctypes.c_int),
    )
    head_dim: int
    bfloat16: int
    most_rows = FEW_ROWS
    """Rows that `decoder_layer` takes at once; see `most_rows`."""


class _Place(ctypes.Structure):
    _fields_ = (("keys", _POINTER), ("values", _POINTER), *((n, _SIZE) for n in ("head_stride", "column", "seen")))


@dataclass(frozen=True)
class CachePlace:
    """Where rows of one cache store a new token: keys and values [B, KV heads, S, D], a column, and the number of
    columns that the token attends to, from 0 on and itself among them."""

    keys: torch.Tensor
    values: torch.Tensor
    column: int
    seen: int


def dense_weight(weight: torch.Tensor, dtype: torch.dtype) -> Weight | None:
    """A dense weight [N, K], or None if it does not fit activations of `dtype`."""
    outputs, inputs = weight.shape
    if type(weight) not in PLAIN or weight.dtype != dtype or not weight.is_cpu:
        return None
    if inputs % _MULTIPLE or not weight.is_contiguous():
        return None
    return Weight(weight.data_ptr(), None, inputs, outputs, 0, 0, 0)


def int4_weight(
    qdata: torch.Tensor, scale_and_zero: torch.Tensor, group_size: int, block: int, symmetric: bool
) -> Weight | None:
    """An int4 weight, in the form of `cpu.multiply`, or None if it does not fit."""
    if not qdata.is_cpu or not scale_and_zero.is_contiguous():
        return None
    outputs, halves = qdata.shape
    if block not in BLOCKS or outputs % block or 2 * halves % _MULTIPLE:
        return None
    return Weight(qdata.data_ptr(), scale_and_zero.data_ptr(), 2 * halves, outputs, group_size, symmetric, block)


def layer_fits(weights: Sequence[Weight], head_dim: int) -> bool:
    """Whether `decoder_layer` takes these weights."""
    return head_dim % _MULTIPLE == 0 and len({weight.group for weight in weights if weight.group}) <= 1


def most_rows(weights: Sequence[Weight]) -> int:
    """The rows that a layer with these weights takes at once; with more, torch's products are faster."""
    return _MANY_ROWS if all(weight.group for weight in weights) else FEW_ROWS


def decoder_layer(
    kernels: ctypes.CDLL,
    layer: Layer,
    x: torch.Tensor,
    cosines: torch.Tensor,
    sines: torch.Tensor,
    places: Sequence[CachePlace],
) -> torch.Tensor:
    """One new token of each row, x [B, 1, E] with B up to `most_rows`, through a layer that fits (`layer_fits`): as x.

    cosines and sines [B or 1, 1, 1, D] are the rotary tables. Keys and values are stored at `places`, which hold B rows
    together. Rows do not depend on one another. Raises MemoryError.
    """
    count, dtype = len(x), x.dtype
    rows = _places(places)
    assert len(rows) == count <= layer.most_rows
    assert dtype in DTYPES
    assert layer.bfloat16 == (dtype == torch.bfloat16)
    assert cosines.dtype == sines.dtype == dtype
    assert cosines.shape == sines.shape
    if len(cosines) != count:
        cosines, sines = cosines.expand(count, -1, -1, -1), sines.expand(count, -1, -1, -1)
    assert cosines.shape == (count, 1, 1, layer.head_dim)
    x, cosines, sines = x.contiguous(), cosines.contiguous(), sines.contiguous()
    out = torch.empty_like(x)
    tensors = (x.data_ptr(), cosines.data_ptr(), sines.data_ptr())
    sizes = (count, torch.get_num_threads())
    if kernels.decoder_layer(ctypes.byref(layer), *tensors, (_Place * count)(*rows), out.data_ptr(), *sizes):
        raise MemoryError("not enough memory for a decoder layer")
    return out


def _places(places: Sequence[CachePlace]) -> list[_Place]:
    rows = []
    for place in places:
        keys, values, column, seen = place.keys, place.values, place.column, place.seen
        strides, count = keys.stride(), len(keys)
        assert strides == values.stride()
        assert strides[2:] == (keys.shape[3], 1)
        assert 0 <= column < seen <= keys.shape[2]
        assert keys.dtype == values.dtype
        assert keys.is_cpu
        first = keys.data_ptr(), values.data_ptr()
        for offset in range(0, count * strides[0] * keys.itemsize, strides[0] * keys.itemsize):
            rows.append(_Place(first[0] + offset, first[1] + offset, strides[1], column, seen))
    return rows
