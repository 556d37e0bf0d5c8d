"""Draws the page's example pictures: `python -m training.examples [--folder assets/examples]`.

The pictures are fixed: the same files come out each time. All lie within the demo model's worlds.
"""

import argparse
import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from training.drawing.backgrounds import Background
from training.drawing.colors import RGB
from training.drawing.fonts import Font, bundled_fonts, edges
from training.worlds import elsewhere
from training.worlds.boards import drawing as board_drawing
from training.worlds.boards.boards import Board, Entry, Panel
from training.worlds.charts.charts import ALL_SPINES, Bar, Chart, Look
from training.worlds.elsewhere import DRAWN_BY, NOTHING_KNOWN, Strange
from training.worlds.scenes.scenes import Scene, SceneObject
from training.worlds.signs import drawing as sign_drawing
from training.worlds.signs.signs import Plate, Sign
from training.worlds.signs.two_lines import TwoLines

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "examples"

_RED, _YELLOW, _BLUE, _GREEN = (229, 57, 53), (255, 215, 0), (33, 110, 235), (46, 160, 67)
_ORANGE, _PURPLE, _PINK, _WHITE, _BLACK = (255, 127, 14), (142, 68, 173), (255, 105, 180), (255, 255, 255), (17, 17, 17)
_CREAM, _NIGHT, _SKY, _MINT, _SAND, _LILAC = (
    (255, 248, 231), (24, 33, 66), (222, 238, 250), (222, 243, 230), (247, 236, 214), (238, 232, 250),
)  # fmt: skip


_DRAWN_BY = {**DRAWN_BY, TwoLines: sign_drawing, Board: board_drawing}
Depiction = Scene | Sign | TwoLines | Chart | Board | Strange


@dataclass(frozen=True)
class Asked:
    """A question; `kind` and `key` are the arguments of training.worlds.registry.is_right."""

    question: str
    kind: str
    key: str


@dataclass(frozen=True)
class Example:
    """A card of the page: pictures and the questions about them, in order."""

    name: str
    alt: str
    depictions: tuple[Depiction, ...]
    asked: tuple[Asked, ...]
    pan_and_scan: bool = False
    system_prompt: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the pictures' files."""
        if len(self.depictions) == 1:
            return (f"{self.name}.png",)
        return tuple(f"{self.name}_{number}.png" for number in range(1, len(self.depictions) + 1))


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


def _text(text: str, font: str, rgb: RGB, color: str, x: float, y: float, size: float, whole: tuple[int, int]) -> Sign:
    """Upright, its middle at (x, y)."""
    return Sign(*whole, Background("plain", (_WHITE,)), text, _font(font), color, rgb, x, y, size)


def _chart(ground: RGB, *bars: tuple[str, float, str, RGB]) -> Chart:
    """640 by 400; a bar is its label, its height as a share of the axes, its color's name and the color."""
    left, top, right, bottom = axes = (48.0, 28.0, 612.0, 336.0)
    step, ink = (right - left) / len(bars), (51, 51, 51)
    drawn = []
    for place, (name, share, color, rgb) in enumerate(bars):
        middle = left + (place + 0.5) * step
        label = _text(name, "DejaVuSans", ink, "black", middle, bottom + 28, 31, (640, 400))
        edge = 0.32 * step
        drawn.append(Bar(label, color, rgb, middle - edge, bottom - share * (bottom - top), middle + edge, bottom))
    look = Look("default", _WHITE, ink, ALL_SPINES, (204, 204, 204), False, (230, 230, 230))
    lines = tuple(bottom - share * (bottom - top) for share in (0.25, 0.5, 0.75))
    return Chart(640, 400, Background("plain", (ground,)), look, axes, tuple(drawn), (), lines, 1.5)


