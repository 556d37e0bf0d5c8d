"""Questions about one object of a held-out picture, with the object's outline; or a folder of pictures without one."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from training.drawing.colors import UNNAMED
from training.worlds.charts.charts import Chart
from training.worlds.registry import WORLDS
from training.worlds.scenes.scenes import Scene, polygon
from training.worlds.signs.signs import Sign

SEED = 20_000_003  # the evaluation's, for held-out pictures
WORLDS_WITH_OBJECTS = ("scenes", "signs", "charts")
"""Boards are left out: they are read in crops only, and the scores are about one tile."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Case:
    """A picture and a question; with known objects, the answer's word and the outline [N, 2] of the asked object in
    pixels. `name` is the same in every run."""

    name: str
    world: str
    picture: Image.Image
    question: str
    word: str | None = None
    outline: np.ndarray | None = None

    def mask(self, side: int) -> np.ndarray | None:
        """True [side, side] inside the outline, on the picture squeezed to a square."""
        if self.outline is None:
            return None
        scale = np.array([side / self.picture.width, side / self.picture.height])
        drawn = Image.new("1", (side, side))
        ImageDraw.Draw(drawn).polygon((self.outline * scale).ravel().tolist(), fill=1)
        return np.asarray(drawn)


def drawn_cases(world: str, count: int, seed: int = SEED, split: str = "heldout") -> Iterator[Case]:
    """`count` pictures of a world's split, "heldout" or "train", asked for the color of one object."""
    rng, number = random.Random(f"{seed} {world}"), 0
    while number < count:
        depiction = WORLDS[world].imagine(rng, split)
        asked = _asked(depiction, rng)
        if asked is not None:
            question, word, outline = asked
            picture = WORLDS[world].draw(depiction, rng)  # type: ignore[attr-defined]
            yield Case(f"{world} {number}", world, picture.convert("RGB"), question, word, outline)
            number += 1


def cases_of_folder(folder: Path, question: str) -> Iterator[Case]:
    """The pictures of a folder, by name; nothing is known about their objects."""
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGES):
        with Image.open(path) as picture:
            yield Case(path.name, "pictures", picture.convert("RGB"), question)


def _asked(depiction: object, rng: random.Random) -> tuple[str, str, np.ndarray] | None:
    """A question for a color, the color, and the outline of the object in question; None if there is none to ask.

    Nothing else in the picture has that color: otherwise the word would rest on the others too.
    """
    if isinstance(depiction, Scene):
        shapes = [item.shape for item in depiction.objects]
        colors = [item.color for item in depiction.objects]
        single = [
            item
            for item in depiction.objects
            if shapes.count(item.shape) == 1 and colors.count(item.color) == 1 and item.color != UNNAMED
        ]
        if len(shapes) < 2 or not single:
            return None
        item = rng.choice(single)
        return f"What color is the {item.shape}?", item.color, polygon(item)
    if isinstance(depiction, Sign):
        left, top, right, bottom = depiction.line
        corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
        if depiction.color == UNNAMED:
            return None
        return "What color is the text?", depiction.color, depiction.turned(corners)
    assert isinstance(depiction, Chart)
    colors = [bar.color for bar in depiction.bars]
    named = [bar for bar in depiction.bars if colors.count(bar.color) == 1 and bar.color != UNNAMED]
    if not named:
        return None
    bar = rng.choice(named)
    corners = np.array([(bar.left, bar.top), (bar.right, bar.top), (bar.right, bar.bottom), (bar.left, bar.bottom)])
    return f'What color is the bar of "{bar.name}"?', bar.color, corners
