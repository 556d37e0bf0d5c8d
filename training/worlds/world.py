"""What a world is: something that can be described, shown, labelled and asked about."""

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from PIL.Image import Image

from gemma3_core.images.pan_and_scan import Box
from training.drawing.dense_labels import PictureLabels
from training.language.asking import Question, QuestionKinds

Depiction = TypeVar("Depiction")


class World(ABC, Generic[Depiction]):
    """Descriptions of what is shown, and what is asked about it; all randomness comes from `rng`.

    `split` is "train" or "heldout": what is held out never occurs in training and always in evaluation.
    """

    questions: QuestionKinds[Any]
    in_turn = False
    """Whether questions lean on those before them: then all that `ask` gives is one conversation, in order."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of questions; no two worlds share one."""
        return self.questions.kinds

    @abstractmethod
    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Depiction:
        """A description; at difficulty 0 large and clear, at 1 anything. `unnamed`: the share in unnamed colors."""

    @abstractmethod
    def pictures(self, depiction: Depiction) -> "tuple[tuple[DrawnWorld[Any], Any], ...]":
        """All that is shown before the first question: descriptions with the worlds that draw them, in order."""

    def system_prompt(self, depiction: Depiction) -> str:  # noqa: ARG002
        """What stands before everything; "" where nothing does."""
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
        """Up to `num` questions of `kinds` (all by default); `apart`: the same may be asked in other words."""
        return self.questions.ask(depiction, rng, split, num, kinds, apart)

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        """Whether an answer says what it must and nothing else of its sort."""
        return self.questions.is_right(kind, key, answer)


class DrawnWorld(World[Depiction]):
    """A world whose descriptions are of one picture each. `drawing` is the module that draws and labels them."""

    drawing: Any

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
        """What the encoder gets: squeezed to a square of `side` pixels; faster than drawing it whole."""
        picture: Image = self.drawing.training_picture(depiction, rng, side)
        return picture

    def labels(self, depiction: Depiction) -> PictureLabels:
        """What lies in each patch and soft token."""
        found: PictureLabels = self.drawing.labels(depiction)
        return found


class ReadInCrops(DrawnWorld[Depiction]):
    """A world whose pictures are asked about with pan & scan; without it, there is one answer to everything."""

    answer_without_crops: str

    def crops_as_seen(self, depiction: Depiction, boxes: Sequence[Box], rng: random.Random, side: int) -> list[Image]:
        """What the encoder gets of these parts of the picture: each squeezed to a square of `side` pixels."""
        crops: list[Image] = self.drawing.training_crops(depiction, boxes, rng, side)
        return crops

    def crop_labels(self, depiction: Depiction, box: Box) -> PictureLabels:
        """What lies in each patch and soft token of one of them."""
        found: PictureLabels = self.drawing.crop_labels(depiction, box)
        return found
