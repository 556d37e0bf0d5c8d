"""A decoder layer's part of a decode step on a CPU, in one call of our kernels."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.kernels.cpu_layer import Layer, Weight, decoder_layer, layer_fits
from gemma3_core.nn.cache import KVCache, RowCaches


def read_token(
    x: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    cache: KVCache | RowCaches,
    layer_index: int,
    config: Gemma3TextConfig,
    linears: Sequence[Any],
    norms: Sequence[Any],
) -> torch.Tensor | None:
    """One new token of each row, x [B, 1, E], through a layer: [B, 1, E]. None if the kernels can't do it here, or if
    the parts are not ours alone (an adapter, a hook).

    `linears` are q, k, v, o, gate, up and down; `norms` those of the input, the queries, the keys, after attention,
    before and after the MLP. The cache moves on as by `update`.
    """
    kernels = cpu_kernels.library_for(x, *(norm.weight for norm in norms))
    if kernels is None or not is_untouched((*linears, *norms)):
        return None
    weights = _weights(linears, x.dtype)
    if weights is None or not layer_fits(weights, config.head_dim, len(x)):
        return None
    places = cache.places(layer_index)
    if places is None or any(place.keys.dtype != x.dtype for place in places):
        return None
    heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    numbers = (config.attention_scale, config.rms_norm_eps, x.dtype == torch.bfloat16)
    layer = Layer(*weights, *(norm.weight.data_ptr() for norm in norms), *heads, *numbers)
    cosines, sines = (table[:, 0, 0].expand(len(x), -1) for table in rotary)
    return decoder_layer(kernels, layer, x[:, 0], cosines, sines, places)[:, None]


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
