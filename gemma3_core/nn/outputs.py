"""The results of `forward` and `generate`, with attributes and keys as in transformers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch.export import register_dataclass

if TYPE_CHECKING:
    from gemma3_core.nn.cache import KVCache


class _KeyedOutput(Mapping[str, Any]):
    """A dataclass whose fields are also keys and, without those that are None, items by number or slice."""

    def __post_init__(self) -> None:
        # Training programs rebuild a result from a dict of its changed fields, as transformers' results can be.
        first, *others = [f.name for f in fields(self)]  # type: ignore[arg-type]
        given = getattr(self, first)
        if isinstance(given, Mapping) and all(getattr(self, name) is None for name in others):
            setattr(self, first, None)
            for name, value in given.items():
                self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(self.values())

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, int | slice):
            return self.to_tuple()[key]
        if key not in self:
            raise KeyError(key)
        return getattr(self, key)

    def __contains__(self, key: object) -> bool:
        return any(key == name for name in self)

    def __iter__(self) -> Iterator[str]:
        return (f.name for f in fields(self) if getattr(self, f.name) is not None)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return sum(1 for _ in self)  # list(self) would call this

    def __setitem__(self, key: str, value: Any) -> None:
        """Sets a field; raises KeyError for other names."""
        if key not in {f.name for f in fields(self)}:  # type: ignore[arg-type]
            raise KeyError(key)
        setattr(self, key, value)


@dataclass(eq=False)
class TextModelOutput(_KeyedOutput):
    """last_hidden_state [B, T, E]; hidden_states one [B, T, E] before each layer and the last;
    attentions one [B, H, T, S] a layer."""

    last_hidden_state: torch.Tensor
    past_key_values: "KVCache | None" = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


@dataclass(eq=False)
class CausalLMOutput(_KeyedOutput):
    """logits [B, T or logits_to_keep, vocabulary]; loss is a scalar if labels were given."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: "KVCache | None" = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


@dataclass(eq=False)
class ImageFeatures(_KeyedOutput):
    """last_hidden_state [N, patches, vision width]; pooler_output the soft tokens [N, tokens, E]."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor


for _kind in (TextModelOutput, CausalLMOutput, ImageFeatures):
    # torch.export flattens a result into its tensors.
    register_dataclass(_kind, serialized_type_name=f"{_kind.__module__}.{_kind.__name__}")


@dataclass(eq=False)
class GenerateOutput(_KeyedOutput):
    """The result of `generate(return_dict_in_generate=True)`.

    sequences [B, T + new]; scores and logits, if asked for, one float32 [B, vocabulary] for each new token (scores are
    the processed logits, -inf for excluded tokens); past_key_values hold all but the last token.
    """

    sequences: torch.Tensor
    scores: tuple[torch.Tensor, ...] | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    past_key_values: "KVCache | None" = None


def as_asked(result: _KeyedOutput, return_dict: bool | None) -> Any:
    """The result, or its fields as a tuple if return_dict is False."""
    return result.to_tuple() if return_dict is False else result
