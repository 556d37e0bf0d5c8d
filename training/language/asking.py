"""Questions about pictures: how phrasings become questions, and when an answer is right."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

_GREETINGS = ("Hi! ", "Hello, ", "Look at the picture. ", "Please answer: ", "Question: ")

Phrasings = TypeVar("Phrasings")
Depiction = TypeVar("Depiction")


@dataclass(frozen=True)
class Question:
    """A question about a picture; `key` is what a right answer must say.

    `unseen` are answers that would say a held-out pair: the loss must not show whether they are right.
    """

    kind: str
    question: str
    answer: str
    key: str
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A possible subject of a question: the words for it, and the answer.

    `unseen` are words that would make a held-out pair in the place of `key`. `alike` is how many phrasings may ask
    about it when each question is asked as if it were the only one.
    """

    slots: tuple[tuple[str, str], ...]
    answer: str
    key: str
    form: str = "one"  # which list of phrasings fits
    unseen: tuple[str, ...] = ()
    alike: int = 1

    @property
    def unseen_answers(self) -> tuple[str, ...]:
        return tuple(self.answer.replace(self.key, word) for word in self.unseen)


def of_split(split: str, train: Phrasings, heldout: Phrasings) -> Phrasings:
    """The phrasings of a split. Raises ValueError for an unknown split."""
    if split not in ("train", "heldout"):
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    return train if split == "train" else heldout


def put(
    kind: str, targets: Sequence[Target], phrasings: Sequence[str], rng: random.Random, apart: bool
) -> list[Question]:
    """A question about each target; asked `apart`, as many as the target's `alike`, in different words.

    Slots are filled last, so that quoted text stays as it is.
    """
    return [
        Question(kind, fill(loosely(text, rng), target.slots), target.answer, target.key, target.unseen_answers)
        for target in targets
        for text in rng.sample(phrasings, target.alike if apart else 1)
    ]


def kind_by_kind(
    possible: dict[str, list[Question]], rng: random.Random, num: int, weights: Mapping[str, float]
) -> list[Question]:
    """Up to `num` of the questions; draws a kind for each by `weights`, which default to 1."""
    for questions in possible.values():
        rng.shuffle(questions)
    asked: list[Question] = []
    while len(asked) < num and (left := [kind for kind, questions in possible.items() if questions]):
        asked.append(possible[rng.choices(left, [weights.get(kind, 1.0) for kind in left])[0]].pop())
    return asked


def slots_of(text: str) -> frozenset[str]:
    """The slots of a phrasing."""
    return frozenset(re.findall(r"\{(\w+)\}", text))


def fill(text: str, slots: tuple[tuple[str, str], ...]) -> str:
    """Replaces the slots of a phrasing, such as {shape}, by words."""
    for slot, word in slots:
        text = text.replace("{" + slot + "}", word)
    return text


def loosely(text: str, rng: random.Random) -> str:
    """Varies a text as people type: without a capital or punctuation, with British spelling, with a greeting."""
    if rng.random() < 0.2:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.2:
        text = text.rstrip("?.").replace("'", "")
    elif rng.random() < 0.06 and "lease" not in text:
        text = f"{text[:-1]}, please{text[-1]}"
    if rng.random() < 0.15:
        text = re.sub(r"(?<!\{)color", "colour", text).replace("center", "centre")  # slots keep their names
    if rng.random() < 0.15:
        text = re.sub(r"\bgray\b", "grey", text)
    if rng.random() < 0.3:
        text = re.sub(r"\bpicture\b", rng.choice(("image", "image", "photo", "drawing")), text)
    return rng.choice(_GREETINGS) + text if rng.random() < 0.04 else text


@dataclass(frozen=True)
class QuestionKinds(Generic[Depiction]):
    """The kinds of question about one sort of picture.

    `targets` (kind, depiction, rng, split) lists the possible targets of a kind; `says` (kind, key, answer) is whether
    an answer says the key and nothing else of its sort. With `weights`, a kind is drawn for each question (weights
    default to 1); without, all possible questions are shuffled.
    """

    kinds: tuple[str, ...]
    says: Callable[[str, str, str], bool]
    targets: Callable[[str, Depiction, random.Random, str], list[Target]] = lambda *_: []
    trained: dict[str, Any] = field(default_factory=dict)
    heldout: dict[str, Any] = field(default_factory=dict)
    weights: Mapping[str, float] | None = None

    def ask(
        self,
        depiction: Depiction,
        rng: random.Random,
        split: str = "train",
        num: int = 1,
        kinds: tuple[str, ...] | None = None,
        apart: bool = False,
    ) -> list[Question]:
        """Up to `num` questions of `kinds`, by default of all; fewer if the picture has no more unambiguous ones.

        Split "train" never uses a held-out phrasing, "heldout" always does. With `apart`, each question will be asked
        as if it were the only one, so the same target may come again in other words.
        """
        return self.asked(depiction, rng, split, num, kinds or self.kinds, apart)

    def asked(
        self, depiction: Depiction, rng: random.Random, split: str, num: int, kinds: tuple[str, ...], apart: bool
    ) -> list[Question]:
        """As `ask`; subclasses override it."""
        possible = {kind: self.of_kind(kind, depiction, rng, split, apart) for kind in kinds}
        if self.weights is not None:
            return kind_by_kind(possible, rng, num, self.weights)
        asked = [question for questions in possible.values() for question in questions]
        rng.shuffle(asked)
        return asked[:num]

    def of_kind(self, kind: str, depiction: Depiction, rng: random.Random, split: str, apart: bool) -> list[Question]:
        """All questions of one kind that the picture allows."""
        phrasings = of_split(split, self.trained, self.heldout)[kind]
        return put(kind, self.targets(kind, depiction, rng, split), phrasings, rng, apart)

    def is_right(self, kind: str, key: str, answer: str) -> bool:
        """Whether `answer` says `key` and nothing else of its sort. Raises ValueError for another world's kind."""
        if kind not in self.kinds:
            raise ValueError(f"kind is {kind!r}; expected one of {self.kinds}")
        return self.says(kind, key, answer)
