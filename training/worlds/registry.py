"""The worlds that the demo model knows, each behind one small interface (world.py).

To add one: its modules, a class here that has the methods of World, or of DrawnWorld, an entry in WORLDS.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from gemma3_core.image_processor import Box
from training.drawing.colors import UNNAMED
from training.drawing.dense_labels import PictureLabels
from training.drawing.fonts import Font, all_fonts, bundled_fonts
from training.language import system_prompts
from training.language.asking import Question
from training.worlds import crowds, elsewhere
from training.worlds.boards import boards
from training.worlds.boards import drawing as board_drawing
from training.worlds.boards import questions as board_questions
from training.worlds.boards.boards import Board
from training.worlds.charts import charts
from training.worlds.charts import drawing as chart_drawing
from training.worlds.charts import questions as chart_questions
from training.worlds.charts.charts import Chart
from training.worlds.crowds import Crowd
from training.worlds.pairs import follow_ups, pairs
from training.worlds.pairs import questions as pair_questions
from training.worlds.pairs.pairs import Pair
from training.worlds.scenes import drawing, more_questions, questions, scenes
from training.worlds.scenes.scenes import Scene
from training.worlds.signs import drawing as sign_drawing
from training.worlds.signs import questions as sign_questions
from training.worlds.signs import signs, two_line_questions, two_lines
from training.worlds.signs.signs import Sign
from training.worlds.signs.two_lines import TwoLines
from training.worlds.world import AskedByModule, DrawnWorld, OfModules, World

_FURTHER_SHARE = 0.55  # of the questions about a scene are of more_questions' kinds
_PLAIN_IN_SIZE = 0.35  # of the training scenes of named colors have a plainly largest or smallest shape: few do
_SCENES_TRIED = 20  # for one of these
_OF_TWO = 0.45  # share of the conversations with follow-ups that are about two pictures
_PROMPTED_SIGNS = 0.35  # of the pictures asked about under a system prompt; the others are scenes


class Scenes(OfModules):
    """Flat shapes on a background."""

    drawing = drawing

    @property
    def kinds(self) -> tuple[str, ...]:
        return (*questions.KINDS, *more_questions.KINDS)

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Scene:
        scene = scenes.random_scene(rng, split, difficulty, unnamed)
        named = all(one.color != UNNAMED for one in scene.objects)
        if split == "train" and named and rng.random() < _PLAIN_IN_SIZE:
            wanted = rng.choice(("largest", "smallest"))
            for _ in range(_SCENES_TRIED):
                if more_questions.ask(scene, rng, kinds=(wanted,)):
                    break
                scene = scenes.random_scene(rng, split, difficulty)
        return scene

    def labels(self, depiction: Scene) -> PictureLabels:
        return drawing.picture_labels(depiction)

    def ask(
        self,
        depiction: Scene,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        wanted = kinds or self.kinds
        first = tuple(kind for kind in wanted if kind in questions.KINDS)
        further = tuple(kind for kind in wanted if kind in more_questions.KINDS)
        more = sum(rng.random() < _FURTHER_SHARE for _ in range(num)) if first else num
        asked = more_questions.ask(depiction, rng, split, more, further, apart) if further else []
        if first:
            asked += questions.ask(depiction, rng, split, num - len(asked), first)
        rng.shuffle(asked)
        return asked

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        asked_in = more_questions if kind in more_questions.KINDS else questions
        return asked_in.is_right(kind, key, answer)


class _Written(OfModules):
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


class TwoLineSigns(_Written):
    """Two words or numbers on a background, one below the other."""

    drawing, asking = sign_drawing, two_line_questions

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> TwoLines:
        return two_lines.random_two_lines(rng, self.fonts(split), split, difficulty, unnamed)


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


class Elsewhere(OfModules):
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


class Crowds(OfModules):
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


class Pairs(AskedByModule):
    """Two scenes that are asked about together."""

    asking = pair_questions

    def imagine(
        self,
        rng: random.Random,
        split: str,
        difficulty: float = 1.0,
        unnamed: float = 0.0,  # noqa: ARG002  (nothing could be compared)
    ) -> Pair:
        return pairs.random_pair(rng, split, difficulty)

    def pictures(self, depiction: Pair) -> tuple[tuple[DrawnWorld[Any], Any], ...]:
        return tuple((Scenes(), scene) for scene in depiction.scenes)


class FollowUps(AskedByModule):
    """Conversations about one scene or two, in which each question leans on the one before."""

    asking = follow_ups
    in_turn = True

    def imagine(
        self,
        rng: random.Random,
        split: str,
        difficulty: float = 1.0,
        unnamed: float = 0.0,  # noqa: ARG002  (hardly anything could be asked)
    ) -> Scene | Pair:
        if rng.random() < _OF_TWO:
            return pairs.random_pair(rng, split, difficulty)
        return scenes.random_scene(rng, split, difficulty)

    def pictures(self, depiction: Scene | Pair) -> tuple[tuple[DrawnWorld[Any], Any], ...]:
        shown = depiction.scenes if isinstance(depiction, Pair) else (depiction,)
        return tuple((Scenes(), scene) for scene in shown)


@dataclass(frozen=True)
class Prompted:
    """A picture of another world that is asked about under a system prompt."""

    depiction: Scene | Sign
    form: str  # of the answers, one of system_prompts.KINDS
    prompt: str


class SystemPrompts(AskedByModule):
    """Scenes and signs under a system prompt that says what form answers have."""

    asking = system_prompts

    def __init__(self, evaluate_all_fonts: bool = False):
        self._scenes, self._signs = Scenes(), Signs(evaluate_all_fonts)

    def _world(self, depiction: Scene | Sign) -> DrawnWorld[Any]:
        return self._signs if isinstance(depiction, Sign) else self._scenes

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Prompted:
        form = rng.choice(system_prompts.KINDS)
        world: DrawnWorld[Any] = self._signs if rng.random() < _PROMPTED_SIGNS else self._scenes
        depiction = world.imagine(rng, split, difficulty, unnamed)
        return Prompted(depiction, form, system_prompts.random_prompt(form, rng, split))

    def pictures(self, depiction: Prompted) -> tuple[tuple[DrawnWorld[Any], Any], ...]:
        return ((self._world(depiction.depiction), depiction.depiction),)

    def system_prompt(self, depiction: Prompted) -> str:
        return depiction.prompt

    def ask(
        self,
        depiction: Prompted,
        rng: random.Random,
        split: str,
        num: int,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        if depiction.form not in (kinds or self.kinds):
            return []
        world, shown = self._world(depiction.depiction), depiction.depiction
        short = tuple(kind for kind in world.kinds if kind in system_prompts.SHORT_KINDS)
        asked = world.ask(shown, rng, split, num, short if depiction.form == "one_word" else None, apart)
        return [system_prompts.in_form(question, depiction.form) for question in asked]

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        """As said; and the answer has the form that the prompt asked for."""
        if kind not in self.kinds:
            raise ValueError(f"kind is {kind!r}; expected one of {self.kinds}")
        asked, said = key.split(" ", 1)
        world: World[Any] = self._signs if asked in self._signs.kinds else self._scenes
        return world.is_right(asked, said, answer) and system_prompts.has_form(kind, key, answer)


WORLDS: dict[str, World[Any]] = {
    "scenes": Scenes(),
    "signs": Signs(),
    "two_lines": TwoLineSigns(),
    "charts": Charts(),
    "boards": Boards(),
    "elsewhere": Elsewhere(),
    "pairs": Pairs(),
    "follow_ups": FollowUps(),
    "system_prompts": SystemPrompts(),
}

ALL_KINDS = tuple(kind for world in WORLDS.values() for kind in world.kinds)
"""Of question."""


def world_named(name: str) -> World[Any]:
    """One of WORLDS, or "crowds". Raises ValueError where there is no such world."""
    if name == "crowds":
        return Crowds()
    if name not in WORLDS:
        raise ValueError(f"world is {name!r}; expected one of {tuple(WORLDS)}")
    return WORLDS[name]


def kinds_named(names: str) -> tuple[str, ...]:
    """Kinds of question, given with commas between. Raises ValueError for one that no world has."""
    kinds = tuple(names.split(","))
    if unknown := sorted(set(kinds) - set(ALL_KINDS)):
        raise ValueError(f"unknown kinds of question {unknown}; expected some of {','.join(ALL_KINDS)}")
    return kinds


def is_right(kind: str, key: str, answer: str) -> bool:
    """As World.is_right, of the world that has this kind of question."""
    for world in WORLDS.values():
        if kind in world.kinds:
            return world.is_right(kind, key, answer)
    raise ValueError(f"kind is {kind!r}; expected one of {ALL_KINDS}")
