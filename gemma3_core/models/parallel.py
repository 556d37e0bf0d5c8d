"""Tensor parallelism: the decoder's layers over several devices, for weights that no single one holds.

Each device keeps whole heads and whole columns of the MLP, so that a layer adds up its parts twice: after attention and
after the MLP (Megatron-LM, arXiv 1909.08053, section 3). Norms, embeddings, head and vision tower are on each of them.
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.nn.layers import DecoderLayer, Linear

_COLUMNS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
_ROWS = ("self_attn.o_proj", "mlp.down_proj")


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves in this process its share of each decoder layer of `model`, which all processes of `mesh` hold alike.

    `mesh` has one dimension. From then on the processes must call the model with the same inputs at the same time, and
    all get the whole output; a KV cache holds this process's heads. Raises UnsupportedOptionError if heads or columns
    can't be shared out evenly, or a layer has no plain weights (int4, an adapter).
    """
    layers = [module for module in model.modules() if isinstance(module, DecoderLayer)]
    for layer in layers:
        _check(layer, layer.self_attn.config, mesh.size())
    for layer in layers:
        plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in _COLUMNS}
        plan |= {name: RowwiseParallel() for name in _ROWS}
        parallelize_module(layer, mesh, plan)


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
