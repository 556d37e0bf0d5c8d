"""What training asks beyond the model's world: composed in many ways, of every sort, and never a held-out sentence."""

import random
import re
from collections import Counter

import pytest

from training.drawing.geometry import SHAPES
from training.evaluation.out_of_world import IN_WORLD, sorts
from training.language import something_else
from training.language.something_else import OTHER_LANGUAGES, PATTERNS, SORTS, WORDS, random_sentence, templates
from training.language.wordings import words_of
from training.language.written_phrasings import HELDOUT, TRAINED

HELDOUT_QUESTIONS = [turn for entries in sorts().values() for turns in entries for turn in turns if turn != IN_WORLD]
SLOT = r"\{(\w+)\}"


def normalised(text: str) -> str:
    """Words alone, without regard to case, punctuation, spelling, and what a picture is called."""
    words = re.findall(r"\{\w+\}|[\w']+", re.sub(r"\}s\b", "}", text.lower()).replace("colour", "color"))
    same = {"image": "picture", "photo": "picture", "drawing": "picture", "an": "a"}
    return " ".join(same.get(word, word) for word in words)


def compositions(template: str) -> re.Pattern[str]:
    """Matches whatever normalised text comes of a template, with any word in any slot, in singular or plural."""
    parts = re.split(SLOT, normalised(template))
    for place in range(1, len(parts), 2):
        words = WORDS["one" if parts[place] == "things" else parts[place]]
        both = {normalised(form) for word in words for form in (word, something_else._plural(word), f"{word}s")}
        parts[place] = f"(?:{'|'.join(map(re.escape, both))})"
    parts[::2] = [re.escape(part) for part in parts[::2]]
    return re.compile("".join(parts))


def test_no_heldout_question_can_be_composed() -> None:
    heldout = {text for text in map(normalised, HELDOUT_QUESTIONS) if text}
    assert len(HELDOUT_QUESTIONS) >= 200
    assert len(heldout) > 190
    spelled = [template for sort in PATTERNS for told in templates(sort) for template in told]
    assert len(spelled) > 5000
    for template in spelled:
        told = compositions(template)
        assert not [text for text in heldout if told.fullmatch(text)], template
    written = {normalised(text) for forms in TRAINED.values() for texts in forms.values() for text in texts}
    assert not written & heldout


def test_the_test_above_would_notice() -> None:
    assert compositions("and the {animal}s?").fullmatch(normalised("And the horses?"))
    assert compositions("is the {own} a {thing}?").fullmatch(normalised("Is the star an egg"))
    assert (
        compositions("how many {things} has the picture?").fullmatch(normalised("How many cherries has the image?"))
        is None
    )


def test_no_heldout_question_can_be_put_together_of_lines_of_other_languages() -> None:
    lines = {normalised(line) for line in OTHER_LANGUAGES}
    words = {word for line in lines for word in line.split()}
    for text in map(normalised, HELDOUT_QUESTIONS):
        begun = [line for line in lines if line and f"{text} ".startswith(f"{line} ")]
        assert not [line for line in begun if set(text.removeprefix(line).split()) <= words], text


def test_letters_at_random_are_never_as_they_are_held_out() -> None:
    rng = random.Random(1)
    mashed = {something_else._mash(rng) for _ in range(20_000)}
    assert len(mashed) > 8000
    assert not mashed & set(HELDOUT_QUESTIONS)


def test_every_sort_comes_in_many_ways() -> None:
    rng = random.Random(2)
    told = [random_sentence(rng) for _ in range(5000)]
    assert len(set(told)) > 4000
    assert set(SORTS) == {*PATTERNS, "other languages", "nonsense"}
    assert sum(any(ord(letter) > 0x370 for letter in text) for text in told) > 200  # neither Latin nor its accents
    assert all(text.strip() and "{" not in text and "|" not in text for text in told)
    assert len(set(OTHER_LANGUAGES)) == len(OTHER_LANGUAGES) >= 300
    for texts in PATTERNS.values():
        assert len(set(texts)) == len(texts)


def test_after_another_turn_most_lean_on_it() -> None:
    """A third of the sentences then, a fourteenth otherwise."""

    def share(follows: bool) -> float:
        rng = random.Random(3)
        leans = re.compile(r"and |but |(is|can|does|did|was|could|will) (it|that|this)\b", re.IGNORECASE)
        return sum(bool(leans.match(random_sentence(rng, follows))) for _ in range(3000)) / 3000

    assert share(True) > 1.7 * share(False)


def test_nothing_that_the_model_knows_is_called_something_else() -> None:
    known = {
        words_of(text)
        for written in (TRAINED, HELDOUT)
        for kind, forms in written.items()
        if kind != "strange_question"
        for texts in forms.values()
        for text in texts
    }
    rng = random.Random(4)
    assert not known & {words_of(random_sentence(rng, number % 2 == 0)) for number in range(20_000)} - {()}
    own = {*SHAPES, "sign", "bar", "chart", "board", "word", "number", "letter", "shape"}
    assert not own & {*WORDS["thing"], *WORDS["animal"], *WORDS["person"]}
    assert not {"larger", "taller", "smaller", "shorter", "largest", "tallest"} & {*WORDS["more"], *WORDS["most"]}


@pytest.mark.parametrize(
    ("template", "seen"),
    [
        ("a {thing}", r"an? [a-z]+"),
        ("{thing}s and {things}", r"[a-z]+s and [a-z]+s"),
        ("a song {own} .", r"a song [a-z ]+\."),
    ],
)
def test_slots_are_filled_as_one_writes(template: str, seen: str) -> None:
    rng = random.Random(5)
    told = Counter(something_else._filled(template, rng) for _ in range(200))
    assert len(told) > 10
    assert all(re.fullmatch(seen, text) for text in told)
    assert not [text for text in told if re.match(r"a [aei]|an [^aeiou]", text)]


def test_plurals() -> None:
    assert [something_else._plural(word) for word in ("church", "baby", "boy", "box", "car")] == [
        "churches", "babies", "boys", "boxes", "cars",
    ]  # fmt: skip
