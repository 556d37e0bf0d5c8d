"""What the demo model does not know: pictures without anything it knows, and questions about other things.

The right answer is one fixed sentence: what the model can do, or that the thing is not in the picture. Held out are
phrasings and whole sorts of pictures, among them photographs.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from training.drawing.backgrounds import draw_background, random_background
from training.drawing.colors import COLORS
from training.drawing.dense_labels import PictureLabels, nothing
from training.drawing.fonts import all_fonts, bundled_fonts
from training.drawing.rendering import with_effects
from training.drawing.sizes import random_size
from training.language import written_phrasings
from training.language.asking import Question, QuestionKinds, fill, loosely, of_split
from training.language.something_else import random_sentence
from training.worlds.charts import charts
from training.worlds.charts import drawing as chart_drawing
from training.worlds.charts import questions as chart_questions
from training.worlds.charts.charts import Chart
from training.worlds.scenes import drawing, more_questions, questions
from training.worlds.scenes.scenes import Scene, is_heldout_pair, random_scene
from training.worlds.signs import drawing as sign_drawing
from training.worlds.signs import questions as sign_questions
from training.worlds.signs import signs
from training.worlds.signs.signs import Sign

KINDS = ("strange_picture", "strange_question", "not_shown")
PHRASINGS = written_phrasings.TRAINED["strange_question"]["one"]
HELDOUT_PHRASINGS = written_phrasings.HELDOUT["strange_question"]["one"]
NOTHING_KNOWN = "I only know shapes, signs and bar charts, and see none in the picture."
NOT_ASKED_FOR = "I can only tell you about shapes, signs and bar charts."
NOT_SHOWN = "There is no {thing} in the picture."
SORTS = ("blank", "noise", "clouds", "landscape", "strokes", "blobs")
HELDOUT_SORTS = ("mosaic", "photograph")
_MOST_ASKED = 4  # about one picture, because the answer is always the same
_ABSENT_SHARE = 0.3  # of the questions about a known picture are about things it does not show
_ROUND_OR_POINTED = ("circle", "triangle", "star", "heart")  # cannot be mistaken for bars or plates of signs
_PHOTOGRAPH = "grace_hopper.jpg"  # comes with matplotlib, so that every machine has it


@dataclass(frozen=True)
class Strange:
    """A picture without anything that the model knows; `seed` decides the rest."""

    width: int
    height: int
    sort: str
    seed: int


Known = Scene | Sign | Chart
DRAWN_BY: dict[type, Any] = {Scene: drawing, Sign: sign_drawing, Chart: chart_drawing}
Elsewhere = Strange | Known


def random_elsewhere(rng: random.Random, split: str = "train", difficulty: float = 1.0) -> Elsewhere:
    """A strange picture, or one of the model's worlds with a question about something else."""
    if split not in ("train", "heldout"):
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    if rng.random() < 0.6:
        fonts, way = all_fonts() if split == "train" else bundled_fonts(), rng.random()
        if way < 0.4:
            return random_scene(rng, split, difficulty)
        if way < 0.7:
            return signs.random_sign(rng, fonts, split, difficulty)
        return charts.random_chart(rng, fonts, split, difficulty)
    width, height = random_size(rng, difficulty)
    sorts = SORTS if split == "train" else (*HELDOUT_SORTS, rng.choice(SORTS))
    return Strange(width, height, rng.choice(sorts), rng.getrandbits(32))


def draw(depiction: Elsewhere, rng: random.Random, renderer: str | None = None) -> Image.Image:
    """The whole picture, RGB."""
    if isinstance(depiction, Strange):
        return with_effects(_drawn(depiction, (depiction.width, depiction.height)), rng, 1.0)
    picture: Image.Image = DRAWN_BY[type(depiction)].draw(depiction, rng, renderer=renderer)
    return picture


def training_picture(depiction: Elsewhere, rng: random.Random, side: int) -> Image.Image:
    """Squeezed to a square of `side` pixels."""
    if isinstance(depiction, Strange):
        return with_effects(_drawn(depiction, (side, side)), rng, 1.0)
    picture: Image.Image = DRAWN_BY[type(depiction)].training_picture(depiction, rng, side)
    return picture


def labels(depiction: Elsewhere) -> PictureLabels:
    """In a strange picture, nothing anywhere."""
    if isinstance(depiction, Strange):
        return PictureLabels(**nothing())
    found: PictureLabels = DRAWN_BY[type(depiction)].labels(depiction)
    return found


_WRITTEN = 0.1  # of the strange questions of training are of the handwritten ones


