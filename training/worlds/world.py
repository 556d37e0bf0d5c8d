"""What a world is: something that can be described, shown, labelled and asked about."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from PIL.Image import Image

from gemma3_core.images.pan_and_scan import Box
from training.drawing.dense_labels import PictureLabels
from training.language.asking import Question, QuestionKinds

Depiction = TypeVar("Depiction")


@dataclass(frozen=True)
class World(Generic[Depiction]):
    """Descriptions of what is shown, and what is asked about it; all randomness comes from `rng`.

    `imagine(rng, split, difficulty=1.0, unnamed=0.0)` makes a description: large and clear at difficulty 0, anything
    at 1; `unnamed` is the share in unnamed colors. `split` is "train" or "heldout": training never sees what is held
    out, evaluation always does. With `in_turn`, each question leans on the one before: `ask` returns one conversation.
    """

    questions: QuestionKinds[Any]
    imagine: Callable[..., Depiction]
    in_turn: bool = False

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of question, unique to each world."""
        return self.questions.kinds

    def pictures(self, depiction: Depiction) -> "tuple[tuple[DrawnWorld[Any], Any], ...]":
        """All that is shown before the first question: descriptions with the worlds that draw them, in order."""
        raise NotImplementedError

    def system_prompt(self, depiction: Depiction) -> str:  # noqa: ARG002
        """The system prompt, or ""."""
        return ""

    def ask(
        self,
        depiction: Depiction,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        """As QuestionKinds.ask."""
        return self.questions.ask(depiction, rng, split, num, kinds, apart)

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        """As QuestionKinds.is_right."""
        return self.questions.is_right(kind, key, answer)


@dataclass(frozen=True)
class DrawnWorld(World[Depiction]):
    """A world whose descriptions are of one picture each. `drawing` is the module that draws and labels them."""

    drawing: Any = None

    def pictures(self, depiction: Depiction) -> "tuple[tuple[DrawnWorld[Any], Any], ...]":
        return ((self, depiction),)

    def size(self, depiction: Any) -> tuple[int, int]:
        """Width and height in pixels."""
        return depiction.width, depiction.height

    def draw(self, depiction: Depiction, rng: random.Random, renderer: str | None = None) -> Image:
        """The whole picture, RGB at its true size, by one of drawing.RENDERERS or a random one."""
        picture: Image = self.drawing.draw(depiction, rng, renderer=renderer)
        return picture

    def as_seen(self, depiction: Depiction, rng: random.Random, side: int) -> Image:
        """The encoder's input: squeezed to a square of `side` pixels; faster than drawing the whole picture."""
        picture: Image = self.drawing.training_picture(depiction, rng, side)
        return picture

    def labels(self, depiction: Depiction) -> PictureLabels:
        """What lies in each patch and soft token."""
        found: PictureLabels = self.drawing.labels(depiction)
        return found


@dataclass(frozen=True)
class ReadInCrops(DrawnWorld[Depiction]):
    """A world whose pictures are asked about with pan & scan; without it, every question has the same answer."""

    answer_without_crops: str = ""

    def crops_as_seen(self, depiction: Depiction, boxes: Sequence[Box], rng: random.Random, side: int) -> list[Image]:
        """The encoder's input for these parts of the picture, each squeezed to a square of `side` pixels."""
        crops: list[Image] = self.drawing.training_crops(depiction, boxes, rng, side)
        return crops

    def crop_labels(self, depiction: Depiction, box: Box) -> PictureLabels:
        """What lies in each patch and soft token of one crop."""
        found: PictureLabels = self.drawing.crop_labels(depiction, box)
        return found
