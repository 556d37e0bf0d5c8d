"""What `forward` returns: objects with attributes and keys, as in transformers."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from gemma3_core.cache import KVCache


class _KeyedOutput:
    """Dataclass fields by attribute, by key and, skipping None, by number."""

    def keys(self) -> list[str]:
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]  # type: ignore[arg-type]

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(getattr(self, key) for key in self.keys())

    def __getitem__(self, key: str | int) -> Any:
        if isinstance(key, int):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


@dataclass
class TextModelOutput(_KeyedOutput):
    """last_hidden_state [B, T, E]; hidden_states one [B, T, E] before each layer and the last;
    attentions one [B, H, T, S] a layer."""

    last_hidden_state: torch.Tensor
    past_key_values: "KVCache | None" = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


@dataclass
class CausalLMOutput(_KeyedOutput):
    """logits [B, T or logits_to_keep, vocabulary]; loss a scalar where labels were given."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: "KVCache | None" = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


@dataclass
class ImageFeatures(_KeyedOutput):
    """last_hidden_state [N, patches, vision width]; pooler_output the soft tokens [N, tokens, E]."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor
