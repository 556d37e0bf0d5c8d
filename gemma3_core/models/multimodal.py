"""Pictures and text: Gemma3Model, and Gemma3ForConditionalGeneration with its head."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from gemma3_core.config.gemma3 import Gemma3Config
from gemma3_core.errors import PromptError
from gemma3_core.files.saving import refuse_options
from gemma3_core.generation.chunks import places_in_embeddings
from gemma3_core.generation.generate import GenerationMixin
from gemma3_core.models.initial_weights import initialise_decoder, initialise_encoder
from gemma3_core.models.pretrained import PreTrainedModel
from gemma3_core.models.text import Gemma3ForCausalLM, Gemma3TextModel, causal_output, check_prompt, last_tokens
from gemma3_core.nn.cache import KVCache, RowCaches
from gemma3_core.nn.inputs import described, require_tensors
from gemma3_core.nn.layers import Linear
from gemma3_core.nn.masks import image_blocks
from gemma3_core.nn.outputs import CausalLMOutput, ImageFeatures, TextModelOutput, as_asked
from gemma3_core.nn.vision import MultiModalProjector, SiglipVisionModel


class Gemma3Model(PreTrainedModel):
    """Encoder, projector and decoder, without a head."""

    config: Gemma3Config
    config_class = Gemma3Config

    def __init__(self, config: Gemma3Config):
        super().__init__(config)
        self.vision_tower = SiglipVisionModel(config.vision_config)
        self.multi_modal_projector = MultiModalProjector(config)
        self.language_model = Gemma3TextModel(config.text_config)
        initialise_encoder(self.vision_tower)

    @property
    def decoder(self) -> Gemma3TextModel:
        return self.language_model

    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **unknown: Any
    ) -> ImageFeatures:
        """Pixels [N, 3, S, S] -> patch features and soft tokens [N, mm_tokens_per_image, E]."""
        refuse_options("get_image_features", unknown)
        side = self.config.vision_config.image_size
        is_tensor = isinstance(pixel_values, torch.Tensor)
        if not is_tensor or not pixel_values.is_floating_point() or tuple(pixel_values.shape[1:]) != (3, side, side):
            raise PromptError(
                f"pixel_values must be floating numbers [pictures, 3, {side}, {side}], got {described(pixel_values)}. "
                "Use the processor, with the size of the model's config."
            )
        features = self.vision_tower(pixel_values)
        return as_asked(ImageFeatures(features, self.multi_modal_projector(features)), return_dict)

    def embed(
        self,
        input_ids: torch.Tensor | None,
        soft_tokens: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings [B, T, E], with soft tokens [N, tokens, E] in place of image tokens, in order.

        In `inputs_embeds` an image token is recognised by its embedding.
        """
        soft_id, embedding = self.config.image_token_index, self.language_model.embed_tokens
        if input_ids is not None:
            places = input_ids == soft_id
            # The id of the image token lies outside some vocabularies; its embedding is replaced anyway.
            x = embedding(input_ids.masked_fill(places, 0) if soft_id >= len(embedding.weight) else input_ids)
        else:
            assert inputs_embeds is not None
            x = inputs_embeds
            if soft_tokens is not None:
                places = places_in_embeddings(x, embedding, soft_id)
        if soft_tokens is None:
            return x
        if not torch.compiler.is_compiling() and int(places.sum()) != soft_tokens.shape[0] * soft_tokens.shape[1]:
            raise PromptError(
                f"The prompt has room for {int(places.sum())} soft tokens, the pictures give "
                f"{soft_tokens.shape[0]} x {soft_tokens.shape[1]}. Give one picture for each place."
            )
        return x.masked_scatter(places[:, :, None], soft_tokens.to(x))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | RowCaches | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        *,
        soft_tokens: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> TextModelOutput:
        """Hidden states [B, T, E] of new tokens; token_type_ids [B, T] are 1 on soft tokens.

        Without token_type_ids, image blocks are causal like text, as in transformers. Pictures are given as
        pixel_values, as soft_tokens [N, tokens, E], or as mm_encoder_outputs={"image": get_image_features(…)}. The
        other inputs and `options` are those of Gemma3TextModel. Raises PromptError, UnsupportedOptionError.
        """
        check_prompt(input_ids, inputs_embeds, past_key_values)
        require_tensors(token_type_ids=token_type_ids, soft_tokens=soft_tokens)
        soft_tokens = self._soft_tokens(pixel_values, soft_tokens, mm_encoder_outputs)
        inputs_embeds = self.embed(input_ids, soft_tokens, inputs_embeds)
        if token_type_ids is not None and token_type_ids.shape != inputs_embeds.shape[:2]:
            raise PromptError(
                f"token_type_ids must be {list(inputs_embeds.shape[:2])} like the prompt, got "
                f"{list(token_type_ids.shape)}."
            )
        if token_type_ids is not None:
            first = 0 if past_key_values is None else past_key_values.get_seq_length()
            options["image_blocks"] = image_blocks(token_type_ids, first)
        out = self.language_model(
            None, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **options
        )
        out.image_hidden_states = soft_tokens
        return as_asked(out, return_dict)

    def _soft_tokens(
        self,
        pixel_values: torch.Tensor | None,
        soft_tokens: torch.Tensor | None,
        encoded: Mapping[str, Any] | None,
    ) -> torch.Tensor | None:
        """The soft tokens [N, tokens, E] of the pictures, which may be given in one form only."""
        if not isinstance(encoded, Mapping | None):
            raise PromptError(
                'mm_encoder_outputs must be {"image": what get_image_features returned}, got '
                f"{type(encoded).__name__}."
            )
        features = encoded.get("image") if encoded else None
        if sum(form is not None for form in (pixel_values, soft_tokens, features)) > 1:
            raise PromptError("Pictures are given twice: give one of pixel_values, soft_tokens and mm_encoder_outputs.")
        if pixel_values is not None:
            return self.get_image_features(pixel_values).pooler_output
        return soft_tokens if features is None else features.pooler_output


