"""The renderers of training pictures, smooth edges, and effects such as blur and JPEG."""

import io
import random

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from training.drawing.backgrounds import crop_tile, noise_tile
from training.drawing.colors import RGB

RENDERERS = ("pillow", "pillow_plain", "matplotlib")


def coverage(start: float, end: float, first: int, last: int) -> np.ndarray:
    """The share of each unit cell from `first` to `last` that lies between `start` and `end`."""
    cells = np.arange(first, last)
    return np.clip(np.minimum(cells + 1, end) - np.maximum(cells, start), 0.0, 1.0)


def paste_covered(
    picture: Image.Image, color: RGB, corner: tuple[int, int], rows: np.ndarray, columns: np.ndarray
) -> None:
    """Paints the pixels from `corner` on; each takes the product of its row's and column's coverage (0 to 1)."""
    picture.paste(color, corner, Image.fromarray((255 * np.outer(rows, columns) + 0.5).astype(np.uint8)))


def chosen_renderer(renderer: str | None, shares: tuple[float, ...], rng: random.Random) -> str:
    """`renderer`, or if None one of RENDERERS drawn by `shares`. Raises ValueError for an unknown one."""
    renderer = renderer or rng.choices(RENDERERS, weights=shares)[0]
    if renderer not in RENDERERS:
        raise ValueError(f"renderer is {renderer!r}; expected one of {RENDERERS}")
    return renderer


def with_effects(picture: Image.Image, rng: random.Random, effects: float) -> Image.Image:
    """Sometimes blurs the picture, adds noise, changes its gamma or compresses it as JPEG."""
    if rng.random() < 0.10 * effects:
        picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.10 * effects:
        picture = _with_noise(picture, rng)
    if rng.random() < 0.15 * effects:
        gamma = rng.uniform(0.85, 1.18)
        picture = picture.point([round(255 * (v / 255) ** gamma) for v in range(256)] * 3)
    if rng.random() < 0.20 * effects:
        picture = _through_jpeg(picture, rng.randint(30, 95))
    return picture


def _with_noise(picture: Image.Image, rng: random.Random) -> Image.Image:
    noise = crop_tile(noise_tile(rng.choice((3, 6, 10))), picture.size, rng)
    return ImageChops.add(picture, Image.merge("RGB", (noise,) * 3), 1, -128)


def _through_jpeg(picture: Image.Image, quality: int) -> Image.Image:
    store = io.BytesIO()
    picture.save(store, "JPEG", quality=quality)
    return Image.open(store).convert("RGB")
