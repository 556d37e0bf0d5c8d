"""Draws bar charts with several renderers, and labels each cell of a picture."""

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from training.drawing.backgrounds import draw_background
from training.drawing.colors import RGB, unit
from training.drawing.dense_labels import (
    CHARACTERS_PER_TOKEN,
    NO_LABEL,
    PATCHES_PER_SIDE,
    POINTS_PER_PATCH,
    TOKENS_PER_SIDE,
    PictureLabels,
    add_text,
    color_label,
    nothing,
)
from training.drawing.rendering import chosen_renderer, coverage, paste_covered, with_effects
from training.drawing.sizes import size_within
from training.worlds.charts.charts import Bar, Chart
from training.worlds.signs.drawing import labels_of_lines, write
from training.worlds.signs.signs import Sign

_SHARES = (0.35, 0.25, 0.40)  # of the renderers, where none is named
_LEAST_SHARE = 0.15  # of a patch, for a bar to count as lying in it
_TICK_LENGTH = 3.5  # widths of a line
DASH = (4.0, 2.0)  # widths of a line: drawn, left out
_UNSAID_MARGIN = 0.3  # of the cap height, around notes

Box = tuple[float, float, float, float]  # left, top, right, bottom


def draw(
    chart: Chart, rng: random.Random, max_side: int | None = None, renderer: str | None = None, effects: float = 1.0
) -> Image.Image:
    """The chart as an RGB picture; arguments as in scenes.drawing.draw.

    "pillow" draws smooth edges and letters, "pillow_plain" whole pixels and Pillow's hinted letters, "matplotlib" a
    Figure with axes, spines, ticks, grid and bars.
    """
    renderer = chosen_renderer(renderer, _SHARES, rng)
    size = size_within(chart.width, chart.height, max_side)
    return with_effects(_drawn(chart, size, renderer, rng), rng, effects)


def training_picture(chart: Chart, rng: random.Random, side: int = 224, effects: float = 1.0) -> Image.Image:
    """The chart as the model sees it: squeezed to a square of `side` pixels, mostly drawn at that size.

    Few are Figures, which take ten times as long.
    """
    way = rng.random()
    if way < 0.6:
        return with_effects(_drawn(chart, (side, side), "pillow", rng), rng, effects)
    renderer = "pillow_plain" if way < 0.97 else "matplotlib"
    picture = draw(chart, rng, None if way > 0.995 else 2 * side, renderer, effects)
    return picture.resize((side, side), resample=Image.Resampling.BILINEAR)


def _drawn(chart: Chart, size: tuple[int, int], renderer: str, rng: random.Random) -> Image.Image:
    """The chart stretched to `size` (width, height), without effects; only "pillow" can squeeze."""
    scales = (size[0] / chart.width, size[1] / chart.height)
    picture = draw_background(chart.background, size, rng)
    if renderer == "matplotlib":
        _figure(picture, chart, scales[0])
        return picture
    for box, color, dashes in boxes(chart):
        _fill(picture, box, color, dashes, scales, smooth=renderer == "pillow")
    for sign in (*(bar.label for bar in chart.bars), *chart.notes):
        write(picture, sign, scales, renderer)
    return picture


# What lies where.


def labels(chart: Chart) -> PictureLabels:
    """Bars with their colors and heights, labels with their characters, in the picture squeezed to a square.

    A bar looks like a scene's rectangle but is none: its shape has no label. Notes have none either, nor has a soft
    token that a bar touches without covering its middle.
    """
    out = nothing()
    in_patches = np.stack([_covered(bar, chart, PATCHES_PER_SIDE) for bar in chart.bars])
    barred = (in_patches.max(axis=0) >= _LEAST_SHARE).ravel()
    colors = np.array([color_label(bar.color) for bar in chart.bars], np.uint8)
    out["patch_color"] = np.where(barred, colors[in_patches.argmax(axis=0).ravel()], 0).astype(np.uint8)
    out["patch_shape"][barred] = NO_LABEL
    out["patch_centre"][barred] = NO_LABEL
    written = labels_of_lines([bar.label for bar in chart.bars])
    add_text(out, written)
    out["token_characters"] = written["token_characters"]
    _label_bars_tokens(chart, out, colors)
    for note in chart.notes:
        _leave_open(note, out)
    return PictureLabels(**out)


def height_label(bar: Bar, chart: Chart) -> int:
    """Its height in sixteenths of the picture's, rounded up: 1 to 16."""
    return max(1, math.ceil(16 * bar.height / chart.height - 1e-9))


def _covered(bar: Bar, chart: Chart, cells: int) -> np.ndarray:
    """The share of each cell that the bar covers, [cells, cells]."""
    across, down = cells / chart.width, cells / chart.height
    columns = coverage(bar.left * across, bar.right * across, 0, cells)
    rows = coverage(bar.top * down, bar.bottom * down, 0, cells)
    return np.outer(rows, columns)


