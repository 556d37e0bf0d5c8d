"""Runs every benchmark that this machine can run, prints a table and writes benchmarks/results/NAME.json.

    python -m benchmarks
    python -m benchmarks --only demo --name laptop

Needs transformers (tests/requirements.txt) for the comparison. Speeds on a CPU count as ratios only.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from benchmarks import demo_app, language_model, next_question, vision_language
from benchmarks.timing import machine

RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("demo", "1b", "4b"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--name", default="cpu", help="name of the results file")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine()}
    if arguments.only in (None, "demo"):
        report["demo"] = demo_app.measure(rounds=12) | {"next_question": next_question.measure(rounds=12)}
        _print_demo(report["demo"])
    if arguments.only in (None, "1b"):
        report["1b"] = [
            language_model.compare(dtype, arguments.prompt_tokens, arguments.new_tokens, arguments.rounds)
            for dtype in (torch.float32, torch.bfloat16)
        ]
        report["1b"] += [
            language_model.compare(
                torch.bfloat16, arguments.prompt_tokens, arguments.new_tokens, arguments.rounds, int4=True
            )
        ]
        _print_one_billion(report["1b"])
    if arguments.only in (None, "4b"):
        if torch.cuda.is_available():
            report["4b"] = vision_language.measure(rounds=arguments.rounds)
        _print_four_billion(report.get("4b"))
    _save(arguments.name, report)


def _save(name: str, report: dict[str, Any]) -> None:
    """Writes the figures; parts that were not run this time stay as they were."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**before, **report}, indent=2) + "\n", encoding="utf-8")


def _print_demo(figures: dict[str, Any]) -> None:
    print("| demo model, whole app | |\n|---|---|")
    print(f"| page ready after `python app.py` | {figures['page_ready_s']} s |")
    print(f"| first token, one picture (median) | {figures['first_token_s']} s |")
    print(f"| tokens a second (median) | {figures['tokens_per_s']} |")
    print(f"| peak memory | {figures['peak_memory_gib']} GiB |")
    print(f"| first token, int4 | {figures['int4']['first_token_s']} s |")
    print(f"| tokens a second, int4 | {figures['int4']['tokens_per_s']} |")
    further = figures["next_question"]
    print(
        f"| first token of a further question, {further['reused_tokens']} of {further['prompt_tokens']} tokens reused: "
        f"times faster | {further['ratio']} |\n"
    )


def _print_one_billion(reports: list[dict[str, Any]]) -> None:
    print("| 1B shape, tokens a second | ours | transformers | ours / transformers |\n|---|---|---|---|")
    for report in reports:
        for part in ("prefill", "decode", "sampled decode"):
            row = report[part]
            print(f"| {part}, {report['dtype']} | {row['ours']} | {row['transformers']} | {row['ratio']} |")
        row = report["together"]
        print(
            f"| {row['answers']} answers together, {report['dtype']} | {row['ours']} ({row['times_one']} x one) | | |"
        )


def _print_four_billion(report: dict[str, Any] | None) -> None:
    if report is None:
        print("\n4B shape: not measured, since there is no CUDA device.")
        return
    print(
        f"\n| 4B shape (a copy moves {report['copy_gb_per_s']} GB/s) | ours | transformers | static cache, compiled |"
    )
    print("|---|---|---|---|")
    for precision in ("bfloat16", "int4"):
        for part, row in report[precision].items():
            name = part.replace("_", " ")
            print(f"| {name}, {precision} | {row['ours']} | {row['default']} | {row['static']} |")


if __name__ == "__main__":
    main()