def something_else(rng: random.Random, split: str = "train", follows: bool = False) -> Question:
    """A question that no picture of the model's worlds answers; `follows` another turn or not."""
    text = loosely(rng.choice(of_split(split, PHRASINGS, HELDOUT_PHRASINGS)), rng)
    if split == "train" and rng.random() >= _WRITTEN:
        text = random_sentence(rng, follows)
    return Question("strange_question", text, NOT_ASKED_FOR, NOT_ASKED_FOR)


def _question(depiction: Elsewhere, rng: random.Random, split: str, kinds: list[str]) -> Question:
    if isinstance(depiction, Strange):
        return Question("strange_picture", _ordinary_question(rng, split), NOTHING_KNOWN, NOTHING_KNOWN)
    if kinds == ["not_shown"] or (len(kinds) == 2 and rng.random() < _ABSENT_SHARE):
        return _about_what_is_not_shown(depiction, rng, split)
    return something_else(rng, split)


def _about_what_is_not_shown(depiction: Known, rng: random.Random, split: str) -> Question:
    """A question that fits pictures of another sort."""
    things = ["sign"] if not isinstance(depiction, Sign) else []
    things += ["bar chart"] if not isinstance(depiction, Chart) else []
    things += ["shape"] if not isinstance(depiction, Scene) else []
    thing = rng.choice(things)
    if thing == "shape":
        thing = rng.choice(_ROUND_OR_POINTED)
        color = rng.choice(COLORS)
        if rng.random() < 0.5 and not (split == "train" and is_heldout_pair(thing, color)):
            thing = f"{color} {thing}"
        phrasings = of_split(split, more_questions.TRAINED, more_questions.HELDOUT_PHRASINGS)["absent"]
        text = fill(rng.choice(phrasings), (("noun", thing),))
    elif thing == "sign":
        by_kind = of_split(split, sign_questions.PHRASINGS, sign_questions.HELDOUT_PHRASINGS)
        phrasings = tuple(text for kind in ("read", "text_color") for text in by_kind[kind] if "sign" in text)
        text = rng.choice(phrasings)
    else:
        by_kind = of_split(split, chart_questions.TRAINED, chart_questions.HELDOUT_PHRASINGS)
        kind = rng.choice(("chart_tallest", "chart_shortest", "chart_count"))
        text = rng.choice(tuple(text for text in by_kind[kind] if "bar" in text or "chart" in text))
    return Question("not_shown", loosely(text, rng), NOT_SHOWN.replace("{thing}", thing), thing)


def _ordinary_question(rng: random.Random, split: str) -> str:
    """A question about some scene, sign or chart."""
    while True:
        way, found = rng.random(), []
        if way < 0.25:
            sign = signs.random_sign(rng, bundled_fonts(), split, difficulty=0.0)
            found = sign_questions.QUESTIONS.ask(sign, rng, split, 1)
        elif way < 0.45:
            found = chart_questions.QUESTIONS.ask(charts.random_chart(rng, bundled_fonts(), split, 0.0), rng, split, 1)
        else:
            asked = questions if way < 0.75 else more_questions
            found = asked.QUESTIONS.ask(random_scene(rng, split, 0.5), rng, split, 1)
        if found:
            return found[0].question


def _says(kind: str, key: str, answer: str) -> bool:
    """Whether the answer is exactly that sentence: anything more would be made up."""
    if kind == "not_shown":
        key = NOT_SHOWN.replace("{thing}", key)
    return " ".join(answer.split()).lower() == key.lower()


class _Elsewhere(QuestionKinds[Elsewhere]):
    def asked(
        self, depiction: Elsewhere, rng: random.Random, split: str, num: int, kinds: tuple[str, ...], _apart: bool
    ) -> list[Question]:
        """Usual questions about a strange picture; questions about something else about a known one."""
        of_split(split, PHRASINGS, HELDOUT_PHRASINGS)  # refuses a wrong split even if there is nothing to ask
        possible = ("strange_picture",) if isinstance(depiction, Strange) else ("strange_question", "not_shown")
        wanted = [kind for kind in possible if kind in kinds]
        return [_question(depiction, rng, split, wanted) for _ in range(min(num, _MOST_ASKED))] if wanted else []


QUESTIONS = _Elsewhere(KINDS, _says)


# Sorts of strange pictures. Each is drawn at any size from the same numbers.


def _drawn(strange: Strange, size: tuple[int, int]) -> Image.Image:
    rng = random.Random(strange.seed)
    numbers = np.random.default_rng(strange.seed)
    if strange.sort == "blank":
        return draw_background(random_background(rng, 1.0), size, rng)
    if strange.sort == "photograph":
        return _photograph(rng, size)
    return _SORTS[strange.sort](rng, numbers).resize(size, Image.Resampling.BICUBIC)


def _random_colors(numbers: np.random.Generator, count: int) -> np.ndarray:
    return numbers.integers(0, 256, (count, 3)).astype(np.float32)


