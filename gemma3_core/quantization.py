"""int4 weights: which layers, which group size, which kernel.

In a weight [N, K] each run of G neighbours along K (G is the group size) shares a scale and a zero, and each
element is one of 16 steps q:

    w = (q - 8) * scale + zero        q in 0 … 15

That is the form of torch's int4 kernels ("tinygemm"); scale, zero and q come from torchao. Stored are q, two to
a byte, and scale and zero in bfloat16: nothing of a device is in it (`Int4Weight`). How a kernel wants the bytes
arranged depends on the device and even on the processor, so `Int4Linear` arranges them where it runs.
"""

import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gemma3_core.errors import CheckpointError, UnsupportedOptionError

logger = logging.getLogger(__name__)

GROUP_SIZES = (128, 64, 32)
DEFAULT_GROUP_SIZE = 128
INT4_WEIGHT_ONLY = "int4_weight_only"
QUANT_METHOD = "int4_tinygemm"
"""In config.json's quantization_config: our stored form. (torchao's own pickles its tensor classes.)"""

PACKED, SCALE, ZERO = "weight_packed", "weight_scale", "weight_zero"
SCALE_DTYPE = torch.bfloat16
_STEPS = 16
_SMALLEST_SCALE = 1e-6  # torchao's own for its CPU kernel: a group of equal weights has no range
_OUTPUTS_MULTIPLE = 16  # of the CPU kernel; CUDA's wants 8
_BLOCK_ROWS = 64  # the CPU kernel arranges this many rows together at most
_ELEMENTS_AT_A_TIME = 2**24  # bounds what quantising and packing hold beside the weights
_OLDEST_CUDA = (8, 0)  # compute capability that torch's int4 kernel needs (bfloat16 tensor cores)


class TorchAoConfig:
    """What `from_pretrained(quantization_config=)` takes: int4 weights with one scale for each group.

    `quant_type` is "int4_weight_only" (the form of Gemma 3's page in transformers' documentation), a group size
    (128, 64 or 32), or torchao's Int4WeightOnlyConfig or its prototype for CPUs; the packing format that such an
    object names counts for nothing here, since packing follows the device.
    `modules_to_not_convert` are layers to leave in full precision: a whole name, its beginning or its last part.
    Raises UnsupportedOptionError.
    """

    def __init__(
        self,
        quant_type: Any = None,
        *,
        group_size: int | None = None,
        modules_to_not_convert: Sequence[str] | None = None,
    ):
        if quant_type is not None and group_size is not None and not isinstance(quant_type, str):
            raise UnsupportedOptionError("Give the group size once: as quant_type or as group_size.")
        self.group_size = _group_size(quant_type, group_size)
        self.modules_to_not_convert = tuple(modules_to_not_convert or ())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchAoConfig) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((self.group_size, self.modules_to_not_convert))

    def __repr__(self) -> str:
        return f"TorchAoConfig({self.group_size}, modules_to_not_convert={list(self.modules_to_not_convert)})"

    def to_dict(self) -> dict[str, Any]:
        """As config.json's quantization_config holds it."""
        names = list(self.modules_to_not_convert)
        return {"quant_method": QUANT_METHOD, "group_size": self.group_size, "modules_to_not_convert": names}

    @classmethod
    def from_dict(cls, data: Any) -> "TorchAoConfig":
        """The inverse of `to_dict`. CheckpointError for what others wrote, or what can't be."""
        method = data.get("quant_method") if isinstance(data, Mapping) else data
        if method != QUANT_METHOD:
            raise CheckpointError(
                f"config.json says that the weights are quantised by {method!r}; this program reads {QUANT_METHOD!r}. "
                "Use the checkpoint in full precision: int4 weights are made from it."
            )
        if unknown := set(data) - {"quant_method", "group_size", "modules_to_not_convert"}:
            raise CheckpointError(f"config.json's quantization_config holds {sorted(unknown)}, which is unknown here.")
        names = data.get("modules_to_not_convert") or []
        if data.get("group_size") not in GROUP_SIZES or not isinstance(names, list):
            raise CheckpointError(
                f"config.json's quantization_config says group_size {data.get('group_size')!r} and "
                f"modules_to_not_convert {names!r}; expected one of {_listed(GROUP_SIZES)} and a list of names."
            )
        return cls(data["group_size"], modules_to_not_convert=[str(name) for name in names])


