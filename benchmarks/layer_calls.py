"""Decoding on a CPU with one call for each decoder layer, beside one call for each of its parts.

    python -m benchmarks.layer_calls gemma-3-270m-q4_k_m.gguf --int4

Prints tokens a second of both, which take turns in one process, and their ratio.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.llama_cpp import NEW_TOKENS, PROMPT_TOKENS
from gemma3_core.generation.loop import decode_step, prefill
from gemma3_core.hf.auto import AutoModelForCausalLM
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.nn import layers
from gemma3_core.nn.cache import KVCache

_KNOWN_TOKENS = 64


def _seconds(model: Any, ids: torch.Tensor) -> float:
    cache = KVCache(model.text_config, 2 * PROMPT_TOKENS)
    prefill(model, cache, input_ids=ids[:, :_KNOWN_TOKENS])
    start = time.perf_counter()
    for token in ids[0, _KNOWN_TOKENS:]:
        decode_step(model, cache, token[None], torch.tensor([cache.length]))
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--int4", action="store_true")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    config = TorchAoConfig(32) if arguments.int4 else None
    model: Any = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=arguments.dtype, quantization_config=config
    )
    shape = (1, _KNOWN_TOKENS + NEW_TOKENS)
    ids = torch.randint(5, model.text_config.vocab_size - 200, shape, generator=torch.Generator().manual_seed(1))
    whole, parts = [], []
    for _ in range(arguments.rounds + 1):
        whole.append(_seconds(model, ids))
        with patch.object(layers, "read_token", lambda *_: None):
            parts.append(_seconds(model, ids))
    once, each = (NEW_TOKENS / statistics.median(times[1:]) for times in (whole, parts))
    print(f"tokens a second: {once:.1f} with a call a layer, {each:.1f} with a call a part, ratio {once / each:.2f}")


if __name__ == "__main__":
    main()
