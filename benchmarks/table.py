"""The table of `python -m benchmarks`: each part's figures with their spread, and how many times better ours is."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

OTHERS = {"transformers": "transformers", "static": "static, compiled", "llama.cpp": "llama.cpp"}
"""The programs beside ours, and what the table calls them."""
SPEED, SECONDS, MEMORY = "tokens/s", "s", "GiB"


def table_row(unit: str, figures: Mapping[str, Sequence[float]], share: float | None = None) -> dict[str, Any]:
    """Medians of each program's figures (the same number of rounds each), [lowest, highest] as their spread, and ratios
    that are above 1 where ours is better: more tokens a second, or fewer seconds or GiB. `share` is what ours reaches
    of the machine's limit.

    "ratio" is the one to transformers.
    """
    medians = {who: statistics.median(some) for who, some in figures.items()}
    ours = medians["ours"]
    ratios = {who: _ratio(unit, ours, other) for who, other in medians.items() if who != "ours"}
    made: dict[str, Any] = {"unit": unit} | {who: _rounded(value) for who, value in medians.items()}
    made["spread"] = {who: [_rounded(min(some)), _rounded(max(some))] for who, some in figures.items()}
    made["ratios"] = ratios
    if "transformers" in ratios:
        made["ratio"] = ratios["transformers"]
    if share is not None:
        made["share"] = round(share, 3)
    return made


def speeds(tokens: int, seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Tokens a second of each program."""
    return {who: [tokens / one for one in some] for who, some in seconds.items()}


def by_program(times: Mapping[str, Sequence[float]], part: str) -> dict[str, Sequence[float]]:
    """The times of the actions "PART/PROGRAM"."""
    return {name.partition("/")[2]: some for name, some in times.items() if name.partition("/")[0] == part}


def lines(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """The table in Markdown, of names and rows."""
    heads = ["part", "ours (lowest to highest)", "of the limit", *(f"times {name}" for name in OTHERS.values())]
    table = [_line(heads), _line(["---"] * len(heads))]
    for name, figures in rows:
        low, high = figures["spread"]["ours"]
        ratios = [figures["ratios"].get(who) for who in OTHERS]
        share = f"{figures['share']:.0%}" if "share" in figures else ""
        cells = [name, f"{figures['ours']} {figures['unit']} ({low} to {high})", share]
        table.append(_line([*cells, *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)]))
    return table


def _ratio(unit: str, ours: float, other: float) -> float:
    return round(ours / other if unit == SPEED else other / ours, 3)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
