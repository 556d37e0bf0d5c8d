"""A linear layer with int4 weights, and the kernels that multiply by them.

Each run of G neighbours along K in a weight [N, K] (G is the group size) shares a scale and a zero, and each element
is one of 16 steps q:

    w = (q - 8) * scale + zero        q in 0 … 15

This is the format of torch's int4 kernels ("tinygemm"), with the scale, zero and q of torchao. Checkpoints store
`Int4Weight`: two q a byte, scale and zero in bfloat16, the same on every device. Each kernel needs the bytes in its own
order, which depends on the device and even on the processor, so `Int4Linear` packs them on the device where it runs.
GGUF's Q4_0 is this format at G = 32, with its scale in float16 and no zero. Two bfloat16 numbers sum
exactly to that scale; they take the slots of scale and zero.
On a CPU our own kernel (`kernels.cpu`), where it can be had, multiplies by the bytes in torch's order.
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
from gemma3_core.kernels.cpu_layer import Weight, int4_weight
from gemma3_core.kernels.huge_pages import in_huge_pages
from gemma3_core.nn.layers import MANY_ROWS, has_bfloat16_tiles, multiplies_bfloat16_fast

PACKED, SCALE, ZERO = "weight_packed", "weight_scale", "weight_zero"
SCALE_DTYPE = torch.bfloat16
SYMMETRIC_SCALE_DTYPE = torch.float16
OUTPUTS_MULTIPLE = 16
"""The CPU kernel needs a multiple of this many outputs; CUDA's kernel needs 8."""
TRAINING_ADVICE = (
    "Load the model in full precision (without quantization_config) to train it or an adapter. A finished adapter goes "
    "beside int4 weights by load_adapter."
)
_STEPS = 16
_SMALLEST_SCALE = 1e-6  # as in torchao: a group of equal weights has no range
_TILE_ROWS = 8  # rows of one block of CUDA's kernel
_BLOCK_ROWS = 64  # rows of the CPU kernel's largest block
_ELEMENTS_AT_A_TIME = 2**24  # limits the extra memory of quantising and packing
_QUANTIZED_AT_A_TIME = 2**17  # on a CPU; fits in its cache as float32, twice
_WIDENED_AT_A_TIME = 2**20  # fits in a processor's cache
_OLDEST_CUDA = (8, 0)  # compute capability that torch's int4 kernel needs (bfloat16 tensor cores)


