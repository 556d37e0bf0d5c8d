"""Maps of attention weights over the original pictures and the words of a turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from gemma3_core.config.gemma3 import GLOBAL, Gemma3TextConfig
from gemma3_core.errors import AttentionError, UnsupportedOptionError
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.attention import Check, replay, rollout
from gemma3_core.inspection.prompt import PromptToken, Tile
from gemma3_core.models.multimodal import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LayerChoice = int | Literal["global", "rollout"]
"""A layer's number from 0, the mean over the global layers, or rollout over all layers."""

_HOT = 0.2  # of the largest weight; a higher share leaves parts of the object out, and occluding it changes nothing
_INCHES_A_TILE = 3.0


@dataclass(frozen=True)
class TileMap:
    """Weights of one tile's soft tokens: `grid` starts at the top left and covers `tile.box` evenly."""

    tile: Tile
    grid: tuple[tuple[float, ...], ...]

    @property
    def total(self) -> float:
        return sum(map(sum, self.grid))

    def cells(self, rows: tuple[int, int], columns: tuple[int, int]) -> Box:
        """The smallest box of whole pixels of the original around the grid's `rows` and `columns`, first to last."""
        box, side = self.tile.box, len(self.grid)
        width, height = box.right - box.left, box.bottom - box.top
        return Box(
            box.left + columns[0] * width // side,
            box.top + rows[0] * height // side,
            box.left - (-(columns[1] + 1) * width // side),
            box.top - (-(rows[1] + 1) * height // side),
        )

    def pixels(self) -> np.ndarray:
        """The grid interpolated over the box's pixels: float32 [height, width]."""
        box = self.tile.box
        grid = Image.fromarray(np.array(self.grid, dtype=np.float32))
        return np.asarray(grid.resize((box.right - box.left, box.bottom - box.top), Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class TokenWeight:
    """The weight on one text or special token of the turn."""

    token: PromptToken
    weight: float


@dataclass(frozen=True)
class AttentionMap:
    """Where the chosen rows looked, on average. All weights of `tiles` and `tokens` sum to 1.

    `layers` are the averaged layers (all of them in rollout); `head` None is the mean over heads.
    """

    layer: LayerChoice
    layers: tuple[int, ...]
    head: int | None
    tiles: tuple[TileMap, ...]
    tokens: tuple[TokenWeight, ...]

    @property
    def on_pictures(self) -> float:
        """The share of the weight on pictures."""
        return sum(tile.total for tile in self.tiles)

    def hottest(self, picture: int | None = None) -> tuple[Tile, Box]:
        """The hottest region: see `hottest_of`."""
        return hottest_of(self.tiles, picture)


def hottest_of(tiles: Sequence[TileMap], picture: int | None = None) -> tuple[Tile, Box]:
    """The hottest region, as a tile and a box in the original picture's pixels.

    It is the cell with the largest weight and the connected cells with at least a fifth of that. `picture` limits
    the search to one picture. Raises AttentionError if there is none.
    """
    among = [s for s in tiles if picture is None or s.tile.picture == picture]
    if not among:
        what = "no picture" if picture is None else f"no picture number {picture + 1}"
        onward = "Ask about a picture." if picture is None else "Choose one that it has."
        raise AttentionError(f"This turn has {what}, so nothing of it can be the hottest region. {onward}")
    hottest = max(among, key=lambda tile_map: max(map(max, tile_map.grid)))
    rows, columns = _hot_region(np.array(hottest.grid))
    return hottest.tile, hottest.cells(rows, columns)


def columns_within(tiles: Sequence[TileMap], picture: int, box: Box) -> tuple[int, ...]:
    """The columns of the soft tokens whose middle lies in `box` of a picture, in its whole tile and its crops."""
    found = []
    for one in (tile for tile in tiles if tile.tile.picture == picture):
        whole, side = one.tile.box, len(one.grid)
        for number in range(side * side):
            x = whole.left + (number % side + 0.5) * (whole.right - whole.left) / side
            y = whole.top + (number // side + 0.5) * (whole.bottom - whole.top) / side
            if box.left <= x < box.right and box.top <= y < box.bottom:
                found.append(one.tile.start + number)
    return tuple(found)


def soft_tokens_around(tiles: Sequence[TileMap], picture: int, box: Box) -> Box:
    """The smallest box of whole soft tokens of a picture's whole tile around `box`."""
    (one,) = (one for one in tiles if one.tile.picture == picture and one.tile.crop is None)
    whole, side = one.tile.box, len(one.grid)
    width, height = whole.right - whole.left, whole.bottom - whole.top
    rows = (box.top - whole.top) * side // height, -(-(box.bottom - whole.top) * side // height) - 1
    columns = (box.left - whole.left) * side // width, -(-(box.right - whole.left) * side // width) - 1
    return one.cells(rows, columns)


def attention_map(
    model: Model,
    inputs: Mapping[str, Any],
    rows: Sequence[int],
    tokens: Sequence[PromptToken],
    tiles: Sequence[Tile] = (),
    layer: LayerChoice = "global",
    head: int | None = None,
    check: Check | None = None,
) -> AttentionMap:
    """Where the `rows` (columns of the turn) looked, on its pictures and its words.

    `inputs` are the turn's, as for `attention.replay`; `tokens` and `tiles` describe the turn (see `prompt`). Raises
    AttentionError, PromptError, UnsupportedOptionError, and what `check` raises.
    """
    layers = chosen_layers(model.text_config, layer, head)
    if layer == "rollout":
        weights = rollout(model, inputs, rows, check)
    else:
        weights = mean_weights(replay(model, inputs, rows, check=check).weights, layers, head)
    return map_of(weights.mean(dim=0), tokens, tiles, layer, layers, head)


def chosen_layers(config: Gemma3TextConfig, layer: LayerChoice, head: int | None) -> tuple[int, ...]:
    """The numbers of the chosen layers. Raises AttentionError, UnsupportedOptionError."""
    count, heads = config.num_hidden_layers, config.num_attention_heads
    if head is not None and not (type(head) is int and 0 <= head < heads):
        raise AttentionError(f"This model's heads are 0 to {heads - 1}, got {head!r}.")
    if layer == "rollout":
        if head is not None:
            raise UnsupportedOptionError("Rollout mixes all heads: leave the head out, or choose a layer.")
        return tuple(range(count))
    if layer == "global":
        chosen = tuple(i for i in range(count) if config.layer_type(i) == GLOBAL)
        if not chosen:
            raise AttentionError(f"This model has no global layer. Choose one of its layers, 0 to {count - 1}.")
        return chosen
    if type(layer) is not int or not 0 <= layer < count:
        raise AttentionError(f'The layer must be 0 to {count - 1}, "global" or "rollout", got {layer!r}.')
    return (layer,)


def mean_weights(weights: torch.Tensor, layers: Sequence[int], head: int | None) -> torch.Tensor:
    """[layers, H, rows, T] -> [rows, T] in float32: the mean over the chosen layers, of one head or all."""
    chosen = weights[list(layers)].float()
    return (chosen.mean(dim=1) if head is None else chosen[:, head]).mean(dim=0)


def map_of(
    weights: torch.Tensor,
    tokens: Sequence[PromptToken],
    tiles: Sequence[Tile],
    layer: LayerChoice,
    layers: tuple[int, ...],
    head: int | None,
) -> AttentionMap:
    """Distributes weights [T] to tiles and tokens. Raises AttentionError if the counts differ."""
    if len(tokens) != weights.shape[0]:
        raise AttentionError(f"The turn has {weights.shape[0]} tokens, {len(tokens)} were described.")
    values = weights.float().tolist()
    maps = []
    for tile in tiles:
        side = round((tile.stop - tile.start) ** 0.5)
        lines = (values[start : start + side] for start in range(tile.start, tile.stop, side))
        maps.append(TileMap(tile, tuple(map(tuple, lines))))
    words = [TokenWeight(token, values[token.column]) for token in tokens if token.kind in ("text", "special")]
    return AttentionMap(layer, layers, head, tuple(maps), tuple(words))


def attention_figure(attention: AttentionMap, pictures: Sequence[Image.Image], most_words: int = 30) -> "Figure":
    """A matplotlib figure: the map over each tile's part of its picture, and the words with the most weight.

    `pictures` are the originals, in the turn's order. Opens no window and leaves pyplot's state alone.
    """
    from matplotlib.figure import Figure

    count = len(attention.tiles) + 1
    figure = Figure(figsize=(_INCHES_A_TILE * count, _INCHES_A_TILE), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    largest = max((max(map(max, m.grid)) for m in attention.tiles), default=1.0)
    for axis, tile_map in zip(axes, attention.tiles, strict=False):
        tile, box = tile_map.tile, tile_map.tile.box
        extent = (box.left, box.right, box.bottom, box.top)
        part = pictures[tile.picture].convert("RGB").crop((box.left, box.top, box.right, box.bottom))
        axis.imshow(part, extent=extent)
        axis.imshow(tile_map.pixels(), extent=extent, cmap="inferno", alpha=0.6, vmin=0, vmax=largest)
        axis.set_title(f"{tile.label}: {tile_map.total:.0%}", fontsize=8)
        axis.tick_params(labelsize=6)
    words = sorted(sorted(attention.tokens, key=lambda w: -w.weight)[:most_words], key=lambda w: w.token.column)
    axes[-1].barh([str(w.token.column) for w in words], [w.weight for w in words])
    axes[-1].set_yticks(range(len(words)), [repr(w.token.text)[1:-1] for w in words], fontsize=5)
    axes[-1].invert_yaxis()
    axes[-1].set_title(f"words: {sum(w.weight for w in attention.tokens):.0%}", fontsize=8)
    return figure


def connected(among: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """The cells of `among` (bool [rows, columns]) that hang together with the one at `start`, side by side."""
    region, edge = np.zeros_like(among), [start]
    while edge:
        row, column = edge.pop()
        if not (0 <= row < among.shape[0] and 0 <= column < among.shape[1]):
            continue
        if among[row, column] and not region[row, column]:
            region[row, column] = True
            edge += [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return region


def _hot_region(grid: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last row, and first and last column, of the connected hot cells around the largest."""
    row, column = np.unravel_index(int(grid.argmax()), grid.shape)
    rows, columns = np.nonzero(connected(grid >= _HOT * grid[row, column], (int(row), int(column))))
    return (int(rows.min()), int(rows.max())), (int(columns.min()), int(columns.max()))
