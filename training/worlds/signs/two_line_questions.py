"""Questions about signs with two lines: the whole text or one line; when an answer is right."""

import random

from training.language import written_phrasings
from training.language.asking import QuestionKinds, Target
from training.language.wordings import indirect, named, ordered, straight, widened_kinds
from training.worlds.signs.questions import QUOTED, says_text
from training.worlds.signs.two_lines import TwoLines

KINDS = ("read_lines", "first_line", "second_line")
PHRASINGS = written_phrasings.in_one_form(written_phrasings.TRAINED, KINDS)
HELDOUT_PHRASINGS = written_phrasings.in_one_form(written_phrasings.HELDOUT, KINDS)
_MOST_ALIKE = 2  # phrasings of one kind about one sign

_CALLED = {
    "first": ("first", "first", "first", "upper", "top"),
    "second": ("second", "second", "second", "lower", "last"),
}

_LINE = "(|of the sign|of this sign|on the sign|in the picture)"
_COMPOSED_OF_A_LINE = (
    *straight(
        f"what does the {{line}} line {_LINE} say",
        f"what (is|is written|stands|do you read|can you read|do you see) (in|on) the {{line}} line {_LINE}",
        f"(what|which) (word|text) (is|is written|stands|do you see) in the {{line}} line {_LINE}",
    ),
    *indirect(
        f"what the {{line}} line {_LINE} (says|is)",
        "what (is|is written|stands|you read|you can read) in the {line} line",
    ),
    *named(f"the (text|word) (of|in|on) the {{line}} line {_LINE}", f"the {{line}} line {_LINE}"),
    *ordered(f"read (|only|out|me) the {{line}} line {_LINE}"),
)
_COMPOSED: dict[str, tuple[str, ...]] = {
    "read_lines": (
        *straight(
            "what (does|do) (it|the sign|this sign|the text|the picture) say",
            "what (is|is written|stands|can you read|do you read) (|here|there|on the sign|on this sign|in both lines)",
            "what do (the|both|the two|these) lines say",
            "(what|which) (text|words) (do you see|can you read|are there|are on the sign)",
        ),
        *indirect(
            "what (it|the sign|the text|the writing) says",
            "what is written (|here|on the sign|in the picture|there)",
            "what (the|both|the two) lines say",
        ),
        *ordered("read (it|this|the sign|the text|both lines|the two lines|the lines|both words|the words)"),
        *named("the (two words|text|words) (|on the sign|in the picture)"),
    ),
    "first_line": _COMPOSED_OF_A_LINE,
    "second_line": _COMPOSED_OF_A_LINE,
}

TRAINED = widened_kinds(PHRASINGS, _COMPOSED)
"""What training asks with."""


def _targets(kind: str, sign: TwoLines, rng: random.Random, _split: str) -> list[Target]:
    first, second = (line.text for line in sign.lines)
    if kind == "read_lines":
        return [Target((), f'The sign says "{first}" and "{second}".', f"{first} {second}", alike=_MOST_ALIKE)]
    ordinal, text = ("first", first) if kind == "first_line" else ("second", second)
    called = (("line", rng.choice(_CALLED[ordinal])),)
    return [Target(called, f'The {ordinal} line says "{text}".', text, alike=_MOST_ALIKE)]


def _says(kind: str, key: str, answer: str) -> bool:
    """read_lines must quote both lines, the upper one first."""
    if kind == "read_lines":
        return [text.strip().lower() for text in QUOTED.findall(answer)] == key.lower().split()
    return says_text(key, answer)


QUESTIONS = QuestionKinds(KINDS, _says, _targets, TRAINED, HELDOUT_PHRASINGS)
