"""Draws docs/speed.svg, the chart of docs/performance.md, from the results in benchmarks/results.

python -m benchmarks.chart
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

ROOT = Path(__file__).resolve().parent.parent
RESULTS, CHART = ROOT / "benchmarks" / "results", ROOT / "docs" / "speed.svg"
PARTS = ("prefill", "decode", "sampled decode")
_COLORS = ("#7c8db5", "#e07a3f", "#3a9d7c")


def committed() -> list[dict[str, Any]]:
    """The figures in benchmarks/results of the 1B shape beside transformers."""
    rows = json.loads((RESULTS / "cpu.json").read_text(encoding="utf-8"))["1b"]
    return [row for row in rows if "ratio" in row["prefill"]]


def ratios(results: list[dict[str, Any]]) -> dict[str, list[float]]:
    """For each part the ratios ours / transformers, in the order of the precisions."""
    return {part: [row[part]["ratio"] for row in results] for part in PARTS}


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Bars in groups, one for each precision; the line at 1 is transformers."""
    names = [row["dtype"].split(",")[0] for row in results]
    figure, axes = pyplot.subplots(figsize=(7, 2.8), layout="constrained")
    for number, (part, values) in enumerate(ratios(results).items()):
        bars = axes.bar([place + 0.27 * (number - 1) for place in range(len(names))], values, 0.25, label=part)
        for bar in bars:
            bar.set_color(_COLORS[number])
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("ours / transformers")
    axes.set_title("Speed of the 1B shape on two cores", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper left", bbox_to_anchor=(0, 1.02))
    axes.set_ylim(0, 1.25 * max(max(values) for values in ratios(results).values()))
    # Text stays text, and the same results give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "speed"}):
        figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    draw(committed(), CHART)
    print(f"Wrote {CHART.relative_to(ROOT)}.")


if __name__ == "__main__":
    main()