def _board(*entries: tuple[str, str]) -> Board:
    """1200 by 400: three items with prices, one in each crop of pan & scan."""
    whole, font, size, ground = (1200, 400), "DejaVuSerif", 56.0, (28, 66, 52)
    gap, written = 0.75 * size, []
    for place, (item, price) in enumerate(entries):
        widths = [edges(_font(font), text)[-1] * size for text in (item, price)]
        start, middle = 400 * place + 200 - (sum(widths) + gap) / 2, 200.0
        texts = (
            _text(item, font, _WHITE, "white", start + widths[0] / 2, middle, size, whole),
            _text(price, font, _YELLOW, "yellow", start + widths[0] + gap + widths[1] / 2, middle, size, whole),
        )
        written.append(Entry(*texts))
    frame = Panel(10, 10, 1190, 390, None, (214, 190, 150), 5)
    return Board(*whole, Background("plain", (ground,)), (frame,), tuple(written))


def _shop(first: str, second: str) -> TwoLines:
    ground, font, size = Background("plain", (_SKY,)), _font("DejaVuSans-Bold"), 80
    plate = Plate((24, 50, 110), None, 0.0, beside=0.8, above=1.65, roundness=0.1)
    lines = tuple(
        Sign(640, 400, ground, text, font, "white", _WHITE, 320, y, size) for text, y in ((first, 148), (second, 252))
    )
    longest = max(lines, key=lambda line: edges(font, line.text)[-1])
    plated = Sign(640, 400, ground, longest.text, font, "white", _WHITE, 320, 200, size, plate=plate)
    return TwoLines(640, 400, ground, (lines[0], lines[1]), plated)


