"""Boards are read in their crops and not as a whole; questions, labels, batches and evaluation keep to that."""

import random
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, pairwise, product

import numpy as np
import pytest
from PIL import Image

from gemma3_core.images.processor import Box, Gemma3ImageProcessorPil, pan_and_scan_boxes
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer
from training.drawing.backgrounds import Background, grounds_of
from training.drawing.colors import COLORS, delta_e, to_lab
from training.drawing.dense_labels import NO_LABEL, TOKENS_PER_SIDE, character_label
from training.drawing.fonts import CHARACTERS, bundled_fonts, edges
from training.drawing.rendering import RENDERERS
from training.evaluate import table
from training.evaluation.trials import GUESSED_PRICES, Examinee, accuracies, evaluate
from training.learning.batches import UNREAD_QUESTIONS, ConversationWriter, Mix, Share, _alike, collate
from training.learning.dense_heads import IGNORED
from training.learning.model import DEMO_MODEL
from training.train import dense_mix_of, mix_of, parse
from training.worlds.boards import drawing as board_drawing
from training.worlds.boards.boards import LEAST_IN_CROP, MOST_IN_WHOLE, Board, Entry, Panel, random_board, random_price
from training.worlds.boards.drawing import crop_labels, draw, labels, training_crops, training_picture
from training.worlds.boards.questions import HELDOUT_PHRASINGS, KINDS, PHRASINGS, QUESTIONS, TOO_SMALL, says_too_small
from training.worlds.registry import WORLDS
from training.worlds.signs.signs import Sign, is_heldout_text
from training.worlds.world import ReadInCrops

ask, is_right = QUESTIONS.ask, QUESTIONS.is_right

ALL_BOARDS = Mix(
    worlds=(Share("boards", 1.0),), questions=8, second_picture=0.0, no_picture=0.0, question_first=0.0, true_size=0.0
)


@cache
def boards(split: str, count: int = 120, difficulty: float = 1.0) -> tuple[Board, ...]:
    rng = random.Random(f"{split} {difficulty}")
    return tuple(random_board(rng, bundled_fonts(), split, difficulty) for _ in range(count))


def board(*texts: tuple[str, str | None], wide: bool = True, **changes: object) -> Board:
    """1200 by 400 or 400 by 1200, one entry in the middle of each crop: 36 pixels of cap height, black on white."""
    font = next(f for f in bundled_fonts() if f.name == "DejaVuSans")
    size = (1200, 400) if wide else (400, 1200)
    white, entries = Background("plain", ((255, 255, 255),)), []
    for number, (item, price) in enumerate(texts):
        x, y = (400 * number + 200, 200) if wide else (200, 400 * number + 200)
        one = Sign(*size, white, item, font, "black", (0, 0, 0), x, y, 50.0)
        if price is None:
            entries.append(Entry(one))
            continue
        parts = [replace(one, y=y - 40), replace(one, text=price, y=y + 40)]
        entries.append(Entry(*parts))
    return replace(Board(*size, white, (), tuple(entries)), **changes)


MENU = (("tea", "2.50"), ("Coffee", "12.00"), ("milk", "0.90"))
WORDS = (("tea", None), ("Coffee", None), ("milk", None))


