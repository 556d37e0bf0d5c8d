"""Questions about two pictures: which has more, whether they are the same, what one shows, what only one shows."""

import random
import re
from collections import Counter

from training.drawing.colors import COLORS
from training.drawing.geometry import SHAPES
from training.language import written_phrasings
from training.language.asking import Question, QuestionKinds, Target, of_split, put
from training.language.wordings import indirect, named, ordered, straight, widened_kinds
from training.worlds.pairs.pairs import Pair, names
from training.worlds.scenes.more_questions import called, in_reading_order, listed, pairs_said
from training.worlds.scenes.questions import QUESTIONS as QUESTIONS_OF_ONE
from training.worlds.scenes.questions import plural, said_yes_or_no
from training.worlds.scenes.topics import TOPICS, Subject, subjects, target

KINDS = ("which_more", "same", "only_in", "on_first", "on_second", "in_one")
PHRASINGS = written_phrasings.in_one_form(written_phrasings.TRAINED, KINDS[:-1])
HELDOUT_PHRASINGS = written_phrasings.in_one_form(written_phrasings.HELDOUT, KINDS[:-1])
IN_ONE = written_phrasings.about_one_of_two(written_phrasings.TRAINED)
IN_ONE_HELDOUT = written_phrasings.about_one_of_two(written_phrasings.HELDOUT)
ORDINALS = ("first", "second")
NOTHING = "nothing"
MORE = {"first": "The first picture.", "second": "The second picture.", "both": "Both have as many."}
_KEYS = {"first": 0.4, "second": 0.4, "both": 0.2}  # weights of the answers
_KEPT_ALIKE = 0.25  # of the pairs with equal counts are asked which has more
_KEPT_DIFFERENT = 0.45  # of the pairs that differ, which are most, are asked whether they do
_KEPT_NOTHING = 0.4  # of the pictures that have nothing of their own are asked about it
_KIND_WEIGHTS = {"which_more": 1.5, "same": 1.5, "only_in": 1.5, "in_one": 1.5}

_BOTH = "(the|the two|both|these|these two|the first and the second) pictures"
_SHOW = "(show|have|hold|contain) (the same|the same shapes|the same things|the same objects)"
_ALL = "(shapes|objects|things)"
_NOT_IN_OTHER = (
    "(only in the {which} picture|only on the {which} picture|in the {which} picture only|in the {which} picture alone"
    "|in the {which} picture but not in the other|in the {which} picture and not in the other"
    "|in the {which} picture and missing in the other)"
)

_COMPOSED: dict[str, tuple[str, ...]] = {
    "which_more": (
        *straight(
            "which (picture|one|image|one of the pictures) (has|shows|holds|contains) (more|the more|the most) {many}",
            "which of (the|the two|both|these|these two) (pictures|images) (has|shows|holds) (more|the most) {many}",
            "(in|on) which (picture|one|of the pictures) (are there|do you see|can you see|do you find) more {many}",
            "(are there|do you see) more {many} (in|on) the first or (in|on) the second picture",
            "does the first or the second picture (have|show|hold) more {many}",
            "where (are|do you find|can you see) more {many}",
        ),
        *indirect(
            "which (picture|one|of the pictures|of the two pictures) (has|shows) more {many}",
            "in which picture there are more {many}",
        ),
    ),
    "same": (
        *straight(
            f"do {_BOTH} {_SHOW}",
            "do (they|both) (show|have|hold) (the same|the same shapes|the same things|the same objects)",
            f"does the second picture (show|have|hold) the same (|{_ALL}) as the first (|one)",
            "(is|are) the same (shown|shapes|things|objects) (in|on) both (|pictures)",
            f"are the {_ALL} (in|on) {_BOTH} the same", f"are the {_ALL} the same in both (|pictures)",
            "is what they show the same",
        ),
        *indirect(
            f"(if|whether) {_BOTH} {_SHOW}", "(if|whether) (they|both) show the same (|shapes|things)",
            f"(if|whether) the {_ALL} are the same in both",
        ),
    ),
    "only_in": (
        *straight(
            f"what (is|do you see|can you see|is there|is shown) {_NOT_IN_OTHER}",
            f"(what|which) {_ALL} (are|do you see|can you see|are there|are shown) {_NOT_IN_OTHER}",
            f"(what|which {_ALL}) does only the {{which}} picture (show|have|hold)",
            f"(what|which) {_ALL} does the {{which}} picture have that the other does not",
            "what does the {which} picture (have|show|hold) that the other (has not|does not|lacks|doesn't)",
            "what is missing in the other picture that the {which} has",
        ),
        *indirect(
            f"what is {_NOT_IN_OTHER}", f"(what|which) {_ALL} are {_NOT_IN_OTHER}",
            "what only the {which} picture (shows|has)",
        ),
        *ordered(f"(list|name) (the {_ALL}|what is|all that is) {_NOT_IN_OTHER}"),
    ),
    **dict.fromkeys(
        ("on_first", "on_second"),
        (
            *straight(
                "what (is|is there|do you see|can you see|is shown) (in|on) the {which} (picture|one|image)",
                f"(what|which) {_ALL} (are|are there|do you see|are shown) (in|on) the {{which}} (picture|one)",
                f"(what|which) {_ALL} does the {{which}} picture (show|have|hold)",
                "what does the {which} (picture|one) (show|contain|hold)",
            ),
            *indirect(
                "what (is in|is on|you see in|you see on) the {which} picture", "what the {which} (picture|one) shows",
                f"which {_ALL} are in the {{which}} picture",
            ),
            *named("the shapes (in|on) the {which} picture"),
            *ordered(
                "describe the {which} (picture|one)",
                f"(list|name) (the|all|all the) {_ALL} (in|on) the {{which}} picture",
            ),
        ),
    ),
}  # fmt: skip

