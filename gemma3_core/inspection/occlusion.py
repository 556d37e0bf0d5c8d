"""Does it matter? Hides a part of a picture and asks the model again.

Attention shows where a model looked, not what its answer depends on. The region is hidden in the picture itself, before
the processor, so every tile that shows it changes, crops included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageStat

from gemma3_core.errors import AttentionError
from gemma3_core.generation.grammar import Grammar, allowed_before
from gemma3_core.generation.loop import DecodePass, RowSampler, Step, decode_together, generate_tokens
from gemma3_core.generation.row_sampler import SamplingRow
from gemma3_core.generation.sampling import SamplingSettings
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.attention import Check, encoded, replay, with_answer
from gemma3_core.models.multimodal import Model
from gemma3_core.nn.cache import KVCache

_SURROUNDINGS = 0.25


@dataclass(frozen=True)
class Occlusion:
    """How hiding a region changed one token of an answer.

    `before` and `after` are the token's probabilities, from 0 to 1, after the answer's original earlier tokens; those
    of an answer that must fit a grammar are among the allowed tokens. `answer_ids` is the greedy answer with the region
    hidden, without its stop token; it fits the grammar too.
    """

    token_id: int
    before: float
    after: float
    answer_ids: tuple[int, ...]


def hidden(picture: Image.Image, box: Box) -> Image.Image:
    """A copy of an RGB picture with `box` filled with the mean color around it.

    The mean is over a frame a quarter as wide as the box's longer side, or over the whole picture if the box covers it.
    Raises AttentionError for a box that is empty or reaches beyond the picture.
    """
    width, height = picture.size
    if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
        raise AttentionError(
            f"The region must not be empty and must lie within the picture of {width} x {height} pixels, got columns "
            f"{box.left} to {box.right} and rows {box.top} to {box.bottom}."
        )
    frame = max(1, round(_SURROUNDINGS * max(box.right - box.left, box.bottom - box.top)))
    left, top, right, bottom = inner = box.left, box.top, box.right, box.bottom
    around = max(0, left - frame), max(0, top - frame), min(width, right + frame), min(height, bottom + frame)
    copy = picture.convert("RGB")
    (levels, pixels), (levels_within, pixels_within) = _levels(copy, around), _levels(copy, inner)
    if pixels > pixels_within:
        levels, pixels = levels - levels_within, pixels - pixels_within
    copy.paste(tuple((levels / pixels).round().astype(int).tolist()), inner)
    return copy


def _levels(picture: Image.Image, box: tuple[int, int, int, int]) -> tuple[np.ndarray, int]:
    """The sum of each color's levels in a box, and the box's number of pixels; integers, so the sums are exact."""
    stat = ImageStat.Stat(picture.crop(box))
    return np.array(stat.sum), stat.count[0]


def token_probability(
    model: Model,
    inputs: Mapping[str, Any],
    answer_ids: Sequence[int],
    token: int,
    check: Check | None = None,
    grammar: Grammar | None = None,
) -> float:
    """The probability of the answer's token number `token` (from 0) after the prompt and the tokens before it; with a
    grammar, among the tokens that it allows there.

    `inputs` are the prompt's [1, T]. Raises AttentionError if the answer has no such token, SchemaError if it does not
    fit the grammar.
    """
    if not 0 <= token < len(answer_ids):
        raise AttentionError(
            f"The answer has {len(answer_ids)} tokens, numbered from 0; there is no number {token}. Choose another one."
        )
    turn = with_answer(inputs, answer_ids[:token])
    logits = replay(model, turn, [turn["input_ids"].shape[1] - 1], with_logits=True, check=check).logits
    assert logits is not None
    allowed = allowed_before(grammar, answer_ids, range(token, token + 1), logits.shape[-1])
    if allowed is not None:
        logits = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
    return float(logits[0].float().softmax(dim=-1)[answer_ids[token]])


def occlusion(
    model: Model,
    inputs: Mapping[str, Any],
    inputs_hidden: Mapping[str, Any],
    answer_ids: Sequence[int],
    token: int,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    check: Check | None = None,
    grammar: Grammar | None = None,
) -> Occlusion:
    """Compares a prompt with the same prompt whose pictures were changed by `hidden`, both as model inputs [1, T].

    Raises AttentionError if the answer has no token number `token` (from 0), SchemaError if it does not fit the
    grammar, and what generation and `check` raise.
    """
    before = token_probability(model, inputs, answer_ids, token, check, grammar)
    prompt = encoded(model, inputs_hidden, check)
    after = token_probability(model, prompt, answer_ids, token, check, grammar)
    return Occlusion(answer_ids[token], before, after, _greedy(model, prompt, max_new_tokens, stop_ids, check, grammar))


def _greedy(
    model: Model,
    prompt: dict[str, Any],
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    check: Check | None,
    grammar: Grammar | None,
) -> tuple[int, ...]:
    tokens, settings, cache = [], SamplingSettings(temperature=0.0), KVCache(model.text_config)
    row = SamplingRow(settings, None, False, constraint=None if grammar is None else grammar.begin())
    sampler = RowSampler(model, cache, row, stop_ids)
    with torch.inference_mode():
        for step in generate_tokens(model, prompt, settings, max_new_tokens, stop_ids, cache, sampler=sampler):
            if check is not None:
                check()
            if isinstance(step, DecodePass):
                decode_together([step])
            elif isinstance(step, Step):
                tokens.append(int(step.tokens[0]))
    return tuple(tokens[:-1] if tokens and tokens[-1] in stop_ids else tokens)
