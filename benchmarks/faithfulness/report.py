"""Means over the cases with confidence intervals, medians of seconds, and the table of them."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from benchmarks.faithfulness.methods import EVERY_PICTURE, METHODS, OURS

COLUMNS = {
    "insertion": "insertion",
    "deletion": "deletion",
    "pointing_box": "pointing, box",
    "pointing_mask": "pointing, mask",
    "energy": "energy in mask",
    "seconds": "seconds (median)",
}
_RESAMPLES = 2000
AT_ONCE = "reached at once"
"""What is left to reach: see `scores.reached_at_once`."""


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each method and score, the mean and its 95 % interval (bootstrap over cases), and the median of its seconds,
    which a machine's stalls do not move; what was left out, and why.

    "every" is about all pictures and the methods that were scored for each; "part" is about the pictures that all
    methods were scored for.
    """
    kept = [record for record in records if "methods" in record]
    part = [record for record in kept if record["methods"].keys() >= METHODS.keys()]
    sanity = [record["sanity"] for record in part if "sanity" in record]
    return {
        "left_out": dict(Counter(record["left_out"] for record in records if "left_out" in record)),
        "every": _means(kept, (AT_ONCE, *EVERY_PICTURE)),
        "part": _means(part, (AT_ONCE, *METHODS)),
        "worlds": {
            world: _means([record for record in kept if record["world"] == world], (AT_ONCE, *EVERY_PICTURE))
            for world in dict.fromkeys(record["world"] for record in kept)
        },
        "sanity_pictures": len(sanity),
        "sanity": {
            name: np.mean([one[name] for one in sanity], axis=0).round(3).tolist()
            for name in (sanity[0] if sanity else ())
        },
    }


def _means(records: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The pictures of each world, the means of each method, and by how much ours is larger, picture by picture."""
    scores = {name: [record["methods"][name] for record in records] for name in names}
    differences = {}
    for name in (name for name in names if name not in (OURS, AT_ONCE)):
        pairs = list(zip(scores[OURS], scores[name], strict=True))
        differences[name] = {
            key: interval([one[key] - other[key] for one, other in pairs]) for key in ("insertion", "deletion") if pairs
        }
    return {
        "pictures": dict(Counter(record["world"] for record in records)),
        "methods": {name: _intervals(found) for name, found in scores.items()},
        "ours_minus": differences,
    }


def _intervals(scores: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    keys = dict.fromkeys(key for one in scores for key in one)
    found = {key: [one[key] for one in scores if key in one] for key in keys}
    return {key: _median(values) if key == "seconds" else interval(values) for key, values in found.items()}


def _median(values: Sequence[float]) -> dict[str, float]:
    """With the least and the most."""
    return {"median": round(median(values), 4), "least": min(values), "most": max(values)}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and the 2.5th and 97.5th percentile of the means of resampled values."""
    rng, found = np.random.default_rng(0), np.array(values, dtype=float)
    means = rng.choice(found, size=(_RESAMPLES, len(found))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": round(float(found.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def tables(figures: dict[str, Any]) -> str:
    """The figures as Markdown: all pictures, then the part with all methods and the sanity check."""
    parts = [table(figures["every"]), table(figures["part"], figures["sanity"])]
    return "\n\n".join([*parts, f"left out: {figures['left_out']}, sanity: {figures['sanity_pictures']} pictures"])


def table(means: dict[str, Any], sanity: dict[str, list[float]] | None = None) -> str:
    """The means as a Markdown table; the last column is the sanity check with a third, two thirds and all of the layers
    randomised."""
    heads = [*COLUMNS.values(), *([] if sanity is None else ["sanity"])]
    lines = [f"| {means['pictures']} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name, scores in means["methods"].items():
        cells = [_cell(scores.get(key), key) for key in COLUMNS]
        if sanity is not None:
            cells.append(", ".join(f"{step:.2f}" for step in sanity.get(name, ())))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(score: dict[str, float] | None, key: str) -> str:
    if score is None:
        return ""
    if key == "seconds":
        return f"{score['median']:.2f}"
    if key.startswith("pointing") or key == "energy":
        return f"{score['mean']:.0%} ({score['low']:.0%} to {score['high']:.0%})"
    return f"{score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
