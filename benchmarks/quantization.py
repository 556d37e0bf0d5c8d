"""How far int4 is from full precision: KL divergence and top-1 agreement, teacher-forced, for each group size.

    python -m benchmarks.quantization
    python -m benchmarks.quantization --only demo --per-kind 40

Measures the demo model on held-out questions of training.evaluate with their right answers, and the 1B shape with
random weights on a few short prompts. Both precisions read the same tokens. At each position, KL(full || int4) is how
far the next token's distribution has moved, in nats, and top-1 agreement is how often the likeliest token is the same.
Prints tables and writes benchmarks/results/quantization.json.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.language_model import ONE_BILLION, random_model
from benchmarks.timing import machine
from gemma3_core.int4.quantize import GROUP_SIZES, TorchAoConfig, quantized
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.processor import Gemma3Processor
from training.evaluation.dialogues import SEED, questions_of_kind
from training.learning.model import DEMO_MODEL
from training.worlds.registry import WORLDS
from training.worlds.world import DrawnWorld, ReadInCrops

RESULT = Path(__file__).resolve().parent / "results" / "quantization.json"
PROMPTS, PROMPT_TOKENS = 4, 48

Reading = tuple[dict[str, torch.Tensor], slice]
"""Inputs of one forward pass, and the positions at which the next token is compared."""


class Difference:
    """KL divergence and top-1 agreement, collected over positions."""

    def __init__(self) -> None:
        self._kl: list[torch.Tensor] = []
        self._agree: list[torch.Tensor] = []

    def add(self, full: torch.Tensor, int4: torch.Tensor) -> None:
        """Adds both models' logits [positions, vocabulary] at the same positions."""
        p, q = full.double().log_softmax(dim=-1), int4.double().log_softmax(dim=-1)
        self._kl.append((p.exp() * (p - q)).sum(dim=-1))
        self._agree.append(full.argmax(dim=-1) == int4.argmax(dim=-1))

    def report(self) -> dict[str, Any]:
        kl, agree = torch.cat(self._kl), torch.cat(self._agree)
        return {
            "positions": len(kl),
            "kl_mean_nats": round(float(kl.mean()), 5),
            "kl_95th_nats": round(float(kl.quantile(0.95)), 5),
            "top1_agreement": round(float(agree.double().mean()), 4),
        }


def compare(model: Any, readings: list[Reading]) -> dict[str, Any]:
    """For each group size, how far `model` in int4 is from full precision over `readings`."""
    report = {}
    with torch.inference_mode():
        full = [_logits(model, reading) for reading in readings]
        for group_size in GROUP_SIZES:
            int4, difference = quantized(model, TorchAoConfig(group_size)), Difference()
            for logits, reading in zip(full, readings, strict=True):
                difference.add(logits, _logits(int4, reading))
            report[str(group_size)] = difference.report()
    return report


def _logits(model: Any, reading: Reading) -> torch.Tensor:
    inputs, positions = reading
    return model(**inputs, use_cache=False).logits[0, positions]


def answers_of_demo_model(model: Gemma3ForConditionalGeneration, per_kind: int) -> Iterator[Reading]:
    """Held-out questions about single pictures with their right answers; compares the answer's tokens and its end."""
    processor = Gemma3Processor.from_pretrained(DEMO_MODEL)
    options: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    whole = [w for w in WORLDS.values() if isinstance(w, DrawnWorld) and not isinstance(w, ReadInCrops)]
    for kind in (kind for world in whole for kind in world.kinds):
        for picture, question in questions_of_kind(kind, per_kind, "heldout", SEED):
            parts = [{"type": "image", "image": picture}, {"type": "text", "text": question.question}]
            asked: list[dict[str, Any]] = [{"role": "user", "content": parts}]
            answered: list[dict[str, Any]] = [
                *asked,
                {"role": "assistant", "content": [{"type": "text", "text": question.answer}]},
            ]
            start = processor.apply_chat_template(asked, add_generation_prompt=True, **options)["input_ids"].shape[1]
            inputs = dict(processor.apply_chat_template(answered, **options))
            end = next(
                i
                for i in range(start, inputs["input_ids"].shape[1])
                if int(inputs["input_ids"][0, i]) in model.generation_config.stop_ids
            )
            # Encoded once, since both precisions share the encoder.
            with torch.inference_mode():
                soft_tokens = model.get_image_features(inputs.pop("pixel_values")).pooler_output
            yield {**inputs, "soft_tokens": soft_tokens}, slice(start - 1, end)


def random_prompts() -> list[Reading]:
    """A few short prompts of random ids."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 250_000, (PROMPTS, 1, PROMPT_TOKENS), generator=generator)
    return [({"input_ids": prompt}, slice(None)) for prompt in ids]


def table(title: str, report: dict[str, Any]) -> str:
    """A Markdown table of one model's report."""
    positions = next(iter(report.values()))["positions"]
    lines = [f"| {title} ({positions:,} positions) | KL, mean (nats) | KL, 95th percentile | same top-1 token |"]
    lines.append("|---|---|---|---|")
    for group_size, row in report.items():
        lines.append(
            f"| int4, group size {group_size} | {row['kl_mean_nats']} | {row['kl_95th_nats']} "
            f"| {row['top1_agreement']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("demo", "1b"))
    parser.add_argument("--per-kind", type=int, default=40, help="questions of each kind for the demo model")
    arguments = parser.parse_args()
    report: dict[str, Any] = {"machine": machine()}
    if arguments.only in (None, "demo"):
        model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype="float32")
        report["demo"] = compare(model, list(answers_of_demo_model(model, arguments.per_kind)))
        print(table("demo model, right answers to held-out questions", report["demo"]) + "\n")
    if arguments.only in (None, "1b"):
        report["1b"] = compare(random_model(ONE_BILLION, torch.float32), random_prompts())
        print(table("1B shape, random weights and prompts", report["1b"]))
    _save(report)


def _save(report: dict[str, Any]) -> None:
    """Writes the figures; parts that were not run this time stay as they were."""
    before = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    RESULT.write_text(json.dumps({**before, **report}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
