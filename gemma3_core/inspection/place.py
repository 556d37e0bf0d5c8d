"""Where in a picture the object of a word is: a box, estimated from attention, from what the word rests on, and from
the picture's own colors.

A soft token covers an eighth or a sixteenth of a picture's side, so a map alone gives a coarse box. The picture says
where things end. It is cut into patches of like color, and those with the most heat on them are taken, as many as fit
the map best. `python -m benchmarks.faithfulness.boxes` measures this beside boxes from maps alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.heat_maps import TileMap, connected

_SIDE = 128  # pixels to which the tile is scaled: enough for a box, and fast
_LIKE = 90  # the largest difference of like colors, summed over red, green and blue
_GAP = 5  # pixels of _SIDE that a piece reaches around itself: letters of one line hang together


@dataclass(frozen=True)
class Place:
    """An estimate of where the object of a word is: a box in the pixels of a picture (from 0).

    It comes from the attention of one head of one layer, both from 0.
    """

    picture: int
    box: Box
    layer: int
    head: int


def estimated_place(weights: torch.Tensor, rests: Sequence[TileMap], tiles: Sequence[Image.Image]) -> Place:
    """Where the object of a word is, from `weights` [layers, H, rows, T] of the rows that wrote it.

    `rests` says what the word rests on, and `tiles` are the same tiles as the encoder sees them. The head that looks
    most at what the word rests on gives the map: knock-out alone is coarse, and attention alone looks at other things
    too.
    """
    columns = [column for one in rests for column in range(one.tile.start, one.tile.stop)]
    looks = weights.float().mean(dim=2)[..., columns].cpu()  # [layers, H, columns]
    needed = torch.tensor([value for one in rests for row in one.grid for value in row])
    layer, head = most_on(looks, needed)
    hot = looks[layer, head].split([one.tile.stop - one.tile.start for one in rests])
    number = max(range(len(hot)), key=lambda tile: float(hot[tile].max()))
    tile, side = rests[number].tile, len(rests[number].grid)
    seen = TileMap(tile, tuple(map(tuple, hot[number].view(side, side).tolist())))
    return Place(tile.picture, estimated_box(seen, tiles[number]), layer, head)


def most_on(looks: torch.Tensor, needed: torch.Tensor) -> tuple[int, int]:
    """The layer and the head of `looks` [layers, H, S] with the most attention on what is `needed` [S]."""
    layer, head = divmod(int((looks @ needed.float()).argmax()), looks.shape[1])
    return layer, head


def estimated_box(tile_map: TileMap, tile: Image.Image) -> Box:
    """The box around what the map's heat lies on, in the original picture's pixels.

    `tile` is the tile as the encoder sees it. Patches of like color are taken by their mean heat, hottest first, up to
    the number that overlaps most with the map: heat inside, divided by all heat and the area inside without heat. The
    box is around those near the hottest place.
    """
    small = tile.convert("RGB").resize((_SIDE, _SIDE))
    patches = like_colored(small)
    grid = Image.fromarray(np.array(tile_map.grid, dtype=np.float32))
    heat = np.clip(np.asarray(grid.resize(small.size, Image.Resampling.BILINEAR)), 0.0, None)
    heat = heat / (heat.max() or 1.0)
    heats, areas = np.bincount(patches.ravel(), heat.ravel()), np.bincount(patches.ravel())
    order = np.argsort(-heats / areas, kind="stable")
    inside, area = np.cumsum(heats[order]), np.cumsum(areas[order])
    taken = np.isin(patches, order[: int((inside / (area + heat.sum() - inside)).argmax()) + 1])
    reached = np.asarray(Image.fromarray(taken.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * _GAP + 1))) > 0
    peak = np.unravel_index(int(np.where(taken, heat, -1.0).argmax()), heat.shape)
    rows, columns = np.nonzero(taken & connected(reached, (int(peak[0]), int(peak[1]))))
    box = tile_map.tile.box
    across, down = (box.right - box.left) / _SIDE, (box.bottom - box.top) / _SIDE
    return Box(
        box.left + int(across * columns.min()),
        box.top + int(down * rows.min()),
        box.left + max(1, round(across * (columns.max() + 1))),
        box.top + max(1, round(down * (rows.max() + 1))),
    )


def like_colored(picture: Image.Image) -> np.ndarray:
    """The number of each pixel's patch [height, width]: a patch is what hangs together with its first pixel, in reading
    order, and is like it in color."""
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
                if abs(r - red) + abs(g - green) + abs(b - blue) <= _LIKE:
                    patches[near] = count
                    edge.append(near)
        count += 1
    return np.array(patches).reshape(height, width)
