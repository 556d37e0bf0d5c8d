"""Where in a picture the object of a word is: a box, estimated from attention, from what the word rests on, and from
the picture's own colors.

A map over soft tokens alone gives a coarse box. So those of the picture's patches of like color are taken that have the
most heat on them, as many as fit the map best. `python -m benchmarks.faithfulness.boxes` measures this beside boxes
from maps alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageFilter

from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.heat_maps import TileMap, connected
from gemma3_core.inspection.patches import SIDE, interpolated, patches_of

_GAP = 5  # pixels of SIDE that a piece reaches around itself: letters of one line hang together


@dataclass(frozen=True)
class Place:
    """An estimate of where the object of a word is: a box in the pixels of a picture (from 0).

    It comes from the attention of one head of one layer, both from 0.
    """

    picture: int
    box: Box
    layer: int
    head: int


@dataclass(frozen=True)
class BestLook:
    """Where the head that looks most at what a word rests on looks, on each tile; layer and head from 0."""

    layer: int
    head: int
    tiles: tuple[TileMap, ...]


def look_of_best_head(weights: torch.Tensor, rests: Sequence[TileMap]) -> BestLook:
    """The look of one head of `weights` [layers, H, rows, T] of the rows that wrote a word; `rests` says what the word
    rests on, over soft tokens.

    Knock-out alone is coarse, and attention alone looks at other things too.
    """
    columns = [column for one in rests for column in range(one.tile.start, one.tile.stop)]
    looks = weights.float().mean(dim=2)[..., columns].cpu()  # [layers, H, columns]
    needed = torch.tensor([value for one in rests for row in one.grid for value in row])
    layer, head = most_on(looks, needed)
    parts = looks[layer, head].split([one.tile.stop - one.tile.start for one in rests])
    grids = [part.view(len(one.grid), -1).tolist() for part, one in zip(parts, rests, strict=True)]
    tiles = [TileMap(one.tile, tuple(map(tuple, grid))) for one, grid in zip(rests, grids, strict=True)]
    return BestLook(layer, head, tuple(tiles))


def most_on(looks: torch.Tensor, needed: torch.Tensor) -> tuple[int, int]:
    """The layer and the head of `looks` [layers, H, S] with the most attention on what is `needed` [S]."""
    layer, head = divmod(int((looks @ needed.float()).argmax()), looks.shape[1])
    return layer, head


def estimated_place(look: BestLook, tiles: Sequence[Image.Image]) -> Place:
    """Where the object of a word is, from the look of its best head; `tiles` are the tiles as the encoder sees them."""
    number = max(range(len(look.tiles)), key=lambda tile: max(map(max, look.tiles[tile].grid)))
    seen = look.tiles[number]
    return Place(seen.tile.picture, estimated_box(seen, tiles[number]), look.layer, look.head)


def estimated_box(tile_map: TileMap, tile: Image.Image) -> Box:
    """The box around what the map's heat lies on, in the original picture's pixels.

    `tile` is the tile as the encoder sees it. Patches of like color are taken by their mean heat, hottest first, up to
    the number that overlaps most with the map: heat inside, divided by all heat and the area inside without heat. The
    box is around those near the hottest place.
    """
    patches, heat = patches_of(tile), interpolated(tile_map)
    heat = heat / (heat.max() or 1.0)
    heats, areas = np.bincount(patches.ravel(), heat.ravel()), np.bincount(patches.ravel())
    order = np.argsort(-heats / areas, kind="stable")
    inside, area = np.cumsum(heats[order]), np.cumsum(areas[order])
    taken = np.isin(patches, order[: int((inside / (area + heat.sum() - inside)).argmax()) + 1])
    reached = np.asarray(Image.fromarray(taken.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * _GAP + 1))) > 0
    peak = np.unravel_index(int(np.where(taken, heat, -1.0).argmax()), heat.shape)
    rows, columns = np.nonzero(taken & connected(reached, (int(peak[0]), int(peak[1]))))
    box = tile_map.tile.box
    across, down = (box.right - box.left) / SIDE, (box.bottom - box.top) / SIDE
    return Box(
        box.left + int(across * columns.min()),
        box.top + int(down * rows.min()),
        box.left + max(1, round(across * (columns.max() + 1))),
        box.top + max(1, round(down * (rows.max() + 1))),
    )
