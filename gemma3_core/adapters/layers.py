"""Layers that add an adapter's low-rank product to a layer of the base, whose weights they leave as they are.

LoRA (arXiv 2106.09685) changes a weight W by scale B A. Beside the base that is a second, narrow product:

    y = W x + scale B (A x)

The factors are held in float32, as in peft, and the scale is part of B.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gemma3_core.nn.vision import MultiModalProjector


class LowRank(nn.Module):
    """The factors of one change: a [r, K], b [N, r] with the scale, and bias [N] or None."""

    def __init__(self, a: torch.Tensor, b: torch.Tensor, scale: float, bias: torch.Tensor | None = None):
        super().__init__()
        self.a, self.b = _frozen(a), _frozen(b.float() * scale)
        self.bias = None if bias is None else _frozen(bias.float() * scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N], in the factors' type."""
        return F.linear(F.linear(x.to(self.a.dtype), self.a), self.b, self.bias)

    def product(self) -> torch.Tensor:
        """What is added to a weight [N, K]."""
        return self.b @ self.a


class Adapted(nn.Module):
    """A layer of the base (or one that another adapter wraps already) with the factors of an adapter."""

    def __init__(self, base_layer: Any, low_rank: LowRank):
        super().__init__()
        self.base_layer = base_layer  # first, because a model's type is that of its first parameter
        self.low_rank = low_rank

    @property
    def weight(self) -> torch.Tensor:
        """The base's."""
        return self.base_layer.weight

    def merged(self) -> nn.Module:
        """The base's layer with the adapter in new weights, computed in float32."""
        inner = self.base_layer
        layer: nn.Module = inner.merged() if isinstance(inner, Adapted) else inner
        self._merge_into(layer)
        return layer

    def _merge_into(self, layer: Any) -> None:
        layer.weight = _sum(layer.weight, self.low_rank.product())


class AdaptedLinear(Adapted):
    """x [..., K] -> [..., N]; the base may have int4 weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base_layer(x)
        return (out + self.low_rank(x)).to(out.dtype)

    def _merge_into(self, layer: Any) -> None:
        super()._merge_into(layer)
        if (bias := self.low_rank.bias) is not None:
            layer.bias = _sum(torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias, bias)


class AdaptedEmbedding(Adapted):
    """Ids [...] -> [..., E], scaled like the base's embedding; a [r, vocabulary], b [E, r]."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        out = self.base_layer(input_ids)
        # Columns of a, as F.embedding would want a transposed copy of it.
        rows = self.low_rank.a.T[input_ids]
        added = F.linear(rows, self.low_rank.b) * self.embed_scale.to(rows.dtype)
        return (out + added).to(out.dtype)

    @property
    def embed_scale(self) -> torch.Tensor:
        """The base's."""
        return self.base_layer.embed_scale

    def _merge_into(self, layer: Any) -> None:
        layer.weight = _sum(layer.weight, self.low_rank.product().T)


class AdaptedProjector(Adapted):
    """The projector, whose weight [width, E] is multiplied from the right; a [r, E], b [width, r]."""

    base_layer: MultiModalProjector

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.project(self.pooled(features)).type_as(features)

    def pooled(self, features: torch.Tensor) -> torch.Tensor:
        return self.base_layer.pooled(features)

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        factors = self.low_rank
        return self.base_layer.project(pooled) + pooled.to(factors.a.dtype) @ factors.b @ factors.a

    def _merge_into(self, layer: Any) -> None:
        layer.mm_input_projection_weight = _sum(layer.mm_input_projection_weight, self.low_rank.product())


def _frozen(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor.float().contiguous(), requires_grad=False)


def _sum(weight: torch.Tensor, change: torch.Tensor) -> nn.Parameter:
    """A new weight in the old one's type; the sum is rounded once."""
    wide = (weight.detach().float() + change.detach().to(weight.device)).to(weight.dtype)
    return nn.Parameter(wide, requires_grad=weight.requires_grad)
