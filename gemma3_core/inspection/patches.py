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
    pixels = np.asarray(picture, dtype=int).reshape(-1, 3).tolist()
    patches, count = [-1] * len(pixels), 0
    for first, (red, green, blue) in enumerate(pixels):
        if patches[first] >= 0:
            continue
        patches[first], edge = count, [first]
        while edge:
            place = edge.pop()
            column = place % width
            left, right = place - 1 if column else -1, place + 1 if column < width - 1 else -1
            for near in (left, right, place - width, place + width if place + width < len(pixels) else -1):
                if near < 0 or patches[near] >= 0:
                    continue
                r, g, b = pixels[near]
                if abs(r - red) + abs(g - green) + abs(b - blue) <= like:
                    patches[near] = count
                    edge.append(near)
        count += 1
    return np.array(patches).reshape(height, width)
