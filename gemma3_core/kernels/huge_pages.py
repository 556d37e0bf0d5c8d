"""Memory for weights in pages of 2 MB, which Linux gives to programs that ask for it.

Each token reads all weights. With 4 KB pages there is a TLB miss for each page, which a virtual machine resolves in two
tables, and prefetching stops at page ends. A file that is mapped into memory keeps the pages it is cached in, so this
is for weights that loading converts or packs.
"""

import logging
import mmap
import threading
import weakref
from functools import cache
from pathlib import Path

import torch

_PAGE = 2**21
_SLAB = 2**26
"""Weights share mappings of this size, and larger ones have their own."""
_LEAST = 2**15
"""Smaller tensors stay where they are."""
_ALIGNED = 64
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")

log = logging.getLogger(__name__)
_lock = threading.Lock()


class _Slab:
    """The mapping that the next small weights go to. It lives as long as the tensors in it."""

    def __init__(self) -> None:
        self._mapping: weakref.ref[mmap.mmap] | None = None
        self._used = 0

    def take(self, count: int) -> tuple[mmap.mmap, int]:
        """A mapping, and where in it `count` bytes are free. Raises OSError."""
        if count > _SLAB // 2:
            return _mapped(count)
        mapping = None if self._mapping is None else self._mapping()
        if mapping is None or self._used + count > len(mapping):
            mapping, self._used = _mapped(_SLAB)
            self._mapping = weakref.ref(mapping)
        start = self._used
        self._used += -(-count // _ALIGNED) * _ALIGNED
        return mapping, start


_slab = _Slab()


def in_huge_pages(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a CPU tensor in pages of 2 MB, with its own storage; the tensor itself where that does not help."""
    if tensor.device.type != "cpu" or tensor.nbytes < _LEAST or not _are_given():
        return tensor
    try:
        with _lock:
            mapping, start = _slab.take(tensor.nbytes)
            copy = torch.frombuffer(mapping, dtype=tensor.dtype, count=tensor.numel(), offset=start)
    except OSError as error:  # there is no memory to map, or the process may have no more mappings
        log.info("A weight stays in pages of the usual size: %s", error)
        return tensor
    return copy.view(tensor.shape).copy_(tensor)


@cache
def _are_given() -> bool:
    return _SYSTEM.exists() and "[never]" not in _SYSTEM.read_text(encoding="utf-8")


def _mapped(count: int) -> tuple[mmap.mmap, int]:
    """A mapping, and where `count` bytes begin in it, at a page's start. Raises OSError."""
    mapping = mmap.mmap(-1, count + _PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    return mapping, -torch.frombuffer(mapping, dtype=torch.uint8).data_ptr() % _PAGE
