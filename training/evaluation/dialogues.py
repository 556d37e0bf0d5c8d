"""The dialogues that evaluation asks: questions of one kind, about pictures drawn for them."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from PIL.Image import Image

from training.evaluation.browser_drawing import Browser, Drawable
from training.language.asking import Question, slots_of
from training.language.wordings import words_of
from training.language.written_phrasings import Forms, read
from training.worlds.charts import questions as chart_questions
from training.worlds.pairs.follow_ups import MOST_TURNS
from training.worlds.registry import WORLDS, world_of
from training.worlds.scenes import more_questions
from training.worlds.scenes import questions as scene_questions
from training.worlds.world import DrawnWorld

SEED = 20_000_003
_IN_OTHER_WORDS = (scene_questions.QUESTIONS, more_questions.QUESTIONS, chart_questions.QUESTIONS)
Renderer = str | Browser | None  # one of drawing.RENDERERS, a browser, or None for each in its share


@dataclass(frozen=True)
class Dialogue:
    """Questions in turn, and the pictures that precede the first one."""

    pictures: tuple[Image, ...]
    questions: tuple[Question, ...]
    system: str = ""


def questions_of_kind(
    kind: str, number: int, split: str, seed: int, renderer: Renderer = None
) -> Iterator[tuple[Image, Question]]:
    """`number` questions of one kind, each about its own picture.

    Raises ValueError for a kind that needs more than one picture and one question.
    """
    if not isinstance(world_of(kind), DrawnWorld):
        raise ValueError(f"kind is {kind!r}, which is asked in a dialogue; see dialogues_of_kind")
    for dialogue in dialogues_of_kind(kind, number, split, seed, renderer):
        yield dialogue.pictures[0], dialogue.questions[0]


def dialogues_of_kind(kind: str, number: int, split: str, seed: int, renderer: Renderer = None) -> Iterator[Dialogue]:
    """Dialogues with `number` questions of one kind in all; only follow-ups have more than one question each.

    Descriptions and questions do not depend on the renderer.
    """
    world = world_of(kind)
    rng, pen = random.Random(f"{seed}/{split}/{kind}"), random.Random(f"{seed}/{split}/{kind}/drawing")
    missing = number
    while missing:
        depiction = world.imagine(rng, split)
        asked = world.ask(depiction, rng, split, MOST_TURNS if world.in_turn else 1, kinds=(kind,))
        wanted = [place for place, question in enumerate(asked, 1) if question.kind == kind][:missing]
        if wanted:
            missing -= len(wanted)
            pictures = tuple(drawn(one, shown, pen, renderer) for one, shown in world.pictures(depiction))
            yield Dialogue(pictures, tuple(asked[: wanted[-1]]), world.system_prompt(depiction))


def dialogues_about_the_same(
    kinds: tuple[str, ...], number: int, split: str, seed: int, renderer: Renderer = None
) -> Iterator[tuple[str, Dialogue]]:
    """Dialogues with `number` questions of each kind, and their kinds; all kinds of a world share its pictures."""
    for world in WORLDS.values():
        missing = {kind: number for kind in kinds if kind in world.kinds}
        for place in count():
            if not missing:
                break
            rng = random.Random(f"{seed}/{split}/{world.kinds[0]}/{place}")
            depiction = world.imagine(rng, split)
            pictures: tuple[Image, ...] = ()
            for kind, wanted in list(missing.items()):
                asked = world.ask(depiction, rng, split, MOST_TURNS if world.in_turn else 1, kinds=(kind,))
                places = [turn for turn, question in enumerate(asked, 1) if question.kind == kind][:wanted]
                if places:
                    missing[kind] -= len(places)
                    pictures = pictures or tuple(drawn(*one, rng, renderer) for one in world.pictures(depiction))
                    yield kind, Dialogue(pictures, tuple(asked[: places[-1]]), world.system_prompt(depiction))
            missing = {kind: left for kind, left in missing.items() if left}


def drawn(world: DrawnWorld[Any], depiction: Any, rng: random.Random, renderer: Renderer) -> Image:
    """The picture; a browser does not draw textures and photographs."""
    if not isinstance(renderer, Browser):
        return world.draw(depiction, rng, renderer)
    return renderer.draw(depiction, rng) if isinstance(depiction, Drawable) else world.draw(depiction, rng)


def ask_in_the_words_of(file: Path) -> tuple[str, ...]:
    """Replaces the held-out phrasings by the file's until the process ends; returns the kinds to ask.

    Skips phrasings that training has for any kind, and kinds that have none left. The file has the form of
    language/heldout_phrasings.json, for questions about scenes and charts. Raises OSError, and ValueError for an
    unknown kind or form and for phrasings without the slots of their form.
    """
    asked, trained = [], set()
    for questions in _IN_OTHER_WORDS:
        for known in questions.trained.values():
            trained |= {words_of(text) for texts in _by_form(known).values() for text in texts}
    for kind, forms in read(file).items():
        heldout = next((questions.heldout for questions in _IN_OTHER_WORDS if kind in questions.kinds), {})
        known = _by_form(heldout.get(kind, {}))
        if not known or set(forms) != set(known):
            raise ValueError(f"{file} has {sorted(forms)} for {kind}; expected {sorted(known) or 'no such kind'}")
        new = {}
        for form, texts in forms.items():
            slots = {slots_of(text) for text in known[form]}
            if wrong := [text for text in texts if slots_of(text) not in slots]:
                raise ValueError(f"{file} has {wrong[0]!r} for {kind}; expected the slots of {known[form][0]!r}")
            new[form] = tuple(text for text in texts if words_of(text) not in trained)
        if all(new.values()):
            asked.append(kind)
            heldout[kind] = new if isinstance(heldout[kind], dict) else new["one"]
    return tuple(asked)


def _by_form(phrasings: Forms | tuple[str, ...]) -> Forms:
    return phrasings if isinstance(phrasings, dict) else {"one": phrasings}
