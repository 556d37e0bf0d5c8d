"""Rows padded on the right: in transformers padding sees what stands before it, and a loss may count it."""

import pytest
import torch
from reference import SOFT, WINDOW, assert_equal, image_prompt, pixels

SHORT, LONG = "t4", f"t{2 * WINDOW + 3}"


def right_padded(layouts: list[str], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [image_prompt(layout, seed)[0][0] for seed, layout in enumerate(layouts)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("chunk", [None, 5])
def test_every_row_has_the_logits_of_transformers(our_text, their_text, use_cache, chunk):
    ids, mask = right_padded([SHORT, LONG])
    theirs = their_text(ids, attention_mask=mask, use_cache=use_cache).logits
    if chunk is None or not use_cache:
        assert_equal(our_text(ids, attention_mask=mask, use_cache=use_cache).logits, theirs)
        return
    cache, parts = None, []
    for start in range(0, ids.shape[1], chunk):
        end = min(start + chunk, ids.shape[1])
        out = our_text(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
        cache, parts = out.past_key_values, [*parts, out.logits]
    # A ring forgets what lies a window back, which the last row of padding would still see in one pass.
    assert_equal(torch.cat(parts, dim=1)[mask.bool()], theirs[mask.bool()])


def test_a_loss_that_counts_padding(our_text, their_text):
    ids, mask = right_padded([SHORT, LONG], pad=7)
    losses = [
        model(ids, attention_mask=mask, labels=ids, use_cache=False).loss.detach() for model in (our_text, their_text)
    ]
    assert_equal(*losses)


@torch.no_grad()
def test_with_pictures(ours, theirs):
    ids, mask = right_padded(["t2 i t3", f"t{WINDOW} i t20"])
    fields = {"attention_mask": mask, "token_type_ids": (ids == SOFT).long(), "pixel_values": pixels(2)}
    own, other = (model(ids, **fields).logits for model in (ours, theirs))
    assert_equal(own, other)