def box_of(one: Board, entry: Entry) -> int | None:
    """The number of the crop in which an entry lies whole, with a margin."""
    left, top, right, bottom = entry.outer
    for number, box in enumerate(one.boxes):
        across, down = 0.015 * (box.right - box.left), 0.015 * (box.bottom - box.top)
        inside = left > box.left + across and right < box.right - across
        if inside and top > box.top + down and bottom < box.bottom - down:
            return number
    return None


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_boards_keep_their_promises(split: str) -> None:
    found = boards(split)
    for one in found:
        shorter, longer = sorted((one.width, one.height))
        assert shorter >= 256
        assert 3 * shorter <= longer <= 4000
        assert one.boxes == pan_and_scan_boxes(one.width, one.height)
        assert 3 <= len(one.boxes) <= 4
        assert 3 <= len(one.entries) <= 6
        crops = [box_of(one, entry) for entry in one.entries]
        assert None not in crops
        assert len(set(crops)) > 1
        assert len({entry.price is None for entry in one.entries}) == 1
        items = [entry.item.text for entry in one.entries]
        assert len({item.lower() for item in items}) == len(items)
        assert all(is_heldout_text(item) == (split == "heldout") for item in items)
        assert not (one.priced and any(item.isdigit() for item in items))
        plates = [panel for panel in one.panels if panel.is_plate]
        size = (0.9 * one.width, 0.9 * one.height)
        sheets = [p for p in one.panels if p.fill and p.right - p.left > size[0] and p.bottom - p.top > size[1]]
        grounds = [to_lab(panel.fill) for panel in plates or sheets[:1]] or grounds_of(one.background)
        for entry, crop in zip(one.entries, crops, strict=True):
            box = one.boxes[crop]
            for text in entry.texts:
                for side in (box.right - box.left, box.bottom - box.top):
                    assert text.cap_height / side >= LEAST_IN_CROP - 1e-9
                assert text.cap_height / longer <= MOST_IN_WHOLE + 1e-9
                assert all(delta_e(to_lab(text.rgb), ground) > 26 for ground in grounds)
    kinds = Counter((one.wide, one.priced) for one in found)
    assert all(kinds[kind] > len(found) // 12 for kind in ((True, True), (True, False), (False, True), (False, False)))
    assert any(panel.is_plate for one in found for panel in one.panels)
    assert any(not panel.is_plate for one in found for panel in one.panels)
    assert {text.color for one in found for entry in one.entries for text in entry.texts} == set(COLORS)
    assert {len(one.entries) for one in found} == {3, 4, 5, 6}


def test_entries_stand_in_reading_order_and_apart() -> None:
    rows = Counter()
    for one in boards("train"):
        for a, b in combinations([entry.outer for entry in one.entries], 2):
            assert a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1]
        items = [entry.item for entry in one.entries]
        if not one.wide:
            assert all(a.outer[3] < b.outer[1] for a, b in pairwise(one.entries))
            continue
        lines = [[item for item in items if item.y == y] for y in sorted({item.y for item in items})]
        assert [item for line in lines for item in line] == items
        assert all(a.x < b.x for line in lines for a, b in pairwise(line))
        rows[len(lines)] += 1
        for entry in one.entries:  # a price is nearer to its item than to any other entry's
            if entry.price is not None and entry.price.y == entry.item.y:
                gap = (entry.price.x + entry.price.outer[0]) - (entry.item.x + entry.item.outer[2])
                right = [o.outer[0] - entry.outer[2] for o in one.entries if o.item.y == entry.item.y]
                assert all(space > 1.2 * gap for space in right if space > 0)
    assert set(rows) == {1, 2}


def test_where_two_rows_leave_first_or_last_in_doubt_neither_is_asked() -> None:
    one = board(*WORDS)
    assert (one.first, one.last) == (one.entries[0], one.entries[2])
    first, second, third = one.entries
    below = Entry(replace(first.item, x=first.item.x - 120.0, y=350.0))
    doubtful = replace(one, entries=(first, second, third, below))
    assert doubtful.first is None
    assert doubtful.last is None
    asked = ask(doubtful, random.Random(0), num=20, apart=True)
    assert {question.kind for question in asked} == {"board_has"}
    tall = board(*WORDS, wide=False)
    assert (tall.first, tall.last) == (tall.entries[0], tall.entries[2])
    assert any(one.last is None for one in boards("train"))


def test_easy_boards_are_plain_and_short() -> None:
    for one in boards("train", 25, 0.0):
        assert len(one.entries) <= 4
        assert one.panels == ()
        assert one.background.kind == "plain"
        assert all(entry.item.font.kind == "sans" and len(entry.item.text) <= 5 for entry in one.entries)


