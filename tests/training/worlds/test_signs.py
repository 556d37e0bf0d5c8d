"""Signs keep their promises, drawings show what labels say, and reading is judged by the text."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training.drawing import fonts
from training.drawing.backgrounds import Background, grounds_of
from training.drawing.colors import ANCHORS, COLORS, UNNAMED, delta_e, to_lab
from training.drawing.dense_labels import CHARACTERS_PER_TOKEN, NO_LABEL, SIZES, TOKENS_PER_SIDE, character_label
from training.drawing.fonts import CHARACTERS, Font, all_fonts, bundled_fonts, edges, metrics
from training.drawing.rendering import RENDERERS
from training.evaluation.dialogues import questions_of_kind
from training.language.words import WORDS
from training.worlds.registry import ALL_KINDS, WORLDS, world_named
from training.worlds.registry import is_right as right_in_any_world
from training.worlds.signs.drawing import draw, labels, training_picture
from training.worlds.signs.questions import HELDOUT_PHRASINGS, KINDS, PHRASINGS, QUESTIONS
from training.worlds.signs.signs import (
    LEAST_CAP_HEIGHT,
    LEAST_TRAINED,
    MOST_CHARACTERS,
    Plate,
    Sign,
    is_heldout_text,
    random_sign,
    random_text,
)

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right


def signs(split: str, count: int = 200, difficulty: float = 1.0) -> list[Sign]:
    rng = random.Random(f"{split} {difficulty}")
    return [random_sign(rng, bundled_fonts(), split, difficulty) for _ in range(count)]


def sign(text: str = "STOP", **changes: object) -> Sign:
    font = next(f for f in bundled_fonts() if f.name == "DejaVuSans")
    one = Sign(400, 400, Background("plain", ((255, 255, 255),)), text, font, "red", (255, 0, 0), 200, 200, 100)
    return replace(one, **changes)


def test_words_are_as_the_description_says() -> None:
    assert len(WORDS) > 500
    assert len(set(WORDS)) == len(WORDS)
    assert all(1 <= len(word) <= 8 and word.isascii() and word.islower() for word in WORDS)
    assert {len(word) for word in WORDS} == set(range(1, 9))


def test_matplotlib_brings_sans_serif_and_mono_in_several_styles() -> None:
    found = bundled_fonts()
    assert {font.kind for font in found} == {"sans", "serif", "mono"}
    assert {"DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSansMono"} <= {
        font.name for font in found
    }
    assert "DejaVuSansDisplay" not in {font.name for font in found}
    assert set(found) <= set(all_fonts())


def test_fonts_of_the_machine_are_optional_and_only_readable_latin_ones_are_taken(tmp_path, monkeypatch) -> None:
    assert fonts._fonts_in(tmp_path / "nowhere") == ()
    (tmp_path / "LiberationSans-Regular.ttf").write_bytes(b"no font")
    source = next(font for font in bundled_fonts() if font.name == "DejaVuSans")
    (tmp_path / "Arial.ttf").write_bytes(Path(source.path).read_bytes())
    (tmp_path / "Dingbats.ttf").write_bytes(Path(source.path).read_bytes())
    assert fonts._fonts_in(tmp_path) == (Font("Arial", str(tmp_path / "Arial.ttf"), "sans"),)
    monkeypatch.setattr(fonts, "_system_folders", lambda: [tmp_path / "nowhere"])
    all_fonts.cache_clear()
    try:
        assert all_fonts() == bundled_fonts()
    finally:
        all_fonts.cache_clear()


def test_about_one_text_in_five_is_held_out_in_whatever_case() -> None:
    assert 0.15 < sum(map(is_heldout_text, WORDS)) / len(WORDS) < 0.25
    assert all(is_heldout_text(w.upper()) == is_heldout_text(w.capitalize()) == is_heldout_text(w) for w in WORDS)
    # The same on every machine and in every version: checkpoints were trained without these.
    assert [word for word in WORDS[:60] if is_heldout_text(word)] == HELDOUT_WORDS
    rng = random.Random(1)
    assert not any(is_heldout_text(random_text(rng, "train")) for _ in range(500))
    assert all(is_heldout_text(random_text(rng, "heldout")) for _ in range(200))


HELDOUT_WORDS = ["am", "be", "hi", "in", "so", "us", "all", "and", "app", "bad", "bag", "bar", "bed"]


def test_texts_are_words_numbers_and_strings_of_every_length() -> None:
    rng = random.Random(2)
    texts = [random_text(rng, "train") for _ in range(3000)]
    assert {len(text) for text in texts} == set(range(1, MOST_CHARACTERS + 1))
    assert set("".join(texts)) == set(CHARACTERS)
    shares = [sum(map(test, texts)) / len(texts) for test in (str.isdigit, str.isupper, str.islower, str.istitle)]
    assert all(share > 0.1 for share in shares)
    assert 0.3 < sum(text.lower() in WORDS for text in texts) / len(texts) < 0.6


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_signs_keep_their_promises(split: str) -> None:
    found = signs(split)
    for one in found:
        shorter, longer = sorted((one.width, one.height))
        assert shorter >= 200
        assert longer <= min(2000, 2 * shorter + 1)
        assert one.cap_height / shorter > (LEAST_TRAINED if split == "train" else LEAST_CAP_HEIGHT) - 1e-9
        assert abs(one.rotation) <= 8
        left, top, right, bottom = one.outer
        corners = one.turned(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))
        assert corners.min() > 0
        assert (corners < (one.width, one.height)).all()
        filled = one.plate is not None and one.plate.fill is not None
        grounds = [to_lab(one.plate.fill)] if filled else grounds_of(one.background)
        assert all(delta_e(to_lab(one.rgb), ground) > 26 for ground in grounds)
    assert {one.color for one in found} == set(COLORS)
    assert any(one.plate for one in found)
    assert any(one.rotation for one in found)
    if split == "train":
        assert 0.03 < sum(o.cap_height < LEAST_CAP_HEIGHT * min(o.width, o.height) for o in found) / len(found) < 0.2


def test_easy_signs_are_large_upright_and_plain() -> None:
    for one in signs("train", 60, difficulty=0.0):
        assert one.width == one.height
        assert len(one.text) <= 4
        assert one.font.kind == "sans"
        assert (one.rotation, one.plate, one.background.kind) == (0.0, None, "plain")
        assert one.cap_height > 0.11 * one.width


def test_same_seed_same_sign_and_picture() -> None:
    first, second = (random_sign(random.Random(7), bundled_fonts()) for _ in range(2))
    assert first == second
    one, two = (training_picture(first, random.Random(7)) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert one.size == (224, 224)


def test_unknown_split_renderer_world_and_kind_are_errors() -> None:
    with pytest.raises(ValueError, match="validation"):
        random_sign(random.Random(0), bundled_fonts(), "validation")
    with pytest.raises(ValueError, match="cairo"):
        draw(sign(), random.Random(0), renderer="cairo")
    with pytest.raises(ValueError, match="maps"):
        world_named("maps")
    with pytest.raises(ValueError, match="test"):
        ask(sign(), random.Random(0), "test")
    with pytest.raises(ValueError, match="count_shape"):
        is_right("count_shape", "a", "a")
    with pytest.raises(ValueError, match="tallest"):
        right_in_any_world("tallest", "a", "a")


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("rotation", [0.0, 7.0, -7.0])
def test_renderers_put_the_text_where_the_description_says(renderer: str, rotation: float) -> None:
    """The ink's bounds along the line, within a pixel and a half; capitals without overhang."""
    for text in ("HEN", "EXIT"):
        one = sign(text, rotation=rotation, x=180.0, y=230.0)
        pixels = np.asarray(draw(one, random.Random(0), renderer=renderer, effects=0.0)).astype(int)
        rows, columns = np.nonzero(pixels[..., 1] < 128)
        ink = one.along(np.stack([columns + 0.5, rows + 0.5], axis=-1))
        left, top, right, bottom = one.line
        assert left - 2 < ink[:, 0].min() < left + 0.12 * one.size
        assert right - 0.12 * one.size < ink[:, 0].max() < right + 2
        assert ink[:, 1].min() == pytest.approx(top, abs=2.0)
        assert ink[:, 1].max() == pytest.approx(bottom, abs=2.0)
        assert np.abs(pixels - (255, 0, 0)).sum(axis=-1).min() <= 6


