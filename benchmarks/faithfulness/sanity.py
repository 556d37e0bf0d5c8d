"""The sanity check of Adebayo et al. 2018 (arXiv 1810.03292): a map that stays the same when the weights are replaced
by noise, layer by layer from the top, did not come from what the model learned."""

import copy

import numpy as np
import torch

from benchmarks.faithfulness.methods import FLOOR, METHODS
from benchmarks.faithfulness.scores import rank_correlation
from benchmarks.faithfulness.subject import Subject

LEFT_OUT = (*FLOOR, "occlusion in a grid")
"""The floor knows no weights; occlusion takes too long, and what it does is the scores' own method."""


def correlations(subject: Subject, parts: int = 3) -> dict[str, list[float]]:
    """For each method, the rank correlation of its map with itself as a third, two thirds and all of the decoder's
    layers are noise, from the top."""
    methods = {name: method for name, method in METHODS.items() if name not in LEFT_OUT}
    before = {name: method(subject) for name, method in methods.items()}
    model, whole = subject.model, copy.deepcopy(subject.model)
    found: dict[str, list[float]] = {name: [] for name in methods}
    layers = list(whole.model.decoder.layers)
    subject.model = whole
    try:
        for part in np.array_split(np.arange(len(layers))[::-1], parts):
            for number in part:
                _randomise(layers[number], seed=int(number))
            for name, method in methods.items():
                found[name].append(rank_correlation(before[name], method(subject)))
    finally:
        subject.model = model
    return found


@torch.no_grad()
def _randomise(layer: torch.nn.Module, seed: int) -> None:
    """Replaces each weight by noise of the same mean and deviation."""
    noise = torch.Generator().manual_seed(seed)
    for weight in layer.parameters():
        drawn = torch.randn(weight.shape, generator=noise) * weight.float().std() + weight.float().mean()
        weight.copy_(drawn.to(weight))
