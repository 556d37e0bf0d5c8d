"""Questions about boards: prices, the first and last entry, what is there; when an answer is right.

Answers need the crops of pan & scan. Without crops the answer is TOO_SMALL.
"""

import random
import re
import string
from decimal import Decimal
from difflib import SequenceMatcher

from training.language import written_phrasings
from training.language.asking import QuestionKinds, Target
from training.worlds.boards.boards import Board, is_possible_item
from training.worlds.scenes.questions import said_yes_or_no
from training.worlds.signs.questions import says_text
from training.worlds.signs.signs import is_heldout_text, random_text

KINDS = ("board_price", "board_first", "board_last", "board_has")
PHRASINGS = written_phrasings.in_one_form(written_phrasings.TRAINED, KINDS)
HELDOUT_PHRASINGS = written_phrasings.in_one_form(written_phrasings.HELDOUT, KINDS)
TOO_SMALL = "The writing is too small to read. Switch pan & scan on and ask again."
_MOST_ALIKE = 2  # of the same question about one board, in other words each; of prices it has several anyway
_BARE = 0.1  # share of the questions that name an item without quotation marks
_NEARLY = 0.3  # of the items that are not there differ from one that is by a character
_CASES = (str.upper, str.lower, str.capitalize)


def _targets(kind: str, board: Board, rng: random.Random, split: str) -> list[Target]:
    """Asks for prices if there are any, and for the first and last entry if they are unambiguous."""
    if kind == "board_price":
        return [
            Target(
                _named(entry.item.text, rng, split), f'"{entry.item.text}" costs {entry.price.text}.', entry.price.text
            )
            for entry in board.entries
            if entry.price is not None
        ]
    if kind in ("board_first", "board_last"):
        place = kind.removeprefix("board_")
        entry = board.first if kind == "board_first" else board.last
        if entry is None:
            return []
        return [Target((), f'The {place} is "{entry.item.text}".', entry.item.text, alike=_MOST_ALIKE)]
    there, absent = rng.choice(board.entries).item.text, _absent(board, rng, split)
    nearest = max((entry.item.text for entry in board.entries), key=lambda text: _likeness(text, absent))
    # The answer says first what the board says; yes or no follows from it.
    return [
        Target(_named(there, rng, split), f'The board says "{there}", so yes.', "yes", alike=_MOST_ALIKE),
        Target(_named(absent, rng, split), f'The board says "{nearest}", so no.', "no", alike=_MOST_ALIKE),
    ]


def _likeness(one: str, other: str) -> float:
    """1 if two texts are equal regardless of case, 0 if they share nothing."""
    return SequenceMatcher(None, one.lower(), other.lower(), autojunk=False).ratio()


def _absent(board: Board, rng: random.Random, split: str) -> str:
    """A text of the split that is not on the board."""
    present = [entry.item.text for entry in board.entries]
    written = next((case for case in _CASES if all(case(text) == text for text in present)), str)
    while True:
        text = rng.choice(present) if rng.random() < _NEARLY else ""
        if text:
            place, other = rng.randrange(len(text)), rng.choice(string.ascii_lowercase)
            text = text[:place] + (other.upper() if text[place].isupper() else other) + text[place + 1 :]
        else:
            text = written(random_text(rng, split))  # in the board's case, or the case would give it away
        possible = is_heldout_text(text) == (split == "heldout") and is_possible_item(text, board.priced)
        if possible and text.lower() not in {one.lower() for one in present}:
            return text


def _named(item: str, rng: random.Random, split: str) -> tuple[tuple[str, str], ...]:
    """The slot for an item: mostly in quotation marks."""
    bare = split == "train" and rng.random() < _BARE
    return (("item", item if bare else f'"{item}"'),)


def _says(kind: str, key: str, answer: str) -> bool:
    """Whether `answer` says `key`.

    A price may have quotation marks, a point or a comma. First and last entries are compared as the texts of signs.
    """
    if kind == "board_price":
        return said_prices(answer) == {Decimal(key)}
    if kind == "board_has":
        return said_yes_or_no(re.sub(r'["“][^"“”]*["”]', "", answer)) == {key}
    return says_text(key, answer)


def said_prices(answer: str) -> set[Decimal]:
    """All decimal numbers in an answer."""
    return {Decimal(price.replace(",", ".")) for price in re.findall(r"(?<![\w.,])\d+[.,]\d+(?![\w]|[.,]\d)", answer)}


def says_too_small(answer: str) -> bool:
    """Whether an answer says that the writing is too small and names the switch, without quoting anything."""
    said = answer.lower()
    return "too small" in said and "pan & scan" in said and '"' not in said


QUESTIONS = QuestionKinds(KINDS, _says, _targets, PHRASINGS, HELDOUT_PHRASINGS)
