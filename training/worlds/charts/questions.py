"""Questions about bar charts: extremes, comparisons, order, count, colors; when an answer is right.

Questions and answers quote the labels, because the tokenizer spells quoted text.
"""

import random
import re
from collections.abc import Callable, Iterator
from itertools import combinations

from training.drawing.colors import UNNAMED
from training.language import written_phrasings
from training.language.asking import QuestionKinds, Target
from training.language.wordings import colored, counted, indirect, named, ordered, straight, widened_kinds
from training.worlds.charts.charts import Bar, Chart
from training.worlds.scenes.questions import NUMBERS, said_colors, said_numbers, said_yes_or_no
from training.worlds.signs.questions import says_text

_QUOTED = re.compile(r'["“]([^"“”]*)(?:["”]|$)')  # an answer cut short may leave one open

_IN = "(|in the picture|in the chart|in this chart|of all|here|of them)"


def _extremely(adjective: str, most: str) -> tuple[str, ...]:
    """Asks for the extreme bar; both words are patterns: "(tallest|highest)" and "(highest|greatest)"."""
    return (
        *straight(
            f"(what|which) bar is (the|) {adjective} {_IN}", f"(what|which) bar is the {adjective} one",
            f"which of (the|these|all|all the|those) bars is (the|) {adjective}",
            f"(what|which) (is|one is) the {adjective} (|bar) (of the bars|of all bars|)",
            f"(what|which) (bar|one) has the {most} (height|value)",
            f"what is (written|said|the label) (under|at|below|beside|on) the {adjective} bar",
            f"what (does|would) the label (of|under|at|below) the {adjective} bar say",
            f"what is the {adjective} bar called", f"what name does the {adjective} bar have",
        ),
        *indirect(
            f"(what|which) bar is (the|) {adjective} {_IN}", f"which of (the|these) bars is the {adjective}",
            f"what the {adjective} bar is (|called)", f"what is written (under|at|below) the {adjective} bar",
            f"which bar has the {most} (height|value)",
        ),
        *named(
            f"the {adjective} bar {_IN}", f"the {adjective} (one|of the bars|of all bars)",
            f"the (label|name|word) (of|under|at) the {adjective} bar",
            f"the bar (that is the {adjective}|with the {most} height|with the {most} value)",
        ),
        *ordered(f"read the label (of|under|below|at) the {adjective} bar"),
    )  # fmt: skip


_BAR = '(the bar|the bar of|the bar for|the bar called|the bar named|the bar labeled|the bar with the label|) "{one}"'
_FROM_TALLEST = (
    "(from tallest to shortest|from the tallest to the shortest|from the highest to the lowest|from high to low"
    "|the tallest first|tallest first|the tallest one first|starting with the tallest|beginning with the tallest"
    "|in falling order|from the tallest down)"
)

_COMPOSED: dict[str, tuple[str, ...]] = {
    "chart_tallest": _extremely("(tallest|highest)", "(highest|greatest|largest)"),
    "chart_shortest": _extremely("(shortest|lowest)", "(lowest|smallest|least)"),
    "chart_taller": (
        *straight(
            'is (the bar|the bar of|the bar for|) "{one}" (taller|higher) than (the bar|the bar of|that of|) "{other}"',
            'does (the bar|) "{one}" (stand|reach) higher than (the bar|) "{other}"',
            '(do you think|would you say that|is it so that) "{one}" is (taller|higher) than "{other}"',
            'of "{one}" and "{other}", is "{one}" the (taller|higher) (one|bar)',
        ),
        *indirect('(if|whether) (the bar|the bar of|) "{one}" is (taller|higher) than (the bar|) "{other}"'),
    ),
    "chart_which_taller": (
        *straight(
            '(what|which|which one|which bar|which of them) is (the|) (taller|higher), "{one}" or "{other}"',
            'which (of|of the bars|of the two bars) "{one}" and "{other}" is (the|) (taller|higher) (one|)',
            'is "{one}" or "{other}" (the|) (taller|higher) (one|bar|)',
            'which (has|one has|bar has) the (taller|higher) (bar|value|height), "{one}" or "{other}"',
            'which do you think is (taller|higher), "{one}" or "{other}"',
        ),
        *indirect('(which|which bar|which one|which of the two) is (taller|higher), "{one}" or "{other}"'),
        *named('the (taller|higher) (bar|one) of "{one}" and "{other}"'),
    ),
    "chart_order": (
        *ordered(
            f"(list|name|sort|order|rank|read|write down) (the|all|all the|all of the) bars(,|) {_FROM_TALLEST}",
            f"(tell|give) me (the|all|all the) bars(,|) {_FROM_TALLEST}",
            f"(read|list|name|give me) the (labels|names) of (the|all|all the) bars(,|) {_FROM_TALLEST}",
            "(put|bring|arrange) the bars in (falling order|order of height, the tallest first)",
        ),
        *straight(
            f"(what|which) are the bars, {_FROM_TALLEST}",
            f"what (are the labels|are the names|is the order) of the bars {_FROM_TALLEST}",
            f"in which order are the bars {_FROM_TALLEST}",
        ),
        *indirect(f"what the bars are, {_FROM_TALLEST}"),
    ),
    "chart_count": counted("bars") + tuple(text for text in counted("bars in the chart") if "picture" not in text),
    "chart_bar_color": colored(_BAR) + colored('the "{one}" bar'),
}

