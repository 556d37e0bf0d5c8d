"""Measures how often the demo model is right, by kind of question, on pictures and words it never trained on.

    python -m training.evaluate
    python -m training.evaluate --model runs/demo/last --per-kind 100 --split train
    python -m training.evaluate --int4 --json benchmarks/results/answers.json
    python -m training.evaluate --kinds which_more,follow_up,one_word
    python -m training.evaluate --kinds out_of_world
    python -m training.evaluate --closer --kinds chart_tallest,chart_order
    python -m training.evaluate --renderer browser --per-kind 60
    python -m training.evaluate --phrasings training/fresh_phrasings.json --per-kind 40

Seeds, phrasings, eight pairs of shape and color (every picture of shapes has one) and one in five texts (every sign
has one) are held out. All renderers draw the pictures at full size, and the image processor reads them. The model
answers greedily; an answer is right if it says its key word and no other. `--renderer browser` draws with a program
that drew no training picture. `--phrasings` replaces the held-out sentences by those of a file, without the ones that
training has too; the author of fresh_phrasings.json had seen neither.

Follow-ups are asked turn by turn after the model's own answers, and each one counts. Under a system prompt an answer
must also have the form that the prompt asks for. Boards are asked about twice: with pan & scan the answer must be
right, without it the answer must say that the writing is too small. One more row counts how often the model gives the
true price all the same. With `--closer` the model looks at all pictures closer instead: it gets an even tiling of each
as well, as the page's "Look closer" sends it.

The questions of evaluation/out_of_world.json, which training never reads, are asked once each about every sort of
picture, alone and in conversations; only the one honest sentence is right. The last row counts the answers of all kinds
that did not end by themselves.
"""

import argparse
import json
from contextlib import ExitStack
from pathlib import Path

import torch

from training.drawing.rendering import RENDERERS
from training.evaluation import out_of_world
from training.evaluation.browser_drawing import BROWSER, Browser
from training.evaluation.dialogues import SEED, Renderer, ask_in_the_words_of
from training.evaluation.trials import NEW_TOKENS, Examinee, accuracies, evaluate
from training.learning.model import DEMO_MODEL
from training.worlds.registry import ALL_KINDS, kinds_named

UNENDED = f"all kinds: answers that reach {NEW_TOKENS} tokens (should be rare)"


def table(shares: dict[str, dict[str, float]], per_kind: int) -> str:
    """A Markdown table of accuracies in percent, with one column per kind of weights."""
    lines = [f"| kind of question ({per_kind} each) | {' | '.join(shares)} |", "|---" * (1 + len(shares)) + "|"]
    for kind in next(iter(shares.values())):
        right = " | ".join(f"{of_weights[kind]:.1%}" for of_weights in shares.values())
        lines.append(f"| {kind.replace('_', ' ')} | {right} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO_MODEL)
    parser.add_argument("--per-kind", type=int, default=300)
    parser.add_argument("--split", choices=("train", "heldout"), default="heldout")
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--kinds", help="kinds of question, separated by commas; default: all")
    asked.add_argument("--phrasings", type=Path, help="ask the questions of this JSON file")
    parser.add_argument(
        "--renderer", choices=(*RENDERERS, BROWSER), help="draw with this one only; default: all but the browser"
    )
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--closer", action="store_true", help="with an even tiling of each picture")
    parser.add_argument("--int4", action="store_true", help="also with int4 weights, in a second column")
    parser.add_argument("--wrong", type=int, default=0, help="show this many wrong answers of each kind")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    kinds: tuple[str, ...] = ALL_KINDS
    beyond = arguments.split == "heldout" and not arguments.phrasings  # also what out_of_world asks
    if arguments.kinds:
        names = arguments.kinds.split(",")
        beyond = out_of_world.NAME in names
        names = [name for name in names if name != out_of_world.NAME]
        try:
            kinds = kinds_named(",".join(names)) if names else ()
        except ValueError as error:
            parser.error(str(error))
    if arguments.phrasings:
        if arguments.split != "heldout":
            parser.error("--phrasings replaces held-out phrasings. Leave --split at heldout.")
        try:
            kinds = ask_in_the_words_of(arguments.phrasings)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    with ExitStack() as stack:
        renderer = stack.enter_context(Browser()) if arguments.renderer == BROWSER else arguments.renderer
        _ask_all(arguments, kinds, beyond, renderer)


def _ask_all(arguments: argparse.Namespace, kinds: tuple[str, ...], beyond: bool, renderer: Renderer) -> None:
    """Asks all questions, `beyond` the model's world too; prints the table and writes the figures."""
    split, seed = arguments.split, arguments.seed
    shares = {}
    for int4 in (False, True)[: 1 + arguments.int4]:
        examinee = Examinee(arguments.model, arguments.device, arguments.dtype, int4, arguments.closer)
        with torch.inference_mode():
            trials = evaluate(examinee, arguments.per_kind, split, seed, renderer, kinds)
            honest = out_of_world.ask(examinee, seed, renderer) if beyond else []
        weights = ("int4" if int4 else arguments.dtype) + ", a closer look" * arguments.closer
        shares[weights] = accuracies(trials) | out_of_world.shares(honest)
        trials += honest
        shares[weights][UNENDED] = sum(trial.cut_off for trial in trials) / len(trials)
        for row in dict.fromkeys(trial.row for trial in trials):
            for trial in [t for t in trials if t.row == row and not t.right][: arguments.wrong]:
                question, wanted = trial.question.question, trial.wanted
                print(f"{weights}, {trial.row}: {question!r} expected {wanted!r}, got {trial.answer!r}")
    print(table(shares, arguments.per_kind))
    if arguments.json:
        figures = {"per_kind": arguments.per_kind, "split": split, "seed": seed, "right": shares}
        figures |= {"renderer": arguments.renderer} if arguments.renderer else {}
        figures |= {"phrasings": arguments.phrasings.name} if arguments.phrasings else {}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
