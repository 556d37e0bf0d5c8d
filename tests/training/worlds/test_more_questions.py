"""Further questions about scenes: true to the scene, plain, and judged strictly."""

import random
from collections import Counter
from itertools import pairwise

import pytest

from training.drawing.colors import COLORS, UNNAMED
from training.drawing.geometry import SHAPES
from training.worlds.registry import WORLDS
from training.worlds.scenes.more_questions import HELDOUT_PHRASINGS, KINDS, PHRASINGS, QUESTIONS
from training.worlds.scenes.questions import NUMBERS
from training.worlds.scenes.scenes import HELDOUT_PAIRS, random_scene

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right


def asked(kind: str, split: str, number: int = 60) -> list:
    rng = random.Random(f"{kind}/{split}")
    found: list = []
    while len(found) < number:
        scene = random_scene(rng, split)
        found += [(scene, question) for question in ask(scene, rng, split, 1, (kind,))]
    return found


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_right_and_another_scenes_answer_hardly_ever(kind: str, split: str) -> None:
    questions = [question for _, question in asked(kind, split)]
    assert all(is_right(kind, q.key, q.answer) for q in questions)
    others = [is_right(kind, q.key, other.answer) for q, other in pairwise(questions)]
    assert sum(others) <= (0.75 if kind in ("side", "count_both") else 0.2) * len(others)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_questions_are_true_to_the_scene(split: str) -> None:
    for scene, q in asked("count_both", split):
        names = Counter(f"{item.color} {item.shape}" for item in scene.objects)
        name = next(f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" in q.answer)
        assert NUMBERS[names[name]] == q.key
    for kind, best in (("largest", max), ("smallest", min)):
        for scene, q in asked(kind, split, 20):
            item = best(scene.objects, key=lambda item: item.size)
            assert q.key == f"{item.color} {item.shape}"
            rest = sorted(other.size for other in scene.objects if other is not item)
            assert item.size >= 1.3 * rest[-1] if best is max else 1.3 * item.size <= rest[0]
    for scene, q in asked("describe", split):
        assert sorted(q.key.split(", ")) == sorted(f"{item.color} {item.shape}" for item in scene.objects)
        rows = [int(3 * item.y / scene.height) for name in q.key.split(", ") for item in scene.objects
                if name == f"{item.color} {item.shape}" and q.key.count(name) == 1]  # fmt: skip
        assert rows == sorted(rows)
    for scene, q in asked("absent", split):
        *color, shape = q.key.split()
        assert not any(item.shape == shape and color in ([], [item.color]) for item in scene.objects)
        assert q.answer == f"There is no {q.key} in the picture."


def test_sides_are_plain_and_as_often_yes_as_no() -> None:
    questions = asked("side", "train", 300)
    for scene, q in questions:
        one, other = (
            next(item for item in scene.objects if f"{item.color} {item.shape}" == name)
            for name in _named_in_order(q.answer)
        )
        across, down = (one.x - other.x) / scene.width, (one.y - other.y) / scene.height
        true = {"left of": across < -0.1, "right of": across > 0.1, "above": down < -0.1, "below": down > 0.1}
        side = next(side for side in true if side in q.answer)
        assert true[side] is (q.key == "yes")
        assert abs(across if side.endswith("of") else down) >= 0.1
    assert 0.4 < sum(q.key == "yes" for _, q in questions) / len(questions) < 0.6


def test_sides_are_asked_of_several_pairs() -> None:
    rng = random.Random(1)
    counts = {len(ask(random_scene(rng, "train"), rng, "train", 8, ("side",))) for _ in range(60)}
    assert max(counts) == 3


def _named_in_order(answer: str) -> list[str]:
    names = {answer.find(f"{c} {s}"): f"{c} {s}" for c in COLORS for s in SHAPES if f"{c} {s}" in answer}
    return [names[place] for place in sorted(names)]


def test_training_never_says_a_heldout_pair() -> None:
    pairs = [f"{color} {shape}" for shape, color in HELDOUT_PAIRS]
    for kind in KINDS:
        for _, q in asked(kind, "train"):
            assert not any(pair in f"{q.question} {q.answer}".lower().replace("grey", "gray") for pair in pairs)


def test_nothing_is_asked_where_colors_have_no_name() -> None:
    rng = random.Random(3)
    scenes = [random_scene(rng, unnamed=1.0) for _ in range(30)]
    unnamed = [scene for scene in scenes if any(item.color == UNNAMED for item in scene.objects)]
    assert unnamed
    assert not any(ask(scene, rng, "train", 4) for scene in unnamed)


def test_phrasings_are_many_and_split() -> None:
    for kind in KINDS:
        assert len(PHRASINGS[kind]) >= 12
        assert len(HELDOUT_PHRASINGS[kind]) >= 3
        assert not set(PHRASINGS[kind]) & set(HELDOUT_PHRASINGS[kind])


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("count_both", "two", "There are 2 red circles.", True),
        ("count_both", "two", "There are two or three red circles.", False),
        ("count_both", "no", "There are no red circles.", True),
        ("side", "yes", "Yes, the red star is above the blue heart.", True),
        ("side", "no", "No, the red star is not above the blue heart.", True),
        ("side", "yes", "No, the red star is not above the blue heart.", False),
        ("largest", "red circle", "The largest is the red circle.", True),
        ("largest", "red circle", "The largest is the red square.", False),
        ("largest", "red circle", "The red circle and the blue star.", False),
        ("smallest", "gray star", "The smallest is the grey star.", True),
        ("describe", "red circle, blue star", "A red circle and a blue star.", True),
        ("describe", "red circle, blue star", "A blue star and a red circle.", False),
        ("describe", "red circle, blue star", "A red circle.", False),
        ("absent", "star", "There is no star in the picture.", True),
        ("absent", "red star", "There is no star in the picture.", False),
        ("absent", "star", "The star is red.", False),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool) -> None:
    assert is_right(kind, key, answer) is right
    assert WORLDS["scenes"].is_right(kind, key, answer) is right


