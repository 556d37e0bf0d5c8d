"""Further questions about scenes: shape and color together, sides, sizes, all objects, and absent ones.

Each kind lists its targets, as in questions.py.
"""

import random
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise, permutations

from training.drawing.colors import COLORS, UNNAMED
from training.drawing.geometry import SHAPES
from training.language import written_phrasings
from training.language.asking import QuestionKinds, Target
from training.language.wordings import colored, counted, indirect, located, named, ordered, straight, widened_kinds
from training.worlds.scenes.questions import NUMBERS, article, plural, said_numbers, said_yes_or_no, there_are
from training.worlds.scenes.scenes import Scene, SceneObject, possible_pairs

_PLAINLY_LARGER = 1.3  # ratio of sizes; below it, no question about the largest or smallest
_PLAINLY_BESIDE = 0.1  # of a side: the least distance of two centres
_MOST_SIDES = 3  # questions about one scene: comparing two places takes many examples
_ROWS = 3  # a description goes row by row
_ROW_MARGIN = 0.03  # of the height: nearer to a border between rows, the order is ambiguous
_KEPT_ONES = 0.4  # share of the questions about single objects, the most common ones
_ZERO_SHARE = 0.1  # of the counts are of an absent pair
_ABSENT = "There is no {noun} in the picture."

_SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}  # axis and direction

_ANY = "(shape|object|thing|figure)"
_ALL = "(shapes|objects|things|figures)"
_IN = "(|in the picture|in this picture|here|that you see)"


def _extremely(adjective: str) -> tuple[str, ...]:
    """Asks for the extreme one; the adjective is a pattern."""
    return (
        *straight(
            f"(what|which) {_ANY} is (the|) {adjective}", f"(what|which) {_ANY} is the {adjective} (one|of all|here)",
            f"(which is|what is) the {adjective} of (all|all the|the|these) {_ALL}",
            f"which (one|) is the {adjective} {_ANY}",
            f"which of (the|these|all|all the|those) {_ALL} is (the|) {adjective}",
            f"which (of them|one|one of them) is (the|) {adjective}",
            f"(what|which) {_ANY} do you (think|find) is the {adjective}",
        ),
        *indirect(
            f"(what|which) {_ANY} is (the|) {adjective}", f"which of the {_ALL} is the {adjective}",
            f"what the {adjective} {_ANY} is",
        ),
        *named(f"the {adjective} {_ANY} {_IN}", f"the {adjective} (one|of all {_ALL}|of the {_ALL})"),
    )  # fmt: skip


_COMPOSED: dict[str, tuple[str, ...]] = {
    "count_both": counted("{many}"),
    "side": (
        *straight(
            "(is|lies|stands) the {one} (|somewhere|anywhere) {side} the {other} (|in the picture|in this picture)",
            "(does|would) the {one} (lie|stand|sit|appear) {side} the {other}",
            "(do|can) you (see|find) the {one} {side} the {other} (|in the picture|here)",
            "is the {one} (lying|placed|drawn|shown|located|seen) {side} the {other}",
            "(do you think|would you say|is it so|is it right|is it true) that the {one} is {side} the {other}",
            "is it {side} the {other} that the {one} (is|lies)", "is {side} the {other} where the {one} (is|lies)",
        ),
        *indirect("(if|whether) the {one} (is|lies|is located) {side} the {other} (|in the picture)"),
    ),
    "largest": _extremely("(largest|biggest)"),
    "smallest": _extremely("(smallest|tiniest|littlest)"),
    "describe": (
        *straight(
            "what (is|is there|do you see|can you see|is shown|is drawn|is visible) (in|on) (the|this) picture",
            f"(what|which) {_ALL} (are there|do you see|can you see|do you find|are shown|are visible|are here)",
            f"(what|which) {_ALL} (are there|do you see|can you see|are shown|are) (in|on) this picture",
            f"(what|which) {_ALL} does (the|this) picture (show|have|hold|contain)",
            "what does (the|this) picture (show|contain|hold|depict)", "what (do|can) you see (|here)",
            "what (is|is there|can be seen) here", "what (can be|is to be) seen (|in the picture|in this picture)",
        ),
        *indirect(
            "what (you see|the picture shows|is in the picture|is on the picture|there is|is shown|is here)",
            "what (is shown|there is|you see|you can see) in the picture",
            f"(what|which) {_ALL} (there are|you see|you can see|you find|the picture shows|are shown)",
        ),
        *ordered(
            "describe (the|this) picture", "describe (what you see|all you see|everything|what is there|it)",
            f"(list|name|describe) (all|the|all the|all of the) {_ALL} {_IN}",
            "(list|name) (everything|all) (you see|that you can see|in the picture)",
            "give (me|) a description (|of the picture|of this picture)",
        ),
    ),
    "absent": (
        *colored("the {noun}"),
        *located("the {noun}"),
        *straight(
            "how (large|big|small) is the {noun} (|in the picture)",
            "what is (beside|next to|near|above|below) the {noun}",
            "is the {noun} (large|small|big|on the left|on the right|at the top|at the bottom|in the center)",
        ),
        *ordered("describe the {noun}"),
    ),
}  # fmt: skip

