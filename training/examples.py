"""Draws the page's example pictures: `python -m training.examples [--folder assets/examples]`.

Fixed pictures, so that the same files come out each time; all of them lie inside the demo model's worlds.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from training import drawing, sign_drawing
from training.colors import RGB
from training.fonts import Font, bundled_fonts
from training.scenes import Background, Scene, SceneObject
from training.signs import Plate, Sign

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "examples"

_RED, _YELLOW, _BLUE, _GREEN = (229, 57, 53), (255, 215, 0), (33, 110, 235), (46, 160, 67)
_ORANGE, _PURPLE, _PINK, _WHITE, _BLACK = (255, 127, 14), (142, 68, 173), (255, 105, 180), (255, 255, 255), (17, 17, 17)
_CREAM, _NIGHT, _SKY, _MINT, _SAND, _LILAC = (
    (255, 248, 231), (24, 33, 66), (222, 238, 250), (222, 243, 230), (247, 236, 214), (238, 232, 250),
)  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A card of the page; `kind` and `key` say when an answer is right, as in training.worlds."""

    name: str
    alt: str
    question: str
    kind: str
    key: str
    depiction: Scene | Sign


def _scene(width: int, height: int, ground: RGB, *items: SceneObject) -> Scene:
    return Scene(width, height, Background("plain", (ground,)), items)


def _item(
    shape: str,
    color: str,
    rgb: RGB,
    x: float,
    y: float,
    size: float,
    rotation: float = 0.0,
    aspect: float = 1.0,
    variant: str = "plain",
) -> SceneObject:
    return SceneObject(shape, color, rgb, x, y, size, rotation, aspect=aspect, variant=variant)


def _star(color: str, rgb: RGB, x: float, y: float, size: float, rotation: float = 0.0) -> SceneObject:
    return _item("star", color, rgb, x, y, size, rotation, 0.42, "5")


def _heart(color: str, rgb: RGB, x: float, y: float, size: float, rotation: float = 0.0) -> SceneObject:
    return _item("heart", color, rgb, x, y, size, rotation, variant="curve")


def _triangle(color: str, rgb: RGB, x: float, y: float, size: float, rotation: float = 0.0) -> SceneObject:
    return _item("triangle", color, rgb, x, y, size, rotation, variant="equilateral")


def _font(name: str) -> Font:
    return next(font for font in bundled_fonts() if font.name == name)


EXAMPLES = (
    Example(
        "hearts", "Three red hearts and a yellow star on cream", "How many red shapes are there?",
        "count_color", "three",
        _scene(
            640, 400, _CREAM,
            _heart("red", _RED, 150, 115, 115, 12), _heart("red", _RED, 470, 110, 110, -14),
            _heart("red", _RED, 390, 290, 120, 6), _star("yellow", (240, 190, 0), 150, 290, 115, 10),
        ),
    ),
    Example(
        "night", "A yellow star, a white circle and a pink heart on dark blue", "What color is the star?",
        "color", "yellow",
        _scene(
            640, 400, _NIGHT,
            _star("yellow", _YELLOW, 440, 170, 136, -8), _item("circle", "white", _WHITE, 150, 110, 105),
            _heart("pink", _PINK, 200, 295, 105, 8),
        ),
    ),
    Example(
        "place", "A blue circle, an orange triangle, a green square and a red star on light blue",
        "Where is the blue circle?", "where", "bottom right",
        _scene(
            640, 400, _SKY,
            _item("circle", "blue", _BLUE, 530, 318, 110), _triangle("orange", _ORANGE, 112, 92, 115),
            _item("square", "green", _GREEN, 320, 200, 92, 14), _star("red", _RED, 118, 312, 115, 12),
        ),
    ),
    Example(
        "sign", "A dark green sign that says Coffee in white", "What does the sign say?", "read", "Coffee",
        Sign(
            640, 400, Background("plain", (_SAND,)), "Coffee", _font("DejaVuSerif-Bold"), "white", _WHITE,
            320, 200, 120, -4, Plate((24, 84, 62), None, 0.0, beside=0.55, above=0.6, roundness=0.25),
        ),
    ),
    Example(
        "blue", "A blue rectangle, a red triangle and a black circle on sand", "What shape is the blue object?",
        "shape", "rectangle",
        _scene(
            640, 400, _SAND,
            _item("rectangle", "blue", _BLUE, 420, 122, 138, -18, 2.0), _triangle("red", _RED, 170, 262, 132, 6),
            _item("circle", "black", _BLACK, 500, 300, 96),
        ),
    ),
    Example(
        "wide", "A wide picture of six shapes on light purple", "How many circles are there?",
        "count_shape", "two",
        _scene(
            1280, 640, _LILAC,
            _star("yellow", (240, 190, 0), 230, 200, 150, 8), _item("circle", "red", _RED, 395, 440, 140),
            _item("square", "blue", _BLUE, 560, 190, 130, 10), _heart("purple", _PURPLE, 725, 440, 140, -8),
            _triangle("green", _GREEN, 890, 210, 150), _item("circle", "orange", _ORANGE, 1055, 430, 130),
        ),
    ),
)  # fmt: skip


def _drawn(depiction: Scene | Sign) -> Image:
    """Without effects, so that the files are small."""
    if isinstance(depiction, Sign):
        return sign_drawing.draw(depiction, random.Random(0), renderer="pillow", effects=0.0)
    return drawing.draw(depiction, random.Random(0), renderer="pillow", effects=0.0)


def write(folder: Path = FOLDER) -> None:
    """The pictures, and examples.json that lists them in the page's order."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for example in EXAMPLES:
        file = f"{example.name}.png"
        _drawn(example.depiction).save(folder / file, optimize=True)
        entries.append({"picture": file, "alt": example.alt, "question": example.question})
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the page's example pictures.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
