"""Replaces the demo model by a trained checkpoint, or by the mean of several, in bfloat16.

    python -m training.ship runs/demo/last
    python -m training.ship runs/demo/last runs/more/last runs/more/last --out runs/mean

The second command writes a mean to another folder, to be evaluated there; a checkpoint given twice counts twice. The
mean of the weights before and after a last stage often does better than either. Tokenizer files come from the first
checkpoint, if it has any. The model card is not changed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from gemma3_core import Gemma3ForConditionalGeneration
from training.learning.model import DEMO_MODEL, TOKENIZER_FILES, copy_settings

MOST_BYTES = 9_000_000
"""The largest file in git."""
MOST_IN_ALL = 30_000_000
"""Bytes of the weights."""
_SHARD_BYTES = MOST_BYTES - 200_000  # the rest is for a file's header


def ship(sources: Sequence[Path], target: Path = DEMO_MODEL) -> None:
    """Writes config, weights (in files of at most MOST_BYTES), tokenizer and processor files to `target`.

    Raises ValueError for weights that are too large, and for checkpoints whose tensors differ.
    """
    model = _mean(sources).to(torch.bfloat16)
    size = sum(parameter.nbytes for parameter in model.parameters())
    if size > MOST_IN_ALL:
        raise ValueError(f"The weights take {size:,} bytes, more than {MOST_IN_ALL:,}. Ship a smaller model.")
    model.save_pretrained(target, max_shard_size=_SHARD_BYTES)
    for file in target.glob("*.safetensors"):
        file.chmod(0o644)
    for name in TOKENIZER_FILES:
        if (sources[0] / name).exists():
            (target / name).write_bytes((sources[0] / name).read_bytes())
    copy_settings(target)


@torch.no_grad()
def _mean(sources: Sequence[Path]) -> Gemma3ForConditionalGeneration:
    models = [Gemma3ForConditionalGeneration.from_pretrained(source, dtype="float32") for source in sources]
    states = [dict(model.named_parameters()) for model in models]
    shapes = [{name: value.shape for name, value in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("A checkpoint has other tensors than the first. Give checkpoints of one model.")
    for name, value in states[0].items():
        value.copy_(torch.stack([state[name] for state in states]).mean(dim=0))
    return models[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=DEMO_MODEL)
    arguments = parser.parse_args()
    try:
        ship(arguments.checkpoints, arguments.out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
