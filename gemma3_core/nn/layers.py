"""The parts of a decoder layer: RMSNorm, rotary embedding, attention, MLP."""

from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from gemma3_core.config.gemma3 import Gemma3TextConfig, RopeParameters
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.kernels.cpu_layer import Weight, dense_weight
from gemma3_core.nn.cache import KVCache, RowCaches
from gemma3_core.nn.checkpointing import CheckpointedLayer
from gemma3_core.nn.cpu_step import KeptLayer, LayerParts, read_token

Rotary = tuple[torch.Tensor, torch.Tensor]

WeightReader = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor | None, float], torch.Tensor]
"""Called beside a layer's fused attention with the layer's number, rotated queries [B, H, T, D], keys
[B, KV heads, S, D], mask [B, 1, T, S] or None, and scale; its result replaces the weights in `attentions`."""

MANY_ROWS = 128
"""With this many rows or more, widening a weight pays off."""

WIDENED_AT_A_TIME = 2**23
"""Numbers of a weight that are widened at a time: 32 MB."""

ROWS_AT_A_TIME = 2**22
"""Numbers of an input that are widened at a time: 16 MB."""


class Linear(nn.Linear):
    """x W^T + b; on a CPU, a few rows by our own kernel and many rows of bfloat16 in float32.

    CPUs without bfloat16 instructions multiply float32 about twice as fast. Large weights and inputs are widened part
    by part, to limit the extra memory.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = (self.weight,) if self.bias is None else (self.weight, self.bias)
        kernels = cpu_kernels.library_for(x, *given)
        if kernels is not None and cpu_kernels.dense_fits(x, self.weight):
            return cpu_kernels.dense_multiply(kernels, x, self.weight, self.bias)
        if not self._widens(x):
            return super().forward(x)
        x_rows, features = x.reshape(-1, self.in_features), max(1, WIDENED_AT_A_TIME // self.in_features)
        at_a_time = max(MANY_ROWS, ROWS_AT_A_TIME // max(self.in_features, min(features, self.out_features)))
        out = x.new_empty(x_rows.shape[0], self.out_features)
        for first in range(0, self.out_features, features):
            columns = slice(first, first + features)
            weight, bias = self.weight[columns].float(), None if self.bias is None else self.bias[columns].float()
            for start in range(0, x_rows.shape[0], at_a_time):
                rows = slice(start, start + at_a_time)
                out[rows, columns] = F.linear(x_rows[rows].float(), weight, bias)
        return out.view(*x.shape[:-1], self.out_features)

    def for_kernel(self, dtype: torch.dtype) -> Weight | None:
        """The weight for `kernels.cpu_layer` on activations of this type, or None where it does not fit."""
        return dense_weight(self.weight, dtype) if type(self) is Linear and self.bias is None else None

    def _widens(self, x: torch.Tensor) -> bool:
        if torch.compiler.is_compiling():  # a compiler chooses its own kernels
            return False
        narrow = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        return narrow and x.shape[:-1].numel() >= MANY_ROWS and not multiplies_bfloat16_fast()


@cache
def has_bfloat16_tiles() -> bool:
    """Whether this CPU has AMX tiles for bfloat16 matrix products."""
    return torch.cpu._is_amx_tile_supported()


@cache
def multiplies_bfloat16_fast() -> bool:
    """Whether this CPU has AMX tiles or AVX-512 BF16 for bfloat16 matrix products."""
    return has_bfloat16_tiles() or torch.cpu._is_avx512_bf16_supported()


class RMSNorm(nn.Module):
    """x / rms(x) * (1 + weight), computed in float32 (the checkpoint stores w - 1)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernels = cpu_kernels.library_for(x, self.weight)
        if kernels is not None and cpu_kernels.norm_fits(x):
            return cpu_kernels.rms_norm(kernels, x, self.weight, self.eps)
        normed = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return (normed * (1.0 + self.weight.float())).type_as(x)


def rotary_tables(positions: torch.Tensor, head_dim: int, rope: RopeParameters, dtype: torch.dtype) -> Rotary:
    """Cosines and sines [B, 1, T, D] for positions [B, T] (RoFormer, linear position scaling by `factor`)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float, device=positions.device) / head_dim
    inverse_frequency = 1.0 / (rope.theta**exponents) / rope.factor
    angles = positions[:, None, :, None].float() * inverse_frequency
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Applies rotary tables to queries or keys [B, H, T, D]; pairs element i with i + D/2."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
    with_weights: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention of queries [B, H, T, D] over keys and values [B, KV heads, S, D].

    `mask` [B, 1, T, S] is True where a query may attend; None allows all. Returns [B, H, T, D] and, if `with_weights`,
    the weights [B, H, T, S], which are computed explicitly and slowly.
    """
    groups = queries.shape[1] // keys.shape[1]
    if not with_weights and _attends_widened(queries):
        return _attend_widened(queries, keys, values, mask, scale), None
    if not with_weights:
        if groups > 1 and mask is not None and queries.device.type == "cuda":
            # With a mask and enable_gqa, torch falls back to the math kernel, which holds every weight in memory.
            keys, values, groups = (*expand_heads(keys, values, groups), 1)
        out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale, enable_gqa=groups > 1)
        return out, None
    weights = attention_weights(queries, keys, mask, scale)
    return weights @ values.repeat_interleave(groups, dim=1), weights


