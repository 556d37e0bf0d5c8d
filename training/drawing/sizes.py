"""Random sizes of pictures and of what is in them."""

import math
import random

COMMON_SIZES = (
    (224, 224), (256, 256), (300, 300), (400, 400), (512, 512), (600, 600), (800, 800),
    (1000, 1000), (1024, 1024), (320, 240), (400, 300), (600, 400), (640, 480), (800, 600),
    (1024, 768), (1280, 720), (1920, 1080), (1000, 500),
)  # fmt: skip


def random_size(rng: random.Random, difficulty: float) -> tuple[int, int]:
    """Width and height of a picture, 200 to 2000 pixels, up to 1 : 2; a square at difficulty 0."""
    if rng.random() < 0.5:
        width, height = rng.choice(COMMON_SIZES)
    else:
        ratio = 1 + rng.random() ** 1.5
        longer = round(math.exp(rng.uniform(math.log(200 * ratio), math.log(2000))))
        longer = min(2000, max(longer, math.ceil(200 * ratio)))
        width, height = longer, max(200, round(longer / ratio))
    if max(width, height) > min(width, height) * (1.0 + difficulty + 1e-9):
        width = height = max(200, min(width, height))
    return (height, width) if rng.random() < 0.4 else (width, height)


def log_uniform(rng: random.Random, low: float, high: float) -> float:
    """A log-uniform number between `low` and `high`."""
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def size_within(width: int, height: int, max_side: int | None) -> tuple[int, int]:
    """Width and height in pixels, scaled down to a longer side of `max_side`, never up."""
    scale = min(1.0, (max_side or math.inf) / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))
