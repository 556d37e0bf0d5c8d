"""Draws scenes with several renderers, and labels each cell of a picture."""

import math
import random
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

from training.drawing.backgrounds import draw_background
from training.drawing.colors import RGB, unit
from training.drawing.dense_labels import (
    HEIGHTS,
    PATCHES_PER_SIDE,
    TOKENS_PER_SIDE,
    PictureLabels,
    color_label,
    nothing,
)
from training.drawing.geometry import SHAPES
from training.drawing.rendering import chosen_renderer, with_effects
from training.drawing.sizes import size_within
from training.worlds.scenes.scenes import LARGEST, Scene, SceneObject, inner_circle_of, polygon

_SHARES = (0.40, 0.45, 0.15)  # of the renderers, where none is named
_SAMPLES = 8  # per side of a cell, for patch labels
_LEAST_SHARE = 0.15  # of a cell, for an object to count as lying in it


def draw(
    scene: Scene, rng: random.Random, max_side: int | None = None, renderer: str | None = None, effects: float = 1.0
) -> Image.Image:
    """The scene as an RGB picture.

    `max_side` scales the scene down to that longer side (pixels), never up. `renderer` is one of RENDERERS, or None for
    a random one. `effects` scales how often JPEG, blur, noise and gamma are applied.
    """
    renderer = chosen_renderer(renderer, _SHARES, rng)
    size = size_within(scene.width, scene.height, max_side)
    return with_effects(_drawn(scene, size, renderer, rng), rng, effects)


def training_picture(scene: Scene, rng: random.Random, side: int = 224, effects: float = 1.0) -> Image.Image:
    """The scene as the model sees it: squeezed to a square of `side` pixels.

    Most are drawn at that size, which is fast; the others are drawn whole, a few at full size, and resized as the image
    processor does.
    """
    way = rng.random()
    if way < 0.45:
        picture = _drawn(scene, (2 * side, 2 * side), "pillow_plain", rng).reduce(2)
        return with_effects(picture, rng, effects)
    if way < 0.75:
        return with_effects(_drawn(scene, (side, side), "pillow", rng), rng, effects)
    max_side = None if way > 0.98 else 2 * side
    picture = draw(scene, rng, max_side, effects=effects)
    return picture.resize((side, side), resample=Image.Resampling.BILINEAR)


def _drawn(scene: Scene, size: tuple[int, int], renderer: str, rng: random.Random) -> Image.Image:
    """The scene stretched to `size` (width, height), without effects."""
    scales = (size[0] / scene.width, size[1] / scene.height)
    picture = draw_background(scene.background, size, rng)
    if renderer == "matplotlib":
        _matplotlib_shapes(picture, scene, scales, rng)
    elif renderer == "pillow":
        _smooth_pillow_shapes(picture, scene, scales)
    else:
        _pillow_shapes(picture, scene, scales)
    return picture


def patch_labels(scene: Scene, grid: int = PATCHES_PER_SIDE) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels of shapes, colors and centres [grid, grid], from a coarse drawing of the outlines."""
    side = grid * _SAMPLES
    ids = Image.new("L", (side, side))
    pen = ImageDraw.Draw(ids)
    squeeze = np.array([side / scene.width, side / scene.height])
    for number, item in enumerate(scene.objects, 1):
        points = polygon(item) * squeeze - 0.5
        pen.polygon(points.ravel().tolist(), fill=number)
    cells = np.asarray(ids).reshape(grid, _SAMPLES, grid, _SAMPLES).transpose(0, 2, 1, 3).reshape(grid * grid, -1)
    kinds = len(scene.objects) + 1  # nothing, then each object
    keys = cells + kinds * np.arange(grid * grid)[:, None]
    samples = np.bincount(keys.ravel(), minlength=grid * grid * kinds).reshape(grid, grid, kinds)[..., 1:]
    enough = samples.max(axis=2) >= _LEAST_SHARE * _SAMPLES**2
    winner = np.where(enough, samples.argmax(axis=2) + 1, 0)
    shapes = np.array([0] + [1 + SHAPES.index(o.shape) for o in scene.objects], np.uint8)
    colors = np.array([0] + [color_label(o.color) for o in scene.objects], np.uint8)
    centre = np.zeros((grid, grid), np.uint8)
    for item in scene.objects:
        centre[int(item.y * grid / scene.height), int(item.x * grid / scene.width)] = 1
    return shapes[winner], colors[winner], centre


def labels(scene: Scene) -> PictureLabels:
    """Labels of each patch and, by the objects' centres, of each soft token; without characters."""
    largest = LARGEST * min(scene.width, scene.height)
    out = nothing()
    for item in scene.objects:
        row = min(TOKENS_PER_SIDE - 1, int(item.y * TOKENS_PER_SIDE / scene.height))
        column = min(TOKENS_PER_SIDE - 1, int(item.x * TOKENS_PER_SIDE / scene.width))
        token = row * TOKENS_PER_SIDE + column
        out["token_shape"][token] = 1 + SHAPES.index(item.shape)
        out["token_color"][token] = color_label(item.color)
        out["token_height"][token] = min(HEIGHTS, math.ceil(HEIGHTS * item.size / largest))
    for name, cells in zip(("patch_shape", "patch_color", "patch_centre"), patch_labels(scene), strict=True):
        out[name] = cells.ravel()
    return PictureLabels(**out)


