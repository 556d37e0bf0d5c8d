"""What the machine can do at most: bytes that it reads a second, and operations a second in matrix products."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gemma3_core.kernels.huge_pages import in_huge_pages

_ROUNDS, _LONG_S = 5, 5.0
"""So many runs, or as many as begin within so many seconds: one takes longer where bfloat16 has no units of its own."""


@dataclass(frozen=True)
class Limits:
    """Measured on one device; the best of some rounds each."""

    bytes_per_s: float
    operations_per_s: float
    """In the faster of float32 and bfloat16: a multiplication and an addition are two."""

    def share_of_bytes(self, num_bytes: float, seconds: float) -> float:
        return num_bytes / seconds / self.bytes_per_s

    def share_of_operations(self, operations: float, seconds: float) -> float:
        return operations / seconds / self.operations_per_s


def measure(device: torch.device, size: int | None = None, width: int | None = None) -> Limits:
    """Reads `size` bytes, and multiplies matrices of `width`; both larger than any cache where they are not given."""
    on_gpu = device.type == "cuda"
    numbers = in_huge_pages(torch.ones((size or (2**32 if on_gpu else 2**29)) // 4, device=device))
    rows = numbers.view(64, -1)
    vector = torch.ones(rows.shape[1], device=device)
    # Neither a sum nor a product with a vector is the faster reader on every processor.
    read = numbers.nbytes / min(_best(numbers.sum, device), _best(partial(torch.mv, rows, vector), device))
    del numbers, rows
    width = width or (8192 if on_gpu else 2048)
    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.ones(width, width, dtype=dtype, device=device) for _ in range(2))
        rates.append(2 * width**3 / _best(lambda a=a, b=b: a @ b, device))  # type: ignore[misc]
    return Limits(read, max(rates))


def bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of tensors, of which each storage counts once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def _best(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of some runs."""
    times: list[float] = []
    while len(times) < _ROUNDS and sum(times) < _LONG_S:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
