"""Knock-out against plain passes with the very masks, one by one; the map of it; logit lens and heads."""

import numpy as np
import pytest
import torch
from PIL import Image
from reference import TOKENS_PER_IMAGE, WINDOW, assert_equal, image_prompt, pixels

from gemma3_core.config.gemma3 import GLOBAL, LOCAL
from gemma3_core.errors import AttentionError
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection import knockout
from gemma3_core.inspection.attention import replay, with_answer
from gemma3_core.inspection.heat_maps import TileMap, columns_within
from gemma3_core.inspection.knockout import KnockOut, probabilities_unseen
from gemma3_core.inspection.layers import heads_on, logit_lens
from gemma3_core.inspection.prompt import Tile
from gemma3_core.inspection.rests_on import MOST_ROWS, RestsOn, _windows, rests_on, sharpened, token_map
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.nn.masks import attention_mask, image_blocks

ANSWER, WORD = (7, 8, 9, 10), range(1, 3)
LAYOUTS = {"one picture": "t5 i t6", "two pictures, beyond the window": f"t4 i t{2 * WINDOW} i t9"}


@pytest.fixture(scope="module")
def model(reference_folder):
    return Gemma3ForConditionalGeneration.from_pretrained(reference_folder)


def prompt_of(layout: str) -> dict[str, torch.Tensor]:
    input_ids, token_type_ids = image_prompt(layout)
    return {
        "input_ids": input_ids,
        "token_type_ids": token_type_ids,
        "pixel_values": pixels(layout.split().count("i")),
    }


@torch.no_grad()
def plain(model, prompt, hidden: torch.Tensor, word: range = WORD) -> float:
    """The word's probability by one ordinary pass, with masks in which words after the pictures miss `hidden` [S]."""
    turn = with_answer(prompt, ANSWER[: word.stop - 1])
    types = turn["token_type_ids"]
    columns, blocks = torch.arange(types.shape[1])[None], image_blocks(types)
    soft = (types[0] == 1).nonzero()[:, 0]
    masks = {}
    for kind in (LOCAL, GLOBAL):
        seen = attention_mask(columns, columns, blocks, blocks, model.text_config.window(kind))
        seen[:, int(soft[-1]) + 1 :, soft[hidden]] = False
        masks[kind] = seen[:, None]
    logits = model(**{**turn, "attention_mask": masks}, use_cache=False).logits[0].double().softmax(dim=-1)
    rows = range(prompt["input_ids"].shape[1] - 1 + word.start, turn["input_ids"].shape[1])
    return float(np.prod([logits[row, ANSWER[number]] for row, number in zip(rows, word, strict=True)]))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_hiding_many_at_once_equals_hiding_one_by_one(model, layout, monkeypatch):
    prompt = prompt_of(layout)
    made = KnockOut(model, prompt, ANSWER, WORD)
    tokens = len(made.columns)
    hidden = torch.rand(6, tokens, generator=torch.Generator().manual_seed(1)) < 0.4
    hidden[0], hidden[1] = False, True
    expected = torch.tensor([plain(model, prompt, row) for row in hidden])
    assert_equal(made.probabilities(hidden), expected)
    assert made.rows_read == 6
    # In batches of one row, as little memory as there may be, it is the same.
    monkeypatch.setattr(knockout, "MOST_BATCH_BYTES", 1)
    assert_equal(made.probabilities(hidden), expected)


def test_without_any_picture_in_view_the_pictures_are_not_read(model):
    prompt = prompt_of(LAYOUTS["two pictures, beyond the window"])
    everything = torch.ones(2 * TOKENS_PER_IMAGE, dtype=torch.bool)
    words = {name: prompt[name] for name in ("input_ids", "token_type_ids")}
    unseen = probabilities_unseen(model, words, ANSWER)
    # The first picture is hidden from the words between the pictures too, so the plain pass must hide it there.
    one = prompt_of(LAYOUTS["one picture"])
    alone = probabilities_unseen(model, {name: one[name] for name in words}, ANSWER)
    expected = [plain(model, one, everything[:TOKENS_PER_IMAGE], range(n, n + 1)) for n in range(len(ANSWER))]
    assert_equal(torch.tensor(alone), torch.tensor(expected))
    assert len(unseen) == len(ANSWER)
    assert all(0 < share < 1 for share in unseen)


