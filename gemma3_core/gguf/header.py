"""The header of a GGUF file: metadata, and where each tensor lies.

ggml-org's own reader makes an object of each of Gemma 3's 262,144 tokens, scores and types, which takes longer than all
the rest of loading. This one trusts no length in the file: each is compared with the bytes that follow before anything
is reserved. Source: docs/gguf.md in ggml-org/ggml.
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gemma3_core.errors import CheckpointError
from gemma3_core.gguf.blocks import BLOCK_TYPES, BlockType, type_name

MAGIC = b"GGUF"
ARCHITECTURE = "general.architecture"
_VERSIONS = (2, 3)
_MOST_ENTRIES = 65_536
"""Limit for the metadata, and for the tensors."""
_MOST_ITEMS = 2**21  # of an array: eight times Gemma 3's vocabulary
_LONGEST_NAME, _LONGEST_TEXT = 1024, 2**20  # bytes
_MOST_DIMENSIONS = 4
_ALIGNMENT = 32
_SCALARS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """A tensor in a file. `shape` has the rows first, as in torch; `start` is in bytes from the file's beginning."""

    name: str
    shape: tuple[int, ...]
    kind: BlockType
    start: int

    @property
    def bytes_per_row(self) -> int:
        return self.shape[-1] // self.kind.elements * self.kind.num_bytes

    @property
    def num_bytes(self) -> int:
        return prod(self.shape[:-1]) * self.bytes_per_row


@dataclass(frozen=True)
class Header:
    """What a file says before its weights. Arrays of numbers are numpy arrays, those of texts are lists."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        return str(self.metadata.get(ARCHITECTURE))

    def data(self, tensor: TensorInfo) -> torch.Tensor:
        """A tensor's bytes, uint8 [rows, bytes per row], mapped from the file."""
        shape = (prod(tensor.shape[:-1]), tensor.bytes_per_row)
        # "c": pages that somebody writes to are copied; torch warns of memory that can't be written to.
        return torch.from_numpy(np.memmap(self.path, np.uint8, "c", tensor.start, shape))


