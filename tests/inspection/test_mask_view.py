"""Prompts and masks as data: what forward really uses, in runs, folded, with reasons."""

import itertools
import time

import pytest
import torch
from reference import BEGIN, SOFT, TOKENS_PER_IMAGE, WINDOW, image_prompt, left_padded, pixels

from gemma3_core.config.gemma3 import GLOBAL, LOCAL
from gemma3_core.errors import PromptError
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.attention import with_answer
from gemma3_core.inspection.mask_view import MaskView, mask_view
from gemma3_core.inspection.prompt import PromptToken, Segment, folded, prompt_tokens, tiles_of
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.nn.layers import attention_weights
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

LAYOUTS = ["t6", "t3 i i i t4", f"t{WINDOW} i t2 i t{WINDOW}"]


@pytest.fixture(scope="module")
def model(reference_folder) -> Gemma3ForConditionalGeneration:
    return Gemma3ForConditionalGeneration.from_pretrained(reference_folder)


@pytest.fixture(scope="module")
def tokenizer(small_tokenizer_folder) -> Gemma3Tokenizer:
    return Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)


def prompt_of(layout: str, padding: int = 0) -> dict[str, torch.Tensor]:
    """The inputs of one row, `padding` columns of it on the left."""
    input_ids, types = image_prompt(layout)
    filler = torch.zeros(1, padding + input_ids.shape[1], dtype=torch.long)
    input_ids, mask = (rows[:1] for rows in left_padded([input_ids, filler]))
    types, _ = (rows[:1] for rows in left_padded([types, filler]))
    return {"input_ids": input_ids, "attention_mask": mask, "token_type_ids": types}


@torch.no_grad()
def masks_of_forward(model: Gemma3ForConditionalGeneration, prompt: dict[str, torch.Tensor], layout: str):
    """The masks [T, T] that the layers got in a forward pass, by layer."""
    seen = {}

    def look(layer, queries, keys, mask, scale):
        seen[layer] = mask[0, 0]
        return attention_weights(queries, keys, mask, scale)

    count = layout.split().count("i")
    pictures = {"pixel_values": pixels(count)} if count else {}
    model(**prompt, **pictures, output_attentions=look, use_cache=False)
    return seen


def dense(runs: tuple[tuple[tuple[int, int], ...], ...]) -> torch.Tensor:
    mask = torch.zeros(len(runs), len(runs), dtype=torch.bool)
    for row, parts in enumerate(runs):
        for start, stop in parts:
            mask[row, start:stop] = True
    return mask


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_masks_are_those_that_the_layers_of_a_forward_pass_get(model, tokenizer, layout, padding):
    prompt = prompt_of(layout, padding)
    config = model.text_config
    view = mask_view(config, tokenizer, **prompt)
    seen = masks_of_forward(model, prompt, layout)
    assert [mask.kind for mask in view.masks] == ["global", "local"]
    for mask, kind in zip(view.masks, (GLOBAL, LOCAL), strict=True):
        assert mask.window == config.window(kind)
        assert mask.layers == tuple(i for i in range(config.num_hidden_layers) if config.layer_type(i) == kind)
        for layer in mask.layers:
            assert torch.equal(dense(mask.runs), seen[layer]), (kind, layer)


def test_runs_are_as_long_as_they_can_be(model, tokenizer):
    view = mask_view(model.text_config, tokenizer, **prompt_of(f"t4 i t{WINDOW}"))
    first_soft, last_soft = 6, 5 + TOKENS_PER_IMAGE
    assert view.mask("global").runs[first_soft] == ((0, last_soft + 1),)
    assert view.mask("local").runs[-1] == ((len(view.tokens) - WINDOW, len(view.tokens)),)
    assert view.mask("local").runs[0] == ((0, 1),)


@pytest.mark.parametrize("padding", [0, 3])
def test_reasons_agree_with_the_mask_everywhere(model, tokenizer, padding):
    prompt = prompt_of(f"t3 i i t{WINDOW + 4}", padding)
    view = mask_view(model.text_config, tokenizer, **prompt)
    seen = set()
    for mask in view.masks:
        for query, key in [(q, k) for q in range(padding, len(view.tokens)) for k in range(len(view.tokens))]:
            reason = view.reason(mask.kind, query, key)
            seen.add((mask.kind, reason))
            assert mask.allows(query, key) == (reason in ("causal", "same image")), (query, key, reason)
            if reason == "same image":
                assert view.tokens[query].tile == view.tokens[key].tile is not None
            if reason == "later":
                assert key > query
            if reason == "outside the window":
                assert query - key >= WINDOW
    expected = {("global", r) for r in ("causal", "same image", "later")}
    expected |= {("local", r) for r in ("causal", "same image", "later", "outside the window")}
    expected |= {(kind, "padding") for kind in ("global", "local")} if padding else set()
    assert seen == expected


def test_without_types_pictures_are_causal_as_in_forward(model, tokenizer):
    prompt = prompt_of("t2 i t2")
    del prompt["token_type_ids"]
    view = mask_view(model.text_config, tokenizer, **prompt)
    total = len(view.tokens)
    assert torch.equal(dense(view.mask("global").runs), torch.ones(total, total, dtype=torch.bool).tril())


def test_a_model_of_one_kind_of_layer_has_one_mask(model, tokenizer):
    config = model.text_config
    only_local = config.replace(layer_types=(LOCAL,) * config.num_hidden_layers)
    view = mask_view(only_local, tokenizer, **prompt_of("t4"))
    assert [mask.kind for mask in view.masks] == ["local"]
    with pytest.raises(PromptError, match="no global layers, only local"):
        view.mask("global")


