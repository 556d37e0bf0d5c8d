"""The demo model's pictures: scenes keep their promises, and drawings show what labels say."""

import random

import numpy as np
import pytest
from matplotlib.path import Path
from PIL import Image, ImageDraw

from training.drawing.backgrounds import Background, draw_background
from training.drawing.colors import ANCHORS, COLORS, UNNAMED, delta_e, is_clear, mix, shades, to_lab, unnamed_shades
from training.drawing.dense_labels import HEIGHTS, NO_LABEL
from training.drawing.geometry import SHAPES, VARIANTS, inner_circle, unit_polygon
from training.drawing.rendering import RENDERERS
from training.worlds.scenes.drawing import draw, labels, patch_labels, training_picture
from training.worlds.scenes.scenes import (
    HELDOUT_PAIRS,
    LARGEST,
    Scene,
    SceneObject,
    is_heldout_pair,
    polygon,
    random_scene,
)


def scenes(split: str, count: int = 300, difficulty: float = 1.0) -> list[Scene]:
    rng = random.Random(f"{split} {difficulty}")
    return [random_scene(rng, split, difficulty) for _ in range(count)]


def one_object(shape: str = "star", color: str = "blue", **changes: float) -> Scene:
    place = {"x": 150.0, "y": 50.0, "size": 60.0} | changes
    item = SceneObject(shape, color, ANCHORS[color][0], variant=VARIANTS[shape][0], **place)
    return Scene(200, 300, Background("plain", ((240, 240, 240),)), (item,))


def test_colors_are_known_by_their_usual_values():
    usual = {
        "red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0),
        "orange": (255, 165, 0), "purple": (128, 0, 128), "pink": (255, 192, 203),
        "black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128),
        "brown": (165, 42, 42),
    }  # fmt: skip
    assert tuple(ANCHORS) == COLORS
    assert set(usual) == set(COLORS)
    assert all(usual[color] in ANCHORS[color] for color in COLORS)


@pytest.mark.parametrize("color", COLORS)
def test_shades_are_nearest_to_their_own_name(color: str):
    assert all(is_clear(shade.rgb, color) for shade in shades(color))


def test_an_unnamed_color_is_no_clear_shade_of_any():
    assert not any(is_clear(shade.rgb, color) for shade in unnamed_shades() for color in COLORS)


def test_scenes_in_unnamed_colors_keep_held_out_pairs_away():
    rng = random.Random("unnamed")
    found = [random_scene(rng, "train", unnamed=1.0) for _ in range(200)]
    items = [item for scene in found for item in scene.objects]
    unnamed = [item for item in items if item.color == UNNAMED]
    assert 0.6 < len(unnamed) / len(items) < 0.9
    assert {item.shape for item in unnamed} == set(SHAPES)
    assert not any(is_heldout_pair(item.shape, item.color) for item in items)
    for item in unnamed:
        assert not any(is_clear(item.rgb, color) for color in COLORS)
    shape, color, _ = patch_labels(next(scene for scene in found if scene.objects[0].color == UNNAMED))
    assert (color == NO_LABEL).any()
    assert (shape[color == NO_LABEL] > 0).all()


def test_evaluated_scenes_have_named_colors_only():
    assert all(item.color in COLORS for split in ("train", "heldout") for s in scenes(split) for item in s.objects)


def test_lab_of_known_colors():
    assert to_lab((255, 255, 255)) == pytest.approx((100, 0, 0), abs=0.05)
    assert to_lab((255, 0, 0)) == pytest.approx((53.24, 80.09, 67.20), abs=0.1)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_scenes_keep_their_promises(split: str):
    for scene in scenes(split):
        shorter, longer = sorted((scene.width, scene.height))
        assert shorter >= 200
        assert longer <= 2000
        assert longer <= 2 * shorter + 1
        assert 1 <= len(scene.objects) <= 6
        for item in scene.objects:
            points = polygon(item)
            assert points.min() >= 0
            assert points[:, 0].max() <= scene.width
            assert points[:, 1].max() <= scene.height
            assert 0.0699 <= item.size / shorter <= 0.3501
            assert item.shape != "rectangle" or 1.5 <= item.aspect <= 2.8


