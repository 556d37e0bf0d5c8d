"""Draws signs with several renderers, and labels the characters in each cell of a picture."""

import math
import random
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from training.drawing.backgrounds import draw_background
from training.drawing.colors import RGB
from training.drawing.dense_labels import (
    CHARACTERS_PER_TOKEN,
    NO_LABEL,
    PATCHES_PER_SIDE,
    POINTS_PER_PATCH,
    TOKENS_PER_SIDE,
    PictureLabels,
    add_text,
    character_label,
    color_label,
    nothing,
)
from training.drawing.fonts import at_size, edges, metrics
from training.drawing.rendering import chosen_renderer, with_effects
from training.drawing.sizes import size_within
from training.worlds.signs.signs import Plate, Sign
from training.worlds.signs.two_lines import TwoLines

_SHARES = (0.40, 0.35, 0.25)  # of the renderers, where none is named
_MASK_EM = 64  # pixels of the em of a text drawn once and resized
_PLATE_SAMPLES = 4  # per pixel and side, of plates

Written = Sign | TwoLines


def draw(
    sign: Written, rng: random.Random, max_side: int | None = None, renderer: str | None = None, effects: float = 1.0
) -> Image.Image:
    """The sign as an RGB picture; arguments as in scenes.drawing.draw.

    "pillow" resizes smooth letters without hinting, "pillow_plain" draws Pillow's hinted letters, "matplotlib" those of
    its Agg renderer.
    """
    renderer = chosen_renderer(renderer, _SHARES, rng)
    size = size_within(sign.width, sign.height, max_side)
    return with_effects(_drawn(sign, size, renderer, rng), rng, effects)


def training_picture(sign: Written, rng: random.Random, side: int = 224, effects: float = 1.0) -> Image.Image:
    """The sign as the model sees it: squeezed to a square of `side` pixels, mostly drawn at that size."""
    way = rng.random()
    if way < 0.6:
        return with_effects(_drawn(sign, (side, side), "pillow", rng), rng, effects)
    max_side = None if way > 0.98 else 2 * side
    picture = draw(sign, rng, max_side, effects=effects)
    return picture.resize((side, side), resample=Image.Resampling.BILINEAR)


def _drawn(sign: Written, size: tuple[int, int], renderer: str, rng: random.Random) -> Image.Image:
    """The sign stretched to `size` (width, height), without effects; only "pillow" can squeeze."""
    scales = (size[0] / sign.width, size[1] / sign.height)
    picture = draw_background(sign.background, size, rng)
    if sign.plated is not None and sign.plated.plate is not None:
        _plate(picture, sign.plated, sign.plated.plate, scales)
    for line in sign.lines:
        write(picture, line, scales, renderer)
    return picture


def write(picture: Image.Image, sign: Sign, scales: tuple[float, float], renderer: str) -> None:
    """Writes a sign's text; `scales` are picture pixels per sign pixel, equal for all renderers but "pillow"."""
    if renderer == "pillow":
        _smooth_text(picture, sign, scales)
    elif renderer == "pillow_plain":
        write_hinted(picture, sign, scales[0])
    else:
        _matplotlib_text(picture, sign, scales[0])


def labels(sign: Written) -> PictureLabels:
    """Character and color of each cell of the picture squeezed to a square.

    A plate looks like a shape but is none: only the characters on it have labels.
    """
    if isinstance(sign, Sign):
        return PictureLabels(**line_labels(sign))
    out = labels_of_lines(sign.lines)
    if sign.plated is not None:
        behind = nothing()
        _leave_open(sign.plated, behind)
        out = {name: np.where(out[name] > 0, out[name], behind[name]) for name in out}
    return PictureLabels(**out)


def labels_of_lines(lines: Sequence[Sign]) -> dict[str, np.ndarray]:
    """Labels of several texts on one picture; a soft token with parts of two has no characters."""
    known = nothing()
    holding = np.zeros(TOKENS_PER_SIDE**2, int)  # texts with a character in each soft token
    for line in lines:
        one = line_labels(line)
        add_text(known, one)
        known["token_characters"] = np.maximum(known["token_characters"], one["token_characters"])
        holding += (one["token_characters"].reshape(-1, CHARACTERS_PER_TOKEN) > 0).any(-1)
    known["token_characters"][np.repeat(holding > 1, CHARACTERS_PER_TOKEN)] = NO_LABEL
    return known


