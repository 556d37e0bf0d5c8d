"""Runs every benchmark that this machine can run, prints one table and writes benchmarks/results/NAME.json.

    python -m benchmarks
    python -m benchmarks --llama-cpp
    python -m benchmarks --only 1b --rounds 3 --prompts 512 --rows 1 --no-compile

Needs transformers (tests/requirements.txt) for the comparison; `--llama-cpp` needs llama-cpp-python and gguf. All of it
takes hours on a CPU. Figures are medians, with the lowest and the highest; ratios are above 1 where ours is better, and
the share of the limit is what decode reaches of the bytes, and prefill of the operations, that the machine is measured
to do a second. Speeds on a CPU count as ratios only.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    demo_app,
    language_model,
    limits,
    llama_cpp,
    loading,
    newcomer,
    next_question,
    table,
    vision_language,
)
from benchmarks.timing import machine
from gemma3_core.config.gemma3 import Gemma3Config, Gemma3TextConfig, read_config
from gemma3_core.engine.engine import DEMO_MODEL

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("demo", "1b", "pictures", "4b")


def main() -> None:
    arguments = _arguments()
    wanted = PARTS if arguments.only is None else (arguments.only,)
    if arguments.llama_cpp:
        llama_cpp.require()
    report: dict[str, Any] = {}
    if "demo" in wanted:
        report["demo"] = demo_app.measure(rounds=12) | {
            "next_question": next_question.measure(rounds=12),
            "newcomer": newcomer.measure(rounds=9),
        }
        _print_demo(report["demo"])
    on_cpu = limits.measure(torch.device("cpu"))
    if "1b" in wanted:
        shape = language_model.ONE_BILLION
        if arguments.layers is not None:
            shape = Gemma3TextConfig.from_dict({**language_model.SHAPE, "num_hidden_layers": arguments.layers})
        report["1b"] = one_billion(arguments, on_cpu, shape)
    if "pictures" in wanted:
        config = read_config(DEMO_MODEL)
        assert isinstance(config, Gemma3Config)
        short = (min(arguments.prompts),)
        report["pictures"] = vision_language.measure(
            config, "cpu", on_cpu, short, arguments.new_tokens, arguments.rounds
        )
    if "4b" in wanted and torch.cuda.is_available():
        four, cuda = vision_language.FOUR_BILLION, torch.device("cuda")
        report["4b"] = vision_language.measure(
            four, "cuda", limits.measure(cuda), arguments.prompts, arguments.new_tokens, arguments.rounds
        )
        with tempfile.TemporaryDirectory() as folder:
            vision_language.random_model(four, cuda).save_pretrained(folder)
            report["4b"]["bfloat16"] |= _loading(Path(folder), arguments)
    print("\n".join(table.lines(rows(report))))
    if "4b" in wanted and "4b" not in report:
        print("\n4B shape: not measured, since there is no CUDA device.")
    if arguments.layers is None:
        _save(arguments.name, report)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 4096], help="tokens of the prompts to read")
    parser.add_argument("--rows", type=int, nargs="+", default=list(language_model.ROWS), help="answers at once")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--layers", type=int, help="of the 1B shape, to see soon that all runs; writes no results")
    parser.add_argument("--llama-cpp", action="store_true", help="measure llama.cpp too, with the 1B shape in Q4_0")
    parser.add_argument("--no-compile", action="store_true", help="leave out transformers' compiled step on a CPU")
    parser.add_argument("--name", default="cpu", help="name of the results file")
    return parser.parse_args()


def one_billion(
    arguments: argparse.Namespace,
    machine_limits: limits.Limits,
    config: Gemma3TextConfig,
    backend: str = "inductor",
) -> list[dict[str, Any]]:
    """The 1B shape in each precision beside transformers, and in Q4_0 beside llama.cpp."""
    prompts, new_tokens, rounds = arguments.prompts, arguments.new_tokens, arguments.rounds
    found = [
        language_model.compare(
            dtype,
            prompts,
            new_tokens,
            rounds,
            int4,
            config,
            arguments.rows,
            None if arguments.no_compile else backend,
            machine_limits,
        )
        for dtype, int4 in ((torch.float32, False), (torch.bfloat16, False), (torch.bfloat16, True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        language_model.random_model(config, torch.bfloat16).save_pretrained(folder)
        found[1] |= _loading(Path(folder), arguments)
    if arguments.llama_cpp:
        found.append(llama_cpp.compare_q4_0(config, prompts, new_tokens, rounds, machine_limits))
    return found


def _loading(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    ways = {"ours": (loading.OURS, folder), "transformers": (loading.TRANSFORMERS, folder)}
    return loading.measure(ways, arguments.rounds, min(arguments.prompts))


def rows(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and rows of the table."""
    for precision in report.get("1b", ()):
        for part, figures in precision.items():
            if isinstance(figures, dict):
                yield f"1B, {precision['dtype']}: {part}", figures
    for shape, name in (("pictures", "demo model's shape"), ("4b", "4B")):
        for precision, parts in report.get(shape, {}).items():
            for part, figures in parts.items():
                yield f"{name}, {precision}: {part}", figures


def _save(name: str, report: dict[str, Any]) -> None:
    """Writes the figures, and the machine of each part; parts that were not run this time stay as they were."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machines = {**before.pop("machines", {}), **dict.fromkeys(report, machine())}
    path.write_text(json.dumps({"machines": machines, **before, **report}, indent=2) + "\n", encoding="utf-8")


def _print_demo(figures: dict[str, Any]) -> None:
    print("| demo model, whole app | |\n|---|---|")
    print(f"| page ready after `python app.py` | {figures['page_ready_s']} s |")
    print(f"| first token, one picture (median) | {figures['first_token_s']} s |")
    print(f"| tokens a second (median) | {figures['tokens_per_s']} |")
    print(f"| peak memory | {figures['peak_memory_gib']} GiB |")
    print(f"| first token, int4 | {figures['int4']['first_token_s']} s |")
    print(f"| tokens a second, int4 | {figures['int4']['tokens_per_s']} |")
    new = figures["newcomer"]
    print(f"| first token beside {new['running']} running answers: times as late as alone | {new['times_alone']} |")
    further = figures["next_question"]
    print(
        f"| first token of a further question, {further['reused_tokens']} of {further['prompt_tokens']} tokens reused: "
        f"times faster | {further['ratio']} |\n"
    )


if __name__ == "__main__":
    main()
