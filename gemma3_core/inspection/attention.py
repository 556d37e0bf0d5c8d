"""Where the model looked: attention weights of chosen rows of a turn, and rollout over all layers.

The model reads a turn again, teacher-forced: prompt and answer in one pass, with forward's own masks. The pass runs
fused attention; the weights of the chosen rows are computed beside it. The answer's k-th token (from 0) was chosen by
the row before it, column `prompt tokens + k - 1`. `heat_maps` puts the weights onto the pictures and the words.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gemma3_core.errors import AttentionError, PromptError, UnsupportedOptionError
from gemma3_core.generation.chunks import PicturesByColumn, chunk_ends
from gemma3_core.inspection.prompt import require_one_row
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Model
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.layers import attention_weights
from gemma3_core.nn.masks import PADDING, image_blocks

REPLAY_CHUNK_SIZE = 2048
"""Tokens that one pass of a replay reads; a turn with 4 crops fits into one pass, which needs no KV cache."""

MOST_WEIGHT_BYTES = 100_000_000
"""Most memory for the weights of the chosen rows: layers x heads x rows x keys numbers."""

ROLLOUT_MAX_TOKENS = 4096
"""Rollout needs every row: three float32 matrices of tokens x tokens, 200 MB at this length."""

Check = Callable[[], None]
"""Called before each layer and each picture; it may raise to stop the work."""

_INPUTS = {"input_ids", "attention_mask", "position_ids", "token_type_ids", "pixel_values", "soft_tokens"}
_BY_COLUMN = ("input_ids", "position_ids", "token_type_ids")
_ROWS_AT_A_TIME = 128
_RESIDUAL = 0.5


@dataclass(frozen=True)
class Replay:
    """The result of `replay` for the chosen rows, in their order.

    weights [layers, H, rows, T] are in the model's type, and 0 on masked keys. logits [rows, vocabulary], if asked for,
    are those of the token after each row. states [layers, rows, E], if asked for, are what each layer leaves in the
    residual stream; the last one's have been through the model's last norm.
    """

    weights: torch.Tensor
    logits: torch.Tensor | None
    states: torch.Tensor | None = None


def with_answer(inputs: Mapping[str, Any], answer_ids: Sequence[int]) -> dict[str, Any]:
    """The model inputs of a whole turn: a prompt [1, T] and the answer's ids.

    Raises PromptError for several rows, and for position_ids, which would be too short.
    """
    ids = inputs["input_ids"]
    require_one_row(ids)
    if inputs.get("position_ids") is not None:
        raise PromptError("position_ids end with the prompt: leave them out, or give the whole turn's yourself.")
    answer = torch.tensor([list(answer_ids)], dtype=ids.dtype, device=ids.device)
    turn = {**inputs, "input_ids": torch.cat([ids, answer], dim=1)}
    for name, value in (("attention_mask", 1), ("token_type_ids", 0)):
        if inputs.get(name) is not None:
            turn[name] = torch.cat([inputs[name], torch.full_like(answer, value)], dim=1)
    return turn


@torch.inference_mode()
def replay(
    model: Model,
    inputs: Mapping[str, Any],
    rows: Sequence[int],
    with_logits: bool = False,
    chunk_size: int = REPLAY_CHUNK_SIZE,
    check: Check | None = None,
    with_states: bool = False,
) -> Replay:
    """Reads a turn again and returns the attention weights of the chosen `rows` (columns of the turn).

    `inputs` are forward's, of one conversation: input_ids [1, T], attention_mask if padded on the left, and with
    pictures token_type_ids and pixel_values or soft_tokens. Memory beyond the model: the weights of the rows (at most
    MOST_WEIGHT_BYTES for several), one layer's activations for `chunk_size` tokens, one picture's encoding and, for
    turns longer than `chunk_size`, a KV cache; never weights [T, T]. Raises AttentionError, PromptError,
    UnsupportedOptionError, and what `check` raises.
    """
    turn = _checked(model, inputs)
    total = turn["input_ids"].shape[1]
    _check_rows(model, rows, total)
    turn = encoded(model, turn, check)
    types, soft = turn.get("token_type_ids"), turn.get("soft_tokens")
    if soft is not None and types is None:
        raise PromptError("Pictures need token_type_ids, which say where their soft tokens stand.")
    pictures = PicturesByColumn(None if types is None else types == 1, {} if soft is None else {"soft_tokens": soft})
    ends = chunk_ends(None if types is None else image_blocks(types), total, chunk_size)
    # A single pass needs no cache.
    cache = None if len(ends) == 1 else KVCache(model.text_config, reserve=total)
    ordered, parts, heads, states = sorted(rows), [], [], []
    for start, end in zip([0, *ends], ends, strict=False):
        chosen = [row - start for row in ordered if start <= row < end]
        reader = _RowReader(chosen, check)
        weights, logits, left = _read(model, _columns(turn, pictures, start, end), reader, cache, total)
        parts.append(weights)
        states.append(left)
        if with_logits and chosen:
            heads.append(logits)
    places = [ordered.index(row) for row in rows]
    return Replay(
        torch.cat(parts, dim=2)[:, :, places],
        torch.cat(heads)[places] if with_logits else None,
        torch.cat(states, dim=1)[:, places] if with_states else None,
    )


@torch.inference_mode()
def rollout(model: Model, inputs: Mapping[str, Any], rows: Sequence[int], check: Check | None = None) -> torch.Tensor:
    """Attention rollout over all layers: the share of each token in the chosen rows, [rows, T] float32.

    For each layer, the mean over heads is mixed half and half with the identity (the residual stream); the layers'
    matrices are multiplied (Abnar & Zuidema 2020, arXiv 2005.00928). Each row sums to 1. `inputs` as for `replay`.
    Rollout needs every row of every layer, so it raises AttentionError beyond ROLLOUT_MAX_TOKENS.
    """
    turn = _checked(model, inputs)
    total = turn["input_ids"].shape[1]
    if total > ROLLOUT_MAX_TOKENS:
        raise AttentionError(
            f"Rollout over all layers needs the attention of every token, so it reads {ROLLOUT_MAX_TOKENS:,} tokens at "
            f"most; this turn has {total:,}. Choose a layer, or the mean over the global layers."
        )
    _check_rows(model, rows, total)
    turn = encoded(model, turn, check)
    mixing = _Rollout(check)
    model(**turn, output_attentions=mixing, use_cache=False, logits_to_keep=1)
    assert mixing.mixed is not None
    return mixing.mixed[list(rows)]


@torch.inference_mode()
def encoded(model: Model, inputs: Mapping[str, Any], check: Check | None = None) -> dict[str, Any]:
    """The inputs with soft tokens in place of pixels; encodes one picture at a time to save memory."""
    turn = {name: value for name, value in inputs.items() if name != "pixel_values"}
    if inputs.get("pixel_values") is not None:
        assert isinstance(model, Gemma3ForConditionalGeneration)
        parts = []
        for tile in inputs["pixel_values"].split(1):
            if check is not None:
                check()
            parts.append(model.get_image_features(tile).pooler_output)
        turn["soft_tokens"] = torch.cat(parts)
    return turn


class _RowReader:
    """Computes the attention weights of chosen rows from a layer's queries and keys."""

    def __init__(self, rows: list[int], check: Check | None = None):
        self.rows, self._check = rows, check

    def __call__(
        self, _layer: int, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        if self._check is not None:
            self._check()
        mask = None if mask is None else mask[:, :, self.rows]
        return attention_weights(queries[:, :, self.rows], keys, mask, scale)


class _Rollout:
    """Multiplies the attention matrices of the layers, each mixed with the identity."""

    def __init__(self, check: Check | None = None) -> None:
        self.mixed: torch.Tensor | None = None
        self._check = check

    def __call__(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        total = queries.shape[2]
        before, after = self.mixed, torch.empty(total, total, device=queries.device)
        for start in range(0, total, _ROWS_AT_A_TIME):
            rows = list(range(start, min(start + _ROWS_AT_A_TIME, total)))
            some = _RowReader(rows, self._check)(layer, queries, keys, mask, scale)
            step = some[0].float().mean(dim=0) * (1 - _RESIDUAL)
            step.diagonal(offset=start).add_(_RESIDUAL)
            after[rows] = step if before is None else step @ before
        self.mixed = after
        return queries.new_empty(0)


def _checked(model: Model, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that are not None; without token_type_ids for a text-only model."""
    if unknown := set(inputs) - _INPUTS:
        raise UnsupportedOptionError(f"Attention does not take the inputs {sorted(unknown)}, only {sorted(_INPUTS)}.")
    given = {name: value for name, value in inputs.items() if value is not None}
    if "input_ids" not in given:
        raise PromptError("Attention needs the turn's input_ids.")
    require_one_row(given["input_ids"])
    if isinstance(model, Gemma3ForConditionalGeneration):
        return given
    if given.keys() & {"pixel_values", "soft_tokens"}:
        raise PromptError("This model reads text only. Leave the pictures out, or take a model that sees.")
    return {name: value for name, value in given.items() if name != "token_type_ids"}


def _check_rows(model: Model, rows: Sequence[int], total: int) -> None:
    if not rows or min(rows) < 0 or max(rows) >= total:
        raise AttentionError(f"Rows are columns of the turn, 0 to {total - 1}, at least one; got {list(rows)[:8]}.")
    config = model.text_config
    a_row = config.num_hidden_layers * config.num_attention_heads * total * model.dtype.itemsize
    if len(rows) > 1 and len(rows) * a_row > MOST_WEIGHT_BYTES:
        raise AttentionError(
            f"The attention of {len(rows)} tokens at once is too much: {max(1, MOST_WEIGHT_BYTES // a_row)} fit for a "
            f"turn of {total:,} tokens. Choose fewer."
        )


def _columns(turn: dict[str, Any], pictures: PicturesByColumn, start: int, end: int) -> dict[str, Any]:
    """The inputs of columns `start` to `end` - 1, which hold whole image blocks."""
    part = {name: turn[name][:, start:end] for name in _BY_COLUMN if name in turn}
    if "attention_mask" in turn:
        part["attention_mask"] = turn["attention_mask"][:, :end]
    return {**part, **pictures.beginning_in(start, end)}


def _read(
    model: Model, part: dict[str, Any], reader: _RowReader, cache: KVCache | None, total: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One pass: weights [layers, H, the reader's rows, total], logits [rows, vocabulary], states [layers, rows, E]."""
    device = part["input_ids"].device
    out = model(
        **part,
        past_key_values=cache,
        use_cache=cache is not None,
        output_attentions=reader,
        output_hidden_states=lambda states: states[0, reader.rows],
        logits_to_keep=torch.tensor(reader.rows, device=device, dtype=torch.long),
    )
    states = torch.stack(out.hidden_states[1:])
    if cache is None:
        return torch.stack([weights[0] for weights in out.attentions]), out.logits[0], states
    config, spread = model.text_config, []
    for layer, weights in enumerate(out.attentions):
        # A ring's keys are not in order; their positions are their columns.
        columns = cache.seen(config.layer_type(layer))[0][0]
        real = columns != PADDING
        row = weights.new_zeros(*weights.shape[1:3], total)
        row[:, :, columns[real]] = weights[0][:, :, real]
        spread.append(row)
    return torch.stack(spread), out.logits[0], states