def _noise(rng: random.Random, numbers: np.random.Generator) -> Image.Image:
    cells = rng.choice((224, 112, 56, 37))
    grays = numbers.integers(0, 256, (cells, cells, 1 if rng.random() < 0.3 else 3), np.uint8)
    picture = Image.fromarray(np.broadcast_to(grays, (cells, cells, 3)).copy())
    return picture.resize((224, 224), rng.choice((Image.Resampling.NEAREST, Image.Resampling.BILINEAR)))


def _clouds(rng: random.Random, numbers: np.random.Generator) -> Image.Image:
    """Sums of ever finer noise, between two or three colors."""
    heights = _fractal(rng, numbers)
    colors = _random_colors(numbers, rng.choice((2, 3)))
    stops = np.linspace(0, 1, len(colors))
    mixed = np.stack([np.interp(heights, stops, colors[:, channel]) for channel in range(3)], axis=-1)
    return Image.fromarray(mixed.astype(np.uint8))


def _fractal(rng: random.Random, numbers: np.random.Generator) -> np.ndarray:
    """[224, 224], 0 to 1."""
    total, weight = np.zeros((224, 224), np.float32), 1.0
    roughness = rng.uniform(0.4, 0.75)
    for cells in (3, 6, 12, 24, 48, 96):
        layer = Image.fromarray(numbers.random((cells, cells), np.float32))
        total += weight * np.asarray(layer.resize((224, 224), Image.Resampling.BICUBIC))
        weight *= roughness
    return (total - total.min()) / (np.ptp(total) + 1e-6)


def _landscape(rng: random.Random, numbers: np.random.Generator) -> Image.Image:
    """Overlapping rough, shaded ridges under a sky."""
    sky = _random_colors(numbers, 2)
    rows = np.linspace(0, 1, 224)[:, None, None]
    picture = (1 - rows) * sky[0] + rows * sky[1] + np.zeros((1, 224, 1))
    grain = _fractal(rng, numbers)[:, :, None]
    for number in range(rng.randint(2, 5)):
        ridge = np.cumsum(numbers.normal(0, 1, 224))
        ridge = 60 + 35 * number + 25 * (ridge - ridge.mean()) / (np.abs(ridge).max() + 1e-6)
        below = np.arange(224)[:, None] > ridge[None]
        color = _random_colors(numbers, 1)[0]
        picture = np.where(below[:, :, None], color * (0.5 + 0.7 * grain), picture)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _strokes(rng: random.Random, numbers: np.random.Generator) -> Image.Image:
    """Crooked open lines, like brush strokes."""
    picture = Image.new("RGB", (224, 224), tuple(numbers.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(15, 60)):
        steps = numbers.normal(0, 14, (rng.randint(4, 12), 2)).cumsum(axis=0)
        points = (steps + numbers.uniform(0, 224, 2)).ravel().tolist()
        pen.line(points, tuple(numbers.integers(0, 256, 3).tolist()), rng.randint(1, 7), joint="curve")
    return picture


def _blobs(rng: random.Random, numbers: np.random.Generator) -> Image.Image:
    """Spots too blurred to have a shape."""
    picture = Image.new("RGB", (224, 224), tuple(numbers.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(picture)
    for _ in range(rng.randint(4, 20)):
        x, y, reach = rng.uniform(0, 224), rng.uniform(0, 224), rng.uniform(10, 60)
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), tuple(numbers.integers(0, 256, 3).tolist()))
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(22, 40)))


def _mosaic(rng: random.Random, numbers: np.random.Generator) -> Image.Image:
    """A Voronoi diagram in random colors."""
    points = numbers.uniform(0, 224, (rng.randint(30, 120), 2))
    colors = _random_colors(numbers, len(points)).astype(np.uint8)
    grid = np.stack(np.meshgrid(np.arange(224), np.arange(224)), axis=-1)[:, :, None]
    nearest = ((grid - points) ** 2).sum(axis=-1).argmin(axis=-1)
    return Image.fromarray(colors[nearest])


def _photograph(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A part of matplotlib's sample photograph, mirrored or not."""
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / _PHOTOGRAPH) as whole:
        picture = whole.convert("RGB")
    width, height = (round(side * rng.uniform(0.5, 1.0)) for side in picture.size)
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    part = picture.crop((left, top, left + width, top + height))
    part = ImageOps.mirror(part) if rng.random() < 0.5 else part
    return ImageOps.fit(part, size, Image.Resampling.BICUBIC)


_SORTS = {
    "noise": _noise,
    "clouds": _clouds,
    "landscape": _landscape,
    "strokes": _strokes,
    "blobs": _blobs,
    "mosaic": _mosaic,
}
