"""Draws boards with several renderers, whole and as crops, and labels the characters in each cell."""

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from gemma3_core.images.pan_and_scan import Box
from training.drawing.backgrounds import draw_background
from training.drawing.colors import RGB
from training.drawing.dense_labels import (
    CHARACTERS_PER_TOKEN,
    NO_LABEL,
    PATCHES_PER_SIDE,
    POINTS_PER_PATCH,
    PictureLabels,
    add_text,
    nothing,
)
from training.drawing.fonts import POINT, edges
from training.drawing.rendering import chosen_renderer, coverage, paste_covered, with_effects
from training.drawing.sizes import size_within
from training.worlds.boards.boards import Board, Panel
from training.worlds.signs import drawing as sign_drawing
from training.worlds.signs.signs import Sign

_SHARES = (0.40, 0.35, 0.25)  # of the renderers, where none is named
_SQUEEZED_AT_ONCE = 0.65  # of the training pictures; the others are drawn whole and then resized
_SAMPLES = 4  # per pixel and side, of round corners


def draw(
    board: Board, rng: random.Random, max_side: int | None = None, renderer: str | None = None, effects: float = 1.0
) -> Image.Image:
    """The board as an RGB picture; arguments as in scenes.drawing.draw, renderers as for signs."""
    renderer = chosen_renderer(renderer, _SHARES, rng)
    size = size_within(board.width, board.height, max_side)
    picture = draw_background(board.background, size, rng)
    scale = size[0] / board.width
    _draw_on(picture, board, _whole(board), (scale, scale), renderer)
    return with_effects(picture, rng, effects)


def training_picture(board: Board, rng: random.Random, side: int = 224, effects: float = 1.0) -> Image.Image:
    """The whole board as the model sees it: squeezed to a square of `side` pixels."""
    if rng.random() < _SQUEEZED_AT_ONCE:
        return with_effects(_squeezed(board, [_whole(board)], rng, side)[0], rng, effects)
    picture = draw(board, rng, 4 * side, effects=effects)
    return picture.resize((side, side), resample=Image.Resampling.BILINEAR)


def training_crops(
    board: Board, boxes: Sequence[Box], rng: random.Random, side: int = 224, effects: float = 1.0
) -> list[Image.Image]:
    """Crops of the board (boxes in its pixels) as the model sees them: each squeezed to a square of `side` pixels.

    Most are drawn directly at the square's size; the others are cut out of the whole, drawn smaller.
    """
    if rng.random() >= _SQUEEZED_AT_ONCE:
        longest = max(max(box.right - box.left, box.bottom - box.top) for box in boxes)
        longer = max(board.width, board.height)
        picture = draw(board, rng, round(min(1.0, 1.5 * side / longest) * longer), effects=effects)
        return [_cut(picture, board, box, side) for box in boxes]
    squares = _squeezed(board, boxes, rng, side)
    strip = Image.new("RGB", (side * len(squares), side))  # effects apply to all parts of a picture alike
    for number, square in enumerate(squares):
        strip.paste(square, (number * side, 0))
    strip = with_effects(strip, rng, effects)
    return [strip.crop((number * side, 0, (number + 1) * side, side)) for number in range(len(squares))]


def _whole(board: Board) -> Box:
    return Box(0, 0, board.width, board.height)


def _cut(picture: Image.Image, board: Board, box: Box, side: int) -> Image.Image:
    """Crops a picture of the board at any size to a box in the board's pixels; resizes as the image processor does."""
    across, down = picture.width / board.width, picture.height / board.height
    part = (box.left * across, box.top * down, min(picture.width, box.right * across), box.bottom * down)
    return picture.resize((side, side), resample=Image.Resampling.BILINEAR, box=part)