def _label_bars_tokens(chart: Chart, out: dict[str, np.ndarray], colors: np.ndarray) -> None:
    """Labels each soft token with height and color of the bar that covers its middle."""
    middles = (np.arange(TOKENS_PER_SIDE) + 0.5) / TOKENS_PER_SIDE
    for bar, color in zip(chart.bars, colors, strict=True):
        columns = (middles * chart.width > bar.left) & (middles * chart.width < bar.right)
        rows = (middles * chart.height > bar.top) & (middles * chart.height < bar.bottom)
        inside = np.outer(rows, columns).ravel()
        touched = (_covered(bar, chart, TOKENS_PER_SIDE) > 0).ravel() & (out["token_height"] == 0)
        out["token_shape"][touched] = NO_LABEL
        out["token_color"][touched] = NO_LABEL
        out["token_height"][touched] = NO_LABEL
        out["token_color"][inside] = color
        out["token_height"][inside] = height_label(bar, chart)


def _leave_open(note: Sign, out: dict[str, np.ndarray]) -> None:
    """Removes the labels in and around a note, which is small and never asked about."""
    margin = _UNSAID_MARGIN * note.cap_height
    left, top, right, bottom = note.line
    box = np.array([left - margin, top - margin, right + margin, bottom + margin]) + [note.x, note.y] * 2
    shares = box / ([note.width, note.height] * 2)

    def cells(across: int, down: int) -> np.ndarray:
        low = np.floor(shares[:2] * (across, down)).astype(int).clip(0)
        high = np.ceil(shares[2:] * (across, down)).astype(int).clip(0)
        there = np.zeros((down, across), bool)
        there[low[1] : high[1], low[0] : high[0]] = True
        return there.ravel()

    points = cells(PATCHES_PER_SIDE * POINTS_PER_PATCH, PATCHES_PER_SIDE)
    out["patch_character"][points & (out["patch_character"] == 0)] = NO_LABEL
    patches, tokens = cells(PATCHES_PER_SIDE, PATCHES_PER_SIDE), cells(TOKENS_PER_SIDE, TOKENS_PER_SIDE)
    out["patch_color"][patches & (out["patch_color"] == 0)] = NO_LABEL
    out["token_color"][tokens & (out["token_color"] == 0)] = NO_LABEL
    out["token_characters"].reshape(-1, CHARACTERS_PER_TOKEN)[tokens] = NO_LABEL


# Renderers with Pillow: everything but the letters is made of filled boxes.


def boxes(chart: Chart) -> Iterator[tuple[Box, RGB, tuple[bool, bool]]]:
    """Boxes in the chart's pixels, from bottom to top; whether to dash along x and along y."""
    look = chart.look
    if look.face is not None:
        yield chart.axes, look.face, (False, False)
    if not look.grid_in_front:
        yield from _grid(chart)
    for bar in chart.bars:
        inset = chart.edge_width
        if chart.edge is not None:
            yield (bar.left, bar.top, bar.right, bar.bottom), chart.edge, (False, False)
        inner = (bar.left + inset, bar.top + inset, bar.right - inset, bar.bottom - inset)
        yield inner, bar.rgb, (False, False)
    if look.grid_in_front:
        yield from _grid(chart)
    yield from ((box, look.spine, (False, False)) for box in _spines(chart))
    if look.ticks:
        yield from ((box, look.ink, (False, False)) for box in _tick_marks(chart))


def _grid(chart: Chart) -> Iterator[tuple[Box, RGB, tuple[bool, bool]]]:
    left, top, right, bottom = chart.axes
    half, look = chart.line / 2, chart.look
    if look.grid is None:
        return
    for y in chart.ticks or np.linspace(bottom, top, 6).tolist():
        yield (left, y - half, right, y + half), look.grid, (look.grid_dashed, False)
    if look.grid_columns:
        for bar in chart.bars:
            x = (bar.left + bar.right) / 2
            yield (x - half, top, x + half, bottom), look.grid, (False, look.grid_dashed)


def _spines(chart: Chart) -> Iterator[Box]:
    """Lines whose middle is the axes' border."""
    left, top, right, bottom = chart.axes
    half = chart.line / 2
    lines = {
        "left": (left, top, left, bottom), "right": (right, top, right, bottom),
        "top": (left, top, right, top), "bottom": (left, bottom, right, bottom),
    }  # fmt: skip
    for name in chart.look.spines:
        box = lines[name]
        yield box[0] - half, box[1] - half, box[2] + half, box[3] + half


def _tick_marks(chart: Chart) -> Iterator[Box]:
    left, _, _, bottom = chart.axes
    half, length = chart.line / 2, _TICK_LENGTH * chart.line
    for y in chart.ticks:
        yield left - length, y - half, left, y + half
    for bar in chart.bars:
        x = (bar.left + bar.right) / 2
        yield x - half, bottom, x + half, bottom + length


