"""Trains the demo model in three stages: the dense loss, the decoder alone, then the whole model.

    python -m training.train --out runs/demo --crowds 0.25 --dense-minutes 30 --decoder-minutes 20 --minutes 60
    python -m training.train --out runs/more --resume runs/demo/last --minutes 60
    python -m training.train --out runs/signs --resume runs/demo/last --signs 0.3 --two-lines 0.1 --minutes 60
    python -m training.train --out runs/closer --resume runs/signs/last --closer 0.5 --frozen-layers 6 --charts 0.3 \\
        --decoder-minutes 90 --minutes 0
    python -m training.train --out runs/gpu --resume runs/signs/last --batch 256 --workers 15 --int4 0.4 --minutes 20

It computes in float32 on a CPU and in bfloat16 on CUDA. `--workers` processes draw the pictures: on a GPU, use one
fewer than the machine has cores. Every few minutes it writes a checkpoint of the averaged weights, in the Hub's layout,
to OUT/last. `--resume` loads a checkpoint's weights and tokenizer, and starts with a fresh optimiser. `--closer` is for
the stages with answers. `--frozen-layers` shortens the steps of the decoder's stage, which then keeps all tokens of its
conversations in memory, 512 bytes each.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from training.learning.batches import Mix, Share
from training.learning.trainer import Settings, Trainer

_WORLDS = {  # all but scenes, with the option for the difficulty of their easiest pictures
    "signs": "easiest_sign",
    "two_lines": "easiest_sign",
    "charts": "easiest_chart",
    "boards": "easiest_board",
    "elsewhere": None,
    "pairs": "easiest",
    "follow_ups": "easiest",
    "system_prompts": "easiest",
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and the log")
    parser.add_argument("--resume", type=Path, help="checkpoint folder to continue from")
    parser.add_argument("--dense-minutes", type=float, default=0.0, help="of the dense loss alone")
    parser.add_argument("--decoder-minutes", type=float, default=0.0, help="of answers with a frozen encoder")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the whole model")
    parser.add_argument(
        "--decoder-pictures",
        type=int,
        default=20_000,
        help="pictures encoded once for the decoder's stage; 0: new ones in each step",
    )
    parser.add_argument("--decoder-questions", type=int, default=2, help="questions about each of them")
    parser.add_argument(
        "--frozen-layers", type=int, default=0, help="the decoder's first ones, which its own stage leaves as they are"
    )
    parser.add_argument("--batch", type=int, default=48, help="conversations in a step")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--fall", type=float, default=0.35, help="share of each stage, at its end, in which the rate falls to 0"
    )
    parser.add_argument(
        "--int4", type=_share, default=0.0, help="share of each stage, at its end, with the decoder in int4"
    )
    for world in _WORLDS:
        parser.add_argument(_flag(world), type=_share, default=0.0, help="share of the conversations")
    parser.add_argument(
        "--asides", type=_share, default=0.0, help="share of the conversations with questions about something else"
    )
    parser.add_argument(
        "--closer", type=_share, default=0.0, help="share of the batches with answers that look closer, with crops"
    )
    parser.add_argument(
        "--crowds",
        type=_share,
        default=0.0,
        help="share of the dense stage's pictures, and of the batches with answers",
    )
    parser.add_argument(
        "--easiest", type=_share, default=1.0, help="difficulty of the easiest scenes; 1 is all of them"
    )
    for world in ("sign", "chart", "board"):
        parser.add_argument(f"--easiest-{world}", type=_share, default=1.0, help=f"difficulty of the easiest {world}s")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args(argv)
    if arguments.decoder_questions < 1:
        parser.error(f"--decoder-questions is {arguments.decoder_questions}; expected 1 or more")
    if sum(getattr(arguments, world) for world in _WORLDS) > 1.0 + 1e-9:
        parser.error("the shares of the worlds come to more than 1")
    return arguments


def _share(text: str) -> float:
    share = float(text)
    if not 0.0 <= share <= 1.0:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return share


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def settings_of(arguments: argparse.Namespace) -> Settings:
    names = ("out", "resume", "device", "batch", "workers", "learning_rate", "fall", "int4", "frozen_layers", "seed")
    return Settings(**{name: getattr(arguments, name) for name in names})


def mix_of(arguments: argparse.Namespace) -> Mix:
    """The worlds in the shares that the arguments ask for; scenes make up the rest."""
    shares = [
        Share(world, getattr(arguments, world), getattr(arguments, easiest) if easiest else 1.0)
        for world, easiest in _WORLDS.items()
    ]
    scenes = Share("scenes", round(1.0 - sum(share.weight for share in shares), 9), arguments.easiest)
    return Mix(
        worlds=tuple(share for share in (scenes, *shares) if share.weight > 0),
        asides=arguments.asides,
        crowded=arguments.crowds,
        closer=arguments.closer,
    )


def dense_mix_of(arguments: argparse.Namespace) -> Mix:
    """The mix for the dense stage: no questions, and a share of crowds."""
    mix = mix_of(arguments)
    worlds = [replace(share, weight=share.weight * (1.0 - arguments.crowds)) for share in mix.worlds]
    shares = (*worlds, Share("crowds", arguments.crowds))
    known = tuple(share for share in shares if share.weight > 0)
    return replace(mix, worlds=known, questions=0, unnamed=0.6, crowded=0.0, closer=0.0)


def main() -> None:
    arguments = parse()
    trainer, mix = Trainer(settings_of(arguments)), mix_of(arguments)
    if arguments.dense_minutes:
        trainer.run_stage("dense", arguments.dense_minutes, trainer.batches(dense_mix_of(arguments)))
    if arguments.decoder_minutes:
        asked = replace(mix, questions=arguments.decoder_questions)
        trainer.run_decoder_stage(arguments.decoder_minutes, asked, arguments.decoder_pictures)
    if arguments.minutes:
        trainer.run_stage("joint", arguments.minutes, trainer.batches(mix))


if __name__ == "__main__":
    main()
