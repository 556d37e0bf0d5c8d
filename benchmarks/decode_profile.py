"""Where the time of a decode step goes on a CPU: the 1B shape with random weights, in each precision.

    python -m benchmarks.decode_profile
    python -m benchmarks.decode_profile --rows 8

Prints, for the decoder's layers and the head, their share of a step's time, and what they reach of the memory's read
speed, which is measured first. The rest is embedding, sampling and Python.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.language_model import GREEDY, ONE_BILLION, START_TOKENS, our_decoding, random_model, weights_of
from benchmarks.limits import Limits, bytes_of, measure
from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.int4.quantize import TorchAoConfig, quantized
from gemma3_core.nn import cpu_step

PRECISIONS = {"float32": (torch.float32, None), "bfloat16": (torch.bfloat16, None), "int4": (torch.bfloat16, 128)}
"""Types of activations, and the group size of int4 weights."""


def profile(
    precision: str, rows: int, new_tokens: int, limits: Limits, config: Gemma3TextConfig = ONE_BILLION
) -> dict[str, dict[str, float]]:
    """For "layers" and "head" the share of the time of decoding `rows` answers together, and the share of the limit."""
    dtype, group_size = PRECISIONS[precision]
    model = random_model(config, dtype)
    if group_size is not None:
        model = quantized(model, TorchAoConfig(group_size))
    spent: Counter[str] = Counter()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*values: Any, **named: Any) -> Any:
            start = time.perf_counter()
            made = function(*values, **named)
            spent[part] += time.perf_counter() - start  # type: ignore[assignment]
            return made

        return run

    prompt = torch.randint(5, config.vocab_size, (rows, START_TOKENS), generator=torch.Generator().manual_seed(1))
    # A hook would have the parts of each layer called one by one.
    head, layers = timed("head", model.lm_head.forward), timed("layers", cpu_step.decoder_layer)
    with patch.object(model.lm_head, "forward", head), patch.object(cpu_step, "decoder_layer", layers):
        decode = our_decoding(model, prompt, new_tokens, GREEDY)
        decode()
        spent.clear()
        start = time.perf_counter()
        decode()
        seconds = time.perf_counter() - start
    return {
        part: {
            "time": spent[part] / seconds,
            "limit": limits.share_of_bytes(bytes_of(weights_of(module)) * new_tokens, spent[part]),
        }
        for part, module in (("layers", model.decoder.layers), ("head", model.lm_head))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1, help="answers at once, at most 8")
    parser.add_argument("--new-tokens", type=int, default=24)
    arguments = parser.parse_args()
    limits = measure(torch.device("cpu"))
    print(
        "| precision | layers: of the time | of the limit | head: of the time | of the limit |\n|---|---|---|---|---|"
    )
    for precision in PRECISIONS:
        parts = profile(precision, arguments.rows, arguments.new_tokens, limits)
        cells = (f"{parts[part][share]:.0%}" for part in ("layers", "head") for share in ("time", "limit"))
        print(f"| {precision} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
