"""How faithful a map is: insertion and deletion curves, the pointing game, and the energy inside the object."""

import numpy as np
import torch
from PIL import Image

from benchmarks.faithfulness.subject import Subject

FRACTIONS = (0.0, 0.02, 0.06, 0.15, 0.3, 0.6, 1.0)
"""Of the pixels that have come or gone; more of the first ones, where curves are steep."""


def scores_of(subject: Subject, heat: np.ndarray) -> dict[str, float]:
    """All scores of a map [G, G], of soft tokens or finer; those about the object only where its outline is known.

    Insertion and deletion (Petsiuk et al. 2018, arXiv 1806.07421) are areas under the word's probability as the map's
    pixels come or go, largest first; what is not there is blurred or has the picture's mean color.
    """
    pixels = upsampled(heat, subject.side)
    scores = curves(subject, pixels)
    mask = subject.case.mask(subject.side)
    if mask is None or not mask.any():
        return scores
    row, column = np.unravel_index(int(pixels.argmax()), pixels.shape)
    rows, columns = np.nonzero(mask)
    positive = np.clip(pixels - min(0.0, float(pixels.max())), 0.0, None)
    return scores | {
        "pointing_box": float(rows.min() <= row <= rows.max() and columns.min() <= column <= columns.max()),
        "pointing_mask": float(mask[row, column]),
        "energy": float(positive[mask].sum() / positive.sum()) if positive.sum() > 0 else float(mask.mean()),
    }


def curves(subject: Subject, pixels: np.ndarray) -> dict[str, float]:
    """Insertion and deletion for each base, and their means."""
    order = np.argsort(-pixels, axis=None, kind="stable")
    places = np.empty(order.size)
    places[order] = np.arange(order.size)
    rank = torch.from_numpy(places.reshape(pixels.shape) / order.size)
    made = []
    for base in subject.bases.values():
        for fraction in FRACTIONS[1:-1]:
            top = rank < fraction
            made += [torch.where(top, subject.pixels, base), torch.where(top, base, subject.pixels)]
    ends = subject.ends()
    found = subject.probabilities(torch.stack(made)).view(len(subject.bases), len(FRACTIONS) - 2, 2).double().numpy()
    scores = {}
    for number, name in enumerate(subject.bases):
        inserted = np.array([ends[name], *found[number, :, 0], ends["whole"]])
        deleted = np.array([ends["whole"], *found[number, :, 1], ends[name]])
        scores[f"insertion_{name}"] = float(np.trapezoid(inserted, FRACTIONS))
        scores[f"deletion_{name}"] = float(np.trapezoid(deleted, FRACTIONS))
    for kind in ("insertion", "deletion"):
        scores[kind] = float(np.mean([scores[f"{kind}_{name}"] for name in subject.bases]))
    return scores


def reached_at_once(subject: Subject) -> dict[str, float]:
    """Insertion and deletion of a word that is as likely as with the whole picture, or with none of it, from the first
    step of the curves on: what is left to reach. Single maps can go beyond."""
    ends, step = subject.ends(), FRACTIONS[1] / 2
    without = float(np.mean([ends[name] for name in subject.bases]))
    return {
        "insertion": (1 - step) * ends["whole"] + step * without,
        "deletion": step * ends["whole"] + (1 - step) * without,
    }


def upsampled(heat: np.ndarray, side: int) -> np.ndarray:
    """A map [G, G], of soft tokens or finer, interpolated to [side, side] pixels."""
    grid = Image.fromarray(np.asarray(heat, dtype=np.float32))
    return np.asarray(grid.resize((side, side), Image.Resampling.BILINEAR))


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two maps; 0 where one of them is flat."""
    a, b = (np.argsort(np.argsort(heat, axis=None, kind="stable")).astype(float) for heat in (one, other))
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