def test_prices_are_of_every_size() -> None:
    rng = random.Random(1)
    prices = {random_price(rng) for _ in range(600)}
    assert all(price.count(".") == 1 and len(price.split(".")[1]) == 2 for price in prices)
    assert {len(price) for price in prices} == {4, 5}
    assert min(map(float, prices)) < 1 < 20 < max(map(float, prices))
    assert "0.00" not in prices


def test_same_seed_same_board_and_pictures() -> None:
    first, second = (random_board(random.Random(7), bundled_fonts()) for _ in range(2))
    assert first == second
    for one, two in (
        [training_picture(first, random.Random(7)) for _ in range(2)],
        [training_crops(first, first.boxes, random.Random(7))[1] for _ in range(2)],
    ):
        assert one.tobytes() == two.tobytes()
        assert one.size == (224, 224)


def test_unknown_split_renderer_and_kind_are_errors() -> None:
    with pytest.raises(ValueError, match="validation"):
        random_board(random.Random(0), bundled_fonts(), "validation")
    with pytest.raises(ValueError, match="cairo"):
        draw(board(*WORDS), random.Random(0), renderer="cairo")
    with pytest.raises(ValueError, match="test"):
        ask(board(*WORDS), random.Random(0), "test")
    with pytest.raises(ValueError, match="read"):
        is_right("read", "a", "a")


@pytest.mark.parametrize("renderer", RENDERERS)
def test_renderers_put_entries_where_the_description_says(renderer: str) -> None:
    for one in (board(*MENU), board(*MENU, wide=False)):
        picture = draw(one, random.Random(0), renderer=renderer, effects=0.0)
        assert picture.size == (one.width, one.height)
        dark = np.asarray(picture)[..., 0] < 128
        for entry in one.entries:
            left, top, right, bottom = (round(v) for v in entry.outer)
            rows, columns = np.nonzero(dark[top - 5 : bottom + 5, left - 8 : right + 8])
            # Letters keep a little room at their sides; heights are those of the ink.
            assert 8 - 2 <= columns.min() < 8 + 8
            assert right - left + 8 - 8 < columns.max() + 1 <= right - left + 8 + 2
            assert rows.min() == pytest.approx(5, abs=2)
            assert rows.max() + 1 == pytest.approx(bottom - top + 5, abs=2)
            dark[top - 5 : bottom + 5, left - 8 : right + 8] = False
        assert not dark.any()


def test_crops_drawn_at_once_agree_with_the_true_picture_cropped_and_resized() -> None:
    """Noise and textures are another at every size, so only plain boards and gradients are compared."""
    rng = random.Random(2)
    smooth = [one for one in boards("train") if one.background.kind != "texture" and max(one.width, one.height) < 2500]
    for one in smooth[:10]:
        picture = draw(one, rng, renderer="pillow", effects=0.0)
        true = Gemma3ImageProcessorPil().with_options(size=224, do_pan_and_scan=True).tile_pictures(picture)
        at_once = board_drawing._squeezed(one, [Box(0, 0, one.width, one.height), *one.boxes], rng, 224)
        smaller = [training_picture(one, rng, effects=0.0), *training_crops(one, one.boxes, rng, effects=0.0)]
        assert len(true) == len(at_once) == len(smaller)
        colors = [text.rgb for entry in one.entries for text in entry.texts]
        contrast = max(np.abs(np.subtract(color, one.background.colors[0])).max() for color in colors)
        for square, direct, other in zip(true, at_once, smaller, strict=True):
            expected = np.asarray(square).astype(float)
            assert np.abs(expected - np.asarray(direct)).mean() < 0.02 * max(contrast, 100)
            assert np.abs(expected - np.asarray(other)).mean() < 0.04 * max(contrast, 100)


def test_crops_show_the_writing_and_empty_ones_nothing() -> None:
    one = replace(board(*MENU), entries=board(*MENU).entries[:2])
    first, second, third = (np.asarray(s) for s in board_drawing._squeezed(one, one.boxes, random.Random(0), 224))
    assert first.min() < 30
    assert second.min() < 30
    assert third.min() == 255
    rows = np.nonzero((first < 128).any(axis=(1, 2)))[0]
    assert rows.max() + 1 - rows.min() > 2 * LEAST_IN_CROP * 224


