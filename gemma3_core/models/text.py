"""The decoder: Gemma3TextModel, and Gemma3ForCausalLM with its head."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F

from gemma3_core.config.gemma3 import GLOBAL, LOCAL, Gemma3TextConfig
from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.files.saving import refuse_options
from gemma3_core.generation.generate import GenerationMixin
from gemma3_core.models.initial_weights import initialise_decoder
from gemma3_core.models.pretrained import PreTrainedModel
from gemma3_core.nn.cache import KVCache, RowCaches
from gemma3_core.nn.checkpointing import run_layer
from gemma3_core.nn.inputs import described, require_prompt, require_tensors
from gemma3_core.nn.layers import DecoderLayer, Linear, RMSNorm, WeightReader, rotary_tables
from gemma3_core.nn.masks import NO_BLOCK, PADDING, attention_mask, documents
from gemma3_core.nn.outputs import CausalLMOutput, TextModelOutput, as_asked


class ScaledEmbedding(nn.Embedding):
    """Token embeddings times sqrt(width), which is rounded to the weights' type."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        # Not on a GPU, where this would synchronise at each token; torch's own assertion checks there.
        known = torch.compiler.is_compiling() or input_ids.device.type != "cpu"
        if not known and bool(((input_ids < 0) | (input_ids >= self.num_embeddings)).any()):
            raise PromptError(
                f"input_ids hold {int(input_ids.min())} to {int(input_ids.max())}; the vocabulary has "
                f"{self.num_embeddings:,} tokens from 0 on. Use the tokenizer of this checkpoint."
            )
        return super().forward(input_ids) * self.embed_scale

    @property
    def embed_scale(self) -> torch.Tensor:
        """The factor. A scalar on the CPU, whatever the device; adapters of the embedding ask for it."""
        return torch.tensor(self.embedding_dim**0.5, dtype=self.weight.dtype)


