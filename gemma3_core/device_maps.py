"""Where a model's parts lie: on one device, or on several, with what carries the numbers from one to the next."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from torch import nn

from gemma3_core.cache import KVCache
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.int4_linear import Int4Linear
from gemma3_core.layers import DecoderLayer
from gemma3_core.vision import MultiModalProjector, VisionEmbeddings, VisionLayer

logger = logging.getLogger(__name__)

DeviceMap = str | int | torch.device | Mapping[str, Any]

_WHOLE = (DecoderLayer, VisionLayer, VisionEmbeddings, MultiModalProjector)
"""What lies on one device: numbers go round inside it."""
_HEAD, _EMBEDDING = "lm_head", "embed_tokens"
_SHARE_FOR_WEIGHTS = 0.85
"""Of a GPU's free memory; the rest is for the cache and for what a pass computes."""


@dataclass(frozen=True)
class Placement:
    """The device of each part of a model, by the part's name; without parts one device holds everything."""

    main: torch.device
    parts: Mapping[str, torch.device] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Every device once, in the order of the parts."""
        return tuple(dict.fromkeys(self.parts.values())) or (self.main,)

    def of(self, tensor: str) -> torch.device:
        """The device of a tensor, by its name."""
        parts = (part for part in self.parts if tensor == part or tensor.startswith(f"{part}."))
        return self.parts[next(parts)] if self.parts else self.main


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """What may lie on a device of its own, in the order it is run."""
    return dict(_parts("", model))


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    children = list(module.named_children())
    if isinstance(module, _WHOLE) or not children:
        yield name, module
        return
    for child, inside in children:
        yield from _parts(f"{name}.{child}" if name else child, inside)


def placed(model: Any, device_map: DeviceMap | None, num_bytes: Mapping[str, int] | None = None) -> Placement:
    """Where a model that is built on the meta device goes.

    `device_map` is a device for all of it, "auto" (see `pick_device`), or names of modules with the device of each;
    the longest name that fits counts, and "" is everything. `num_bytes` are those of each part: with them "auto"
    uses several GPUs, in order, where the first does not hold the model. Raises UnsupportedOptionError.
    """
    if isinstance(device_map, Mapping):
        return _by_names(model, device_map)
    main = pick_device("cpu" if device_map is None else _one(device_map))
    if device_map != "auto" or main.type != "cuda" or num_bytes is None or torch.cuda.device_count() < 2:
        return Placement(main)
    free = [(torch.device("cuda", i), torch.cuda.mem_get_info(i)[0]) for i in range(torch.cuda.device_count())]
    parts = spread_in_order(num_bytes, free)
    return Placement(main, parts) if len(set(parts.values())) > 1 else Placement(main)


def _by_names(model: Any, device_map: Mapping[str, Any]) -> Placement:
    if wrong := [name for name in device_map if not isinstance(name, str)]:
        raise UnsupportedOptionError(f"device_map must be keyed by names of modules, got {wrong[0]!r}.")
    chosen = {name: pick_device(_one(device)) for name, device in device_map.items()}
    modules = {name for name, _ in model.named_modules()}
    if unknown := sorted(set(chosen) - modules):
        raise UnsupportedOptionError(
            f"device_map names {', '.join(unknown)}: no module of {type(model).__name__}. Its parts are such as "
            f"{', '.join(list(parts_of(model))[-3:])}."
        )
    parts = {}
    for part in parts_of(model):
        inside = [name for name in chosen if name.startswith(f"{part}.")]
        fitting = [name for name in chosen if name == "" or part == name or part.startswith(f"{name}.")]
        if inside:
            raise UnsupportedOptionError(f"device_map divides {part} ({inside[0]}); it lies on one device.")
        if not fitting:
            raise UnsupportedOptionError(f'device_map says nothing of {part}. Name it, or "" for all that is left.')
        parts[part] = chosen[max(fitting, key=len)]
    _keep_tied_head_beside_embedding(model, parts)
    main = next((device for part, device in parts.items() if part.endswith(_EMBEDDING)), next(iter(parts.values())))
    return Placement(main, parts if len(set(parts.values())) > 1 else {})


def _keep_tied_head_beside_embedding(model: Any, parts: dict[str, torch.device]) -> None:
    embedding = next((part for part in parts if part.endswith(_EMBEDDING)), None)
    if _HEAD not in parts or embedding is None or not model.config.tie_word_embeddings:
        return
    if parts[_HEAD] != parts[embedding]:
        logger.warning("%s shares the embedding's weights and lies on its device, %s.", _HEAD, parts[embedding])
        parts[_HEAD] = parts[embedding]


def spread_in_order(num_bytes: Mapping[str, int], free: Sequence[tuple[torch.device, int]]) -> dict[str, torch.device]:
    """Parts to devices: each is filled up to a share of its free bytes, then comes the next; one is enough if it can.

    Raises UnsupportedOptionError where all of them are too small.
    """
    rooms = [(device, int(room * _SHARE_FOR_WEIGHTS)) for device, room in free]
    parts: dict[str, torch.device] = {}
    used = number = 0
    for part, size in num_bytes.items():
        while number < len(rooms) and used + size > rooms[number][1]:
            used, number = 0, number + 1
        if number == len(rooms):
            raise UnsupportedOptionError(
                f"The weights need {sum(num_bytes.values()) / 1e9:.1f} GB; {len(rooms)} GPUs have "
                f"{sum(room for _, room in rooms) / 1e9:.1f} GB free for them. Take dtype='bfloat16', int4 weights, a "
                "smaller checkpoint or device_map='cpu'."
            )
        parts[part] = rooms[number][0]
        used += size
    return parts


def bytes_of_parts(model: Any, itemsize: int) -> dict[str, int]:
    """What the weights of each part take at so many bytes a number; a tied head takes none of its own."""
    tied = model.config.tie_word_embeddings
    return {
        name: 0 if name == _HEAD and tied else sum(p.numel() for p in part.parameters()) * itemsize
        for name, part in parts_of(model).items()
    }


def connect(model: nn.Module) -> None:
    """Lets each part of a model that lies on several devices take its inputs to where it lies by then.

    What the whole model returns goes back to where its inputs belong, the embedding's device.
    """
    for part in parts_of(model).values():
        part.register_forward_pre_hook(_inputs_to_part, with_kwargs=True)
    model.register_forward_pre_hook(_inputs_to_model, with_kwargs=True)
    model.register_forward_hook(_outputs_to_model)


def device_of(part: nn.Module) -> torch.device:
    """Where a part lies."""
    if isinstance(part, Int4Linear) and part.qdata is not None:
        return part.qdata.device
    return next(part.parameters()).device


def _inputs_to_part(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    device = device_of(part)
    return _moved(args, device), _moved(kwargs, device)


def _inputs_to_model(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _moved(args, model.device), _moved(kwargs, model.device)


def _outputs_to_model(model: Any, _: Any, out: Any) -> Any:
    return _moved(out, model.device)


def _moved(value: Any, device: torch.device) -> Any:
    """The tensors in it on that device; a cache stays, its layers lie where the model's do."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, KVCache):
        return value
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _moved(getattr(value, f.name), device) for f in fields(value)})
    if isinstance(value, dict):
        return {name: _moved(item, device) for name, item in value.items()}
    return value