def line_labels(sign: Sign) -> dict[str, np.ndarray]:
    """Labels of one text."""
    out = nothing()
    written = np.array([character_label(c) for c in sign.text], np.uint8)
    color = color_label(sign.color)
    along, reached = _at_points(sign)
    bounds = np.array(edges(sign.font, sign.text)) * sign.size + sign.line[0]
    which = np.searchsorted(bounds[1:-1], along[..., 0], side="right")
    within = (along[..., 0] >= bounds[0]) & (along[..., 0] < bounds[-1])
    inks = np.array([metrics(sign.font).inks[c] for c in sign.text]) * sign.size
    middles = sign.cap_height / 2 + (inks[:, 1] - inks[:, 0]) / 2
    halves = np.maximum(
        (inks[:, 1] + inks[:, 0]) / 2, reached
    )  # at least the height of a cell, or it may miss every point
    inside = np.logical_and(within, np.abs(along[..., 1] - middles[which]) <= halves[which])
    characters = np.where(inside, written[which], 0)
    lettered = inside.reshape(-1, POINTS_PER_PATCH).any(axis=1)
    if sign.plate is not None:
        _leave_open(sign, out)
    out["patch_color"][lettered] = color
    out["patch_character"] = characters.ravel().astype(np.uint8)
    _label_tokens(sign, out, bounds, written, color)
    return out


def _leave_open(sign: Sign, out: dict[str, np.ndarray]) -> None:
    """Removes the labels of the patches on a sign's plate."""
    along, _ = _at_points(sign)
    left, top, right, bottom = sign.outer
    at_points = (along[..., 0] > left) & (along[..., 0] < right) & (along[..., 1] > top) & (along[..., 1] < bottom)
    on_plate = at_points.reshape(-1, POINTS_PER_PATCH).any(axis=1)
    for name in ("patch_shape", "patch_color", "patch_centre"):
        out[name][on_plate] = NO_LABEL


@lru_cache(maxsize=1)
def _points() -> np.ndarray:
    """The points that have character labels, in shares of the picture, [16, 32, 2]."""
    columns = (np.arange(PATCHES_PER_SIDE * POINTS_PER_PATCH) + 0.5) / (PATCHES_PER_SIDE * POINTS_PER_PATCH)
    rows = (np.arange(PATCHES_PER_SIDE) + 0.5) / PATCHES_PER_SIDE
    return np.stack(np.meshgrid(columns, rows), axis=-1)


def _at_points(sign: Sign) -> tuple[np.ndarray, float]:
    """The same points in the line's coordinates [16, 32, 2], and half the height of a cell."""
    return sign.along(_points() * (sign.width, sign.height)), sign.height / PATCHES_PER_SIDE / 2


def _label_tokens(sign: Sign, out: dict[str, np.ndarray], bounds: np.ndarray, written: np.ndarray, color: int) -> None:
    """Labels soft tokens with the characters whose middle lies in them, in order; at most four."""
    middles = np.stack([(bounds[1:] + bounds[:-1]) / 2, np.zeros(len(written))], axis=1)
    cells = (sign.turned(middles) * TOKENS_PER_SIDE / (sign.width, sign.height)).astype(int)
    held = dict.fromkeys(range(TOKENS_PER_SIDE**2), 0)
    for (column, row), character in zip(cells.clip(0, TOKENS_PER_SIDE - 1).tolist(), written.tolist(), strict=True):
        token = row * TOKENS_PER_SIDE + column
        out["token_color"][token] = color
        if held[token] < CHARACTERS_PER_TOKEN:
            out["token_characters"][token * CHARACTERS_PER_TOKEN + held[token]] = character
            held[token] += 1


# Renderers. Each writes the text of `sign` on `picture`.


def _plate(picture: Image.Image, sign: Sign, plate: Plate, scales: tuple[float, float]) -> None:
    """Draws frame and fill as masks, rotated and resized like the text."""
    left, top, right, bottom = sign.outer
    inner = plate.frame_width * sign.cap_height
    radius = plate.roundness * sign.cap_height
    finest = _PLATE_SAMPLES * max(scales)
    size = (max(1, round((right - left) * finest)), max(1, round((bottom - top) * finest)))
    pixel = size[0] / (right - left)
    whole = _rounded(size, 0.0, (radius + inner) * pixel)
    hole = _rounded(size, inner * pixel, radius * pixel)
    middle = ((left + right) / 2, (top + bottom) / 2)
    span = (right - left, bottom - top)
    if plate.frame is not None:
        ring = whole.copy()
        ring.paste(0, mask=hole)
        _paste_turned(picture, ring, span, middle, sign, scales, plate.frame)
    if plate.fill is not None:
        _paste_turned(picture, hole if plate.frame else whole, span, middle, sign, scales, plate.fill)


def _rounded(size: tuple[int, int], inset: float, radius: float) -> Image.Image:
    mask = Image.new("L", size)
    box = (inset, inset, size[0] - 1 - inset, size[1] - 1 - inset)
    ImageDraw.Draw(mask).rounded_rectangle(box, min(radius, min(size) / 2), fill=255)
    return mask


