"""Bar charts keep their promises, renderers draw what the description says, and answers are true by it."""

import random
import re
from collections import Counter
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from places import DEMO_MODEL

from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer
from training.drawing import colors
from training.drawing.backgrounds import MIN_CONTRAST, Background, grounds_of
from training.drawing.colors import COLORS, UNNAMED, Shade, delta_e, to_lab
from training.drawing.dense_labels import (
    CHARACTERS_PER_TOKEN,
    HEIGHTS,
    NO_LABEL,
    PATCHES_PER_SIDE,
    POINTS_PER_PATCH,
    TOKENS_PER_SIDE,
    character_label,
    color_label,
)
from training.drawing.fonts import CHARACTERS, bundled_fonts, edges, metrics
from training.drawing.rendering import RENDERERS
from training.evaluation.dialogues import questions_of_kind
from training.learning.batches import ConversationWriter, Mix, Share, collate
from training.learning.dense_heads import DenseHeads
from training.learning.model import VISION_WIDTH
from training.train import mix_of, parse
from training.worlds.charts import questions as chart_questions
from training.worlds.charts.charts import (
    INK_CONTRAST,
    LARGEST_CAP_HEIGHT,
    LEAST_APART,
    LEAST_BETWEEN,
    LEAST_CAP_HEIGHT,
    LEAST_HEIGHT,
    LEAST_TRAINED,
    NAMES,
    SERIES,
    Bar,
    Chart,
    Look,
    behind_bars,
    random_chart,
    random_labels,
)
from training.worlds.charts.drawing import draw, height_label, labels, training_picture
from training.worlds.charts.questions import HELDOUT_PHRASINGS, KINDS, PHRASINGS, QUESTIONS
from training.worlds.registry import WORLDS, world_named
from training.worlds.registry import is_right as right_in_any_world
from training.worlds.scenes.questions import NUMBERS
from training.worlds.signs.signs import Sign, is_heldout_text

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right


def charts(split: str, count: int = 150, difficulty: float = 1.0, unnamed: float = 0.0) -> list[Chart]:
    rng = random.Random(f"{split} {difficulty} {unnamed}")
    return [random_chart(rng, bundled_fonts(), split, difficulty, unnamed) for _ in range(count)]


def chart(*bars: tuple[str, float, str, tuple[int, int, int]], **changes: object) -> Chart:
    """A plain one of 448 by 448 pixels, white with black letters; of each bar label, height, color and shade."""
    font = next(f for f in bundled_fonts() if f.name == "DejaVuSans")
    white = Background("plain", ((255, 255, 255),))
    made = []
    for number, (name, height, color, rgb) in enumerate(bars):
        x = 448 * (number + 0.5) / len(bars)
        label = Sign(448, 448, white, name, font, "black", (0, 0, 0), x, 410, 40)
        made.append(Bar(label, color, rgb, x - 40, 380 - height, x + 40, 380))
    look = Look("drawn", None, (0, 0, 0))
    return replace(Chart(448, 448, white, look, (4, 20, 444, 380), tuple(made), (), (), 1.0), **changes)


def three() -> Chart:
    return chart(("HEN", 120, "red", (255, 0, 0)), ("tea", 301, "blue", (0, 0, 255)), ("Ox", 60, "red", (255, 0, 0)))


def box_of(sign: Sign) -> tuple[float, float, float, float]:
    left, top, right, bottom = sign.line
    return sign.x + left, sign.y + top, sign.x + right, sign.y + bottom