def test_several_rows_are_refused(model, tokenizer):
    with pytest.raises(PromptError, match=r"\[2, 3\]"):
        mask_view(model.text_config, tokenizer, torch.zeros(2, 3, dtype=torch.long))


def test_tokens_are_described(tokenizer):
    text = "a b<start_of_image><image_soft_token><image_soft_token><end_of_image>\n\n"
    inputs = tokenizer([text], return_tensors="pt")
    types = (inputs["input_ids"] == tokenizer.image_token_id).long()
    ids, mask = left_padded([inputs["input_ids"], torch.zeros(1, types.shape[1] + 1, dtype=torch.long)])
    types, _ = left_padded([types, torch.zeros(1, ids.shape[1], dtype=torch.long)])
    tokens = prompt_tokens(tokenizer, ids[:1], mask[:1], types[:1])
    assert [token.kind for token in tokens] == [
        *["padding", "special", "text", "text", "text", "special", "image", "image", "special", "text"]
    ]
    assert [token.text for token in tokens][2:5] == ["a", " ", "b"]
    assert [token.tile for token in tokens if token.kind == "image"] == [0, 0]
    assert [token.column for token in tokens] == list(range(10))
    assert prompt_tokens(tokenizer, torch.tensor([[10**6]]))[0].text == "<1000000>", "an id beyond the vocabulary"


@pytest.mark.parametrize("most", [2, 3, 7, 20, 400])
@pytest.mark.parametrize("layout", ["t2", "t90", "i", "t9 i t30 i i t4", " ".join(["t1 i"] * 9)])
def test_folding_keeps_every_token_once_and_the_shares_are_those_of_the_mask(model, tokenizer, layout, most):
    view = mask_view(model.text_config, tokenizer, **prompt_of(layout, padding=3))
    segments, masks = view.folded(most)
    assert len(segments) <= most
    assert segments[0].start == 0
    assert segments[-1].stop == len(view.tokens)
    assert all(a.stop == b.start and len(a) > 0 for a, b in itertools.pairwise(segments))
    for whole, small in zip(view.masks, masks, strict=True):
        mask = dense(whole.runs).float()
        shares = torch.tensor([[mask[q.start : q.stop, k.start : k.stop].mean() for k in segments] for q in segments])
        assert torch.allclose(torch.tensor(small.shares), shares, atol=1e-6)


def test_folding_keeps_the_ends_of_runs_and_says_what_is_folded():
    tokens = [PromptToken(i, 5, f"w{i}", "text") for i in range(5)]
    tokens += [PromptToken(5 + i, 9, "soft", "image", tile=0) for i in range(20)]
    tokens += [PromptToken(25, 5, "end", "text")]
    segments = folded(tokens, 15)
    assert [segment.label for segment in segments] == [
        *["w0", "w1", "w2", "w3", "w4"],
        *["<image 1>"] * 4,
        "<image 1: 12 more>",
        *["<image 1>"] * 4,
        "end",
    ]
    assert folded(tokens, 4) == (
        Segment(0, 5, "<text: 5 tokens>", "text"),
        Segment(5, 25, "<image 1: 20 tokens>", "image"),
        Segment(25, 26, "end", "text"),
    )
    assert [s.label for s in folded(tokens, 2)] == ["<text: 5 tokens>", "21 tokens, 1 image"]
    with pytest.raises(PromptError, match="most=1"):
        folded(tokens, 1)


def test_four_thousand_tokens_take_less_than_a_second(model, tokenizer):
    prompt = prompt_of("t400 " + "i t300 " * 11)
    assert prompt["input_ids"].shape[1] > 3500
    config = model.text_config.replace(sliding_window=1024)
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)  # time of the processor, on one core: other programs have no part in it
    try:
        for _ in range(2):
            start = time.process_time()
            mask_view(config, tokenizer, **prompt).folded(60)
            times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(times) < 1, times


def test_squares_lie_where_their_soft_tokens_stand():
    _, types = image_prompt("t3 i i i t4 i")
    crops = [Box(0, 0, 50, 40), Box(50, 0, 100, 40)]
    tiles = tiles_of(types, [(100, 40), (30, 60)], [crops, []])
    assert [(tile.picture, tile.crop) for tile in tiles] == [(0, None), (0, 0), (0, 1), (1, None)]
    assert [tile.label for tile in tiles] == ["picture 1", "picture 1, crop 1", "picture 1, crop 2", "picture 2"]
    assert [tile.box for tile in tiles] == [Box(0, 0, 100, 40), *crops, Box(0, 0, 30, 60)]
    for tile in tiles:
        assert types[0, tile.start : tile.stop].sum() == TOKENS_PER_IMAGE
        assert types[0, tile.start - 1] == types[0, tile.stop] == 0
    with pytest.raises(PromptError, match="4 image blocks, the pictures and their crops make 3"):
        tiles_of(types, [(100, 40)], [crops])


def test_an_answer_behind_the_prompt_is_text(tokenizer):
    ids, types = image_prompt("t2 i")
    turn = with_answer({"input_ids": ids, "token_type_ids": types}, [7])
    assert prompt_tokens(tokenizer, turn["input_ids"], None, turn["token_type_ids"])[-1].kind != "image"
    assert SOFT != BEGIN


def test_views_are_plain_data(model, tokenizer):
    view = mask_view(model.text_config, tokenizer, **prompt_of("t2 i"))
    assert isinstance(view, MaskView)
    assert hash(view) == hash(mask_view(model.text_config, tokenizer, **prompt_of("t2 i"))), "no tensors inside"