TRAINED = widened_kinds(PHRASINGS, _COMPOSED)
"""What training asks with."""


def _targets(kind: str, pair: Pair, rng: random.Random, _split: str) -> list[Target]:
    if kind == "which_more":
        return _which_more(pair, rng)
    if kind == "same":
        if names(pair.first) == names(pair.second):
            return [Target((), "Yes, both show the same shapes.", "yes", alike=2)]
        differ = Target((), "No, they show different shapes.", "no", alike=2)
        return [differ] if rng.random() < _KEPT_DIFFERENT else []
    if kind == "only_in":
        return _only_in(pair, rng)
    which = kind.removeprefix("on_")
    in_order = in_reading_order(pair.scenes[ORDINALS.index(which)])
    if not in_order:
        return []
    answer = f"The {which} picture shows {listed(in_order)}."
    return [Target((("which", which),), answer, ", ".join(in_order))]


def _only_in(pair: Pair, rng: random.Random) -> list[Target]:
    """What each picture has more of than the other; sometimes that it has nothing more."""
    found = []
    for number, which in enumerate(ORDINALS):
        left = Counter(called(item) for item in pair.scenes[1 - number].objects)
        shown, own = in_reading_order(pair.scenes[number]), []
        for name in shown:
            left[name] -= 1
            own += [name] * (left[name] < 0)
        slots = (("which", which),)
        if own:
            found.append(Target(slots, f"Only the {which} picture shows {listed(own)}.", ", ".join(own)))
        elif shown and rng.random() < _KEPT_NOTHING:
            found.append(Target(slots, f"The {which} picture shows nothing else.", NOTHING))
    return found


def _which_more(pair: Pair, rng: random.Random) -> list[Target]:
    """Up to three subjects that at least one picture has."""
    by_key: dict[str, list[Subject]] = {}
    for subject in (Subject(), *(Subject(shape=s) for s in SHAPES), *(Subject(color=c) for c in COLORS)):
        first, second = (len(subject.meant(scene)) for scene in pair.scenes)
        if first or second:
            key = "both" if first == second else "first" if first > second else "second"
            by_key.setdefault(key, []).append(subject)
    if set(by_key) == {"both"} and rng.random() >= _KEPT_ALIKE:
        return []
    found = []
    for _ in range(3):
        if by_key:
            key = rng.choices(tuple(by_key), [_KEYS[key] for key in by_key])[0]
            subject = by_key[key].pop(rng.randrange(len(by_key[key])))
            found.append(Target((("many", plural(subject.noun)),), MORE[key], key))
            by_key = {key: left for key, left in by_key.items() if left}
    return found


def _in_one(pair: Pair, rng: random.Random, split: str) -> list[Question]:
    """A question about one of the pictures, as if the other were not there."""
    topic, number = rng.choice(TOPICS), rng.randrange(2)
    for subject in subjects(topic, pair.scenes[number], rng):
        if (found := about_one(topic, subject, pair, number, rng, split)) is not None:
            return [found]
    return []


def about_one(topic: str, subject: Subject, pair: Pair, number: int, rng: random.Random, split: str) -> Question | None:
    """A topic's question about the subject in picture `number`; None if it has no answer."""
    found = target(topic, subject, pair.scenes[number])
    if found is None:
        return None
    asked = Target((*found.slots, ("which", ORDINALS[number])), found.answer, found.key, unseen=found.unseen)
    (question,) = put("in_one", [asked], of_split(split, IN_ONE, IN_ONE_HELDOUT)[topic], rng, apart=False)
    return Question(question.kind, question.question, question.answer, f"{topic} {question.key}", question.unseen)


def _says(kind: str, key: str, answer: str) -> bool:
    """Whether `answer` says `key`; lists may be in any order.

    "only_in" may have the key NOTHING. The key of "in_one" begins with its kind of question about one scene.
    """
    if kind == "in_one":
        asked, said = key.split(" ", 1)
        return QUESTIONS_OF_ONE.is_right(asked, said, answer)
    if kind == "same":
        return said_yes_or_no(answer) == {key}
    if kind == "which_more":
        words = re.findall(r"[a-z]+", answer.lower())
        return {word for word in (*ORDINALS, "both") if word in words} == {key}
    if kind == "only_in" and key == NOTHING:
        return NOTHING in answer.lower() and not pairs_said(answer)
    return Counter(pairs_said(answer)) == Counter(key.split(", "))


class _OfPairs(QuestionKinds[Pair]):
    def of_kind(self, kind: str, depiction: Pair, rng: random.Random, split: str, apart: bool) -> list[Question]:
        if kind != "in_one":
            return super().of_kind(kind, depiction, rng, split, apart)
        return [question for _ in range(3 if apart else 2) for question in _in_one(depiction, rng, split)]


QUESTIONS = _OfPairs(KINDS, _says, _targets, TRAINED, HELDOUT_PHRASINGS, _KIND_WEIGHTS)
