"""Conversations whose questions depend on the turn before: "And the blue ones?", "Where is it?".

The first question is complete. Each further one changes one thing and keeps the rest: the subject, the topic ("it" is
the one thing that the turn before named), or the picture. If there is only one picture, a question about another one
has one honest answer and ends the conversation.
"""

import random
from dataclasses import dataclass, replace

from training.language import written_phrasings
from training.language.asking import Question, QuestionKinds, Target, fill, loosely, of_split
from training.worlds.pairs.pairs import Pair
from training.worlds.pairs.questions import HELDOUT_PHRASINGS as OF_TWO_HELDOUT
from training.worlds.pairs.questions import ORDINALS, about_one
from training.worlds.pairs.questions import PHRASINGS as OF_TWO
from training.worlds.scenes import questions
from training.worlds.scenes.phrasings import HELDOUT_PHRASINGS as FIRST_HELDOUT
from training.worlds.scenes.phrasings import PHRASINGS as FIRST
from training.worlds.scenes.questions import article, phrase
from training.worlds.scenes.scenes import Scene
from training.worlds.scenes.topics import TOPICS, Subject, subjects, target

KINDS = ("follow_up", "other_picture", "no_other_picture")
ONLY_ONE = "There is only one picture."
MOST_TURNS = 6
_LENGTHS = {2: 1, 3: 2, 4: 2, 5: 2, 6: 2}  # turns of a conversation, with their weights
_MOVES = {"subject": 3.0, "topic": 2.5, "total": 0.8, "many": 1.5, "picture": 5.0}  # with their weights
_NO_OTHER = 0.06  # of the turns about a single picture ask about another
_TRIES = 20  # to find a first question, or a further one

# By what the question changes, or is about: "one" is a shape or a thing of a color, "ones" several.
PHRASINGS, HELDOUT_PHRASINGS = written_phrasings.TRAINED["follow_up"], written_phrasings.HELDOUT["follow_up"]


@dataclass(frozen=True)
class _Point:
    """What a turn asks about: topic, subject and picture."""

    topic: str
    subject: Subject
    picture: int = 0


def _no_other(phrasings: tuple[str, ...], rng: random.Random) -> Question:
    """Asks about a second picture that is not there; only with "picture", as "the second one" might be a shape."""
    plain = [text for text in phrasings if "picture" in text]
    text = fill(loosely(rng.choice(plain), rng), (("which", "second"),))
    return Question("no_other_picture", text, ONLY_ONE, ONLY_ONE)


def _first(
    depiction: Scene | Pair, pictures: tuple[Scene, ...], rng: random.Random, split: str
) -> tuple[_Point, Question | None]:
    """A complete first question; None if none was found."""
    phrasings = of_split(split, FIRST, FIRST_HELDOUT)
    for _ in range(_TRIES):
        topic, number = rng.choice(TOPICS), rng.randrange(len(pictures))
        for subject in subjects(topic, pictures[number], rng):
            point, found = _Point(topic, subject, number), target(topic, subject, pictures[number])
            if isinstance(depiction, Pair):
                return point, about_one(topic, subject, depiction, number, rng, split)
            if found is not None:
                return point, phrase(topic, found, rng, phrasings[topic])
    return _Point("count_all", Subject()), None


def _further(
    point: _Point, pictures: tuple[Scene, ...], seen: set[_Point], rng: random.Random, split: str
) -> tuple[_Point, Question] | None:
    """The next question; None if none was found."""
    moves = [move for move in _MOVES if move != "picture" or len(pictures) > 1]
    for _ in range(_TRIES):
        move = rng.choices(moves, [_MOVES[move] for move in moves])[0]
        moved = _moved(point, move, pictures, rng)
        if moved is None or moved[0] in seen:
            continue
        to, words = moved
        found = target(to.topic, to.subject, pictures[to.picture])
        if found is not None:
            return to, _put(move, to, words, found, rng, split)
    return None