def _group_size(quant_type: Any, group_size: int | None) -> int:
    if isinstance(quant_type, str):
        if quant_type != INT4_WEIGHT_ONLY:
            raise UnsupportedOptionError(
                f"TorchAoConfig({quant_type!r}) is not supported; write TorchAoConfig({INT4_WEIGHT_ONLY!r})."
            )
        quant_type = None
    if quant_type is None:
        quant_type = DEFAULT_GROUP_SIZE if group_size is None else group_size
    size = quant_type if isinstance(quant_type, int) else _group_size_of_torchao(quant_type)
    if size not in GROUP_SIZES:
        raise UnsupportedOptionError(f"group_size must be one of {_listed(GROUP_SIZES)}, got {size}.")
    return size


def _group_size_of_torchao(config: object) -> int:
    with _quiet_import():
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
        from torchao.quantization import Int4WeightOnlyConfig
        from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm
    if not isinstance(config, Int4WeightOnlyConfig | PrototypeInt4WeightOnlyConfig):
        raise UnsupportedOptionError(
            f"quant_type must be a group size or torchao's Int4WeightOnlyConfig, got {type(config).__name__}."
        )
    if config.int4_choose_qparams_algorithm is not Int4ChooseQParamsAlgorithm.TINYGEMM:
        raise UnsupportedOptionError(
            f"int4_choose_qparams_algorithm={config.int4_choose_qparams_algorithm!r} is not supported; "
            "use Int4ChooseQParamsAlgorithm.TINYGEMM, the default."
        )
    return int(config.group_size)


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
    """Quantises a weight [N, K] with torchao's parameters, which lie between a group's least and largest.

    Reckoned in float32 with scale and zero already rounded to bfloat16, so that the steps fit what is stored
    and float32 and bfloat16 models get the same int4 weights. Raises CheckpointError for NaN or infinity.
    """
    parts = [_quantize_rows(rows, group_size) for rows in weight.detach().split(_rows_at_a_time(weight.shape[1]))]
    packed, scale, zero = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    if not bool(scale.isfinite().all() and zero.isfinite().all()):
        raise CheckpointError("A weight to quantise holds NaN or infinity. Download the checkpoint again.")
    return Int4Weight(packed, scale, zero)


