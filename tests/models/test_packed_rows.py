"""Several documents in one row: position_ids that begin again at 0, against transformers and against each alone."""

import pytest
import torch
from reference import SOFT, WINDOW, assert_equal, image_prompt, left_padded, pixels

from gemma3_core.nn.masks import attention_mask, documents

LENGTHS = (4, 2 * WINDOW, 3)  # the second is longer than the window


def packed(layouts: list[str]) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """The documents' ids, and their row [1, T] with its positions."""
    alone = [image_prompt(layout, seed)[0] for seed, layout in enumerate(layouts)]
    positions = torch.cat([torch.arange(ids.shape[1]) for ids in alone])[None]
    return alone, torch.cat(alone, dim=1), positions


def test_documents_end_where_positions_do_not_go_on():
    rows = torch.tensor([[0, 1, 2, 3, 0, 1, 2], [5, 6, 7, 8, 9, 10, 11], [0, 1, 4, 5, 5, 6, 0]])
    assert documents(rows).tolist() == [[0, 0, 0, 0, 1, 1, 1], [0] * 7, [0, 0, 1, 1, 2, 2, 3]]


def test_the_mask_of_a_packed_row():
    """Two documents of three tokens, window 2.

    global          local
    x . . . . .     x . . . . .
    x x . . . .     x x . . . .
    x x x . . .     . x x . . .
    . . . x . .     . . . x . .
    . . . x x .     . . . x x .
    . . . x x x     . . . . x x
    """
    columns, blocks = torch.arange(6)[None], torch.full((1, 6), -1)
    own = documents(torch.tensor([[0, 1, 2, 0, 1, 2]]))
    picture = {None: ["x.....", "xx....", "xxx...", "...x..", "...xx.", "...xxx"]}
    picture[2] = ["x.....", "xx....", ".xx...", "...x..", "...xx.", "....xx"]
    for window, rows in picture.items():
        mask = attention_mask(columns, columns, blocks, blocks, window, own)
        assert ["".join("x" if seen else "." for seen in row) for row in mask[0].tolist()] == rows


@torch.no_grad()
def test_a_document_of_a_packed_row_has_the_logits_that_it_has_alone(our_text, their_text):
    example = torch.tensor([[5, 9, 17, 3, 41, 8, 66]]), torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    own = our_text(example[0], position_ids=example[1], use_cache=False).logits
    assert_equal(own[:, 4:], our_text(example[0][:, 4:]).logits)
    alone, ids, positions = packed([f"t{length}" for length in LENGTHS])
    row = our_text(ids, position_ids=positions, use_cache=False).logits
    assert_equal(row, torch.cat([our_text(document).logits for document in alone], dim=1))
    assert_equal(row, their_text(ids, position_ids=positions, use_cache=False).logits)


@torch.no_grad()
def test_documents_with_pictures_have_the_logits_that_they_have_alone(ours, theirs):
    """On local layers transformers 5.23 looks up image blocks at a document's own positions, which are the blocks of
    the row's first document; so it is the reference for that one, and each document alone for the others."""
    alone, ids, positions = packed(["t2 i t3", f"t{WINDOW} i i t4", "t5"])
    pictures = pixels(3)
    fields = {"token_type_ids": (ids == SOFT).long(), "pixel_values": pictures, "position_ids": positions}
    own = ours(ids, **fields, use_cache=False).logits
    each = [
        ours(document, token_type_ids=(document == SOFT).long(), pixel_values=mine).logits
        for document, mine in zip(alone, (pictures[:1], pictures[1:]), strict=False)
    ]
    assert_equal(own, torch.cat([*each, ours(alone[2]).logits], dim=1))
    first = alone[0].shape[1]
    assert_equal(own[:, :first], theirs(ids, **fields, use_cache=False).logits[:, :first])


def test_the_loss_and_its_gradient_over_packed_rows(our_text, their_text):
    _, ids, positions = packed(["t5", f"t{WINDOW + 3}"])
    fields = {"position_ids": positions.expand(2, -1), "labels": ids.repeat(2, 1), "use_cache": False}
    losses, gradients = [], []
    for model in (our_text, their_text):
        weight = model.model.layers[0].self_attn.q_proj.weight
        loss = model(input_ids=ids.repeat(2, 1), **fields).loss
        losses.append(loss.detach())
        gradients += torch.autograd.grad(loss, weight)
    assert_equal(losses[0], losses[1])
    assert_equal(gradients[0], gradients[1])


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"use_cache": True}, {"use_cache": False, "attention_mask": True}], ids=str)
def test_a_cache_or_a_mask_makes_one_document_of_a_row_as_in_transformers(our_text, their_text, options):
    _, ids, positions = packed(["t4", "t9"])
    if options.get("attention_mask"):
        options = {**options, "attention_mask": torch.ones_like(ids)}
    own, other = (model(ids, position_ids=positions, **options).logits for model in (our_text, their_text))
    assert_equal(own, other)
    again = our_text(ids, position_ids=positions, use_cache=False).logits
    assert not torch.allclose(own[:, 6:], again[:, 6:], atol=1e-3)


@torch.no_grad()
def test_padded_rows_whose_positions_begin_behind_the_padding(our_text, their_text):
    ids, mask = left_padded([image_prompt("t3")[0], image_prompt(f"t{2 * WINDOW}", 1)[0]])
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    fields = {"position_ids": positions, "attention_mask": mask, "use_cache": False}
    own, other = (model(ids, **fields).logits for model in (our_text, their_text))
    assert_equal(own[mask.bool()], other[mask.bool()])
