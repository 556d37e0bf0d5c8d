"""What training programs ask of a model: gradient checkpointing, gradients of its inputs, and what can be trained."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.files.saving import refuse_options
from gemma3_core.int4.linear import TRAINING_ADVICE, Int4Linear
from gemma3_core.nn.checkpointing import CheckpointedLayer
from gemma3_core.nn.vision import VisionEmbeddings


class TrainingMixin(nn.Module):
    """The methods that transformers' models have for training."""

    supports_gradient_checkpointing = True

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether some layer keeps its inputs alone."""
        return any(layer.checkpoint is not None for layer in self._checkpointed_layers())

    @property
    def is_activation_checkpointing(self) -> bool:
        """transformers' newer name of `is_gradient_checkpointing`."""
        return self.is_gradient_checkpointing

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, every_n_layers: int = 1, **options: Any
    ) -> None:
        """Trains with less memory and more time: a layer's activations are computed again in the backward pass.

        Losses and gradients stay the same. It takes effect in training mode (`model.train()`), where no KV cache is
        kept then. `gradient_checkpointing_kwargs` go to torch.utils.checkpoint.checkpoint, by default
        {"use_reentrant": False}; `every_n_layers` leaves out the layers between. Raises UnsupportedOptionError.
        """
        refuse_options("gradient_checkpointing_enable", options, {"offload": (False,)})
        if not isinstance(every_n_layers, int) or every_n_layers < 1:
            raise UnsupportedOptionError(f"every_n_layers must be a whole number, 1 or more, got {every_n_layers!r}.")
        chosen = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        known = ("use_reentrant", "preserve_rng_state", "context_fn", "determinism_check", "debug", "early_stop")
        if unknown := sorted(chosen.keys() - set(known)):
            raise UnsupportedOptionError(
                f"Gradient checkpointing has no option {', '.join(unknown)}. The known ones are {', '.join(known)}."
            )
        for number, layer in enumerate(self._checkpointed_layers()):
            layer.checkpoint = partial(checkpoint, **chosen) if number % every_n_layers == 0 else None

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: Mapping[str, Any] | None = None, every_n_layers: int = 1, **options: Any
    ) -> None:
        """transformers' newer name of `gradient_checkpointing_enable`."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Keeps activations again."""
        for layer in self._checkpointed_layers():
            layer.checkpoint = None

    def activation_checkpointing_disable(self) -> None:
        """transformers' newer name of `gradient_checkpointing_disable`."""
        self.gradient_checkpointing_disable()

    def _checkpointed_layers(self) -> list[CheckpointedLayer]:
        return [module for module in self.modules() if isinstance(module, CheckpointedLayer)]

    def enable_input_require_grads(self) -> None:
        """Lets gradients reach adapters in layers whose own weights are frozen: embeddings require gradients."""
        self.disable_input_require_grads()
        entries = [self.get_input_embeddings(), *(m for m in self.modules() if isinstance(m, VisionEmbeddings))]
        self._require_grads_hooks = [entry.register_forward_hook(_require_grads) for entry in entries]

    def disable_input_require_grads(self) -> None:
        """Takes back `enable_input_require_grads`."""
        for hook in getattr(self, "_require_grads_hooks", ()):
            hook.remove()
        self._require_grads_hooks = []

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As torch.nn.Module's. Raises UnsupportedOptionError where weights in int4 can't be trained."""
        if requires_grad and any(isinstance(module, Int4Linear) for module in self.modules()):
            raise UnsupportedOptionError(f"This model has int4 weights, which can't be trained. {TRAINING_ADVICE}")
        return super().requires_grad_(requires_grad)


def _require_grads(_: nn.Module, __: Any, embedded: torch.Tensor) -> None:
    embedded.requires_grad_(True)
