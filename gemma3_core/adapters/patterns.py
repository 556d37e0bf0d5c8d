"""Regular expressions of an adapter's config: refused where matching a name could take very long.

A file from anywhere names them, and Python's matcher tries every way to match: "(a+)+" has more than there is time for.
"""

import math
from collections.abc import Iterable
from re import _parser  # type: ignore[attr-defined]  # the standard library's own reading of a pattern
from typing import Any

from gemma3_core.errors import CheckpointError

_LONGEST = 2_000  # characters
_MOST_WAYS = 1e8  # Unsloth writes four times ".*?", which are 64**4 in a name of 64 letters
_NAME_LENGTH = 64
_REPEATS = ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT")


def require_bounded(field: str, pattern: str) -> None:
    """Raises CheckpointError for a pattern that may take long, re.error for what is none."""
    if len(pattern) > _LONGEST or _ways(_parser.parse(pattern)) > _MOST_WAYS:
        raise CheckpointError(
            f"adapter_config.json's {field} has a regular expression that may take very long: {pattern[:60]!r}. Name "
            "the modules in a list, or write it with fewer repetitions, and none inside another."
        )


def _ways(items: Iterable[tuple[Any, Any]]) -> float:
    """At most how many ways there are to match a sequence at one place of a name."""
    return math.prod(_ways_of(str(kind), value) for kind, value in items)


def _ways_of(kind: str, value: Any) -> float:
    if kind == "SUBPATTERN":
        return _ways(value[-1])
    if kind == "BRANCH":
        return _ways_of_choice(value[1])
    if kind in ("ASSERT", "ASSERT_NOT"):
        return _ways(value[1])
    if kind == "ATOMIC_GROUP":
        return _ways(value)
    if kind not in _REPEATS:
        return math.inf if kind == "GROUPREF_EXISTS" else 1.0
    least, most, body = value
    each = _ways(body)
    if int(most) <= 1:
        return each + 1
    return math.inf if each > 1 else float(min(int(most), _NAME_LENGTH) - min(least, _NAME_LENGTH) + 1)


def _ways_of_choice(choices: list[Any]) -> float:
    """At most so many choices match at one place. Two literals do so only if one is a prefix of the other."""
    words = ["".join(chr(value) for kind, value in one if str(kind) == "LITERAL") for one in choices]
    if all(len(word) == len(one) for word, one in zip(words, choices, strict=True)):
        return float(max(sum(word.startswith(beginning) for beginning in words) for word in words))
    return sum(_ways(one) for one in choices)