EXAMPLES = (
    Example(
        "hearts", "Three red hearts and a yellow star on cream",
        (
            _scene(
                640, 400, _CREAM,
                _heart("red", _RED, 150, 115, 115, 12), _heart("red", _RED, 470, 110, 110, -14),
                _heart("red", _RED, 390, 290, 120, 6), _star("yellow", (240, 190, 0), 150, 290, 115, 10),
            ),
        ),
        (Asked("How many hearts are there?", "count_shape", "three"),),
    ),
    Example(
        "night", "A yellow star, a white circle and a pink heart on dark blue",
        (
            _scene(
                640, 400, _NIGHT,
                _star("yellow", _YELLOW, 440, 170, 136, -8), _item("circle", "white", _WHITE, 150, 110, 105),
                _heart("pink", _PINK, 200, 295, 105, 8),
            ),
        ),
        (Asked("What color is the star?", "color", "yellow"),),
    ),
    Example(
        "place", "A blue circle, an orange triangle, a green square and a red star on light blue",
        (
            _scene(
                640, 400, _SKY,
                _item("circle", "blue", _BLUE, 530, 318, 110), _triangle("orange", _ORANGE, 112, 92, 115),
                _item("square", "green", _GREEN, 320, 200, 92, 14), _star("red", _RED, 118, 312, 115, 12),
            ),
        ),
        (Asked("Where is the blue circle?", "where", "bottom right"),),
    ),
    Example(
        "sign", "A dark green sign that says Coffee in white",
        (
            Sign(
                640, 400, Background("plain", (_SAND,)), "Coffee", _font("DejaVuSerif-Bold"), "white", _WHITE,
                320, 200, 120, -4, Plate((24, 84, 62), None, 0.0, beside=0.55, above=0.6, roundness=0.25),
            ),
        ),
        (Asked("What does the sign say?", "read", "Coffee"),),
    ),
    Example(
        "chart", "A bar chart of four days, Mon to Fri, of which Fri is the tallest",
        (
            _chart(
                (250, 248, 244),
                ("Mon", 0.7, "blue", _BLUE), ("Tue", 0.3, "orange", _ORANGE),
                ("Wed", 0.46, "green", _GREEN), ("Fri", 0.92, "purple", _PURPLE),
            ),
        ),
        (Asked("Which bar is the tallest?", "chart_tallest", "Fri"),),
    ),
    Example(
        "board", "A wide board in small writing: tea, milk and bread with their prices",
        (_board(("tea", "3.50"), ("milk", "1.50"), ("bread", "2.50")),),
        (Asked('What does "milk" cost?', "board_price", "1.50"),),
        pan_and_scan=True,
    ),
    Example(
        "pair", "Two pictures: two green circles and a red star; four green circles and a blue square",
        (
            _scene(
                640, 400, _MINT,
                _item("circle", "green", _GREEN, 140, 130, 110), _item("circle", "green", _GREEN, 330, 280, 110),
                _star("red", _RED, 510, 140, 120, 8),
            ),
            _scene(
                640, 400, _SAND,
                _item("circle", "green", _GREEN, 110, 110, 105), _item("circle", "green", _GREEN, 300, 90, 105),
                _item("circle", "green", _GREEN, 200, 290, 105), _item("circle", "green", _GREEN, 520, 110, 105),
                _item("square", "blue", _BLUE, 450, 285, 105, 12),
            ),
        ),
        (
            Asked(
                "What is on the second picture?", "on_second",
                "green circle, green circle, green circle, green circle, blue square",
            ),
        ),
    ),
    Example(
        "wide", "A wide picture of six shapes on light purple",
        (
            _scene(
                1280, 640, _LILAC,
                _star("yellow", (240, 190, 0), 230, 200, 150, 8), _item("circle", "red", _RED, 395, 440, 140),
                _item("square", "blue", _BLUE, 560, 190, 130, 10), _heart("purple", _PURPLE, 725, 440, 140, -8),
                _triangle("green", _GREEN, 890, 210, 150), _star("orange", _ORANGE, 1055, 430, 150, -6),
            ),
        ),
        (
            Asked("How many stars are there?", "count_shape", "two"),
            Asked("And the circles?", "follow_up", "count_shape one"),
        ),
    ),
    Example(
        "blue", "A blue rectangle, a red triangle and a black circle on sand",
        (
            _scene(
                640, 400, _SAND,
                _item("rectangle", "blue", _BLUE, 420, 122, 138, -18, 2.0), _triangle("red", _RED, 170, 262, 132, 6),
                _item("circle", "black", _BLACK, 500, 300, 96),
            ),
        ),
        (Asked("What shape is the blue object?", "one_word", "shape rectangle"),),
        system_prompt="Answer with one word.",
    ),
    Example(
        "shop", "A dark blue sign of two lines that say Book and Shop",
        (_shop("Book", "Shop"),),
        (Asked("What does the second line say?", "second_line", "Shop"),),
    ),
    Example(
        "list", "A white star, a red circle and a yellow square on dark green",
        (
            _scene(
                640, 400, (20, 70, 60),
                _star("white", _WHITE, 140, 90, 120, -6), _item("circle", "red", _RED, 330, 200, 105),
                _item("square", "yellow", _YELLOW, 510, 310, 105, 12),
            ),
        ),
        (Asked("What do you see?", "describe", "white star, red circle, yellow square"),),
    ),
    Example(
        "hills", "Hills under a pink sky, without any shape or writing",
        (Strange(640, 400, "landscape", 7),),
        (Asked("What color is the star?", "strange_picture", NOTHING_KNOWN),),
    ),
)  # fmt: skip


def _drawn(depiction: Depiction) -> Image:
    """Drawn without effects, so that the files are small."""
    if isinstance(depiction, Strange):
        return elsewhere.draw(depiction, random.Random(0))
    module = _DRAWN_BY[type(depiction)]
    picture: Image = module.draw(depiction, random.Random(0), renderer="pillow", effects=0.0)
    return picture


def write(folder: Path = FOLDER) -> None:
    """The pictures, and examples.json that lists them in the page's order."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for example in EXAMPLES:
        for file, depiction in zip(example.files, example.depictions, strict=True):
            _drawn(depiction).save(folder / file, optimize=True)
        entry = {
            "pictures": list(example.files),
            "alt": example.alt,
            "questions": [asked.question for asked in example.asked],
        }
        settings = {"pan_and_scan": example.pan_and_scan, "system_prompt": example.system_prompt}
        entries.append({**entry, **{name: value for name, value in settings.items() if value}})
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the page's example pictures.")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
