"""Questions about scenes with their answers, and when an answer is right.

To add a kind: a function that lists its targets, an entry in `_KINDS`, phrasings in phrasings.py.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from training.drawing.colors import COLORS, UNNAMED
from training.drawing.geometry import SHAPES
from training.language.asking import Question, QuestionKinds, Target, fill, loosely, of_split
from training.worlds.scenes.phrasings import HELDOUT_PHRASINGS, TRAINED
from training.worlds.scenes.scenes import HELDOUT_PAIRS, Scene, SceneObject, possible_pairs

PLACES = (
    "top left", "top center", "top right", "center left", "center", "center right", "bottom left", "bottom center",
    "bottom right",
)  # fmt: skip
NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
LARGER_NUMBERS = ("seven", "eight", "nine", "ten")
_PLACE_MARGIN = 0.03  # of a side: nearer to a border between cells, no question asks where
_ZERO_SHARE = 0.07  # of the scenes are asked for the count of an absent shape or color
_SHARED_COLOR_SHARE = 0.2  # of the color questions are about several objects of one color


def said_colors(answer: str) -> set[str]:
    """The colors in an answer."""
    return _said("color", answer)


def said_numbers(answer: str) -> set[str]:
    """The counts in an answer, as words; "no" is none."""
    return _said("count", answer)


def said_yes_or_no(answer: str) -> set[str]:
    """ "yes", "no", both or neither."""
    return _said("is_there", answer)


def _says(kind: str, key: str, answer: str) -> bool:
    """Numbers count as words or digits."""
    return _said(kind, answer) == {key}


def _said(kind: str, answer: str) -> set[str]:
    """The colors, shapes, numbers, places, or yes and no in an answer."""
    words = re.findall(r"[a-z]+|\d+", answer.lower().replace("n't", " not"))
    if kind == "where":
        return {place} if (place := _place_in(words)) else set()
    vocabulary = _SYNONYMS["count" if kind.startswith("count") else kind]
    return {vocabulary[word] for word in words if word in vocabulary}


def _place_in(words: list[str]) -> str | None:
    """The cell that words like "upper left" or "in the middle" mean; None if none or several."""
    downs = {_DOWN[word] for word in words if word in _DOWN}
    acrosses = {word for word in words if word in ("left", "right")}
    if len(downs) > 1 or len(acrosses) > 1:
        return None
    middle = any(word in ("center", "centre", "middle", "central") for word in words)
    if not downs and not acrosses:
        return "center" if middle else None
    return f"{(*downs, 'center')[0]} {(*acrosses, 'center')[0]}"


# Targets of each kind.


def _count_shape(scene: Scene, rng: random.Random, _split: str) -> list[Target]:
    present = Counter(item.shape for item in scene.objects)
    return [_count(number, shape, plural(shape)) for shape, number in _counted(present, SHAPES, rng)]


def _count_color(scene: Scene, rng: random.Random, _split: str) -> list[Target]:
    if _has_unnamed(scene):
        return []
    present = Counter(item.color for item in scene.objects)
    return [
        _count(number, f"{color} shape", f"{color} shapes", color) for color, number in _counted(present, COLORS, rng)
    ]


def _counted(present: Counter, names: tuple[str, ...], rng: random.Random) -> list[tuple[str, int]]:
    """Names with their counts, small counts less often; sometimes an absent one."""
    absent = [name for name in names if name not in present]
    if absent and rng.random() < _ZERO_SHARE:
        return [(rng.choice(absent), 0)]
    return [(name, count) for name, count in present.items() if rng.random() < _KEPT_COUNTS[count]]


def _count(number: int, one: str, many: str, color: str | None = None) -> Target:
    words = (("color", color),) if color else (("shapes", many), ("shape", one))
    return Target(words, there_are(number, one, many), NUMBERS[number])


def there_are(number: int, one: str, many: str) -> str:
    """The answer to how many there are."""
    verb, noun = ("is", one) if number == 1 else ("are", many)
    return f"There {verb} {NUMBERS[number]} {noun}."


def _color(scene: Scene, rng: random.Random, _split: str) -> list[Target]:
    if len(scene.objects) == 1 and scene.objects[0].color != UNNAMED and rng.random() < 0.3:
        color = scene.objects[0].color
        noun = rng.choice(_THINGS)
        return [Target((("shape", noun),), f"The shape is {color}.", color)]
    found = []
    for shape, items in _by(scene, "shape").items():
        colors = {item.color for item in items}
        if len(colors) > 1 or UNNAMED in colors:
            continue
        color = colors.pop()
        unseen = tuple(c for s, c in sorted(HELDOUT_PAIRS) if s == shape)
        if len(items) == 1:
            answer = f"The {shape} is {color}."
            found.append(Target((("shape", shape),), answer, color, unseen=unseen))
        elif rng.random() < _SHARED_COLOR_SHARE:
            shapes = plural(shape)
            answer = f"The {shapes} are {color}."
            found.append(Target((("shapes", shapes),), answer, color, "many", unseen=unseen))
    return found


def _shape(scene: Scene, rng: random.Random, _split: str) -> list[Target]:
    unnamed = _has_unnamed(scene)
    if len(scene.objects) == 1 and (unnamed or rng.random() < 0.3):
        shape = scene.objects[0].shape
        return [Target((), f"The shape is {article(shape)}.", shape, "only")]
    found = []
    for color, items in _by(scene, "color").items():
        if len(items) == 1 and not unnamed:
            shape = items[0].shape
            unseen = tuple(s for s, c in sorted(HELDOUT_PAIRS) if c == color)
            answer = f"The {color} shape is {article(shape)}."
            found.append(Target((("color", color),), answer, shape, unseen=unseen))
    return found


def _is_there(scene: Scene, rng: random.Random, split: str) -> list[Target]:
    targets = []
    for form in ("shape",) if _has_unnamed(scene) else ("both", "shape", "color"):
        yes = sorted({_subject(item, form) for item in scene.objects})
        no = _absent_subjects(scene, form, rng, split)
        if yes:
            subject = rng.choice(yes)
            answer = f"Yes, there is {article(subject[0])}."
            targets.append(_is_there_target(subject, answer, "yes", form, rng))
        if no:
            subject = rng.choice(no)
            answer = f"No, there is no {subject[0]}."
            targets.append(_is_there_target(subject, answer, "no", form, rng))
    return targets


def _is_there_target(subject: tuple[str, str], answer: str, key: str, form: str, rng: random.Random) -> Target:
    noun, color = _called(subject[0], rng), subject[1]
    words = (("a_noun", article(noun)), ("nouns", plural(noun)), ("noun", noun), ("color", color))
    return Target(words, answer, key, "color" if form == "color" else "one")


def _subject(item: SceneObject, form: str) -> tuple[str, str]:
    """An object's name by shape and color, by shape or by color; and its color."""
    noun = {"both": f"{item.color} {item.shape}", "shape": item.shape}.get(form)
    return (noun or f"{item.color} shape", item.color)