def test_renderers_agree_with_each_other_once_squeezed() -> None:
    rng = random.Random(3)
    for one in signs("heldout", 25):
        drawn = [draw(one, random.Random(0), 448, r, 0.0).resize((224, 224)) for r in RENDERERS]
        seen = [np.asarray(picture).astype(float) for picture in drawn]
        contrast = max(abs(a - b) for a, b in zip(one.rgb, one.background.colors[0], strict=True))
        for other in seen[1:]:
            assert np.abs(seen[0] - other).mean() < 0.12 * max(contrast, 100)
        assert training_picture(one, rng, effects=0.0).size == (224, 224)


def test_a_plate_lies_behind_the_text() -> None:
    plate = Plate((0, 0, 255), (0, 0, 0), 0.1, beside=0.5, above=0.5, roundness=0.0)
    one = sign("II", plate=plate, rgb=(255, 255, 0), color="yellow")
    for renderer in RENDERERS:
        pixels = np.asarray(draw(one, random.Random(0), renderer=renderer, effects=0.0))
        left, top, right, _ = (round(v + 200) for v in one.outer)
        assert tuple(pixels[200, left + 15]) == (0, 0, 255)
        assert pixels[200, left + 3].max() < 40
        assert tuple(pixels[200, left - 3]) == (255, 255, 255)
        assert tuple(pixels[top + 20, (left + right) // 2]) == (0, 0, 255)
        assert (pixels == (255, 255, 0)).all(axis=-1).any()


def test_labels_say_each_character_where_it_stands() -> None:
    found = labels(sign("STOP"))
    assert {name: getattr(found, name).shape for name in SIZES} == {name: (size,) for name, size in SIZES.items()}
    patches = found.patch_character.reshape(16, 32)
    middle = patches[8]
    assert [CHARACTERS[c - 1] for c, before in zip(middle, [0, *middle[:-1]], strict=True) if c and c != before] == [
        *"STOP"
    ]
    assert (patches[:5] == 0).all()
    assert (patches[11:] == 0).all()
    tokens = found.token_characters.reshape(TOKENS_PER_SIDE, TOKENS_PER_SIDE, CHARACTERS_PER_TOKEN)
    said = [c for row in tokens for token in row for c in token if c]
    assert said == [character_label(c) for c in "STOP"]
    red = 1 + COLORS.index("red")
    assert set(np.unique(found.patch_color)) == {0, red}
    assert ((found.patch_color == red) == (patches.reshape(256, 2) > 0).any(axis=1)).all()
    assert (found.token_color > 0).sum() == (tokens > 0).any(axis=-1).sum()
    assert not found.patch_shape.any()


def test_labels_leave_a_plate_open() -> None:
    plate = Plate((0, 0, 255), None, 0.0, beside=0.8, above=0.6, roundness=0.0)
    found = labels(sign("STOP", plate=plate, size=60.0))
    assert (found.patch_shape == NO_LABEL).any()
    written = (found.patch_character.reshape(256, 2) > 0).any(axis=1)
    assert (found.patch_color[written] == 1 + COLORS.index("red")).all()
    assert (found.patch_color[~written] != 1 + COLORS.index("red")).all()


def test_labels_meet_every_ink_and_nearly_every_character() -> None:
    missed = total = 0
    for one in signs("train", 150):
        found = labels(one)
        total += len(one.text)
        missed += len(one.text) - np.count_nonzero(found.token_characters)
        assert np.count_nonzero(found.patch_character)
        points = np.argwhere(found.patch_character.reshape(16, 32) > 0)
        rows, columns = (points[:, 0] + 0.5) / 16 * one.height, (points[:, 1] + 0.5) / 32 * one.width
        along = one.along(np.stack([columns, rows], axis=-1))
        bounds = np.array(edges(one.font, one.text)) * one.size + one.line[0]
        for (row, column), (x, _) in zip(points, along, strict=True):
            k = np.searchsorted(bounds, x) - 1
            assert found.patch_character.reshape(16, 32)[row, column] == character_label(one.text[k])
    assert missed / total < 0.02


def test_metrics_are_those_of_the_font() -> None:
    font = next(f for f in bundled_fonts() if f.name == "DejaVuSans")
    assert metrics(font).cap_height == pytest.approx(0.729, abs=0.005)  # of DejaVu Sans's OS/2 table: 1493 / 2048
    assert metrics(font).inks["p"][1] > 0.2
    assert edges(font, "II")[-1] == pytest.approx(2 * 0.295, abs=0.01)


def test_phrasings_are_many_and_split() -> None:
    assert set(PHRASINGS) == set(HELDOUT_PHRASINGS) == set(KINDS)
    for kind in KINDS:
        assert len(PHRASINGS[kind]) >= 15
        assert not set(PHRASINGS[kind]) & set(HELDOUT_PHRASINGS[kind])
        assert 0.10 <= len(HELDOUT_PHRASINGS[kind]) / (len(PHRASINGS[kind]) + len(HELDOUT_PHRASINGS[kind])) <= 0.20


def test_answers_say_the_text_as_written_and_its_color() -> None:
    rng = random.Random(4)
    asked = [q for _ in range(20) for q in ask(sign("Stop7"), rng, "train", 2)]
    assert {q.answer for q in asked} == {'The sign says "Stop7".', "The text is red."}
    assert all(is_right(q.kind, q.key, q.answer) for q in asked)
    fan = ask(sign("Stop7"), rng, "train", 8, apart=True)
    assert sorted(q.kind for q in fan) == ["read"] * 3 + ["text_color"] * 2
    assert {q.kind for q in ask(sign("Stop7", color=UNNAMED, rgb=(0, 128, 128)), rng, "train", 8)} == {"read"}


def test_letters_and_digits_are_counted_and_words_told_from_numbers() -> None:
    rng = random.Random(5)
    expected = {
        "STOP": {"The word has four letters.", "It is a word."},
        "I": {"The word has one letter.", "It is a word."},
        "12345678": {"The number has eight digits.", "It is a number."},
        "Stop7": set(),
    }
    for text, answers in expected.items():
        asked = [q for _ in range(30) for q in ask(sign(text), rng, "train", 4, ("letters_count", "word_or_number"))]
        assert {q.answer for q in asked} == answers
        assert all(is_right(q.kind, q.key, q.answer) and "{" not in q.question for q in asked)
        assert not any(("digit" in q.question.lower()) == text.isalpha() for q in asked if q.kind == "letters_count" and
                       ("digit" in q.question.lower() or "letter" in q.question.lower()))  # fmt: skip
    kinds = [q.kind for q in ask(sign(), rng, "train", 20, apart=True)]
    assert kinds.count("letters_count") == 2


def test_words_and_numbers_are_asked_about_evenly() -> None:
    asked = [q for _, q in questions_of_kind_without_pictures("word_or_number", "train", 300)]
    assert 0.35 < sum(q.key == "number" for q in asked) / len(asked) < 0.65


def questions_of_kind_without_pictures(kind: str, split: str, count: int) -> list:
    rng, found = random.Random(9), []
    while len(found) < count:
        one = random_sign(rng, bundled_fonts(), split, 0.0)
        found += [(one, q) for q in ask(one, rng, split, 1, (kind,))]
    return found


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("read", "STOP", 'The sign says "STOP".', True),
        ("read", "STOP", 'The sign says "stop".', True),
        ("read", "STOP", 'The sign says "STOPS".', False),
        ("read", "STOP", 'It says "STOP" or "SHOP".', False),
        ("read", "STOP", "The sign says STOP.", True),
        ("read", "1024", 'The sign says "1024".', True),
        ("read", "1024", 'The sign says "1O24".', False),
        ("read", "a", "", False),
        ("read", "a", 'The sign says "".', False),
        ("letters_count", "five", "The word has five letters.", True),
        ("letters_count", "eight", "8 letters", True),
        ("letters_count", "eight", "7 or 8 letters", False),
        ("letters_count", "three", 'The word "two" has three letters.', True),
        ("letters_count", "five", "The word has four letters.", False),
        ("word_or_number", "word", "It is a word.", True),
        ("word_or_number", "number", "It is a word.", False),
        ("word_or_number", "word", "It is a word or a number.", False),
        ("text_color", "gray", "The text is grey.", True),
        ("text_color", "red", "The text is red or blue.", False),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool) -> None:
    assert is_right(kind, key, answer) is right
    assert right_in_any_world(kind, key, answer) is right


def test_no_two_worlds_share_a_kind() -> None:
    assert len(set(ALL_KINDS)) == len(ALL_KINDS)
    assert WORLDS["signs"].kinds == KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluation_asks_held_out_texts_in_held_out_words(kind: str) -> None:
    asked = list(questions_of_kind(kind, 8, "heldout", 1))
    again = list(questions_of_kind(kind, 8, "heldout", 1))
    assert [q for _, q in asked] == [q for _, q in again]
    assert [p.tobytes() for p, _ in asked] == [p.tobytes() for p, _ in again]
    assert {q.kind for _, q in asked} == {kind}
    if kind == "read":
        assert all(is_heldout_text(q.key) for _, q in asked)


def test_typical_colors_are_the_ones_of_the_scenes() -> None:
    plain = [one for one in signs("train", 200, 0.0) if one.rgb == ANCHORS[one.color][0]]
    assert len(plain) > 80
