"""Questions about signs: what is written, in what color, how long it is, is it a number; when an answer is right.

Letters are counted where there are letters only, digits where there are digits only; what has both is neither a
word nor a number.
"""

import random
import re

from training.drawing.colors import UNNAMED
from training.language.asking import QuestionKinds, Target
from training.language.heldout_phrasings import SIGNS as HELDOUT_PHRASINGS
from training.worlds.scenes.questions import LARGER_NUMBERS, NUMBERS, said_colors, said_numbers
from training.worlds.signs.signs import Sign

KINDS = ("read", "text_color", "letters_count", "word_or_number")
_MOST_ALIKE = {"read": 3, "text_color": 2, "letters_count": 2, "word_or_number": 2}  # about one sign, in other words
_WORDS_ASKED = 0.35  # of the words are asked whether they are one: there are more of them than numbers

QUOTED = re.compile(r'["“]([^"“”]*)["”]')

PHRASINGS = {
    "read": (
        "What does it say?", "What does the sign say?", "What does this sign say?", "What does the picture say?",
        "What does the text say?", "What is written here?", "What is written on the sign?",
        "What is written in the picture?", "What is written there?", "What word is this?", "What word is it?",
        "What is the word?", "What is the text?", "What is the text in the picture?", "What text do you see?",
        "What text is in the picture?", "What can you read?", "What do you read?", "What does the writing say?",
        "Which word is written here?", "Which word do you see?", "What is on the sign?", "Read the sign.",
        "Read the text.", "Read it.", "Read this.", "Read the word.", "Please read the sign.",
        "Please read the text in the picture.", "Can you read this?", "Can you read the text?",
        "Can you read the sign?", "Can you tell me what it says?", "Could you tell me what the sign says?",
        "Tell me what it says.", "Tell me what is written here.", "Say what is written on the sign.",
        "What letters do you see?", "What are the letters?", "What number or word is it?",
        "What is the number or word?",
    ),
    "text_color": (
        "What color is the text?", "What color are the letters?", "What color is the word?",
        "What color is the writing?", "What color is the text in the picture?", "What color is the text on the sign?",
        "What color does the text have?", "What color do the letters have?", "What color is it written in?",
        "What color is the sign written in?", "What is the color of the text?", "What is the color of the letters?",
        "What is the color of the word?", "Which color is the text?", "Which color are the letters?",
        "Which color does the writing have?", "In what color is it written?", "In which color is the text written?",
        "Tell me the color of the text.", "Tell me what color the letters are.",
        "Please tell me what color the text is.", "Can you tell me what color the text is?",
        "Could you tell me the color of the writing?", "Name the color of the text.", "Color of the text?",
        "Say what color the word is.",
    ),
    "letters_count": (
        "How many {letters} does the {word} have?", "How many {letters} are there?",
        "How many {letters} are in the {word}?", "How many {letters} are there in the {word}?",
        "How many {letters} do you see?", "How many {letters} can you see?", "How many {letters} are on the sign?",
        "How many {letters} are written here?", "How many {letters} does it have?",
        "How many {letters} does the sign have?", "How many {letters} is the {word} long?", "How many {letters}?",
        "How long is the {word}?", "Count the {letters}.", "Count the {letters} of the {word}.",
        "Please count the {letters}.", "Can you count the {letters}?", "Tell me how many {letters} there are.",
        "What is the number of {letters}?", "Number of {letters}?",
    ),
    "word_or_number": (
        "Is it a word or a number?", "Is this a word or a number?", "Is it a number or a word?",
        "Is this a number or a word?", "Is that a word or a number?", "Is there a word or a number on the sign?",
        "Is the text a word or a number?", "Does the sign show a word or a number?",
        "Does the sign show a number or a word?", "Do you see a word or a number?", "Do you see a number or a word?",
        "What is it, a word or a number?", "What is on the sign, a word or a number?", "Word or number?",
        "A number or a word?", "Tell me if it is a word or a number.",
        "Can you tell me whether this is a number or a word?",
    ),
}  # fmt: skip


def _targets(kind: str, sign: Sign, rng: random.Random, _split: str) -> list[Target]:
    """What may be asked of one kind: once, or nothing where there is no answer."""
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
    """Nothing in quotation marks counts, but where the text itself is asked for."""
    unquoted = QUOTED.sub(" ", answer)
    if kind == "text_color":
        return said_colors(answer) == {key}
    if kind == "letters_count":
        return said_numbers(unquoted) == {key}
    if kind == "word_or_number":
        return {word for word in ("word", "number") if re.search(rf"\b{word}\b", unquoted.lower())} == {key}
    return says_text(key, answer)


def says_text(text: str, answer: str) -> bool:
    """Whether what stands in quotation marks is the text, in whatever case; without any, the answer's last word."""
    quoted = QUOTED.findall(answer) or re.findall(r"(\w+)\W*$", answer)
    return len(quoted) == 1 and quoted[0].strip().lower() == text.lower()


QUESTIONS = QuestionKinds(KINDS, _says, _targets, PHRASINGS, HELDOUT_PHRASINGS)