class Gemma3TextModel(PreTrainedModel):
    """Embeddings, decoder layers and the last norm."""

    config: Gemma3TextConfig
    config_class = Gemma3TextConfig

    def __init__(self, config: Gemma3TextConfig):
        super().__init__(config)
        # As in transformers, the padding token's embedding is not trained.
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        initialise_decoder(self, config.initializer_range)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | RowCaches | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        *,
        output_attentions: bool | WeightReader | None = None,
        output_hidden_states: bool | Callable[[torch.Tensor], torch.Tensor] | None = None,
        image_blocks: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **unknown: Any,
    ) -> TextModelOutput:
        """Hidden states of new tokens [B, T], given those in `past_key_values`.

        attention_mask [B, T or past + T] is 0 on padding. Without a past it may also be a ready mask [B, 1, T, S], one
        for all layers or one a layer kind, in which True (or 0 in a float mask) lets a query see a key. position_ids
        [B, T] are the rotary positions, by default 0, 1, 2, … continued from the past; without a cache and a mask they
        may begin again within a row, at a document that sees none of those before it. image_blocks [B, T]: see
        `masks`. output_attentions may be a reader: see `layers`; output_hidden_states may be a function that takes what
        is kept out of each layer's states [B, T, E]. return_dict=False returns a tuple. Raises PromptError,
        UnsupportedOptionError.
        """
        refuse_options("forward", unknown)
        check_prompt(input_ids, inputs_embeds, past_key_values)
        mask = None if isinstance(attention_mask, Mapping) else attention_mask
        require_tensors(attention_mask=mask, position_ids=position_ids, image_blocks=image_blocks)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if x.shape[-1] != self.config.hidden_size:
            raise PromptError(f"inputs_embeds are {x.shape[-1]} wide, this model's are {self.config.hidden_size}.")
        keep = (self.config.use_cache if use_cache is None else use_cache) or past_key_values is not None
        # As in transformers, a cache or an attention mask says that each row is one document.
        packed = None if attention_mask is not None or keep else position_ids
        if any(layer.is_checkpointing for layer in self.layers):
            _check_checkpointing(past_key_values)
            keep = False  # a layer that runs again would write its keys twice
        cache = past_key_values if past_key_values is not None and keep else (KVCache(self.config) if keep else None)
        past = 0 if cache is None else cache.get_seq_length()
        tokens = x.shape[1]
        new = torch.arange(tokens, device=x.device)[None] if cache is None else cache.next_columns(tokens, x.device)
        columns = new.expand(x.shape[:2])  # padding counts too
        ready = _ready_masks(attention_mask, columns, past)
        padding_mask = attention_mask if ready is None and isinstance(attention_mask, torch.Tensor) else None
        positions = _mask_positions(columns, padding_mask, past)
        blocks = torch.full_like(positions, NO_BLOCK) if image_blocks is None else image_blocks
        if cache is not None:
            cache.begin(positions, blocks, may_have_padding=padding_mask is not None)
        if position_ids is not None and tuple(position_ids.shape) not in (tuple(columns.shape), (1, columns.shape[1])):
            raise PromptError(f"position_ids must be {list(columns.shape)}, got {list(position_ids.shape)}.")
        own = None if packed is None else documents(packed)
        masks: Mapping[str, torch.Tensor | None] = ready or {
            kind: self._mask(kind, columns, positions, blocks, cache, own) for kind in (LOCAL, GLOBAL)
        }
        position_ids = columns if position_ids is None else position_ids
        head_dim = self.config.head_dim
        rotary = {kind: rotary_tables(position_ids, head_dim, self.config.rope_for(kind), x.dtype) for kind in masks}

        hidden_states, attentions = [], []
        kept = output_hidden_states if callable(output_hidden_states) else lambda states: states
        for i, layer in enumerate(self.layers):
            kind = self.config.layer_type(i)
            if output_hidden_states:
                hidden_states.append(kept(x))
            x, weights = run_layer(layer, x, rotary[kind], masks[kind], cache, output_attentions or self.eager)
            if output_attentions:
                attentions.append(weights)
        x = self.norm(x)
        if cache is not None:
            cache.advance()
        all_states = (*hidden_states, kept(x)) if output_hidden_states else None
        own_cache = None if isinstance(cache, RowCaches) else cache  # the rows' caches belong to their answers
        return as_asked(TextModelOutput(x, own_cache, all_states, tuple(attentions) or None), return_dict)

    def _mask(
        self,
        kind: str,
        columns: torch.Tensor,
        positions: torch.Tensor,
        blocks: torch.Tensor,
        cache: KVCache | RowCaches | None,
        documents: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """[B, 1, T, S], or None if one new token may attend to every key in the cache."""
        if isinstance(cache, RowCaches) or (cache is not None and positions.shape[1] == 1 and not cache.has_padding):
            return None
        key_positions, key_blocks = (positions, blocks) if cache is None else cache.seen(kind)
        window = self.config.window(kind)
        # Queries by their columns: padding on the right sees what stands before it, as in transformers.
        return attention_mask(columns, key_positions, blocks, key_blocks, window, documents)[:, None]


def check_prompt(input_ids: Any, inputs_embeds: Any, past_key_values: Any) -> None:
    """Requires ids [B, T] or embeddings [B, T, E], not both, and a cache with B rows, if any.

    Raises PromptError, UnsupportedOptionError.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise PromptError("Give either input_ids or inputs_embeds.")
    name, given = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
    require_prompt(name, given)
    if not isinstance(past_key_values, KVCache | RowCaches | None):
        raise UnsupportedOptionError(f"past_key_values must be a KVCache, got {type(past_key_values).__name__}.")
    if past_key_values is not None and past_key_values.batch_size not in (None, given.shape[0]):
        raise PromptError(
            f"{name} have {given.shape[0]} rows, past_key_values {past_key_values.batch_size}. "
            "Continue with the rows that the cache holds."
        )


def _check_checkpointing(past_key_values: KVCache | RowCaches | None) -> None:
    if past_key_values is not None and past_key_values.get_seq_length():
        raise UnsupportedOptionError(
            f"Gradient checkpointing can't continue past_key_values of {past_key_values.get_seq_length()} tokens. "
            "Give the whole rows, or call gradient_checkpointing_disable()."
        )


def _ready_masks(
    attention_mask: torch.Tensor | Mapping[str, torch.Tensor] | None, columns: torch.Tensor, past: int
) -> dict[str, torch.Tensor] | None:
    """Ready masks [B or 1, H or 1, T, S] by layer kind, bool; None if `attention_mask` is not a ready mask."""
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 4:
        attention_mask = dict.fromkeys((LOCAL, GLOBAL), attention_mask)
    if not isinstance(attention_mask, Mapping):
        return None
    if past:
        raise PromptError("Ready masks can't be used on top of past_key_values. Give attention_mask [batch, tokens].")
    if set(attention_mask) != {LOCAL, GLOBAL}:
        raise PromptError(f"Ready masks must be given for {LOCAL} and {GLOBAL}, got {sorted(attention_mask)}.")
    return {kind: _as_bool(mask, columns) for kind, mask in attention_mask.items()}


def _as_bool(mask: Any, columns: torch.Tensor) -> torch.Tensor:
    """A ready mask as bool. In a floating one 0 means visible, and -inf (or the lowest number) hidden."""
    rows, tokens = columns.shape
    square = isinstance(mask, torch.Tensor) and mask.ndim == 4 and tuple(mask.shape[2:]) == (tokens, tokens)
    if not square or mask.shape[0] not in (1, rows):
        raise PromptError(f"A ready mask must be a tensor [{rows}, 1, {tokens}, {tokens}], got {described(mask)}.")
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point():
        seen, hidden = mask == 0, mask <= torch.finfo(mask.dtype).min / 2
        if torch.compiler.is_compiling() or bool((seen | hidden).all()):
            return seen
    raise PromptError(f"A ready mask must be bool, or floating with only 0 and -inf, got {described(mask)}.")


def _mask_positions(columns: torch.Tensor, padding_mask: torch.Tensor | None, past: int) -> torch.Tensor:
    """Columns, with PADDING where `padding_mask` [B, T or past + T] is 0."""
    if padding_mask is None:
        return columns
    rows, new = columns.shape
    if tuple(padding_mask.shape) not in ((rows, new), (rows, past + new)):
        before = f", or [{rows}, {past + new}] with what the cache holds" if past else ""
        raise PromptError(
            f"attention_mask must be [batch, tokens] for {list(columns.shape)} new tokens{before}, "
            f"got {list(padding_mask.shape)}."
        )
    return columns.masked_fill(padding_mask[:, -new:] == 0, PADDING)


class Gemma3ForCausalLM(GenerationMixin, PreTrainedModel):
    """Text only: the decoder and its head (the 270M and 1B checkpoints)."""

    config: Gemma3TextConfig
    config_class = Gemma3TextConfig
    loss_type = "ForCausalLM"
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: Gemma3TextConfig):
        super().__init__(config)
        self.model = Gemma3TextModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        initialise_decoder(self.lm_head, config.initializer_range)
        self.tie_weights()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | RowCaches | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        *,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> CausalLMOutput:
        """Logits [B, T or logits_to_keep, vocabulary]; loss if labels [B, T] are given (-100 is ignored).

        The other inputs and `options` are those of Gemma3TextModel. num_items_in_batch: see `causal_output`.
        Raises PromptError, UnsupportedOptionError.
        """
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **options)
        logits = self.lm_head(last_tokens(out.last_hidden_state, logits_to_keep))
        cap = self.config.final_logit_softcapping
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return as_asked(causal_output(out, logits, labels, num_items_in_batch), return_dict)


def last_tokens(x: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last `logits_to_keep` of [B, T, E]; 0 keeps all, a tensor holds the columns to keep."""
    if isinstance(logits_to_keep, torch.Tensor):
        columns, tokens = logits_to_keep, x.shape[1]
        if columns.dtype == torch.bool and columns.shape == (tokens,):
            columns = columns.nonzero()[:, 0]
        whole = columns.dtype in (torch.int32, torch.int64) and columns.ndim == 1
        known = torch.compiler.is_compiling() or columns.device.type != "cpu"
        if not whole or (not known and bool(((columns < -tokens) | (columns >= tokens)).any())):
            raise UnsupportedOptionError(
                f"logits_to_keep must hold numbers of columns, below {tokens}, in one row; got {columns.tolist()}."
            )
        return x[:, columns.to(x.device)]
    if not isinstance(logits_to_keep, int) or logits_to_keep < 0:
        raise UnsupportedOptionError(
            f"logits_to_keep is how many of the last tokens, or a tensor of columns, got {logits_to_keep!r}."
        )
    return x[:, -logits_to_keep:] if logits_to_keep else x


def causal_output(
    out: TextModelOutput,
    logits: torch.Tensor,
    labels: torch.Tensor | None,
    num_items: int | torch.Tensor | None = None,
) -> CausalLMOutput:
    """The output with the next-token loss, which compares logits at t with labels at t + 1, in float32.

    The loss is the mean over this batch's tokens, or their sum divided by `num_items`, the tokens of a larger batch.
    """
    loss = None
    require_tensors(labels=labels)
    if labels is not None:
        if labels.dtype != torch.long:
            raise PromptError(f"labels must be int64, got {str(labels.dtype).removeprefix('torch.')}. Use .long().")
        if not isinstance(num_items, int | float | torch.Tensor | None):
            raise PromptError(f"num_items_in_batch must be a number of tokens, got {num_items!r}.")
        known = torch.compiler.is_compiling() or labels.device.type != "cpu"
        if not known and bool((labels >= logits.shape[-1]).any()):
            raise PromptError(f"labels hold {int(labels.max())}; the vocabulary ends at {logits.shape[-1] - 1:,}.")
        if labels.shape != logits.shape[:2]:
            raise PromptError(
                f"labels must be {list(logits.shape[:2])}, one for each token with logits, got {list(labels.shape)}. "
                "Leave logits_to_keep out to get a loss."
            )
        shifted = F.pad(labels, (0, 1), value=-100)[:, 1:].flatten().to(logits.device)
        how = "mean" if num_items is None else "sum"
        loss = F.cross_entropy(logits.float().flatten(0, 1), shifted, ignore_index=-100, reduction=how)
        if num_items is not None:
            loss = loss / (num_items.to(loss.device) if isinstance(num_items, torch.Tensor) else num_items)
    states = (out.past_key_values, out.hidden_states, out.attentions, out.image_hidden_states)
    return CausalLMOutput(loss, logits, *states)
