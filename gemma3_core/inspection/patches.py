"""A picture cut into patches of like color, and maps that follow them.

A soft token covers an eighth or a sixteenth of a picture's side, so a map over soft tokens is coarse; the picture says
where things end. A patch gets the mean heat of its pixels, as regions do in XRAI (Kapishnikov et al. 2019, arXiv
1906.02825), so all of an object comes before the ground around it.
"""

import numpy as np
from PIL import Image

from gemma3_core.inspection.heat_maps import TileMap

SIDE = 128  # pixels to which a tile is scaled: enough to see where things end, and fast
LIKE = 90  # the largest difference of like colors, summed over red, green and blue
_LIKER = 45  # the same for things that stand out less, as gray writing does on a white board
_WITHIN = 1e-3  # how much a pixel's own heat counts beside its patch's: it only says which of a patch comes first


def patches_of(tile: Image.Image, like: int = LIKE) -> np.ndarray:
    """The number of each pixel's patch [SIDE, SIDE] of a tile as the encoder sees it."""
    return like_colored(tile.convert("RGB").resize((SIDE, SIDE)), like)


def along_patches(tile_map: TileMap, tile: Image.Image) -> TileMap:
    """The map at [SIDE, SIDE], even within each patch of the tile: the mean of two ways to cut it into patches."""
    heat = interpolated(tile_map)
    made = _WITHIN * heat
    for patches in (patches_of(tile, _LIKER), patches_of(tile)):
        means = np.bincount(patches.ravel(), heat.ravel()) / np.bincount(patches.ravel())
        made = made + means[patches] / 2
    return TileMap(tile_map.tile, tuple(map(tuple, made.tolist())))


def interpolated(tile_map: TileMap) -> np.ndarray:
    """A map's heat at [SIDE, SIDE]; less than nothing counts as nothing."""
    grid = Image.fromarray(np.array(tile_map.grid, dtype=np.float32))
    return np.clip(np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BILINEAR)), 0.0, None)


def like_colored(picture: Image.Image, like: int = LIKE) -> np.ndarray:
    """The number of each pixel's patch [height, width]: a patch is what hangs together with its first pixel, in reading
    order, and is like it in color: `like` is the largest difference."""
    width, height = picture.size
    # A column and a row of border, where a neighbor's place beyond the left or upper edge lies, too.
    pixels = np.pad(np.asarray(picture, dtype=int), ((0, 1), (0, 1), (0, 0)))
    free = bytearray(np.pad(np.ones((height, width), np.uint8), ((0, 1), (0, 1))).tobytes())
    line = width + 1
    # Lists of numbers alone: a list for each pixel would set off the garbage collector.
    reds, greens, blues = (pixels[..., channel].ravel().tolist() for channel in range(3))
    patches, count = np.zeros(len(free), dtype=int), 0
    for first in range(len(free)):
        if not free[first]:
            continue
        red, green, blue, free[first], patch = reds[first], greens[first], blues[first], 0, [first]
        for place in patch:  # which grows meanwhile
            for near in (place - 1, place + 1, place - line, place + line):
                if free[near] and abs(reds[near] - red) + abs(greens[near] - green) + abs(blues[near] - blue) <= like:
                    free[near] = 0
                    patch.append(near)
        patches[patch] = count
        count += 1
    return patches.reshape(height + 1, line)[:height, :width]
