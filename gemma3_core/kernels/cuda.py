"""The operations of `kernels.decode` in Triton, one launch each (attention two). Imported only where CUDA is used.

Every number is rounded to the tensors' type where `kernels.decode` rounds it; sums are float32.
"""

# ruff: noqa: N803  Triton writes the sizes that it compiles for in capitals
import torch
import triton
import triton.language as tl

Tensor = torch.Tensor
_BLOCK = 1024
"""Numbers that a program of `gelu_multiply` computes."""
_COLUMNS = 16
"""Keys that are held at a time in attention."""
_SPLIT = 128
"""Keys of a row that one program attends to, at least: many programs share a long row, so that all of a GPU reads."""
_MOST_SPLITS = 64


@triton.jit
def _normed(value, weight, inside, width, eps):
    """A row of float32 over its root mean square, times its weight."""
    return value * (1.0 / tl.sqrt(tl.sum(value * value) / width + eps)) * tl.load(weight, mask=inside, other=0.0)


@triton.jit
def _rms_norm_kernel(x, weight, out, width, eps, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = tl.program_id(0).to(tl.int64) * width + columns
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = _normed(value, weight + columns, inside, width, eps)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _add_norms_kernel(x, residual, weight, next_weight, total, normed, width, eps, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    at = tl.program_id(0).to(tl.int64) * width + columns
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    value = _normed(value, weight + columns, inside, width, eps)
    value = value.to(total.dtype.element_ty).to(tl.float32)
    value = (tl.load(residual + at, mask=inside, other=0.0).to(tl.float32) + value).to(total.dtype.element_ty)
    tl.store(total + at, value, mask=inside)
    value = value.to(tl.float32)
    value = _normed(value, next_weight + columns, inside, width, eps)
    tl.store(normed + at, value.to(normed.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_and_store_kernel(
    qkv, query_weight, key_weight, cos, sin, lengths, keys, values, queries,
    heads, kv_heads, columns, width, eps, BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = tl.arange(0, BLOCK)
    inside = place < width
    start = qkv + (row * (heads + 2 * kv_heads) + head) * width
    kind = queries.dtype.element_ty
    x = tl.load(start + place, mask=inside, other=0.0)
    column = tl.load(lengths + row) % columns
    if head >= heads + kv_heads:
        stored = ((row * kv_heads + head - heads - kv_heads) * columns + column) * width
        tl.store(values + stored + place, x, mask=inside)
    else:
        # The other half of the pair that is rotated; negative for the first half.
        other = (place + width // 2) % width
        if head < heads:
            weight, weight_of_other = tl.load(query_weight + place, mask=inside), tl.load(query_weight + other)
        else:
            weight, weight_of_other = tl.load(key_weight + place, mask=inside), tl.load(key_weight + other)
        wide = x.to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(wide * wide) / width + eps)
        partner = (tl.load(start + other).to(tl.float32) * scale * weight_of_other).to(kind).to(tl.float32)
        partner = tl.where(place < width // 2, -partner, partner)
        wide = (wide * scale * weight).to(kind).to(tl.float32)
        by_cos = tl.load(cos + row * width + place, mask=inside, other=0.0).to(tl.float32)
        by_sin = tl.load(sin + row * width + place, mask=inside, other=0.0).to(tl.float32)
        turned = (wide * by_cos).to(kind).to(tl.float32) + (partner * by_sin).to(kind).to(tl.float32)
        if head < heads:
            tl.store(queries + (row * heads + head) * width + place, turned.to(kind), mask=inside)
        else:
            stored = ((row * kv_heads + head - heads) * columns + column) * width
            tl.store(keys + stored + place, turned.to(kind), mask=inside)


@triton.jit
def _attend_kernel(
    queries, keys, values, lengths, sums, highest, totals, kv_heads, columns, width, split, scale,
    GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Softmax over a part of a row's keys: unscaled sums [R KV, splits, GROUP_BLOCK, D], the highest score, and the
    total of the weights, by which `_join_kernel` joins the parts."""
    head, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    member, place = tl.arange(0, GROUP_BLOCK), tl.arange(0, BLOCK)
    inside = place < width
    asked = (member < GROUP)[:, None] & inside[None, :]
    query = tl.load(queries + (head * GROUP + member[:, None]) * width + place[None, :], mask=asked, other=0.0)
    query = query.to(tl.float32) * scale
    stored = tl.minimum(tl.load(lengths + head // kv_heads) + 1, columns)
    most = tl.full((GROUP_BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((GROUP_BLOCK,), tl.float32)
    summed = tl.zeros((GROUP_BLOCK, BLOCK), tl.float32)
    for first in range(part * split, tl.minimum((part + 1) * split, stored), COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        seen = column < tl.minimum((part + 1) * split, stored)
        at = (head * columns + column[:, None]) * width + place[None, :]
        held = seen[:, None] & inside[None, :]
        key = tl.load(keys + at, mask=held, other=0.0).to(tl.float32)
        scores = tl.sum(query[:, None, :] * key[None, :, :], axis=2)  # [GROUP_BLOCK, COLUMNS]
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, axis=1))
        shrink = tl.exp(most - higher)
        weights = tl.exp(scores - higher[:, None])
        value = tl.load(values + at, mask=held, other=0.0).to(tl.float32)
        summed = summed * shrink[:, None] + tl.sum(weights[:, :, None] * value[None, :, :], axis=1)
        total = total * shrink + tl.sum(weights, axis=1)
        most = higher
    at = (head * parts + part) * GROUP_BLOCK + member
    tl.store(highest + at, most)
    tl.store(totals + at, total)
    tl.store(sums + at[:, None] * width + place[None, :], summed, mask=inside[None, :])


@triton.jit
def _join_kernel(
    sums, highest, totals, out, parts, width,
    GROUP: tl.constexpr, GROUP_BLOCK: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    head, member = tl.program_id(0).to(tl.int64), tl.program_id(1)
    part, place = tl.arange(0, PARTS), tl.arange(0, BLOCK)
    inside = place < width
    at = (head * parts + part) * GROUP_BLOCK + member
    most = tl.load(highest + at, mask=part < parts, other=float("-inf"))
    weights = tl.exp(most - tl.max(most))  # the first part is never empty
    total = tl.sum(weights * tl.load(totals + at, mask=part < parts, other=0.0))
    summed = tl.load(
        sums + at[:, None] * width + place[None, :], mask=(part < parts)[:, None] & inside[None, :], other=0.0
    )
    value = tl.sum(weights[:, None] * summed, axis=0) / total
    tl.store(out + (head * GROUP + member) * width + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gelu_multiply_kernel(gate_up, out, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < width
    gate = tl.load(gate_up + row * 2 * width + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + (row * 2 + 1) * width + place, mask=inside, other=0.0).to(tl.float32)
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
    tanh = 1.0 - 2.0 / (tl.exp(2.0 * inner) + 1.0)
    gate = (0.5 * gate * (1.0 + tanh)).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + place, (gate * up).to(out.dtype.element_ty), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.decode`, also for the others."""
    out, width = torch.empty_like(x), x.shape[1]
    _rms_norm_kernel[(len(x),)](x, weight, out, width, eps, BLOCK=triton.next_power_of_2(width))
    return out


def add_norms(x: Tensor, residual: Tensor, weight: Tensor, next_weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total, normed, width = torch.empty_like(residual), torch.empty_like(residual), x.shape[1]
    block = triton.next_power_of_2(width)
    _add_norms_kernel[(len(x),)](x, residual, weight, next_weight, total, normed, width, eps, BLOCK=block)
    return total, normed


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
    kv_heads, columns, width = keys.shape[1:]
    heads = qkv.shape[1] // width - 2 * kv_heads
    queries = qkv.new_empty(len(qkv), kv_heads, heads // kv_heads, width)
    _rotate_and_store_kernel[(len(qkv), heads + 2 * kv_heads)](
        qkv, query_weight, key_weight, cos, sin, lengths, keys, values, queries,
        heads, kv_heads, columns, width, eps, BLOCK=triton.next_power_of_2(width),
    )  # fmt: skip
    return queries


def attend_slots(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, scale: float) -> Tensor:
    rows, kv_heads, group, width = queries.shape
    columns = keys.shape[2]
    parts = min(_MOST_SPLITS, triton.cdiv(columns, _SPLIT))
    split = triton.cdiv(columns, parts)
    sizes = {"GROUP": group, "GROUP_BLOCK": triton.next_power_of_2(group), "BLOCK": triton.next_power_of_2(width)}
    sums = queries.new_empty(rows * kv_heads, parts, sizes["GROUP_BLOCK"], width, dtype=torch.float32)
    highest, totals = sums.new_empty(sums.shape[:3]), sums.new_empty(sums.shape[:3])
    _attend_kernel[(rows * kv_heads, parts)](
        queries, keys, values, lengths, sums, highest, totals, kv_heads, columns, width, split, scale,
        COLUMNS=_COLUMNS, **sizes,
    )  # fmt: skip
    out = torch.empty_like(queries)
    _join_kernel[(rows * kv_heads, group)](
        sums, highest, totals, out, parts, width, PARTS=triton.next_power_of_2(parts), **sizes
    )
    return out


def gelu_multiply(gate_up: Tensor) -> Tensor:
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(rows, width)
    _gelu_multiply_kernel[(rows, triton.cdiv(width, _BLOCK))](gate_up, out, width, BLOCK=_BLOCK)
    return out
