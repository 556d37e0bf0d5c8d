"""A linear layer with int4 weights, and the kernels that multiply by them.

In a weight [N, K] each run of G neighbours along K (G is the group size) shares a scale and a zero, and each
element is one of 16 steps q:

    w = (q - 8) * scale + zero        q in 0 … 15

That is the form of torch's int4 kernels ("tinygemm"); scale, zero and q are those of torchao. Checkpoints
store q, two to a byte, with scale and zero in bfloat16 (`Int4Weight`): the same on every device. Each kernel wants the
bytes in its own order, which depends on the device and even on the processor, so `Int4Linear` packs them where it
runs. Processors with AVX-512 VNNI multiply with our own kernel (`cpu_kernels`), in the order of torch's.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.nn.layers import MANY_ROWS, has_bfloat16_tiles, multiplies_bfloat16_fast

PACKED, SCALE, ZERO = "weight_packed", "weight_scale", "weight_zero"
SCALE_DTYPE = torch.bfloat16
OUTPUTS_MULTIPLE = 16
"""Of the CPU kernel; CUDA's wants 8."""
_STEPS = 16
_SMALLEST_SCALE = 1e-6  # as in torchao: a group of equal weights has no range
_TILE_ROWS = 8  # rows of one block of CUDA's kernel
_BLOCK_ROWS = 64  # the CPU kernel arranges this many rows together at most
_ELEMENTS_AT_A_TIME = 2**24  # bounds what quantising and packing hold beside the weights
_WIDENED_AT_A_TIME = 2**20  # a part of the weights that stays in a processor's cache
_OLDEST_CUDA = (8, 0)  # compute capability that torch's int4 kernel needs (bfloat16 tensor cores)