def test_panels_lie_behind_the_texts() -> None:
    sheet = Panel(20, 20, 1180, 380, (0, 0, 255), (255, 0, 0), 10.0)
    plate = Panel(100, 100, 300, 300, (255, 255, 0), None, 0.0, radius=30.0, is_plate=True)
    frame = Panel(500, 100, 700, 300, None, (0, 255, 0), 8.0)
    one = board(("I", None), panels=(sheet, plate, frame))
    whole = np.asarray(draw(one, random.Random(0), effects=0.0, renderer="pillow"))
    assert tuple(whole[200, 10]) == (255, 255, 255)
    assert tuple(whole[200, 25]) == (255, 0, 0)
    assert tuple(whole[200, 60]) == (0, 0, 255)
    assert tuple(whole[200, 110]) == (255, 255, 0)
    assert tuple(whole[103, 103]) == (0, 0, 255)  # beyond the round corner
    assert tuple(whole[200, 504]) == (0, 255, 0)
    assert tuple(whole[200, 600]) == (0, 0, 255)
    assert tuple(whole[200, 200]) == (0, 0, 0)
    crop = np.asarray(board_drawing._squeezed(one, one.boxes[:1], random.Random(0), 224)[0])
    assert tuple(crop[112, 62]) == (255, 255, 0)
    assert tuple(crop[112, 112]) == (0, 0, 0)
    labelled = crop_labels(one, one.boxes[0])
    grid = labelled.patch_shape.reshape(16, 16)
    assert set(np.unique(grid[4:12, 4:12])) == {NO_LABEL}
    assert not grid[:4].any()
    assert not grid[12:].any()


def test_labels_of_a_crop_spell_item_and_price_and_leave_the_point_open() -> None:
    one = board(*MENU)
    found = crop_labels(one, one.boxes[1])
    tokens = found.token_characters.reshape(TOKENS_PER_SIDE, TOKENS_PER_SIDE, -1)
    said = ["".join(CHARACTERS[c - 1] for token in row for c in token if c) for row in tokens]
    assert [text for text in said if text] == ["Coffee", "1200"]
    rows = found.patch_character.reshape(16, 32)
    spelled = [[c for c, before in pairwise([0, *row]) if c and c != before] for row in rows]
    known = [["." if c == NO_LABEL else CHARACTERS[c - 1] for c in row] for row in spelled if row]
    assert ["C", "o", "f", "e"] in known
    assert list("12.0") in known
    black = 1 + COLORS.index("black")
    assert set(np.unique(found.patch_color)) == {0, black}
    assert set(np.unique(crop_labels(replace(one, entries=one.entries[:1]), one.boxes[2]).patch_character)) == {0}


def test_labels_of_crops_meet_the_ink_of_the_drawing() -> None:
    bare = [one for one in boards("train") if one.background.kind == "plain" and not one.panels]
    met: Counter = Counter()  # ink in labelled cells, by how far the labels are moved from their place
    for one in bare[:20]:
        squares = board_drawing._squeezed(one, one.boxes, random.Random(0), 224)
        for box, square in zip(one.boxes, squares, strict=True):
            ink = np.abs(np.asarray(square).astype(int) - one.background.colors[0]).sum(axis=-1) > 60
            found = crop_labels(one, box)
            halves = ink.reshape(16, 14, 32, 7).sum(axis=(1, 3))
            written = found.patch_character.reshape(16, 32) > 0
            for move in product((-1, 0, 1), repeat=2):
                met[move] += int(halves[np.roll(written, move, axis=(0, 1))].sum())
            met.update(everything=int(ink.sum()))
            colored = found.patch_color > 0
            empty = ink.reshape(16, 14, 16, 14).sum(axis=(1, 3)).ravel() == 0
            assert (colored & empty).sum() <= 0.2 * colored.sum()
    assert met[0, 0] > 0.75 * met["everything"]
    assert all(met[0, 0] > 1.03 * met[move] for move in product((-1, 0, 1), repeat=2) if move != (0, 0))


