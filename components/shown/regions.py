"""A region of a picture, as the browser reports it: drawn by a visitor, or a place with what is around it."""

import math
from collections.abc import Sequence

from gemma3_core.engine import Box, Gemma3Error


def drawn_box(region: str, sizes: Sequence[tuple[int, int]]) -> tuple[int, Box]:
    """Parses "number left top right bottom" into the picture's number and a box in its pixels.

    The last four are shares of the picture's sides; `sizes` are the pictures' widths and heights. Raises Gemma3Error
    for anything else, since browsers can send anything.
    """
    try:
        number, *shares = region.split()
        left, top, right, bottom = (min(1.0, max(0.0, _finite(share))) for share in shares)
        width, height = dict(enumerate(sizes))[int(number)]
    except (ValueError, KeyError):
        raise Gemma3Error("This region is not on a picture. Draw a box on one of the pictures.") from None
    box = Box(int(left * width), int(top * height), int(right * width), int(bottom * height))
    if box.right - box.left < 2 or box.bottom - box.top < 2:
        raise Gemma3Error("The box is too small. Draw a larger one.")
    return int(number), box


def region_around(number: int, box: Box, size: tuple[int, int]) -> str:
    """What `drawn_box` reads, for a box on picture `number` of this width and height with what is `around` it."""
    width, height = size
    left, top, right, bottom = around(box, size)
    return f"{number} {left / width:.5f} {top / height:.5f} {right / width:.5f} {bottom / height:.5f}"


def around(box: Box, size: tuple[int, int]) -> Box:
    """The box with half its sides around it, as far as a picture of this width and height reaches."""
    across, down = (box.right - box.left) // 2, (box.bottom - box.top) // 2
    width, height = size
    left, top = max(0, box.left - across), max(0, box.top - down)
    return Box(left, top, min(width, box.right + across), min(height, box.bottom + down))


def _finite(text: str) -> float:
    """Raises ValueError unless the text is a finite number."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number
