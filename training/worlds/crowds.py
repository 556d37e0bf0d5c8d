"""Pictures full of shapes or of words, for the dense loss only.

A sign has about five letters and a scene about four shapes. An encoder learns them many times faster from pictures with
dozens. There are no questions about crowds, and no evaluation on them.
"""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from training.drawing.backgrounds import Background, contrasting_shade, draw_background, grounds_of, random_background
from training.drawing.colors import COLORS, UNNAMED
from training.drawing.dense_labels import NO_LABEL, SIZES, PictureLabels
from training.drawing.fonts import Font, all_fonts, edges, metrics
from training.drawing.geometry import SHAPES
from training.drawing.rendering import with_effects
from training.drawing.sizes import log_uniform, random_size
from training.worlds.scenes import drawing
from training.worlds.scenes.scenes import SMALLEST, Scene, SceneObject, is_heldout_pair, object_of
from training.worlds.signs import drawing as sign_drawing
from training.worlds.signs.signs import LEAST_TRAINED, Sign, random_text

_WORDY = 0.75  # share of the crowds that are of words
_LARGEST_SHAPE, _LARGEST_CAPITAL = 0.2, 0.2  # of the shorter side
_MOST_SHAPES = 28
_UNNAMED = 0.2  # share of words in unnamed colors
_TRIES = 8  # to find room for a shape
_MOST_TURNED = 8.0  # degrees


@dataclass(frozen=True)
class Words:
    """Many texts on one background: signs of the same picture."""

    width: int
    height: int
    background: Background
    texts: tuple[Sign, ...]


Crowd = Words | Scene


def random_crowd(rng: random.Random, unnamed: float = 0.0) -> Crowd:
    """A crowd for training; `unnamed` is the share of shapes in unnamed colors."""
    width, height = random_size(rng, 1.0)
    background = random_background(rng, 1.0)
    if rng.random() < _WORDY:
        return Words(width, height, background, tuple(_texts(rng, width, height, background)))
    return Scene(width, height, background, tuple(_shapes(rng, width, height, background, unnamed)))


def _texts(rng: random.Random, width: int, height: int, background: Background) -> list[Sign]:
    """Lines of words from top to bottom; a line has one height."""
    side, fonts, grounds = min(width, height), all_fonts(), grounds_of(background)
    found: list[Sign] = []
    top = rng.uniform(0.02, 0.08) * side
    while True:
        capital = log_uniform(rng, LEAST_TRAINED, _LARGEST_CAPITAL) * side
        pitch = capital * rng.uniform(1.5, 1.9)
        if top + pitch > height:
            return found
        left = rng.uniform(0.02, 0.08) * side
        while (text := _fitting(rng, fonts, capital, width - left - 0.02 * side)) is not None:
            word, font = text
            size = capital / metrics(font).cap_height
            length = edges(font, word)[-1] * size
            color = UNNAMED if rng.random() < _UNNAMED else rng.choice(COLORS)
            if (shade := contrasting_shade(color, grounds, rng, 1.0)) is not None:
                turned = rng.uniform(-_MOST_TURNED, _MOST_TURNED) if rng.random() < 0.3 else 0.0
                # Not so far that it reaches into the next line.
                turned = turned if length * abs(math.sin(math.radians(turned))) < 0.5 * capital else 0.0
                x, y = left + length / 2, top + pitch / 2
                found.append(Sign(width, height, background, word, font, color, shade.rgb, x, y, size, turned))
            left += length + capital * rng.uniform(0.4, 1.1)
        top += pitch


def _fitting(rng: random.Random, fonts: tuple[Font, ...], capital: float, room: float) -> tuple[str, Font] | None:
    """A text and a font in which it is at most `room` pixels long."""
    for _ in range(6):
        text, font = random_text(rng, "train"), rng.choice(fonts)
        if edges(font, text)[-1] * capital / metrics(font).cap_height <= room:
            return text, font
    return None


def _shapes(rng: random.Random, width: int, height: int, background: Background, unnamed: float) -> list[SceneObject]:
    side, grounds = min(width, height), grounds_of(background)
    placed: list[SceneObject] = []
    for _ in range(_MOST_SHAPES):
        shape = rng.choice(SHAPES)
        color = UNNAMED if rng.random() < unnamed else rng.choice(COLORS)
        shade = None if is_heldout_pair(shape, color) else contrasting_shade(color, grounds, rng, 1.0)
        if shade is None:
            continue
        item = object_of(shape, color, shade.rgb, log_uniform(rng, SMALLEST, _LARGEST_SHAPE) * side, rng, width, height)
        reach = item.radius + 1
        for _ in range(_TRIES):
            x, y = rng.uniform(reach, width - reach), rng.uniform(reach, height - reach)
            if all(math.hypot(x - o.x, y - o.y) > reach + o.radius for o in placed):
                placed.append(replace(item, x=x, y=y))
                break
    return placed


def draw(crowd: Crowd, rng: random.Random, renderer: str | None = None) -> Image.Image:  # noqa: ARG001
    """A square as large as the longer side: a crowd is only drawn as the encoder gets it."""
    return training_picture(crowd, rng, max(crowd.width, crowd.height))


def training_picture(crowd: Crowd, rng: random.Random, side: int) -> Image.Image:
    """Squeezed to a square of `side` pixels, as the encoder gets it."""
    if isinstance(crowd, Scene):
        return drawing.training_picture(crowd, rng, side)
    scale = min(1.0, 2 * side / max(crowd.width, crowd.height))
    size = (round(crowd.width * scale), round(crowd.height * scale))
    picture = draw_background(crowd.background, size, rng)
    for sign in crowd.texts:
        sign_drawing.write_hinted(picture, sign, scale)
    picture = picture.resize((side, side), resample=Image.Resampling.BILINEAR)
    return with_effects(picture, rng, 1.0)


def labels(crowd: Crowd) -> PictureLabels:
    """Labels of patches and the characters of soft tokens, unless a token holds parts of two texts.

    Shapes of soft tokens have no labels: a token may hold several.
    """
    known = vars(drawing.labels(crowd)) if isinstance(crowd, Scene) else sign_drawing.labels_of_lines(crowd.texts)
    unsaid = [name for name in SIZES if name.startswith("token") and name != "token_characters"]
    return PictureLabels(**{**known, **{name: np.full(SIZES[name], NO_LABEL, np.uint8) for name in unsaid}})
