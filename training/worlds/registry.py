"""The worlds that the demo model knows, each behind one small interface (world.py).

To add one: its modules, and an entry in WORLDS.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from training.drawing.colors import UNNAMED
from training.drawing.fonts import all_fonts, bundled_fonts
from training.language import system_prompts
from training.language.asking import Question, QuestionKinds
from training.worlds import crowds, elsewhere
from training.worlds.boards import boards
from training.worlds.boards import drawing as board_drawing
from training.worlds.boards import questions as board_questions
from training.worlds.charts import charts
from training.worlds.charts import drawing as chart_drawing
from training.worlds.charts import questions as chart_questions
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
from training.worlds.world import DrawnWorld, ReadInCrops, World

_FURTHER_SHARE = 0.55  # of the questions about a scene are of more_questions' kinds
_PLAIN_IN_SIZE = (
    0.35  # of the training scenes with named colors get a plainly largest or smallest shape; few have one by chance
)
_SCENES_TRIED = 20  # for one of these
_OF_TWO = 0.45  # share of the conversations with follow-ups that are about two pictures
_PROMPTED_SIGNS = 0.35  # of the pictures asked about under a system prompt; the others are scenes


class _OfScenes(QuestionKinds[Scene]):
    """Both sets of questions about a scene; about half are of the further kinds."""

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


def _random_scene(rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Scene:
    """A scene; in training, often one with a plainly largest or smallest shape."""
    scene = scenes.random_scene(rng, split, difficulty, unnamed)
    named = all(one.color != UNNAMED for one in scene.objects)
    if split == "train" and named and rng.random() < _PLAIN_IN_SIZE:
        wanted = rng.choice(("largest", "smallest"))
        for _ in range(_SCENES_TRIED):
            if more_questions.QUESTIONS.ask(scene, rng, kinds=(wanted,)):
                break
            scene = scenes.random_scene(rng, split, difficulty)
    return scene


def _written(make: Callable[..., Any]) -> Callable[..., Any]:
    """Gives `make` its fonts: in training all of this machine, in evaluation those that every machine has."""

    def imagine(rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Any:
        return make(rng, all_fonts() if split == "train" else bundled_fonts(), split, difficulty, unnamed)

    return imagine


def _named(make: Callable[..., Any]) -> Callable[..., Any]:
    """For worlds without unnamed colors."""

    def imagine(rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Any:  # noqa: ARG001
        return make(rng, split, difficulty)

    return imagine


def _random_crowd(rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Crowd:
    """Raises ValueError for anything but training."""
    if split != "train" or difficulty != 1.0:
        raise ValueError(f"crowds are for training and of one difficulty, got {split!r} and {difficulty}")
    return crowds.random_crowd(rng, unnamed)


def _one_or_two(rng: random.Random, split: str, difficulty: float) -> Scene | Pair:
    if rng.random() < _OF_TWO:
        return pairs.random_pair(rng, split, difficulty)
    return scenes.random_scene(rng, split, difficulty)


class OfScenes(World[Scene | Pair]):
    """Asks about one scene or about two together."""

    def pictures(self, depiction: Scene | Pair) -> tuple[tuple[DrawnWorld[Any], Any], ...]:
        shown = depiction.scenes if isinstance(depiction, Pair) else (depiction,)
        return tuple((SCENES, scene) for scene in shown)


@dataclass(frozen=True)
class Prompted:
    """A picture of another world that is asked about under a system prompt."""

    depiction: Scene | Sign
    form: str  # of the answers, one of system_prompts.KINDS
    prompt: str

    @property
    def world(self) -> DrawnWorld[Any]:
        return SIGNS if isinstance(self.depiction, Sign) else SCENES


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
    """Whether the answer says the key in the form that the prompt asks for; the key begins with its kind."""
    asked, said = key.split(" ", 1)
    return is_right(asked, said, answer) and system_prompts.has_form(kind, key, answer)


def _random_prompted(rng: random.Random, split: str, difficulty: float = 1.0, unnamed: float = 0.0) -> Prompted:
    form = rng.choice(system_prompts.KINDS)
    world = SIGNS if rng.random() < _PROMPTED_SIGNS else SCENES
    depiction = world.imagine(rng, split, difficulty, unnamed)
    return Prompted(depiction, form, system_prompts.random_prompt(form, rng, split))


class SystemPrompts(World[Prompted]):
    """Scenes and signs under a system prompt that says what form answers have."""

    def pictures(self, depiction: Prompted) -> tuple[tuple[DrawnWorld[Any], Any], ...]:
        return ((depiction.world, depiction.depiction),)

    def system_prompt(self, depiction: Prompted) -> str:
        return depiction.prompt


SCENES: DrawnWorld[Any] = DrawnWorld(
    _OfScenes((*questions.KINDS, *more_questions.KINDS), _says_of_scene), _random_scene, drawing=drawing
)
SIGNS: DrawnWorld[Any] = DrawnWorld(sign_questions.QUESTIONS, _written(signs.random_sign), drawing=sign_drawing)
WORLDS: dict[str, World[Any]] = {
    "scenes": SCENES,
    "signs": SIGNS,
    "two_lines": DrawnWorld(two_line_questions.QUESTIONS, _written(two_lines.random_two_lines), drawing=sign_drawing),
    "charts": DrawnWorld(chart_questions.QUESTIONS, _written(charts.random_chart), drawing=chart_drawing),
    "boards": ReadInCrops(
        board_questions.QUESTIONS,
        _written(boards.random_board),
        drawing=board_drawing,
        answer_without_crops=board_questions.TOO_SMALL,
    ),
    "elsewhere": DrawnWorld(elsewhere.QUESTIONS, _named(elsewhere.random_elsewhere), drawing=elsewhere),
    "pairs": OfScenes(pair_questions.QUESTIONS, _named(pairs.random_pair)),
    "follow_ups": OfScenes(follow_ups.QUESTIONS, _named(_one_or_two), in_turn=True),
    "system_prompts": SystemPrompts(_UnderPrompts(system_prompts.KINDS, _says_in_form), _random_prompted),
}
CROWDS: DrawnWorld[Any] = DrawnWorld(QuestionKinds[Crowd]((), lambda *_: False), _random_crowd, drawing=crowds)
"""Pictures full of shapes or words, for the dense loss alone: nothing is asked about them."""

ALL_KINDS = tuple(kind for world in WORLDS.values() for kind in world.kinds)
"""All kinds of question."""


def world_named(name: str) -> World[Any]:
    """One of WORLDS, or "crowds". Raises ValueError for an unknown name."""
    known = {**WORLDS, "crowds": CROWDS}
    if name not in known:
        raise ValueError(f"world is {name!r}; expected one of {tuple(known)}")
    return known[name]


def world_of(kind: str) -> World[Any]:
    """The world with this kind of question. Raises ValueError if there is none."""
    for world in WORLDS.values():
        if kind in world.kinds:
            return world
    raise ValueError(f"kind is {kind!r}; expected one of {ALL_KINDS}")


def kinds_named(names: str) -> tuple[str, ...]:
    """Parses kinds of question separated by commas. Raises ValueError for an unknown one."""
    kinds = tuple(names.split(","))
    if unknown := sorted(set(kinds) - set(ALL_KINDS)):
        raise ValueError(f"unknown kinds of question {unknown}; expected some of {','.join(ALL_KINDS)}")
    return kinds


def is_right(kind: str, key: str, answer: str) -> bool:
    """As World.is_right, of the world that has this kind of question."""
    return world_of(kind).is_right(kind, key, answer)