def _squeezed(board: Board, boxes: Sequence[Box], rng: random.Random, side: int) -> list[Image.Image]:
    """Crops of the board without effects, drawn directly at the square's size."""
    if board.background.kind == "plain":
        squares = [draw_background(board.background, (side, side), rng) for _ in boxes]
    else:
        shorter = min(board.width, board.height)
        size = (round(board.width * side / shorter), round(board.height * side / shorter))
        ground = draw_background(board.background, size, rng)
        squares = [_cut(ground, board, box, side) for box in boxes]
    for square, box in zip(squares, boxes, strict=True):
        scales = (side / (box.right - box.left), side / (box.bottom - box.top))
        _draw_on(square, board, box, scales, "pillow")
    return squares


def _draw_on(picture: Image.Image, board: Board, box: Box, scales: tuple[float, float], renderer: str) -> None:
    """Draws the content of a box of the board on a picture of that box."""
    for panel in board.panels:
        _draw_panel(picture, panel, box, scales)
    for sign in _texts_in(board, box):
        sign_drawing.write(picture, sign, scales, renderer)


def _texts_in(board: Board, box: Box) -> list[Sign]:
    """The texts in a box, in reading order, as texts of a picture of that box."""
    width, height = box.right - box.left, box.bottom - box.top
    return [
        replace(text, width=width, height=height, x=text.x - box.left, y=text.y - box.top)
        for entry in board.entries
        for text in entry.texts
        if box.left <= text.x < box.right and box.top <= text.y < box.bottom
    ]


def _draw_panel(picture: Image.Image, panel: Panel, box: Box, scales: tuple[float, float]) -> None:
    bounds = (panel.left - box.left, panel.top - box.top, panel.right - box.left, panel.bottom - box.top)
    left, top, right, bottom = (side * scale for side, scale in zip(bounds, (*scales, *scales), strict=True))
    across, down = (panel.frame_width * scale for scale in scales)
    inner = (left + across, top + down, right - across, bottom - down)
    if panel.fill is not None:
        radii = (panel.radius * scales[0], panel.radius * scales[1])
        if panel.frame is not None:
            _fill(picture, (left, top, right, bottom), panel.frame, radii)
        _fill(picture, inner, panel.fill, radii)
    elif panel.frame is not None:
        for bar in (
            (left, top, right, inner[1]), (left, inner[3], right, bottom),
            (left, inner[1], inner[0], inner[3]), (inner[2], inner[1], right, inner[3]),
        ):  # fmt: skip
            _fill(picture, bar, panel.frame, (0.0, 0.0))


def _fill(
    picture: Image.Image, bounds: tuple[float, float, float, float], color: RGB, radii: tuple[float, float]
) -> None:
    """A rectangle whose edges may lie between pixels; `radii` of its corners, across and down."""
    left, top = (max(0, int(v)) for v in bounds[:2])
    right, bottom = (min(most, int(v) + 1) for v, most in zip(bounds[2:], picture.size, strict=True))
    if left >= right or top >= bottom:
        return
    if min(radii) > 0.5:
        picture.paste(color, (left, top), _rounded((left, top, right, bottom), bounds, radii))
        return
    rows, columns = coverage(bounds[1], bounds[3], top, bottom), coverage(bounds[0], bounds[2], left, right)
    paste_covered(picture, color, (left, top), rows, columns)


def _rounded(
    pixels: tuple[int, int, int, int], bounds: tuple[float, float, float, float], radii: tuple[float, float]
) -> Image.Image:
    """The coverage of pixels by a rectangle with round corners, in mode L.

    It is drawn at a scale where the corners are circles, then squeezed.
    """
    left, top, right, bottom = pixels
    times = _SAMPLES * max(radii) / radii[0], _SAMPLES * max(radii) / radii[1]
    size = (round((right - left) * times[0]), round((bottom - top) * times[1]))
    mask = Image.new("L", size)
    box = [(v - start) * scale for v, start, scale in zip(bounds, (left, top) * 2, times * 2, strict=True)]
    ImageDraw.Draw(mask).rounded_rectangle(
        (box[0], box[1], box[2] - 1, box[3] - 1), min(_SAMPLES * max(radii), (box[2] - box[0]) / 2), fill=255
    )
    return mask.resize((right - left, bottom - top), Image.Resampling.BOX)


