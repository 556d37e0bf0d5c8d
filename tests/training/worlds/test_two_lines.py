"""Signs of two lines keep their promises, drawings show what labels say, and each line is judged by its text."""

import random
from dataclasses import replace

import numpy as np
import pytest
from places import DEMO_MODEL

from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer
from training.drawing.backgrounds import Background, grounds_of
from training.drawing.colors import delta_e, to_lab
from training.drawing.dense_labels import CHARACTERS_PER_TOKEN, NO_LABEL, SIZES, character_label
from training.drawing.fonts import bundled_fonts, metrics
from training.drawing.rendering import RENDERERS
from training.evaluation.dialogues import questions_of_kind
from training.learning.batches import ConversationWriter, Mix, Share
from training.train import mix_of, parse
from training.worlds.registry import WORLDS
from training.worlds.registry import is_right as right_in_any_world
from training.worlds.signs import drawing as sign_drawing
from training.worlds.signs.drawing import draw, labels, labels_of_lines, training_picture
from training.worlds.signs.signs import LEAST_CAP_HEIGHT, LEAST_TRAINED, Plate, Sign, is_heldout_text
from training.worlds.signs.two_line_questions import HELDOUT_PHRASINGS, KINDS, PHRASINGS, QUESTIONS
from training.worlds.signs.two_lines import TwoLines, random_two_lines

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right


def signs(split: str, count: int = 60, difficulty: float = 1.0) -> list[TwoLines]:
    rng = random.Random(f"{split} {difficulty}")
    return [random_two_lines(rng, bundled_fonts(), split, difficulty) for _ in range(count)]


def stop_and_go(turned: float = 0.0) -> TwoLines:
    font = next(f for f in bundled_fonts() if f.name == "DejaVuSans")
    ground = Background("plain", ((255, 255, 255),))
    upper = Sign(400, 400, ground, "STOP", font, "red", (255, 0, 0), 200.0, 140.0, 80.0, turned)
    return TwoLines(400, 400, ground, (upper, replace(upper, text="HEN", x=200.0, y=250.0)))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_signs_keep_their_promises(split: str) -> None:
    found = signs(split)
    for one in found:
        side = min(one.width, one.height)
        upper, lower = one.lines
        assert is_heldout_text(upper.text) == is_heldout_text(lower.text) == (split == "heldout")
        assert upper.rotation == lower.rotation
        assert abs(upper.rotation) <= 8
        for line in one.lines:
            assert line.cap_height / side > (LEAST_TRAINED if split == "train" else LEAST_CAP_HEIGHT) - 1e-9
            assert (line.width, line.height, line.plate) == (one.width, one.height, None)
            corners = _corners(line, line.outer)
            assert corners.min() > 0
            assert (corners < (one.width, one.height)).all()
            if one.plated is not None:
                left, top, right, bottom = one.plated.outer
                inside = one.plated.along(corners)
                assert (inside >= (left - 1e-6, top - 1e-6)).all()
                assert (inside <= (right + 1e-6, bottom + 1e-6)).all()
                assert _corners(one.plated, one.plated.outer).min() > 0
        gap = upper.along(_corners(lower, lower.line))[:, 1].min() - upper.line[3]
        assert 0.3 * upper.cap_height < gap < upper.cap_height
        filled = one.plated is not None and one.plated.plate.fill is not None
        grounds = [to_lab(one.plated.plate.fill)] if filled else grounds_of(one.background)
        assert all(delta_e(to_lab(upper.rgb), ground) > 26 for ground in grounds)
    assert any(one.plated for one in found)
    assert any(one.lines[0].rotation for one in found)
    assert any(one.lines[1].size < 0.9 * one.lines[0].size for one in found)


def _corners(sign: Sign, outer: tuple[float, float, float, float]) -> np.ndarray:
    left, top, right, bottom = outer
    return sign.turned(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))


def test_easy_signs_are_large_upright_and_plain() -> None:
    for one in signs("train", 20, difficulty=0.0):
        assert one.width == one.height
        assert one.plated is None
        for line in one.lines:
            assert len(line.text) <= 4
            assert (line.rotation, line.font.kind) == (0.0, "sans")
            assert line.cap_height > 0.11 * one.width
    with pytest.raises(ValueError, match="test"):
        random_two_lines(random.Random(0), bundled_fonts(), "test")


@pytest.mark.parametrize("renderer", RENDERERS)
@pytest.mark.parametrize("turned", [0.0, 6.0])
def test_renderers_put_both_lines_where_the_description_says(renderer: str, turned: float) -> None:
    one = stop_and_go(turned)
    pixels = np.asarray(draw(one, random.Random(0), renderer=renderer, effects=0.0)).astype(int)
    rows, columns = np.nonzero(pixels[..., 1] < 128)
    for line in one.lines:
        ink = line.along(np.stack([columns + 0.5, rows + 0.5], axis=-1))
        left, top, right, bottom = line.line
        own = ink[np.abs(ink[:, 1]) < 0.6 * line.size]
        assert own[:, 1].min() == pytest.approx(top, abs=2.5)
        assert own[:, 1].max() == pytest.approx(bottom, abs=2.5)
        assert left - 2 < own[:, 0].min()
        assert own[:, 0].max() < right + 2


