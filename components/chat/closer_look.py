"""A closer look: a question asked again, or a new one about a region, with crops at the pictures' full resolution."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from components.chat.conversation import Exchange
from components.shown.regions import around
from components.shown.token_view import words_of_content
from gemma3_core.engine import MIN_CROP_SIDE, Box, Crops, ModelInfo, TokenChoice, Turn, WordReport

Region = tuple[int, Box]
"""The number of a picture in the conversation so far, and a box in its pixels."""

TOO_SMALL = "The model says that it can't read this."
UNSURE = "The model was unsure of this answer."

_UNSURE_BELOW = 0.5  # the geometric mean of the probabilities of the answer's tokens
_SHORT = 32  # tokens: in a longer answer many words could be others, and the mean says little about what was seen
_LARGEST = 0.5  # of a picture, as the largest crop of an even tiling: a larger one would show less detail than that
_MOST_ON_CPU = 1_000_000_000  # weights
_CANT_READ = re.compile(
    r"too small|too tiny|too blurry|illegible|unreadable|(?:can ?not|can['’]t|unable to|hard to|difficult to)"
    r" (?:be read|read|make out|see)|zu klein|unleserlich|nicht (?:lesen|lesbar|erkennen)",
    re.IGNORECASE,
)


def reason_to_look_closer(exchange: Exchange, info: ModelInfo | None) -> str:
    """Why a closer look may help, in a sentence; empty where there is no reason, no picture, or where it was one.

    The demo model has learnt to read crops of writing and of charts, but those of scenes would mislead it.
    """
    closer = exchange.first is not None or any(exchange.question.crops)
    closer = closer or (info is not None and bool(info.outside))  # which takes no crops
    if info is None or closer or not exchange.answered.request.num_images or exchange.stats.stop_reason != "stop":
        return ""
    if _CANT_READ.search(exchange.answer):
        return TOO_SMALL
    unsure = len(exchange.choices) <= _SHORT and sureness(exchange.choices) < _UNSURE_BELOW
    return UNSURE if unsure and not info.is_demo else ""


def word_to_look_for(exchange: Exchange, info: ModelInfo | None) -> range | None:
    """The tokens of the word whose map says where to look closer: that of an unsure answer of which the model was least
    sure. None where the pictures are tiled evenly.

    That is where writing is too small, because no word stands for it, and where the pictures changed nothing in the
    answer. It is also where a map takes too long: it reads 64 rows, which is two seconds on a GPU, but minutes on a CPU
    with 1 billion weights or more; and a GPU that is lent for each call would be borrowed once more, in the visitor's
    time.
    """
    if info is None or reason_to_look_closer(exchange, info) != UNSURE:
        return None
    if exchange.pictures_changed_nothing or not _is_soon_mapped(info):
        return None
    choices = list(exchange.choices)
    words = [value.tokens for value in exchange.values] or words_of_content(choices)
    return min(words, key=lambda word: min(choices[number].probability for number in word), default=None)


def _is_soon_mapped(info: ModelInfo) -> bool:
    return not info.borrowed and (info.device != "cpu" or info.num_parameters < _MOST_ON_CPU)


def region_of(report: WordReport, sizes: Sequence[tuple[int, int]]) -> Region | None:
    """The place of a word's object with what is `around` it, on pictures of these widths and heights.

    None where the pictures hardly mattered for the word, and for a crop that is none: smaller than the engine takes, or
    larger than half of its picture.
    """
    if report.place is None:
        return None
    number, size = report.place.picture, sizes[report.place.picture]
    box = around(report.place.box, size)
    width, height = box.right - box.left, box.bottom - box.top
    if min(width, height) < MIN_CROP_SIDE or width * height > _LARGEST * size[0] * size[1]:
        return None
    return number, box


def sureness(choices: Sequence[TokenChoice]) -> float:
    """The geometric mean of the probabilities of an answer's tokens, 0 to 1; 1 for an answer without any."""
    logs = [math.log(max(choice.probability, 1e-12)) for choice in choices]
    return math.exp(sum(logs) / len(logs)) if logs else 1.0


def closer_question(exchange: Exchange, region: Region | None = None) -> Turn:
    """The exchange's question with an even tiling of its pictures, or with one crop, a `region`. A question without
    pictures takes those of the latest turn before it that has some, or the region's."""
    question = exchange.question
    if region is not None:
        number, box = region
        earlier = exchange.answered.request.num_images - len(question.pictures)
        if number < earlier:
            pictures = (_pictures(exchange)[number], *question.pictures)
            captions = ("", *question.captions) if question.captions else ()
            return replace(question, pictures=pictures, captions=captions, crops=((box,), *_own(question)))
        own = list(_own(question))
        own[number - earlier] = (box,)
        return replace(question, crops=tuple(own))
    if not question.pictures:
        seen = [turn for turn in exchange.answered.request.turns if turn.pictures]
        question = replace(question, pictures=seen[-1].pictures, captions=seen[-1].captions)
    return replace(question, crops=tuple("auto" for _ in question.pictures))


def question_about(exchange: Exchange, region: Region, text: str) -> Turn:
    """A new question about one of the pictures that an answer has read, with the region as a crop of it."""
    number, box = region
    return Turn("user", text, (_pictures(exchange)[number],), crops=((box,),))


def _own(question: Turn) -> tuple[Crops, ...]:
    return question.crops or tuple(None for _ in question.pictures)


def _pictures(exchange: Exchange) -> list[Any]:
    return [picture for turn in exchange.answered.request.turns for picture in turn.pictures]
