"""Pictures and text: Gemma3Model, and Gemma3ForConditionalGeneration with its head."""

import torch

from gemma3_core.cache import KVCache
from gemma3_core.config import Gemma3Config
from gemma3_core.errors import PromptError
from gemma3_core.generation import GenerationMixin
from gemma3_core.masks import image_blocks
from gemma3_core.outputs import CausalLMOutput, ImageFeatures, TextModelOutput
from gemma3_core.pretrained import PreTrainedModel
from gemma3_core.text import Gemma3TextModel, causal_output, last_tokens, output_head
from gemma3_core.vision import MultiModalProjector, SiglipVisionModel


class Gemma3Model(PreTrainedModel):
    """Encoder, projector and decoder, without a head."""

    config: Gemma3Config
    config_class = Gemma3Config

    def __init__(self, config: Gemma3Config):
        super().__init__(config)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = MultiModalProjector(config)
        self.language_model = Gemma3TextModel(config.text_config)

    def get_image_features(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Pixels [N, 3, S, S] -> patch features and soft tokens [N, mm_tokens_per_image, E]."""
        side = self.config.vision_config.image_size
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, side, side):
            raise PromptError(
                f"pixel_values must be [pictures, 3, {side}, {side}], got {list(pixel_values.shape)}. "
                "The processor's size must be that of the model's config."
            )
        features = self.vision_tower(pixel_values)
        return ImageFeatures(features, self.multi_modal_projector(features))

    def embed(self, input_ids: torch.Tensor, soft_tokens: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings [B, T, E], with soft tokens [N, tokens, E] in their places, in order."""
        places = input_ids == self.config.image_token_index
        # The published id of the soft token lies beyond some vocabularies; its embedding is replaced anyway.
        x = self.language_model.embed_tokens(input_ids.masked_fill(places, 0) if self._soft_id_beyond() else input_ids)
        if soft_tokens is None:
            return x
        if int(places.sum()) != soft_tokens.shape[0] * soft_tokens.shape[1]:
            raise PromptError(
                f"The prompt has room for {int(places.sum())} soft tokens, the pictures give "
                f"{soft_tokens.shape[0]} x {soft_tokens.shape[1]}. Give one picture for each place."
            )
        return x.masked_scatter(places[:, :, None], soft_tokens.to(x))

    def _soft_id_beyond(self) -> bool:
        return self.config.image_token_index >= self.config.text_config.vocab_size

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        soft_tokens: torch.Tensor | None = None,
    ) -> TextModelOutput:
        """Hidden states [B, T, E] of new tokens; token_type_ids [B, T] are 1 on soft tokens.

        Without token_type_ids image blocks are causal like text, as in transformers. soft_tokens
        [N, tokens, E], from get_image_features, may stand in for pixel_values.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise PromptError("Give either input_ids or inputs_embeds.")
        if pixel_values is not None:
            soft_tokens = self.get_image_features(pixel_values).pooler_output
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, soft_tokens)
        elif soft_tokens is not None:
            raise PromptError("Pictures need input_ids: with inputs_embeds, put the soft tokens in yourself.")
        first = 0 if past_key_values is None else past_key_values.get_seq_length()
        out = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            image_blocks=None if token_type_ids is None else image_blocks(token_type_ids, first),
        )
        out.image_hidden_states = soft_tokens
        return out


class Gemma3ForConditionalGeneration(GenerationMixin, PreTrainedModel):
    """Pictures and text in, text out (the 4B, 12B and 27B checkpoints)."""

    config: Gemma3Config
    config_class = Gemma3Config

    def __init__(self, config: Gemma3Config):
        super().__init__(config)
        self.model = Gemma3Model(config)
        self.lm_head = output_head(config.text_config)
        self.tie_weights()

    @property
    def decoder(self) -> Gemma3TextModel:
        return self.model.language_model

    def get_image_features(self, pixel_values: torch.Tensor) -> ImageFeatures:
        """Pixels [N, 3, S, S] -> patch features and soft tokens [N, mm_tokens_per_image, E]."""
        return self.model.get_image_features(pixel_values)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        soft_tokens: torch.Tensor | None = None,
    ) -> CausalLMOutput:
        """Logits [B, T or logits_to_keep, vocabulary]; loss where labels [B, T] are given (-100 is ignored)."""
        out = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            soft_tokens=soft_tokens,
        )
        logits = self.lm_head(last_tokens(out.last_hidden_state, logits_to_keep))
        return causal_output(out, logits, labels)
