"""Counts the operations of one decode step, which on CUDA are launches: the fused step's and the plain forward's.

    python -m benchmarks.decode_step

The shape is that of the 4B checkpoint's decoder, as deep but narrow: the count depends on its layers alone. Views and
allocations are no launches.
"""

import argparse
import os
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.generation.fused_decoder import FusedDecoder
from gemma3_core.generation.loop import decode_step, prefill
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.slots import SlotCache

NARROW = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 34,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "sliding_window": 64,
    "max_position_embeddings": 1024,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}
PROMPT_TOKENS = 8
_NO_LAUNCH = {"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "lift_fresh"}
_TWO_LAUNCHES = {"attend_slots"}


class LaunchCounter(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.overloadpacket.__name__
        if not operation.is_view and name not in _NO_LAUNCH:
            self.launches[name] += 2 if name in _TWO_LAUNCHES else 1
        return operation(*args, **(kwargs or {}))


def narrow_model(dtype: torch.dtype = torch.bfloat16) -> Gemma3ForCausalLM:
    """A random model as deep as the 4B checkpoint's decoder."""
    torch.manual_seed(0)
    return Gemma3ForCausalLM(Gemma3TextConfig.from_dict(NARROW)).to(dtype).eval()


def count(model: Gemma3ForCausalLM) -> tuple[Counter[str], Counter[str]]:
    """The operations of a plain decode step, and of a fused one."""
    cache = KVCache(model.config, reserve=64)
    prefill(model, cache, input_ids=torch.arange(PROMPT_TOKENS)[None])
    slots = SlotCache(model.config, rows=1, length=64, dtype=model.dtype, device=model.device)
    slots.admit(cache)
    tokens, lengths = torch.tensor([1]), torch.tensor([PROMPT_TOKENS])
    with LaunchCounter() as plain:
        decode_step(model, cache, tokens, lengths)
    step = FusedDecoder(model)
    with LaunchCounter() as fused:
        step(tokens, lengths, slots)
    return plain.launches, fused.launches


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    os.environ["GEMMA_CPU_KERNELS"] = "0"  # CUDA launches torch's operations
    plain, fused = count(narrow_model())
    print(f"| {NARROW['num_hidden_layers']} layers | launches of a decode step |\n|---|---|")
    print(f"| plain forward | {plain.total():,} |\n| fused step | {fused.total():,} |")
    print("\nMost frequent in the fused step: " + ", ".join(f"{name} {n}" for name, n in fused.most_common(8)))


if __name__ == "__main__":
    main()