def is_gguf(path: Path) -> bool:
    """Whether the file begins as a GGUF file does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: Path, lists_of_texts: bool = True) -> Header:
    """Without `lists_of_texts`, of which the vocabulary is one, they are skipped and stand as empty lists.

    Raises CheckpointError that names the file (without its folder) for anything that can't be read.
    """

    if lists_of_texts or not path.is_file():
        return _read(path, partial(_header, path))  # type: ignore[no-any-return]
    status = path.stat()
    return _header_without_texts(path, (status.st_size, status.st_mtime_ns, status.st_ino))


@lru_cache(maxsize=8)
def _header_without_texts(path: Path, _version: tuple[int, int, int]) -> Header:
    """Loading asks several times, and half a million texts take a while even to skip."""

    def read(cursor: _Cursor) -> Header:
        cursor.skips_lists_of_texts = True
        return _header(path, cursor)

    return _read(path, read)  # type: ignore[no-any-return]


def read_architecture(path: Path) -> str:
    """The architecture alone, which files name first."""
    return _read(path, lambda cursor: _architecture(cursor))


class _Cursor:
    """Reads a mapped file from the front."""

    def __init__(self, name: str, data: mmap.mmap):
        self.name, self._data, self.place = name, data, 0
        self.skips_lists_of_texts = False

    @property
    def left(self) -> int:
        return len(self._data) - self.place

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.name} is damaged: {what}. Download it again.")

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise CheckpointError(f"{self.name} is cut off. Download it again.")
        self.place += size
        return self._data[self.place - size : self.place]

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self, longest: int, what: str) -> str:
        size = self.number("Q")
        if size > longest:
            raise self.damaged(f"{what} of {size:,} bytes, where {longest:,} are the most")
        try:
            return self.take(size).decode()
        except UnicodeDecodeError:
            raise self.damaged(f"{what} that is no text") from None

    def value(self, key: str) -> Any:
        kind = self.number("I")
        if kind == _TEXT:
            return self.text(_LONGEST_TEXT, f"{key} has a text")
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self.damaged(f"{key} is of the unknown type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self, key: str) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if count > _MOST_ITEMS:
            raise self.damaged(f"{key} has {count:,} entries, where {_MOST_ITEMS:,} are the most")
        if kind == _TEXT and self.skips_lists_of_texts:
            self._skip_texts(count)
            return []
        if kind == _TEXT:
            return [self.text(_LONGEST_TEXT, f"{key} has a text") for _ in range(count)]
        if kind not in _SCALARS:
            raise self.damaged(f"{key} is a list of the unknown type {kind}")
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def _skip_texts(self, count: int) -> None:
        place, data, sizes = self.place, self._data, struct.Struct("<Q")
        try:
            for _ in range(count):
                place += sizes.size + sizes.unpack_from(data, place)[0]
        except (struct.error, OverflowError):
            place = len(data) + 1
        self.take(place - self.place)


def _read(path: Path, reading: Callable[[_Cursor], Any]) -> Any:
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            cursor = _Cursor(path.name, data)
            _check_beginning(cursor)
            return reading(cursor)
    except (OSError, ValueError) as error:  # mmap refuses an empty file with a ValueError
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path.name} can't be read ({type(error).__name__}). Download it again.") from None


def _check_beginning(cursor: _Cursor) -> None:
    if cursor.take(len(MAGIC)) != MAGIC:
        raise CheckpointError(f"{cursor.name} is not a GGUF file. Give a .gguf file, or a folder with a checkpoint.")
    version = cursor.number("I")
    if version not in _VERSIONS:
        big = not version & 0xFFFF
        what = "is written for big-endian machines" if big else f"is of GGUF version {version}"
        raise CheckpointError(f"{cursor.name} {what}; this program reads versions 2 and 3, little-endian.")


def _architecture(cursor: _Cursor) -> str:
    _, count = _counts(cursor)
    for _ in range(count):
        key = cursor.text(_LONGEST_NAME, "there is a key")
        value = cursor.value(key)
        if key == ARCHITECTURE:
            return str(value)
    return ""


def _counts(cursor: _Cursor) -> tuple[int, int]:
    """How many tensors and how many entries of metadata there are."""
    tensors, entries = cursor.number("Q"), cursor.number("Q")
    if max(tensors, entries) > _MOST_ENTRIES:
        raise cursor.damaged(f"it announces {tensors:,} tensors and {entries:,} entries of metadata")
    return tensors, entries


def _header(path: Path, cursor: _Cursor) -> Header:
    num_tensors, num_entries = _counts(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = cursor.text(_LONGEST_NAME, "there is a key")
        if key in metadata:
            raise cursor.damaged(f"it holds {key} twice")
        metadata[key] = cursor.value(key)
    infos = [_tensor(cursor) for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise cursor.damaged(f"its alignment is {alignment!r}")
    begin = -(-cursor.place // alignment) * alignment
    size = cursor.place + cursor.left
    tensors: dict[str, TensorInfo] = {}
    for info in infos:
        if info.name in tensors:
            raise cursor.damaged(f"it holds {info.name} twice")
        if info.start % alignment:
            raise cursor.damaged(f"{info.name} lies between two places of the alignment")
        placed = TensorInfo(info.name, info.shape, info.kind, begin + info.start)
        if placed.start + placed.num_bytes > size:
            raise CheckpointError(f"{cursor.name} is cut off: {info.name} lies beyond its end. Download it again.")
        tensors[info.name] = placed
    end = begin
    for placed in sorted(tensors.values(), key=lambda info: info.start):
        if placed.start < end:
            raise cursor.damaged(f"{placed.name} lies over another tensor")
        end = placed.start + placed.num_bytes
    return Header(path, metadata, tensors)


def _tensor(cursor: _Cursor) -> TensorInfo:
    """A tensor's entry; its start counts from the first tensor."""
    name = cursor.text(_LONGEST_NAME, "there is a tensor's name")
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise cursor.damaged(f"{name} has {dimensions:,} dimensions")
    shape = tuple(reversed([cursor.number("Q") for _ in range(dimensions)]))
    number, start = cursor.number("I"), cursor.number("Q")
    if not all(shape):
        raise cursor.damaged(f"{name} has the shape {list(shape)}")
    if number not in BLOCK_TYPES:
        listed = ", ".join(kind.name for kind in BLOCK_TYPES.values())
        raise CheckpointError(
            f"{name} in {cursor.name} is stored as {type_name(number)}, which this program does not read. "
            f"Choose a file of one of {listed}."
        )
    kind = BLOCK_TYPES[number]
    if shape[-1] % kind.elements:
        raise cursor.damaged(f"{name} has rows of {shape[-1]:,} weights, but {kind.name} takes {kind.elements} a block")
    return TensorInfo(name, shape, kind, start)