def _one(device: Any) -> str | torch.device:
    """A number is a CUDA device's. UnsupportedOptionError for the disk, where nothing can be computed."""
    if isinstance(device, int) and not isinstance(device, bool):
        return torch.device("cuda", device)
    if device == "disk":
        raise UnsupportedOptionError("device_map names the disk: weights are not offloaded. Take 'cpu' for that part.")
    return device  # type: ignore[no-any-return]


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the first CUDA device, else MPS, else the CPU. UnsupportedOptionError for what is no device."""
    if str(device) != "auto":
        try:
            chosen = torch.device(device)
        except (RuntimeError, TypeError):
            raise UnsupportedOptionError(
                f"device {device!r} is none that this program runs on; use 'auto', 'cuda', 'mps' or 'cpu'."
            ) from None
        cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if chosen.type == "cuda" and (chosen.index or 0) >= cuda:
            raise UnsupportedOptionError(
                f"device {str(device)!r} asks for CUDA device {chosen.index or 0}, and this machine has {cuda}. Use "
                "'auto' or 'cpu', or install a torch build with CUDA."
            )
        if chosen.type == "mps" and not torch.backends.mps.is_available():
            raise UnsupportedOptionError("There is no MPS device on this machine. Use 'auto' or 'cpu'.")
        return chosen
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
