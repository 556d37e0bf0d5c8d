"""The token embedding and the head: where they are, that they share a weight, and how they grow."""

from typing import Any

import torch
from torch import nn
from torch.distributions import constraints
from torch.distributions.multivariate_normal import MultivariateNormal

from gemma3_core.config.gemma3 import AnyConfig, Gemma3Config, Gemma3TextConfig
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.files.saving import refuse_options

HEAD = "lm_head.weight"
_NEW_ROWS_SPREAD = 1e-9
"""Factor on the covariance of the old rows, with which transformers draws new ones."""


class EmbeddingsMixin(nn.Module):
    """Reads, replaces and resizes the token embedding, with the names of transformers' models."""

    config: Any

    @property
    def text_config(self) -> Gemma3TextConfig:
        return getattr(self.config, "text_config", self.config)

    @property
    def vocab_size(self) -> int:
        return self.text_config.vocab_size

    @property
    def decoder(self) -> Any:
        """The Gemma3TextModel inside (or the model itself)."""
        inner: Any = getattr(self, "model", None)
        return self if inner is None else inner.decoder

    def get_decoder(self) -> Any:
        """The Gemma3TextModel inside (or the model itself)."""
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Puts a module in place of the token embedding. A tied head follows with `tie_weights`."""
        self.decoder.embed_tokens = _required_module("set_input_embeddings", value)

    def get_output_embeddings(self) -> nn.Module | None:
        """The head that gives logits of the vocabulary; None in models without one."""
        return getattr(self, "lm_head", None)

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Puts a module in place of the head. Raises UnsupportedOptionError for a model without one."""
        if self.get_output_embeddings() is None:
            raise UnsupportedOptionError(f"{type(self).__name__} has no head over the vocabulary.")
        self.lm_head = _required_module("set_output_embeddings", new_embeddings)

    def tie_weights(self, **options: Any) -> None:
        """Shares the embedding's weight with the head if the config ties them."""
        refuse_options("tie_weights", options, {"recompute_mapping": (True, False)})
        head = getattr(self, "lm_head", None)
        if isinstance(head, nn.Linear) and self.config.tie_word_embeddings:
            head.weight = self.decoder.embed_tokens.weight

    def _tied_head(self) -> tuple[str, str] | None:
        """The names of a tied head's weight and of the weight that it shares; None where nothing is shared."""
        head = getattr(self, "lm_head", None)
        if not isinstance(head, nn.Linear):
            return None
        first = next(name for name, parameter in self.named_parameters() if parameter is head.weight)
        return None if first == HEAD else (HEAD, first)

    def state_dict(self, *args: Any, prefix: str = "", **options: Any) -> Any:
        """As torch.nn.Module's, without a tied head: files of safetensors hold no tensor twice."""
        state = super().state_dict(*args, prefix=prefix, **options)
        if (tied := self._tied_head()) is not None:
            state.pop(prefix + tied[0], None)
        return state

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        if (tied := self._tied_head()) is not None and prefix + tied[1] in state_dict:
            state_dict.setdefault(prefix + tied[0], state_dict[prefix + tied[1]])
        super()._load_from_state_dict(state_dict, prefix, *args)

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        """Gives the token embedding, and the head, rows for `new_num_tokens`; returns the embedding.

        Rows are added and taken away at the end; `model.config` becomes a copy with the new vocab_size. As in
        transformers, new rows are drawn around the mean of the old ones, or without `mean_resizing` like fresh weights.
        `pad_to_multiple_of` rounds the number of rows up. Without either nothing changes. Raises ConfigError if the
        padding token is cut off, UnsupportedOptionError.
        """
        embedding = self.get_input_embeddings()
        if not isinstance(embedding, nn.Embedding):
            raise UnsupportedOptionError(
                f"resize_token_embeddings needs a torch.nn.Embedding, this model's is a {type(embedding).__name__}. "
                "Resize before you add adapters."
            )
        rows = _asked_rows(new_num_tokens, pad_to_multiple_of, embedding.num_embeddings)
        head = self.get_output_embeddings()
        if rows == embedding.num_embeddings:
            return embedding
        if head is not None and not isinstance(head, nn.Linear):
            raise UnsupportedOptionError(
                f"resize_token_embeddings can't resize a head that is a {type(head).__name__}. Resize the model in "
                "full precision, before adapters and int4 weights are made."
            )
        text = self.text_config.replace(vocab_size=rows)
        self._take_config(self.config.replace(text_config=text) if self.config is not self.text_config else text)
        std = self.config.initializer_range
        _resize(embedding, nn.Embedding, rows, mean_resizing, std)
        embedding.num_embeddings = rows
        if embedding.padding_idx is not None and embedding.padding_idx >= rows:
            embedding.padding_idx = None
        if head is not None:
            if head.weight.shape[0] != rows:  # a tied head has its rows by now
                _resize(head, nn.Linear, rows, mean_resizing, std)
            head.out_features = rows
        self.tie_weights()
        return embedding

    def _take_config(self, config: AnyConfig) -> None:
        """This model and all its parts refer to `config`; whoever else holds the old one keeps it as it is."""
        new: dict[int, Any] = {id(self.config): config}
        if isinstance(config, Gemma3Config):
            new |= {id(self.config.text_config): config.text_config}
            new |= {id(self.config.vision_config): config.vision_config}
        for module in self.modules():
            if id(held := module.__dict__.get("config")) in new:
                module.config = new[id(held)]  # type: ignore[assignment]


def _required_module(name: str, value: Any) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise UnsupportedOptionError(f"{name} takes a torch.nn.Module, got {type(value).__name__}.")
    return value


def _asked_rows(rows: int | None, multiple: int | None, now: int) -> int:
    for name, value in (("new_num_tokens", rows), ("pad_to_multiple_of", multiple)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UnsupportedOptionError(f"{name} must be a whole number, 1 or more, got {value!r}.")
    wanted = now if rows is None else rows
    return wanted if multiple is None else -(-wanted // multiple) * multiple


@torch.no_grad()
def _resize(layer: Any, kind: Any, rows: int, around_the_mean: bool, std: float) -> None:
    """Gives `layer.weight` [rows now, E] so many rows; it stays the same Parameter, and keeps what it is tied to."""
    old = layer.weight.data
    like = {"device": old.device, "dtype": old.dtype}
    # The same draws as in transformers, so that the same seed gives the same rows.
    new = kind(rows, old.shape[1], **like) if kind is nn.Embedding else kind(old.shape[1], rows, bias=False, **like)
    if rows > len(old):
        if around_the_mean:
            new.weight[len(old) :] = _near_the_mean(old, rows - len(old))
        else:
            nn.init.normal_(new.weight, std=std)
    kept = min(rows, len(old))
    new.weight[:kept] = old[:kept]
    layer.weight.data = new.weight.data
    layer.weight.grad = None


def _near_the_mean(old: torch.Tensor, count: int) -> torch.Tensor:
    """`count` rows of a normal distribution with the mean of the rows `old` and a little of their covariance.

    Source: John Hewitt, "Initializing New Word Embeddings for Pretrained Language Models", as transformers has it.
    """
    wide = old.float()
    mean = wide.mean(dim=0)
    centered = wide - mean
    covariance = _NEW_ROWS_SPREAD * (centered.T @ centered / len(old))
    if not bool(constraints.positive_definite.check(covariance).all()):
        return mean.expand(count, -1).to(old.dtype)
    return MultivariateNormal(mean, covariance_matrix=covariance).sample((count,)).to(old.dtype)