def _moved(point: _Point, move: str, pictures: tuple[Scene, ...], rng: random.Random) -> tuple[_Point, str] | None:
    """The result of a move and its list of phrasings; None if it is impossible or ambiguous."""
    topic, scene = point.topic, pictures[point.picture]
    meant = point.subject.meant(scene)
    if move == "picture":
        return replace(point, picture=1 - point.picture), "picture"
    if move == "total" and topic in ("count_shape", "count_color"):
        return replace(point, topic="count_all", subject=Subject()), "total"
    if move == "many" and topic == "is_there" and meant:
        return replace(point, topic=f"count_{point.subject.sort}"), "many"
    if move == "topic" and len(meant) == 1 and point.subject.sort != "all":
        asked = rng.choice([t for t in ("color", "shape", "where") if t not in (topic, point.subject.sort)])
        return replace(point, topic=asked), asked
    if move == "subject":
        topic = rng.choice(("count_shape", "count_color")) if topic == "count_all" else topic
        alike = [s for s in subjects(topic, scene, rng) if s.sort == point.subject.sort or point.subject.sort == "all"]
        if alike:
            words = "ones" if topic.startswith("count") else "a_one" if topic == "is_there" else "one"
            return replace(point, topic=topic, subject=alike[0]), words
    return None


def _put(move: str, to: _Point, words: str, found: Target, rng: random.Random, split: str) -> Question:
    """The question of a move; its key begins with the topic, whose rules judge the answer."""
    one = to.subject.shape or f"{to.subject.color} one"
    ones = f"{one}s"
    if words == "ones" and to.subject.color and rng.random() < 0.3:
        ones = f"{to.subject.color} {rng.choice(('shapes', 'things', 'objects'))}"
    slots = (("ones", ones), ("one", one), ("a_one", article(one)), ("which", ORDINALS[to.picture]))
    text = fill(loosely(rng.choice(of_split(split, PHRASINGS, HELDOUT_PHRASINGS)[words]), rng), slots)
    kind = "other_picture" if move == "picture" else "follow_up"
    return Question(kind, text, found.answer, f"{to.topic} {found.key}", found.unseen_answers)


def _says(kind: str, key: str, answer: str) -> bool:
    """The key begins with a kind of question about one scene, whose rules judge the answer."""
    if kind == "no_other_picture":
        return " ".join(answer.split()).lower() == key.lower()
    asked, said = key.split(" ", 1)
    return questions.QUESTIONS.is_right(asked, said, answer)


class _FollowUps(QuestionKinds[Scene | Pair]):
    def asked(
        self, depiction: Scene | Pair, rng: random.Random, split: str, num: int, kinds: tuple[str, ...], apart: bool
    ) -> list[Question]:
        """One conversation of up to `num` turns, at most MOST_TURNS; the first is mostly of another world's kind.

        Returns nothing if `num` is above 1 and no turn is of `kinds`. Raises ValueError for `apart`.
        """
        single = not isinstance(depiction, Pair)
        if apart:
            raise ValueError("follow-ups depend on each other; they can't be asked apart")
        pictures = depiction.scenes if isinstance(depiction, Pair) else (depiction,)
        turns = min(num, rng.choices(tuple(_LENGTHS), tuple(_LENGTHS.values()))[0])
        if single and rng.random() < _NO_OTHER:
            first = _no_other(of_split(split, OF_TWO, OF_TWO_HELDOUT)["on_second"], rng)
            return [first] if num == 1 or first.kind in kinds else []
        point, asked = _first(depiction, pictures, rng, split)
        if asked is None:
            return []
        conversation, seen = [asked], {point}
        while len(conversation) < turns:
            if single and rng.random() < _NO_OTHER:
                conversation.append(_no_other(of_split(split, PHRASINGS, HELDOUT_PHRASINGS)["picture"], rng))
                break
            if (further := _further(point, pictures, seen, rng, split)) is None:
                break
            point, asked = further
            conversation.append(asked)
            seen.add(point)
        told = {question.kind for question in conversation}
        return conversation if num == 1 or told & set(kinds) else []


QUESTIONS = _FollowUps(KINDS, _says)
