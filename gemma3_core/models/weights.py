"""Loads and saves weights, and translates tensor names.

Checkpoints name a tensor in several ways (Hub, transformers 4.5x, transformers 5). Loading turns each of them into
the parameter's path in our modules; saving writes the Hub's names.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

from gemma3_core.config.gemma3 import Gemma3Config
from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.files.weight_files import MAX_SHARD_SIZE, read_tensors, weight_files, write_tensors
from gemma3_core.int4.linear import PACKED, SCALE, SCALE_DTYPE, ZERO, Int4Linear, stored_shapes
from gemma3_core.int4.quantize import count_weights
from gemma3_core.models.embeddings import HEAD

logger = logging.getLogger(__name__)

SCORE = "score.weight"
"""A classifier's head."""
_OF_HEAD = "lm_head."
_OF_SCORE = "score."
EMBEDDING = "embed_tokens.weight"

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


def build_on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A model on the meta device: weights are assigned afterwards, so no memory is taken twice."""
    with torch.device("meta"):
        return build().eval()


def load_weights(model: nn.Module, folder: Path, dtype: torch.dtype | None, device: torch.device) -> None:
    """Assigns the checkpoint's tensors to a model on the meta device, and moves them to `device`.

    On a CPU and in the stored type they stay memory-mapped. Raises one CheckpointError that names all missing, extra
    and misshapen tensors. Only a classifier's head may be missing: it is then new and random, and the log says so.
    """
    multimodal = isinstance(model.config, Gemma3Config)
    int4 = _int4_shapes(model)
    expected = {name: tuple(p.shape) for name, p in model.named_parameters()} | int4
    tied = model.config.tie_word_embeddings  # type: ignore[union-attr]
    has_head, is_bare = hasattr(model, "lm_head"), not hasattr(model, "model")
    found: dict[str, torch.Tensor] = {}
    stored_names: dict[str, str] = {}
    for path in weight_files(folder):
        for stored, tensor in read_tensors(path):
            name = module_name(stored, multimodal)
            if is_bare:  # Gemma3Model and Gemma3TextModel are `model` in the other classes
                name = name.removeprefix("model.")
            if name in found:
                raise CheckpointError(f"The checkpoint holds {name} twice, as {stored_names[name]} and {stored}.")
            found[name], stored_names[name] = tensor, stored
    if tied:
        _drop_tied_head(found)
    elif not has_head:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(_OF_HEAD)}
    if is_bare:
        found = {name: tensor for name, tensor in found.items() if not name.startswith(_OF_SCORE)}
    elif SCORE in expected and SCORE not in found:
        found[SCORE] = _new_score(model, expected[SCORE], found)
    _check_names_and_shapes(expected, found)
    converted = {
        name: _checked_int4(tensor, name).to(device) if name in int4 else _converted(tensor, name, dtype, device)
        for name, tensor in found.items()
    }
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


def _checked_int4(tensor: torch.Tensor, name: str) -> torch.Tensor:
    """A stored tensor of an int4 layer. Raises CheckpointError for a wrong type, NaN or infinity."""
    expected = {PACKED: torch.uint8, SCALE: SCALE_DTYPE, ZERO: SCALE_DTYPE}[name.rpartition(".")[2]]
    if tensor.dtype != expected:
        got, wanted = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, expected))
        raise CheckpointError(f"{name} is stored as {got}, expected {wanted}. Make the int4 checkpoint again.")
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        raise CheckpointError(f"{name} holds NaN or infinity. Make the int4 checkpoint again.")
    return tensor


def _new_score(model: nn.Module, shape: tuple[int, ...], found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Small random weights for a classifier's missing head, in the type of the checkpoint's other weights."""
    logger.warning("The checkpoint has no %s: it is new and random. Train it before you trust its answers.", SCORE)
    dtype = next((tensor.dtype for tensor in found.values() if tensor.is_floating_point()), torch.float32)
    return torch.randn(shape).mul_(model.config.initializer_range).to(dtype)  # type: ignore[union-attr,arg-type]


def _drop_tied_head(found: dict[str, torch.Tensor]) -> None:
    head = found.pop(HEAD, None)
    embedding = next((t for name, t in found.items() if name.endswith(EMBEDDING)), None)
    if head is not None and embedding is not None and not torch.equal(head, embedding):
        raise CheckpointError(
            f"config.json ties {HEAD} to the embedding, but the checkpoint holds two different tensors. "
            "Set tie_word_embeddings to false there if that is meant."
        )


def _check_names_and_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, torch.Tensor]) -> None:
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


def _converted(tensor: torch.Tensor, name: str, dtype: torch.dtype | None, device: torch.device) -> torch.Tensor:
    if not tensor.is_floating_point():
        raise CheckpointError(f"{name} is stored as {str(tensor.dtype).removeprefix('torch.')}, expected a float type.")
    if dtype is None and tensor.dtype not in (torch.float32, torch.bfloat16):
        raise CheckpointError(FLOAT16_REASON + " Load it with dtype='bfloat16'.")
    return tensor.to(device=device, dtype=dtype or tensor.dtype)