def test_objects_do_not_touch():
    for scene in scenes("train", 150):
        shapes = [Image.new("1", (scene.width, scene.height)) for _ in scene.objects]
        total = 0
        together = np.zeros((scene.height, scene.width), bool)
        for mask, item in zip(shapes, scene.objects, strict=True):
            ImageDraw.Draw(mask).polygon(polygon(item).ravel().tolist(), fill=1)
            total += int(np.asarray(mask).sum())
            together |= np.asarray(mask)
        assert int(together.sum()) == total


def test_shapes_stand_out_from_the_background():
    for scene in scenes("train") + scenes("heldout"):
        first, last = scene.background.colors[0], scene.background.colors[-1]
        for part in (0.0, 0.5, 1.0):
            ground = to_lab(mix(first, last, part))
            assert all(delta_e(to_lab(item.rgb), ground) > 25 for item in scene.objects)


def test_heldout_pairs_never_occur_in_training_and_always_in_heldout_scenes():
    for split, expected in (("train", False), ("heldout", True)):
        for scene in scenes(split):
            pairs = [is_heldout_pair(item.shape, item.color) for item in scene.objects]
            assert any(pairs) is expected


def test_every_shape_and_color_keeps_most_partners():
    assert len(HELDOUT_PAIRS) == 8
    for shape in SHAPES:
        assert sum(pair[0] == shape for pair in HELDOUT_PAIRS) <= 2
    for color in COLORS:
        assert sum(pair[1] == color for pair in HELDOUT_PAIRS) <= 1


def test_easy_scenes_are_easy():
    for scene in scenes("train", 100, difficulty=0.0):
        assert len(scene.objects) <= 2
        assert scene.background.kind == "plain"
        side = min(scene.width, scene.height)
        assert all(item.size >= 0.2 * side for item in scene.objects)


def test_same_seed_same_scene_and_picture():
    first, second = (random_scene(random.Random(7)) for _ in range(2))
    assert first == second
    one, two = (training_picture(first, random.Random(7)) for _ in range(2))
    assert one.tobytes() == two.tobytes()


def test_unknown_split_and_renderer_are_errors():
    with pytest.raises(ValueError, match="validation"):
        random_scene(random.Random(0), "validation")
    with pytest.raises(ValueError, match="cairo"):
        draw(one_object(), random.Random(0), renderer="cairo")


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_polygons_are_centred_with_longer_side_one(shape: str):
    for variant in VARIANTS[shape]:
        aspect = 2.0 if shape == "rectangle" else 0.45
        points = unit_polygon(shape, variant, aspect)
        assert np.ptp(points, axis=0).max() == pytest.approx(1.0)
        x, y = points.T
        cross = x * np.roll(y, -1) - np.roll(x, -1) * y
        centre = ((points + np.roll(points, -1, axis=0)) * cross[:, None]).sum(axis=0)
        assert centre == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("shape", ["square", "triangle", "star", "circle"])
def test_inner_circle_touches_the_sides(shape: str):
    """Shrinking about its middle moves every side inwards by the same width."""
    for variant in VARIANTS[shape]:
        points = unit_polygon(shape, variant, 0.8 if shape == "triangle" else 0.4)
        x, y, radius = inner_circle(shape, variant, 0.8 if shape == "triangle" else 0.4)
        edges = np.roll(points, -1, axis=0) - points
        away = np.array([x, y]) - points
        distance = np.abs(edges[:, 0] * away[:, 1] - edges[:, 1] * away[:, 0])
        assert distance / np.hypot(*edges.T) == pytest.approx(radius)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_renderers_agree_with_the_scene(renderer: str):
    """At each object's middle lies its color (stars, hearts and all), at true and smaller size."""
    rng = random.Random(1)
    for scene in scenes("train", 40):
        picture = draw(scene, rng, max_side=448, renderer=renderer, effects=0.0)
        assert picture.mode == "RGB"
        assert max(picture.size) <= 448
        pixels = np.asarray(picture).astype(int)
        for item in scene.objects:
            x = int(item.x * picture.width / scene.width)
            y = int(item.y * picture.height / scene.height)
            assert np.abs(pixels[y, x] - item.rgb).max() <= 3, (item, pixels[y, x])


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_renderers_fill_the_area_of_the_shape(renderer: str, shape: str):
    scene = one_object(shape, "blue", size=80.0, x=100.0, y=150.0, rotation=20.0, aspect=0.5)
    picture = draw(scene, random.Random(0), renderer=renderer, effects=0.0)
    blue = (np.asarray(picture)[:, :, 0] < 120).sum()
    x, y = polygon(scene.objects[0]).T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert blue == pytest.approx(area, rel=0.06)


