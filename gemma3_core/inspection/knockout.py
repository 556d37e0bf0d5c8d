"""Knock-out: soft tokens are hidden from the words after them, and a word's probability is read again.

A hidden soft token is a key that no query sees, as padding is in `masks`; all others keep their places. Nothing is
encoded again. The turn up to its last picture is read once; only the words after it are read once a row, for many rows
in one batch. Three soft tokens and a question, as the words see them (x: may be attended to):

                        I I I ] what color
    row 0, all seen     x x x x x    x
    row 1, 0 hidden     . x x x x    x
    row 2, 1, 2 hidden  x . . x x    x

Like attention knock-out (Geva et al. 2023, arXiv 2304.14767), but on all layers and from all later words. The soft
tokens themselves have seen each other before, in the encoder too: so this is about what the words read, not about
pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gemma3_core.config.gemma3 import GLOBAL, LOCAL
from gemma3_core.errors import AttentionError
from gemma3_core.generation.grammar import Grammar, allowed_before
from gemma3_core.inspection.attention import Check, encoded, with_answer
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Model
from gemma3_core.nn.cache import CopiedRows, KVCache, cache_bytes
from gemma3_core.nn.masks import NO_BLOCK, PADDING, attention_mask, image_blocks

MOST_BATCH_BYTES = 400_000_000
"""Most memory for the KV caches of the rows of one batch."""

UNSEEN_MAX_TOKENS = 2048
"""Most words of a turn that are read again without pictures: one pass, with masks of words x words."""

_LOGITS_AT_A_TIME = 32


class KnockOut:
    """One turn, read up to its last picture; `probabilities` reads the rest with parts of the pictures hidden.

    `columns` are the soft tokens' columns [S], in order.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: Model,
        inputs: Mapping[str, Any],
        answer_ids: Sequence[int],
        word: range,
        check: Check | None = None,
        grammar: Grammar | None = None,
    ):
        """`inputs` are the prompt's [1, T], with soft_tokens or pixel_values; `word` are the answer's tokens (from 0)
        whose probability is read: with a grammar, among the tokens that it allows there. Raises AttentionError if there
        is no picture or no such word, SchemaError if the answer does not fit the grammar, and what `check` raises: it
        is called before each layer."""
        if not isinstance(model, Gemma3ForConditionalGeneration):
            raise AttentionError(
                "This model reads text only, so its answers rest on no picture. Ask a model that reads pictures."
            )
        _check_word(answer_ids, word)
        turn = encoded(model, with_answer(inputs, answer_ids[: word.stop - 1]), check)
        if turn.get("soft_tokens") is None:
            raise AttentionError("This question had no picture, so the answer rests on none. Ask about a picture.")
        self.rows_read = 0
        self._model, self._check = model, check
        allowed = allowed_before(grammar, answer_ids, word, model.text_config.vocab_size)
        self._allowed = None if allowed is None else allowed.to(model.device)
        self._word_ids = torch.tensor([answer_ids[number] for number in word], device=model.device)
        types = turn["token_type_ids"]
        self.columns = (types[0] == 1).nonzero()[:, 0]
        self._before = int(self.columns[-1]) + 1
        self._blocks = image_blocks(types)
        x = model.model.embed(turn["input_ids"], turn["soft_tokens"])
        self._shared = KVCache(model.text_config, reserve=self._before)
        self._read(x[:, : self._before], self._shared, self._blocks[:, : self._before])
        self._words = x[:, self._before :]

    @torch.inference_mode()
    def probabilities(self, hidden: torch.Tensor) -> torch.Tensor:
        """The word's probability [R] with these soft tokens hidden: bool [R, S], True where hidden."""
        config = self._model.text_config
        row_bytes = cache_bytes(config, self._before + self._words.shape[1], self._model.dtype)
        at_a_time = max(1, MOST_BATCH_BYTES // row_bytes)
        self.rows_read += hidden.shape[0]
        return torch.cat([self._of(some) for some in hidden.to(self.columns.device).split(at_a_time)]).cpu()

    def _of(self, hidden: torch.Tensor) -> torch.Tensor:
        rows = hidden.shape[0]
        positions = torch.arange(self._before, device=hidden.device).repeat(rows, 1)
        positions[:, self.columns] = positions[:, self.columns].masked_fill(hidden, PADDING)
        before = self._blocks[:, : self._before].expand(rows, -1)
        cache = CopiedRows(self._shared, positions, before, self._before + self._words.shape[1]).cache()
        blocks = self._blocks[:, self._before :].expand(rows, -1)
        states = self._read(self._words.expand(rows, -1, -1), cache, blocks)[:, -len(self._word_ids) :]
        return _probabilities(self._model, states, self._word_ids, self._allowed).prod(dim=1)

    def _read(self, x: torch.Tensor, cache: KVCache, blocks: torch.Tensor) -> torch.Tensor:
        decoder, reader = self._model.model.decoder, _Checker(self._check)
        out = decoder(inputs_embeds=x, past_key_values=cache, image_blocks=blocks, output_attentions=reader)
        return out.last_hidden_state


@torch.inference_mode()
def probabilities_unseen(
    model: Model, inputs: Mapping[str, Any], answer_ids: Sequence[int], check: Check | None = None
) -> tuple[float, ...]:
    """The probability of each token of an answer if no word sees any picture of the prompt [1, T].

    The pictures keep their places but are not read at all, so `inputs` needs no pixels: one pass over the words.
    Raises AttentionError for more than UNSEEN_MAX_TOKENS words.
    """
    turn = with_answer({name: inputs[name] for name in ("input_ids", "token_type_ids")}, answer_ids[:-1])
    columns = (turn["token_type_ids"] != 1).nonzero()[:, 1][None]
    words = columns.shape[1]
    if words > UNSEEN_MAX_TOKENS:
        raise AttentionError(
            f"Without its pictures this conversation has {words:,} tokens; at most "
            f"{UNSEEN_MAX_TOKENS:,} are read again. Ask in a new chat."
        )
    config, decoder = model.text_config, model.model.decoder
    blocks = torch.full_like(columns, NO_BLOCK)
    masks = {
        kind: attention_mask(columns, columns, blocks, blocks, config.window(kind))[:, None] for kind in (LOCAL, GLOBAL)
    }
    out = decoder(
        turn["input_ids"][:, columns[0]],
        attention_mask=masks,
        position_ids=columns,
        use_cache=False,
        output_attentions=_Checker(check),
    )
    ids = torch.tensor(list(answer_ids), device=columns.device)
    return tuple(_probabilities(model, out.last_hidden_state[:, -len(ids) :], ids)[0].tolist())


class _Checker:
    """Calls `check` before each layer, in place of reading weights."""

    def __init__(self, check: Check | None):
        self._check = check

    def __call__(self, _layer: int, queries: torch.Tensor, *_: object) -> torch.Tensor:
        if self._check is not None:
            self._check()
        return queries.new_empty(0)


def _check_word(answer_ids: Sequence[int], word: range) -> None:
    if not word or word.start < 0 or word.stop > len(answer_ids):
        raise AttentionError(
            f"The answer has {len(answer_ids)} tokens, numbered from 0; there is no word "
            f"{word.start} to {word.stop - 1}."
        )


def _probabilities(
    model: Model, states: torch.Tensor, ids: torch.Tensor, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """The probabilities [R, N] in float32 of the tokens `ids` [N] after the states [R, N, E], some rows at a time;
    among the `allowed` tokens, bool [N, vocabulary], if there are any."""
    places = torch.arange(len(ids), device=ids.device).repeat(states.shape[0])
    parts = []
    for some, place in zip(states.flatten(0, 1).split(_LOGITS_AT_A_TIME), places.split(_LOGITS_AT_A_TIME), strict=True):
        logits = model.lm_head(some).float()
        if allowed is not None:
            logits = logits.masked_fill(~allowed[place], float("-inf"))
        parts.append(logits.softmax(dim=-1).gather(1, ids[place, None])[:, 0])
    return torch.cat(parts).view(states.shape[:2])