def _smooth_text(picture: Image.Image, sign: Sign, scales: tuple[float, float]) -> None:
    """Draws the text at a fixed size, or its own if larger, then rotates and resizes it."""
    em = min(sign.size * max(scales), 4 * _MASK_EM)
    drawn = at_size(sign.font, _MASK_EM * math.ceil(em / _MASK_EM))
    left, top, right, bottom = drawn.getbbox(sign.text, anchor="ls")
    mask = Image.new("L", (math.ceil(right - left) + 2, math.ceil(bottom - top) + 2))
    ImageDraw.Draw(mask).text((1 - left, 1 - top), sign.text, fill=255, font=drawn, anchor="ls")
    pixel = sign.size / drawn.size
    start, base = sign.line[0], sign.cap_height / 2
    middle = (start + (left - 1 + mask.width / 2) * pixel, base + (top - 1 + mask.height / 2) * pixel)
    span = (mask.width * pixel, mask.height * pixel)
    _paste_turned(picture, mask, span, middle, sign, scales, sign.rgb)


def _paste_turned(
    picture: Image.Image,
    mask: Image.Image,
    span: tuple[float, float],
    middle: tuple[float, float],
    sign: Sign,
    scales: tuple[float, float],
    color: RGB,
) -> None:
    """Pastes a color through a mask of `span` sign pixels around `middle`, in the line's coordinates."""
    pixel = span[0] / mask.width, span[1] / mask.height  # sign pixels of one of the mask's
    if sign.rotation:
        mask = mask.rotate(-sign.rotation, Image.Resampling.BILINEAR, expand=True)
    centre = sign.turned(np.array(middle)) * scales
    half = np.array([mask.width * pixel[0] * scales[0], mask.height * pixel[1] * scales[1]]) / 2
    left, top = (int(v) for v in np.floor(centre - half))
    right, bottom = (int(v) for v in np.ceil(centre + half))
    # Whole pixels of the picture in mask coordinates; they extend beyond the mask, so it gets a margin.
    step = 2 * half / (mask.width, mask.height)
    margin = math.ceil(float((1 / step).max())) + 1
    wide = Image.new("L", (mask.width + 2 * margin, mask.height + 2 * margin))
    wide.paste(mask, (margin, margin))
    box = [(v - (c - h)) / s + margin for v, c, h, s in
           zip((left, top, right, bottom), [*centre] * 2, [*half] * 2, [*step] * 2, strict=True)]  # fmt: skip
    small = wide.resize((right - left, bottom - top), Image.Resampling.BOX, box=tuple(box))
    picture.paste(color, (left, top), small)


def write_hinted(picture: Image.Image, sign: Sign, scale: float) -> None:
    """Writes a sign's text as simple programs do: letters on whole pixels."""
    drawn = at_size(sign.font, max(1.0, round(sign.size * scale)))
    x, y = sign.x * scale, sign.y * scale
    if not sign.rotation:
        place = (round(x - drawn.getlength(sign.text) / 2), round(y + sign.cap_height * scale / 2))
        ImageDraw.Draw(picture).text(place, sign.text, fill=sign.rgb, font=drawn, anchor="ls")
        return
    length = drawn.getlength(sign.text)
    half = math.ceil(math.hypot(length, 2 * sign.size * scale) / 2) + 2
    layer = Image.new("L", (2 * half, 2 * half))
    start = (half - length / 2, half + sign.cap_height * scale / 2)
    ImageDraw.Draw(layer).text(start, sign.text, fill=255, font=drawn, anchor="ls")
    layer = layer.rotate(-sign.rotation, Image.Resampling.BICUBIC)
    picture.paste(sign.rgb, (round(x) - half, round(y) - half), layer)


def _matplotlib_text(picture: Image.Image, sign: Sign, scale: float) -> None:
    """Draws with matplotlib's Agg renderer, without the cost of a Figure."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    length = edges(sign.font, sign.text)[-1] * sign.size * scale
    half = math.ceil(math.hypot(length, 2 * sign.size * scale) / 2) + 2
    agg = RendererAgg(2 * half, 2 * half, 72)
    pen = agg.new_gc()
    pen.set_antialiased(True)
    pen.set_foreground("black")
    start = np.array([-length / 2, sign.cap_height * scale / 2])
    x, y = sign.turned(start) - (sign.x, sign.y) + half
    face = FontProperties(fname=sign.font.path, size=sign.size * scale)
    agg.draw_text(pen, x, y, sign.text, face, -sign.rotation)
    layer = Image.frombuffer("RGBA", (2 * half, 2 * half), agg.buffer_rgba(), "raw", "RGBA", 0, 1)
    picture.paste(sign.rgb, (round(sign.x * scale) - half, round(sign.y * scale) - half), layer.getchannel("A"))