@dataclass(frozen=True)
class Int4Weight:
    """A quantised weight [N, K], the same on every device.

    packed: uint8 [N, K/2], the even column in the upper half of the byte. scale, zero: bfloat16 [N, K/G]; where the
    scale is float16 the weight is symmetric: zero is 0.
    """

    packed: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor

    @classmethod
    def symmetric(cls, packed: torch.Tensor, scale: torch.Tensor) -> "Int4Weight":
        """A weight without zeros: packed as above, scale float16 [N, K/G]."""
        return cls(packed, scale, torch.zeros_like(scale, dtype=SCALE_DTYPE))

    @property
    def is_symmetric(self) -> bool:
        return self.scale.dtype == SYMMETRIC_SCALE_DTYPE

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
        """float32 [N, K]: exactly the numbers that the kernels multiply by."""
        groups = (self.steps() - _STEPS // 2).float().unflatten(1, (-1, self.group_size))
        return (groups * self.scale.float()[:, :, None] + self.zero.float()[:, :, None]).flatten(1)

    def to(self, device: torch.device) -> "Int4Weight":
        return Int4Weight(self.packed.to(device), self.scale.to(device), self.zero.to(device))


def stored_shapes(out_features: int, in_features: int, group_size: int) -> dict[str, tuple[int, int]]:
    """Shapes of the tensors that stand for a weight [N, K] in a checkpoint."""
    groups = (out_features, in_features // group_size)
    return {PACKED: (out_features, in_features // 2), SCALE: groups, ZERO: groups}


def quantize_weight(weight: torch.Tensor, group_size: int) -> Int4Weight:
    """Quantises a weight [N, K] as torchao does: 16 steps between the smallest and the largest weight of each group.

    q is computed in float32 from the scale and zero that are stored, rounded to bfloat16, so float32 and bfloat16
    models get the same int4 weights. Raises CheckpointError for NaN or infinity.
    """
    at_a_time = _rows_at_a_time(weight.shape[1])
    if weight.device.type == "cpu":
        at_a_time = max(1, _QUANTIZED_AT_A_TIME // weight.shape[1])
    parts = [_quantize_rows(rows, group_size) for rows in weight.detach().split(at_a_time)]
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
    steps = (groups - first).div_(scale.float()).round_().clamp_(0, _STEPS - 1).to(torch.uint8).flatten(1)
    return steps[:, ::2] << 4 | steps[:, 1::2], scale[:, :, 0], zero[:, :, 0]


def _rows_at_a_time(in_features: int) -> int:
    return max(_BLOCK_ROWS, _ELEMENTS_AT_A_TIME // in_features // _BLOCK_ROWS * _BLOCK_ROWS)


class _NoGradient(torch.autograd.Function):
    """(x, x times int4 weights) -> the second; its backward pass refuses."""

    @staticmethod
    def forward(_: Any, __: torch.Tensor, product: torch.Tensor) -> torch.Tensor:
        return product.clone()

    @staticmethod
    def backward(_: Any, *__: torch.Tensor) -> Any:
        raise UnsupportedOptionError(f"A gradient reached int4 weights, which can't be trained. {TRAINING_ADVICE}")


class Int4Linear(nn.Module):
    """A linear layer with int4 weights: x [..., K] -> [..., N].

    The weights are held only in the order of the device's kernel; `int4_weight` recovers them exactly. state_dict,
    files and copies to another kind of device use `Int4Weight`.

    torch's kernels multiply activations in bfloat16, ours as 16-bit integers (see `kernels.cpu`). Many rows are
    multiplied by dequantised weights, part by part: in bfloat16 on CUDA, where the int4 kernel is 6 to 13 times slower
    for them (pytorch/ao 3496); on a CPU in float32, or in bfloat16 if that is faster than the kernel. The kernels have
    no gradient.
    """

    symmetric = False
    """Whether scale_and_zero holds the two parts of a float16 scale. torch's kernels take bfloat16, and so the scale is
    rounded where they multiply: on CUDA, and few rows on a CPU without ours."""
    qdata: torch.Tensor  # None until `pack`, like scale_and_zero
    scale_and_zero: torch.Tensor

    def __init__(self, in_features: int, out_features: int, group_size: int, bias: nn.Parameter | None = None):
        """The layer has no weights before `pack`."""
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.bias = bias
        self.register_buffer("qdata", None, persistent=False)
        self.register_buffer("scale_and_zero", None, persistent=False)  # bfloat16 [K/G, N, 2]

    @classmethod
    def from_weight(cls, weight: Int4Weight, bias: nn.Parameter | None) -> "Int4Linear":
        out_features, in_features = weight.shape
        linear = cls(in_features, out_features, weight.group_size, bias)
        linear.pack(weight)
        return linear

    def pack(self, weight: Int4Weight) -> None:
        """Takes `weight`, in the order of its device's kernel."""
        assert weight.shape == (self.out_features, self.in_features)
        assert weight.group_size == self.group_size
        self.qdata = in_huge_pages(_pack(weight))
        self.symmetric = weight.is_symmetric and weight.packed.device.type == "cpu"
        scale = weight.scale.to(SCALE_DTYPE)
        second = (weight.scale.float() - scale.float()).to(SCALE_DTYPE) if self.symmetric else weight.zero
        self.scale_and_zero = in_huge_pages(torch.stack((scale, second), dim=-1).transpose(0, 1).contiguous())

    def int4_weight(self) -> Int4Weight:
        """The inverse of `pack`."""
        scale, zero = self.scale_and_zero.unbind(dim=-1)
        if self.qdata.device.type == "cpu":
            steps = (part.steps.transpose(1, 2).flatten(0, 1) for part in _parts(self.qdata, _ELEMENTS_AT_A_TIME))
        else:
            steps = (steps for _, steps in _tile_rows(self.qdata, self.in_features, _ELEMENTS_AT_A_TIME))
        packed = torch.cat([each[:, ::2] << 4 | each[:, 1::2] for each in steps])
        if self.symmetric:
            return Int4Weight.symmetric(packed, (scale.float() + zero.float()).T.to(SYMMETRIC_SCALE_DTYPE).contiguous())
        return Int4Weight(packed, scale.T.contiguous(), zero.T.contiguous())

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        """x [M, K] -> [M, N] by the device's kernel; torch's gets bfloat16, its only fast type on a CPU."""
        on_cpu, ops = x.device.type == "cpu", torch.ops.aten
        if on_cpu and (kernels := self._own_kernels(x)) is not None:
            numbers, block = self.scale_and_zero, _plain_block()
            return cpu_kernels.multiply(kernels, x, self.qdata, numbers, self.group_size, block, self.symmetric)
        kernel = ops._weight_int4pack_mm_for_cpu if on_cpu else ops._weight_int4pack_mm
        narrow = x.to(torch.bfloat16).contiguous()
        numbers = self.scale_and_zero
        if self.symmetric:  # the kernel takes one bfloat16 scale, the rounded one
            numbers = torch.stack((numbers[..., 0], torch.zeros_like(numbers[..., 1])), dim=-1)
        return kernel(narrow, self.qdata, self.group_size, numbers).to(x.dtype)

    def _wide_numbers(self, rows: slice, dtype: torch.dtype) -> torch.Tensor:
        """Scale and zero of some rows, [K/G, rows, 2]."""
        numbers = self.scale_and_zero[:, rows]
        if self.symmetric:
            scale = numbers.float().sum(dim=-1)
            return torch.stack((scale, torch.zeros_like(scale)), dim=-1).to(dtype)
        return numbers.to(dtype)

    def _widens(self, x: torch.Tensor) -> bool:
        return x.dtype == torch.float32 or has_bfloat16_tiles() or self._own_kernels(x) is None

    def _own_kernels(self, x: torch.Tensor) -> ctypes.CDLL | None:
        """Our kernels if they can multiply x by these weights, else None."""
        kernels = cpu_kernels.library_for(x)
        block = _plain_block() if kernels is not None else 0
        return kernels if block in cpu_kernels.BLOCKS and self.out_features % block == 0 else None

    def for_kernel(self, _dtype: torch.dtype) -> Weight | None:
        """The weight for `kernels.cpu_layer`, or None where it does not fit; activations may be of any type."""
        if type(self) is not Int4Linear or self.bias is not None:
            return None
        return int4_weight(self.qdata, self.scale_and_zero, self.group_size, _plain_block(), self.symmetric)

    def _multiply_widened(self, x: torch.Tensor) -> torch.Tensor:
        """x [M, K] -> [M, N] on a CPU: dequantises a part of the weight at a time and multiplies by it."""
        dtype = x.dtype if multiplies_bfloat16_fast() else torch.float32
        wide, out = x.to(dtype), x.new_empty(len(x), self.out_features)
        for part in _parts(self.qdata, _WIDENED_AT_A_TIME):
            rows = slice(part.start, part.stop)
            weight = part.widened(self._wide_numbers(rows, dtype))
            out[:, rows] = wide @ weight
        return out

    def _multiply_dequantized(self, x: torch.Tensor) -> torch.Tensor:
        """x [M, K] -> [M, N] on CUDA: the same, in bfloat16."""
        narrow, out = x.to(SCALE_DTYPE), x.new_empty(len(x), self.out_features)
        for rows, steps in _tile_rows(self.qdata, self.in_features, _ELEMENTS_AT_A_TIME):
            scale, zero = self.scale_and_zero[:, rows].transpose(0, 1)[..., None].unbind(dim=2)  # [rows, K/G, 1]
            signed = (steps.to(SCALE_DTYPE) - _STEPS // 2).unflatten(1, (-1, self.group_size))
            out[:, rows] = (narrow @ torch.addcmul(zero, signed, scale).flatten(1).T).to(x.dtype)
        return out

    @property
    def weight(self) -> torch.Tensor:
        """There is none to read or to train. Adapters ask for it first, so they are refused here, in a sentence."""
        raise UnsupportedOptionError(
            f"This layer has int4 weights, which take no adapter to train and have no `weight`. {TRAINING_ADVICE}"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self._product(x)
        with torch.no_grad():
            out = self._product(x)
        return _NoGradient.apply(x, out)

    def _product(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features)
        many = len(rows) >= MANY_ROWS
        if many and x.device.type == "cuda":
            out = self._multiply_dequantized(rows)
        elif many and x.device.type == "cpu" and self._widens(rows):
            out = self._multiply_widened(rows)
        else:
            out = self._multiply(rows)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Int4Linear":
        """Like nn.Module's, but scale and zero keep their type, and another kind of device packs the weights anew."""
        if self.qdata is None:
            return super()._apply(fn, recurse)
        numbers = self.scale_and_zero
        device = fn(numbers).device
        if device.type == self.qdata.device.type:
            super()._apply(fn, recurse)
            self.scale_and_zero = numbers.to(device)
            return self
        require_int4(device)
        weight = self.int4_weight().to(device)
        self.qdata = self.scale_and_zero = None  # type: ignore[assignment]
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
        if state_dict[names[1]].dtype == SYMMETRIC_SCALE_DTYPE and bool(state_dict[names[2]].any()):
            error_msgs.append(f"{names[2]} must be 0 beside a scale in float16")
            return
        self.pack(Int4Weight(*(state_dict[name] for name in names)))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, group_size={self.group_size}"


def block_outputs(device: torch.device) -> int:
    """Outputs of a block in the order of the device's kernel. The blocks of a weight follow one another."""
    return _BLOCK_ROWS if device.type == "cpu" else _TILE_ROWS


def _unpacked(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [N, K/2] -> int32 [N, K], 0 to 15."""
    return torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1).int()


def _pack(weight: Int4Weight) -> torch.Tensor:
    """The steps of `weight` in the order of its device's kernel."""
    device, in_features = weight.packed.device, weight.shape[1]
    require_int4(device)
    if device.type == "cpu":
        # Blocks of rows follow one another, so parts can be packed one by one.
        parts = weight.packed.split(_rows_at_a_time(in_features))
        block = _plain_block()
        if block and weight.shape[0] % block == 0:
            return torch.cat([_packed_in_blocks(part, block) for part in parts])
        # torch takes int32, 8 times the bytes.
        return torch.cat([torch.ops.aten._convert_weight_to_int4pack_for_cpu(_unpacked(part), 1) for part in parts])
    return _pack_tiles(weight.packed.contiguous(), _inner_k_tiles(in_features))


def _packed_in_blocks(packed: torch.Tensor, block: int) -> torch.Tensor:
    """uint8 [N, K/2] in the order of torch's CPU kernel where that is plain blocks: a column of a block is block / 2
    bytes, whose lower halves are the first half of the rows."""
    low, high = packed.reshape(-1, 2, block // 2, packed.shape[1]).unbind(dim=1)  # [blocks, block / 2, K/2]
    columns = torch.stack((low >> 4 | high & 240, low & 15 | high << 4), dim=-1).flatten(2)  # [blocks, block / 2, K]
    return columns.transpose(1, 2).reshape(packed.shape)


def _pack_tiles(packed: torch.Tensor, inner_k_tiles: int) -> torch.Tensor:
    """uint8 [N, K/2] in the order of CUDA's kernel: int32 [N/8, K/(16 inner_k_tiles), 32, inner_k_tiles/2]."""
    return torch.ops.aten._convert_weight_to_int4pack(packed, inner_k_tiles)


def _inner_k_tiles(in_features: int) -> int:
    # As many tiles of 16 columns as fit side by side: torchao pads K to 1024 instead, up to 1.78 times the bytes.
    return next(tiles for tiles in (8, 4, 2) if in_features % (16 * tiles) == 0)


def _tile_rows(qdata: torch.Tensor, in_features: int, elements: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Slices of rows and their steps, uint8 [rows, K], about `elements` at a time, from the order of CUDA's kernel."""
    columns = 16 * _inner_k_tiles(in_features)
    order = _tile_order(_inner_k_tiles(in_features), qdata.device)
    blocks = max(1, elements // (_TILE_ROWS * in_features))
    for start in range(0, len(qdata), blocks):
        part = _nibbles(qdata[start : start + blocks])[..., order]  # [blocks, K/columns, 8 * columns]
        steps = part.unflatten(-1, (_TILE_ROWS, columns)).transpose(1, 2).reshape(-1, in_features)
        yield slice(start * _TILE_ROWS, start * _TILE_ROWS + len(steps)), steps


def _nibbles(qdata: torch.Tensor) -> torch.Tensor:
    """int32 [N/8, K/columns, 32, n] -> its half bytes in memory order, uint8 [N/8, K/columns, 8 * columns]."""
    held = qdata.contiguous().view(torch.uint8).flatten(2)
    return torch.stack((held & 15, held >> 4), dim=-1).flatten(2)


@cache
def _tile_order(inner_k_tiles: int, device: torch.device) -> torch.Tensor:
    """The place of each element of a block of 8 rows and 16 * inner_k_tiles columns in the order of CUDA's kernel.

    Only the kernel knows that order, so one block of element numbers is packed, 4 bits of each number at a time.
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
    """Steps of rows `start` to `stop` - 1 in the CPU kernel's blocks: uint8 [blocks, K, rows of a block]."""

    start: int
    stop: int
    steps: torch.Tensor

    def widened(self, scale_and_zero: torch.Tensor) -> torch.Tensor:
        """The dequantised, transposed weights [K, rows], in the type of scale_and_zero [K/G, rows, 2]."""
        scale, zero = scale_and_zero.movedim(-1, 0).contiguous()
        signed = (self.steps.view(torch.int8) - _STEPS // 2).transpose(0, 1)  # [K, blocks, rows]
        weight = signed.to(scale.dtype, memory_format=torch.contiguous_format).view(len(scale), -1, scale.shape[1])
        return torch.addcmul(zero[:, None], weight, scale[:, None], out=weight).flatten(0, 1)


def _parts(qdata: torch.Tensor, elements: int) -> Iterator[_Part]:
    """Parts of about `elements` of a weight [N, K/2] in the CPU kernel's order.

    That order is blocks of rows (the last may be smaller), in which the steps of a column lie together.
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
    """The row in its block that each lane holds, low halves of the bytes first.

    A block has 64 or 32 rows, depending on the processor, or fewer at a weight's end. Only the kernel knows the order,
    so row numbers are packed to find it.
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
def _plain_block() -> int:
    """How many rows the blocks have that torch packs, if in order; else 0."""
    lanes = _lanes(_BLOCK_ROWS)
    return len(lanes) if torch.equal(lanes, torch.arange(len(lanes), device="cpu")) else 0


def int4_obstacle(device: torch.device) -> str | None:
    """A sentence that says why `device` can't run int4 weights; None if it can."""
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
    """Raises UnsupportedOptionError if `device` can't run int4 weights."""
    if reason := int4_obstacle(device):
        raise UnsupportedOptionError(reason)