@dataclass(frozen=True)
class Int4Weight:
    """A quantised weight [N, K], the same on every device.

    packed: uint8 [N, K/2], the even column in the upper half of the byte. scale, zero: bfloat16 [N, K/G].
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.packed.shape[0], self.packed.shape[1] * 2

    @property
    def group_size(self) -> int:
        return self.shape[1] // self.scale.shape[1]

    def steps(self) -> torch.Tensor:
        """q: int32 [N, K], 0 to 15."""
        return _unpacked(self.packed)

    def dequantize(self) -> torch.Tensor:
        """float32 [N, K]: the very numbers that the kernels multiply by."""
        groups = (self.steps() - _STEPS // 2).float().unflatten(1, (-1, self.group_size))
        return (groups * self.scale.float()[:, :, None] + self.zero.float()[:, :, None]).flatten(1)

    def to(self, device: torch.device) -> "Int4Weight":
        return Int4Weight(self.packed.to(device), self.scale.to(device), self.zero.to(device))


def stored_shapes(out_features: int, in_features: int, group_size: int) -> dict[str, tuple[int, int]]:
    """Shapes of the tensors that take the place of a weight [N, K] in a checkpoint."""
    groups = (out_features, in_features // group_size)
    return {PACKED: (out_features, in_features // 2), SCALE: groups, ZERO: groups}


def quantize_weight(weight: torch.Tensor, group_size: int) -> Int4Weight:
    """Quantises a weight [N, K] as torchao does for tinygemm: 16 steps between each group's least and largest weight.

    Computed in float32 with scale and zero already rounded to bfloat16, so that q fits the stored numbers and
    float32 and bfloat16 models get the same int4 weights. Raises CheckpointError for NaN or infinity.
    """
    parts = [_quantize_rows(rows, group_size) for rows in weight.detach().split(_rows_at_a_time(weight.shape[1]))]
    packed, scale, zero = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not bool(scale.isfinite().all() and zero.isfinite().all()):
        raise CheckpointError("A weight to quantise holds NaN or infinity. Download the checkpoint again.")
    return Int4Weight(packed, scale, zero)


def _quantize_rows(rows: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    groups = rows.float().unflatten(1, (-1, group_size))
    least, most = groups.aminmax(dim=-1, keepdim=True)
    scale = ((most - least) / (_STEPS - 1)).clamp(min=_SMALLEST_SCALE)
    zero = (least + scale * (_STEPS // 2)).to(SCALE_DTYPE)
    scale = scale.to(SCALE_DTYPE)
    first = zero.float() - scale.float() * (_STEPS // 2)
    steps = ((groups - first) / scale.float()).round().clamp(0, _STEPS - 1).to(torch.uint8).flatten(1)
    return steps[:, ::2] << 4 | steps[:, 1::2], scale[:, :, 0], zero[:, :, 0]


def _rows_at_a_time(in_features: int) -> int:
    return max(_BLOCK_ROWS, _ELEMENTS_AT_A_TIME // in_features // _BLOCK_ROWS * _BLOCK_ROWS)


class Int4Linear(nn.Module):
    """A linear layer with int4 weights: x [..., K] -> [..., N].

    Holds the weights as the kernel of its device wants them, and only so; `int4_weight` gives them back,
    exactly. In state_dict, in files and on the way to another device they have the form of `Int4Weight`.

    torch's kernels take activations in bfloat16, whatever their type; ours turns them into 16-bit integers (see
    `cpu_kernels`). Many rows are multiplied by dequantised weights, part by part: in bfloat16 on CUDA, where the int4
    kernel is 6 to 13 times slower for them (pytorch/ao 3496); on a CPU in float32 for the exact result, or in bfloat16
    where that is faster than the kernel. For inference only: the kernels have no gradient.
    """

    qdata: torch.Tensor | None
    scale_and_zero: torch.Tensor | None

    def __init__(self, in_features: int, out_features: int, group_size: int, bias: nn.Parameter | None = None):
        """Without weights yet: see `pack`."""
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.bias = bias
        self.register_buffer("qdata", None, persistent=False)
        self.register_buffer("scale_and_zero", None, persistent=False)  # bfloat16 numbers [K/G, N, 2]

    @classmethod
    def from_weight(cls, weight: Int4Weight, bias: nn.Parameter | None) -> "Int4Linear":
        out_features, in_features = weight.shape
        linear = cls(in_features, out_features, weight.group_size, bias)
        linear.pack(weight)
        return linear

    def pack(self, weight: Int4Weight) -> None:
        """Arranges `weight` for the kernel of the device that it lies on."""
        assert weight.shape == (self.out_features, self.in_features)
        assert weight.group_size == self.group_size
        self.qdata = _pack(weight)
        self.scale_and_zero = torch.stack((weight.scale, weight.zero), dim=-1).transpose(0, 1).contiguous()

    def int4_weight(self) -> Int4Weight:
        """The weights in the form that is the same on every device; the inverse of `pack`."""
        assert self.qdata is not None
        assert self.scale_and_zero is not None
        scale, zero = self.scale_and_zero.unbind(dim=-1)
        on_cpu = self.qdata.device.type == "cpu"
        steps = (part.steps.transpose(1, 2).flatten(0, 1) for part in _parts(self.qdata, _ELEMENTS_AT_A_TIME))
        if not on_cpu:
            steps = (steps for _, steps in _tile_rows(self.qdata, self.in_features, _ELEMENTS_AT_A_TIME))
        packed = torch.cat([each[:, ::2] << 4 | each[:, 1::2] for each in steps])
        return Int4Weight(packed, scale.T.contiguous(), zero.T.contiguous())

    def _multiply(self, x: torch.Tensor, scale_and_zero: torch.Tensor) -> torch.Tensor:
        """x [M, K] -> [M, N] by the device's kernel; torch's in bfloat16: for float32 the CPU's has no fast path."""
        assert self.qdata is not None
        on_cpu, ops = x.device.type == "cpu", torch.ops.aten
        if on_cpu and (kernels := self._own_kernels(x)) is not None:
            return cpu_kernels.multiply(kernels, x, self.qdata, scale_and_zero, self.group_size)
        kernel = ops._weight_int4pack_mm_for_cpu if on_cpu else ops._weight_int4pack_mm
        return kernel(x.to(torch.bfloat16).contiguous(), self.qdata, self.group_size, scale_and_zero).to(x.dtype)

    def _widens(self, x: torch.Tensor) -> bool:
        return x.dtype == torch.float32 or has_bfloat16_tiles() or self._own_kernels(x) is None

    def _own_kernels(self, x: torch.Tensor) -> ctypes.CDLL | None:
        """Our kernels where they can multiply x by these weights; where not, torch's can."""
        kernels = cpu_kernels.library_for(x)
        fits = self.out_features % cpu_kernels.OUTPUTS_MULTIPLE == 0
        return kernels if kernels is not None and fits and _in_plain_blocks() else None

    def _multiply_widened(self, x: torch.Tensor) -> torch.Tensor:
        """x [M, K] -> [M, N] on a CPU, by parts of the weights as plain numbers; each lives for its product only."""
        assert self.qdata is not None
        assert self.scale_and_zero is not None
        dtype = x.dtype if multiplies_bfloat16_fast() else torch.float32
        wide, out = x.to(dtype), x.new_empty(len(x), self.out_features)
        for part in _parts(self.qdata, _WIDENED_AT_A_TIME):
            rows = slice(part.start, part.stop)
            weight = part.widened(self.scale_and_zero[:, rows].to(dtype))
            out[:, rows] = wide @ weight
        return out

    def _multiply_dequantized(self, x: torch.Tensor) -> torch.Tensor:
        """x [M, K] -> [M, N] on CUDA: dequantises some rows of the weight at a time and multiplies in bfloat16."""
        assert self.qdata is not None
        assert self.scale_and_zero is not None
        narrow, out = x.to(SCALE_DTYPE), x.new_empty(len(x), self.out_features)
        for rows, steps in _tile_rows(self.qdata, self.in_features, _ELEMENTS_AT_A_TIME):
            scale, zero = self.scale_and_zero[:, rows].transpose(0, 1)[..., None].unbind(dim=2)  # [rows, K/G, 1]
            signed = (steps.to(SCALE_DTYPE) - _STEPS // 2).unflatten(1, (-1, self.group_size))
            out[:, rows] = (narrow @ torch.addcmul(zero, signed, scale).flatten(1).T).to(x.dtype)
        return out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.scale_and_zero is not None
        rows = x.reshape(-1, self.in_features)
        many = len(rows) >= MANY_ROWS
        if many and x.device.type == "cuda":
            out = self._multiply_dequantized(rows)
        elif many and x.device.type == "cpu" and self._widens(rows):
            out = self._multiply_widened(rows)
        else:
            out = self._multiply(rows, self.scale_and_zero)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Int4Linear":
        """As nn.Module's, but scale and zero keep their type; for another kind of device weights are arranged anew."""
        if self.qdata is None or self.scale_and_zero is None:
            return super()._apply(fn, recurse)
        numbers = self.scale_and_zero
        device = fn(numbers).device
        if device.type == self.qdata.device.type:
            super()._apply(fn, recurse)
            self.scale_and_zero = numbers.to(device)
            return self
        require_int4(device)
        weight = self.int4_weight().to(device)
        self.qdata = self.scale_and_zero = None
        super()._apply(fn, recurse)
        self.pack(weight)
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.qdata is not None:
            weight = self.int4_weight()
            destination |= {prefix + PACKED: weight.packed, prefix + SCALE: weight.scale, prefix + ZERO: weight.zero}

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, torch.Tensor],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        shapes = stored_shapes(self.out_features, self.in_features, self.group_size)
        names = [prefix + name for name in shapes]
        others = {name: tensor for name, tensor in state_dict.items() if name not in names}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        if missing := [name for name in names if name not in state_dict]:
            missing_keys += missing
            return
        for name, shape in zip(names, shapes.values(), strict=True):
            if tuple(state_dict[name].shape) != shape:
                error_msgs.append(f"{name} is {list(state_dict[name].shape)}, expected {list(shape)}")
                return
        self.pack(Int4Weight(*(state_dict[name] for name in names)))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, group_size={self.group_size}"


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [N, K/2] -> int32 [N, K], 0 to 15."""
    return torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1).int()


def _pack(weight: Int4Weight) -> torch.Tensor:
    """The steps of `weight` as the kernel of its device wants them."""
    device, in_features = weight.packed.device, weight.shape[1]
    require_int4(device)
    if device.type == "cpu":
        # Blocks of rows follow one another, so that parts can be packed alone: int32 is 8 times the bytes.
        parts = weight.packed.split(_rows_at_a_time(in_features))
        return torch.cat([torch.ops.aten._convert_weight_to_int4pack_for_cpu(_unpacked(part), 1) for part in parts])
    return _pack_tiles(weight.packed.contiguous(), _inner_k_tiles(in_features))


def _pack_tiles(packed: torch.Tensor, inner_k_tiles: int) -> torch.Tensor:
    """uint8 [N, K/2] in the order of CUDA's kernel: int32 [N/8, K/(16 inner_k_tiles), 32, inner_k_tiles/2]."""
    return torch.ops.aten._convert_weight_to_int4pack(packed, inner_k_tiles)


