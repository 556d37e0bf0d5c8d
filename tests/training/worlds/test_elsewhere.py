"""What is outside the demo model's worlds: strange pictures and questions, things not shown, one honest answer."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from training.drawing.colors import COLORS
from training.worlds.charts.charts import Chart
from training.worlds.elsewhere import (
    HELDOUT_PHRASINGS,
    HELDOUT_SORTS,
    KINDS,
    NOT_ASKED_FOR,
    NOT_SHOWN,
    NOTHING_KNOWN,
    PHRASINGS,
    QUESTIONS,
    SORTS,
    Strange,
    draw,
    labels,
    random_elsewhere,
    training_picture,
)
from training.worlds.registry import WORLDS
from training.worlds.scenes.scenes import HELDOUT_PAIRS, Scene, is_heldout_pair
from training.worlds.signs.signs import Sign, is_heldout_text

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right


def several(split: str, number: int = 120) -> list:
    rng = random.Random(split)
    return [random_elsewhere(rng, split) for _ in range(number)]


def test_each_sort_comes_in_its_split() -> None:
    found = {split: Counter(d.sort for d in several(split) if isinstance(d, Strange)) for split in ("train", "heldout")}
    assert set(found["train"]) == set(SORTS)
    assert set(found["heldout"]) >= set(HELDOUT_SORTS)
    assert sum(found["heldout"][sort] for sort in HELDOUT_SORTS) > found["heldout"].total() / 2


def test_the_models_own_worlds_keep_to_their_split() -> None:
    for depiction in several("train"):
        if isinstance(depiction, Sign):
            assert not is_heldout_text(depiction.text)
        elif isinstance(depiction, Scene):
            assert not {(item.shape, item.color) for item in depiction.objects} & HELDOUT_PAIRS
    with pytest.raises(ValueError, match="split"):
        random_elsewhere(random.Random(0), "test")


@pytest.mark.parametrize("sort", [*SORTS, *HELDOUT_SORTS])
def test_a_strange_picture_is_the_same_each_time_and_in_each_size(sort: str) -> None:
    strange = Strange(448, 448, sort, seed=9)
    small, large = training_picture(strange, random.Random(1), 224), draw(strange, random.Random(1))
    assert (small.mode, small.size, large.size) == ("RGB", (224, 224), (448, 448))
    assert small.tobytes() == training_picture(strange, random.Random(1), 224).tobytes()
    other = training_picture(Strange(448, 448, sort, seed=10), random.Random(1), 224)
    assert small.tobytes() != other.tobytes()
    if sort != "noise":  # which averages away
        once, twice = (np.asarray(picture.resize((16, 16)), np.float32) for picture in (small, large))
        assert np.abs(once - twice).mean() < 6


def test_nothing_lies_in_a_strange_picture() -> None:
    for depiction in several("train", 30):
        known = labels(depiction)
        assert isinstance(depiction, Strange) is not any(part.any() for part in vars(known).values())


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_each_question_has_the_one_honest_answer(split: str) -> None:
    rng = random.Random(2)
    strange_questions = set(PHRASINGS if split == "train" else HELDOUT_PHRASINGS)
    answers = {"strange_picture": NOTHING_KNOWN, "strange_question": NOT_ASKED_FOR}
    found: Counter[str] = Counter()
    for depiction in several(split, 60):
        asked = ask(depiction, rng, split, 8)
        assert 1 <= len(asked) <= 4
        strange = isinstance(depiction, Strange)
        assert {q.kind for q in asked} <= ({"strange_picture"} if strange else {"strange_question", "not_shown"})
        assert all(q.answer == answers.get(q.kind, NOT_SHOWN.replace("{thing}", q.key)) for q in asked)
        assert all(is_right(q.kind, q.key, q.answer) for q in asked)
        assert ask(depiction, rng, split, 8, ("strange_question" if strange else "strange_picture",)) == []
        if strange:
            assert not {q.question for q in asked} & strange_questions
        found.update(q.kind for q in asked)
    assert set(found) == set(KINDS)
    assert not set(PHRASINGS) & set(HELDOUT_PHRASINGS)


def test_what_is_strange_is_put_in_many_ways_and_never_as_it_is_held_out() -> None:
    rng, seen = random.Random(3), set()
    for depiction in several("train", 60):
        seen |= {q.question for _ in range(20) for q in ask(depiction, rng, "train", 4, ("strange_question",))}
    assert len(seen) > 500
    heldout = [re.sub(r"[^a-z ]", "", question.lower()) for question in HELDOUT_PHRASINGS]
    assert not [q for q in seen if any(text in re.sub(r"[^a-z ]", "", q.lower()) for text in heldout)]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_what_is_asked_about_and_not_shown_belongs_to_another_sort_of_picture(split: str) -> None:
    rng = random.Random(3)
    own = {Scene: ["circle", "triangle", "star", "heart"], Sign: ["sign"], Chart: ["bar chart"]}
    keys: set[str] = set()
    for depiction in several(split, 80):
        for question in ask(depiction, rng, split, 4, ("not_shown",)):
            assert not any(question.key.endswith(thing) for thing in own[type(depiction)]), question
            words = question.key.split()
            if split == "train" and len(words) == 2 and words[0] in COLORS:
                assert not is_heldout_pair(words[1], words[0])
            keys.add(words[-1])
    assert keys == {"circle", "triangle", "star", "heart", "sign", "chart"}


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (NOTHING_KNOWN, True),
        (f" {NOTHING_KNOWN.lower()}\n", True),
        (NOT_ASKED_FOR, False),
        (f"{NOTHING_KNOWN} There is a circle.", False),
        ("There are two circles.", False),
        ("", False),
    ],
)
def test_anything_more_is_made_up(answer: str, right: bool) -> None:
    assert is_right("strange_picture", NOTHING_KNOWN, answer) is right
    assert WORLDS["elsewhere"].is_right("strange_picture", NOTHING_KNOWN, answer) is right


def test_that_something_is_not_shown_is_said_of_that_thing_alone() -> None:
    assert is_right("not_shown", "sign", "There is no sign in the picture.")
    assert not is_right("not_shown", "sign", "There is no star in the picture.")
    assert not is_right("not_shown", "sign", 'The sign says "Tea".')


def test_the_world_is_reached_by_its_name() -> None:
    world = WORLDS["elsewhere"]
    assert world.kinds == KINDS
    with pytest.raises(ValueError, match="kind"):
        world.is_right("where", "a", "a")
