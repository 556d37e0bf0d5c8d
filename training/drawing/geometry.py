"""The outlines of the six shapes, as polygons."""

import math
from functools import lru_cache

import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "rectangle")

VARIANTS: dict[str, tuple[str, ...]] = {
    "circle": ("plain",),
    "square": ("plain",),
    "triangle": ("equilateral", "isosceles", "right"),
    "star": ("5", "4", "6"),
    "heart": ("curve", "arcs", "bezier"),
    "rectangle": ("plain",),
}


@lru_cache(maxsize=8192)
def unit_polygon(shape: str, variant: str, aspect: float) -> np.ndarray:
    """The outline [points, 2] with its longer side 1, about its centre of area, y downwards.

    `aspect` is the long side over the short one for rectangles, the inner radius over the outer
    one for stars, the height over the base for isosceles and right triangles; unused elsewhere.
    """
    points = _OUTLINES[shape](variant, aspect)
    points = (points - _centre_of_area(points)) / np.ptp(points, axis=0).max()
    points.flags.writeable = False
    return points


@lru_cache(maxsize=8192)
def unit_radius(shape: str, variant: str, aspect: float) -> float:
    """The largest distance of the unit polygon from its centre."""
    return float(np.sqrt((unit_polygon(shape, variant, aspect) ** 2).sum(axis=1).max()))


@lru_cache(maxsize=8192)
def inner_circle(shape: str, variant: str, aspect: float) -> tuple[float, float, float]:
    """A circle (x, y, radius) within the unit polygon that touches most of its sides.

    Shrinking the polygon about its middle moves those sides inwards by the same width.
    """
    points = unit_polygon(shape, variant, aspect)
    edges = np.roll(points, -1, axis=0) - points
    lengths = np.hypot(edges[:, 0], edges[:, 1])
    middle = np.zeros(2)
    if shape == "triangle":  # each corner weighs as its opposite side is long
        middle = np.roll(lengths, -1) @ points / lengths.sum()
    away = middle - points
    distances = np.abs(edges[:, 0] * away[:, 1] - edges[:, 1] * away[:, 0]) / lengths
    radius = np.median(distances) if shape == "heart" else distances.min()
    return float(middle[0]), float(middle[1]), float(radius)


def _centre_of_area(points: np.ndarray) -> np.ndarray:
    following = np.roll(points, -1, axis=0)
    cross = points[:, 0] * following[:, 1] - following[:, 0] * points[:, 1]
    return ((points + following) * cross[:, None]).sum(axis=0) / (3 * cross.sum())


def _circle(_variant: str, _aspect: float) -> np.ndarray:
    angles = np.arange(48) * (2 * math.pi / 48)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _square(_variant: str, _aspect: float) -> np.ndarray:
    return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)


def _rectangle(variant: str, aspect: float) -> np.ndarray:
    return _square(variant, aspect) * [aspect, 1.0]


def _triangle(variant: str, aspect: float) -> np.ndarray:
    if variant == "right":
        return np.array([[0, 0], [0, aspect], [1, aspect]], float)
    height = math.sqrt(3) / 2 if variant == "equilateral" else aspect
    return np.array([[0.5, 0], [1, height], [0, height]], float)


def _star(variant: str, aspect: float) -> np.ndarray:
    tips = int(variant)
    angles = np.arange(2 * tips) * (math.pi / tips) - math.pi / 2
    radii = np.where(np.arange(2 * tips) % 2 == 0, 1.0, aspect)[:, None]
    return radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _heart(variant: str, _aspect: float) -> np.ndarray:
    if variant == "arcs":
        return _heart_of_arcs()
    if variant == "bezier":
        return _heart_of_beziers()
    t = np.arange(40) * (2 * math.pi / 40)  # the well-known curve, mathworld.wolfram.com
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y], axis=1)


def _heart_of_arcs() -> np.ndarray:
    """Two circles side by side on a triangle, as simple programs draw it."""
    t = np.linspace(math.pi * 0.85, math.pi * 2, 16)
    left = np.stack([-0.5 + 0.5 * np.cos(t), 0.5 * np.sin(t)], axis=1)
    right = left[::-1] * [-1, 1]
    return np.concatenate([left, right[1:], [[0.0, 1.15]]])


def _heart_of_beziers() -> np.ndarray:
    """The usual two-lobed path of drawing programs."""
    t = np.linspace(0, 1, 12)[:, None]

    def curve(a: list, b: list, c: list, d: list) -> np.ndarray:
        u = 1 - t
        controls = (np.array(p) for p in (a, b, c, d))
        weights = (u**3, 3 * u**2 * t, 3 * u * t**2, t**3)
        return sum(w * p for w, p in zip(weights, controls, strict=True))

    upper = curve([0, 0.3], [0.05, -0.15], [0.95, -0.25], [1.0, 0.35])
    lower = curve([1.0, 0.35], [1.0, 0.8], [0.35, 1.1], [0, 1.5])
    right = np.concatenate([upper, lower[1:]])
    return np.concatenate([right, right[-2:0:-1] * [-1, 1]])


_OUTLINES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "rectangle": _rectangle,
}
