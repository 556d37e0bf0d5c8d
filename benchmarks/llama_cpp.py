"""The same GGUF file in llama.cpp and in ours: loading, prefill of 512 tokens, decode.

    python -m benchmarks.llama_cpp gemma-3-270m-q4_k_m.gguf

Needs `pip install llama-cpp-python`, which builds llama.cpp, for half an hour on two cores. Ours runs the file in
bfloat16 and in int4 (group size 32); a Q4_0 that llama.cpp makes from the file runs in both programs too, in ours
without another rounding. Both use all cores, and take turns. Writes benchmarks/results/llama_cpp.json.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import in_turns, machine
from gemma3_core.generation.loop import decode_step, prefill
from gemma3_core.hf.auto import AutoModelForCausalLM
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.nn.cache import KVCache

RESULT = Path(__file__).resolve().parent / "results" / "llama_cpp.json"
PROMPT_TOKENS, NEW_TOKENS = 512, 32
_SEED = 1


class _Theirs:
    """llama.cpp with one file."""

    def __init__(self, path: Path):
        import llama_cpp

        cores = os.cpu_count() or 1
        options = {"n_ctx": 2 * PROMPT_TOKENS, "n_batch": PROMPT_TOKENS, "n_threads": cores, "n_threads_batch": cores}
        self.model = llama_cpp.Llama(str(path), verbose=False, **options)

    def prefill(self, ids: torch.Tensor) -> None:
        self.model.reset()
        self.model.eval(ids[0].tolist())

    def decoding(self, ids: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            self.prefill(ids[:, :64])
            start = time.perf_counter()
            for token in ids[0, 64 : 64 + NEW_TOKENS].tolist():
                self.model.eval([token])
            self.seconds.append(time.perf_counter() - start)

        self.seconds: list[float] = []
        return run


class _Ours:
    """Our model with one file."""

    def __init__(self, path: Path, dtype: str, int4: bool):
        config = TorchAoConfig(32) if int4 else None
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, quantization_config=config)
        self.seconds: list[float] = []

    def prefill(self, ids: torch.Tensor) -> KVCache:
        cache = KVCache(self.model.text_config, 2 * PROMPT_TOKENS)
        prefill(self.model, cache, input_ids=ids)
        return cache

    def decoding(self, ids: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            cache = self.prefill(ids[:, :64])
            start = time.perf_counter()
            for token in ids[0, 64 : 64 + NEW_TOKENS]:
                decode_step(self.model, cache, token[None], torch.tensor([cache.length]))
            self.seconds.append(time.perf_counter() - start)

        return run


def compare(path: Path, rounds: int, q4_0: bool) -> dict[str, Any]:
    """Tokens a second of both programs with one file, and seconds to load it."""
    kinds = {"int4": ("bfloat16", True)} if q4_0 else {"bfloat16": ("bfloat16", False), "int4": ("bfloat16", True)}
    loading: dict[str, Callable[[], Any]] = {"llama.cpp": partial(_Theirs, path)}
    loading |= {name: partial(_Ours, path, *how) for name, how in kinds.items()}
    load_s = in_turns(loading, rounds)
    programs: dict[str, Any] = {name: load() for name, load in loading.items()}
    vocabulary = programs["int4"].model.text_config.vocab_size
    ids = torch.randint(5, vocabulary - 200, (1, PROMPT_TOKENS), generator=torch.Generator().manual_seed(_SEED))
    prefill_s = in_turns({name: partial(one.prefill, ids) for name, one in programs.items()}, rounds)
    in_turns({name: one.decoding(ids) for name, one in programs.items()}, rounds)
    report = {}
    for name, one in programs.items():
        report[name] = {
            "loading_s": round(load_s[name], 2),
            "prefill": round(PROMPT_TOKENS / prefill_s[name], 1),
            "decode": round(NEW_TOKENS / statistics.median(one.seconds[1:]), 1),
        }
    return report


def quantized_to_q4_0(path: Path, target: Path) -> None:
    """Lets llama.cpp write the file anew as Q4_0."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True
    if llama_cpp.llama_model_quantize(str(path).encode(), str(target).encode(), options):
        raise RuntimeError(f"llama.cpp could not write {target.name}.")


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
    arguments = parser.parse_args()
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        sys.exit("llama.cpp is not here: pip install llama-cpp-python builds it.")
    with tempfile.TemporaryDirectory() as folder:
        q4_0 = Path(folder) / "q4_0.gguf"
        quantized_to_q4_0(arguments.file, q4_0)
        report = {
            arguments.file.name: compare(arguments.file, arguments.rounds, q4_0=False),
            "Q4_0 made from it": compare(q4_0, arguments.rounds, q4_0=True),
        }
    print_table(report)
    RESULT.write_text(json.dumps({"machine": machine(), "files": report}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
