"""How often the demo model is right, kind by kind, on pictures and words it never trained on.

    python -m training.evaluate
    python -m training.evaluate --model runs/demo/last --per-kind 100 --split train

Held out are the seeds, the phrasings, and eight pairs of shape and color, one of which is in every
picture. Pictures are drawn at their true size by each of the renderers and go through the image
processor; answers are greedy; right means the key word of the answer is right and no other is said.
"""

import argparse
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image

from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.pretrained import pick_device
from gemma3_core.processor import Gemma3Processor
from training.drawing import draw
from training.questions import KINDS, Question, ask, is_right
from training.scenes import random_scene

DEMO_MODEL = Path(__file__).resolve().parent.parent / "assets" / "demo_model"
SEED = 20_000_003
NEW_TOKENS = 24
BATCH = 24


@dataclass(frozen=True)
class Trial:
    """One question about one picture, and whether the answer was right."""

    question: Question
    answer: str

    @property
    def right(self) -> bool:
        return is_right(self.question.kind, self.question.key, self.answer)


class Examinee:
    """A checkpoint that answers single questions about single pictures, a batch at a time."""

    def __init__(self, folder: Path, device: str = "auto", dtype: str = "float32"):
        where = pick_device(device)
        self._model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=dtype, device_map=where)
        self._processor = Gemma3Processor.from_pretrained(folder)

    def answer(self, pictures: list[Image], questions: list[str], pan_and_scan: bool = False) -> list[str]:
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": question}]}]
            for picture, question in zip(pictures, questions, strict=True)
        ]
        inputs = self._processor.apply_chat_template(
            chats,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            padding=True,
            padding_side="left",
            do_pan_and_scan=pan_and_scan,
        ).to(self._model.device, self._model.dtype)
        ids = self._model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        return self._processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def questions_of_kind(
    kind: str, number: int, split: str, seed: int, renderer: str | None = None
) -> Iterator[tuple[Image, Question]]:
    """`number` questions of one kind, each about a picture of its own."""
    rng = random.Random(f"{seed}/{split}/{kind}")
    found = 0
    while found < number:
        scene = random_scene(rng, split)
        for question in ask(scene, rng, split, 1, kinds=(kind,)):
            found += 1
            yield draw(scene, rng, renderer=renderer), question


def evaluate(
    examinee: Examinee, per_kind: int, split: str = "heldout", seed: int = SEED, renderer: str | None = None
) -> list[Trial]:
    """Asks `per_kind` questions of each kind."""
    trials = []
    for kind in KINDS:
        asked = list(questions_of_kind(kind, per_kind, split, seed, renderer))
        for start in range(0, len(asked), BATCH):
            pictures, questions = zip(*asked[start : start + BATCH], strict=True)
            answers = examinee.answer(list(pictures), [q.question for q in questions])
            trials += [Trial(q, answer) for q, answer in zip(questions, answers, strict=True)]
    return trials


def accuracies(trials: list[Trial]) -> dict[str, float]:
    """Share of right answers of each kind, 0 to 1."""
    by_kind = {kind: [t.right for t in trials if t.question.kind == kind] for kind in KINDS}
    return {kind: sum(right) / len(right) for kind, right in by_kind.items() if right}


def table(shares: dict[str, float], per_kind: int) -> str:
    """A Markdown table of accuracies in percent."""
    lines = [f"| kind of question ({per_kind} each) | right |", "|---|---|"]
    lines += [f"| {kind.replace('_', ' ')} | {share:.1%} |" for kind, share in shares.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--per-kind", type=int, default=300)
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    parser.add_argument("--renderer", help="draw with this one only; by default each has its share")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--wrong", type=int, default=0, help="show this many wrong answers of each kind")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    examinee = Examinee(arguments.model, arguments.device)
    with torch.inference_mode():
        trials = evaluate(examinee, arguments.per_kind, arguments.split, arguments.seed, arguments.renderer)
    shares = accuracies(trials)
    print(table(shares, arguments.per_kind))
    for kind in KINDS:
        for trial in [t for t in trials if t.question.kind == kind and not t.right][: arguments.wrong]:
            print(f"{kind}: {trial.question.question!r} expected {trial.question.key!r}, got {trial.answer!r}")
    if arguments.json:
        figures = {"per_kind": arguments.per_kind, "split": arguments.split, "seed": arguments.seed, "right": shares}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