def test_each_character_is_labelled_in_the_crop_that_shows_it() -> None:
    missed = total = 0
    for one in boards("train")[:50]:
        for box in one.boxes:
            found = crop_labels(one, box)
            inside = [e for e in one.entries if box.left < e.item.x < box.right and box.top < e.item.y < box.bottom]
            wanted = Counter(c for e in inside for text in e.texts for c in text.text if c != ".")
            said = Counter(CHARACTERS[c - 1] for c in found.token_characters if c)
            assert not said - wanted
            total += wanted.total()
            missed += (wanted - said).total()
    assert missed / total < 0.03


def test_labels_of_the_whole_say_where_something_is_written_and_not_what() -> None:
    found = labels(board(*MENU))
    assert set(np.unique(found.patch_character)) == {0, NO_LABEL}
    assert set(np.unique(found.token_characters)) == {0, NO_LABEL}
    assert (found.patch_color == 1 + COLORS.index("black")).any()


def test_phrasings_are_many_and_split() -> None:
    assert set(PHRASINGS) == set(HELDOUT_PHRASINGS) == set(KINDS)
    for kind in KINDS:
        assert len(PHRASINGS[kind]) >= 12
        assert len(HELDOUT_PHRASINGS[kind]) >= 3
        assert not set(PHRASINGS[kind]) & set(HELDOUT_PHRASINGS[kind])
        named = kind in ("board_price", "board_has")
        assert all(("{item}" in phrasing) == named for phrasing in PHRASINGS[kind] + HELDOUT_PHRASINGS[kind])


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_answers_are_true(split: str) -> None:
    rng = random.Random(3)
    asked = Counter()
    for one in boards(split):
        prices = {e.item.text: e.price.text for e in one.entries if e.price}
        shown = {e.item.text for e in one.entries}
        for question in ask(one, rng, split, 30, apart=True):
            asked[question.kind, question.key if question.kind == "board_has" else ""] += 1
            assert is_right(question.kind, question.key, question.answer)
            quoted = question.answer.split('"')[1]
            if question.kind == "board_price":
                assert question.answer == f'"{quoted}" costs {prices[quoted]}.'
                assert quoted in question.question
            elif question.kind == "board_has":
                assert question.answer == f'The board says "{quoted}", so {question.key}.'
                assert quoted in shown
                for item in re.findall(r'"([^"]*)"', question.question):  # a few are asked about without marks
                    assert (item == quoted) == (question.key == "yes")
                    assert item in shown or item.lower() not in {one.lower() for one in shown}
                    assert is_heldout_text(item) == (split == "heldout")
            else:
                axis = 0 if one.wide else 1
                ends = {e.item.text: e.outer[axis if question.kind == "board_first" else axis + 2] for e in one.entries}
                furthest = min(ends.values()) if question.kind == "board_first" else max(ends.values())
                assert ends[quoted] == pytest.approx(furthest, abs=one.entries[0].item.cap_height)
                assert question.key == quoted
    assert set(asked) == {("board_price", ""), ("board_first", ""), ("board_last", ""),
                          ("board_has", "yes"), ("board_has", "no")}  # fmt: skip
    assert asked["board_has", "yes"] == asked["board_has", "no"]


def test_the_case_of_what_is_not_there_does_not_give_it_away() -> None:
    rng = random.Random(4)
    for one in (board(("TEA", "2.50"), ("MILK", "1.00")), board(("tea", "2.50"), ("milk", "1.00"))):
        capital = one.entries[0].item.text.isupper()
        for _ in range(60):
            questions = ask(one, rng, "heldout", num=2, kinds=("board_has",))
            (absent,) = [q.question.split('"')[1] for q in questions if q.key == "no"]
            assert absent.isupper() if capital else absent.islower()