def test_what_can_not_be_knocked_out_says_why(model, reference_text_folder, monkeypatch):
    prompt = prompt_of("t5 i t6")
    for word in (range(0), range(3, 5), range(-1, 1)):
        with pytest.raises(AttentionError, match="numbered from 0"):
            KnockOut(model, prompt, ANSWER, word)
    text = {name: prompt_of("t5")[name] for name in ("input_ids", "token_type_ids")}
    with pytest.raises(AttentionError, match="no picture"):
        KnockOut(model, text, ANSWER, WORD)
    text_only = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    with pytest.raises(AttentionError, match="reads text only"):
        KnockOut(text_only, text, ANSWER, WORD)
    monkeypatch.setattr(knockout, "UNSEEN_MAX_TOKENS", 5)
    with pytest.raises(AttentionError, match="at most 5"):
        probabilities_unseen(model, prompt, ANSWER)


def test_the_work_stops_at_any_layer(model):
    calls = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        KnockOut(model, prompt_of("t5 i t6"), ANSWER, WORD, stop)
    assert len(calls) == 3


class _Known:
    """A KnockOut whose word rests on given soft tokens of 16 x 16: it is lost in proportion to those hidden."""

    def __init__(self, tiles: int, needed: list[int]):
        self.columns, self._needed = torch.arange(tiles * 256), needed
        self.rows_read = 0

    def probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        self.rows_read += len(hidden)
        return 0.9 - 0.8 * hidden[:, self._needed].float().mean(dim=1)


@pytest.mark.parametrize("tiles", [1, 3, 40, 100])
def test_the_map_finds_what_a_word_rests_on_with_few_rows(tiles):
    side, tile = 16, tiles - 1
    needed = [tile * side * side + row * side + column for row in (9, 10) for column in (4, 5)]
    known = _Known(tiles, needed)
    grids, seen, unseen = token_map(known, tiles)  # type: ignore[arg-type]
    assert known.rows_read <= MOST_ROWS
    assert grids.shape == (tiles, side, side)
    assert (round(seen, 4), round(unseen, 4)) == (0.9, 0.1)
    assert grids.max() == 1.0
    found = np.unravel_index(int(grids.argmax()), grids.shape)
    assert found[0] == tile
    if tiles == 1:
        assert abs(found[1] - 9.5) < 2
        assert abs(found[2] - 4.5) < 2
        assert grids.reshape(-1)[needed].min() > 0.7
        assert (grids > 0.7).sum() <= 16


def test_windows_cover_every_soft_token():
    for tiles, side in ((1, 8), (1, 16), (5, 16), (36, 16), (90, 16)):
        windows, step = _windows(tiles, side)
        assert len(windows) <= 36
        assert windows.any(axis=0).all()
        assert 1 <= step <= side


def test_a_map_of_a_real_turn_has_its_tiles(model):
    prompt = prompt_of("t5 i t6")
    start = int((prompt["token_type_ids"][0] == 1).nonzero()[0, 0])
    tile = Tile(0, None, Box(0, 0, 90, 80), start, start + TOKENS_PER_IMAGE)
    made = rests_on(model, prompt, ANSWER, WORD, [tile])
    side = round(TOKENS_PER_IMAGE**0.5)
    assert [len(made.tiles[0].grid), len(made.tiles[0].grid[0])] == [side, side]
    assert made.rows <= MOST_ROWS
    nothing, everything = (
        torch.zeros(TOKENS_PER_IMAGE, dtype=torch.bool),
        torch.ones(TOKENS_PER_IMAGE, dtype=torch.bool),
    )
    assert_equal(
        torch.tensor([made.seen, made.unseen]),
        torch.tensor([plain(model, prompt, nothing), plain(model, prompt, everything)]),
    )