def _absent_subjects(scene: Scene, form: str, rng: random.Random, split: str) -> list[tuple[str, str]]:
    """Things that are not in the scene; pairs mostly with a shape or color that is."""
    shapes = {item.shape for item in scene.objects}
    colors = {item.color for item in scene.objects}
    if form == "shape":
        return [(shape, "") for shape in SHAPES if shape not in shapes]
    if form == "color":
        return [(f"{color} shape", color) for color in COLORS if color not in colors]
    present = {(item.shape, item.color) for item in scene.objects}
    pairs = [pair for pair in possible_pairs(split) if pair not in present]
    hardness = rng.random()
    if hardness < 0.4:
        close = [(s, c) for s, c in pairs if s in shapes and c in colors]
        pairs = close or [(s, c) for s, c in pairs if s in shapes or c in colors]
    elif hardness < 0.8:
        pairs = [(s, c) for s, c in pairs if (s in shapes) != (c in colors)]
    return [(f"{c} {s}", c) for s, c in pairs]


def _where(scene: Scene, rng: random.Random, _split: str) -> list[Target]:
    subjects: dict[str, list[SceneObject]] = {}
    for item in scene.objects:
        for form in ("shape",) if _has_unnamed(scene) else ("both", "shape", "color"):
            subjects.setdefault(_subject(item, form)[0], []).append(item)
    if len(scene.objects) == 1:
        subjects["shape"] = [scene.objects[0]]
    found = []
    for noun, items in subjects.items():
        place = clear_place(items[0], scene)
        if len(items) == 1 and place is not None:
            answer = f"The {noun} is in the {place}."
            found.append(Target((("noun", _called(noun, rng)),), answer, place))
    return found


