"""Random backgrounds: how they are drawn, and which colors stand out from them."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from training.drawing.colors import RGB, Lab, Shade, delta_e, from_hsv, mix, random_shade, to_lab

MIN_CONTRAST = 26.0  # CIE76 between a shape's fill and every color of the background


@dataclass(frozen=True)
class Background:
    """One color, or two mixed by a pattern."""

    kind: str  # plain, gradient or texture
    colors: tuple[RGB, ...]
    pattern: str = "plain"
    angle: float = 0.0  # degrees, of gradients and stripes
    scale: float = 1.0  # the pattern's step in hundredths of the longer side


def random_background(rng: random.Random, difficulty: float) -> Background:
    """A random background; at difficulty 0 of one color."""
    base = _random_ground(rng)
    kind = rng.choices(("plain", "gradient", "texture"), weights=(5, 2.5 * difficulty, 2.5 * difficulty))[0]
    if kind == "plain":
        return Background(kind, (base,))
    angle = rng.choice((0.0, 90.0, 45.0, rng.uniform(0, 360)))
    if kind == "gradient":
        other = _random_ground(rng) if rng.random() < 0.5 else _neighbour(base, rng, 0.15, 0.6)
        return Background(kind, (base, other), rng.choice(("linear", "linear", "radial")), angle)
    pattern = rng.choice(("noise", "paper", "stripes", "dots", "checks", "grid"))
    other = _neighbour(base, rng, 0.03, 0.10)
    return Background(kind, (base, other), pattern, angle, rng.uniform(1.5, 6.0))


def _random_ground(rng: random.Random) -> RGB:
    """A background color: mostly white, light or dark, sometimes a strong one."""
    kind = rng.choices(
        ("white", "light", "gray", "pastel", "dark", "black", "strong"), weights=(20, 12, 8, 22, 14, 8, 16)
    )[0]
    if kind == "white":
        return (255, 255, 255)
    if kind == "black":
        return (0, 0, 0)
    if kind == "gray":
        return (rng.randrange(40, 240),) * 3
    reach = {  # saturation and value
        "light": (0.0, 0.06, 0.9, 1.0),
        "pastel": (0.06, 0.35, 0.8, 1.0),
        "dark": (0.0, 0.8, 0.06, 0.35),
        "strong": (0.3, 1.0, 0.35, 0.95),
    }[kind]
    return from_hsv(rng.random(), rng.uniform(*reach[:2]), rng.uniform(*reach[2:]))


def _neighbour(base: RGB, rng: random.Random, least: float, most: float) -> RGB:
    """`base` made somewhat lighter or darker."""
    target = (0, 0, 0) if sum(base) > 382 else (255, 255, 255)
    return mix(base, target, rng.uniform(least, most))


def grounds_of(background: Background) -> list[Lab]:
    """The colors of a background that a fill must stand out from."""
    first, last = background.colors[0], background.colors[-1]
    grounds = [to_lab(first)]
    if len(background.colors) > 1:
        grounds += [to_lab(mix(first, last, part)) for part in (0.25, 0.5, 0.75, 1.0)]
    return grounds


def contrasting_shade(color: str, grounds: list[Lab], rng: random.Random, difficulty: float) -> Shade | None:
    """A shade of `color` that stands out from all the grounds by MIN_CONTRAST; None if none was found."""
    for _ in range(6):
        shade = random_shade(color, rng, pure=rng.random() < 0.2 + 0.5 * (1 - difficulty))
        if all(delta_e(shade.lab, ground) > MIN_CONTRAST for ground in grounds):
            return shade
    return None


def draw_background(background: Background, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """The background alone, RGB of `size` (width, height)."""
    if background.pattern == "plain":
        return Image.new("RGB", size, background.colors[0])
    pattern = _PATTERNS[background.pattern](background, size, rng)
    return ImageOps.colorize(pattern, background.colors[0], background.colors[1])


# Patterns: pictures in mode L; 0 is the first color, 255 the second.


def _linear(background: Background, size: tuple[int, int], _rng: random.Random) -> Image.Image:
    angle = math.radians(background.angle)
    across = np.linspace(-1, 1, 64)
    ramp = across[None, :] * math.cos(angle) + across[:, None] * math.sin(angle)
    ramp = (ramp - ramp.min()) / (ramp.max() - ramp.min())
    return Image.fromarray((255 * ramp).astype(np.uint8)).resize(size, Image.Resampling.BILINEAR)


def _radial(_background: Background, size: tuple[int, int], _rng: random.Random) -> Image.Image:
    return _radial_tile().resize(size, Image.Resampling.BILINEAR)


def _noise(_background: Background, size: tuple[int, int], rng: random.Random) -> Image.Image:
    return crop_tile(noise_tile(48), size, rng)


def _paper(background: Background, size: tuple[int, int], rng: random.Random) -> Image.Image:
    grains = max(8, round(100 / background.scale))
    small = crop_tile(noise_tile(60), (grains, grains), rng)
    return small.resize(size, Image.Resampling.BICUBIC)


def _stripes(background: Background, size: tuple[int, int], _rng: random.Random) -> Image.Image:
    pattern = Image.new("L", size)
    pen = ImageDraw.Draw(pattern)
    step = _step(background, size)
    reach = max(size) * 1.5
    angle = math.radians(background.angle)
    cos, sin = math.cos(angle), math.sin(angle)
    for number in range(int(-reach / step), int(reach / step) + 1):
        x, y = number * step * cos, number * step * sin
        ends = (x - reach * sin, y + reach * cos, x + reach * sin, y - reach * cos)
        pen.line(ends, fill=255, width=max(1, round(step / 2)))
    return pattern


def _dots(background: Background, size: tuple[int, int], _rng: random.Random) -> Image.Image:
    def paint(pen: ImageDraw.ImageDraw, n: int) -> None:
        pen.ellipse((n / 4, n / 4, 3 * n / 4, 3 * n / 4), 255)

    return _tiled(background, size, paint)


def _checks(background: Background, size: tuple[int, int], _rng: random.Random) -> Image.Image:
    def paint(pen: ImageDraw.ImageDraw, n: int) -> None:
        pen.rectangle((0, 0, n // 2 - 1, n // 2 - 1), 255)
        pen.rectangle((n // 2, n // 2, n, n), 255)

    return _tiled(background, size, paint)


def _grid(background: Background, size: tuple[int, int], _rng: random.Random) -> Image.Image:
    def paint(pen: ImageDraw.ImageDraw, n: int) -> None:
        width = max(1, n // 12)
        pen.rectangle((0, 0, n, width - 1), 255)
        pen.rectangle((0, 0, width - 1, n), 255)

    return _tiled(background, size, paint)


_PATTERNS = {
    "linear": _linear,
    "radial": _radial,
    "noise": _noise,
    "paper": _paper,
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "grid": _grid,
}


def _step(background: Background, size: tuple[int, int]) -> int:
    return max(4, round(background.scale / 100 * max(size)))


def _tiled(
    background: Background, size: tuple[int, int], paint: Callable[[ImageDraw.ImageDraw, int], None]
) -> Image.Image:
    """Repeats one painted tile over the picture, by doubling."""
    n = _step(background, size)
    pattern = Image.new("L", size)
    tile = Image.new("L", (n, n))
    paint(ImageDraw.Draw(tile), n)
    pattern.paste(tile)
    filled = n
    while filled < size[0]:
        pattern.paste(pattern.crop((0, 0, filled, n)), (filled, 0))
        filled *= 2
    filled = n
    while filled < size[1]:
        pattern.paste(pattern.crop((0, 0, size[0], filled)), (0, filled))
        filled *= 2
    return pattern


@lru_cache(maxsize=1)
def _radial_tile() -> Image.Image:
    across = np.linspace(-1, 1, 128)
    distance = np.sqrt(across[None, :] ** 2 + across[:, None] ** 2) / math.sqrt(2)
    return Image.fromarray((255 * distance).astype(np.uint8))


@lru_cache(maxsize=4)
def noise_tile(deviation: int) -> Image.Image:
    values = np.random.default_rng(deviation).normal(128, deviation, (512, 512))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def crop_tile(tile: Image.Image, size: tuple[int, int], rng: random.Random) -> Image.Image:
    """A random part of the tile; the tile repeated if the picture is larger."""
    if size[0] <= tile.width and size[1] <= tile.height:
        x, y = rng.randrange(tile.width - size[0] + 1), rng.randrange(tile.height - size[1] + 1)
        return tile.crop((x, y, x + size[0], y + size[1]))
    whole = Image.new("L", size)
    for x in range(0, size[0], tile.width):
        for y in range(0, size[1], tile.height):
            whole.paste(tile, (x, y))
    return whole