def test_outline_is_drawn_around_the_fill():
    scene = one_object("square", "yellow", size=60.0, x=100.0, y=150.0)
    item = scene.objects[0]
    item = SceneObject(**{**item.__dict__, "outline": (0, 0, 0), "outline_width": 4.0})
    scene = Scene(scene.width, scene.height, scene.background, (item,))
    for renderer in RENDERERS:
        pixels = np.asarray(draw(scene, random.Random(0), renderer=renderer, effects=0.0))
        assert tuple(pixels[150, 100]) == (255, 255, 0)
        assert pixels[150, 71].max() < 60  # just inside the left side


@pytest.mark.parametrize("pattern", ["linear", "radial", "noise", "paper", "stripes", "dots", "checks", "grid"])
def test_patterns_stay_between_their_two_colors(pattern: str):
    background = Background("texture", ((200, 100, 50), (220, 90, 50)), pattern, 30.0, 3.0)
    picture = draw_background(background, (640, 300), random.Random(0))
    assert picture.size == (640, 300)
    pixels = np.asarray(picture)
    assert pixels[..., 0].min() >= 200
    assert pixels[..., 0].max() <= 220
    assert pixels[..., 1].min() >= 90
    assert pixels[..., 1].max() <= 100
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 1


def test_effects_keep_size_and_mode():
    rng = random.Random(3)
    for scene in scenes("train", 30):
        picture = draw(scene, rng, max_side=300, effects=4.0)
        assert picture.mode == "RGB"
        assert max(picture.size) <= 300
        assert training_picture(scene, rng).size == (224, 224)


def test_patch_labels_of_one_object():
    shape, color, centre = patch_labels(one_object())
    assert shape.shape == color.shape == centre.shape == (16, 16)
    assert np.argwhere(centre).tolist() == [[2, 12]]
    assert shape[2, 12] == 1 + SHAPES.index("star")
    assert color[2, 12] == 1 + COLORS.index("blue")
    assert set(np.unique(shape)) == {0, 1 + SHAPES.index("star")}
    assert (shape[8:] == 0).all()
    assert (shape[:, :8] == 0).all()


def test_soft_tokens_say_how_large_a_shape_is():
    for scene in scenes("train", 25):
        told = labels(scene)
        largest = LARGEST * min(scene.width, scene.height)
        sizes: dict[int, list[float]] = {}  # by soft token: two small shapes may lie in one
        for item in scene.objects:
            token = 8 * int(8 * item.y / scene.height) + int(8 * item.x / scene.width)
            sizes.setdefault(token, []).append(np.ceil(HEIGHTS * item.size / largest))
        assert all(told.token_height[token] in known for token, known in sizes.items())
        assert ((told.token_height > 0) == (told.token_shape > 0)).all()


def test_patch_labels_agree_with_the_outlines():
    """Against each cell's true shares, counted point by point."""
    steps = (np.arange(16 * 16) + 0.5) / (16 * 16)
    points = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    for scene in scenes("train", 25):
        shape, color, _ = patch_labels(scene)
        size = (scene.width, scene.height)
        inside = np.stack([Path(polygon(item)).contains_points(points * size) for item in scene.objects])
        shares = inside.reshape(-1, 16, 16, 16, 16).mean(axis=(2, 4))  # [objects, rows, columns]
        assert (shares.max(axis=0)[shape > 0] > 0.02).all()
        assert (shares.max(axis=0)[shape == 0] < 0.22).all()
        for row, column in np.argwhere(shares.max(axis=0) > 0.55):
            item = scene.objects[shares[:, row, column].argmax()]
            assert shape[row, column] == 1 + SHAPES.index(item.shape)
            assert color[row, column] == 1 + COLORS.index(item.color)
