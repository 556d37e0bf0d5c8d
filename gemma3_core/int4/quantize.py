"""Which layers of a model become int4, with which group size, and the conversion itself."""

import copy
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.int4.linear import OUTPUTS_MULTIPLE, SCALE_DTYPE, Int4Linear, quantize_weight, require_int4

logger = logging.getLogger(__name__)

GROUP_SIZES = (128, 64, 32)
DEFAULT_GROUP_SIZE = 128
INT4_WEIGHT_ONLY = "int4_weight_only"
QUANT_METHOD = "int4_tinygemm"
"""The name of our file format in config.json's quantization_config. (torchao's own pickles its tensor classes.)"""


@dataclass(init=False, unsafe_hash=True)
class TorchAoConfig:
    """int4 weights with one scale a group, for `from_pretrained(quantization_config=)`.

    `quant_type` is "int4_weight_only" (as on transformers' Gemma 3 page), a group size (128, 64 or 32), or torchao's
    Int4WeightOnlyConfig or its prototype for CPUs. The packing format of such an object is ignored: it follows from
    the device. `modules_to_not_convert` are layers to leave in full precision: whole names, their beginnings or their
    last parts. Raises UnsupportedOptionError.
    """

    group_size: int
    modules_to_not_convert: tuple[str, ...]

    def __init__(
        self,
        quant_type: Any = None,
        modules_to_not_convert: Sequence[str] | None = None,
        include_input_output_embeddings: bool = False,
        untie_embedding_weights: bool = False,
        *,
        group_size: int | None = None,
        **unknown: Any,
    ):
        asked = {"include_input_output_embeddings": include_input_output_embeddings or None}
        asked |= {"untie_embedding_weights": untie_embedding_weights or None, **unknown}
        if names := sorted(name for name, value in asked.items() if value is not None):
            raise UnsupportedOptionError(
                f"TorchAoConfig does not support {', '.join(names)}: it knows group_size and modules_to_not_convert. "
                "Leave the others out."
            )
        if isinstance(modules_to_not_convert, str) or not isinstance(modules_to_not_convert, Sequence | None):
            raise UnsupportedOptionError(
                f"modules_to_not_convert must be a list of names, got {modules_to_not_convert!r}."
            )
        if quant_type is not None and group_size is not None and not isinstance(quant_type, str):
            raise UnsupportedOptionError("Give the group size once: as quant_type or as group_size.")
        self.group_size = _group_size(quant_type, group_size)
        self.modules_to_not_convert = tuple(modules_to_not_convert or ())

    def to_dict(self) -> dict[str, Any]:
        """The quantization_config of config.json."""
        names = list(self.modules_to_not_convert)
        return {"quant_method": QUANT_METHOD, "group_size": self.group_size, "modules_to_not_convert": names}

    @classmethod
    def from_dict(cls, data: Any) -> "TorchAoConfig":
        """The inverse of `to_dict`. Raises CheckpointError for another program's format or invalid values."""
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
    names = ("Int4WeightOnlyConfig", "PrototypeInt4WeightOnlyConfig")
    of_torchao: Any = config  # by its name: importing torchao takes seconds, and nothing else here needs it
    if type(config).__module__.partition(".")[0] != "torchao" or type(config).__name__ not in names:
        raise UnsupportedOptionError(
            f"quant_type must be a group size or torchao's Int4WeightOnlyConfig, got {type(config).__name__}."
        )
    if of_torchao.int4_choose_qparams_algorithm != "tinygemm":
        raise UnsupportedOptionError(
            f"int4_choose_qparams_algorithm={of_torchao.int4_choose_qparams_algorithm!r} is not supported; "
            "use Int4ChooseQParamsAlgorithm.TINYGEMM, the default."
        )
    return int(of_torchao.group_size)


@dataclass(frozen=True)
class Int4Plan:
    """The layers of a model that become int4, and for each candidate in `left` why it does not."""

    config: TorchAoConfig
    layers: tuple[str, ...]
    left: Mapping[str, str] = field(default_factory=dict)

    def warn(self) -> None:
        """Logs the layers that stay in full precision."""
        for name, reason in self.left.items():
            logger.warning("%s stays in full precision: %s", name, reason)


def plan_int4(model: Any, config: TorchAoConfig) -> Int4Plan:
    """Plans for the candidates: the linear layers of `model`'s decoder, and its output head.

    Embedding, vision tower and projector stay in full precision. Raises UnsupportedOptionError if no layer fits, or if
    `config` leaves out a layer that does not exist.
    """
    layers, left, skips = [], {}, set(config.modules_to_not_convert)
    candidates = candidate_layers(model)
    for name, layer in candidates.items():
        if any(_is_named(name, skip) for skip in skips):
            left[name] = "modules_to_not_convert names it"
        elif reason := _misfit(layer, config.group_size):
            left[name] = reason
        else:
            layers.append(name)
    # A model without a head has none to leave out either.
    unused = [skip for skip in skips - {"lm_head"} if not any(_is_named(name, skip) for name in candidates)]
    if unused:
        raise UnsupportedOptionError(f"modules_to_not_convert names {_listed(sorted(unused))}: no int4 layer is that.")
    if not layers:
        raise UnsupportedOptionError(
            f"int4 with group size {config.group_size} fits no layer of this model "
            f"({next(iter(left))}: {next(iter(left.values()))}). Leave int4 off, or take a smaller group size."
        )
    return Int4Plan(config, tuple(layers), left)


