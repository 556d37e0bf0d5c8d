"""Loads and saves weights, and translates tensor names.

Checkpoints name a tensor in several ways (Hub, transformers 4.5x, transformers 5). Loading turns each of them into
the parameter's path in our modules; saving writes the Hub's names.
"""

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gemma3_core.config.gemma3 import AnyConfig, Gemma3Config
from gemma3_core.errors import CheckpointError, ConfigError, UnsupportedOptionError
from gemma3_core.files.weight_files import MAX_SHARD_SIZE, read_tensors, tensor_names, weight_files, write_tensors
from gemma3_core.gguf.tensors import Q4_0_GROUP_SIZE, GgufTensor
from gemma3_core.int4.linear import (
    PACKED,
    SCALE,
    SCALE_DTYPE,
    SYMMETRIC_SCALE_DTYPE,
    ZERO,
    Int4Linear,
    Int4Weight,
    quantize_weight,
    stored_shapes,
)
from gemma3_core.int4.quantize import count_weights
from gemma3_core.kernels.huge_pages import in_huge_pages
from gemma3_core.models.embeddings import HEAD

logger = logging.getLogger(__name__)

SCORE = "score.weight"
"""A classifier's head."""
_OF_HEAD = "lm_head."
_OF_SCORE = "score."
EMBEDDING = "embed_tokens.weight"
_MAX_MISSING_LAYERS = 64
_FILLS = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, torch.Tensor.uniform_)
_LAYER = re.compile(r"\blayers\.(\d{1,9})\.")

FLOAT16_REASON = (
    "float16 is refused: Gemma 3's activations pass 65504, float16's largest number, and answers turn empty. "
    "Use bfloat16 or float32."
)


def module_name(stored: str, multimodal: bool) -> str:
    """Our modules' name of a tensor, from any of the names in checkpoints.

    `language_model.model.layers…`, `model.language_model.layers…`, `language_model.layers…` are one;
    so are `vision_tower.vision_model.…` and `vision_tower.…`, with or without a leading `model.`.
    """
    if not multimodal:
        stored = stored.removeprefix("language_model.")  # of a GGUF file, which has the same names with and without
        return stored if stored.startswith((_OF_HEAD, _OF_SCORE, "model.")) else f"model.{stored}"
    name = stored.removeprefix("model.")
    if name.startswith(_OF_SCORE):
        return name
    if name.removeprefix("language_model.").startswith(_OF_HEAD):
        return name.removeprefix("language_model.")
    name = name.replace("language_model.model.", "language_model.", 1)
    name = name.replace("vision_tower.vision_model.", "vision_tower.", 1)
    return f"model.{name}"


def hub_name(name: str, multimodal: bool) -> str:
    """The Hub's name of a tensor of ours; the inverse of `module_name`."""
    if not multimodal or name.startswith(_OF_SCORE):
        return name
    if name.startswith(_OF_HEAD):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    name = name.replace("language_model.", "language_model.model.", 1)
    return name.replace("vision_tower.", "vision_tower.vision_model.", 1)


def parse_dtype(dtype: str | torch.dtype | None, stored: torch.dtype | None = None) -> torch.dtype | None:
    """float32 or bfloat16; None and "auto" mean `stored`, the config's. None as result means as in the file."""
    if dtype is None or dtype == "auto":
        dtype = stored
    if dtype is None:
        return None
    name = str(dtype).removeprefix("torch.")
    if name == "float16":
        raise UnsupportedOptionError(FLOAT16_REASON)
    if name not in ("float32", "bfloat16"):
        raise UnsupportedOptionError(f"dtype {name!r} is not supported; use 'bfloat16', 'float32' or 'auto'.")
    return torch.float32 if name == "float32" else torch.bfloat16


class _Unfilled(TorchFunctionMode):
    """Leaves out the filling of tensors at random, for which torch imports its compiler where they have no memory."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        return (*args, kwargs.get("tensor"))[0] if func in _FILLS else func(*args, **kwargs)


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A model on the meta device: weights are assigned afterwards, so no memory is taken twice.

    Raises ConfigError for a configuration whose tensors are larger than any memory.
    """
    try:
        with torch.device("meta"), _Unfilled():
            return build().eval()
    except (RuntimeError, TypeError, OverflowError) as error:
        if "overflow" not in str(error).lower():
            raise
        raise ConfigError("The sizes in config.json are too large for any memory. Download it again.") from None


def check_layers(config: AnyConfig, folder: Path) -> None:
    """Raises CheckpointError if config.json promises far more layers than the weights have, before they are built.

    Reads only the files' headers. A few missing layers are left to `load_weights`, which names their tensors.
    """
    held = {"num_hidden_layers": 0, "vision num_hidden_layers": 0}
    for path in weight_files(folder):
        for stored in tensor_names(path):
            if layer := _LAYER.search(stored):
                field = "vision num_hidden_layers" if "vision_tower." in stored else "num_hidden_layers"
                held[field] = max(held[field], int(layer[1]) + 1)
    text = config.text_config if isinstance(config, Gemma3Config) else config
    promised = {"num_hidden_layers": text.num_hidden_layers}
    if isinstance(config, Gemma3Config):
        promised["vision num_hidden_layers"] = config.vision_config.num_hidden_layers
    for field, layers in promised.items():
        if layers - held[field] > _MAX_MISSING_LAYERS:
            raise CheckpointError(
                f"config.json says {field} is {layers:,}, but the weights have {held[field]:,} such layers. "
                "Download the checkpoint again, or check that config.json belongs to these weights."
            )


