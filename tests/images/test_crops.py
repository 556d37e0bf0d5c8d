"""Crops that somebody chooses: an even tiling, boxes, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from gemma3_core.errors import ImageError
from gemma3_core.images.crops import MAX_CROPS, checked_crops, even_crops
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.images.processor import Gemma3ImageProcessor, Gemma3ImageProcessorPil

SIZE = {"height": 64, "width": 64}
BACK_ENDS = pytest.mark.parametrize("kind", [Gemma3ImageProcessor, Gemma3ImageProcessorPil])


@pytest.fixture
def picture() -> Image.Image:
    """200 x 120 pixels, a gradient both ways."""
    across, down = Image.linear_gradient("L").rotate(90).resize((200, 120)), Image.linear_gradient("L")
    return Image.merge("RGB", [across, down.resize((200, 120)), Image.new("L", (200, 120), 90)])


@pytest.mark.parametrize(
    ("size", "tile", "grid"),
    [
        ((1000, 1000), 896, (2, 2)),
        ((1792, 1792), 896, (2, 2)),
        ((1793, 1793), 896, (3, 3)),
        ((1600, 800), 896, (2, 1)),
        ((500, 3000), 896, (1, 3)),
        ((100, 80), 256, (2, 2)),
        ((1, 1), 256, (0, 0)),
        ((3, 1), 256, (2, 1)),
    ],
)
def test_the_even_tiling_covers_the_picture_once(size, tile, grid):
    boxes = even_crops(*size, tile)
    assert (len({box.left for box in boxes}), len({box.top for box in boxes})) == grid
    assert sum((b.right - b.left) * (b.bottom - b.top) for b in boxes) == (size[0] * size[1] if boxes else 0)
    assert all(b.right > b.left and b.bottom > b.top for b in boxes)


def test_boxes_are_cut_to_the_picture():
    assert checked_crops([(-5, 10, 50, 500)], 100, 80) == [Box(0, 10, 50, 80)]
    assert checked_crops([(0, 0, 5, 5)], 5, 5) == [Box(0, 0, 5, 5)]
    assert checked_crops([], 100, 80) == []


@pytest.mark.parametrize(
    ("crops", "said"),
    [
        ("all", "Crops must be boxes"),
        (7, "Crops must be boxes"),
        ([(1, 2, 3)], "four whole numbers"),
        ([(0.5, 0, 20, 20)], "four whole numbers"),
        ([(True, 0, 20, 20)], "four whole numbers"),
        (["0 0 20 20"], "four whole numbers"),
        ([(100, 0, 120, 80)], "leaves too little of a picture of 100 x 80 pixels"),
        ([(50, 50, 51, 51)], "at least 16 x 16 pixels"),
        ([(50, 50, 20, 20)], "leaves too little"),
        ([(10**30, 0, 10**31, 80)], "leaves too little"),
        ([(0, 0, 20, 20)] * (MAX_CROPS + 1), f"at most {MAX_CROPS} crops, got 17"),
    ],
)
def test_what_is_no_crop_is_refused(crops, said):
    with pytest.raises(ImageError, match=said):
        checked_crops(crops, 100, 80)


@BACK_ENDS
def test_each_crop_is_the_tile_of_that_part_alone(kind, picture):
    processor, box = kind(size=SIZE), Box(30, 20, 110, 100)
    inputs = processor([picture, picture], crops=[[box], None], return_tensors="pt")
    assert list(inputs["num_crops"]) == [1, 0]
    alone = processor([picture, picture.crop(box), picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(inputs["pixel_values"], alone)


@BACK_ENDS
def test_pan_and_scans_own_boxes_give_its_pixels(kind, picture):
    processor = kind(size=SIZE, pan_and_scan_min_crop_size=40)
    cut = processor(picture, do_pan_and_scan=True, return_tensors="pt")
    boxes = processor.with_options(do_pan_and_scan=True).boxes(*picture.size)
    assert len(boxes) == 2
    chosen = processor(picture, crops=[boxes], do_pan_and_scan=True, return_tensors="pt")
    assert torch.equal(cut["pixel_values"], chosen["pixel_values"])
    assert list(chosen["num_crops"]) == [2]


@BACK_ENDS
def test_auto_is_the_even_tiling_and_an_array_is_cut_as_its_picture(kind, picture):
    processor = kind(size=SIZE)
    assert processor.boxes(200, 120, "auto") == even_crops(200, 120, 64)
    given = processor(np.array(picture), crops=["auto"], return_tensors="pt")
    shown = processor(picture, crops=["auto"], return_tensors="pt")
    assert list(given["num_crops"]) == [6]
    assert torch.equal(given["pixel_values"], shown["pixel_values"])


def test_crops_for_another_number_of_pictures_are_refused(picture):
    with pytest.raises(ImageError, match="2 entries for 1 pictures"):
        Gemma3ImageProcessor(size=SIZE)(picture, crops=[None, None])
