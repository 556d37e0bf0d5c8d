"""Pan & scan: which parts of a long picture the model sees on their own. Pure arithmetic."""

import math
from typing import NamedTuple


class Box(NamedTuple):
    """Part of a picture, in pixels, as Pillow's `crop` takes it: right and bottom are just outside."""

    left: int
    top: int
    right: int
    bottom: int


def pan_and_scan_boxes(
    width: int,
    height: int,
    min_crop_size: int = 256,
    max_num_crops: int = 4,
    min_ratio_to_activate: float = 1.2,
) -> list[Box]:
    """One row or one column of equal crops along the longer side; empty where there are none.

    From the Gemma 3 report (arXiv 2503.19786, section 2.1), with the arithmetic of transformers:
    as many crops as the sides' ratio, rounded half up. The last crop may be a few pixels shorter.
    """
    if max(width, height) / min(width, height) < min_ratio_to_activate:
        return []
    columns, rows = _grid(width, height, min_crop_size, max_num_crops)
    crop_width, crop_height = math.ceil(width / columns), math.ceil(height / rows)
    if min(crop_width, crop_height) < min_crop_size:
        return []
    corners = [(x * crop_width, y * crop_height) for y in range(rows) for x in range(columns)]
    return [
        Box(left, top, min(left + crop_width, width), min(top + crop_height, height))
        for left, top in corners
        if left < width and top < height
    ]


def explain_pan_and_scan(
    width: int,
    height: int,
    min_crop_size: int = 256,
    max_num_crops: int = 4,
    min_ratio_to_activate: float = 1.2,
) -> str:
    """One plain sentence: how many crops a picture gets, or why it gets none."""
    picture = f"{width} x {height}"
    if max(width, height) / min(width, height) < min_ratio_to_activate:
        shape = "square" if width == height else "nearly square"
        return f"{picture} is {shape}: crops begin when one side is {min_ratio_to_activate:g} times the other."
    boxes = pan_and_scan_boxes(width, height, min_crop_size, max_num_crops, min_ratio_to_activate)
    if boxes:
        crops = "1 crop" if len(boxes) == 1 else f"{len(boxes)} crops"
        return f"{picture} is {'wide' if width > height else 'tall'}: {crops} beside the whole picture."
    columns, rows = _grid(width, height, min_crop_size, max_num_crops)
    crop = f"{math.ceil(width / columns)} x {math.ceil(height / rows)}"
    return (
        f"{picture} is too small for crops: each would be {crop} pixels, "
        f"and the shorter side must be at least {min_crop_size}."
    )


def _grid(width: int, height: int, min_crop_size: int, max_num_crops: int) -> tuple[int, int]:
    """Columns and rows of crops, before asking whether each is large enough."""
    longer, shorter = max(width, height), min(width, height)
    count = min(longer // min_crop_size, math.floor(longer / shorter + 0.5))
    count = min(max_num_crops, max(2, count))
    return (count, 1) if width >= height else (1, count)


def enough_pixels(width: int, height: int, tile: int = 896, detail: float = 2.0) -> tuple[int, int]:
    """The size to which a picture can be made smaller while the model sees the same, with pan & scan on or off.

    The model gets the whole picture and each crop in `tile` x `tile` pixels; `detail` times as many a side are enough.
    The test measures what that changes: about one level of 255 in the mean. Returns the same size where nothing is
    gained, or where rounding would change the crops.
    """
    boxes = pan_and_scan_boxes(width, height)
    columns, rows = len({box.left for box in boxes}) or 1, len({box.top for box in boxes}) or 1
    scale = max(detail * tile * columns / width, detail * tile * rows / height)
    if scale >= 1:
        return width, height
    smaller = max(1, round(width * scale)), max(1, round(height * scale))
    return smaller if len(pan_and_scan_boxes(*smaller)) == len(boxes) else (width, height)
