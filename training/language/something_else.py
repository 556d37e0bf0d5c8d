"""Questions about something else than the model knows, for training: composed from patterns, of many sorts.

The patterns and words are in something_else.json, whole sentences in other_languages.txt (one a line, languages
together). Keyboard mash is drawn letter by letter. The model has one answer for all of it, so variety is everything:
from sixty fixed sentences it learnt only those. What is held out is in language/heldout_phrasings.json and in
evaluation/out_of_world.json, which training never reads.
"""

import json
import random
import re
from functools import cache
from pathlib import Path

from training.language.wordings import spelled, words_of
from training.language.written_phrasings import HELDOUT

_HERE = Path(__file__)
_TOLD = json.loads(_HERE.with_name("something_else.json").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = _TOLD.pop("words")
WORDS["one"] = [*WORDS["thing"], *WORDS["animal"], *WORDS["person"]]
PATTERNS: dict[str, list[str]] = _TOLD
OTHER_LANGUAGES = tuple(_HERE.with_name("other_languages.txt").read_text(encoding="utf-8").splitlines())
SORTS = {
    "small talk": 1.6, "other languages": 1.8, "nonsense": 1.0, "comparisons": 1.6, "follow-ups": 0.8,
    "knowledge": 1.0, "requests": 1.2, "the picture itself": 1.5, "things": 1.6,
}  # fmt: skip
"""With their weights."""
_FOLLOW_UPS = 4.0  # weight of that sort after another turn
_HELDOUT = tuple(words_of(text) for text in HELDOUT["strange_question"]["one"])

_SLOT = re.compile(r"\{(\w+)\}(s\b)?")
_NEAR_LINES = 8  # of a line in another language are in the same language, more or less
_EMOJI = "😀😂😍👍👋❤🎉😢🤔🔥🐶🐱🌞🌧🍎🍕🚗🏠⚽🎵✨😎🙄😴🤖💯👏🎂☕🌈"
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_BEFORE = ("Hi! ", "Hello, ", "Sorry, ", "By the way, ", "OK, ", "Thanks! ", "Please, ", "One more thing: ")


def random_sentence(rng: random.Random, follows: bool = False) -> str:
    """Something else, as people type it; after another turn (`follows`) often a question that leans on it."""
    weights = {**SORTS, "follow-ups": _FOLLOW_UPS} if follows else SORTS
    while True:
        sort = rng.choices(tuple(weights), tuple(weights.values()))[0]
        if sort == "nonsense":
            return _mash(rng)
        text = _foreign(rng) if sort == "other languages" else _composed(sort, rng)
        if not _holds_heldout(text):
            return _typed(text, rng)


@cache
def templates(sort: str) -> tuple[tuple[str, ...], ...]:
    """For each pattern of a sort, everything that it spells, with slots."""
    return tuple(spelled(pattern) for pattern in PATTERNS[sort])


def _composed(sort: str, rng: random.Random) -> str:
    text = _filled(rng.choice(rng.choice(templates(sort))), rng)
    return text[0].upper() + text[1:]


def _filled(text: str, rng: random.Random) -> str:
    """The text with a word in each slot, no word twice; "s" after a slot makes a plural."""
    used: set[str] = set()

    def word(slot: re.Match[str]) -> str:
        name, plural = slot[1].removesuffix("s") if slot[1] == "things" else slot[1], slot[2] or slot[1] == "things"
        words = WORDS["one" if slot[1] == "things" else name]
        chosen = rng.choice([word for word in words if word not in used])
        used.add(chosen)
        return _plural(chosen) if plural else chosen

    text = re.sub(r" ([.?!,])", r"\1", _SLOT.sub(word, text))
    return re.sub(r"\b([Aa]) (?=[aeiou])(?!uni|one|used)", r"\1n ", text)


def _plural(word: str) -> str:
    if word.endswith(("ch", "sh", "x", "s")):
        return f"{word}es"
    return f"{word[:-1]}ies" if word.endswith("y") and word[-2] not in "aeiou" else f"{word}s"


def _foreign(rng: random.Random) -> str:
    """A line of OTHER_LANGUAGES, sometimes followed by a few words of the lines around it."""
    place = rng.randrange(len(OTHER_LANGUAGES))
    line = OTHER_LANGUAGES[place]
    if rng.random() < 0.35:
        around = " ".join(OTHER_LANGUAGES[max(0, place - _NEAR_LINES) : place + _NEAR_LINES]).split()
        line = f"{line} {' '.join(rng.sample(around, min(len(around), rng.randint(1, 4))))}"
    return line


def _mash(rng: random.Random) -> str:
    """Emoji, punctuation, numbers, or letters at random."""
    way = rng.randrange(7)
    if way == 0:
        return "".join(rng.choices(_EMOJI, k=rng.randint(1, 3)))
    if way == 1:
        return "".join(rng.choices("?!.,-#*;:", k=rng.randint(1, 5)))
    if way == 2:
        return " ".join(str(rng.randrange(10 ** rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
    if way == 3:
        row = rng.choice(_ROWS)
        start = rng.randrange(len(row) - 2)
        return " ".join([row[start : start + rng.randint(3, 8)]] * rng.randint(1, 3))
    if way == 4:
        return rng.choice("aehouwx") * rng.randint(2, 9)
    if way == 5:
        words = [rng.choice(WORDS[rng.choice(("own", "thing", "adjective", "food", "number"))]) for _ in range(3)]
        return " ".join(words) + rng.choice(("", "?", "."))
    return " ".join("".join(rng.choices(_LETTERS, k=rng.randint(2, 9))) for _ in range(rng.randint(1, 4)))


def _typed(text: str, rng: random.Random) -> str:
    """Varies a text as people type: small letters, no punctuation or more of it, a word before."""
    if rng.random() < 0.3 and not text.startswith("I "):
        text = text[0].lower() + text[1:]
    if rng.random() < 0.3:
        text = text.rstrip("?.!").rstrip() or text
    elif rng.random() < 0.04:
        text += rng.choice(("??", "!", "!!", "...", " :)", "?"))
    way = rng.random()
    if way < 0.03:
        text = text.upper()
    elif way < 0.1:
        text = rng.choice(_BEFORE) + text
    return text


def _holds_heldout(text: str) -> bool:
    words = words_of(text)
    return any(
        words[start : start + len(told)] == told for told in _HELDOUT for start in range(len(words) - len(told) + 1)
    )
