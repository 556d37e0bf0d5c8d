"""The mean of checkpoints' weights: `python -m training.average runs/one/last runs/two/last --out runs/mean`.

Of a run before and after its last fine-tuning, the mean does better than either. Configuration, tokenizer and
processor files are the first one's.
"""

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from gemma3_core.weight_files import read_tensors, weight_files, write_tensors
from training.learning.model import DENSE_HEADS


def average(checkpoints: Sequence[Path], out: Path) -> None:
    """Writes a checkpoint of the mean weights, in one file, and of the mean dense heads where each has some.

    Raises ValueError for fewer than two, for checkpoints of other tensors, and where `out` is one of them.
    """
    if len(checkpoints) < 2 or out in checkpoints:
        raise ValueError("Give two checkpoints or more, and a folder beside them to write to.")
    mean = _mean([_weights(folder) for folder in checkpoints])
    shutil.copytree(checkpoints[0], out, dirs_exist_ok=True)
    write_tensors(mean, out, sum(tensor.numel() for tensor in mean.values()))
    heads = [folder / DENSE_HEADS for folder in checkpoints]
    if all(file.exists() for file in heads):
        torch.save(_mean([torch.load(file, weights_only=True) for file in heads]), out / DENSE_HEADS)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in weight_files(folder) for name, tensor in read_tensors(file)}


def _mean(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    shapes = [{name: tensor.shape for name, tensor in state.items()} for state in states]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("The checkpoints have other tensors than the first.")
    return {
        name: torch.stack([state[name].float() for state in states]).mean(dim=0).to(tensor.dtype)
        for name, tensor in states[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        average(arguments.checkpoints, arguments.out)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
