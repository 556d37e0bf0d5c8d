"""What a world is: something that can be described, shown, labelled and asked about."""

import random
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from PIL.Image import Image

from gemma3_core.image_processor import Box
from training.drawing.dense_labels import PictureLabels
from training.language.asking import Question

Depiction = TypeVar("Depiction")


class World(Protocol[Depiction]):
    """Descriptions of what is shown, and what is asked about it; all randomness comes from `rng`.

    `split` is "train" or "heldout": what is held out never occurs in training and always in evaluation.
    """

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of questions; no two worlds share one."""

    @property
    def in_turn(self) -> bool:
        """Whether questions lean on those before them: then all that `ask` gives is one conversation, in order."""

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Depiction:
        """A description; at difficulty 0 large and clear, at 1 anything. `unnamed`: the share in unnamed colors."""

    def pictures(self, depiction: Depiction) -> "tuple[tuple[DrawnWorld[Any], Any], ...]":
        """All that is shown before the first question: descriptions with the worlds that draw them, in order."""

    def system_prompt(self, depiction: Depiction) -> str:
        """What stands before everything; "" where nothing does."""

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
class DrawnWorld(World[Depiction], Protocol[Depiction]):
    """A world whose descriptions are of one picture each."""

    def size(self, depiction: Depiction) -> tuple[int, int]:
        """Width and height in pixels."""

    def draw(self, depiction: Depiction, rng: random.Random, renderer: str | None = None) -> Image:
        """The whole picture, RGB at its true size, by one of drawing.RENDERERS or a random one."""

    def as_seen(self, depiction: Depiction, rng: random.Random, side: int) -> Image:
        """What the encoder gets: squeezed to a square of `side` pixels; faster than drawing it whole."""

    def labels(self, depiction: Depiction) -> PictureLabels:
        """What lies in each patch and soft token."""


@runtime_checkable
class ReadInCrops(DrawnWorld[Depiction], Protocol[Depiction]):
    """A world whose pictures are asked about with pan & scan; without it, there is one answer to everything."""

    @property
    def answer_without_crops(self) -> str:
        """What every question is answered where the whole picture is all there is."""

    def crops_as_seen(self, depiction: Depiction, boxes: Sequence[Box], rng: random.Random, side: int) -> list[Image]:
        """What the encoder gets of these parts of the picture: each squeezed to a square of `side` pixels."""

    def crop_labels(self, depiction: Depiction, box: Box) -> PictureLabels:
        """What lies in each patch and soft token of one of them."""


class AskedByModule:
    """A world that a module asks about: each question by itself, without a system prompt."""

    asking: Any
    in_turn = False

    @property
    def kinds(self) -> tuple[str, ...]:
        kinds: tuple[str, ...] = self.asking.KINDS
        return kinds

    def system_prompt(self, depiction: Any) -> str:  # noqa: ARG002
        return ""

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


class OfModules(AskedByModule):
    """A world whose pictures one module draws and labels and another asks about."""

    drawing: Any

    def pictures(self, depiction: Any) -> tuple[tuple[DrawnWorld[Any], Any], ...]:
        drawn: Any = self  # the classes below have all that a DrawnWorld has
        return ((drawn, depiction),)

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
