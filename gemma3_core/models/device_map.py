"""`device_map` and device names -> the one device of a model, which is never spread over several."""

from collections.abc import Mapping
from typing import Any

import torch

from gemma3_core.errors import UnsupportedOptionError

DeviceMap = str | int | torch.device | Mapping[str, Any]


def mapped_device(device_map: DeviceMap | None) -> torch.device:
    """The device of a `device_map`: a device, a CUDA device's number, "auto" (see `pick_device`) or {"": one of these}.

    None is the CPU. Raises UnsupportedOptionError for anything else, and for a missing device.
    """
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise UnsupportedOptionError(
                f"device_map places parts of the model separately ({', '.join(map(str, device_map)) or 'none'}), but a "
                'model runs on one device. Give "auto", a device such as "cuda", or {"": device}.'
            )
        device_map = device_map[""]
        if device_map is None:
            raise UnsupportedOptionError('device_map={"": None} names no device. Give "auto", "cuda" or "cpu".')
    if isinstance(device_map, int) and not isinstance(device_map, bool):
        device_map = torch.device("cuda", device_map)
    return pick_device("cpu" if device_map is None else device_map)  # type: ignore[arg-type]


def pick_device(device: str | torch.device) -> torch.device:
    """ "auto" is the first CUDA device, else MPS, else the CPU. Raises UnsupportedOptionError for an unknown device."""
    if str(device) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
        raise UnsupportedOptionError(
            f"Device {device!r} is not supported. Use 'auto', 'cuda', 'mps' or 'cpu'."
        ) from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise UnsupportedOptionError(
            f"Device {str(device)!r} asks for CUDA device {chosen.index or 0}, but this machine has {count}. "
            "Use 'auto' or 'cpu', or install a torch build with CUDA."
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise UnsupportedOptionError("This machine has no MPS device. Use 'auto' or 'cpu'.")
    return chosen