def apart(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_labels_are_letters_all_different_and_held_out_never_or_at_least_one(split: str) -> None:
    rng = random.Random(split)
    lengths: Counter[int] = Counter()
    for _ in range(150):
        number, most = rng.randint(2, 6), rng.randint(1, 6)
        texts = random_labels(rng, split, number, most)
        assert len({text.lower() for text in texts}) == len(texts) == number
        assert all(text.isalpha() and text.isascii() and 1 <= len(text) <= most for text in texts)
        assert any(map(is_heldout_text, texts)) == (split == "heldout")
        lengths.update(map(len, texts))
    assert set(lengths) == set(range(1, 7))
    assert all(name.isalpha() and len(name) <= 6 for name in NAMES)
    assert all(len(text) <= 6 for series in SERIES for text in series)
    # Of names too there are enough in either split.
    assert 0.1 < sum(map(is_heldout_text, NAMES)) / len(NAMES) < 0.3


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_charts_keep_their_promises(split: str) -> None:
    found = charts(split)
    for one in found:
        shorter, longer = sorted((one.width, one.height))
        assert shorter >= 224
        assert longer <= min(2000, 2 * shorter + 1)
        grounds = behind_bars(one.background, one.look)
        for bar in one.bars:
            least = LEAST_TRAINED if split == "train" else LEAST_CAP_HEIGHT
            assert least - 1e-9 < bar.label.cap_height / shorter < LARGEST_CAP_HEIGHT + 1e-9
            assert 1 <= len(bar.name) <= 6
            left, top, right, bottom = box_of(bar.label)
            assert min(left, top) > 0
            assert right < one.width
            assert bottom < one.height
            assert bar.label.x == pytest.approx((bar.left + bar.right) / 2)
            assert bar.height >= LEAST_HEIGHT * one.height - 1e-6
            assert one.axes[1] <= bar.top
            assert bar.bottom == one.axes[3]
            assert one.axes[0] < bar.left < bar.right < one.axes[2]
            assert all(delta_e(to_lab(bar.rgb), ground) > MIN_CONTRAST for ground in grounds)
            written_on = [*grounds_of(one.background), *grounds]
            assert all(delta_e(to_lab(one.look.ink), ground) > 0.9 * INK_CONTRAST for ground in written_on)
        for one_bar, other in combinations(one.bars, 2):
            assert abs(one_bar.height - other.height) > LEAST_APART * one.height - 1e-6
        for before, after in pairwise(one.bars):
            assert after.left - before.right > LEAST_BETWEEN * one.width - 1e-6
        if split == "train":
            texts = [sign.text for sign in (*one.notes[len(one.ticks) :], *(bar.label for bar in one.bars))]
            assert not any(map(is_heldout_text, texts))
    assert {len(one.bars) for one in found} == {2, 3, 4, 5, 6}
    assert {bar.color for one in found for bar in one.bars} == set(COLORS)
    assert 0.3 < np.mean([len({bar.rgb for bar in one.bars}) == 1 for one in found]) < 0.65
    assert len({one.look.name for one in found}) >= 7
    assert 0.05 < np.mean([one.bars[0].label.y < one.bars[0].top for one in found]) < 0.3


def test_nothing_that_is_written_touches_anything_else() -> None:
    for one in charts("train"):
        texts = [box_of(sign) for sign in (*(bar.label for bar in one.bars), *one.notes)]
        assert all(apart(a, b) for a, b in combinations(texts, 2))
        bars = [(bar.left, bar.top, bar.right, bar.bottom) for bar in one.bars]
        assert all(apart(text, bar) for text in texts for bar in bars)


def test_numbers_beside_the_axis_grow_evenly_from_the_foot_of_the_bars() -> None:
    ticked = [one for one in charts("train") if one.ticks]
    assert len(ticked) > 50
    for one in ticked:
        numbers = [int(sign.text) for sign in one.notes[: len(one.ticks)]]
        assert numbers[0] == 0
        assert 3 <= len(numbers) <= 8
        assert one.ticks[0] == pytest.approx(one.axes[3])
        assert np.ptp(np.diff(one.ticks)) < 1e-6
        assert len(set(np.diff(numbers))) == 1
        assert one.ticks[-1] >= one.axes[1] - 1e-6
        assert [sign.y for sign in one.notes[: len(one.ticks)]] == list(one.ticks)


def test_easy_charts_are_few_plainly_different_bars_on_a_plain_ground() -> None:
    for one in charts("train", 60, difficulty=0.0):
        assert one.width == one.height
        assert len(one.bars) <= 3
        assert one.background.kind == "plain"
        assert all(len(bar.name) <= 2 and bar.label.font.kind == "sans" for bar in one.bars)
        assert all(abs(a.height - b.height) > 0.079 * one.height for a, b in combinations(one.bars, 2))


def test_unnamed_colors_come_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    between = [Shade(UNNAMED, rgb, to_lab(rgb)) for rgb in ((0, 128, 128), (128, 128, 0), (250, 128, 114))]
    monkeypatch.setattr(colors, "unnamed_shades", lambda: tuple(between))  # all of them take seconds to find
    assert not any(bar.color == UNNAMED for one in charts("train", 40) for bar in one.bars)
    share = np.mean([any(bar.color == UNNAMED for bar in one.bars) for one in charts("train", 60, unnamed=1.0)])
    assert share > 0.7


def test_same_seed_same_chart_and_picture() -> None:
    first, second = (random_chart(random.Random(7), bundled_fonts()) for _ in range(2))
    assert first == second
    one, two = (training_picture(first, random.Random(7)) for _ in range(2))
    assert one.tobytes() == two.tobytes()
    assert one.size == (224, 224)


def test_unknown_split_renderer_and_kind_are_errors() -> None:
    with pytest.raises(ValueError, match="validation"):
        random_chart(random.Random(0), bundled_fonts(), "validation")
    with pytest.raises(ValueError, match="cairo"):
        draw(three(), random.Random(0), renderer="cairo")
    with pytest.raises(ValueError, match="test"):
        ask(three(), random.Random(0), "test")
    with pytest.raises(ValueError, match="read"):
        is_right("read", "a", "a")


@pytest.mark.parametrize("renderer", RENDERERS)
def test_renderers_put_bars_where_the_description_says(renderer: str) -> None:
    pixels = np.asarray(draw(three(), random.Random(0), renderer=renderer, effects=0.0)).astype(int)
    for bar in three().bars:
        filled = np.abs(pixels - bar.rgb).sum(axis=-1) < 30
        rows, columns = np.nonzero(filled[: round(bar.bottom) + 2, round(bar.left) - 5 : round(bar.right) + 5])
        assert rows.min() == pytest.approx(bar.top, abs=1.0)
        assert rows.max() + 1 == pytest.approx(bar.bottom, abs=1.0)
        assert columns.min() + round(bar.left) - 5 == pytest.approx(bar.left, abs=1.0)
        assert columns.max() + 1 + round(bar.left) - 5 == pytest.approx(bar.right, abs=1.0)
        assert filled[round(bar.top) + 2 : 378, round(bar.left) + 2 : round(bar.right) - 2].all()


@pytest.mark.parametrize("renderer", RENDERERS)
def test_renderers_put_labels_where_the_description_says(renderer: str) -> None:
    one = chart(*((name, 200, "red", (255, 0, 0)) for name in ("HEN", "EXIT")))
    pixels = np.asarray(draw(one, random.Random(0), renderer=renderer, effects=0.0)).astype(int)
    for number, bar in enumerate(one.bars):
        rows, columns = np.nonzero(pixels[384:, 224 * number : 224 * (number + 1)].sum(axis=-1) < 384)
        left, top, right, bottom = box_of(bar.label)
        bearing = 0.15 * bar.label.size  # white that belongs to the outer letters
        assert left - 2 < columns.min() + 224 * number < left + bearing
        assert right - bearing < columns.max() + 224 * number < right + 2
        assert rows.min() + 384 == pytest.approx(top, abs=2.0)
        assert rows.max() + 384 == pytest.approx(bottom, abs=2.0)


@pytest.mark.parametrize("renderer", RENDERERS)
def test_axes_grid_ticks_and_edges_are_drawn(renderer: str) -> None:
    look = Look(
        "test", (220, 220, 255), (0, 0, 0), ("left", "bottom"), (0, 128, 0), True, (255, 0, 255), True,
        grid_in_front=True,
    )  # fmt: skip
    bars = (("A", 150, "red", (255, 0, 0)), ("B", 250, "red", (255, 0, 0)))
    one = chart(*bars, look=look, axes=(60, 20, 440, 380), ticks=(380.0, 280.0, 180.0), line=4.0, edge=(0, 0, 0))
    one = replace(one, edge_width=6.0)
    pixels = np.asarray(draw(one, random.Random(0), renderer=renderer, effects=0.0)).astype(int)

    def shows(x: float, y: float, color: tuple[int, int, int]) -> bool:
        return bool((np.abs(pixels[round(y), round(x)] - color) <= 6).all())

    assert shows(230, 100, (220, 220, 255))
    assert shows(20, 100, (255, 255, 255))
    assert shows(60, 100, (0, 128, 0))
    assert shows(225, 380, (0, 128, 0))
    assert not shows(440, 100, (0, 128, 0))
    assert not shows(52, 180, (255, 255, 255))  # a tick
    assert shows(52, 200, (255, 255, 255))
    assert shows(230, 180, (255, 0, 255))
    assert shows(340, 180, (255, 0, 255))  # in front of the bar
    bar = one.bars[1]
    assert shows(bar.left + 2.5, 200, (0, 0, 0))
    assert shows(bar.left + 10, 200, (255, 0, 0))
    assert shows((bar.left + bar.right) / 2 + 10, bar.top + 2.5, (0, 0, 0))
    behind = replace(one, look=replace(look, grid_in_front=False))
    pixels = np.asarray(draw(behind, random.Random(0), renderer=renderer, effects=0.0)).astype(int)
    assert not shows(340, 180, (255, 0, 255))


def test_dashes_leave_gaps_in_every_renderer() -> None:
    look = replace(three().look, grid=(0, 0, 0), grid_dashed=True)
    for renderer in RENDERERS:
        picture = draw(replace(three(), look=look, ticks=(100.0,), line=3.0), random.Random(0), None, renderer, 0.0)
        row = np.asarray(picture)[100, 4:120, 0]
        assert 0.4 < (row < 128).mean() < 0.9


def test_renderers_agree_with_each_other_once_squeezed() -> None:
    for one in charts("heldout", 12):
        drawn = [draw(one, random.Random(0), 448, r, 0.0).resize((224, 224)) for r in RENDERERS]
        seen = [np.asarray(picture).astype(float) for picture in drawn]
        for other in seen[1:]:
            assert np.abs(seen[0] - other).mean() < 6
        pictures = [training_picture(one, random.Random(n), effects=0.0) for n in range(3)]
        for picture in pictures:
            # Textures are drawn anew each time: it is the bars that must agree.
            assert np.abs(np.asarray(picture).astype(float) - seen[0]).mean() < 12


def test_labels_say_how_high_a_bar_is_and_of_what_color() -> None:
    one = three()
    found = labels(one)
    heights = found.token_height.reshape(TOKENS_PER_SIDE, TOKENS_PER_SIDE)
    told = found.token_color.reshape(TOKENS_PER_SIDE, TOKENS_PER_SIDE)
    cell = 448 / TOKENS_PER_SIDE
    said = set()
    for row in range(TOKENS_PER_SIDE):
        for column in range(TOKENS_PER_SIDE):
            x, y = (column + 0.5) * cell, (row + 0.5) * cell
            inside = [b for b in one.bars if b.left < x < b.right and b.top < y < b.bottom]
            if inside:
                assert heights[row, column] == np.ceil(HEIGHTS * inside[0].height / 448)
                assert told[row, column] == color_label(inside[0].color)
                said.add(inside[0].name)
            else:
                touched = any(
                    b.left < (column + 1) * cell
                    and b.right > column * cell
                    and b.top < (row + 1) * cell
                    and b.bottom > row * cell
                    for b in one.bars
                )
                assert heights[row, column] == (NO_LABEL if touched else 0)
    assert said == {"HEN", "tea", "Ox"}
    assert [height_label(bar, one) for bar in one.bars] == [5, 11, 3]
    assert height_label(replace(one.bars[0], top=380 - 56), one) == 2  # exactly two sixteenths


def test_labels_spell_what_stands_under_the_bars() -> None:
    found = labels(three())
    tokens = found.token_characters.reshape(-1, CHARACTERS_PER_TOKEN)
    assert [CHARACTERS[c - 1] for token in tokens for c in token if c] == list("HENteaOx")
    patches = found.patch_character.reshape(PATCHES_PER_SIDE, -1)
    assert not patches[:13].any()
    for bar in three().bars:
        x = round(bar.label.x / 448 * PATCHES_PER_SIDE * POINTS_PER_PATCH)
        assert set(patches[14, x - 2 : x + 2]) - {0} <= set(map(character_label, bar.name))
        assert patches[14, x - 2 : x + 2].any()
    lettered = (patches.reshape(-1, POINTS_PER_PATCH) > 0).any(axis=1)
    assert (found.patch_color[lettered] == color_label("black")).all()
    # Bars are no rectangles of the scenes, nor is it said that they are none.
    barred = np.isin(found.patch_color, [color_label("red"), color_label("blue")])
    assert (found.patch_shape == NO_LABEL).sum() == barred.sum()
    assert (found.patch_shape[barred] == NO_LABEL).all()


def test_two_labels_in_one_soft_token_leave_its_letters_open() -> None:
    one = chart(("ab", 100, "red", (255, 0, 0)), ("cd", 200, "red", (255, 0, 0)))
    near = replace(one.bars[1], label=replace(one.bars[1].label, x=one.bars[0].label.x + 15, size=12))
    bars = (replace(one.bars[0], label=replace(one.bars[0].label, size=12)), near)
    tokens = labels(replace(one, bars=bars)).token_characters.reshape(-1, CHARACTERS_PER_TOKEN)
    assert (tokens == NO_LABEL).any()
    assert all(set(token) == {NO_LABEL} or NO_LABEL not in token for token in tokens)
    assert not (labels(one).token_characters == NO_LABEL).any()


def test_labels_agree_with_the_drawing() -> None:
    """Patches in a bar's color show it; letters lie where they are said, and nowhere else but in notes."""
    shown: list[bool] = []
    middles = (np.arange(PATCHES_PER_SIDE) + 0.5) / PATCHES_PER_SIDE
    for one in charts("train", 25):
        plain = replace(one, background=Background("plain", one.background.colors[:1]))
        found = labels(plain)
        characters = found.patch_character.reshape(-1, POINTS_PER_PATCH)
        written = ((characters > 0) & (characters != NO_LABEL)).any(axis=1)
        pixels = np.asarray(draw(plain, random.Random(0), 448, "pillow", 0.0).resize((224, 224))).astype(int)
        for bar in one.bars:
            near = (np.abs(pixels - bar.rgb).sum(axis=2) < 40).reshape(16, 14, 16, 14).mean(axis=(1, 3)).ravel()
            columns = (middles * one.width > bar.left) & (middles * one.width < bar.right)
            rows = (middles * one.height > bar.top) & (middles * one.height < bar.bottom)
            inside = np.outer(rows, columns).ravel() & ~written
            assert (found.patch_color[inside] == color_label(bar.color)).all()
            assert (found.patch_shape[inside] == NO_LABEL).all()
            shown += (near[inside] > 0.2).tolist()
        bare = replace(plain, bars=tuple(replace(b, label=replace(b.label, rgb=(0, 0, 0))) for b in one.bars), notes=())
        white = replace(bare, bars=tuple(replace(b, label=replace(b.label, rgb=(255, 255, 255))) for b in bare.bars))
        drawn = [np.asarray(draw(c, random.Random(0), 448, "pillow", 0.0).resize((224, 224))) for c in (bare, white)]
        ink = np.abs(drawn[0].astype(int) - drawn[1]).max(axis=2).reshape(16, 14, 16, 14).mean(axis=(1, 3)).ravel()
        assert (ink[written] > 0).mean() > 0.9
        assert not ((ink > 60) & (characters == 0).all(axis=1)).any()
    assert np.mean(shown) > 0.97


def test_what_notes_say_is_left_open() -> None:
    one = next(one for one in charts("train") if one.ticks)
    found, without = labels(one), labels(replace(one, notes=()))
    note = one.notes[-1]
    row, column = int(note.y / one.height * 16), int(note.x / one.width * 32)
    assert found.patch_character.reshape(16, 32)[row, column] == NO_LABEL
    assert not (without.patch_character == NO_LABEL).any()
    letters = without.patch_character > 0
    assert (found.patch_character[letters] == without.patch_character[letters]).all()
    token = int(note.y / one.height * 8) * 8 + int(note.x / one.width * 8)
    assert (found.token_characters.reshape(-1, CHARACTERS_PER_TOKEN)[token] == NO_LABEL).all()


def test_signs_have_no_heights_and_crowds_leave_them_open() -> None:
    rng = random.Random(4)
    signs = WORLDS["signs"]
    assert not signs.labels(signs.imagine(rng, "train")).token_height.any()
    crowds = world_named("crowds")
    assert set(crowds.labels(crowds.imagine(rng, "train")).token_height) == {NO_LABEL}


def test_phrasings_are_many_and_split() -> None:
    assert set(PHRASINGS) == set(HELDOUT_PHRASINGS) == set(KINDS)
    for kind in KINDS:
        assert len(set(PHRASINGS[kind])) == len(PHRASINGS[kind]) >= 12
        assert len(HELDOUT_PHRASINGS[kind]) >= 3
        assert not set(PHRASINGS[kind]) & set(HELDOUT_PHRASINGS[kind])
    of_two = ['"{one}"', '"{other}"']
    named = {"chart_taller": of_two, "chart_which_taller": of_two, "chart_bar_color": ['"{one}"']}
    for kind, slots in named.items():
        assert all(slot in text for slot in slots for text in (*PHRASINGS[kind], *HELDOUT_PHRASINGS[kind]))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_are_true_by_the_description(split: str) -> None:
    rng = random.Random(split)
    said: Counter[str] = Counter()
    for one in charts(split, 80):
        by_name = {bar.name: bar for bar in one.bars}
        for question in ask(one, rng, split, 12):
            asked = re.findall(r'"([^"]*)"', question.question)
            told = re.findall(r'"([^"]*)"', question.answer)
            assert is_right(question.kind, question.key, question.answer)
            assert set(asked + told) <= set(by_name)
            heights = [bar.height for bar in one.bars]
            if question.kind == "chart_tallest":
                assert by_name[told[0]].height == max(heights)
            elif question.kind == "chart_shortest":
                assert by_name[told[0]].height == min(heights)
            elif question.kind == "chart_taller":
                yes = by_name[asked[0]].height > by_name[asked[1]].height
                name, therefore = (asked[0], "yes") if yes else (asked[1], "no")
                assert question.answer == f'"{name}" is taller, so {therefore}.'
                said["yes" if yes else "no"] += 1
            elif question.kind == "chart_which_taller":
                assert told == [max(asked, key=lambda name: by_name[name].height)]
            elif question.kind == "chart_order":
                assert [by_name[name].height for name in told] == sorted(heights, reverse=True)
            elif question.kind == "chart_count":
                assert question.answer == f"There are {NUMBERS[len(one.bars)]} bars."
            else:
                assert question.answer == f"The bar is {by_name[asked[0]].color}."
            said[question.kind] += 1
    assert set(KINDS) < set(said)
    assert 0.8 < said["yes"] / said["no"] < 1.25


def test_each_is_asked_once_and_apart_a_few_in_other_words() -> None:
    rng = random.Random(5)
    all_of = ask(three(), rng, num=100)
    assert Counter(q.kind for q in all_of) == {
        "chart_tallest": 1, "chart_shortest": 1, "chart_taller": 3, "chart_which_taller": 3, "chart_order": 1,
        "chart_count": 1, "chart_bar_color": 3,
    }  # fmt: skip
    fan = ask(three(), rng, num=100, apart=True)
    assert Counter(q.kind for q in fan)["chart_tallest"] == 2
    assert {q.answer for q in fan if q.kind == "chart_tallest"} == {'The tallest bar is "tea".'}
    assert len(ask(three(), rng, num=4)) == 4
    assert {q.kind for q in ask(three(), rng, num=9, kinds=("chart_count",))} == {"chart_count"}
    colorless = replace(three(), bars=tuple(replace(bar, color=UNNAMED) for bar in three().bars))
    assert "chart_bar_color" not in {q.kind for q in ask(colorless, rng, num=100)}


def test_labels_stay_as_they_are_written_however_loosely_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    one = chart(
        ("Color", 100, "red", (255, 0, 0)), ("gray", 200, "red", (255, 0, 0)), ("center", 300, "red", (9, 9, 9))
    )
    monkeypatch.setitem(chart_questions.TRAINED, "chart_taller", ('Is "{one}" gray, or a color at the center?',))
    rng, respelled = random.Random(6), 0
    for _ in range(100):
        for question in ask(one, rng, num=3, kinds=("chart_taller",)):
            (name,) = re.findall(r'"([^"]*)"', question.question)
            assert name in ("Color", "gray", "center")
            respelled += "colour" in question.question
    assert respelled > 10


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("chart_tallest", "tea", 'The tallest bar is "tea".', True),
        ("chart_tallest", "tea", 'The tallest bar is "TEA".', True),
        ("chart_tallest", "tea", "The tallest bar is tea.", True),
        ("chart_tallest", "tea", 'The tallest bar is "teas".', False),
        ("chart_tallest", "tea", 'The tallest bar is "tea" or "milk".', False),
        ("chart_tallest", "tea", "", False),
        ("chart_shortest", "Ox", 'The shortest bar is "Ox".', True),
        ("chart_shortest", "Ox", 'The shortest bar is "".', False),
        ("chart_taller", 'yes "tea"', '"tea" is taller, so yes.', True),
        ("chart_taller", 'yes "tea"', '"tea" is taller, so no.', False),
        ("chart_taller", 'yes "tea"', 'Yes, "tea" is taller.', True),
        ("chart_taller", 'yes "tea"', "Yes.", True),
        ("chart_taller", 'yes "tea"', 'Yes, "milk" is taller.', False),
        ("chart_taller", 'yes "tea"', 'No, "tea" is taller.', False),
        ("chart_taller", 'yes "tea"', 'Yes, "tea" is not taller.', False),
        ("chart_taller", 'no "milk"', 'No, "Milk" is taller.', True),
        ("chart_taller", 'no "milk"', 'No, "tea" is taller than "milk".', False),
        ("chart_taller", 'no "milk"', '"milk" is taller.', False),
        ("chart_taller", 'no "yes"', 'No, "yes" is taller.', True),
        ("chart_taller", 'no "yes"', 'No, "yes', True),
        ("chart_taller", 'no "milk"', 'No, "milk" is taller, "tea" is not.', False),
        ("chart_which_taller", "milk", '"Milk" is taller.', True),
        ("chart_which_taller", "milk", '"tea" is taller.', False),
        ("chart_which_taller", "milk", '"milk" is taller than "tea".', False),
        ("chart_order", '"tea", "milk", "ox"', '"Tea", "milk", "ox".', True),
        ("chart_order", '"tea", "milk", "ox"', '"tea", "ox", "milk".', False),
        ("chart_order", '"tea", "milk", "ox"', '"tea", "milk".', False),
        ("chart_order", '"tea", "milk", "ox"', "tea, milk, ox.", False),
        ("chart_count", "four", "There are four bars.", True),
        ("chart_count", "four", "4", True),
        ("chart_count", "four", "There are four or five bars.", False),
        ("chart_count", "four", "There are bars.", False),
        ("chart_bar_color", "gray", "The bar is grey.", True),
        ("chart_bar_color", "red", 'The bar "blue" is red.', True),
        ("chart_bar_color", "red", "The bar is red or blue.", False),
        ("chart_bar_color", "red", "The bar is blue.", False),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool) -> None:
    assert is_right(kind, key, answer) is right
    assert right_in_any_world(kind, key, answer) is right


