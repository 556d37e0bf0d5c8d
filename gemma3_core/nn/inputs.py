"""Checks of the tensors that a model is given: types and shapes."""

from typing import Any

import torch

from gemma3_core.errors import PromptError


def described(value: Any) -> str:
    """Type and shape of a tensor ("int64 [1, 5]"), else the type's name; for error messages."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def require_tensors(**given: Any) -> None:
    """Raises PromptError for an input that is neither None nor a tensor."""
    for name, value in given.items():
        if not isinstance(value, torch.Tensor | None):
            raise PromptError(
                f'{name} must be a tensor, got {type(value).__name__}. Ask for tensors: return_tensors="pt".'
            )


def require_prompt(name: str, prompt: Any) -> None:
    """Raises PromptError unless `prompt` is whole numbers [B, T], or for inputs_embeds floating ones [B, T, E]."""
    require_tensors(**{name: prompt})
    ndim = 3 if name == "inputs_embeds" else 2
    whole = prompt.dtype in (torch.int32, torch.int64)
    if prompt.ndim != ndim or whole != (ndim == 2) or 0 in prompt.shape:
        wanted = "whole numbers [batch, tokens]" if ndim == 2 else "floating numbers [batch, tokens, width]"
        raise PromptError(f"{name} must be {wanted}, not empty, got {described(prompt)}.")
