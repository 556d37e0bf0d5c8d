"""The worlds that the demo model knows, each behind one small interface.

A world is something that can be described, drawn, labelled and asked about. To add one: its modules, a
class here that has the methods of World, an entry in WORLDS.
"""

import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from PIL.Image import Image

from gemma3_core.image_processor import Box
from training import (
    board_drawing,
    board_questions,
    boards,
    chart_drawing,
    chart_questions,
    charts,
    crowds,
    drawing,
    elsewhere,
    more_questions,
    questions,
    scenes,
    sign_drawing,
    sign_questions,
    signs,
)
from training.boards import Board
from training.charts import Chart
from training.crowds import Crowd
from training.dense_labels import PictureLabels
from training.fonts import Font, all_fonts, bundled_fonts
from training.questions import Question
from training.scenes import Scene
from training.signs import Sign

SHIPPED_KINDS = (*questions.KINDS, "text_color", *elsewhere.KINDS)
"""The kinds of question that the checkpoint in assets/demo_model was trained on."""

_FURTHER_SHARE = 0.4  # of the questions about a scene are of more_questions' kinds

Depiction = TypeVar("Depiction")


class World(Protocol[Depiction]):
    """Descriptions of pictures and what can be done with them; all randomness comes from `rng`.

    `split` is "train" or "heldout": what is held out never occurs in training and always in evaluation.
    """

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of questions; no two worlds share one."""

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Depiction:
        """A description; at difficulty 0 large and clear, at 1 anything. `unnamed`: the share in unnamed colors."""

    def size(self, depiction: Depiction) -> tuple[int, int]:
        """Width and height in pixels."""

    def draw(self, depiction: Depiction, rng: random.Random, renderer: str | None = None) -> Image:
        """The whole picture, RGB at its true size, by one of drawing.RENDERERS or a random one."""

    def as_seen(self, depiction: Depiction, rng: random.Random, side: int) -> Image:
        """What the encoder gets: squeezed to a square of `side` pixels; faster than drawing it whole."""

    def labels(self, depiction: Depiction) -> PictureLabels:
        """What lies in each patch and soft token."""

    def ask(
        self,
        depiction: Depiction,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        """Up to `num` questions of `kinds` (all by default); `apart`: the same may be asked in other words."""

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        """Whether an answer says what it must and nothing else of its sort."""


@runtime_checkable
class ReadInCrops(World[Depiction], Protocol[Depiction]):
    """A world whose pictures are asked about with pan & scan; without it, there is one answer to everything."""

    @property
    def answer_without_crops(self) -> str:
        """What every question is answered where the whole picture is all there is."""

    def crops_as_seen(self, depiction: Depiction, boxes: Sequence[Box], rng: random.Random, side: int) -> list[Image]:
        """What the encoder gets of these parts of the picture: each squeezed to a square of `side` pixels."""

    def crop_labels(self, depiction: Depiction, box: Box) -> PictureLabels:
        """What lies in each patch and soft token of one of them."""


class Scenes:
    """Flat shapes on a background."""

    kinds = (*questions.KINDS, *more_questions.KINDS)

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Scene:
        return scenes.random_scene(rng, split, difficulty, unnamed)

    def size(self, depiction: Scene) -> tuple[int, int]:
        return depiction.width, depiction.height

    def draw(self, depiction: Scene, rng: random.Random, renderer: str | None = None) -> Image:
        return drawing.draw(depiction, rng, renderer=renderer)

    def as_seen(self, depiction: Scene, rng: random.Random, side: int) -> Image:
        return drawing.training_picture(depiction, rng, side)

    def labels(self, depiction: Scene) -> PictureLabels:
        return drawing.picture_labels(depiction)

    def ask(
        self,
        depiction: Scene,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,  # noqa: ARG002  (a scene has enough to ask about)
    ) -> list[Question]:
        wanted = kinds or self.kinds
        first = tuple(kind for kind in wanted if kind in questions.KINDS)
        further = tuple(kind for kind in wanted if kind in more_questions.KINDS)
        more = sum(rng.random() < _FURTHER_SHARE for _ in range(num)) if first else num
        asked = more_questions.ask(depiction, rng, split, more, further) if further else []
        if first:
            asked += questions.ask(depiction, rng, split, num - len(asked), first)
        rng.shuffle(asked)
        return asked

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        asked_in = more_questions if kind in more_questions.KINDS else questions
        return asked_in.is_right(kind, key, answer)


class Signs:
    """A word or number on a background.

    Training uses all fonts of the machine, evaluation those that every machine has, unless told otherwise.
    """

    kinds = sign_questions.KINDS

    def __init__(self, evaluate_all_fonts: bool = False):
        self._evaluate_all = evaluate_all_fonts

    def fonts(self, split: str) -> tuple[Font, ...]:
        return all_fonts() if split == "train" or self._evaluate_all else bundled_fonts()

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Sign:
        return signs.random_sign(rng, self.fonts(split), split, difficulty, unnamed)

    def size(self, depiction: Sign) -> tuple[int, int]:
        return depiction.width, depiction.height

    def draw(self, depiction: Sign, rng: random.Random, renderer: str | None = None) -> Image:
        return sign_drawing.draw(depiction, rng, renderer=renderer)

    def as_seen(self, depiction: Sign, rng: random.Random, side: int) -> Image:
        return sign_drawing.training_picture(depiction, rng, side)

    def labels(self, depiction: Sign) -> PictureLabels:
        return sign_drawing.labels(depiction)

    def ask(
        self,
        depiction: Sign,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        return sign_questions.ask(depiction, rng, split, num, kinds, apart)

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        return sign_questions.is_right(kind, key, answer)


class Elsewhere:
    """What the model does not know, which it has to say."""

    kinds = elsewhere.KINDS

    def imagine(
        self,
        rng: random.Random,
        split: str,
        difficulty: float = 1.0,
        unnamed: float = 0.0,  # noqa: ARG002
    ) -> elsewhere.Elsewhere:
        return elsewhere.random_elsewhere(rng, split, difficulty)

    def size(self, depiction: elsewhere.Elsewhere) -> tuple[int, int]:
        return depiction.width, depiction.height

    def draw(self, depiction: elsewhere.Elsewhere, rng: random.Random, renderer: str | None = None) -> Image:
        return elsewhere.draw(depiction, rng, renderer)

    def as_seen(self, depiction: elsewhere.Elsewhere, rng: random.Random, side: int) -> Image:
        return elsewhere.as_seen(depiction, rng, side)

    def labels(self, depiction: elsewhere.Elsewhere) -> PictureLabels:
        return elsewhere.labels(depiction)

    def ask(
        self,
        depiction: elsewhere.Elsewhere,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,  # noqa: ARG002
    ) -> list[Question]:
        return elsewhere.ask(depiction, rng, split, num, kinds)

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        return elsewhere.is_right(kind, key, answer)


class Charts:
    """Bar charts; their fonts are chosen as those of signs."""

    kinds = chart_questions.KINDS

    def __init__(self, evaluate_all_fonts: bool = False):
        self._signs = Signs(evaluate_all_fonts)

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Chart:
        return charts.random_chart(rng, self._signs.fonts(split), split, difficulty, unnamed)

    def size(self, depiction: Chart) -> tuple[int, int]:
        return depiction.width, depiction.height

    def draw(self, depiction: Chart, rng: random.Random, renderer: str | None = None) -> Image:
        return chart_drawing.draw(depiction, rng, renderer=renderer)

    def as_seen(self, depiction: Chart, rng: random.Random, side: int) -> Image:
        return chart_drawing.training_picture(depiction, rng, side)

    def labels(self, depiction: Chart) -> PictureLabels:
        return chart_drawing.labels(depiction)

    def ask(
        self,
        depiction: Chart,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        return chart_questions.ask(depiction, rng, split, num, kinds, apart)

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        return chart_questions.is_right(kind, key, answer)


class Boards:
    """Words, or items and prices, on pictures too long to be read whole; their fonts are chosen as those of signs."""

    kinds = board_questions.KINDS
    answer_without_crops = board_questions.TOO_SMALL

    def __init__(self, evaluate_all_fonts: bool = False):
        self._signs = Signs(evaluate_all_fonts)

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Board:
        return boards.random_board(rng, self._signs.fonts(split), split, difficulty, unnamed)

    def size(self, depiction: Board) -> tuple[int, int]:
        return depiction.width, depiction.height

    def draw(self, depiction: Board, rng: random.Random, renderer: str | None = None) -> Image:
        return board_drawing.draw(depiction, rng, renderer=renderer)

    def as_seen(self, depiction: Board, rng: random.Random, side: int) -> Image:
        return board_drawing.training_picture(depiction, rng, side)

    def crops_as_seen(self, depiction: Board, boxes: Sequence[Box], rng: random.Random, side: int) -> list[Image]:
        return board_drawing.training_crops(depiction, boxes, rng, side)

    def labels(self, depiction: Board) -> PictureLabels:
        return board_drawing.labels(depiction)

    def crop_labels(self, depiction: Board, box: Box) -> PictureLabels:
        return board_drawing.crop_labels(depiction, box)

    def ask(
        self,
        depiction: Board,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        """With the answers that the crops allow."""
        return board_questions.ask(depiction, rng, split, num, kinds, apart)

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        """Of an answer given with pan & scan."""
        return board_questions.is_right(kind, key, answer)


class Crowds:
    """Pictures full of shapes or words, to learn from and not to ask about."""

    kinds: tuple[str, ...] = ()

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Crowd:
        """Raises ValueError where anything but training asks for one."""
        if split != "train" or difficulty != 1.0:
            raise ValueError(f"crowds are for training and of one difficulty, got {split!r} and {difficulty}")
        return crowds.random_crowd(rng, unnamed)

    def size(self, depiction: Crowd) -> tuple[int, int]:
        return depiction.width, depiction.height

    def draw(self, depiction: Crowd, rng: random.Random, renderer: str | None = None) -> Image:  # noqa: ARG002
        return crowds.as_seen(depiction, rng, max(depiction.width, depiction.height))

    def as_seen(self, depiction: Crowd, rng: random.Random, side: int) -> Image:
        return crowds.as_seen(depiction, rng, side)

    def labels(self, depiction: Crowd) -> PictureLabels:
        return crowds.labels(depiction)

    def ask(
        self,
        depiction: Crowd,  # noqa: ARG002
        rng: random.Random,  # noqa: ARG002
        split: str,  # noqa: ARG002
        num: int,  # noqa: ARG002
        kinds: tuple[str, ...] | None = None,  # noqa: ARG002
        apart: bool = False,  # noqa: ARG002
    ) -> list[Question]:
        return []

    def is_right(self, kind: str, key: str, answer: str) -> bool:  # noqa: ARG002
        raise ValueError(f"nobody asks about crowds, got {kind!r}")


WORLDS: dict[str, World[Any]] = {
    "scenes": Scenes(),
    "signs": Signs(),
    "charts": Charts(),
    "boards": Boards(),
    "elsewhere": Elsewhere(),
}


def world_named(name: str) -> World[Any]:
    """One of WORLDS, or "crowds". Raises ValueError where there is no such world."""
    if name == "crowds":
        return Crowds()
    if name not in WORLDS:
        raise ValueError(f"world is {name!r}; expected one of {tuple(WORLDS)}")
    return WORLDS[name]


def is_right(kind: str, key: str, answer: str) -> bool:
    """As World.is_right, of the world that has this kind of question."""
    for world in WORLDS.values():
        if kind in world.kinds:
            return world.is_right(kind, key, answer)
    raise ValueError(f"kind is {kind!r}; expected one of {[k for world in WORLDS.values() for k in world.kinds]}")
