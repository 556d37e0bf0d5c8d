"""A decode step as a function of tensors alone: static shapes, few launches, nothing that waits for the device.

It computes what the model's `forward` computes for one new token of each row, from weights that are fused after
loading: q, k and v in one product, gate and up in another, 1 + w in the norms. So it traces as one graph, and CUDA can
capture it. `python -m benchmarks.decode_step` counts its launches.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gemma3_core.config.gemma3 import GLOBAL, LOCAL
from gemma3_core.int4.linear import Int4Linear, block_outputs
from gemma3_core.kernels import decode as kernels
from gemma3_core.nn.layers import Linear, RMSNorm, rotary_tables
from gemma3_core.nn.slots import SlotCache


class FusedDecoder:
    """The decode step of a model with a head. Its parts become views of the fused weights, which take no more memory
    (but for the scales of int4 weights)."""

    def __init__(self, model: Any):
        decoder = model.decoder
        self._config, self._head = decoder.config, model.get_output_embeddings()
        self._embedding = decoder.embed_tokens.weight
        self._embedding_scale = float(decoder.embed_tokens.embed_scale)
        self._layers = [_Layer(layer) for layer in decoder.layers]
        self._first_norm = _folded(decoder.layers[0].input_layernorm)
        following = [_folded(layer.input_layernorm) for layer in decoder.layers[1:]]
        self._next_norms = [*following, _folded(decoder.norm)]

    @torch.inference_mode()
    def __call__(self, tokens: torch.Tensor, lengths: torch.Tensor, cache: SlotCache) -> torch.Tensor:
        """Reads token r of tokens [R] in row r of `cache`, which holds lengths[r] tokens before it; returns logits
        [R, vocabulary] of the next tokens."""
        config, eps = self._config, self._config.rms_norm_eps
        x = nn.functional.embedding(tokens, self._embedding) * self._embedding_scale
        tables = {
            kind: [
                table[:, 0, 0]
                for table in rotary_tables(lengths[:, None], config.head_dim, config.rope_for(kind), x.dtype)
            ]
            for kind in (LOCAL, GLOBAL)
        }
        normed = kernels.rms_norm(x, self._first_norm, eps)
        for number, (layer, next_norm) in enumerate(zip(self._layers, self._next_norms, strict=True)):
            keys, values = cache.keys[number], cache.values[number]
            cos, sin = tables[config.layer_type(number)]
            queries = kernels.rotate_and_store(
                layer.qkv(normed), layer.query_norm, layer.key_norm, cos, sin, lengths, keys, values, eps
            )
            attended = kernels.attend_slots(queries, keys, values, lengths, config.attention_scale)
            x, normed = kernels.add_norms(layer.out(attended.flatten(1)), x, *layer.attention_norms, eps)
            x, normed = kernels.add_norms(
                layer.down(kernels.gelu_multiply(layer.gate_up(normed))), x, layer.mlp_norm, next_norm, eps
            )
        logits: torch.Tensor = self._head(normed)
        if config.final_logit_softcapping is not None:
            logits = torch.tanh(logits / config.final_logit_softcapping) * config.final_logit_softcapping
        return logits


class _Layer:
    """The products and norms of one decoder layer."""

    def __init__(self, layer: Any):
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv, self.gate_up = (fused(parts) for parts in _fused_parts(layer))
        self.out, self.down = attention.o_proj, mlp.down_proj
        self.query_norm, self.key_norm = _folded(attention.q_norm), _folded(attention.k_norm)
        self.attention_norms = _folded(layer.post_attention_layernorm), _folded(layer.pre_feedforward_layernorm)
        self.mlp_norm = _folded(layer.post_feedforward_layernorm)


def why_not_fused(model: Any) -> str | None:
    """What keeps a model from a FusedDecoder: parts that are not ours as published, such as an adapter's; or None."""
    if model.get_output_embeddings() is None:
        return "it has no head"
    decoder = model.decoder
    devices = {parameter.device for parameter in decoder.parameters()}
    if len(devices) > 1:
        return "its layers lie on several devices"
    if model.device.type == "cuda" and model.device.index not in (None, torch.cuda.current_device()):
        return "its device is not the current one"
    if not isinstance(decoder.embed_tokens, nn.Embedding):
        return f"embed_tokens is a {type(decoder.embed_tokens).__name__}"
    for name, module in decoder.named_modules():
        if name.endswith("_proj") and type(module) not in (Linear, Int4Linear):
            return f"{name} is a {type(module).__name__}"
        if isinstance(module, Int4Linear) and module.out_features % block_outputs(module.qdata.device):
            return f"{name} has {module.out_features} outputs, no whole blocks of its int4 kernel"
    for layer in decoder.layers:
        for parts in _fused_parts(layer):
            if len({_form(part) for part in parts}) > 1:  # as in many GGUF files
                return "weights that would become one are of several types"
    return None


def _fused_parts(layer: Any) -> tuple[list[Any], list[Any]]:
    attention, mlp = layer.self_attn, layer.mlp
    return [attention.q_proj, attention.k_proj, attention.v_proj], [mlp.gate_proj, mlp.up_proj]


def _form(part: Any) -> tuple[Any, ...]:
    """What the parts of one weight must have in common."""
    if isinstance(part, Int4Linear):
        return Int4Linear, part.group_size, part.symmetric, part.bias is None
    return Linear, part.weight.dtype, part.bias is None


def _folded(norm: RMSNorm) -> torch.Tensor:
    return 1.0 + norm.weight.detach().float()


@torch.no_grad()
def fused(parts: Sequence[Any]) -> nn.Module:
    """One linear layer for several of the same input, side by side. They keep their names and numbers, as views of its
    weight."""
    first = parts[0]
    outputs = sum(part.out_features for part in parts)
    biases = [part.bias for part in parts if part.bias is not None]
    bias = nn.Parameter(torch.cat([bias.detach() for bias in biases]), requires_grad=False) if biases else None
    if isinstance(first, Int4Linear):
        return _fused_int4(parts, outputs, bias)
    assert isinstance(first, Linear)
    weights = [part.weight for part in parts]
    whole = Linear(first.in_features, outputs, bias=False, device="meta")
    whole.weight = nn.Parameter(torch.cat([weight.detach() for weight in weights]), requires_grad=False)
    whole.bias = bias  # type: ignore[assignment]
    for weight, view in zip(weights, whole.weight.split([len(weight) for weight in weights]), strict=True):
        weight.data = view.detach()
    return whole


def _fused_int4(parts: Sequence[Any], outputs: int, bias: nn.Parameter | None) -> Int4Linear:
    first = parts[0]
    assert not any(part.out_features % block_outputs(part.qdata.device) for part in parts[:-1])
    whole = Int4Linear(first.in_features, outputs, first.group_size, bias)
    whole.qdata = torch.cat([part.qdata for part in parts])
    whole.scale_and_zero = torch.cat([part.scale_and_zero for part in parts], dim=1)
    whole.symmetric = first.symmetric
    for part, view in zip(parts, whole.qdata.split([len(part.qdata) for part in parts]), strict=True):
        part.qdata.data = view  # the same tensor to a model that shares it
    return whole
