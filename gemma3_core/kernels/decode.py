"""The parts of a decode step between its matrix products, each as one operation: one launch on CUDA.

A decode step reads one token of each of R rows. Row r has read `lengths[r]` tokens before it; its keys and values lie
in row r of `keys` and `values` [rows, KV heads, S, D], token t in column t % S (a ring on local layers). Numbers are
rounded to the type of x where the model's layers round them.

Here they are computed by torch, which says what they mean. CUDA has kernels of its own (`kernels.cuda`), which need
Triton; it comes with torch's builds for CUDA.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return (F.rms_norm(x.float(), (x.shape[-1],), eps=eps) * weight).to(x.dtype)


@torch.library.custom_op("gemma3::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [R, E] / rms(x) * weight; weight is float32 [E], the checkpoint's plus 1."""
    return _norm(x, weight, eps)


@torch.library.custom_op("gemma3::add_norms", mutates_args=())
def add_norms(x: Tensor, residual: Tensor, weight: Tensor, next_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream [R, E] with the norm of a block's output x [R, E] added, and the norm of that for the next
    block; weights as in `rms_norm`."""
    total = residual + _norm(x, weight, eps)
    return total, _norm(total, next_weight, eps)


@torch.library.custom_op("gemma3::rotate_and_store", mutates_args=("keys", "values"))
def rotate_and_store(
    qkv: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: Tensor,
    keys: Tensor,
    values: Tensor,
    eps: float,
) -> Tensor:
    """Queries [R, KV heads, G, D] of qkv [R, (H + 2 KV heads) D], normed and rotated; stores the keys, likewise, and
    the values in column lengths[r] % S. cos, sin [R, D]: the rotary tables at `lengths`."""
    rows, (kv_heads, columns, width) = qkv.shape[0], keys.shape[1:]
    heads = qkv.shape[1] // width - 2 * kv_heads
    query, key, value = qkv.view(rows, -1, width).split((heads, kv_heads, kv_heads), dim=1)
    query, key = (_rotated(_norm(x, w, eps), cos, sin) for x, w in ((query, query_weight), (key, key_weight)))
    row, column = torch.arange(rows, device=qkv.device), lengths % columns
    keys[row, :, column] = key
    values[row, :, column] = value
    return query.reshape(rows, kv_heads, -1, width)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat((-second, first), dim=-1) * sin[:, None]


@torch.library.custom_op("gemma3::attend_slots", mutates_args=())
def attend_slots(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """Attention of each row's queries [R, KV heads, G, D] over what it has stored, its new token included:
    [R, KV heads, G, D]."""
    rows, columns = queries.shape[0], keys.shape[2]
    stored = torch.arange(columns, device=lengths.device) <= lengths[:, None]  # a ring that has wrapped is full
    return F.scaled_dot_product_attention(
        queries, keys[:rows], values[:rows], attn_mask=stored[:, None, None], scale=scale
    )


@torch.library.custom_op("gemma3::gelu_multiply", mutates_args=())
def gelu_multiply(gate_up: Tensor) -> Tensor:
    """tanh-GELU of the first half of [R, 2 I] times the second: [R, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh") * up


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


@add_norms.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, next_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(residual), torch.empty_like(residual)


@rotate_and_store.register_fake
def _(qkv, query_weight, key_weight, cos, sin, lengths, keys, values, eps):  # type: ignore[no-untyped-def]  # noqa: ARG001
    heads = qkv.shape[1] // keys.shape[3] - 2 * keys.shape[1]
    return qkv.new_empty(qkv.shape[0], keys.shape[1], heads // keys.shape[1], keys.shape[3])


@attend_slots.register_fake
def _(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:  # noqa: ARG001
    return torch.empty_like(queries)


@gelu_multiply.register_fake
def _(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


def _by_triton(name: str) -> Callable[..., Any]:
    def launched(*given: Any) -> Any:
        from gemma3_core.kernels import cuda

        return getattr(cuda, name)(*given)

    return launched


for _operation in (rms_norm, add_norms, rotate_and_store, attend_slots, gelu_multiply):
    _operation.register_kernel("cuda")(_by_triton(_operation._name))