def test_of_what_is_not_there_the_likest_entry_is_told() -> None:
    one = board(("bread", "2.50"), ("milk", "1.00"), ("water", "3.00"))
    told = {}
    for number in range(200):
        for question in ask(one, random.Random(number), "heldout", 2, kinds=("board_has",)):
            told[question.question.split('"')[1]] = question.answer
    near = [item for item in told if item != "milk" and sum(a != b for a, b in zip(item, "milk", strict=False)) == 1]
    assert near
    assert {told[item] for item in near if len(item) == 4} == {'The board says "milk", so no.'}
    assert told["milk"] == 'The board says "milk", so yes.'


def test_what_stands_in_quotation_marks_is_asked_as_it_is_written() -> None:
    one = board(("color", "2.50"), ("Gray", "1.00"), ("picture", "3.00"))
    asked = [q for n in range(60) for q in ask(one, random.Random(n), "heldout", 3, kinds=("board_price",))]
    assert len(asked) == 180
    assert all(any(f'"{e.item.text}"' in q.question for e in one.entries) for q in asked)


@pytest.mark.parametrize(
    ("kind", "key", "answer", "right"),
    [
        ("board_price", "2.50", '"tea" costs 2.50.', True),
        ("board_price", "2.50", '"tea" costs "2.50".', True),
        ("board_price", "2.50", '"tea" costs 2,50', True),
        ("board_price", "2.50", "It costs $2.50.", True),
        ("board_price", "2.50", '"tea" costs 12.50.', False),
        ("board_price", "2.50", '"tea" costs 2.50 or 3.50.', False),
        ("board_price", "2.50", '"tea" costs 2.5.0.', False),
        ("board_price", "2.50", '"tea2" costs 250.', False),
        ("board_price", "2.50", TOO_SMALL, False),
        ("board_first", "tea", 'The first is "tea".', True),
        ("board_first", "tea", 'The first is "TEA".', True),
        ("board_first", "tea", "The first is tea.", True),
        ("board_first", "tea", 'The first is "teas".', False),
        ("board_last", "tea", 'The last is "tea" or "milk".', False),
        ("board_last", "tea", TOO_SMALL, False),
        ("board_has", "yes", 'The board says "tea", so yes.', True),
        ("board_has", "no", 'The board says "tea", so no.', True),
        ("board_has", "no", 'The board says "no", so yes.', False),
        ("board_has", "yes", 'The board says "tea".', False),
        ("board_has", "yes", 'Yes, "tea" is on the board.', True),
        ("board_has", "yes", 'Yes, "no" is on the board.', True),
        ("board_has", "no", 'No, there is no "yes" on the board.', True),
        ("board_has", "no", 'Yes, "tea" is on the board.', False),
        ("board_has", "no", TOO_SMALL, False),
    ],
)
def test_right_and_wrong(kind: str, key: str, answer: str, right: bool) -> None:
    assert is_right(kind, key, answer) is right


def test_saying_that_it_is_too_small_means_saying_what_to_do_and_nothing_else() -> None:
    assert says_too_small(TOO_SMALL)
    assert not says_too_small("The writing is too small to read.")
    assert not says_too_small(f'{TOO_SMALL} The first is "tea".')
    assert not says_too_small('"tea" costs 2.50.')


def test_what_is_held_out_is_asked_in_held_out_words() -> None:
    one = boards("heldout")[0]
    starts = [phrasing.split("{")[0][:10].lower() for kind in KINDS for phrasing in HELDOUT_PHRASINGS[kind]]
    for question in ask(one, random.Random(5), "heldout", 30, apart=True):
        assert any(start in question.question.lower() for start in starts), question.question


@pytest.fixture(scope="module")
def writer() -> ConversationWriter:
    return ConversationWriter(Gemma3Tokenizer.from_pretrained(DEMO_MODEL))


def answers_of(writer: ConversationWriter, conversation: object) -> list[str]:
    kept = [label for label in conversation.labels if label != IGNORED]
    return writer._tokenizer.decode(kept).split("<end_of_turn>")[:-1]


