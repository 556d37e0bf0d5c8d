"""The decoder: Gemma3TextModel, and Gemma3ForCausalLM with its head."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from gemma3_core.cache import KVCache
from gemma3_core.config import GLOBAL, LOCAL, Gemma3TextConfig
from gemma3_core.errors import PromptError
from gemma3_core.generation import GenerationMixin
from gemma3_core.layers import DecoderLayer, RMSNorm, rotary_tables
from gemma3_core.masks import NO_BLOCK, PADDING, attention_mask
from gemma3_core.outputs import CausalLMOutput, TextModelOutput
from gemma3_core.pretrained import PreTrainedModel


class ScaledEmbedding(nn.Embedding):
    """Token embeddings times sqrt(width), that factor rounded to the weights' type."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        scale = torch.tensor(self.embedding_dim**0.5, dtype=self.weight.dtype).item()
        return super().forward(input_ids) * scale


class Gemma3TextModel(PreTrainedModel):
    """Embeddings, decoder layers and the last norm."""

    config: Gemma3TextConfig
    config_class = Gemma3TextConfig

    def __init__(self, config: Gemma3TextConfig):
        super().__init__(config)
        # As in transformers, what padding is read as is not learnt.
        self.embed_tokens = ScaledEmbedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        image_blocks: torch.Tensor | None = None,
    ) -> TextModelOutput:
        """Hidden states of new tokens [B, T], given those in `past_key_values`.

        attention_mask [B, T or past + T]: 0 marks padding; or, as in transformers, ready masks by
        layer kind, bool [B, 1, T, S]. position_ids [B, T] turn the rotary embedding and default to
        0, 1, 2, … behind the past. image_blocks [B, T]: see `masks`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise PromptError("Give either input_ids or inputs_embeds.")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        keep = self.config.use_cache if use_cache is None else use_cache
        cache = past_key_values if past_key_values is not None else (KVCache(self.config) if keep else None)
        columns = _columns(x, cache)
        ready = attention_mask if isinstance(attention_mask, Mapping) else None
        padding_mask = None if isinstance(attention_mask, Mapping) else attention_mask
        positions = _mask_positions(columns, padding_mask)
        blocks = torch.full_like(positions, NO_BLOCK) if image_blocks is None else image_blocks
        if cache is not None:
            cache.begin(positions, blocks, may_have_padding=padding_mask is not None)
        masks: Mapping[str, torch.Tensor | None] = ready or {
            kind: self._mask(kind, positions, blocks, cache) for kind in (LOCAL, GLOBAL)
        }
        rotary = {kind: self._rotary(kind, columns if position_ids is None else position_ids, x) for kind in masks}

        hidden_states, attentions = [], []
        for i, layer in enumerate(self.layers):
            kind = self.config.layer_type(i)
            hidden_states.append(x)
            x, weights = layer(x, rotary[kind], masks[kind], cache, output_attentions or self.eager)
            if output_attentions:
                attentions.append(weights)
        x = self.norm(x)
        if cache is not None:
            cache.advance()
        return TextModelOutput(
            last_hidden_state=x,
            past_key_values=cache,
            hidden_states=(*hidden_states, x) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _mask(
        self, kind: str, positions: torch.Tensor, blocks: torch.Tensor, cache: KVCache | None
    ) -> torch.Tensor | None:
        """[B, 1, T, S], or None where one new token may attend to every key that its cache keeps."""
        if cache is not None and positions.shape[1] == 1 and not cache.has_padding:
            return None
        key_positions, key_blocks = (positions, blocks) if cache is None else cache.seen(kind)
        return attention_mask(positions, key_positions, blocks, key_blocks, self.config.window(kind))[:, None]

    def _rotary(self, kind: str, position_ids: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rotary_tables(position_ids, self.config.head_dim, self.config.rope_for(kind), x.dtype)


def _columns(x: torch.Tensor, cache: KVCache | None) -> torch.Tensor:
    """The number [B, T] of each new token in its row, padding counted."""
    first = 0 if cache is None else cache.get_seq_length()
    return torch.arange(first, first + x.shape[1], device=x.device).expand(x.shape[:2])


def _mask_positions(columns: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
    """Columns, with PADDING where `padding_mask` [B, T or past + T] is 0."""
    if padding_mask is None:
        return columns
    new = columns.shape[1]
    if padding_mask.ndim != 2 or padding_mask.shape[0] != columns.shape[0] or padding_mask.shape[1] < new:
        raise PromptError(
            f"attention_mask must be [batch, tokens] for {list(columns.shape)} new tokens, "
            f"got {list(padding_mask.shape)}."
        )
    return columns.masked_fill(padding_mask[:, -new:] == 0, PADDING)


class Gemma3ForCausalLM(GenerationMixin, PreTrainedModel):
    """Text only: the decoder and its head (the 270M and 1B checkpoints)."""

    config: Gemma3TextConfig
    config_class = Gemma3TextConfig

    def __init__(self, config: Gemma3TextConfig):
        super().__init__(config)
        self.model = Gemma3TextModel(config)
        self.lm_head = output_head(config)
        self.tie_weights()

    @property
    def decoder(self) -> Gemma3TextModel:
        return self.model

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> CausalLMOutput:
        """Logits [B, T or logits_to_keep, vocabulary]; loss where labels [B, T] are given (-100 is ignored)."""
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
        )
        logits = self.lm_head(last_tokens(out.last_hidden_state, logits_to_keep))
        cap = self.config.final_logit_softcapping
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return causal_output(out, logits, labels)


def output_head(config: Gemma3TextConfig) -> nn.Linear:
    return nn.Linear(config.hidden_size, config.vocab_size, bias=False)


def last_tokens(x: torch.Tensor, logits_to_keep: int | torch.Tensor) -> torch.Tensor:
    """The last `logits_to_keep` of [B, T, E]; 0 keeps all, a tensor names the columns to keep."""
    if isinstance(logits_to_keep, torch.Tensor):
        return x[:, logits_to_keep]
    return x[:, -logits_to_keep:] if logits_to_keep else x


def causal_output(out: TextModelOutput, logits: torch.Tensor, labels: torch.Tensor | None) -> CausalLMOutput:
    """Adds the next-token loss: logits at t are compared with labels at t + 1, in float32."""
    loss = None
    if labels is not None:
        shifted = F.pad(labels, (0, 1), value=-100)[:, 1:]
        loss = F.cross_entropy(logits.float().flatten(0, 1), shifted.flatten().to(logits.device), ignore_index=-100)
    return CausalLMOutput(
        loss=loss,
        logits=logits,
        past_key_values=out.past_key_values,
        hidden_states=out.hidden_states,
        attentions=out.attentions,
        image_hidden_states=out.image_hidden_states,
    )