def with_head_of_its_own(config: AnyConfig, folder: Path) -> AnyConfig:
    """`config`, or a copy that does not tie the head to the embedding, where the weights hold two different tensors.

    As in transformers, which warns of it too. Reads the two tensors only where both are there.
    """
    if not config.tie_word_embeddings:
        return config
    multimodal = isinstance(config, Gemma3Config)
    files = {
        name: (path, stored)
        for path in weight_files(folder)
        for stored in tensor_names(path)
        if (name := module_name(stored, multimodal)) == HEAD or name.endswith(EMBEDDING)
    }
    if len(files) != 2:
        return config
    one, other = (
        next(tensor for name, tensor in read_tensors(path) if name == stored) for path, stored in files.values()
    )
    comparable = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.dtype == other.dtype
    if comparable and torch.equal(cast(torch.Tensor, one), cast(torch.Tensor, other)):
        return config
    logger.warning(
        "config.json ties %s to the embedding, but the checkpoint holds two different tensors, so they are not tied. "
        "Set tie_word_embeddings to false there.",
        HEAD,
    )
    return config.replace(tie_word_embeddings=False)


def load_weights(
    model: nn.Module, folder: Path, dtype: torch.dtype | None, device: torch.device, *, mapped: bool = False
) -> None:
    """Assigns the checkpoint's tensors to a model on the meta device, and moves them to `device`.

    On a CPU and in the stored type they stay memory-mapped; `mapped` leaves float32 and bfloat16 in that type. Raises
    one CheckpointError that names all missing, extra and misshapen tensors. Only a classifier's head may be missing: it
    is then new and random, and the log says so.
    """
    multimodal = isinstance(model.config, Gemma3Config)
    int4 = _int4_shapes(model)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()} | int4
    tied = model.config.tie_word_embeddings  # type: ignore[union-attr]
    has_head, is_bare = hasattr(model, "lm_head"), not hasattr(model, "model")
    found: dict[str, torch.Tensor | GgufTensor] = {}
    stored_names: dict[str, str] = {}
    for path in weight_files(folder):
        for stored, tensor in read_tensors(path):
            name = module_name(stored, multimodal)
            if is_bare:  # Gemma3Model and Gemma3TextModel are `model` in the other classes
                name = name.removeprefix("model.")
            if name in found:
                raise CheckpointError(f"The checkpoint holds {name} twice, as {stored_names[name]} and {stored}.")
            found[name], stored_names[name] = tensor, stored
    if tied and has_head and (head := found.pop(HEAD, None)) is not None:
        # It is the embedding, which may be there too: `with_head_of_its_own` found no other one.
        embedding = next(name for name in expected if name.endswith(EMBEDDING))
        found.setdefault(embedding, head)
    elif not has_head:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(_OF_HEAD)}
    if is_bare:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(_OF_SCORE)}
    elif SCORE in expected and SCORE not in found:
        found[SCORE] = _new_score(model, expected[SCORE], found)
    from_gguf = _int4_from_gguf(model, found, bool(tied))
    stored_so = {name: shape for name, shape in expected.items() if name.rpartition(".")[0] not in from_gguf}
    stored_so |= {f"{name}.weight": (layer.out_features, layer.in_features) for name, layer in from_gguf.items()}
    _check_names_and_shapes(stored_so, found)
    has_int4_head = isinstance(getattr(model, "lm_head", None), Int4Linear)
    converted: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        layer = from_gguf.get(name.removesuffix(".weight"))
        if layer is not None:
            converted |= _quantised(cast(GgufTensor, tensor), name, layer.group_size, dtype, device)
        elif name in int4:
            converted[name] = _checked_int4(tensor, name).to(device)
        else:
            made = _converted(tensor, name, dtype, device, mapped)
            # Where the head has weights of its own, a token reads one row of the embedding.
            is_table = name.endswith(EMBEDDING) and (has_int4_head or not tied)
            converted[name] = made if is_table or _is_mapped(tensor, made) else in_huge_pages(made)
    _require_finite({name: converted[name] for name in expected})  # in the model's order
    model.load_state_dict(converted, strict=True, assign=True)


def save_weights(model: nn.Module, folder: Path, max_shard_size: int | str = MAX_SHARD_SIZE) -> None:
    """Writes the weights with the Hub's names, without a tied head, in shards of up to `max_shard_size`."""
    multimodal = isinstance(model.config, Gemma3Config)
    state = dict(model.named_parameters())
    for name, layer in _int4_layers(model):
        state |= layer.state_dict(prefix=f"{name}.")
    tensors = {hub_name(name, multimodal): tensor.detach() for name, tensor in state.items()}
    write_tensors(tensors, folder, count_weights(model), max_shard_size)