def candidate_layers(model: Any) -> dict[str, nn.Linear | Int4Linear]:
    """The layers of `model` that are or can become int4, by name."""
    wanted = {id(module) for module in model.decoder.modules()} | {id(getattr(model, "lm_head", None))}
    return {
        name: module
        for name, module in model.named_modules()
        if id(module) in wanted and isinstance(module, nn.Linear | Int4Linear)
    }


def _misfit(layer: nn.Linear | Int4Linear, group_size: int) -> str | None:
    if layer.in_features % group_size:
        return f"its {layer.in_features} inputs can't be divided into groups of {group_size}"
    if layer.out_features % OUTPUTS_MULTIPLE:
        return f"its {layer.out_features} outputs are no multiple of {OUTPUTS_MULTIPLE}"
    return None


def _is_named(name: str, by: str) -> bool:
    return name == by or name.startswith(f"{by}.") or name.endswith(f".{by}")


def install_int4(model: Any, config: TorchAoConfig) -> None:
    """Replaces layers of a model on the meta device by int4 layers without weights, to be loaded afterwards."""
    plan = plan_int4(model, config)
    for name in plan.layers:
        layer = model.get_submodule(name)
        model.set_submodule(name, Int4Linear(layer.in_features, layer.out_features, config.group_size, layer.bias))
    model.int4_plan = plan


class Int4Converter:
    """Makes the int4 model of a model, one layer a step. Several threads may step; each layer is made once.

    The int4 model is a new model that shares all other tensors with the original.
    """

    def __init__(
        self, model: Any, config: TorchAoConfig, device: torch.device | None = None, dtype: torch.dtype | None = None
    ):
        """The int4 layers go to `device` and are made of weights in `dtype`, by default the model's.

        Raises UnsupportedOptionError.
        """
        self._model, self._device, self._dtype = model, device or model.device, dtype or model.dtype
        self.plan = plan_int4(model, config)
        require_int4(self._device)
        self._made: dict[str, Int4Linear] = {}
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        return len(self.plan.layers)

    @property
    def begun(self) -> bool:
        return bool(self._made)

    def steps(self) -> Iterator[int]:
        """Quantises the remaining layers; yields the number of finished ones before each and at the end."""
        while (done := len(self._made)) < self.total:
            yield done
            with self._lock:
                if len(self._made) == done:  # else another thread made this one
                    self._make(self.plan.layers[done])
        yield self.total

    def _make(self, name: str) -> None:
        layer = self._model.get_submodule(name)
        try:
            weight = quantize_weight(layer.weight.to(self._device, self._dtype), self.plan.config.group_size)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
        self._made[name] = Int4Linear.from_weight(weight, layer.bias)

    def int4_model(self) -> Any:
        """The int4 model, once all layers are made."""
        assert len(self._made) == self.total
        layers = {id(self._model.get_submodule(name)): layer for name, layer in self._made.items()}
        int4_model = _copy_with(self._model, layers)
        int4_model.int4_plan = self.plan
        return int4_model


def quantized(
    model: Any, config: TorchAoConfig, device: torch.device | None = None, dtype: torch.dtype | None = None
) -> Any:
    """The int4 model of `model`; see `Int4Converter`."""
    converter = Int4Converter(model, config, device, dtype)
    for _ in converter.steps():
        pass
    return converter.int4_model()


def with_tensors_of(model: Any, other: Any) -> Any:
    """A copy of `model` with `other`'s parameters in place of those of the same name."""
    theirs = dict(other.named_parameters())
    return _copy_with(model, {id(p): theirs[name] for name, p in model.named_parameters() if name in theirs})


def sharing_copy(model: Any) -> Any:
    """A model of its own that shares all tensors with `model`."""
    return _copy_with(model, {})


def _copy_with(model: Any, replaced: dict[int, Any]) -> Any:
    """A copy of `model` that shares its tensors, except for the objects replaced by id."""
    shared = [*model.parameters(), *model.buffers(), model.config]
    return copy.deepcopy(model, {**{id(thing): thing for thing in shared}, **replaced})


def count_weights(model: Any) -> int:
    """Number of weights, quantised or not; a tied head counts with the embedding."""
    quantised = sum(
        layer.in_features * layer.out_features
        for name, layer in candidate_layers(model).items()
        if isinstance(layer, Int4Linear) and not _is_tied_head(model, name)
    )
    return quantised + sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(model: Any, plan: Int4Plan) -> tuple[int, int]:
    """Bytes of all weights in the model's dtype, and with `plan`'s layers in int4."""
    full = count_weights(model) * model.dtype.itemsize
    replaced = sum(_size(model, name) for name in plan.layers if not _is_tied_head(model, name))
    return full, full - replaced * model.dtype.itemsize + int4_layer_bytes(model, plan)


def int4_layer_bytes(model: Any, plan: Int4Plan) -> int:
    """Bytes of `plan`'s layers in int4."""
    sizes = [_size(model, name) for name in plan.layers]
    return sum(size // 2 + 2 * size // plan.config.group_size * SCALE_DTYPE.itemsize for size in sizes)


def _size(model: Any, name: str) -> int:
    layer = model.get_submodule(name)
    return int(layer.in_features * layer.out_features)


def _is_tied_head(model: Any, name: str) -> bool:
    return name == "lm_head" and bool(model.config.tie_word_embeddings)


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(str(item) for item in items)