def test_scenes_ask_old_and_further_kinds_and_only_the_old_are_shipped() -> None:
    scenes, rng = WORLDS["scenes"], random.Random(8)
    kinds = Counter(
        question.kind for _ in range(60) for question in scenes.ask(scenes.imagine(rng, "train"), rng, "train", 8)
    )
    assert set(kinds) == set(scenes.kinds)
    further = sum(kinds[kind] for kind in KINDS) / kinds.total()
    assert 0.2 < further < 0.5
    for split in ("train ", ""):
        with pytest.raises(ValueError, match="split"):
            ask(random_scene(rng), rng, split)
    with pytest.raises(ValueError, match="kind"):
        is_right("count", "two", "two")


def test_training_scenes_often_have_a_plainly_largest_or_smallest_shape_and_heldout_ones_by_chance() -> None:
    def share(split: str) -> float:
        rng = random.Random(split)
        scenes = [WORLDS["scenes"].imagine(rng, split) for _ in range(200)]
        return sum(bool(ask(scene, rng, split, kinds=("largest", "smallest"))) for scene in scenes) / len(scenes)

    assert share("train") > 0.4 > share("heldout") > 0.1


def test_of_a_scene_with_many_sides_sizes_are_asked_as_well() -> None:
    """Kinds with many targets do not crowd out those that have one."""
    rng, kinds = random.Random(4), Counter[str]()
    while kinds.total() < 300:
        scene = WORLDS["scenes"].imagine(rng, "train")
        if ask(scene, rng, kinds=("largest",)):
            kinds.update(q.kind for q in ask(scene, rng, num=3, apart=True))
    assert kinds["largest"] > 0.12 * kinds.total()
    assert kinds["side"] > 0.12 * kinds.total()