def test_the_world_of_charts_joins_the_others() -> None:
    assert WORLDS["charts"].kinds == KINDS
    world, rng = WORLDS["charts"], random.Random(8)
    one = world.imagine(rng, "heldout")
    assert {bar.label.font for bar in one.bars} <= set(bundled_fonts())
    assert world.draw(one, rng).size == world.size(one) == (one.width, one.height)
    assert world.as_seen(one, rng, 224).size == (224, 224)


@pytest.mark.parametrize("kind", KINDS)
def test_the_evaluation_asks_about_held_out_labels_in_held_out_words(kind: str) -> None:
    asked = list(questions_of_kind(kind, 3, "heldout", 1, "pillow"))
    again = list(questions_of_kind(kind, 3, "heldout", 1, "pillow"))
    assert [q for _, q in asked] == [q for _, q in again]
    assert [p.tobytes() for p, _ in asked] == [p.tobytes() for p, _ in again]
    assert {q.kind for _, q in asked} == {kind}


def test_batches_hold_charts_with_their_heights() -> None:
    writer = ConversationWriter(Gemma3Tokenizer.from_pretrained(DEMO_MODEL))
    shares = (Share("charts", 1.0),)
    mix = Mix(shares, 8, 1.0, second_picture=0.0, pan_and_scan=0.0, no_picture=0.0, true_size=0.0, unnamed=0.0)
    batch = collate([writer.write(random.Random(n), mix) for n in range(6)])
    assert batch.dense.token_height.shape == (6, TOKENS_PER_SIDE**2)
    assert (batch.dense.token_height > 0).any(dim=1).all()
    assert batch.dense.token_height.max() <= HEIGHTS
    heads = DenseHeads()
    heads(torch.randn(6, 256, VISION_WIDTH), torch.randn(6, 64, 256), batch.dense).backward()
    assert heads.token_height.weight.grad.abs().sum() > 0


def test_the_arguments_ask_for_charts() -> None:
    arguments = parse(["--out", "x", "--signs", "0.3", "--charts", "0.7", "--easiest-chart", "0.5"])
    assert mix_of(arguments).worlds == (Share("signs", 0.3), Share("charts", 0.7, 0.5))
    assert mix_of(parse(["--out", "x", "--charts", "0.25"])).worlds == (Share("scenes", 0.75), Share("charts", 0.25))
    for wrong in (["--charts", "2"], ["--signs", "0.6", "--charts", "0.6"], ["--easiest-chart", "-1"]):
        with pytest.raises(SystemExit):
            parse(["--out", "x", *wrong])


def test_lengths_are_those_of_the_font() -> None:
    for one in charts("train", 20):
        for bar in one.bars:
            left, _, right, _ = bar.label.line
            em = bar.label.cap_height / metrics(bar.label.font).cap_height
            assert right - left == pytest.approx(edges(bar.label.font, bar.name)[-1] * em)
