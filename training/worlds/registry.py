"""The worlds that the demo model knows, each behind one small interface (world.py).

To add one: its modules, a class here that has the methods of World, or of DrawnWorld, an entry in WORLDS.
"""

import random
from dataclasses import dataclass
from typing import Any

from training.drawing.colors import UNNAMED
from training.drawing.fonts import Font, all_fonts, bundled_fonts
from training.language import system_prompts
from training.language.asking import Question, QuestionKinds
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
from training.worlds.world import DrawnWorld, ReadInCrops, World

_FURTHER_SHARE = 0.55  # of the questions about a scene are of more_questions' kinds
_PLAIN_IN_SIZE = 0.35  # of the training scenes of named colors have a plainly largest or smallest shape: few do
_SCENES_TRIED = 20  # for one of these
_OF_TWO = 0.45  # share of the conversations with follow-ups that are about two pictures
_PROMPTED_SIGNS = 0.35  # of the pictures asked about under a system prompt; the others are scenes


class _OfScenes(QuestionKinds[Scene]):
    """Both sets of questions about a scene; about every other one is of the further kinds."""

    def asked(
        self, depiction: Scene, rng: random.Random, split: str, num: int, kinds: tuple[str, ...], apart: bool
    ) -> list[Question]:
        first = tuple(kind for kind in kinds if kind in questions.KINDS)
        further = tuple(kind for kind in kinds if kind in more_questions.KINDS)
        more = sum(rng.random() < _FURTHER_SHARE for _ in range(num)) if first else num
        asked = more_questions.QUESTIONS.ask(depiction, rng, split, more, further, apart) if further else []
        if first:
            asked += questions.QUESTIONS.ask(depiction, rng, split, num - len(asked), first)
        rng.shuffle(asked)
        return asked


def _says_of_scene(kind: str, key: str, answer: str) -> bool:
    asked = more_questions if kind in more_questions.KINDS else questions
    return asked.QUESTIONS.says(kind, key, answer)


class Scenes(DrawnWorld[Scene]):
    """Flat shapes on a background."""

    drawing = drawing
    questions = _OfScenes((*questions.KINDS, *more_questions.KINDS), {}, {}, lambda *_: [], _says_of_scene)

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Scene:
        scene = scenes.random_scene(rng, split, difficulty, unnamed)
        named = all(one.color != UNNAMED for one in scene.objects)
        if split == "train" and named and rng.random() < _PLAIN_IN_SIZE:
            wanted = rng.choice(("largest", "smallest"))
            for _ in range(_SCENES_TRIED):
                if more_questions.QUESTIONS.ask(scene, rng, kinds=(wanted,)):
                    break
                scene = scenes.random_scene(rng, split, difficulty)
        return scene


def _fonts(split: str) -> tuple[Font, ...]:
    """Training uses all fonts of the machine, evaluation those that every machine has."""
    return all_fonts() if split == "train" else bundled_fonts()


class Signs(DrawnWorld[Sign]):
    """A word or number on a background."""

    drawing, questions = sign_drawing, sign_questions.QUESTIONS

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Sign:
        return signs.random_sign(rng, _fonts(split), split, difficulty, unnamed)


class TwoLineSigns(DrawnWorld[TwoLines]):
    """Two words or numbers on a background, one below the other."""

    drawing, questions = sign_drawing, two_line_questions.QUESTIONS

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> TwoLines:
        return two_lines.random_two_lines(rng, _fonts(split), split, difficulty, unnamed)


class Charts(DrawnWorld[Chart]):
    """Bar charts."""

    drawing, questions = chart_drawing, chart_questions.QUESTIONS

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Chart:
        return charts.random_chart(rng, _fonts(split), split, difficulty, unnamed)


class Boards(ReadInCrops[Board]):
    """Words, or items and prices, on pictures too long to be read whole.

    Questions have the answers that the crops allow; answers are judged as given with pan & scan.
    """

    drawing, questions = board_drawing, board_questions.QUESTIONS
    answer_without_crops = board_questions.TOO_SMALL

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Board:
        return boards.random_board(rng, _fonts(split), split, difficulty, unnamed)


