"""The one mask rule: the docstring's picture, transformers' own masks, and its edges."""

import itertools

import pytest
import torch
from reference import image_prompt, left_padded, reference_text_config

from gemma3_core.config.gemma3 import GLOBAL, LOCAL
from gemma3_core.nn import masks
from gemma3_core.nn.masks import NO_BLOCK, PADDING, attention_mask, divides_a_block, image_blocks

WINDOWS = [1, 2, 3, 16, 17, 18, 24, 400]
LAYOUTS = ["t6", "i", "t5 i t9", "i i", "t3 i i i t4", "t30 i t2 i t40", "t1 i t1 i t1 i t1"]


def mask_of(token_types: torch.Tensor, window: int | None, padding: torch.Tensor | None = None) -> torch.Tensor:
    """Our mask [B, T, T] of whole rows that are read at once."""
    positions = torch.arange(token_types.shape[1]).expand(token_types.shape)
    if padding is not None:
        positions = positions.masked_fill(padding == 0, PADDING)
    blocks = image_blocks(token_types)
    return attention_mask(positions, positions, blocks, blocks, window)


def reference_masks(token_types: torch.Tensor, window: int, padding: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """transformers' own masks [B, T, T] of the same rows, by layer kind."""
    from transformers.models.gemma3 import modeling_gemma3

    config = reference_text_config()
    config.sliding_window = window
    config._attn_implementation = "sdpa"
    theirs = modeling_gemma3.create_masks_for_vision_model(
        config=config,
        inputs_embeds=torch.zeros(*token_types.shape, config.hidden_size),
        attention_mask=padding,
        past_key_values=None,
        position_ids=None,
        block_sequence_ids=modeling_gemma3.get_block_sequence_ids_for_mask(token_types),
    )
    assert all(mask is not None for mask in theirs.values())
    return {kind: mask[:, 0].bool() for kind, mask in theirs.items()}


def pictures_in_docstring() -> tuple[list[str], dict[str, list[str]]]:
    """The two pictures of the module's docstring: their tokens, and by name one row per query."""
    lines = (masks.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.split() == ["global", "local"])
    tokens = lines[start + 1].split()
    size = len(tokens) // 2
    rows = [lines[start + 2 + i].split() for i in range(size)]
    half = size + 1
    assert [row[0] for row in rows] == [row[half] for row in rows] == tokens[:size] == tokens[size:]
    return tokens[:size], {"global": [r[1:half] for r in rows], "local": [r[half + 1 :] for r in rows]}


def test_the_picture_in_the_docstring_is_the_mask():
    tokens, pictures = pictures_in_docstring()
    assert tokens == ["a", "[", "I", "I", "]", "b"]
    token_types = torch.tensor([[int(token == "I") for token in tokens]])
    for name, window in [("global", None), ("local", 3)]:
        drawn = [["x" if allowed else "." for allowed in row] for row in mask_of(token_types, window)[0].tolist()]
        assert drawn == pictures[name], name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_masks_are_those_of_transformers_for_images_and_windows(layout):
    _, token_types = image_prompt(layout)
    for window in WINDOWS:
        theirs = reference_masks(token_types, window, None)
        assert torch.equal(mask_of(token_types, window), theirs[LOCAL]), window
        assert torch.equal(mask_of(token_types, None), theirs[GLOBAL]), window


@pytest.mark.parametrize("side", ["left", "right"])
def test_masks_of_padded_batches_are_those_of_transformers(side):
    rows = [image_prompt(layout)[1] for layout in LAYOUTS]
    token_types, padding = left_padded(rows)
    if side == "right":
        token_types, padding = token_types.flip(1), padding.flip(1)
    real = padding.bool()
    for window in WINDOWS:
        theirs = reference_masks(token_types, window, padding)
        assert torch.equal(mask_of(token_types, window, padding)[real], theirs[LOCAL][real]), window
        assert torch.equal(mask_of(token_types, None, padding)[real], theirs[GLOBAL][real]), window


def test_the_window_is_one_sided_inside_a_block():
    token_types = torch.ones(1, 6, dtype=torch.long)
    mask = mask_of(token_types, 2)[0]
    assert mask[0].all(), "the first soft token sees every later one of its block, however far"
    assert mask[5].tolist() == [False] * 4 + [True] * 2, "the last one only looks back as far as the window"


def test_blocks_are_runs_so_touching_images_need_a_marker_between_them():
    _, token_types = image_prompt("i i")
    blocks = image_blocks(token_types)
    ids = sorted(set(blocks[0].tolist()) - {NO_BLOCK})
    assert len(ids) == 2
    assert (blocks[token_types == 0] == NO_BLOCK).all()
    first, second = (blocks[0] == i for i in ids)
    mask = mask_of(token_types, None)[0]
    assert not mask[first][:, second].any(), "images never see later images"
    assert mask[second][:, first].all()


def test_block_ids_of_a_later_chunk_differ_from_those_before():
    token_types = torch.tensor([[0, 1, 1, 0, 1]])
    first, later = image_blocks(token_types), image_blocks(token_types, first_position=5)
    assert first.tolist() == [[NO_BLOCK, 1, 1, NO_BLOCK, 4]]
    assert not set(first[token_types == 1].tolist()) & set(later[token_types == 1].tolist())


def test_each_row_of_a_batch_has_blocks_of_its_own():
    token_types = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]])
    alone = torch.cat([mask_of(row[None], 3) for row in token_types])
    assert torch.equal(mask_of(token_types, 3), alone)


def test_padding_is_never_attended_to_whatever_its_block():
    token_types = torch.tensor([[1, 1, 1, 0]])
    padding = torch.tensor([[0, 1, 1, 1]])
    for window in (None, 2):
        assert not mask_of(token_types, window, padding)[0, :, 0].any()


def test_keys_in_any_order_give_the_same_answer():
    _, token_types = image_prompt("t4 i t4")
    positions, blocks = torch.arange(token_types.shape[1])[None], image_blocks(token_types)
    order = torch.randperm(token_types.shape[1], generator=torch.Generator().manual_seed(1))
    for window, query in itertools.product((None, 7), (0, 6, 20)):
        q = (positions[:, query : query + 1], blocks[:, query : query + 1])
        straight = attention_mask(q[0], positions, q[1], blocks, window)
        shuffled = attention_mask(q[0], positions[:, order], q[1], blocks[:, order], window)
        assert torch.equal(straight[:, :, order], shuffled)


def test_cuts_that_would_divide_a_block():
    types = torch.tensor([[0, 1, 1, 1, 0, 1, 0], [0, 0, 0, 0, 0, 1, 1]])
    assert divides_a_block(image_blocks(types)).tolist() == [False, False, True, True, False, False, True]
    assert divides_a_block(image_blocks(types[:, :1])).tolist() == [False]
    assert not divides_a_block(torch.full((2, 9), NO_BLOCK)).any()