def _int4_layers(model: nn.Module) -> list[tuple[str, Int4Linear]]:
    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Int4Linear)]


def _int4_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The tensors that int4 layers have in a checkpoint, by name."""
    return {
        f"{name}.{tensor}": shape
        for name, layer in _int4_layers(model)
        for tensor, shape in stored_shapes(layer.out_features, layer.in_features, layer.group_size).items()
    }


def _int4_from_gguf(model: nn.Module, found: dict[str, Any], tied: bool) -> dict[str, Int4Linear]:
    """The int4 layers whose weights come from a GGUF file, by name; a tied head's are the embedding's."""
    layers = dict(_int4_layers(model))
    if tied and HEAD.removesuffix(".weight") in layers and HEAD not in found:
        embedding = next((tensor for name, tensor in found.items() if name.endswith(EMBEDDING)), None)
        if isinstance(embedding, GgufTensor):
            found[HEAD] = embedding
    return {name: layer for name, layer in layers.items() if isinstance(found.get(f"{name}.weight"), GgufTensor)}


def _quantised(
    tensor: GgufTensor, name: str, group_size: int, dtype: torch.dtype | None, device: torch.device
) -> dict[str, torch.Tensor]:
    """The tensors of an int4 layer: Q4_0 as it is, the rest quantised. Raises CheckpointError for NaN or infinity."""
    if tensor.is_q4_0 and group_size == Q4_0_GROUP_SIZE:
        packed, scale = tensor.q4_0()
        weight = Int4Weight.symmetric(packed.to(device), scale.to(device))
    else:
        try:
            weight = quantize_weight(tensor.to(device, dtype or tensor.dtype), group_size)
        except CheckpointError as error:
            raise CheckpointError(f"{name}: {error}") from None
    stem = name.removesuffix("weight")
    return {stem + PACKED: weight.packed, stem + SCALE: weight.scale, stem + ZERO: weight.zero}


def _checked_int4(tensor: Any, name: str) -> torch.Tensor:
    """A stored tensor of an int4 layer. Raises CheckpointError for a wrong type."""
    kind = name.rpartition(".")[2]
    expected = {PACKED: torch.uint8, SCALE: SCALE_DTYPE, ZERO: SCALE_DTYPE}[kind]
    if tensor.dtype != expected and (kind, tensor.dtype) != (SCALE, SYMMETRIC_SCALE_DTYPE):
        got, wanted = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, expected))
        raise CheckpointError(f"{name} is stored as {got}, expected {wanted}. Make the int4 checkpoint again.")
    checked: torch.Tensor = tensor
    return checked


def _require_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """Raises CheckpointError that names the first tensor that holds NaN or infinity."""
    broken = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)  # of NaN they are NaN; reads at the speed of memory
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                broken.append(name)
    if broken:
        more = f", and {len(broken) - 1:,} other tensors do" if len(broken) > 1 else ""
        raise CheckpointError(f"{broken[0]} holds NaN or infinity{more}. Download the checkpoint again.")


def _new_score(model: nn.Module, shape: tuple[int, ...], found: Mapping[str, Any]) -> torch.Tensor:
    """Small random weights for a classifier's missing head, in the type of the checkpoint's other weights."""
    logger.warning("The checkpoint has no %s: it is new and random. Train it before you trust its answers.", SCORE)
    dtype = next((tensor.dtype for tensor in found.values() if tensor.is_floating_point()), torch.float32)
    return torch.randn(shape).mul_(model.config.initializer_range).to(dtype)  # type: ignore[union-attr,arg-type]


def _check_names_and_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Any]) -> None:
    wrong = {
        "missing": sorted(expected.keys() - found.keys()),
        "not part of this model": sorted(found.keys() - expected.keys()),
        "wrong shape": [
            f"{name} is {list(found[name].shape)}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name].shape) != shape
        ],
    }
    if complaints := [f"{what}: {', '.join(names)}" for what, names in wrong.items() if names]:
        raise CheckpointError(
            f"The checkpoint does not fit its config.json ({'; '.join(complaints)}). "
            "Download it again, or check that config.json belongs to these weights."
        )


def _converted(
    tensor: torch.Tensor | GgufTensor, name: str, dtype: torch.dtype | None, device: torch.device, mapped: bool
) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, expected a float type.")
    if dtype is None and tensor.dtype not in (torch.float32, torch.bfloat16):
        raise CheckpointError(FLOAT16_REASON + " Load it with dtype='bfloat16'.")
    stays = mapped and tensor.dtype in (torch.float32, torch.bfloat16)
    return tensor.to(device=device, dtype=tensor.dtype if stays or dtype is None else dtype)


def _is_mapped(tensor: torch.Tensor | GgufTensor, made: torch.Tensor) -> bool:
    """Whether what loading made of a tensor on a CPU still is the file's own memory."""
    return tensor.is_mapped_as(made.dtype) if isinstance(tensor, GgufTensor) else made is tensor