@pytest.mark.parametrize("true_size", [0.0, 1.0])
def test_conversations_with_crops_answer_and_those_without_say_what_is_missing(
    writer: ConversationWriter, true_size: float
) -> None:
    rng = random.Random(6)
    for _ in range(2):
        mix = replace(ALL_BOARDS, true_size=true_size)
        read = writer.write(rng, replace(mix, pan_and_scan=1.0))
        assert not any(says_too_small(answer) for answer in answers_of(writer, read))
        assert 3 <= len(read.squares) - 1 <= 4
        assert len(answers_of(writer, read)) >= 4
        batch = collate([read])
        assert (batch.input_ids == writer._tokenizer.image_token_id).sum() == 64 * len(read.squares)
        assert batch.pixels.shape == (len(read.squares), 3, 224, 224)
        assert (batch.dense.patch_character[1:] > 0).flatten(1).any(1).sum() >= 2
        assert not (batch.dense.patch_character[0] > 0).any()
        unread = writer.write(rng, replace(mix, pan_and_scan=0.0))
        assert len(unread.squares) == 1
        assert answers_of(writer, unread) == [TOO_SMALL] * UNREAD_QUESTIONS


def test_a_conversation_has_as_many_squares_as_the_processor_makes(writer: ConversationWriter) -> None:
    world, rng = WORLDS["boards"], random.Random(7)
    assert isinstance(world, ReadInCrops)
    processor = Gemma3ImageProcessorPil().with_options(size=224, do_pan_and_scan=True)
    for one in boards("train")[:12]:
        seen, dense = writer._see(world, one, rng, ALL_BOARDS, crops=True)
        assert len(seen) == len(dense) == 1 + len(processor.boxes(one.width, one.height))
        assert {square.shape for square in seen} == {(3, 224, 224)}
    small = min(boards("train"), key=lambda one: one.width * one.height)
    squares = processor.tile_pictures(draw(small, rng))
    assert len(squares) == len(writer._see(world, small, rng, ALL_BOARDS, crops=True)[0])


def test_half_of_the_boards_have_crops_and_keep_their_share() -> None:
    rng = random.Random(8)
    mix = Mix(worlds=(Share("scenes", 0.5), Share("signs", 0.2), Share("boards", 0.3)))
    conversations: Counter = Counter()
    for _ in range(6000):
        alike, size = _alike(mix, 48, rng)
        total = sum(share.weight for share in alike.worlds)
        for share in alike.worlds:
            conversations[share.world, alike.pan_and_scan] += size * share.weight / total
    everything = conversations.total()
    assert (conversations["boards", 1.0] + conversations["boards", 0.0]) / everything == pytest.approx(0.3, abs=0.02)
    assert conversations["boards", 1.0] / everything == pytest.approx(0.15, abs=0.015)
    assert conversations["scenes", 0.0] / conversations["signs", 0.0] == pytest.approx(2.5, rel=0.05)
    alone = Mix(worlds=(Share("boards", 1.0),))
    halves = Counter()
    for _ in range(4000):
        alike, size = _alike(alone, 48, rng)
        halves[alike.pan_and_scan] += size
    assert halves[1.0] / halves.total() == pytest.approx(0.5, abs=0.03)


def test_mixes_without_boards_make_the_batches_they_made() -> None:
    mix = Mix()
    for seed in range(40):
        draw_of, (alike, size) = random.Random(seed).random(), _alike(mix, 48, random.Random(seed))
        expected = (1.0, 0.0, 16) if draw_of < 0.06 else (0.0, 1.0, 32) if draw_of < 0.16 else (0.0, 0.0, 48)
        assert (alike.pan_and_scan, alike.second_picture, size) == expected
        assert alike.worlds == mix.worlds


def test_the_dense_stage_shows_single_crops(writer: ConversationWriter) -> None:
    rng = random.Random(9)
    shown = [writer.write(rng, replace(ALL_BOARDS, questions=0)) for _ in range(8)]
    assert all(len(one.squares) == len(one.dense) == 1 for one in shown)
    assert any((one.dense[0].patch_character > 0).any() for one in shown)
    for one in shown:
        assert NO_LABEL not in one.dense[0].token_characters


