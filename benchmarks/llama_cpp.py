"""The same GGUF file in llama.cpp and in ours: loading, prefill of 512 tokens, decode.

    python -m benchmarks.llama_cpp gemma-3-270m-q4_k_m.gguf

Needs `pip install llama-cpp-python`, which builds llama.cpp, for half an hour on two cores. Ours runs the file in
bfloat16 and in int4 (group size 32); a Q4_0 that llama.cpp makes from the file runs in both programs too, in ours
without another rounding. Both use as many threads (OMP_NUM_THREADS says how many), and take turns. Writes
benchmarks/results/llama_cpp.json, or what --json names.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.language_model import START_TOKENS, prefill_of, random_model
from benchmarks.limits import Limits, bytes_of
from benchmarks.loading import LLAMA_CPP, OURS_INT4, LlamaCpp
from benchmarks.loading import measure as measure_loading
from benchmarks.table import SPEED, speeds, table_row
from benchmarks.timing import in_turns, machine, times_in_turns
from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.generation.loop import decode_step, prefill
from gemma3_core.gguf.tensors import Q4_0_GROUP_SIZE
from gemma3_core.hf.auto import AutoModelForCausalLM
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.models.weights import build_on_meta
from gemma3_core.nn.cache import KVCache

RESULT = Path(__file__).resolve().parent / "results" / "llama_cpp.json"
PROMPT_TOKENS, NEW_TOKENS = 512, 32
_SEED = 1


class OurFile:
    """Our model with one file."""

    def __init__(self, path: Path, dtype: str = "bfloat16", int4: bool = True):
        config = TorchAoConfig(Q4_0_GROUP_SIZE) if int4 else None
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, quantization_config=config)

    def prefill(self, ids: torch.Tensor) -> KVCache:
        cache = KVCache(self.model.text_config, ids.shape[1])
        prefill(self.model, cache, input_ids=ids)
        return cache

    def decode(self, ids: torch.Tensor, new_tokens: int) -> float:
        """Seconds that so many tokens take behind the first 64."""
        cache = self.prefill(ids[:, :START_TOKENS])
        start = time.perf_counter()
        for token in ids[0, START_TOKENS : START_TOKENS + new_tokens]:
            decode_step(self.model, cache, token[None], torch.tensor([cache.length]))
        return time.perf_counter() - start


def compare(path: Path, rounds: int, q4_0: bool) -> dict[str, Any]:
    """Tokens a second of both programs with one file, and seconds to load it."""
    kinds = {"int4": ("bfloat16", True)} if q4_0 else {"bfloat16": ("bfloat16", False), "int4": ("bfloat16", True)}
    loading: dict[str, Callable[[], Any]] = {"llama.cpp": partial(LlamaCpp, path)}
    loading |= {name: partial(OurFile, path, *how) for name, how in kinds.items()}
    load_s = in_turns(loading, rounds)
    programs: dict[str, Any] = {name: load() for name, load in loading.items()}
    vocabulary = programs["int4"].model.text_config.vocab_size
    ids = torch.randint(5, vocabulary - 200, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(_SEED))
    prefill_s = in_turns({name: partial(one.prefill, ids) for name, one in programs.items()}, rounds)
    decode_s = in_turns({name: partial(one.decode, ids, NEW_TOKENS) for name, one in programs.items()}, rounds)
    return {
        name: {
            "loading_s": round(load_s[name], 2),
            "prefill": round(PROMPT_TOKENS / prefill_s[name], 1),
            "decode": round(NEW_TOKENS / decode_s[name], 1),
        }
        for name in programs
    }


def compare_q4_0(
    config: Gemma3TextConfig, prompts: Sequence[int], new_tokens: int, rounds: int, limits: Limits
) -> dict[str, Any]:
    """Rows (see `table_row`) of a shape with random weights in Q4_0, the head too: the same file in both programs."""
    from benchmarks.random_gguf import write_q4_0

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "q4_0.gguf"
        write_q4_0(random_model(config, torch.float32), path)
        ways = {"ours": (OURS_INT4, path), "llama.cpp": (LLAMA_CPP, path)}
        report: dict[str, Any] = {"dtype": "Q4_0"} | measure_loading(ways, rounds, min(prompts))
        programs: dict[str, Any] = {"ours": OurFile(path), "llama.cpp": LlamaCpp(path, max(prompts) + PROMPT_TOKENS)}
        longest = max(*prompts, START_TOKENS + new_tokens)
        ids = torch.randint(300, config.vocab_size, (1, longest), generator=torch.Generator().manual_seed(_SEED))
        ours = programs["ours"].model
        per_token = 2 * count_layer_weights(config)
        read = bytes_of([*ours.decoder.layers.buffers(), *ours.lm_head.buffers()])
        for length in prompts:
            reading = {who: partial(one.prefill, ids[:, :length]) for who, one in programs.items()}
            times = times_in_turns(reading, rounds)
            share = limits.share_of_operations(per_token * length, median(times["ours"]))
            report[prefill_of(length)] = table_row(SPEED, speeds(length, times), share)
        times = times_in_turns({who: partial(one.decode, ids, new_tokens) for who, one in programs.items()}, rounds)
        share = limits.share_of_bytes(read * new_tokens, median(times["ours"]))
        report["decode"] = table_row(SPEED, speeds(new_tokens, times), share)
    return report


def count_layer_weights(config: Gemma3TextConfig) -> int:
    """Weights of the decoder's layers, each of which a token is multiplied with once."""
    model: Any = build_on_meta(lambda: Gemma3ForCausalLM(config))
    return sum(parameter.numel() for parameter in model.decoder.layers.parameters())


def quantized_to_q4_0(path: Path, target: Path) -> None:
    """Lets llama.cpp write the file anew as Q4_0."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), options):
        raise RuntimeError(f"llama.cpp could not write {target.name}.")


def require() -> None:
    """Ends the program if llama.cpp is missing."""
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        sys.exit("llama.cpp is not here: pip install llama-cpp-python builds it.")


def print_table(report: dict[str, Any]) -> None:
    print("| file | program | loading, s | prefill of 512 | decode | prefill / llama.cpp | decode / llama.cpp |")
    print("|---|---|---|---|---|---|---|")
    for file, programs in report.items():
        theirs = programs["llama.cpp"]
        for name, row in programs.items():
            who = name if name == "llama.cpp" else f"ours, {name}"
            ratios = " | ".join(f"{row[part] / theirs[part]:.2f}" for part in ("prefill", "decode"))
            print(f"| {file} | {who} | {row['loading_s']} | {row['prefill']} | {row['decode']} | {ratios} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, default=RESULT, help="where the figures go")
    arguments = parser.parse_args()
    require()
    with tempfile.TemporaryDirectory() as folder:
        q4_0 = Path(folder) / "q4_0.gguf"
        quantized_to_q4_0(arguments.file, q4_0)
        report = {
            arguments.file.name: compare(arguments.file, arguments.rounds, q4_0=False),
            "Q4_0 made from it": compare(q4_0, arguments.rounds, q4_0=True),
        }
    print_table(report)
    arguments.json.write_text(json.dumps({"machine": machine(), "files": report}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
