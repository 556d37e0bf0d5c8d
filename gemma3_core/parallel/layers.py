"""Tensor parallelism: the decoder's layers over several devices, for weights that no single one holds.

Each device keeps whole heads and whole columns of the MLP, so that a layer adds up its parts twice: after attention and
after the MLP (Megatron-LM, arXiv 1909.08053, section 3). Norms are on each of them.

The parts are plain tensors and not torch's DTensors, of which a decode step would dispatch seven products a layer: so
they go through our own kernels, and one at a time from the disk to their device.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.nn.layers import DecoderLayer, Linear

AddUp = Callable[[torch.Tensor], object]
"""Adds the tensors of all processes to one another, in place."""

_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_ROWS = ("self_attn.o_proj", "mlp.down_proj")


class ColumnsLinear(Linear):
    """This process's outputs of a linear layer."""


class RowsLinear(Linear):
    """A linear layer of this process's inputs, whose results are added up."""

    add_up: AddUp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = super().forward(x).contiguous()
        self.add_up(out)
        return out


def tensor_parallel(model: nn.Module, rank: int, size: int, add_up: AddUp, device: Any = None) -> None:
    """Leaves in this process, number `rank` of `size`, its share of each decoder layer of `model`, on `device`.

    From then on the processes must call the layers with the same inputs at the same time, without gradients, and all
    get the whole output; a KV cache holds this process's heads. Raises UnsupportedOptionError if heads or columns can't
    be shared out evenly, or a layer has no plain weights (int4, an adapter).
    """
    check_shares(model, size)
    model.requires_grad_(False)
    for layer in _layers(model):
        for names, dim, kind in ((_COLUMNS, 0, ColumnsLinear), (_ROWS, 1, RowsLinear)):
            for name in names:
                share = _share(layer.get_submodule(name), kind, dim, rank, size, device)
                share.add_up = add_up  # type: ignore[assignment]
                layer.set_submodule(name, share)


def is_shared(model: nn.Module) -> bool:
    """Whether other processes hold parts of the model."""
    return any(isinstance(module, RowsLinear) for module in model.modules())


def check_shares(model: nn.Module, size: int) -> None:
    """Raises UnsupportedOptionError if the model can't be shared out over so many processes."""
    for layer in _layers(model):
        _check(layer, layer.self_attn.config, size)


def _layers(model: nn.Module) -> list[DecoderLayer]:
    return [module for module in model.modules() if isinstance(module, DecoderLayer)]


@torch.no_grad()
def _share(whole: Any, kind: type[Linear], dim: int, rank: int, size: int, device: Any) -> Linear:
    weight = whole.weight.chunk(size, dim)[rank].to(device or whole.weight.device, copy=True).contiguous()
    share = kind(weight.shape[1], weight.shape[0], bias=False, device="meta")
    share.weight = nn.Parameter(weight, requires_grad=False)
    if whole.bias is not None and (dim == 0 or rank == 0):  # a sum takes it up once
        bias = whole.bias.chunk(size)[rank] if dim == 0 else whole.bias
        share.bias = nn.Parameter(bias.to(weight.device, copy=True), requires_grad=False)
    return share


def _check(layer: DecoderLayer, config: Gemma3TextConfig, size: int) -> None:
    counts = {
        "attention heads": config.num_attention_heads,
        "key and value heads": config.num_key_value_heads,
        "columns of the MLP": config.intermediate_size,
    }
    for name, count in counts.items():
        if count % size:
            raise UnsupportedOptionError(
                f"{count} {name} can't be shared out evenly over {size} devices. Use a number that divides them."
            )
    for name in (*_COLUMNS, *_ROWS):
        if type(module := layer.get_submodule(name)) is not Linear:
            raise UnsupportedOptionError(
                f"Only plain weights are shared out over devices, got {type(module).__name__}. Load the model without "
                "int4 and adapters."
            )
