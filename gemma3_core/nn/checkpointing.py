"""Gradient checkpointing: a layer keeps only its inputs, and runs again when the backward pass needs the rest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class CheckpointedLayer(nn.Module):
    """A layer whose activations need not be kept for the backward pass."""

    checkpoint: Callable[..., Any] | None = None
    """torch.utils.checkpoint.checkpoint with its options; None keeps all activations."""

    @property
    def is_checkpointing(self) -> bool:
        """Whether the next call keeps inputs alone."""
        return self.checkpoint is not None and self.training and torch.is_grad_enabled()


def run_layer(layer: nn.Module, *inputs: Any) -> Any:
    """layer(*inputs), through its `checkpoint` while it trains."""
    if isinstance(layer, CheckpointedLayer) and layer.checkpoint is not None and layer.is_checkpointing:
        return layer.checkpoint(layer, *inputs)
    return layer(*inputs)