def _quantize_rows(rows: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with _quiet_import():
        from torchao.quantization.quant_primitives import (
            MappingType,
            _choose_qparams_affine_tinygemm,
            _quantize_affine_tinygemm,
        )
    weight, block, range_ = rows.float(), [1, group_size], (0, _STEPS - 1)
    scale, zero = _choose_qparams_affine_tinygemm(
        weight, MappingType.ASYMMETRIC, block, torch.int32, *range_, _SMALLEST_SCALE, SCALE_DTYPE, SCALE_DTYPE
    )
    steps = _quantize_affine_tinygemm(weight, block, scale.float(), zero.float(), torch.int32, *range_)
    packed = (steps[:, ::2] << 4 | steps[:, 1::2]).to(torch.uint8)
    return packed, scale.view(len(rows), -1), zero.view(len(rows), -1)  # torchao drops the axis of a single group


def _rows_at_a_time(in_features: int) -> int:
    return max(_BLOCK_ROWS, _ELEMENTS_AT_A_TIME // in_features // _BLOCK_ROWS * _BLOCK_ROWS)


class Int4Linear(nn.Module):
    """A linear layer with int4 weights: x [..., K] -> [..., N].

    Holds the weights as the kernel of its device wants them, and only so; `int4_weight` gives them back,
    exactly. In state_dict, in files and on the way to another device they have the form of `Int4Weight`.
    For inference only: the kernels have no gradient.
    """

    qdata: torch.Tensor | None
    scale_and_zero: torch.Tensor | None

    def __init__(self, in_features: int, out_features: int, group_size: int, bias: nn.Parameter | None = None):
        """Without weights yet: see `pack`."""
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        self.bias = bias
        self.register_buffer("qdata", None, persistent=False)
        self.register_buffer("scale_and_zero", None, persistent=False)  # [K/G, N, 2], of the activations' type

    @classmethod
    def from_weight(cls, weight: Int4Weight, bias: nn.Parameter | None, dtype: torch.dtype) -> "Int4Linear":
        """`dtype` is the activations' (float32 or bfloat16)."""
        out_features, in_features = weight.shape
        linear = cls(in_features, out_features, weight.group_size, bias)
        linear.pack(weight, dtype)
        return linear

    def pack(self, weight: Int4Weight, dtype: torch.dtype = SCALE_DTYPE) -> None:
        """Arranges `weight` for the kernel of the device that it lies on."""
        assert weight.shape == (self.out_features, self.in_features)
        assert weight.group_size == self.group_size
        self.qdata = _pack(weight)
        self.scale_and_zero = torch.stack((weight.scale, weight.zero), dim=-1).transpose(0, 1).contiguous().to(dtype)

    def int4_weight(self) -> Int4Weight:
        """The weights in the form that no device has a part in; the inverse of `pack`."""
        assert self.scale_and_zero is not None
        scale, zero = self.scale_and_zero.to(SCALE_DTYPE).unbind(dim=-1)
        return Int4Weight(self._packed_bytes(), scale.T.contiguous(), zero.T.contiguous())

    def _packed_bytes(self) -> torch.Tensor:
        """uint8 [N, K/2], asked of the kernel itself, since only it knows its arrangement.

        With scale 1 and zero 0, a row with 16 and 1 at two neighbouring columns gives 16 (q - 8) + (q' - 8),
        which is their byte less 136, and exact in bfloat16 too.
        """
        assert self.scale_and_zero is not None
        plain = torch.zeros_like(self.scale_and_zero)
        plain[:, :, 0] = 1.0
        pairs = self.in_features // 2
        packed = torch.empty(self.out_features, pairs, dtype=torch.uint8, device=plain.device)
        for some in torch.arange(pairs).split(max(1, _ELEMENTS_AT_A_TIME // (self.out_features + self.in_features))):
            x = torch.zeros(len(some), self.in_features, dtype=plain.dtype, device=plain.device)
            rows = torch.arange(len(some))
            x[rows, 2 * some], x[rows, 2 * some + 1] = 16.0, 1.0
            less_136 = self._multiply(x, plain)  # [pairs, N]
            packed[:, some] = (less_136.float() + 136).round().to(torch.uint8).T
        return packed

    def _multiply(self, x: torch.Tensor, scale_and_zero: torch.Tensor) -> torch.Tensor:
        """x [M, K] -> [M, N]"""
        assert self.qdata is not None
        if x.device.type == "cpu":
            return torch.ops.aten._weight_int4pack_mm_for_cpu(
                x.contiguous(), self.qdata, self.group_size, scale_and_zero
            )
        # CUDA's kernel knows bfloat16 only; scales are bfloat16 numbers in either type.
        half, numbers = x.to(torch.bfloat16).contiguous(), scale_and_zero.to(torch.bfloat16)
        return torch.ops.aten._weight_int4pack_mm(half, self.qdata, self.group_size, numbers).to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.scale_and_zero is not None
        out = self._multiply(x.reshape(-1, self.in_features), self.scale_and_zero)
        out = out.view(*x.shape[:-1], self.out_features)
        return out if self.bias is None else out + self.bias

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Int4Linear":
        """As nn.Module's; on the way to another kind of device the weights are arranged anew."""
        if self.qdata is None or self.scale_and_zero is None:
            return super()._apply(fn, recurse)
        numbers = fn(self.scale_and_zero)
        if numbers.device.type == self.qdata.device.type:
            return super()._apply(fn, recurse)
        require_int4(numbers.device)
        weight = self.int4_weight().to(numbers.device)
        self.qdata = self.scale_and_zero = None
        super()._apply(fn, recurse)
        self.pack(weight, numbers.dtype)
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
        dtype = SCALE_DTYPE if self.scale_and_zero is None else self.scale_and_zero.dtype
        self.pack(Int4Weight(*(state_dict[name] for name in names)), dtype)

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
    # As many tiles of 16 columns as fit side by side: torchao pads K to 1024 instead, up to 1.78 times the bytes.
    inner_k_tiles = next(tiles for tiles in (8, 4, 2) if in_features % (16 * tiles) == 0)
    return torch.ops.aten._convert_weight_to_int4pack(weight.packed.contiguous(), inner_k_tiles)


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


@dataclass(frozen=True)
class Int4Plan:
    """Which layers of a model become int4, and which candidates stay as they are, with the reason."""

    config: TorchAoConfig
    layers: tuple[str, ...]
    left: Mapping[str, str] = field(default_factory=dict)

    def warn(self) -> None:
        """Names the layers that stay in full precision in the log."""
        for name, reason in self.left.items():
            logger.warning("%s stays in full precision: %s", name, reason)


def plan_int4(model: Any, config: TorchAoConfig) -> Int4Plan:
    """The candidates are the decoder's linear layers and the output head of `model` (a model class of ours).

    Embedding, vision tower and projector are none: they stay in full precision. Raises UnsupportedOptionError
    where no layer fits, or where `config` leaves out a layer that is not there.
    """
    layers, left = [], {}
    skips = set(config.modules_to_not_convert)
    candidates = candidate_layers(model)
    for name, layer in candidates.items():
        reason = _misfit(layer, config.group_size)
        if any(_is_named(name, skip) for skip in config.modules_to_not_convert):
            reason = "modules_to_not_convert names it"
        if reason is None:
            layers.append(name)
        else:
            left[name] = reason
    if unused := [skip for skip in skips if not any(_is_named(name, skip) for name in candidates)]:
        raise UnsupportedOptionError(f"modules_to_not_convert names {_listed(sorted(unused))}: no int4 layer is that.")
    if not layers:
        raise UnsupportedOptionError(
            f"int4 with group size {config.group_size} fits no layer of this model "
            f"({next(iter(left))}: {next(iter(left.values()))}). Leave int4 off, or take a smaller group size."
        )
    return Int4Plan(config, tuple(layers), left)


def candidate_layers(model: Any) -> dict[str, nn.Linear | Int4Linear]:
    """The layers of `model` that int4 is for, quantised or not, by name."""
    wanted = {id(module) for module in model.decoder.modules()} | {id(getattr(model, "lm_head", None))}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in wanted and isinstance(module, nn.Linear | Int4Linear)
    }


def _misfit(layer: nn.Linear | Int4Linear, group_size: int) -> str | None:
    if layer.in_features % group_size:
        return f"its {layer.in_features} inputs can't be divided into groups of {group_size}"
    if layer.out_features % _OUTPUTS_MULTIPLE:
        return f"its {layer.out_features} outputs are no multiple of {_OUTPUTS_MULTIPLE}"
    return None


def _is_named(name: str, by: str) -> bool:
    return name == by or name.startswith(f"{by}.") or name.endswith(f".{by}")


def install_int4(model: Any, config: TorchAoConfig) -> None:
    """Puts empty int4 layers into a model that is built on the meta device, for weights to be loaded into."""
    plan = plan_int4(model, config)
    for name in plan.layers:
        layer = model.get_submodule(name)
        model.set_submodule(name, Int4Linear(layer.in_features, layer.out_features, config.group_size, layer.bias))
    model.int4_plan = plan


class Int4Making:
    """The int4 twin of a model, made one layer a step; from several threads too, each layer is made once.

    The twin is a model of its own that shares every other tensor with the first, which stays as it is.
    """

    def __init__(self, model: Any, config: TorchAoConfig, device: torch.device | None = None):
        """`device` is where the int4 layers will be; None is where the model is. Raises as `plan_int4`."""
        self._model, self._device = model, device or model.device
        require_int4(self._device)
        self.plan = plan_int4(model, config)
        self._made: dict[str, Int4Linear] = {}
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        return len(self.plan.layers)

    @property
    def begun(self) -> bool:
        return bool(self._made)

    def steps(self) -> Iterator[int]:
        """Makes what is missing; yields how many layers are done before each and at the end."""
        while (done := len(self._made)) < self.total:
            yield done
            with self._lock:
                if len(self._made) == done:  # else another thread has just made this one
                    self._make(self.plan.layers[done])
        yield self.total

    def _make(self, name: str) -> None:
        layer = self._model.get_submodule(name)
        try:
            weight = quantize_weight(layer.weight.to(self._device), self.plan.config.group_size)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
        self._made[name] = Int4Linear.from_weight(weight, layer.bias, layer.weight.dtype)

    def twin(self) -> Any:
        """The model with int4 layers, when all are made."""
        assert len(self._made) == self.total
        kept = [*self._model.parameters(), *self._model.buffers(), self._model.config]
        memo: dict[int, Any] = {id(thing): thing for thing in kept}
        memo |= {id(self._model.get_submodule(name)): layer for name, layer in self._made.items()}
        twin = copy.deepcopy(self._model, memo)
        twin.int4_plan = self.plan
        return twin


def quantized(model: Any, config: TorchAoConfig, device: torch.device | None = None) -> Any:
    """The int4 twin of `model`, made at once; see `Int4Making`."""
    making = Int4Making(model, config, device)
    for _ in making.steps():
        pass
    return making.twin()


def with_tensors_of(model: Any, other: Any) -> Any:
    """A copy of `model` that holds `other`'s parameters wherever both have one of the same name."""
    theirs = dict(other.named_parameters())
    kept = [*model.parameters(), *model.buffers(), model.config]
    memo: dict[int, Any] = {id(thing): thing for thing in kept}
    memo |= {id(p): theirs[name] for name, p in model.named_parameters() if name in theirs}
    return copy.deepcopy(model, memo)


def count_weights(model: Any) -> int:
    """How many weights a model has, in whichever form; a tied head's count with the embedding."""
    quantised = sum(
        layer.in_features * layer.out_features
        for name, layer in candidate_layers(model).items()
        if isinstance(layer, Int4Linear) and not _is_tied_head(model, name)
    )
    return quantised + sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: Any, plan: Int4Plan) -> tuple[int, int]:
    """Bytes of all weights in full precision (as the model runs: its dtype) and with `plan`'s layers in int4."""
    full = count_weights(model) * model.dtype.itemsize
    replaced = sum(_size(model, name) for name in plan.layers if not _is_tied_head(model, name))
    return full, full - replaced * model.dtype.itemsize + int4_layer_bytes(model, plan)


def int4_layer_bytes(model: Any, plan: Int4Plan) -> int:
    """Bytes of `plan`'s layers alone, in int4."""
    sizes = [_size(model, name) for name in plan.layers]
    return sum(size // 2 + 2 * size // plan.config.group_size * model.dtype.itemsize for size in sizes)


def _size(model: Any, name: str) -> int:
    layer = model.get_submodule(name)
    return int(layer.in_features * layer.out_features)


def _is_tied_head(model: Any, name: str) -> bool:
    return name == "lm_head" and bool(model.config.tie_word_embeddings)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """torchao warns at import of CUDA extensions that it can't load; none of them is used here.

    torchao is imported where it is needed and not before: it takes seconds, and only making int4 weights
    needs it, running them does not. Raises UnsupportedOptionError where it is not installed.
    """
    loud = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [log.level for log in loud]
    for log in loud:
        log.setLevel(logging.ERROR)
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("torchao"):
            raise
        raise UnsupportedOptionError("int4 weights are made with torchao: install it (requirements.txt).") from None
    finally:
        for log, level in zip(loud, levels, strict=True):
            log.setLevel(level)


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(str(item) for item in items)