# Labels.


def labels(board: Board) -> PictureLabels:
    """Labels of the whole board squeezed to a square: places and colors of texts, without characters."""
    out = _labels(board, _whole(board))
    for name in ("patch_character", "token_characters"):
        out[name][out[name] > 0] = NO_LABEL
    return PictureLabels(**out)


def crop_labels(board: Board, box: Box) -> PictureLabels:
    """Character and color of each cell of a crop squeezed to a square; a price's point has no label.

    A plate looks like a shape but is not one: only the writing on it has labels.
    """
    return PictureLabels(**_labels(board, box))


def _labels(board: Board, box: Box) -> dict[str, np.ndarray]:
    out = nothing()
    for panel in board.panels:
        if panel.is_plate:
            _leave_open(out, panel, box)
    tokens = out["token_characters"].reshape(-1, CHARACTERS_PER_TOKEN)
    for text in _texts_in(board, box):
        for part in _without_point(text):
            one = sign_drawing.line_labels(part)
            add_text(out, one)
            said = one["token_characters"].reshape(-1, CHARACTERS_PER_TOKEN)
            for token in np.flatnonzero(said.any(axis=1)):
                both = [*tokens[token][tokens[token] > 0], *said[token][said[token] > 0]][:CHARACTERS_PER_TOKEN]
                tokens[token, : len(both)] = both
        _leave_point_open(out, text)
    return out


def _without_point(text: Sign) -> list[Sign]:
    """Splits a text at its point into signs at their places: "2.50" into "2" and "50"."""
    bounds = edges(text.font, text.text)
    parts, start = [], 0
    for part in text.text.split(POINT):
        end = start + len(part)
        middle = (bounds[start] + bounds[end] - bounds[-1]) / 2 * text.size
        parts.append(replace(text, text=part, x=text.x + middle))
        start = end + len(POINT)
    return parts


def _leave_point_open(out: dict[str, np.ndarray], text: Sign) -> None:
    """Removes the character labels of patches at a price's point."""
    place = text.text.find(POINT)
    if place < 0:
        return
    bounds = edges(text.font, text.text)
    left, right = (text.x + (bounds[n] - bounds[-1] / 2) * text.size for n in (place, place + len(POINT)))
    baseline = text.y + text.cap_height / 2
    columns = (np.arange(PATCHES_PER_SIDE * POINTS_PER_PATCH) + 0.5) * text.width / PATCHES_PER_SIDE / POINTS_PER_PATCH
    rows = (np.arange(PATCHES_PER_SIDE) + 0.5) * text.height / PATCHES_PER_SIDE
    half = text.height / PATCHES_PER_SIDE / 2
    low = (rows + half > baseline - 0.3 * text.cap_height) & (rows - half < baseline)
    there = (low[:, None] & (columns > left) & (columns < right)).ravel()
    out["patch_character"][there & (out["patch_character"] == 0)] = NO_LABEL


def _leave_open(out: dict[str, np.ndarray], panel: Panel, box: Box) -> None:
    """Removes the labels of shape, color and centre of patches that a plate touches."""
    cells = []
    for low, high, start, end in (
        (panel.top, panel.bottom, box.top, box.bottom),
        (panel.left, panel.right, box.left, box.right),
    ):
        borders = start + np.arange(PATCHES_PER_SIDE + 1) * (end - start) / PATCHES_PER_SIDE
        cells.append((borders[1:] > low) & (borders[:-1] < high))
    touched = (cells[0][:, None] & cells[1]).ravel()
    for name in ("patch_shape", "patch_color", "patch_centre"):
        out[name][touched] = NO_LABEL