def _inner_k_tiles(in_features: int) -> int:
    # As many tiles of 16 columns as fit side by side: torchao pads K to 1024 instead, up to 1.78 times the bytes.
    return next(tiles for tiles in (8, 4, 2) if in_features % (16 * tiles) == 0)


def _tile_rows(qdata: torch.Tensor, in_features: int, elements: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """A weight in the order of CUDA's kernel as steps, uint8 [rows, K], with their rows; so many elements at a time."""
    columns = 16 * _inner_k_tiles(in_features)
    order = _tile_order(_inner_k_tiles(in_features), qdata.device)
    blocks = max(1, elements // (_TILE_ROWS * in_features))
    for start in range(0, len(qdata), blocks):
        part = _nibbles(qdata[start : start + blocks])[..., order]  # [blocks, K/columns, 8 * columns]
        steps = part.unflatten(-1, (_TILE_ROWS, columns)).transpose(1, 2).reshape(-1, in_features)
        yield slice(start * _TILE_ROWS, start * _TILE_ROWS + len(steps)), steps


def _nibbles(qdata: torch.Tensor) -> torch.Tensor:
    """int32 [N/8, K/columns, 32, n] -> its half bytes, uint8 [N/8, K/columns, 8 * columns], in the order of memory."""
    held = qdata.contiguous().view(torch.uint8).flatten(2)
    return torch.stack((held & 15, held >> 4), dim=-1).flatten(2)


@cache
def _tile_order(inner_k_tiles: int, device: torch.device) -> torch.Tensor:
    """Where CUDA's kernel puts each element of a block of 8 rows and 16 * inner_k_tiles columns.

    Found by packing one block of element numbers, a digit of 4 bits at a time.
    """
    numbers = torch.arange(_TILE_ROWS * 16 * inner_k_tiles, device=device).view(_TILE_ROWS, -1)
    held = torch.zeros(numbers.numel(), dtype=torch.long, device=device)
    for shift in (0, 4, 8):
        digits = (numbers >> shift & 15).to(torch.uint8)
        packed = _pack_tiles((digits[:, ::2] << 4 | digits[:, 1::2]).contiguous(), inner_k_tiles)
        held += _nibbles(packed).flatten().long() << shift
    order = held.argsort()
    assert torch.equal(held[order], numbers.flatten()), "torch's int4 kernel packs weights in an unknown order"
    return order


@dataclass(frozen=True)
class _Part:
    """Rows `start` to `stop` of a weight as the CPU kernel arranges them: steps, uint8 [blocks, K, rows of one]."""

    start: int
    stop: int
    steps: torch.Tensor

    def widened(self, scale_and_zero: torch.Tensor) -> torch.Tensor:
        """The transposed weights [K, rows]; scale_and_zero [K/G, rows, 2] has the wanted type."""
        scale, zero = scale_and_zero.movedim(-1, 0).contiguous()
        signed = (self.steps.view(torch.int8) - _STEPS // 2).transpose(0, 1)  # [K, blocks, rows]
        weight = signed.to(scale.dtype, memory_format=torch.contiguous_format).view(len(scale), -1, scale.shape[1])
        return torch.addcmul(zero[:, None], weight, scale[:, None], out=weight).flatten(0, 1)


def _parts(qdata: torch.Tensor, elements: int) -> Iterator[_Part]:
    """A weight [N, K/2] in the CPU kernel's arrangement, in parts of about so many elements.

    Rows come in blocks, in each the steps of a column lie together; what is left over is one smaller block.
    """
    outputs, inputs = qdata.shape[0], qdata.shape[1] * 2
    block = len(_lanes(_BLOCK_ROWS))
    whole = outputs - outputs % block
    at_a_time = max(1, elements // (inputs * block)) * block
    ends = [*range(at_a_time, whole, at_a_time), whole, outputs]
    for start, stop in zip([0, *ends], ends, strict=False):
        if start < stop:
            lanes = _lanes(min(block, stop - start))
            each = qdata[start:stop].view(-1, inputs, len(lanes) // 2)
            steps = torch.cat((each & 15, each >> 4), dim=-1)
            in_order = torch.equal(lanes, torch.arange(len(lanes)))
            yield _Part(start, stop, steps if in_order else steps[..., lanes.argsort()])


@cache
def _lanes(rows: int) -> torch.Tensor:
    """Which row of its block each lane holds, low halves of the bytes first; found out by packing row numbers.

    The CPU kernel's blocks have 64 rows, 32 or, at a weight's end, what is left: that depends on the processor.
    """
    numbers = torch.arange(2 * rows, device="cpu").view(rows, 2)
    digits = [
        torch.ops.aten._convert_weight_to_int4pack_for_cpu((numbers // base % 16).int(), 1).flatten().long()
        for base in (1, 16)
    ]
    low, high = ((digits[0] >> shift & 15) + 16 * (digits[1] >> shift & 15) for shift in (0, 4))
    half = int((low % 2).argmax())  # bytes until the second column begins
    block = torch.cat((low[:half], high[:half]))
    expected = block // 2 * 2 + torch.arange(2)[:, None]  # [column, lane]
    found = torch.cat((low.view(-1, 2, half), high.view(-1, 2, half)), dim=-1)
    blocks = torch.arange(len(found))[:, None, None] * 4 * half
    assert torch.equal(found, expected + blocks), "torch's int4 kernel arranges weights in an unknown way"
    return block // 2


@cache
def _in_plain_blocks() -> bool:
    """Whether torch packs blocks of as many rows as cpu_kernels takes, in order."""
    return torch.equal(_lanes(_BLOCK_ROWS), torch.arange(cpu_kernels.OUTPUTS_MULTIPLE, device="cpu"))


def int4_obstacle(device: torch.device) -> str | None:
    """Why int4 weights can't be used on `device`, as a sentence; None where they can."""
    if device.type == "cpu":
        return None
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= _OLDEST_CUDA:
            return None
        return (
            f"int4 needs a GPU of compute capability {_OLDEST_CUDA[0]}.{_OLDEST_CUDA[1]} or later, "
            f"this one has {capability[0]}.{capability[1]}. Leave int4 off."
        )
    return f"int4 has no kernel for {device.type.upper()} devices. Leave int4 off, or choose the CPU."


def require_int4(device: torch.device) -> None:
    """Raises UnsupportedOptionError where `device` can't run int4 weights."""
    if reason := int4_obstacle(device):
        raise UnsupportedOptionError(reason)