def expand_heads(keys: torch.Tensor, values: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [B, KV heads, S, D], each head repeated for its group of queries: [B, H, S, D]."""
    return keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)


def _attends_widened(queries: torch.Tensor) -> bool:
    """Whether this is one query in bfloat16 on a CPU: torch's fused attention is faster in float32 there."""
    narrow = queries.dtype == torch.bfloat16 and queries.device.type == "cpu" and not torch.compiler.is_compiling()
    return narrow and queries.shape[2] == 1


def _attend_widened(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """`attend` in float32; a long context is widened one KV head at a time."""
    heads = keys.shape[1]
    parts = heads if keys.numel() > WIDENED_AT_A_TIME else 1
    some = zip(*(tensor.chunk(parts, dim=1) for tensor in (queries, keys, values)), strict=True)
    wide = [attend(q.float(), k.float(), v.float(), mask, scale, False)[0] for q, k, v in some]
    return torch.cat(wide, dim=1).to(queries.dtype)


def attention_weights(
    queries: torch.Tensor, keys: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Weights [B, H, T, S] of queries [B, H, T, D] over keys [B, KV heads, S, D]; mask [B, 1, T, S] as in `attend`."""
    keys = keys.repeat_interleave(queries.shape[1] // keys.shape[1], dim=1)
    scores = queries @ keys.transpose(-1, -2) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)


class Attention(nn.Module):
    """Grouped-query attention with RMSNorm on queries and keys."""

    def __init__(self, config: Gemma3TextConfig, layer_index: int):
        super().__init__()
        self.config, self.layer_index = config, layer_index
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = Linear(width, config.num_attention_heads * config.head_dim, bias=bias)
        self.k_proj = Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.v_proj = Linear(width, config.num_key_value_heads * config.head_dim, bias=bias)
        self.o_proj = Linear(config.num_attention_heads * config.head_dim, width, bias=bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        cache: KVCache | RowCaches | None,
        with_weights: bool | WeightReader,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [B, T, E] -> [B, T, E], and if asked for the weights [B, H, T, S] or a reader's result."""
        heads = (*x.shape[:-1], -1, self.config.head_dim)
        queries = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), rotary)  # [B, H, T, D]
        keys = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), rotary)
        values = self.v_proj(x).view(heads).transpose(1, 2)
        scale = self.config.attention_scale
        if isinstance(cache, RowCaches):
            assert mask is None
            assert not callable(with_weights)
            rows = zip(queries.split(1), *cache.update(self.layer_index, keys, values), strict=True)
            out = torch.cat([attend(*row, None, scale, with_weights)[0] for row in rows])
            return self.o_proj(out.transpose(1, 2).flatten(2)), None
        if cache is not None:
            keys, values = cache.update(self.layer_index, keys, values)
        out, weights = attend(queries, keys, values, mask, scale, with_weights is True)
        if callable(with_weights):
            weights = with_weights(self.layer_index, queries, keys, mask, scale)
        return self.o_proj(out.transpose(1, 2).flatten(2)), weights


class MLP(nn.Module):
    """Gated MLP with tanh-GELU."""

    def __init__(self, config: Gemma3TextConfig):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class DecoderLayer(CheckpointedLayer):
    """Attention and MLP, each between two RMSNorms and added to the residual stream."""

    def __init__(self, config: Gemma3TextConfig, layer_index: int):
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.self_attn = Attention(config, layer_index)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(width, eps)
        self.post_attention_layernorm = RMSNorm(width, eps)
        self.pre_feedforward_layernorm = RMSNorm(width, eps)
        self.post_feedforward_layernorm = RMSNorm(width, eps)
        self._kept = KeptLayer()

    def forward(
        self,
        x: torch.Tensor,
        rotary: Rotary,
        mask: torch.Tensor | None,
        cache: KVCache | RowCaches | None,
        with_weights: bool | WeightReader,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if mask is None and cache is not None and not with_weights and x.shape[1] == 1:
            out = self._read_token(x, rotary, cache)
            if out is not None:
                return out, None
        attended, weights = self.self_attn(self.input_layernorm(x), rotary, mask, cache, with_weights)
        x = x + self.post_attention_layernorm(attended)
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x, weights

    def _read_token(self, x: torch.Tensor, rotary: Rotary, cache: KVCache | RowCaches) -> torch.Tensor | None:
        """`forward` of one new token in one call, x [B, 1, E], or None where the parts are needed one by one."""
        kernels = cpu_kernels.library_for(x)
        layer = None if kernels is None else self._kept.layer(x.dtype, self._parts)
        if kernels is None or layer is None:
            return None
        return read_token(kernels, layer, x, rotary, cache, self.self_attn.layer_index)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "DecoderLayer":
        """As nn.Module's; the weights that it replaces are no longer kept."""
        self._kept = KeptLayer()
        super()._apply(fn, recurse)
        return self

    def _parts(self) -> LayerParts | None:
        """The modules that a token goes through, or None if some are not as they are here."""
        attention, mlp = self.self_attn, self.mlp
        if type(attention) is not Attention or type(mlp) is not MLP:
            return None
        projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        before = (self.input_layernorm, attention.q_norm, attention.k_norm, self.post_attention_layernorm)
        norms = (*before, self.pre_feedforward_layernorm, self.post_feedforward_layernorm)
        if any(type(norm) is not RMSNorm or norm.eps != attention.config.rms_norm_eps for norm in norms):
            return None
        return LayerParts(self, attention, mlp, (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj), norms)
