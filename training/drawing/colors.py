"""The eleven colors of the demo world: their shades, and how far apart colors look."""

import colorsys
import random
from dataclasses import dataclass
from functools import cache, lru_cache

RGB = tuple[int, int, int]
Lab = tuple[float, float, float]

COLORS = (
    "red", "green", "blue", "yellow", "orange", "purple",
    "pink", "black", "white", "gray", "brown",
)  # fmt: skip

# Shades that people agree on: CSS names, the matplotlib tab: colors, common material palettes.
# Left out on purpose: tomato, firebrick, maroon, olive, teal, cyan, magenta, salmon, chocolate,
# which two people would name differently.
ANCHORS: dict[str, tuple[RGB, ...]] = {
    "red": (
        (255, 0, 0), (220, 20, 60), (214, 39, 40), (200, 0, 0), (230, 30, 30),
        (229, 57, 53), (244, 67, 54), (139, 0, 0), (180, 0, 0), (231, 76, 60),
    ),
    "green": (
        (0, 128, 0), (0, 255, 0), (50, 205, 50), (34, 139, 34), (44, 160, 44), (0, 100, 0),
        (46, 139, 87), (76, 175, 80), (60, 179, 113), (0, 170, 0), (144, 238, 144), (39, 174, 96),
        (124, 252, 0), (152, 251, 152),
    ),
    "blue": (
        (0, 0, 255), (0, 0, 128), (65, 105, 225), (30, 144, 255), (31, 119, 180), (0, 0, 205),
        (70, 130, 180), (33, 150, 243), (0, 0, 139), (135, 206, 235), (173, 216, 230),
        (100, 149, 237), (41, 128, 185), (52, 152, 219), (0, 191, 255),
    ),
    "yellow": (
        (255, 255, 0), (255, 215, 0), (255, 235, 59), (250, 230, 50), (240, 220, 0),
        (255, 240, 100), (255, 225, 25), (241, 196, 15), (255, 250, 150),
    ),
    "orange": (
        (255, 165, 0), (255, 140, 0), (255, 127, 14), (255, 152, 0), (245, 130, 48),
        (255, 120, 0), (243, 156, 18), (230, 126, 34),
    ),
    "purple": (
        (128, 0, 128), (148, 103, 189), (102, 51, 153), (138, 43, 226), (75, 0, 130),
        (153, 50, 204), (142, 68, 173), (156, 39, 176), (147, 112, 219), (160, 32, 240),
        (186, 85, 211), (177, 126, 217),
    ),
    "pink": (
        (255, 192, 203), (255, 105, 180), (255, 20, 147), (227, 119, 194), (255, 182, 193),
        (244, 143, 177), (250, 128, 180),
    ),
    "black": ((0, 0, 0), (17, 17, 17), (28, 28, 28), (36, 36, 36)),
    "white": ((255, 255, 255), (245, 245, 245), (250, 250, 252)),
    "gray": (
        (128, 128, 128), (105, 105, 105), (169, 169, 169), (149, 165, 166), (90, 90, 90),
        (192, 192, 192), (158, 158, 158), (112, 118, 124), (208, 208, 208),
    ),
    "brown": (
        (165, 42, 42), (139, 69, 19), (160, 82, 45), (140, 86, 75), (121, 85, 72),
        (101, 67, 33), (92, 64, 51), (150, 75, 0),
    ),
}  # fmt: skip

UNNAMED = ""
"""The color of a shape that two people might name differently. No question is about it."""

POOL_SIZE = 300  # shades kept per color
UNNAMED_POOL_SIZE = 3000
NAME_MARGIN = 8.0  # delta E by which a shade is nearer to its own name than to any other


@dataclass(frozen=True)
class Shade:
    """One shade of a named color, also in CIELAB."""

    name: str
    rgb: RGB
    lab: Lab


@lru_cache(maxsize=4096)
def to_lab(rgb: RGB) -> Lab:
    """sRGB (0..255) to CIELAB under D65 (CIE 15:2004)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in unit(rgb)]
    r, g, b = linear
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return (116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz))


def delta_e(a: Lab, b: Lab) -> float:
    """CIE76 color difference: 2 is just visible, 25 is plain at a glance."""
    return ((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2) ** 0.5


def random_shade(color: str, rng: random.Random, pure: bool = False) -> Shade:
    """A random shade of `color`; `pure` takes the most typical one.

    For UNNAMED any color between the named ones.
    """
    if color == UNNAMED:
        return rng.choice(unnamed_shades())
    pool = shades(color)
    return pool[0] if pure else pool[rng.randrange(len(pool))]


@cache
def shades(color: str) -> tuple[Shade, ...]:
    """All shades used for `color`: its anchors, then mixtures of two of them, jittered a little."""
    rng = random.Random(f"shades of {color}")
    anchors = ANCHORS[color]
    found = [Shade(color, rgb, to_lab(rgb)) for rgb in anchors]
    while len(found) < POOL_SIZE:
        one, two = rng.choice(anchors), rng.choice(anchors)
        part = rng.uniform(0.0, 0.5)
        rgb = _jittered(mix(one, two, part), color, rng)
        if is_clear(rgb, color):
            found.append(Shade(color, rgb, to_lab(rgb)))
    return tuple(found)


@cache
def unnamed_shades() -> tuple[Shade, ...]:
    """Colors between the named ones (teal, olive, tomato …), from all over the RGB cube."""
    rng = random.Random("unnamed shades")
    found: list[Shade] = []
    while len(found) < UNNAMED_POOL_SIZE:
        rgb = (rng.randrange(256), rng.randrange(256), rng.randrange(256))
        if not any(is_clear(rgb, color) for color in COLORS):
            found.append(Shade(UNNAMED, rgb, to_lab(rgb)))
    return tuple(found)


def is_clear(rgb: RGB, color: str) -> bool:
    """Whether `rgb` is nearer to an anchor of `color` than to all other anchors, by a margin."""
    lab = to_lab(rgb)
    own = min(delta_e(lab, to_lab(anchor)) for anchor in ANCHORS[color])
    others = (a for name, anchors in ANCHORS.items() if name != color for a in anchors)
    return own + NAME_MARGIN < min(delta_e(lab, to_lab(anchor)) for anchor in others)


def mix(a: RGB, b: RGB, part: float) -> RGB:
    """`a` moved towards `b` by `part` (0..1)."""
    red, green, blue = (round(p + (q - p) * part) for p, q in zip(a, b, strict=True))
    return red, green, blue


def from_hsv(hue: float, saturation: float, value: float) -> RGB:
    """HSV in 0..1 to 8-bit RGB."""
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def unit(rgb: RGB) -> tuple[float, float, float]:
    """0 to 1, as matplotlib wants it."""
    return rgb[0] / 255, rgb[1] / 255, rgb[2] / 255


def _jittered(rgb: RGB, color: str, rng: random.Random) -> RGB:
    reach = 2 if color in ("black", "white", "gray") else 7
    red, green, blue = (max(0, min(255, round(c + rng.uniform(-reach, reach)))) for c in rgb)
    return red, green, blue
