"""Files that hold pictures without being one (PDF, video, TIFF, GIF), read in a process of their own, within bounds."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma3_core.errors import ImageError
from gemma3_core.images.unpacking import OUT_OF_MEMORY

logger = logging.getLogger(__name__)

MAX_TAKEN = 20
"""Pages or frames that are taken from one file."""
MAX_WALL_S = 60.0
"""For one file; its processor time is bounded in `unpacking.py`."""
_MAX_TOLD_BYTES = 1_000_000
_ROOT = Path(__file__).resolve().parents[2]
_TOO_MUCH = "This file takes too much time or memory to read. Add a shorter or simpler one, or a screenshot."
_UNREADABLE = "This file can't be read. Save it again, or take a screenshot, and add that."


@dataclass(frozen=True)
class Taken:
    """A picture from a document: its file, its page's number (from 0), its time in a video in seconds.

    `width` and `height` are the size that it had there, in pixels.
    """

    data: bytes
    suffix: str
    number: int
    second: float | None
    width: int
    height: int


@dataclass(frozen=True)
class Document:
    """What a file holds: `count` pages, of which those with `sizes` in pixels can be chosen, or a video of `seconds`.

    `thumbnails` are small JPEGs of the first pages, by their number. A file with one picture brings it along.
    """

    kind: str
    count: int
    sizes: tuple[tuple[int, int], ...]
    seconds: float | None
    thumbnails: tuple[tuple[int, bytes], ...]
    only: Taken | None


def open_document(path: Path) -> Document:
    """Looks into a file. Raises ImageError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told = _read(path, folder)
        pictures = [_taken(folder, one) for one in told["pictures"]]
        return Document(
            kind=told["kind"],
            count=told["count"],
            sizes=tuple((width, height) for width, height in told["sizes"]),
            seconds=told["seconds"],
            thumbnails=tuple((number, (folder / file).read_bytes()) for number, file in told["thumbnails"]),
            only=pictures[0] if pictures else None,
        )


def take_pages(path: Path, numbers: Sequence[int]) -> list[Taken]:
    """The pictures of these pages, counted from 0. Raises ImageError."""
    if not 1 <= len(numbers) <= MAX_TAKEN:
        raise ImageError(f"{len(numbers)} pages are chosen; choose 1 to {MAX_TAKEN}.")
    with tempfile.TemporaryDirectory() as name:
        return [_taken(Path(name), one) for one in _read(path, Path(name), numbers)["pictures"]]


def take_frames(path: Path, count: int) -> list[Taken]:
    """Frames of a video, evenly spaced, each with its time. Raises ImageError."""
    return take_pages(path, [round(1000 * (place + 0.5) / count) for place in range(count)])


def _taken(folder: Path, told: dict[str, Any]) -> Taken:
    file = folder / told["file"]
    return Taken(file.read_bytes(), file.suffix, told["number"], told["second"], told["width"], told["height"])


def _read(path: Path, folder: Path, numbers: Sequence[int] = ()) -> dict[str, Any]:
    """Runs the reading process; returns what it tells. Its pictures lie in `folder`."""
    command = [sys.executable, "-m", "gemma3_core.images.unpacking", str(path), str(folder), *map(str, numbers)]
    # No token or setting of the server reaches the process; one arena keeps its addresses few.
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT") if name in os.environ}
    environment = {**kept, "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, cwd=_ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=MAX_WALL_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise ImageError(_TOO_MUCH) from None
    result = folder / "result.json"
    if done.returncode < 0 or done.returncode == OUT_OF_MEMORY:  # ended by the system, at one of its limits
        raise ImageError(_TOO_MUCH)
    if done.returncode or not result.is_file() or result.stat().st_size > _MAX_TOLD_BYTES:
        logger.warning("reading a document ended with status %s", done.returncode)
        raise ImageError(_UNREADABLE)
    told = json.loads(result.read_text(encoding="utf-8"))
    if "error" in told:
        raise ImageError(told["error"])
    return told