def test_the_plate_lies_behind_both_lines_and_is_left_open() -> None:
    one = stop_and_go()
    plate = Plate((0, 0, 255), None, 0.0, beside=0.3, above=1.5, roundness=0.0)
    plated = replace(one, plated=replace(one.lines[0], y=195.0, plate=plate))
    pixels = np.asarray(draw(plated, random.Random(0), renderer="pillow", effects=0.0))
    assert (pixels[195, 195:205] == (0, 0, 255)).all()
    assert (pixels[100, 10] == 255).all()
    assert (pixels == (255, 0, 0)).all(axis=-1).any()
    bare, found = labels(one), labels(plated)
    assert (found.patch_shape == NO_LABEL).any()
    assert not (bare.patch_shape == NO_LABEL).any()
    assert (found.patch_character == bare.patch_character).all()
    lettered = (found.patch_character.reshape(256, 2) > 0).any(axis=1)
    assert (found.patch_color[lettered] == bare.patch_color[lettered]).all()


def test_labels_spell_both_lines_in_order() -> None:
    found = labels(stop_and_go())
    assert {name: getattr(found, name).shape for name in SIZES} == {name: (size,) for name, size in SIZES.items()}
    said = [c for c in found.token_characters if c]
    assert said == [character_label(c) for c in "STOPHEN"]
    assert (found.token_color > 0).sum() == (found.token_characters.reshape(-1, CHARACTERS_PER_TOKEN) > 0).any(1).sum()


def test_a_soft_token_that_holds_parts_of_both_lines_has_no_characters() -> None:
    upper, lower = stop_and_go().lines
    close = labels_of_lines((replace(upper, size=20.0, y=198.0 - 190), replace(lower, size=20.0, y=222.0 - 190)))
    assert (close["token_characters"] == NO_LABEL).any()
    assert not ((close["token_characters"] > 0) & (close["token_characters"] < NO_LABEL)).all()


def test_training_pictures_and_pictures_agree() -> None:
    for number, one in enumerate(signs("heldout", 4)):
        assert training_picture(one, random.Random(number)).size == (224, 224)
        seen = [
            sign_drawing._drawn(one, (one.width, one.height), r, random.Random(0)) for r in ("pillow", "matplotlib")
        ]
        small = [np.asarray(picture.resize((112, 112))).astype(float) for picture in seen]
        assert np.abs(small[0] - small[1]).mean() < 12
        assert metrics(one.lines[0].font).cap_height > 0


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_say_each_line_as_written(split: str) -> None:
    rng, one = random.Random(4), signs(split, 1)[0]
    first, second = (line.text for line in one.lines)
    answers = {
        "read_lines": f'The sign says "{first}" and "{second}".',
        "first_line": f'The first line says "{first}".',
        "second_line": f'The second line says "{second}".',
    }
    fan = ask(one, rng, split, 9, apart=True)
    assert sorted(q.kind for q in fan) == sorted(2 * KINDS)
    assert len({q.question for q in fan}) == 6
    for q in fan:
        assert q.answer == answers[q.kind]
        assert right_in_any_world(q.kind, q.key, q.answer)
    assert WORLDS["two_lines"].kinds == KINDS


def test_phrasings_are_many_and_split() -> None:
    assert set(PHRASINGS) == set(HELDOUT_PHRASINGS) == set(KINDS)
    for kind in KINDS:
        assert len(PHRASINGS[kind]) >= 15
        assert len(HELDOUT_PHRASINGS[kind]) >= 3
        assert not set(PHRASINGS[kind]) & set(HELDOUT_PHRASINGS[kind])


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("read_lines", "STOP GO", 'The sign says "STOP" and "GO".', True),
        ("read_lines", "STOP GO", 'The sign says "stop" and "Go".', True),
        ("read_lines", "STOP GO", 'The sign says "GO" and "STOP".', False),
        ("read_lines", "STOP GO", 'The sign says "STOP".', False),
        ("first_line", "STOP", 'The first line says "STOP".', True),
        ("first_line", "STOP", 'The first line says "GO".', False),
        ("second_line", "GO", 'It says "STOP" and "GO".', False),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool) -> None:
    assert is_right(kind, key, answer) is right
    with pytest.raises(ValueError, match="read"):
        is_right("read", key, answer)


def test_the_evaluation_and_training_hold_two_lines() -> None:
    ((picture, question),) = questions_of_kind("read_lines", 1, "heldout", 1, "pillow")
    assert picture.mode == "RGB"
    assert all(is_heldout_text(text) for text in question.key.split())
    writer = ConversationWriter(Gemma3Tokenizer.from_pretrained(DEMO_MODEL))
    mix = Mix((Share("two_lines", 1.0),), 6, 1.0, second_picture=0.0, pan_and_scan=0.0, no_picture=0.0)
    conversation = writer.write(random.Random(1), mix)
    assert writer._tokenizer.decode(conversation.ids).count('The sign says "') == 2
    assert (conversation.dense[0].token_characters > 0).any()
    arguments = parse(["--out", "x", "--two-lines", "0.5", "--signs", "0.5", "--easiest-sign", "0.25"])
    assert mix_of(arguments).worlds == (Share("signs", 0.5, 0.25), Share("two_lines", 0.5, 0.25))
