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


class _OfModules:
    """A world whose pictures one module draws and labels and another asks about."""

    drawing: Any
    asking: Any

    @property
    def kinds(self) -> tuple[str, ...]:
        kinds: tuple[str, ...] = self.asking.KINDS
        return kinds

    def size(self, depiction: Any) -> tuple[int, int]:
        return depiction.width, depiction.height

    def draw(self, depiction: Any, rng: random.Random, renderer: str | None = None) -> Image:
        picture: Image = self.drawing.draw(depiction, rng, renderer=renderer)
        return picture

    def as_seen(self, depiction: Any, rng: random.Random, side: int) -> Image:
        picture: Image = self.drawing.training_picture(depiction, rng, side)
        return picture

    def labels(self, depiction: Any) -> PictureLabels:
        found: PictureLabels = self.drawing.labels(depiction)
        return found

    def ask(
        self,
        depiction: Any,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        asked: list[Question] = self.asking.ask(depiction, rng, split, num, kinds, apart)
        return asked

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        right: bool = self.asking.is_right(kind, key, answer)
        return right


class Scenes(_OfModules):
    """Flat shapes on a background."""

    drawing = drawing

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*questions.KINDS, *more_questions.KINDS)

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Scene:
        return scenes.random_scene(rng, split, difficulty, unnamed)

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


class _Written(_OfModules):
    """Training uses all fonts of the machine, evaluation those that every machine has, unless told otherwise."""

    def __init__(self, evaluate_all_fonts: bool = False):
        self._evaluate_all = evaluate_all_fonts

    def fonts(self, split: str) -> tuple[Font, ...]:
        return all_fonts() if split == "train" or self._evaluate_all else bundled_fonts()


class Signs(_Written):
    """A word or number on a background."""

    drawing, asking = sign_drawing, sign_questions

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Sign:
        return signs.random_sign(rng, self.fonts(split), split, difficulty, unnamed)


class Charts(_Written):
    """Bar charts."""

    drawing, asking = chart_drawing, chart_questions

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Chart:
        return charts.random_chart(rng, self.fonts(split), split, difficulty, unnamed)


class Boards(_Written):
    """Words, or items and prices, on pictures too long to be read whole.

    Questions have the answers that the crops allow; answers are judged as given with pan & scan.
    """

    drawing, asking = board_drawing, board_questions
    answer_without_crops = board_questions.TOO_SMALL

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Board:
        return boards.random_board(rng, self.fonts(split), split, difficulty, unnamed)

    def crops_as_seen(self, depiction: Board, boxes: Sequence[Box], rng: random.Random, side: int) -> list[Image]:
        return board_drawing.training_crops(depiction, boxes, rng, side)

    def crop_labels(self, depiction: Board, box: Box) -> PictureLabels:
        return board_drawing.crop_labels(depiction, box)


class Elsewhere(_OfModules):
    """What the model does not know, which it has to say."""

    drawing = asking = elsewhere

    def imagine(
        self,
        rng: random.Random,
        split: str,
        difficulty: float = 1.0,
        unnamed: float = 0.0,  # noqa: ARG002
    ) -> elsewhere.Elsewhere:
        return elsewhere.random_elsewhere(rng, split, difficulty)


class Crowds(_OfModules):
    """Pictures full of shapes or words, to learn from and not to ask about."""

    drawing = crowds
    kinds = ()

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Crowd:
        """Raises ValueError where anything but training asks for one."""
        if split != "train" or difficulty != 1.0:
            raise ValueError(f"crowds are for training and of one difficulty, got {split!r} and {difficulty}")
        return crowds.random_crowd(rng, unnamed)

    def draw(self, depiction: Crowd, rng: random.Random, renderer: str | None = None) -> Image:  # noqa: ARG002
        return crowds.training_picture(depiction, rng, max(depiction.width, depiction.height))

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


def kinds_named(names: str) -> tuple[str, ...]:
    """Kinds of question, given with commas between. Raises ValueError for one that no world has."""
    kinds, known = tuple(names.split(",")), [kind for world in WORLDS.values() for kind in world.kinds]
    if unknown := sorted(set(kinds) - set(known)):
        raise ValueError(f"unknown kinds of question {unknown}; expected some of {','.join(known)}")
    return kinds


def is_right(kind: str, key: str, answer: str) -> bool:
    """As World.is_right, of the world that has this kind of question."""
    for world in WORLDS.values():
        if kind in world.kinds:
            return world.is_right(kind, key, answer)
    raise ValueError(f"kind is {kind!r}; expected one of {[k for world in WORLDS.values() for k in world.kinds]}")
