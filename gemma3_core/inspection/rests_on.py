"""What a word of an answer rests on: how its log-odds change as soft tokens are hidden, coarse to fine.

At most MOST_ROWS rows are read (see `knockout`): one with all pictures in view and one with none; windows that overlap,
over all tiles, each hidden; the windows with the largest effect again, each alone in view; and blocks of a third of a
window's side where these had the largest effect, each hidden. A window's effect is shared by the soft tokens that it
covers. The three parts are scaled to 1 and added: what is needed, what suffices, and where exactly.

This map is over soft tokens, and coarse. `sharpened` adds the look of the head that looks most at it, and evens both
along the picture's patches of like color. `python -m benchmarks.faithfulness` measures this beside other maps.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from gemma3_core.generation.grammar import Grammar
from gemma3_core.inspection.attention import Check
from gemma3_core.inspection.heat_maps import TileMap
from gemma3_core.inspection.knockout import KnockOut
from gemma3_core.inspection.patches import along_patches
from gemma3_core.inspection.prompt import Tile
from gemma3_core.models.multimodal import Model

MOST_ROWS = 64
_MOST_WINDOWS = 36
_KEPT_WINDOWS = 13
_MOST_SHARP = 8  # tiles: each is cut into patches in Python
_LEAST_SHARE = 1e-6  # probabilities nearer to 0 or 1 have no log-odds of their own
_WINDOW = 3  # steps to a side


@dataclass(frozen=True)
class RestsOn:
    """What one word rests on. Each grid, over soft tokens or finer, says how much: 0 is nothing, the largest value of
    all tiles is 1.

    `seen` and `unseen` are the word's probability with all pictures in view and with none. `rows` were read.
    """

    tiles: tuple[TileMap, ...]
    seen: float
    unseen: float
    rows: int


def rests_on(
    model: Model,
    inputs: Mapping[str, Any],
    answer_ids: Sequence[int],
    word: range,
    tiles: Sequence[Tile],
    check: Check | None = None,
    grammar: Grammar | None = None,
) -> RestsOn:
    """The map of the answer's tokens `word` over the prompt's `tiles`; the answer fits the `grammar`. Raises what
    KnockOut raises."""
    knock_out = KnockOut(model, inputs, answer_ids, word, check, grammar)
    maps, seen, unseen = token_map(knock_out, len(tiles))
    grids = [TileMap(tile, tuple(map(tuple, grid.tolist()))) for tile, grid in zip(tiles, maps, strict=True)]
    return RestsOn(tuple(grids), seen, unseen, knock_out.rows_read)


def sharpened(rests: RestsOn, look: Sequence[TileMap], tiles: Sequence[Image.Image], check: Check) -> RestsOn:
    """The same with the `look` of a head added, tile by tile, and even along patches of like color.

    `tiles` are the tiles as the encoder sees them. Of many, only the hottest are cut into patches. Raises what `check`
    raises: it is called before each of these.
    """
    needed, looked = (np.array([one.grid for one in maps]) for maps in (rests.tiles, look))
    added = _to_one(needed) + _to_one(looked)
    maps = [TileMap(one.tile, tuple(map(tuple, grid.tolist()))) for one, grid in zip(look, added, strict=True)]
    hottest = sorted(range(len(maps)), key=lambda number: -added[number].max())[:_MOST_SHARP]
    for number in hottest:
        check()
        maps[number] = along_patches(maps[number], tiles[number])
    most = max(max(map(max, one.grid)) for one in maps)
    scaled = [TileMap(one.tile, tuple(tuple(value / most for value in row) for row in one.grid)) for one in maps]
    return replace(rests, tiles=tuple(scaled))


def token_map(knock_out: KnockOut, tiles: int) -> tuple[np.ndarray, float, float]:
    """Values [tiles, side, side] from 0 to 1, and the word's probability with all tiles in view and with none."""
    tokens = len(knock_out.columns)
    side = round((tokens // tiles) ** 0.5)
    shape = (tiles, side, side)
    windows, step = _windows(tiles, side)
    rows = np.concatenate([np.zeros((1, *shape), bool), np.ones((1, *shape), bool), windows])
    seen, unseen, *without = _read(knock_out, rows)
    falls = np.array([_log_odds(seen) - _log_odds(one) for one in without])
    needed = _shared(windows, falls)
    best = np.argsort(-falls, kind="stable")[:_KEPT_WINDOWS]
    alone = [_log_odds(one) - _log_odds(unseen) for one in _read(knock_out, ~windows[best])]
    made = _to_one(needed) + _to_one(_shared(windows[best], np.array(alone)))
    blocks = _best_blocks(made, step, MOST_ROWS - len(rows) - len(best))
    fine = [_log_odds(seen) - _log_odds(one) for one in _read(knock_out, blocks)]
    return _to_one(made + _to_one(_shared(blocks, np.array(fine)))), seen, unseen


def _read(knock_out: KnockOut, hidden: np.ndarray) -> list[float]:
    """The word's probability for each row [R, tiles, side, side] of hidden soft tokens."""
    found: list[float] = knock_out.probabilities(torch.from_numpy(hidden.reshape(len(hidden), -1))).tolist()
    return found


def _log_odds(share: float) -> float:
    held = min(1 - _LEAST_SHARE, max(_LEAST_SHARE, share))
    return math.log(held) - math.log1p(-held)


def _windows(tiles: int, side: int) -> tuple[np.ndarray, int]:
    """At most _MOST_WINDOWS windows [N, tiles, side, side], True inside, and the step between them in soft tokens.

    With more tiles than that, a window is some whole tiles.
    """
    for step in range(1, side + 1):
        width = min(side, _WINDOW * step)
        starts = sorted({*range(0, side - width, step), side - width})
        if tiles * len(starts) ** 2 <= _MOST_WINDOWS:
            windows = np.zeros((tiles, len(starts), len(starts), tiles, side, side), dtype=bool)
            for tile in range(tiles):
                for i, top in enumerate(starts):
                    for j, left in enumerate(starts):
                        windows[tile, i, j, tile, top : top + width, left : left + width] = True
            return windows.reshape(-1, tiles, side, side), step
    groups = np.array_split(np.arange(tiles), _MOST_WINDOWS)
    windows = np.zeros((_MOST_WINDOWS, tiles, side, side), dtype=bool)
    for number, group in enumerate(groups):
        windows[number, group] = True
    return windows, side


def _shared(windows: np.ndarray, effects: np.ndarray) -> np.ndarray:
    """The mean effect [tiles, side, side] of the windows [N, …] that cover each soft token; 0 where none does. What
    makes the word likelier counts as nothing."""
    covered, effects = windows.sum(axis=0), np.clip(effects, 0.0, None)
    return np.einsum("n,ntyx->tyx", effects, windows.astype(float)) / np.maximum(covered, 1)


def _best_blocks(coarse: np.ndarray, step: int, most: int) -> np.ndarray:
    """The `most` blocks [N, tiles, side, side] of `step` x `step` soft tokens with the largest values."""
    tiles, side, _ = coarse.shape
    corners = [(t, y, x) for t in range(tiles) for y in range(0, side, step) for x in range(0, side, step)]
    values = [coarse[t, y : y + step, x : x + step].mean() for t, y, x in corners]
    best = sorted(range(len(corners)), key=lambda number: -values[number])[:most]
    blocks = np.zeros((len(best), *coarse.shape), dtype=bool)
    for number, place in enumerate(best):
        t, y, x = corners[place]
        blocks[number, t, y : y + step, x : x + step] = True
    return blocks


def _to_one(values: np.ndarray) -> np.ndarray:
    """Scaled so that the largest is 1; nothing but zeros stays so."""
    scaled: np.ndarray = values / (values.max() or 1.0)
    return scaled
