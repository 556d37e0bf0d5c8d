"""Random scenes: one to six flat shapes on a background; lengths are in pixels."""

import math
import random
from dataclasses import dataclass, replace

import numpy as np

from training.drawing.backgrounds import Background, contrasting_shade, grounds_of, random_background
from training.drawing.colors import COLORS, RGB, UNNAMED, Shade, mix
from training.drawing.geometry import SHAPES, VARIANTS, inner_circle, unit_polygon, unit_radius
from training.drawing.sizes import log_uniform, random_size

# Never in a training scene; each shape and color still has most other partners.
HELDOUT_PAIRS = frozenset(
    {
        ("circle", "purple"), ("square", "orange"), ("triangle", "pink"), ("star", "green"),
        ("heart", "blue"), ("rectangle", "red"), ("heart", "gray"), ("star", "brown"),
    }
)  # fmt: skip

SMALLEST, LARGEST = 0.07, 0.35  # object size as a share of the picture's shorter side
_ASPECTS = {  # by variants of triangle and star; what they mean: geometry.unit_polygon
    "equilateral": (1.0, 1.0), "isosceles": (0.7, 1.5), "right": (0.7, 1.4),
    "5": (0.35, 0.5), "4": (0.3, 0.45), "6": (0.45, 0.58),
}  # fmt: skip
_PALETTES = (  # numbers of shapes and colors in a scene
    (1, 11), (1, 11), (6, 1), (6, 1), (2, 11), (6, 2), (2, 2), (3, 3), (6, 11), (6, 11),
)  # fmt: skip
_UNNAMED_OBJECTS = 0.75  # of the objects in a scene with unnamed colors


@dataclass(frozen=True)
class SceneObject:
    """A flat shape. Lengths are pixels of the scene, `rotation` is degrees."""

    shape: str
    color: str  # of COLORS, or UNNAMED
    rgb: RGB
    x: float  # the centre of area
    y: float
    size: float  # the longer side of the unrotated shape; a circle's diameter
    rotation: float = 0.0
    outline: RGB | None = None
    outline_width: float = 0.0
    aspect: float = 1.0  # see geometry.unit_polygon
    variant: str = "plain"  # see geometry.VARIANTS

    @property
    def radius(self) -> float:
        """The largest distance from the centre, with the outline."""
        reach = unit_radius(self.shape, self.variant, self.aspect) * self.size
        return reach + self.outline_width


@dataclass(frozen=True)
class Scene:
    """A whole picture, `width` by `height` pixels."""

    width: int
    height: int
    background: Background
    objects: tuple[SceneObject, ...]


def is_heldout_pair(shape: str, color: str) -> bool:
    """Whether this combination is kept out of all training scenes and questions."""
    return (shape, color) in HELDOUT_PAIRS


def possible_pairs(split: str) -> list[tuple[str, str]]:
    """All shapes in all colors that a picture of the split may hold."""
    return [(s, c) for s in SHAPES for c in COLORS if split == "heldout" or (s, c) not in HELDOUT_PAIRS]


def polygon(item: SceneObject) -> np.ndarray:
    """The outline of an object in scene pixels, [points, 2]."""
    angle = math.radians(item.rotation)
    cos, sin = math.cos(angle) * item.size, math.sin(angle) * item.size
    turn = np.array([[cos, sin], [-sin, cos]])
    return unit_polygon(item.shape, item.variant, item.aspect) @ turn + (item.x, item.y)