# Renderers. Each draws the shapes of `scene`, scaled by `scales` (x and y), on `picture`.


def _pillow_shapes(picture: Image.Image, scene: Scene, scales: tuple[float, float]) -> None:
    pen = ImageDraw.Draw(picture)
    for item in scene.objects:
        for points, color in _layers(item):
            _fill(pen, item.shape, points * scales, color)


def _smooth_pillow_shapes(picture: Image.Image, scene: Scene, scales: tuple[float, float]) -> None:
    """Draws each shape at four times its size and averages."""
    times = 4
    for item in scene.objects:
        for points, color in _layers(item):
            points = points * scales
            left, top = (int(c) for c in np.floor(points.min(axis=0)))
            right, bottom = (int(c) + 1 for c in np.ceil(points.max(axis=0)))
            mask = Image.new("L", ((right - left) * times, (bottom - top) * times))
            _fill(ImageDraw.Draw(mask), item.shape, (points - (left, top)) * times, 255)
            picture.paste(color, (left, top), mask.reduce(times))


def _layers(item: SceneObject) -> list[tuple[np.ndarray, RGB]]:
    """Polygons to fill in order: the whole in the outline's color, then the inside."""
    points = polygon(item)
    if item.outline is None:
        return [(points, item.rgb)]
    if item.shape == "rectangle":
        inside = _shrunk_rectangle(item)
    else:
        middle, radius = inner_circle_of(item)
        inside = middle + (points - middle) * (1 - item.outline_width / radius)
    return [(points, item.outline), (inside, item.rgb)]


def _fill(pen: ImageDraw.ImageDraw, shape: str, points: np.ndarray, color: RGB | int) -> None:
    if shape == "circle":
        pen.ellipse([*points.min(axis=0).tolist(), *points.max(axis=0).tolist()], fill=color)
    else:
        pen.polygon(points.ravel().tolist(), fill=color)


def _shrunk_rectangle(item: SceneObject) -> np.ndarray:
    """A rectangle without its outline, whose width is the same on all four sides."""
    points = polygon(item)
    along, down = points[1] - points[0], points[3] - points[0]
    along = along / np.linalg.norm(along) * item.outline_width
    down = down / np.linalg.norm(down) * item.outline_width
    return points + np.stack([along + down, down - along, -along - down, along - down])


def _matplotlib_shapes(picture: Image.Image, scene: Scene, scales: tuple[float, float], rng: random.Random) -> None:
    """Draws with matplotlib's Agg renderer, without the cost of a Figure."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.path import Path
    from matplotlib.transforms import IdentityTransform

    width, height = picture.size
    agg = RendererAgg(width, height, 72)
    joint: Literal["miter", "round"] = rng.choice(("miter", "round"))
    for item in scene.objects:
        points = polygon(item) * scales * (1, -1) + (0, height)
        path = Path(np.concatenate([points, points[:1]]), closed=True)
        pen = agg.new_gc()
        pen.set_antialiased(True)
        pen.set_joinstyle(joint)
        pen.set_linewidth(0 if item.outline is None else item.outline_width * min(scales))
        pen.set_foreground(unit(item.outline or item.rgb))
        agg.draw_path(pen, path, IdentityTransform(), unit(item.rgb))
    layer = Image.frombuffer("RGBA", (width, height), agg.buffer_rgba(), "raw", "RGBA", 0, 1)
    picture.paste(layer, mask=layer.getchannel("A"))
