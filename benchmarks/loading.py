"""Loading and peak memory: a program loads a checkpoint in a process of its own, reads a prompt and writes some tokens.

    python -m benchmarks.loading PROGRAM PATH PROMPT_TOKENS NEW_TOKENS

is that process: it prints seconds until the model is loaded, without imports, and its peak memory in GiB. On a CPU that
is the largest resident set, in which pages of a mapped file count (Linux); on CUDA, what torch has allocated at most.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo_app import ROOT, peak_memory
from benchmarks.language_model import START_TOKENS
from benchmarks.table import MEMORY, SECONDS, table_row

OURS, OURS_INT4, TRANSFORMERS, LLAMA_CPP = "ours", "ours-int4", "transformers", "llama.cpp"
_PROMPT_TOKENS = 512


class LlamaCpp:
    """llama.cpp with one file."""

    def __init__(self, path: Path, context: int = 2 * _PROMPT_TOKENS):
        import llama_cpp

        threads = torch.get_num_threads()  # as many as ours
        options: dict[str, Any] = {"n_ctx": context, "n_batch": _PROMPT_TOKENS, "n_threads": threads}
        self.model = llama_cpp.Llama(str(path), verbose=False, n_threads_batch=threads, **options)

    def prefill(self, ids: torch.Tensor) -> None:
        self.model.reset()
        self.model.eval(ids[0].tolist())

    def decode(self, ids: torch.Tensor, new_tokens: int) -> float:
        """Seconds that so many tokens take behind the first 64."""
        self.prefill(ids[:, :START_TOKENS])
        start = time.perf_counter()
        for token in ids[0, START_TOKENS : START_TOKENS + new_tokens].tolist():
            self.model.eval([token])
        return time.perf_counter() - start


def measure(
    programs: Mapping[str, tuple[str, Path]], rounds: int, prompt_tokens: int = _PROMPT_TOKENS, new_tokens: int = 8
) -> dict[str, Any]:
    """The rows "loading" and "peak memory" of some programs, each with one of the ways above and its file; in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    memory: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):  # the first round fills the system's cache of files
        for name, (program, path) in programs.items():
            told = _in_own_process(program, path, prompt_tokens, new_tokens)
            if number:
                seconds[name].append(told["load_s"])
                memory[name].append(told["peak_gib"])
    return {"loading": table_row(SECONDS, seconds), "peak memory": table_row(MEMORY, memory)}


def _in_own_process(program: str, path: Path, prompt_tokens: int, new_tokens: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.loading", program, str(path), str(prompt_tokens), str(new_tokens)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{program} could not be measured with {path.name}: {run.stderr.strip()[-500:]}")
    told: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return told


def loader(program: str, path: Path, tokens: int) -> Callable[[], Callable[[int, int], Any]]:
    """Imports a program; what is returned loads the model, and returns what reads and writes so many tokens."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if program == LLAMA_CPP:

        def load_llama_cpp() -> Callable[[int, int], Any]:
            model = LlamaCpp(path, tokens + START_TOKENS)

            def answer(read: int, written: int) -> None:
                model.prefill(_ids(read))
                model.decode(_ids(START_TOKENS + written), written)

            return answer

        return load_llama_cpp
    quantization: Any = None
    if program == TRANSFORMERS:
        from transformers import AutoModelForCausalLM as Auto
    else:
        from gemma3_core.hf.auto import AutoModelForCausalLM as Auto  # type: ignore[assignment]
        from gemma3_core.int4.quantize import TorchAoConfig

        quantization = TorchAoConfig(32) if program == OURS_INT4 else None

    def load() -> Callable[[int, int], Any]:
        options = {} if quantization is None else {"quantization_config": quantization}
        model: Any = Auto.from_pretrained(path, dtype=torch.bfloat16, device_map=device, **options)
        return lambda read, written: model.generate(
            input_ids=_ids(read).to(device), max_new_tokens=written, do_sample=False
        )

    return load


def _ids(tokens: int) -> torch.Tensor:
    return torch.full((1, tokens), 300)


def main() -> None:
    program, path, prompt_tokens, new_tokens = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    load = loader(program, path, prompt_tokens + new_tokens)
    start = time.perf_counter()
    answer = load()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        answer(prompt_tokens, new_tokens)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory("self")
    print(json.dumps({"load_s": seconds, "peak_gib": peak / 2**30}))


if __name__ == "__main__":
    main()