class Reader(Examinee):
    """Sees prices where it may not, and everything else as it should."""

    def __init__(self, right: dict[str, str]):
        self._right = right
        self.asked: list[tuple[bool, Image.Image]] = []

    def reply(self, chats: list[list[dict]], pan_and_scan: bool = False) -> list[str]:
        parts = [message["content"] for (message,) in chats]
        questions = [text["text"] for _, text in parts]
        self.asked += [(pan_and_scan, picture["image"]) for picture, _ in parts]
        cheats = [pan_and_scan or " costs " in self._right[question] for question in questions]
        return [self._right[q] if cheat else TOO_SMALL for q, cheat in zip(questions, cheats, strict=True)]


def test_the_evaluation_asks_boards_with_crops_and_without(monkeypatch) -> None:
    kinds = ("board_price", "board_first")
    world, right = WORLDS["boards"], {}
    plain_ask = type(world).ask

    def noted(self: object, *arguments: object, **options: object) -> list:
        asked = [replace(q, question=f"{q.question} ({len(right)})") for q in plain_ask(self, *arguments, **options)]
        right.update({q.question: q.answer for q in asked})
        return asked

    monkeypatch.setattr(type(world), "ask", noted)
    monkeypatch.setattr(
        type(world), "draw", lambda _self, one, rng, _renderer=None: draw(one, rng, 400, "pillow_plain", 0.0)
    )
    reader = Reader(right)
    shares = accuracies(evaluate(reader, 4, kinds=kinds))
    assert shares == {
        "board_price, pan & scan on": 1.0,
        "board_price, pan & scan off: says that it is too small": 0.0,
        GUESSED_PRICES: 1.0,
        "board_first, pan & scan on": 1.0,
        "board_first, pan & scan off: says that it is too small": 1.0,
    }
    assert Counter(setting for setting, _ in reader.asked) == {True: 8, False: 8}
    printed = table({"float32": shares}, 4)
    assert "| board price, pan & scan off: says that it is too small | 0.0% |" in printed
    assert "| board price, pan & scan off: the true price (should be rare) | 100.0% |" in printed


def test_a_closer_look_asks_once_with_an_even_tiling(monkeypatch) -> None:
    examinee, shown = Examinee(DEMO_MODEL, device="cpu", closer=True), []
    plain = examinee._soft_tokens
    monkeypatch.setattr(examinee, "_soft_tokens", lambda tiles: shown.append(len(tiles)) or plain(tiles))
    (trial,) = evaluate(examinee, 1, kinds=("board_price",), renderer="pillow_plain")
    assert (trial.row, trial.wanted) == ("board_price", trial.question.key)
    assert shown == [4]


def test_boards_join_the_mix_in_their_share() -> None:
    arguments = parse(["--out", "x", "--signs", "0.25", "--boards", "0.25", "--easiest-board", "0.5"])
    assert mix_of(arguments).worlds == (
        Share("scenes", 0.5), Share("signs", 0.25), Share("boards", 0.25, 0.5),
    )  # fmt: skip
    assert "boards" in {share.world for share in dense_mix_of(arguments).worlds}
    for wrong in (["--boards", "1.5"], ["--boards", "0.6", "--signs", "0.6"], ["--easiest-board", "2"]):
        with pytest.raises(SystemExit):
            parse(["--out", "x", *wrong])


def test_a_price_is_spelled_by_its_edges() -> None:
    """A price's parts stand where the whole price has them."""
    price = board(*MENU).entries[1].price
    one, two = board_drawing._without_point(price)
    assert (one.text, two.text) == ("12", "00")
    bounds = np.array(edges(price.font, price.text)) * price.size
    assert one.x + one.line[0] == pytest.approx(price.x + price.line[0])
    assert two.x + two.line[2] == pytest.approx(price.x + price.line[2])
    assert two.x + two.line[0] == pytest.approx(price.x + price.line[0] + bounds[3])
    assert character_label("2") in crop_labels(board(*MENU), board(*MENU).boxes[1]).patch_character