def clear_place(item: SceneObject, scene: Scene) -> str | None:
    """The cell of nine with the object's centre; None if it is near a border."""
    cells = []
    for share in (item.y / scene.height, item.x / scene.width):
        if min(abs(share - 1 / 3), abs(share - 2 / 3)) < _PLACE_MARGIN:
            return None
        cells.append(min(2, int(share * 3)))
    return PLACES[3 * cells[0] + cells[1]]


def _has_unnamed(scene: Scene) -> bool:
    """Whether a color is unnamed; then a question that names a color might also mean that shape."""
    return any(item.color == UNNAMED for item in scene.objects)


def _by(scene: Scene, attribute: str) -> dict[str, list[SceneObject]]:
    groups: dict[str, list[SceneObject]] = {}
    for item in scene.objects:
        groups.setdefault(getattr(item, attribute), []).append(item)
    return groups


_KINDS: dict[str, Callable[[Scene, random.Random, str], list[Target]]] = {
    "count_shape": _count_shape,
    "count_color": _count_color,
    "count_all": lambda scene, *_: [_count(len(scene.objects), "shape", "shapes")],
    "color": _color,
    "shape": _shape,
    "is_there": _is_there,
    "where": _where,
}
KINDS = tuple(_KINDS)

# Scenes have few large counts, so some small ones are left out.
_KEPT_COUNTS = (1.0, 0.17, 0.4, 0.8, 1.0, 1.0, 1.0)

# Counts are preferred, because a scene allows few of them.
_KIND_WEIGHTS = {"count_shape": 4.0, "count_color": 4.0, "is_there": 0.6, "where": 0.8}


# Words.


def plural(noun: str) -> str:
    return noun + "s"


def _called(noun: str, rng: random.Random) -> str:
    """ "red shape", but also "red thing" or "red object"; other nouns as they are."""
    stem = noun.removesuffix("shape")
    return noun if stem == noun else stem + rng.choice(_THINGS)


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


_THINGS = ("shape", "shape", "object", "thing")
_DOWN = {"top": "top", "upper": "top", "bottom": "bottom", "lower": "bottom"}
_SYNONYMS: dict[str, dict[str, str]] = {
    "count": {
        **{word: word for word in NUMBERS},
        **{str(number): word for number, word in enumerate((*NUMBERS, *LARGER_NUMBERS))},
        **dict.fromkeys(("zero", "none", "not"), "no"),
        **{word: word for word in LARGER_NUMBERS},
    },
    "color": {**{color: color for color in COLORS}, "grey": "gray"},
    "shape": {form: shape for shape in SHAPES for form in (shape, plural(shape))},
    "is_there": {"yes": "yes", "no": "no", "not": "no"},
}


# Phrasing.


def phrase(kind: str, target: Target, rng: random.Random, by_form: Mapping[str, Sequence[str]]) -> Question:
    """The question about a target, in one of its phrasings."""
    text = fill(rng.choice(by_form[target.form]), target.slots)
    return Question(kind, loosely(text, rng), target.answer, target.key, target.unseen_answers)


class _AboutOne(QuestionKinds[Scene]):
    """Phrasings have forms here, and no target is asked about twice."""

    def asked(
        self, depiction: Scene, rng: random.Random, split: str, num: int, kinds: tuple[str, ...], _apart: bool
    ) -> list[Question]:
        phrasings = of_split(split, self.trained, self.heldout)
        targets = {kind: self.targets(kind, depiction, rng, split) for kind in kinds}
        asked: list[Question] = []
        while len(asked) < num and (left := [kind for kind in targets if targets[kind]]):
            kind = rng.choices(left, [_KIND_WEIGHTS.get(kind, 1.0) for kind in left])[0]
            place = rng.choices(range(len(targets[kind])))[0]
            asked.append(phrase(kind, targets[kind].pop(place), rng, phrasings[kind]))
        return asked


QUESTIONS = _AboutOne(KINDS, _says, lambda kind, *about: _KINDS[kind](*about), TRAINED, HELDOUT_PHRASINGS)
