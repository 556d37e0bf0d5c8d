"""A decoder layer's part of a decode step on a CPU, in one call of our kernels."""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.kernels.cpu_layer import Layer, Weight, decoder_layer, layer_fits, most_rows
from gemma3_core.nn.cache import KVCache, RowCaches


@dataclass(frozen=True)
class LayerParts:
    """The modules of a decoder layer."""

    layer: nn.Module
    attention: Any
    mlp: nn.Module
    linears: Sequence[Any]
    """q, k, v, o, gate, up and down."""
    norms: Sequence[Any]
    """The norms of input, queries and keys, after attention, before and after the MLP."""


@dataclass(frozen=True)
class _Described:
    """A layer as the kernels take it, or None where they can't; and all that this rests on."""

    layer: Layer | None
    dtype: torch.dtype
    watched: tuple[tuple[dict[str, Any], str, Any], ...]
    """Entries of the modules' dictionaries that must be unchanged: dictionary, name and value."""
    hooks: tuple[dict[int, Any], ...]
    """The modules' hook dictionaries; all must be empty."""
    pointers: tuple[tuple[torch.Tensor, int], ...]

    def holds(self, dtype: torch.dtype) -> bool:
        if dtype is not self.dtype or any(self.hooks) or _has_any_global_hook():
            return False
        # Plain loops: this is asked of each layer for each token, when the weights have just driven Python's own
        # objects out of the processor's caches.
        for held, name, value in self.watched:
            if held.get(name) is not value:
                return False
        for tensor, pointer in self.pointers:  # noqa: SIM110
            if tensor.data_ptr() != pointer:
                return False
        return True


class KeptLayer:
    """Describes a decoder layer to the kernels, and keeps that until a part of it changes. A copy begins without."""

    def __init__(self) -> None:
        self._described: _Described | None = None

    def __deepcopy__(self, _memo: Any) -> "KeptLayer":
        return KeptLayer()

    def __reduce__(self) -> tuple[type["KeptLayer"], tuple[()]]:
        return KeptLayer, ()

    def layer(self, dtype: torch.dtype, parts: Callable[[], LayerParts | None]) -> Layer | None:
        """The layer for activations of this type; None if the kernels can't do it, or if its parts are not ours alone
        (an adapter, a hook): then `parts` may be None too."""
        described = self._described
        if described is None or not described.holds(dtype):
            found = parts()
            self._described = described = None if found is None else _described(found, dtype)
        return None if described is None else described.layer


def read_token(
    kernels: ctypes.CDLL,
    layer: Layer,
    x: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    cache: KVCache | RowCaches,
    layer_index: int,
) -> torch.Tensor | None:
    """One new token of each row, x [B, 1, E], through a layer of x's type: [B, 1, E]; None if the kernels can't do it
    here. The cache moves on as by `update`."""
    if not 0 < len(x) <= layer.most_rows:
        return None
    places = cache.places(layer_index)
    if places is None or any(place.keys.dtype != x.dtype for place in places):
        return None
    return decoder_layer(kernels, layer, x, *rotary, places)


def _described(parts: LayerParts, dtype: torch.dtype) -> _Described | None:
    config: Gemma3TextConfig = parts.attention.config
    every = (parts.attention, parts.mlp, *parts.linears, *parts.norms)
    if not is_untouched(every):
        return None
    weights, norms = _weights(parts.linears, dtype), [norm.weight for norm in parts.norms]
    plain = all(type(norm) in cpu_kernels.PLAIN and norm.is_cpu and norm.dtype == dtype for norm in norms)
    layer = None
    if plain and weights is not None and layer_fits(weights, config.head_dim):
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        numbers = (config.attention_scale, config.rms_norm_eps, dtype == torch.bfloat16)
        layer = Layer(*weights, *(norm.data_ptr() for norm in norms), *heads, *numbers)
        layer.most_rows = most_rows(weights)
    watched: list[tuple[dict[str, Any], str, Any]] = [(vars(module), "forward", None) for module in every]
    for block in (parts.layer, parts.attention, parts.mlp):
        watched += [(block._modules, name, module) for name, module in block._modules.items()]
    watched += [(vars(parts.attention), "config", config)]
    watched += [(vars(norm), "eps", norm.eps) for norm in parts.norms]
    tensors: list[torch.Tensor] = []
    for module in (*parts.linears, *parts.norms):
        for held in (module._parameters, module._buffers):
            watched += [(held, name, tensor) for name, tensor in held.items()]
            tensors += [tensor for tensor in held.values() if tensor is not None]
    hooks = [hooks for module in every for hooks in (module._forward_hooks, module._forward_pre_hooks)]
    pointers = tuple((tensor, tensor.data_ptr()) for tensor in tensors)
    return _Described(layer, dtype, tuple(watched), tuple(hooks), pointers)


def _weights(linears: Iterable[Any], dtype: torch.dtype) -> list[Weight] | None:
    weights = []
    for linear in linears:
        describe = getattr(linear, "for_kernel", None)
        weight = None if describe is None else describe(dtype)
        if weight is None:
            return None
        weights.append(weight)
    return weights


def is_untouched(modules: Iterable[nn.Module]) -> bool:
    """Whether calling the modules one by one would do nothing but what they do themselves."""
    hooked = any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in modules)
    return not hooked and not _has_any_global_hook()
