"""Questions about signs with two lines: what both say, and each; when an answer is right."""

import random

from training import sign_questions
from training.asking import Question, Target, of_split, put
from training.sign_questions import QUOTED
from training.two_lines import TwoLines

KINDS = ("read_lines", "first_line", "second_line")
_MOST_ALIKE = 2  # of one kind about one sign, in other words each

_OF_A_LINE = (
    "What does the {line} line say?",
    "What is the {line} line?",
    "What is written in the {line} line?",
    "What is written on the {line} line of the sign?",
    "What is the word in the {line} line?",
    "What text is in the {line} line?",
    "What can you read in the {line} line?",
    "What do you read in the {line} line?",
    "Which word stands in the {line} line?",
    "What stands in the {line} line?",
    "Read the {line} line.",
    "Read only the {line} line.",
    "Please read the {line} line.",
    "Can you read the {line} line?",
    "Tell me what the {line} line says.",
    "Can you tell me what is written in the {line} line?",
    "The {line} line, please.",
)
_OF_A_LINE_HELDOUT = (
    "Could you read the {line} line for me?",
    "Please tell me what the {line} line of the sign says.",
    "Which text is in the {line} line?",
)
_CALLED = {
    "first": ("first", "first", "first", "upper", "top"),
    "second": ("second", "second", "second", "lower", "last"),
}

PHRASINGS: dict[str, tuple[str, ...]] = {
    "read_lines": (
        "What does it say?",
        "What does the sign say?",
        "What does this sign say?",
        "What does the picture say?",
        "What does the text say?",
        "What is written here?",
        "What is written on the sign?",
        "What is written in the picture?",
        "What is the text?",
        "What text do you see?",
        "What can you read?",
        "What do you read?",
        "What is on the sign?",
        "What do the lines say?",
        "What do the two lines say?",
        "What are the two words?",
        "Read the sign.",
        "Read the text.",
        "Read both lines.",
        "Please read the sign.",
        "Please read the two lines.",
        "Can you read this?",
        "Can you read both lines?",
        "Tell me what it says.",
        "Tell me what is written here.",
    ),
    "first_line": _OF_A_LINE,
    "second_line": _OF_A_LINE,
}

HELDOUT_PHRASINGS: dict[str, tuple[str, ...]] = {
    "read_lines": (
        "What is it that the sign says?",
        "What is written in this picture?",
        "Could you read both lines for me?",
        "Please tell me what the text says.",
    ),
    "first_line": _OF_A_LINE_HELDOUT,
    "second_line": _OF_A_LINE_HELDOUT,
}


def ask(
    sign: TwoLines,
    rng: random.Random,
    split: str = "train",
    num: int = 1,
    kinds: tuple[str, ...] | None = None,
    apart: bool = False,
) -> list[Question]:
    """Up to `num` questions about the two lines, of all kinds or of `kinds`; arguments as for signs."""
    phrasings = of_split(split, PHRASINGS, HELDOUT_PHRASINGS)
    asked = []
    for kind in kinds or KINDS:
        asked += put(kind, [_target(kind, sign, rng)], phrasings[kind], rng, apart)
    rng.shuffle(asked)
    return asked[:num]


def _target(kind: str, sign: TwoLines, rng: random.Random) -> Target:
    first, second = (line.text for line in sign.lines)
    if kind == "read_lines":
        return Target((), f'The sign says "{first}" and "{second}".', f"{first} {second}", alike=_MOST_ALIKE)
    ordinal, text = ("first", first) if kind == "first_line" else ("second", second)
    called = (("line", rng.choice(_CALLED[ordinal])),)
    return Target(called, f'The {ordinal} line says "{text}".', text, alike=_MOST_ALIKE)


def is_right(kind: str, key: str, answer: str) -> bool:
    """Whether `answer` says `key` and nothing else of its sort; both lines in quotation marks, the upper one first."""
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {KINDS}")
    if kind == "read_lines":
        return [text.strip().lower() for text in QUOTED.findall(answer)] == key.lower().split()
    return sign_questions.is_right("read", key, answer)