def inner_circle_of(item: SceneObject) -> tuple[np.ndarray, float]:
    """Middle and radius of a circle within the object, in scene pixels (geometry.inner_circle)."""
    x, y, radius = inner_circle(item.shape, item.variant, item.aspect)
    angle = math.radians(item.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    turned = np.array([x * cos - y * sin, x * sin + y * cos]) * item.size
    return turned + np.array([item.x, item.y]), radius * item.size


def random_scene(rng: random.Random, split: str = "train", difficulty: float = 1.0, unnamed: float = 0.0) -> Scene:
    """A scene of the demo world.

    `split` is "train" (no held-out pair) or "heldout" (at least one). `difficulty` 0 gives one or two large shapes on
    one color, 1 the whole world. `unnamed` is the share of scenes with shapes in unnamed colors: they teach the encoder
    that any shape may have any color, though no held-out pair is ever drawn.
    """
    if split not in ("train", "heldout"):
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    width, height = random_size(rng, difficulty)
    while True:
        pairs = _random_pairs(rng, split, difficulty)
        if rng.random() < unnamed:
            pairs = [(shape, UNNAMED if rng.random() < _UNNAMED_OBJECTS else color) for shape, color in pairs]
        if (scene := _laid_out(pairs, width, height, rng, difficulty)) is not None:
            return scene


def scene_of(pairs: list[tuple[str, str]], rng: random.Random, difficulty: float = 1.0) -> Scene:
    """A scene with an object for each (shape, color)."""
    while True:
        if (scene := _laid_out(pairs, *random_size(rng, difficulty), rng, difficulty)) is not None:
            return scene


def _laid_out(
    pairs: list[tuple[str, str]], width: int, height: int, rng: random.Random, difficulty: float
) -> Scene | None:
    """The finished scene; None if a color does not stand out or an object finds no room."""
    for _ in range(8):
        background = random_background(rng, difficulty)
        fills = _fills(pairs, background, rng, difficulty)
        if fills is not None:
            objects = _place(pairs, fills, width, height, rng, difficulty)
            return None if objects is None else Scene(width, height, background, objects)
    return None


def _random_pairs(rng: random.Random, split: str, difficulty: float) -> list[tuple[str, str]]:
    """Shapes and colors of the objects, often of few kinds, so that counts above one occur."""
    most = 2 + round(4 * difficulty)
    number = rng.choices(range(1, most + 1), weights=(3, 4, 4, 4, 5, 6)[:most])[0]
    few_shapes, few_colors = rng.choice(_PALETTES)
    shapes = rng.sample(SHAPES, few_shapes)
    colors = rng.sample(COLORS, few_colors)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < number:
        pair = (rng.choice(shapes), rng.choice(colors))
        if split == "heldout" or pair not in HELDOUT_PAIRS:
            pairs.append(pair)
        elif len(shapes) * len(colors) <= 4:  # the palette may hold nothing but held-out pairs
            shapes, colors = rng.sample(SHAPES, few_shapes), rng.sample(COLORS, few_colors)
    if split == "heldout" and not any(pair in HELDOUT_PAIRS for pair in pairs):
        pairs[rng.randrange(number)] = rng.choice(sorted(HELDOUT_PAIRS))
    return pairs


def _fills(
    pairs: list[tuple[str, str]], background: Background, rng: random.Random, difficulty: float
) -> list[Shade] | None:
    """A shade for each object that stands out from the background; None if there is none."""
    grounds = grounds_of(background)
    one_shade_each = rng.random() < 0.5
    chosen: dict[str, Shade] = {}
    fills = []
    for _, color in pairs:
        shade = chosen.get(color) if one_shade_each else None
        shade = shade or contrasting_shade(color, grounds, rng, difficulty)
        if shade is None:
            return None
        chosen[color] = shade
        fills.append(shade)
    return fills


def _place(
    pairs: list[tuple[str, str]], fills: list[Shade], width: int, height: int, rng: random.Random, difficulty: float
) -> tuple[SceneObject, ...] | None:
    """Objects that neither overlap nor leave the picture; None if one finds no room."""
    side = min(width, height)
    least = SMALLEST + (0.22 - SMALLEST) * (1 - difficulty)
    common = log_uniform(rng, least, LARGEST)
    alike = rng.random() < 0.5
    tilted = rng.random() < 0.7
    outlined = rng.random()
    placed: list[SceneObject] = []
    for (shape, color), shade in zip(pairs, fills, strict=True):
        share = common * rng.uniform(0.75, 1.3) if alike else log_uniform(rng, least, LARGEST)
        share = min(LARGEST, max(least, share))
        item = _make(shape, color, shade.rgb, share * side, tilted, outlined, rng)
        fitted = _find_room(_plainly_long(item, width, height), placed, width, height, rng)
        if fitted is None:
            return None
        placed.append(fitted)
    rng.shuffle(placed)
    return tuple(placed)


def object_of(
    shape: str, color: str, rgb: RGB, size: float, rng: random.Random, width: int, height: int
) -> SceneObject:
    """An object of a picture of that width and height, without a place yet; `size` in pixels."""
    item = _make(shape, color, rgb, size, rng.random() < 0.7, rng.random(), rng)
    return _plainly_long(item, width, height)


def _make(
    shape: str, color: str, rgb: RGB, size: float, tilted: bool, outlined: float, rng: random.Random
) -> SceneObject:
    """An object without a place yet."""
    variant = rng.choice(VARIANTS[shape])
    if shape == "star":
        variant = rng.choices(VARIANTS["star"], weights=(17, 1, 2))[0]
    aspect = _random_aspect(shape, variant, rng)
    rotation = 0.0
    if tilted:
        rotation = rng.uniform(0, 360)
    elif shape == "rectangle":
        rotation = rng.choice((0.0, 90.0))
    outline = _random_outline(rgb, rng) if rng.random() < _outline_share(outlined) else None
    thickness = rng.uniform(0.015, 0.06) * size if outline else 0.0
    return SceneObject(shape, color, rgb, 0.0, 0.0, size, rotation, outline, thickness, aspect, variant)


def _plainly_long(item: SceneObject, width: int, height: int) -> SceneObject:
    """Rotates a rectangle by 90 degrees if it would look square in the picture squeezed to a square."""
    if item.shape != "rectangle":
        return item
    sides = np.diff(polygon(item)[:3], axis=0) / (width, height)
    along, across = np.hypot(sides[:, 0], sides[:, 1])
    if max(along, across) > 1.3 * min(along, across):
        return item
    return replace(item, rotation=item.rotation + 90)


def _random_aspect(shape: str, variant: str, rng: random.Random) -> float:
    if shape == "rectangle":
        return round(rng.uniform(1.5, 2.8), 2)
    if shape in ("star", "triangle"):
        return round(rng.uniform(*_ASPECTS[variant]), 2)
    return 1.0


def _outline_share(outlined: float) -> float:
    """Half of the scenes have no outlines, a quarter all, a quarter some."""
    return 0.0 if outlined < 0.5 else 1.0 if outlined < 0.75 else 0.5


def _random_outline(rgb: RGB, rng: random.Random) -> RGB:
    kind = rng.choice(("black", "black", "darker", "darker", "lighter", "white"))
    if kind == "black":
        return (0, 0, 0)
    if kind == "white":
        return (255, 255, 255)
    return mix(rgb, (0, 0, 0) if kind == "darker" else (255, 255, 255), rng.uniform(0.3, 0.6))


def _find_room(
    item: SceneObject, placed: list[SceneObject], width: int, height: int, rng: random.Random
) -> SceneObject | None:
    """`item` at a free place, made smaller where the picture is crowded."""
    side = min(width, height)
    for attempt in range(40):
        shrink = 1.0 if attempt < 8 else 0.85
        if item.size * shrink >= SMALLEST * side and shrink < 1.0:
            size, thickness = item.size * shrink, item.outline_width * shrink
            item = replace(item, size=size, outline_width=thickness)
        reach = item.radius + 1
        column, row = rng.randrange(3), rng.randrange(3)  # the nine cells evenly
        x = min(max((column + rng.random()) * width / 3, reach), width - reach)
        y = min(max((row + rng.random()) * height / 3, reach), height - reach)
        gap = 0.015 * side
        if all(math.hypot(x - o.x, y - o.y) > reach + o.radius + gap for o in placed):
            return replace(item, x=x, y=y)
    return None
