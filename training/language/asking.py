"""What a question about a picture is, how a phrasing becomes one, and when an answer to it is right."""

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

    `unseen` are answers that would say a held-out pair: nothing is to be learnt of whether they are right.
    """

    kind: str
    question: str
    answer: str
    key: str
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """What a question could be about: the words for it, and the answer.

    `unseen` are words that in place of `key` would make a held-out pair; `alike` is how often the same may be
    asked in other words, where each question will be asked as if it were the only one.
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
    """The phrasings of a split. Raises ValueError where there is no such split."""
    if split not in ("train", "heldout"):
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    return train if split == "train" else heldout


def put(
    kind: str, targets: Sequence[Target], phrasings: Sequence[str], rng: random.Random, apart: bool
) -> list[Question]:
    """A question about each target, or where they are asked apart as many as are alike, in different words.

    Slots are filled last: what stands in quotation marks stays as it is written.
    """
    return [
        Question(kind, fill(loosely(text, rng), target.slots), target.answer, target.key, target.unseen_answers)
        for target in targets
        for text in rng.sample(phrasings, target.alike if apart else 1)
    ]


def kind_by_kind(
    possible: dict[str, list[Question]], rng: random.Random, num: int, weights: Mapping[str, float]
) -> list[Question]:
    """Up to `num` of the questions, each of a kind drawn anew; `weights` are 1 where none is given."""
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
    """A phrasing with words in its slots, which stand in braces."""
    for slot, word in slots:
        text = text.replace("{" + slot + "}", word)
    return text


def loosely(text: str, rng: random.Random) -> str:
    """As people type: sometimes without capital, mark or American spelling, or with a greeting."""
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

    `targets` (kind, depiction, rng, split) lists what a question of that kind could be about; `says` (kind, key,
    answer) is whether an answer says the key and nothing else of its sort. With `weights`, each question is of a kind
    drawn by these (1 where none is given); without, all that could be asked is shuffled.
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
        """Up to `num` questions of all kinds or of `kinds`; fewer where the picture leaves no more without doubt.

        `split` "train" never uses a held-out phrasing, "heldout" always does. `apart`: each will be asked as if it were
        the only one, so that the same may be asked again in other words.
        """
        return self.asked(depiction, rng, split, num, kinds or self.kinds, apart)

    def asked(
        self, depiction: Depiction, rng: random.Random, split: str, num: int, kinds: tuple[str, ...], apart: bool
    ) -> list[Question]:
        """As `ask`; what asks in another way overrides this."""
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