def test_the_hottest_tiles_are_cut_into_patches_and_all_keep_one_scale():
    rng, count = np.random.default_rng(0), 10
    tiles = [Tile(n, None, Box(0, 0, 90, 80), 16 * n, 16 * n + 16) for n in range(count)]
    grids = rng.uniform(0.1, 0.2, (count, 4, 4))
    grids[3, 1, 2] = 1.0
    maps = tuple(TileMap(tile, tuple(map(tuple, grid.tolist()))) for tile, grid in zip(tiles, grids, strict=True))
    picture = Image.new("RGB", (60, 60), (20, 30, 120))
    picture.paste((200, 30, 30), (34, 19, 42, 27))
    calls = []
    rests = RestsOn(maps, 0.9, 0.1, 64)
    made = sharpened(rests, maps, [picture] * count, lambda: calls.append(1))
    assert (made.seen, made.unseen, made.rows) == (0.9, 0.1, 64)
    sides = [len(one.grid) for one in made.tiles]
    assert (sides.count(128), sides.count(4), len(calls)) == (8, 2, 8)
    values = [np.array(one.grid) for one in made.tiles]
    assert max(value.max() for value in values) == values[3].max() == 1.0
    assert values[3][46, 80] > 2 * values[3][100, 20]
    with pytest.raises(ZeroDivisionError):
        sharpened(rests, maps, [picture] * count, lambda: 1 // 0)


@pytest.mark.parametrize("chunk", [2048, 12])
def test_the_logit_lens_reads_every_layer_with_the_models_own_head(model, chunk):
    turn = with_answer(prompt_of("t5 i t6"), ANSWER[:1])
    row = turn["input_ids"].shape[1] - 1
    replayed = replay(model, turn, [row], with_logits=True, chunk_size=chunk, with_states=True)

    class Tokenizer:
        class backend:  # noqa: N801
            @staticmethod
            def id_to_token(number: int) -> str:
                return f"▁{number}"

    said = logit_lens(model, replayed, ANSWER[1], Tokenizer)  # type: ignore[arg-type]
    with torch.no_grad():
        out = model(**turn, output_hidden_states=True, use_cache=False)
    layers = model.text_config.num_hidden_layers
    assert [one.layer for one in said] == list(range(layers))
    for one in said:
        state = out.hidden_states[one.layer + 1][0, row]
        last = one.layer == layers - 1
        logits = model.lm_head(state if last else model.model.decoder.norm(state))
        shares = logits.softmax(dim=-1)
        assert [other.token_id for other in one.likeliest] == shares.topk(5).indices.tolist()
        assert abs(one.probability - shares[ANSWER[1]].item()) < 1e-6
        assert one.likeliest[0].text == f" {one.likeliest[0].token_id}"
    assert_equal(replayed.logits[0], out.logits[0, row].detach())


def test_heads_are_ranked_by_what_they_look_at(model):
    turn = prompt_of("t5 i t6")
    row = turn["input_ids"].shape[1] - 1
    replayed = replay(model, turn, [row])
    start = int((turn["token_type_ids"][0] == 1).nonzero()[0, 0])
    looks = heads_on(replayed, [start, start + 3])
    config = model.text_config
    assert len(looks) == config.num_hidden_layers * config.num_attention_heads
    assert [look.share for look in looks] == sorted((look.share for look in looks), reverse=True)
    best = looks[0]
    expected = replayed.weights[best.layer, best.head, 0, [start, start + 3]].sum()
    assert abs(best.share - float(expected)) < 1e-6


def test_the_columns_of_a_region_are_those_whose_middle_lies_in_it():
    grid = tuple(tuple(0.0 for _ in range(4)) for _ in range(4))
    tiles = [
        TileMap(Tile(0, None, Box(0, 0, 80, 40), 10, 26), grid),
        TileMap(Tile(0, 0, Box(40, 0, 80, 40), 30, 46), grid),
        TileMap(Tile(1, None, Box(0, 0, 80, 40), 50, 66), grid),
    ]
    assert columns_within(tiles, 0, Box(40, 0, 60, 10)) == (12, 30, 31)
    assert columns_within(tiles, 1, Box(0, 30, 20, 40)) == (62,)
    assert columns_within(tiles, 1, Box(0, 0, 1, 1)) == ()
