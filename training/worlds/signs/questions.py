"""Questions about signs: text, color, length, word or number; when an answer is right.

Only texts of letters alone or of digits alone have a length to ask for; a mixture is neither a word nor a number.
"""

import random
import re

from training.drawing.colors import UNNAMED
from training.language import written_phrasings
from training.language.asking import QuestionKinds, Target
from training.worlds.scenes.questions import LARGER_NUMBERS, NUMBERS, said_colors, said_numbers
from training.worlds.signs.signs import Sign

KINDS = ("read", "text_color", "letters_count", "word_or_number")
_MOST_ALIKE = {"read": 3, "text_color": 2, "letters_count": 2, "word_or_number": 2}  # phrasings about one sign
_WORDS_ASKED = 0.35  # of the words are asked whether they are one: there are more of them than numbers

PHRASINGS = written_phrasings.in_one_form(written_phrasings.TRAINED, KINDS)
HELDOUT_PHRASINGS = written_phrasings.in_one_form(written_phrasings.HELDOUT, KINDS)

QUOTED = re.compile(r'["“]([^"“”]*)["”]')


def _targets(kind: str, sign: Sign, rng: random.Random, _split: str) -> list[Target]:
    """One target, or none if the question has no answer."""
    alike, text = _MOST_ALIKE[kind], sign.text
    if kind == "read":
        return [Target((), f'The sign says "{text}".', text, alike=alike)]
    if kind == "text_color":
        return [Target((), f"The text is {sign.color}.", sign.color, alike=alike)] if sign.color != UNNAMED else []
    if not (text.isalpha() or text.isdigit()):
        return []
    word, letter = ("word", "letter") if text.isalpha() else ("number", "digit")
    if kind == "word_or_number":
        asked = word == "number" or rng.random() < _WORDS_ASKED
        return [Target((), f"It is a {word}.", word, alike=alike)] if asked else []
    length = (*NUMBERS, *LARGER_NUMBERS)[len(text)]
    answer = f"The {word} has {length} {letter}{'s' * (len(text) > 1)}."
    return [Target((("letters", f"{letter}s"), ("word", word)), answer, length, alike=alike)]


def _says(kind: str, key: str, answer: str) -> bool:
    """Quoted text is ignored, except where the question is about the text."""
    unquoted = QUOTED.sub(" ", answer)
    if kind == "text_color":
        return said_colors(answer) == {key}
    if kind == "letters_count":
        return said_numbers(unquoted) == {key}
    if kind == "word_or_number":
        return {word for word in ("word", "number") if re.search(rf"\b{word}\b", unquoted.lower())} == {key}
    return says_text(key, answer)


def says_text(text: str, answer: str) -> bool:
    """Whether the quoted text is `text`, regardless of case; without quotation marks, the last word counts."""
    quoted = QUOTED.findall(answer) or re.findall(r"(\w+)\W*$", answer)
    return len(quoted) == 1 and quoted[0].strip().lower() == text.lower()


QUESTIONS = QuestionKinds(KINDS, _says, _targets, PHRASINGS, HELDOUT_PHRASINGS)