PHRASINGS = written_phrasings.in_one_form(written_phrasings.TRAINED, _COMPOSED)
HELDOUT_PHRASINGS = written_phrasings.in_one_form(written_phrasings.HELDOUT, _COMPOSED)
TRAINED = widened_kinds(PHRASINGS, _COMPOSED)
"""What training asks with."""


def _targets(kind: str, scene: Scene, rng: random.Random, split: str) -> list[Target]:
    """No targets if a color is unnamed: its object could be meant by another color's name."""
    return [] if any(item.color == UNNAMED for item in scene.objects) else _KINDS[kind](scene, rng, split)


def _says(kind: str, key: str, answer: str) -> bool:
    words = _words(answer)
    if kind == "count_both":
        return said_numbers(answer) == {key}
    if kind == "side":
        return said_yes_or_no(answer) == {key}
    if kind == "absent":
        return "no" in words and all(part in words for part in key.split())
    return pairs_said(answer) == key.split(", ")


def _words(answer: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", answer.lower().replace("grey", "gray").replace("n't", " not"))


def pairs_said(answer: str) -> list[str]:
    """All pairs "color shape" in an answer, in order."""
    words = _words(answer)
    singular = {form: shape for shape in SHAPES for form in (shape, plural(shape))}
    return [f"{a} {singular[b]}" for a, b in pairwise(words) if a in COLORS and b in singular]


def called(item: SceneObject) -> str:
    """Its color and shape."""
    return f"{item.color} {item.shape}"


def _count_both(scene: Scene, rng: random.Random, split: str) -> list[Target]:
    present = Counter(called(item) for item in scene.objects)
    if rng.random() < _ZERO_SHARE:
        color, shape = rng.choice(COLORS), rng.choice(SHAPES)
        asked = (shape, color) in possible_pairs(split) and f"{color} {shape}" not in present
        return [_number(f"{color} {shape}", 0)] if asked else []
    name, count = rng.choice(sorted(present.items()))
    return [_number(name, count)] if count > 1 or rng.random() < _KEPT_ONES else []


def _number(name: str, count: int) -> Target:
    return Target((("many", plural(name)),), there_are(count, name, plural(name)), NUMBERS[count])


def _single(scene: Scene) -> list[SceneObject]:
    """Objects with a unique pair of color and shape."""
    present = Counter(called(item) for item in scene.objects)
    return [item for item in scene.objects if present[called(item)] == 1]


def _side(scene: Scene, rng: random.Random, _split: str) -> list[Target]:
    """The side on which one object lies of another, for up to _MOST_SIDES pairs; yes as often as no."""
    named = _single(scene)
    pairs = list(permutations(named, 2))
    chosen = rng.sample(pairs, min(_MOST_SIDES, len(pairs)))
    return [target for one, other in chosen if (target := _beside(scene, one, other, rng)) is not None]


def _beside(scene: Scene, one: SceneObject, other: SceneObject, rng: random.Random) -> Target | None:
    """Whether one lies left of, right of, above or below the other; None if ambiguous."""
    apart = ((one.x - other.x) / scene.width, (one.y - other.y) / scene.height)
    wanted = rng.random() < 0.5
    plain = [
        side
        for side, (axis, direction) in _SIDES.items()
        if abs(apart[axis]) >= _PLAINLY_BESIDE and (apart[axis] * direction > 0) == wanted
    ]
    if not plain:
        return None
    side, word = rng.choice(plain), "Yes" if wanted else "No"
    slots = (("one", called(one)), ("other", called(other)), ("side", side))
    said = f"{word}, the {called(one)} is {'' if wanted else 'not '}{side} the {called(other)}."
    return Target(slots, said, word.lower())


def _extreme(scene: Scene, word: str, direction: int) -> list[Target]:
    """The first by size times direction, if it is plainly the first and no other looks like it."""
    first, *others = sorted(scene.objects, key=lambda item: direction * item.size)
    if not others or first not in _single(scene):
        return []
    smaller, larger = sorted((first.size, others[0].size))
    if larger < _PLAINLY_LARGER * smaller:
        return []
    return [Target((), f"The {word} is the {called(first)}.", called(first), alike=2)]


def _describe(scene: Scene, _rng: random.Random, _split: str) -> list[Target]:
    names = in_reading_order(scene)
    return [Target((), f"The picture shows {listed(names)}.", ", ".join(names))] if names else []


def in_reading_order(scene: Scene) -> list[str]:
    """All objects as "color shape", row by row; none if an object's row is ambiguous."""
    shares = [_ROWS * item.y / scene.height for item in scene.objects]
    if any(abs(share - border) < _ROWS * _ROW_MARGIN for share in shares for border in range(1, _ROWS)):
        return []
    in_order = sorted(scene.objects, key=lambda item: (int(_ROWS * item.y / scene.height), item.x))
    return [called(item) for item in in_order]


def listed(names: list[str]) -> str:
    """ "a red circle, a blue star and a green heart"."""
    *most, last = [article(name) for name in names]
    return f"{', '.join(most)} and {last}" if most else last


def _absent(scene: Scene, rng: random.Random, split: str) -> list[Target]:
    """A question that presumes an absent thing, mostly one whose color or shape is there."""
    shapes, colors = {item.shape for item in scene.objects}, {item.color for item in scene.objects}
    lacking = [shape for shape in SHAPES if shape not in shapes]
    if lacking and rng.random() < 0.4:
        noun = rng.choice(lacking)
    else:
        present = {(item.shape, item.color) for item in scene.objects}
        pairs = [pair for pair in possible_pairs(split) if pair not in present]
        close = [(s, c) for s, c in pairs if s in shapes or c in colors]
        shape, color = rng.choice(close if close and rng.random() < 0.7 else pairs)
        noun = f"{color} {shape}"
    return [Target((("noun", noun),), _ABSENT.replace("{noun}", noun), noun)]


_KINDS: dict[str, Callable[[Scene, random.Random, str], list[Target]]] = {
    "count_both": _count_both,
    "side": _side,
    "largest": lambda scene, *_: _extreme(scene, "largest", -1),
    "smallest": lambda scene, *_: _extreme(scene, "smallest", 1),
    "describe": _describe,
    "absent": _absent,
}
KINDS = tuple(_KINDS)
_KIND_WEIGHTS = {"side": 1.2, "describe": 0.8, "absent": 0.7}
QUESTIONS = QuestionKinds(KINDS, _says, _targets, TRAINED, HELDOUT_PHRASINGS, _KIND_WEIGHTS)