class Gemma3ForConditionalGeneration(GenerationMixin, PreTrainedModel):
    """Pictures and text in, text out: the 4B, 12B and 27B checkpoints."""

    config: Gemma3Config
    config_class = Gemma3Config
    loss_type = "ForConditionalGeneration"
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: Gemma3Config):
        super().__init__(config)
        self.model = Gemma3Model(config)
        self.lm_head = Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        initialise_decoder(self.lm_head, config.initializer_range)
        self.tie_weights()

    def get_image_features(
        self, pixel_values: torch.Tensor, return_dict: bool | None = None, **unknown: Any
    ) -> ImageFeatures:
        """Pixels [N, 3, S, S] -> patch features and soft tokens [N, mm_tokens_per_image, E]."""
        return self.model.get_image_features(pixel_values, return_dict, **unknown)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | RowCaches | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: Mapping[str, Any] | None = None,
        *,
        num_items_in_batch: int | torch.Tensor | None = None,
        return_dict: bool | None = None,
        **options: Any,
    ) -> CausalLMOutput:
        """Logits [B, T or logits_to_keep, vocabulary]; loss if labels [B, T] are given (-100 is ignored).

        The other inputs and `options` are those of Gemma3Model. num_items_in_batch: see `causal_output`.
        Raises PromptError, UnsupportedOptionError.
        """
        prompt = (input_ids, pixel_values, attention_mask, position_ids, past_key_values, token_type_ids, inputs_embeds)
        out = self.model(*prompt, use_cache, mm_encoder_outputs, **options)
        logits = self.lm_head(last_tokens(out.last_hidden_state, logits_to_keep))
        return as_asked(causal_output(out, logits, labels, num_items_in_batch), return_dict)


Model = Gemma3ForConditionalGeneration | Gemma3ForCausalLM
"""A model that generates text, with or without pictures in its prompt."""
