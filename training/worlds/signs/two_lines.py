"""Random signs with two lines, one below the other; everything else is as in signs.py."""

import random
from dataclasses import dataclass, replace

import numpy as np

from training.drawing.backgrounds import Background, contrasting_shade, random_background
from training.drawing.colors import COLORS, UNNAMED
from training.drawing.fonts import Font
from training.drawing.sizes import log_uniform, random_size
from training.worlds.signs.signs import (
    LARGEST_CAP_HEIGHT,
    LEAST_CAP_HEIGHT,
    LEAST_TRAINED,
    MARGIN,
    MOST_CHARACTERS,
    MOST_TURNED,
    SMALLER_SHARE,
    Plate,
    Sign,
    grounds_behind,
    random_plate,
    random_text,
)

_LEAST_GAP, _MOST_GAP = 0.35, 0.9  # cap heights, between the ink of the lines
_SMALLER_LINE = 0.3  # share of the signs whose second line is of smaller letters
_LEAST_SECOND = 0.6  # of the first line's size
_ALIGNED = ("center", "center", "left")


@dataclass(frozen=True)
class TwoLines:
    """A whole picture, `width` by `height` pixels, with a line of text on it and a second below."""

    width: int
    height: int
    background: Background
    lines: tuple[Sign, Sign]
    plated: Sign | None = None  # a text in the middle of both that has the plate behind them


def random_two_lines(
    rng: random.Random, fonts: tuple[Font, ...], split: str = "train", difficulty: float = 1.0, unnamed: float = 0.0
) -> TwoLines:
    """Two lines of the demo world, as signs.random_sign; either both texts are held out or none."""
    if split not in ("train", "heldout"):
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    while True:
        easy = rng.random() >= difficulty
        texts = [random_text(rng, split, 4 if easy else MOST_CHARACTERS) for _ in range(2)]
        font = rng.choice([f for f in fonts if f.kind == "sans" and f.plain] if easy else fonts)
        found = _laid_out(rng, texts, font, split, difficulty, easy, unnamed)
        if found is not None:
            return found


def _laid_out(
    rng: random.Random, texts: list[str], font: Font, split: str, difficulty: float, easy: bool, unnamed: float
) -> TwoLines | None:
    """The finished sign; None if the texts do not fit or do not stand out."""
    width, height = random_size(rng, difficulty)
    background = random_background(rng, 0.0 if easy else difficulty)
    color = UNNAMED if rng.random() < unnamed else rng.choice(COLORS)
    turned = rng.uniform(-MOST_TURNED, MOST_TURNED) if rng.random() < 0.3 * difficulty else 0.0
    plate = random_plate(rng, background) if rng.random() < 0.3 * difficulty else None
    shade = contrasting_shade(color, grounds_behind(background, plate), rng, difficulty)
    if shade is None:
        return None
    second = rng.uniform(_LEAST_SECOND, 1.0) if not easy and rng.random() < _SMALLER_LINE else 1.0
    upper, lower = (
        Sign(width, height, background, text, font, color, shade.rgb, 0.0, 0.0, size, turned)
        for text, size in zip(texts, (1.0, second), strict=True)
    )
    places, block = _stacked(upper, lower, rng)
    plated = None if plate is None else _with_plate(upper, lower, plate, block)
    side = min(width, height)
    reach = np.abs(upper.turned(_corners(plated.outer if plated else (-block[0], -block[1], *block)))).max(axis=0)
    room = np.array([width, height]) / 2 - MARGIN * side
    least, most = LEAST_CAP_HEIGHT, LARGEST_CAP_HEIGHT
    if split == "train" and not easy and rng.random() < SMALLER_SHARE:
        least, most = LEAST_TRAINED, LEAST_CAP_HEIGHT
    most = min(most, float((room / reach).min()) * upper.cap_height / side)
    least = max(0.6 * most if easy else 0.0, least / second)  # the smaller letters are large enough too
    if most < least:
        return None
    em = log_uniform(rng, least, most) * side / upper.cap_height
    middle = np.array([rng.uniform(r * em + MARGIN * side, n - r * em - MARGIN * side)
                       for r, n in zip(reach, (width, height), strict=True)])  # fmt: skip
    lines = tuple(
        _at(line, middle + upper.turned(np.array(place) * em), em)
        for line, place in zip((upper, lower), places, strict=True)
    )
    return TwoLines(width, height, background, (lines[0], lines[1]), plated and _at(plated, middle, em))


def _stacked(
    upper: Sign, lower: Sign, rng: random.Random
) -> tuple[tuple[tuple[float, float], tuple[float, float]], tuple[float, float]]:
    """The middle of each line from the middle of both, and half the width and height of both; without rotation."""
    gap = rng.uniform(_LEAST_GAP, _MOST_GAP) * upper.cap_height
    (left, top, right, deep), (lower_left, high, lower_right, bottom) = upper.outer, lower.outer
    height = (deep - top) + gap + (bottom - high)
    half = max(right - left, lower_right - lower_left) / 2
    beside = [-(left + right) / 2, -(lower_left + lower_right) / 2]
    if rng.choice(_ALIGNED) == "left":
        beside = [-half - left, -half - lower_left]
    return ((beside[0], -height / 2 - top), (beside[1], height / 2 - bottom)), (half, height / 2)


def _with_plate(upper: Sign, lower: Sign, plate: Plate, block: tuple[float, float]) -> Sign:
    """The longer line in the middle of both, with a plate that is high enough for both."""
    longer = max(upper, lower, key=lambda line: line.line[2])
    left, top, right, bottom = longer.line
    beside = plate.beside + (block[0] - min(-left, right)) / longer.cap_height
    above = plate.above + (block[1] - min(-top, bottom)) / longer.cap_height
    return replace(longer, plate=replace(plate, beside=beside, above=above))


def _corners(outer: tuple[float, float, float, float]) -> np.ndarray:
    left, top, right, bottom = outer
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _at(line: Sign, place: np.ndarray, em: float) -> Sign:
    """A line with an em of one pixel, enlarged `em` times and moved to its place."""
    return replace(line, x=float(place[0]), y=float(place[1]), size=line.size * em)
