"""What each layer made of a word: what it would have said, and which heads looked at a region.

Both come from one replay of the row that wrote the word. The logit lens reads each layer's residual stream with the
model's last norm and its head (nostalgebraist 2020, "interpreting GPT: the logit lens"). Early layers do not write for
that head, so what they "say" is a hint, not a thought.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gemma3_core.inspection.attention import Replay
from gemma3_core.inspection.confidence import Alternative, token_text
from gemma3_core.models.multimodal import Model
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

MOST_SAID = 5


@dataclass(frozen=True)
class LayerSaid:
    """The likeliest tokens after one layer (from 0), likeliest first, and the probability of the token in question."""

    layer: int
    likeliest: tuple[Alternative, ...]
    probability: float


@dataclass(frozen=True)
class HeadLook:
    """A head of a layer, both from 0, and the share of its attention that fell into the region."""

    layer: int
    head: int
    share: float


@torch.inference_mode()
def logit_lens(model: Model, replayed: Replay, token_id: int, tokenizer: Gemma3Tokenizer) -> tuple[LayerSaid, ...]:
    """What each layer would have said in place of `token_id`; `replayed` is a replay of one row, with its states."""
    assert replayed.states is not None
    said = []
    for layer, state in enumerate(replayed.states[:, 0]):
        is_last = layer == len(replayed.states) - 1
        logits = model.lm_head(state if is_last else model.model.decoder.norm(state)).float()
        shares = logits.softmax(dim=-1)
        best = shares.topk(min(MOST_SAID, shares.shape[0]))
        likeliest = tuple(
            Alternative(number, token_text(tokenizer, number), share)
            for share, number in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        said.append(LayerSaid(layer, likeliest, float(shares[token_id])))
    return tuple(said)


def heads_on(replayed: Replay, columns: Sequence[int]) -> tuple[HeadLook, ...]:
    """All heads by the share of their attention on these columns of the turn, most first; one replayed row."""
    shares = replayed.weights[:, :, 0, list(columns)].float().sum(dim=-1)  # [layers, H]
    looks = (
        HeadLook(layer, head, share) for layer, heads in enumerate(shares.tolist()) for head, share in enumerate(heads)
    )
    return tuple(sorted(looks, key=lambda look: (-look.share, look.layer, look.head)))
