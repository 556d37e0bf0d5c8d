"""Gemma 3 as a classifier: a linear head, `score`, on the hidden state of a prompt's last token.

Results are CausalLMOutputs whose logits are [B, labels] (for regression, the predicted numbers).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.nn import functional as F

from gemma3_core.config.base import PROBLEM_TYPES
from gemma3_core.config.gemma3 import AnyConfig, Gemma3Config, Gemma3TextConfig, read_config
from gemma3_core.errors import PromptError
from gemma3_core.files.hub import pop_hub_options, resolve_folder
from gemma3_core.models.initial_weights import initialise_decoder
from gemma3_core.models.multimodal import Gemma3Model
from gemma3_core.models.pretrained import PreTrainedModel
from gemma3_core.models.text import Gemma3TextModel
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.outputs import CausalLMOutput, TextModelOutput, as_asked

REGRESSION, SINGLE_LABEL, MULTI_LABEL = PROBLEM_TYPES


class _SequenceClassifier(PreTrainedModel):
    """What the two classifiers share: the head, the last token, the loss, labels when loading."""

    body_class: ClassVar[type]
    accepts_loss_kwargs = False
    """Trainers divide the loss by the number of batches themselves: it is a mean over prompts, not a sum of tokens."""

    def __init__(self, config: AnyConfig):
        super().__init__(config)
        self.model = self.body_class(config)
        self.score = nn.Linear(self.text_config.hidden_size, config.num_labels, bias=False)
        initialise_decoder(self.score, config.initializer_range)

    @property
    def num_labels(self) -> int:
        return self.config.num_labels

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        config: AnyConfig | None = None,
        num_labels: int | None = None,
        id2label: Mapping[int, str] | None = None,
        label2id: Mapping[str, int] | None = None,
        problem_type: str | None = None,
        **options: Any,
    ) -> Self:
        """Loads a classifier; a generating checkpoint gets a new, random head with `num_labels` rows to be trained.

        The four named options replace those in config.json. `options` are every model's: dtype, device_map, ….
        Raises CheckpointError (also if the checkpoint's head has another number of labels), ConfigError,
        UnsupportedOptionError.
        """
        given = {"num_labels": num_labels, "id2label": id2label, "label2id": label2id, "problem_type": problem_type}
        changes = {name: value for name, value in given.items() if value is not None}
        hub = pop_hub_options(options)
        if changes:
            config = config or read_config(resolve_folder(pretrained_model_name_or_path, weights=False, **hub))
            config = config.replace(**changes)
        return super().from_pretrained(pretrained_model_name_or_path, config=config, **hub, **options)

    def _classify(
        self,
        out: TextModelOutput,
        input_ids: torch.Tensor | None,
        labels: torch.Tensor | None,
        return_dict: bool | None,
    ) -> Any:
        hidden = out.last_hidden_state
        rows, columns = torch.arange(hidden.shape[0], device=hidden.device), self._last_columns(input_ids, hidden)
        logits = self.score(hidden[rows, columns])  # [B, labels]
        loss = None if labels is None else classification_loss(logits, labels, self.config.problem_type)
        result = CausalLMOutput(loss, logits, out.past_key_values, out.hidden_states, out.attentions)
        return as_asked(result, return_dict)

    def _last_columns(self, input_ids: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
        pad = self.text_config.pad_token_id
        if pad is None and hidden.shape[0] > 1:
            raise PromptError(
                f"A batch of {hidden.shape[0]} needs padding, and the config has no pad_token_id. "
                "Give one prompt at a time, or set pad_token_id."
            )
        if input_ids is None or pad is None:
            return torch.full((hidden.shape[0],), hidden.shape[1] - 1, device=hidden.device)
        return last_token_columns(input_ids, pad).to(hidden.device)


def last_token_columns(input_ids: torch.Tensor, pad_token_id: int) -> torch.Tensor:
    """The column [B] of each row's last token that is not padding, with padding on either side of ids [B, T].

    `p p a b` and `a b p p` give 3 and 1; a row of padding gives 0, as in transformers.
    """
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    return (columns * (input_ids != pad_token_id)).amax(dim=1)


def classification_loss(logits: torch.Tensor, labels: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Mean loss of logits [B, labels]: squared error, cross entropy, or binary cross entropy of each label.

    Labels are numbers [B] (or [B, labels]) for regression, whole numbers [B] for single_label_classification, and
    0 or 1 [B, labels] for multi_label_classification. Without a problem_type, one label means regression, whole
    numbers single label, and floats multi label. Raises PromptError for labels of another shape.
    """
    labels = labels.to(logits.device)
    if problem_type is None:
        several = SINGLE_LABEL if labels.dtype in (torch.int64, torch.int32) else MULTI_LABEL
        problem_type = several if logits.shape[1] > 1 else REGRESSION
    expected = tuple(logits.shape) if problem_type == MULTI_LABEL or logits.shape[1] > 1 else (logits.shape[0],)
    if problem_type == SINGLE_LABEL:
        expected = (logits.shape[0],)
    if labels.numel() != math.prod(expected) or (problem_type == MULTI_LABEL and labels.shape != expected):
        raise PromptError(f"labels for {problem_type} must be {list(expected)}, got {list(labels.shape)}.")
    if problem_type == REGRESSION:
        return F.mse_loss(logits.flatten(), labels.to(logits.dtype).flatten())
    if problem_type == SINGLE_LABEL:
        return F.cross_entropy(logits, labels.flatten())
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


class Gemma3TextForSequenceClassification(_SequenceClassifier):
    """Text in, `num_labels` logits a prompt out."""

    config: Gemma3TextConfig
    config_class = Gemma3TextConfig
    body_class = Gemma3TextModel

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        *,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """Logits [B, labels] of prompts [B, T]; with `labels` the loss too (see `classification_loss`).

        Padding may be on either side, because the last token is found by the ids; with inputs_embeds it is the last
        column. The other inputs and `options` are those of Gemma3TextModel. Raises PromptError.
        """
        out = self.model(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **options)
        return self._classify(out, input_ids, labels, return_dict)


class Gemma3ForSequenceClassification(_SequenceClassifier):
    """Pictures and text in, `num_labels` logits a prompt out."""

    config: Gemma3Config
    config_class = Gemma3Config
    body_class = Gemma3Model

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
        *,
        return_dict: bool | None = None,
        **options: Any,
    ) -> Any:
        """Logits [B, labels] of prompts [B, T] with pictures [N, 3, S, S]; with `labels` the loss too.

        As with Gemma3TextForSequenceClassification; the other inputs and `options` are those of Gemma3Model.
        """
        prompt = (input_ids, pixel_values, attention_mask, position_ids, past_key_values, token_type_ids, inputs_embeds)
        out = self.model(*prompt, **options)
        return self._classify(out, input_ids, labels, return_dict)