PHRASINGS = written_phrasings.in_one_form(written_phrasings.TRAINED, _COMPOSED)
HELDOUT_PHRASINGS = written_phrasings.in_one_form(written_phrasings.HELDOUT, _COMPOSED)
TRAINED = widened_kinds(PHRASINGS, _COMPOSED)
"""What training asks with."""


def _extreme(chart: Chart, word: str, choose: Callable[..., Bar]) -> list[Target]:
    name = choose(chart.bars, key=lambda bar: bar.height).name
    return [Target((), f'The {word} bar is "{name}".', name, alike=2)]


def _of_two(chart: Chart, rng: random.Random) -> Iterator[tuple[tuple[tuple[str, str], ...], Bar, Bar]]:
    """Each pair of bars once, in random order, with the slots that name them."""
    for pair in combinations(chart.bars, 2):
        one, other = rng.sample(pair, 2)
        yield (("one", one.name), ("other", other.name)), one, other


def _taller(chart: Chart, rng: random.Random) -> list[Target]:
    """Each pair of bars once. The answer names the taller bar first; yes or no follows from it."""
    found = []
    for slots, one, other in _of_two(chart, rng):
        said, taller = ("yes", one) if one.height > other.height else ("no", other)
        found.append(Target(slots, f'"{taller.name}" is taller, so {said}.', f'{said} "{taller.name}"'))
    return found


def _which_taller(chart: Chart, rng: random.Random) -> list[Target]:
    found = []
    for slots, one, other in _of_two(chart, rng):
        name = max(one, other, key=lambda bar: bar.height).name
        found.append(Target(slots, f'"{name}" is taller.', name))
    return found


def _order(chart: Chart, _rng: random.Random) -> list[Target]:
    falling = sorted(chart.bars, key=lambda bar: bar.height, reverse=True)
    names = ", ".join(f'"{bar.name}"' for bar in falling)
    return [Target((), f"{names}.", names)]


def _count(chart: Chart, _rng: random.Random) -> list[Target]:
    number = NUMBERS[len(chart.bars)]
    return [Target((), f"There are {number} bars.", number, alike=2)]


def _bar_color(chart: Chart, _rng: random.Random) -> list[Target]:
    return [
        Target((("one", bar.name),), f"The bar is {bar.color}.", bar.color)
        for bar in chart.bars
        if bar.color != UNNAMED
    ]


_KINDS: dict[str, Callable[[Chart, random.Random], list[Target]]] = {
    "chart_tallest": lambda chart, _: _extreme(chart, "tallest", max),
    "chart_shortest": lambda chart, _: _extreme(chart, "shortest", min),
    "chart_taller": _taller,
    "chart_which_taller": _which_taller,
    "chart_order": _order,
    "chart_count": _count,
    "chart_bar_color": _bar_color,
}
KINDS = tuple(_KINDS)
_KIND_WEIGHTS = {"chart_count": 0.4, "chart_taller": 3.0}  # more questions that take reading and comparing


def _says(kind: str, key: str, answer: str) -> bool:
    """Whether `answer` says `key`.

    Labels are compared as the texts of signs. "chart_order" compares all quoted labels in order. "chart_taller" checks
    yes or no; the answer may quote only the taller bar's label, which follows in the key.
    """
    if kind == "chart_order":
        return _quoted(answer) == _quoted(key)
    if kind in ("chart_tallest", "chart_shortest", "chart_which_taller"):
        return says_text(key, answer)
    unquoted = _QUOTED.sub(" ", answer)
    if kind == "chart_count":
        return said_numbers(unquoted) == {key}
    if kind == "chart_bar_color":
        return said_colors(unquoted) == {key}
    said, taller = key.split(" ", 1)
    return said_yes_or_no(unquoted) == {said} and set(_quoted(answer)) <= set(_quoted(taller))


def _quoted(text: str) -> list[str]:
    """The quoted texts in order, in lower case."""
    return [quoted.strip().lower() for quoted in _QUOTED.findall(text)]


QUESTIONS = QuestionKinds[Chart](
    KINDS, _says, lambda kind, chart, rng, _: _KINDS[kind](chart, rng), TRAINED, HELDOUT_PHRASINGS, _KIND_WEIGHTS
)
