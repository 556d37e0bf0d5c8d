"""Means over the cases with confidence intervals, and the table of them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.faithfulness.methods import METHODS

COLUMNS = {
    "insertion": "insertion",
    "deletion": "deletion",
    "pointing_box": "pointing, box",
    "pointing_mask": "pointing, mask",
    "energy": "energy in mask",
    "seconds": "seconds",
}
_RESAMPLES = 2000


def summary(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For each method and score, the mean and its 95 % interval (bootstrap over cases); what was left out, and why."""
    kept = [record for record in records if "methods" in record]
    methods = {}
    for name in METHODS:
        scores = [record["methods"][name] for record in kept if name in record["methods"]]
        if not scores:
            continue
        keys = dict.fromkeys(key for one in scores for key in one)
        methods[name] = {key: interval([one[key] for one in scores if key in one]) for key in keys}
    sanity = [record["sanity"] for record in kept if "sanity" in record]
    return {
        "pictures": dict(Counter(record["world"] for record in kept)),
        "left_out": dict(Counter(record["left_out"] for record in records if "left_out" in record)),
        "methods": methods,
        "sanity_pictures": len(sanity),
        "sanity": {
            name: np.mean([one[name] for one in sanity], axis=0).round(3).tolist()
            for name in (sanity[0] if sanity else ())
        },
    }


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and the 2.5th and 97.5th percentile of the means of resampled values."""
    rng, found = np.random.default_rng(0), np.array(values, dtype=float)
    means = rng.choice(found, size=(_RESAMPLES, len(found))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {"mean": round(float(found.mean()), 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def table(figures: dict[str, Any]) -> str:
    """The figures as a Markdown table; the last column is the sanity check with all layers randomised."""
    lines = [
        f"| method | {' | '.join(COLUMNS.values())} | sanity |",
        "|---|" + "---|" * (len(COLUMNS) + 1),
    ]
    for name, scores in figures["methods"].items():
        cells = [_cell(scores.get(key), key) for key in COLUMNS]
        sanity = figures["sanity"].get(name)
        lines.append(f"| {name} | {' | '.join(cells)} | {'' if sanity is None else f'{sanity[-1]:.2f}'} |")
    return "\n".join(lines)


def _cell(score: dict[str, float] | None, key: str) -> str:
    if score is None:
        return ""
    if key == "seconds":
        return f"{score['mean']:.2f}"
    if key.startswith("pointing") or key == "energy":
        return f"{score['mean']:.0%} ({score['low']:.0%} to {score['high']:.0%})"
    return f"{score['mean']:.3f} ({score['low']:.3f} to {score['high']:.3f})"
