"""Crops that somebody chooses in place of pan & scan's: boxes, or an even tiling. Pure arithmetic."""

from collections.abc import Sequence
from typing import Any, Literal

from gemma3_core.errors import ImageError
from gemma3_core.images.pan_and_scan import Box

Crops = Sequence[Box] | Literal["auto"] | None
"""One picture's crops: boxes in its pixels, "auto" for an even tiling, or None for what pan & scan gives."""

MAX_CROPS = 16
"""The most crops of one picture."""
MIN_CROP_SIDE = 16  # pixels

_MOST_A_SIDE = 3


def even_crops(width: int, height: int, tile: int) -> list[Box]:
    """Equal crops that cover the picture, as nearly square as they can be: 2 along the longer side if that shows every
    pixel at the encoder's size of `tile` pixels, else 3. So a square picture gets 2 x 2 or 3 x 3."""
    longer, shorter = max(width, height), min(width, height)
    along = 2 if longer <= 2 * tile else _MOST_A_SIDE
    across = max(1, round(along * shorter / longer))
    columns, rows = (along, across) if width >= height else (across, along)
    return [
        Box(width * x // columns, height * y // rows, width * (x + 1) // columns, height * (y + 1) // rows)
        for y in range(rows)
        for x in range(columns)
        if width >= columns and height >= rows
    ]


def checked_crops(crops: Any, width: int, height: int) -> list[Box]:
    """The boxes of a picture of this size, cut to its edges.

    Raises ImageError for an invalid box, for one that lies outside or is smaller than MIN_CROP_SIDE pixels a side, and
    for more than MAX_CROPS.
    """
    if isinstance(crops, str) or not isinstance(crops, Sequence):
        raise ImageError(f'Crops must be boxes (left, top, right, bottom) or "auto", got {crops!r:.60}.')
    if len(crops) > MAX_CROPS:
        raise ImageError(f"A picture can have at most {MAX_CROPS} crops, got {len(crops):,}. Choose fewer.")
    return [_checked(box, width, height) for box in crops]


def _checked(box: Any, width: int, height: int) -> Box:
    numbers = list(box) if isinstance(box, Sequence) and not isinstance(box, str) else []
    if len(numbers) != 4 or not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
        raise ImageError(f"A crop must be four whole numbers (left, top, right, bottom), got {box!r:.60}.")
    left, top, right, bottom = numbers
    cut = Box(max(0, left), max(0, top), min(width, right), min(height, bottom))
    smallest = min(MIN_CROP_SIDE, width, height)
    if min(cut.right - cut.left, cut.bottom - cut.top) < smallest:
        raise ImageError(
            f"The crop {tuple(numbers)!s:.60} leaves too little of a picture of {width} x {height} pixels. "
            f"Choose a part of at least {smallest} x {smallest} pixels inside the picture."
        )
    return cut