def _fill(
    picture: Image.Image, box: Box, color: RGB, dashes: tuple[bool, bool], scales: tuple[float, float], smooth: bool
) -> None:
    """Fills a box in the chart's pixels: `smooth` by each pixel's coverage, else whole pixels."""
    starts, ends = (box[0] * scales[0], box[1] * scales[1]), (box[2] * scales[0], box[3] * scales[1])
    if not smooth:
        # As programs draw that know only whole pixels; every box keeps at least one.
        starts = (float(round(starts[0])), float(round(starts[1])))
        ends = (max(starts[0] + 1, round(ends[0])), max(starts[1] + 1, round(ends[1])))
    left, top = (max(0, math.floor(start)) for start in starts)
    right, bottom = (min(math.ceil(end), side) for end, side in zip(ends, picture.size, strict=True))
    if right <= left or bottom <= top:
        return
    if not smooth and not any(dashes):
        picture.paste(color, (left, top, right, bottom))
        return
    shares = [coverage(starts[0], ends[0], left, right), coverage(starts[1], ends[1], top, bottom)]
    for axis, dashed in enumerate(dashes):
        if dashed:
            thickness = max(1.0, ends[1 - axis] - starts[1 - axis])
            place = np.arange(len(shares[axis])) / thickness % sum(DASH)
            shares[axis] = shares[axis] * (place < DASH[0])
    paste_covered(picture, color, (left, top), shares[1], shares[0])


# And with matplotlib, as people draw charts.


def _figure(picture: Image.Image, chart: Chart, scale: float) -> None:
    """A Figure with the chart's axes; points are pixels at 72 dots per inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = picture.size
    # A hundredth of a pixel more, because the canvas rounds down.
    figure = Figure(figsize=((width + 0.01) / 72, (height + 0.01) / 72), dpi=72)
    figure.patch.set_alpha(0.0)
    canvas = FigureCanvasAgg(figure)
    left, top, right, bottom = (value * scale for value in chart.axes)
    axes = figure.add_axes((left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height))
    _dress(axes, chart, scale)
    _plot_bars(axes, chart, scale)
    for sign in (*(bar.label for bar in chart.bars), *chart.notes):
        _figure_text(figure, sign, scale, height)
    canvas.draw()
    layer = Image.frombuffer("RGBA", (width, height), canvas.buffer_rgba(), "raw", "RGBA", 0, 1)
    picture.paste(layer, mask=layer.getchannel("A"))


def _dress(axes: Any, chart: Chart, scale: float) -> None:
    """Face, spines, ticks and grid of matplotlib axes."""
    look, line = chart.look, chart.line * scale
    if look.face is None:
        axes.patch.set_alpha(0.0)
    else:
        axes.set_facecolor(unit(look.face))
    for name, spine in axes.spines.items():
        spine.set_visible(name in look.spines)
        spine.set_edgecolor(unit(look.spine))
        spine.set_linewidth(line)
    _, top, _, bottom = chart.axes
    grid = chart.ticks or np.linspace(bottom, top, 6).tolist()
    axes.set_yticks([bottom - y for y in grid])
    axes.set_xticks([(bar.left + bar.right) / 2 for bar in chart.bars])
    length = _TICK_LENGTH * line if look.ticks else 0.0
    axes.tick_params(length=length, width=line, color=unit(look.ink), labelleft=False, labelbottom=False)
    if not chart.ticks:
        axes.tick_params(axis="y", length=0.0)
    if look.grid is not None:
        which = "both" if look.grid_columns else "y"
        style = (0, DASH) if look.grid_dashed else "-"
        axes.grid(True, axis=which, color=unit(look.grid), linewidth=line, linestyle=style)
    axes.set_axisbelow(not look.grid_in_front)


def _plot_bars(axes: Any, chart: Chart, scale: float) -> None:
    """Plots the bars in the chart's pixels, with edges inside their boxes."""
    left, top, right, bottom = chart.axes
    inset = chart.edge_width
    axes.bar(
        [(bar.left + bar.right) / 2 for bar in chart.bars],
        [bar.height - inset for bar in chart.bars],
        [bar.right - bar.left - inset for bar in chart.bars],
        bottom=inset / 2,
        color=[unit(bar.rgb) for bar in chart.bars],
        edgecolor=None if chart.edge is None else unit(chart.edge),
        linewidth=inset * scale,
    )
    axes.set_xlim(left, right)
    axes.set_ylim(0, bottom - top)


def _figure_text(figure: Any, sign: Sign, scale: float, height: int) -> None:
    """Writes a text in the figure's pixels, which count upwards."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.transforms import IdentityTransform

    x, base = sign.x + sign.line[0], sign.y + sign.cap_height / 2
    figure.text(
        x * scale, height - base * scale, sign.text, transform=IdentityTransform(), ha="left", va="baseline",
        color=unit(sign.rgb), parse_math=False,
        fontproperties=FontProperties(fname=sign.font.path, size=sign.size * scale),
    )  # fmt: skip
