"""Free memory on a GPU or on the machine, and whether an error means that there was none."""

from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a pass ran out of memory, on a GPU or on a CPU."""
    said = ("can't allocate memory", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in said)


def free_bytes(device: torch.device) -> int | None:
    """Memory left for weights on a GPU; None for a CPU, where weights stay on disk until they are used."""
    if device.type != "cuda":
        return None
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def free_bytes_of_machine() -> int | None:
    """Main memory that this process can still use; None if the system doesn't report it (anything but Linux)."""
    if not _MEMINFO.exists():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    free = [int(lines["MemAvailable"].split()[0]) * 1024]
    # A container's limit may be lower than what the machine has left.
    most, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if most.exists() and used.exists() and (limit := most.read_text().strip()).isdecimal():
        free.append(max(0, int(limit) - int(used.read_text())))
    return min(free)
