"""The block formats of ggml: small integers that share a scale, and the weights that they stand for.

A row is a sequence of blocks. Rounding follows ggml's float32 arithmetic, bit for bit. Source: ggml-quants.c in
ggml-org/ggml.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

PART = 2**22
"""Weights that are computed at a time, which bounds the memory beside the result."""


@dataclass(frozen=True)
class BlockType:
    """A block holds `elements` weights in `num_bytes` bytes."""

    name: str
    elements: int
    num_bytes: int


BLOCK_TYPES: Mapping[int, BlockType] = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    30: BlockType("BF16", 1, 2),
}
"""The types that `dequantize` reads, by ggml's number."""

_OTHER_NAMES: Mapping[int, str] = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip

PLAIN_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def type_name(number: int) -> str:
    """ggml's name of any of its types, for messages."""
    if number in BLOCK_TYPES:
        return BLOCK_TYPES[number].name
    return _OTHER_NAMES.get(number, f"unknown type {number}")


def dequantize(data: torch.Tensor, kind: BlockType, out_dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The weights [rows, K] of contiguous blocks, uint8 [rows, K / elements * num_bytes].

    They are computed in float32, then rounded to `out_dtype`. F32, F16 and BF16 data that need no rounding stay a view.
    """
    assert data.dtype == torch.uint8
    assert data.shape[1] % kind.num_bytes == 0
    if kind.name in PLAIN_TYPES:
        return data.view(PLAIN_TYPES[kind.name]).to(out_dtype)
    blocks = data.view(-1, kind.num_bytes)
    shape = (data.shape[0], data.shape[1] // kind.num_bytes * kind.elements)
    weights = torch.empty(shape, dtype=out_dtype, device=data.device)
    write, at_once = _WRITERS[kind.name], max(1, PART // kind.elements)
    parts = zip(blocks.split(at_once), weights.view(-1, kind.elements).split(at_once), strict=True)
    if out_dtype == torch.float32:
        for part, out in parts:
            write(part, out)
        return weights
    scratch = torch.empty(min(at_once, len(blocks)), kind.elements, device=data.device)
    for part, out in parts:
        exact = scratch[: len(part)]
        write(part, exact)
        out.copy_(exact)
    return weights


def q4_0_steps(data: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers and scales of contiguous Q4_0 blocks, uint8 [rows, K / 32 * 18]; a weight is (q - 8) * scale.

    Returns q, from 0 to 15, as uint8 [rows, K / 2] and the scales, float16 [rows, K / 32]. Byte j holds column 2j in
    its upper half and column 2j + 1 in its lower half.
    """
    blocks = data.view(-1, 18)
    packed = torch.empty(len(blocks), 16, dtype=torch.uint8, device=data.device)
    at_once = max(1, PART // 32)
    for part, out in zip(blocks.split(at_once), packed.split(at_once), strict=True):
        pairs = _fields(part[:, 2:], 4, 16).unflatten(1, (16, 2))
        torch.add(pairs[..., 1], pairs[..., 0], alpha=16, out=out)
    rows = data.shape[0]
    return packed.view(rows, -1), _float16(blocks[:, :2]).reshape(rows, -1)


def _float16(pairs: torch.Tensor) -> torch.Tensor:
    """Numbers, float16 [n, m], that are stored in bytes [n, 2m]."""
    return pairs.view(torch.float16)


def _fields(packed: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """Splits bytes [n, m] into fields of `bits` bits, uint8 [n, m * 8 / bits].

    Each `run` of bytes gives the lowest fields of all its bytes, then the next higher ones.
    """
    packed = packed.contiguous()
    shifted = [(packed >> shift).unflatten(1, (-1, run)) for shift in range(0, 8, bits)]
    return torch.stack(shifted, dim=2).bitwise_and_(2**bits - 1).flatten(1)


def _joined(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Integers, int8, from their four low bits and the bits above these."""
    return low.add_(high, alpha=16).view(torch.int8)


def _scale(q: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, offset: torch.Tensor | None = None) -> None:
    """Writes q * scale + offset to `out`; q and out are [n, elements], scale and offset are [n, groups]."""
    out.copy_(q)
    groups = out.unflatten(1, (scale.shape[1], -1))
    groups.mul_(scale.float()[..., None])
    if offset is not None:
        groups.add_(offset.float()[..., None])


def _q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scale, packed = blocks.split((2, 16), dim=1)
    q = _fields(packed, 4, 16).view(torch.int8).sub_(8)
    _scale(q, _float16(scale), out)


def _q4_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scale, offset, packed = blocks.split((2, 2, 16), dim=1)
    _scale(_fields(packed, 4, 16), _float16(scale), out, _float16(offset))


def _q5_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scale, high, low = blocks.split((2, 4, 16), dim=1)
    q = _joined(_fields(low, 4, 16), _fields(high, 1, 1)).sub_(16)
    _scale(q, _float16(scale), out)


def _q5_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scale, offset, high, low = blocks.split((2, 2, 4, 16), dim=1)
    q = _joined(_fields(low, 4, 16), _fields(high, 1, 1))
    _scale(q, _float16(scale), out, _float16(offset))


def _q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    scale, q = blocks.split((2, 32), dim=1)
    _scale(q.view(torch.int8), _float16(scale), out)


def _q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    head, packed = blocks.split((16, 128), dim=1)
    scale, offset = _scales_and_offsets(head)
    _scale(_fields(packed, 4, 32), scale, out, offset)


def _q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    head, high, low = blocks.split((16, 32, 128), dim=1)
    scale, offset = _scales_and_offsets(head)
    _scale(_joined(_fields(low, 4, 32), _fields(high, 1, 32)), scale, out, offset)


def _scales_and_offsets(head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The scales and offsets of the 8 groups of a Q4_K or Q5_K block, float32 [n, 8], from its first 16 bytes.

    Each is a number from 0 to 63 times a float16 step of the block; offsets are negative. The numbers of groups 0 to 3
    have bytes of their own, with the two top bits of groups 4 to 7 above them; the last four bytes hold the four low
    bits of those, the scale's in the lower half.
    """
    steps, scale, offset, low = head.split(4, dim=1)
    scales = torch.cat([scale & 63, (low & 15) | (scale >> 6 << 4)], dim=1)
    offsets = torch.cat([offset & 63, (low >> 4) | (offset >> 6 << 4)], dim=1)
    scale_step, offset_step = _float16(steps).float().split(1, dim=1)
    return scales * scale_step, offsets * -offset_step


def _q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    low, high, scale, step = blocks.split((128, 64, 16, 2), dim=1)
    q = _joined(_fields(low, 4, 64), _fields(high, 2, 32)).sub_(32)
    _scale(q, scale.view(torch.int8) * _float16(step).float(), out)


_WRITERS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
"""Each writes the weights of n blocks, uint8 [n, num_bytes], to float32 [n, elements]."""
