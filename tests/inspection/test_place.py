"""The estimated place of a word's object: patches of a picture, the box around the hot ones, and the head they are
seen through."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.heat_maps import TileMap, connected
from gemma3_core.inspection.patches import LIKE, SIDE, along_patches, like_colored
from gemma3_core.inspection.place import estimated_box, estimated_place, look_of_best_head
from gemma3_core.inspection.prompt import Tile

WHOLE = Tile(0, None, Box(0, 0, 400, 200), 1, 17)
CROP = Tile(1, 0, Box(100, 0, 300, 100), 20, 36)
RED, BLUE = (200, 30, 30), (20, 30, 120)


def drawn(*boxes: tuple[int, int, int, int]) -> Image.Image:
    """Red boxes on blue, in a tile of 128 pixels to a side."""
    picture = Image.new("RGB", (128, 128), BLUE)
    for box in boxes:
        ImageDraw.Draw(picture).rectangle(box, fill=RED)
    return picture


def map_at(tile: Tile, row: int, column: int) -> TileMap:
    grid = np.full((4, 4), 0.01)
    grid[row, column] = 1.0
    return TileMap(tile, tuple(map(tuple, grid.tolist())))


def test_patches_hang_together_and_are_alike():
    patches = like_colored(drawn((10, 10, 19, 19), (40, 40, 49, 49)))
    assert patches.max() == 2
    assert (patches == patches[12, 12]).sum() == 100
    assert patches[12, 12] != patches[45, 45]


@pytest.mark.parametrize(("width", "height"), [(1, 1), (9, 1), (1, 9), (13, 17)])
def test_a_patch_has_all_that_hangs_together_with_its_first_pixel_and_is_like_it(width, height):
    """Patches are taken in reading order: each has whatever those before it have left."""
    noise = np.random.default_rng(0).integers(0, 120, (height, width, 3), dtype=np.uint8)
    patches, colors, seen = like_colored(Image.fromarray(noise)), noise.astype(int), 0
    for number in range(int(patches.max()) + 1):
        first = np.unravel_index(int((patches == number).argmax()), patches.shape)
        alike = np.abs(colors - colors[first]).sum(axis=2) <= LIKE
        among = alike & (patches >= number)
        assert np.array_equal(patches == number, connected(among, (int(first[0]), int(first[1]))))
        place = int(first[0]) * width + int(first[1])
        assert place >= seen
        seen = place
    assert patches.max() > 20 or patches.size < 20


def test_a_map_along_patches_has_all_of_a_thing_before_the_ground_and_ends_where_it_ends():
    thing, ground = (slice(8, 24), slice(40, 60)), (60, 10)
    sharp = np.array(along_patches(map_at(WHOLE, 0, 1), drawn((40, 8, 59, 23))).grid)
    assert sharp.shape == (SIDE, SIDE)
    within = np.zeros_like(sharp, dtype=bool)
    within[thing] = True
    assert sharp[within].min() > 3 * sharp[~within].max(), "a soft token reaches far beyond it"
    assert sharp[within].max() - sharp[within].min() < 0.01 < sharp[thing][0, 0] - sharp[ground]


def test_what_stands_out_little_has_a_patch_too():
    faint = Image.new("RGB", (128, 128), (200, 200, 200))
    faint.paste((180, 180, 180), (40, 8, 60, 24))
    assert like_colored(faint).max() == 0
    sharp = np.array(along_patches(map_at(WHOLE, 0, 1), faint).grid)
    assert sharp[16, 50] > 1.5 * sharp[4, 50]


def test_the_box_is_around_what_the_heat_lies_on():
    picture = drawn((40, 8, 59, 23), (90, 90, 120, 120))
    assert estimated_box(map_at(WHOLE, 0, 1), picture) == Box(125, 12, 188, 38)
    other = estimated_box(map_at(WHOLE, 3, 3), picture)
    assert other == Box(281, 140, 378, 189)
    # In a crop's own part of its picture.
    assert estimated_box(map_at(CROP, 0, 1), picture) == Box(162, 6, 194, 19)


def test_pieces_that_lie_close_together_are_one_thing():
    letters = drawn((34, 40, 40, 56), (44, 40, 50, 56), (54, 40, 60, 56), (100, 40, 110, 56))
    assert estimated_box(map_at(WHOLE, 1, 1), letters) == Box(106, 62, 191, 89)


def test_a_flat_map_and_an_even_picture_give_a_box_within_the_tile():
    flat = TileMap(WHOLE, tuple((0.0,) * 4 for _ in range(4)))
    assert estimated_box(flat, drawn()) == WHOLE.box


def test_the_place_is_seen_through_the_head_that_looks_most_at_what_the_word_rests_on():
    weights = torch.zeros(2, 2, 1, 40)
    weights[0, 1, 0, CROP.start + 1] = 0.4  # where the word rests, most of all heads
    weights[1, 0, 0, WHOLE.start + 15] = 0.9  # elsewhere
    rests = (TileMap(WHOLE, ((0.0,) * 4,) * 4), map_at(CROP, 0, 1))
    picture = drawn((40, 8, 59, 23), (90, 90, 120, 120))
    look = look_of_best_head(weights, rests)
    assert look.tiles[1].grid[0][1] == pytest.approx(0.4)
    assert np.array(look.tiles[0].grid).max() == 0
    place = estimated_place(look, (picture, picture))
    assert (place.picture, place.layer, place.head) == (1, 0, 1)
    assert place.box == Box(162, 6, 194, 19)
