"""What the models of a server hold and do at this moment."""

from dataclasses import dataclass, field

import torch

from gemma3_core.engine.registry import ModelRegistry


@dataclass(frozen=True)
class Usage:
    """`running` of `slots` answers are written, `waiting` questions stand in the queue; sizes in bytes.

    `cache_bytes` are kept for visitors' next questions. `device_bytes` holds what tensors take on a GPU, what torch has
    reserved for them, and the GPU's whole memory; it is empty on a CPU, where the process metrics cover it.
    """

    running: int = 0
    waiting: int = 0
    slots: int = 0
    cache_bytes: int = 0
    models: tuple[str, ...] = ()
    device_bytes: dict[str, int] = field(default_factory=dict)


def usage_of(models: ModelRegistry) -> Usage:
    """The usage of all models in memory, which may share one queue."""
    with models.loaded() as engines:
        queues = {id(engine.queue): engine.queue for engine in engines}.values()
        counts = [queue.counts() for queue in queues]
        return Usage(
            running=sum(running for running, _ in counts),
            waiting=sum(waiting for _, waiting in counts),
            slots=sum(queue.max_running for queue in queues),
            cache_bytes=sum(engine.kept_bytes for engine in engines),
            models=tuple(engine.info.name for engine in engines),
            device_bytes=_device_bytes(models.first.info.device.partition(":")[0]),
        )


def _device_bytes(kind: str) -> dict[str, int]:
    """Memory of this process's current device; empty where another process or server has the device."""
    if kind == "cuda" and torch.cuda.is_initialized():
        return {
            "allocated": torch.cuda.memory_allocated(),
            "reserved": torch.cuda.memory_reserved(),
            "total": torch.cuda.mem_get_info()[1],
        }
    if kind == "mps":
        return {"allocated": torch.mps.current_allocated_memory(), "reserved": torch.mps.driver_allocated_memory()}
    return {}