class Elsewhere(DrawnWorld[elsewhere.Elsewhere]):
    """What the model does not know, which it has to say."""

    drawing, questions = elsewhere, elsewhere.QUESTIONS

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Any:  # noqa: ARG002
        return elsewhere.random_elsewhere(rng, split, difficulty)


class Crowds(DrawnWorld[Crowd]):
    """Pictures full of shapes or words, to learn from and not to ask about."""

    drawing = crowds
    questions = QuestionKinds[Crowd]((), {}, {}, lambda *_: [], lambda *_: False)

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Crowd:
        """Raises ValueError where anything but training asks for one."""
        if split != "train" or difficulty != 1.0:
            raise ValueError(f"crowds are for training and of one difficulty, got {split!r} and {difficulty}")
        return crowds.random_crowd(rng, unnamed)


class Pairs(World[Pair]):
    """Two scenes that are asked about together."""

    questions = pair_questions.QUESTIONS

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Pair:  # noqa: ARG002
        return pairs.random_pair(rng, split, difficulty)

    def pictures(self, depiction: Pair) -> tuple[tuple[DrawnWorld[Any], Any], ...]:
        return tuple((Scenes(), scene) for scene in depiction.scenes)


class FollowUps(World[Scene | Pair]):
    """Conversations about one scene or two, in which each question leans on the one before."""

    questions = follow_ups.QUESTIONS
    in_turn = True

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Scene | Pair:  # noqa: ARG002
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

    @property
    def world(self) -> DrawnWorld[Any]:
        return Signs() if isinstance(self.depiction, Sign) else Scenes()


class _UnderPrompts(QuestionKinds[Prompted]):
    def asked(
        self, depiction: Prompted, rng: random.Random, split: str, num: int, kinds: tuple[str, ...], apart: bool
    ) -> list[Question]:
        if depiction.form not in kinds:
            return []
        world = depiction.world
        short = tuple(kind for kind in world.kinds if kind in system_prompts.SHORT_KINDS)
        wanted = short if depiction.form == "one_word" else None
        asked = world.ask(depiction.depiction, rng, split, num, wanted, apart)
        return [system_prompts.in_form(question, depiction.form) for question in asked]


def _says_in_form(kind: str, key: str, answer: str) -> bool:
    """Whether it says the key, whose first word is the kind that is asked, in the form that the prompt asks for."""
    asked, said = key.split(" ", 1)
    world: World[Any] = Signs() if asked in sign_questions.KINDS else Scenes()
    return world.is_right(asked, said, answer) and system_prompts.has_form(kind, key, answer)


class SystemPrompts(World[Prompted]):
    """Scenes and signs under a system prompt that says what form answers have."""

    questions = _UnderPrompts(system_prompts.KINDS, {}, {}, lambda *_: [], _says_in_form)

    def imagine(self, rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Prompted:
        form = rng.choice(system_prompts.KINDS)
        world: DrawnWorld[Any] = Signs() if rng.random() < _PROMPTED_SIGNS else Scenes()
        depiction = world.imagine(rng, split, difficulty, unnamed)
        return Prompted(depiction, form, system_prompts.random_prompt(form, rng, split))

    def pictures(self, depiction: Prompted) -> tuple[tuple[DrawnWorld[Any], Any], ...]:
        return ((depiction.world, depiction.depiction),)

    def system_prompt(self, depiction: Prompted) -> str:
        return depiction.prompt


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


def world_of(kind: str) -> World[Any]:
    """The world that has this kind of question. Raises ValueError where none has."""
    for world in WORLDS.values():
        if kind in world.kinds:
            return world
    raise ValueError(f"kind is {kind!r}; expected one of {ALL_KINDS}")


def kinds_named(names: str) -> tuple[str, ...]:
    """Kinds of question, given with commas between. Raises ValueError for one that no world has."""
    kinds = tuple(names.split(","))
    if unknown := sorted(set(kinds) - set(ALL_KINDS)):
        raise ValueError(f"unknown kinds of question {unknown}; expected some of {','.join(ALL_KINDS)}")
    return kinds


def is_right(kind: str, key: str, answer: str) -> bool:
    """As World.is_right, of the world that has this kind of question."""
    return world_of(kind).is_right(kind, key, answer)
