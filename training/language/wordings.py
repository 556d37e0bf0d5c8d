"""Composes many phrasings of the same question from patterns, for training, beside those written by hand.

From twenty fixed sentences per kind, a model learns them by heart and mistakes a new one for another question. Patterns
such as "(which|what) bar is (the |)tallest" spell out alternatives, and each becomes a direct question, an indirect
one, a request by name or an order. None contains a held-out sentence.
"""

import re
from collections.abc import Mapping
from functools import cache
from itertools import pairwise, product

from training.language.written_phrasings import all_heldout

_WORD = re.compile(r"\{\w+\}|[\w']+")
_ALTERNATIVES = re.compile(r"\(([^()]*)\)")  # the innermost
_BEFORE_CLAUSES = (
    "tell me", "please tell me", "can you tell me", "could you tell me", "would you tell me", "will you tell me",
    "say", "please say", "can you say", "could you say", "do you know", "do you see", "can you see",
    "let me know", "I want to know", "I would like to know", "find out", "please find out", "I wonder",
)  # fmt: skip
_BEFORE_NAMES = (
    "what is", "what's", "name", "please name", "can you name", "could you name", "would you name", "tell me",
    "please tell me", "can you tell me", "could you tell me", "say", "please say", "give me", "please give me",
    "can you give me", "find", "can you find", "could you find", "I want to know", "I would like to know",
)  # fmt: skip
_BEFORE_ORDERS = (
    "", "please", "can you", "could you", "would you", "will you", "I want you to", "I would like you to", "now",
)  # fmt: skip


def spelled(*patterns: str) -> tuple[str, ...]:
    """Every text that the patterns match: "(a|b)" is a or b, and alternatives may be nested."""
    found, left = [], list(patterns)
    while left:
        parts = _ALTERNATIVES.split(left.pop())
        choices = [part.split("|") if number % 2 else [part] for number, part in enumerate(parts)]
        texts = ["".join(chosen) for chosen in product(*choices)]
        if len(parts) == 1 and "(" in texts[0]:
            raise ValueError(f"{texts[0]!r} opens a bracket that it does not close")
        whole, partly = ([text for text in texts if ("(" in text) == nested] for nested in (False, True))
        found += [" ".join(text.split()) for text in whole]
        left += partly
    return tuple(dict.fromkeys(found))


def straight(*patterns: str) -> tuple[str, ...]:
    """Questions: "which bar is tallest" becomes "Which bar is tallest?"."""
    return tuple(_sentence(text, "?") for text in spelled(*patterns))


def indirect(*patterns: str) -> tuple[str, ...]:
    """Clauses: "which bar is tallest" becomes "Tell me which bar is tallest." and more."""
    return tuple(_opened(before, text) for text in spelled(*patterns) for before in _BEFORE_CLAUSES)


def named(*patterns: str) -> tuple[str, ...]:
    """Requests by name: "the tallest bar" becomes "What is the tallest bar?" and more."""
    return tuple(_opened(before, text) for text in spelled(*patterns) for before in _BEFORE_NAMES)


def ordered(*patterns: str) -> tuple[str, ...]:
    """Orders: "count the bars" becomes "Count the bars.", "Could you count the bars?" and more."""
    return tuple(_opened(before, text) for text in spelled(*patterns) for before in _BEFORE_ORDERS)


def _opened(before: str, text: str) -> str:
    asks = before.split(" ")[0] in ("can", "could", "would", "will", "do", "what", "what's")
    return _sentence(f"{before} {text}".strip(), "?" if asks else ".")


def _sentence(text: str, ending: str) -> str:
    return text[0].upper() + text[1:] + ending


def widened(written: tuple[str, ...], composed: tuple[str, ...]) -> tuple[str, ...]:
    """All sentences once, without composed ones that contain a held-out sentence of any kind."""
    return tuple(dict.fromkeys((*written, *(text for text in composed if not holds_heldout(text)))))


def widened_kinds(
    written: Mapping[str, tuple[str, ...]], composed: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """Each kind's phrasings with the composed ones."""
    return {kind: widened(texts, composed.get(kind, ())) for kind, texts in written.items()}


def holds_heldout(text: str) -> bool:
    """Whether the text contains a held-out sentence of any kind, regardless of slots and punctuation."""
    words, heldout = words_of(text), _heldout_words()
    return any(
        words[start : start + len(one)] == one
        for start, pair in enumerate(pairwise(words))
        for one in heldout.get(pair, ())
    )


@cache
def _heldout_words() -> dict[tuple[str, ...], list[tuple[str, ...]]]:
    """The held-out sentences, all of several words, by the first two."""
    told: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for words in {words_of(text) for text in all_heldout()}:
        assert len(words) > 1
        told.setdefault(words[:2], []).append(words)
    return told


def words_of(text: str) -> tuple[str, ...]:
    """The words of a sentence, for comparison; all slots are equal."""
    return tuple("{}" if word.startswith("{") else word for word in _WORD.findall(text.lower()))


# Phrasings that several worlds share; `things` and `thing` are patterns too.

_HERE = "(| in the picture| in this picture| here)"


def counted(things: str) -> tuple[str, ...]:
    """Asks how many there are."""
    return (
        *straight(
            f"how many {things} (are there|do you see|can you see|do you find|can you find|do you count){_HERE}",
            f"how many {things} (are|are shown|are visible|are drawn|can be found){_HERE}",
            f"how many {things} does (the|this) picture (show|have|hold|contain)",
            f"(the picture|it) (shows|has) how many {things}",
        ),
        *indirect(
            f"how many {things} (there are|you see|you can see|you find|you can find|you count|are shown){_HERE}",
            f"how many {things} (are in|are on) (the|this) picture", f"how many {things} the picture (shows|has)",
        ),
        *named(f"the number of {things}{_HERE}", f"the number of {things} (you see|there are|that are shown)"),
        *ordered(
            f"count (the|all the|all|up the) {things}{_HERE}", f"count the {things} (for me|that you see|you can find)",
        ),
    )  # fmt: skip


def colored(thing: str) -> tuple[str, ...]:
    """Asks for its color."""
    return (
        *straight(
            f"(what|which) color is {thing}{_HERE}", f"(what|which) color (does|would) {thing} have",
            f"(what|which) color has {thing}", f"in (what|which) color is {thing} (|drawn|painted|shown|filled)",
            f"of (what|which) color is {thing}", f"(what|which) color do you (see on|give|think is|find on) {thing}",
            f"(what|which) color do you (think|believe) {thing} (is|has)", f"{thing} (is|has) (what|which) color",
            f"how is {thing} colored",
        ),
        *indirect(f"(what|which) color {thing} (is|has)", f"(in|of) (what|which) color {thing} is"),
        *named(f"the color (of|that you see on) {thing}{_HERE}", f"the color that {thing} has"),
    )  # fmt: skip


def located(thing: str) -> tuple[str, ...]:
    """Asks where it is."""
    part = "(what|which) (part|corner|area|region|place)"
    return (
        *straight(
            f"where (is|lies) {thing}{_HERE}", f"where (do|can) (you|I) (see|find) {thing}{_HERE}",
            f"where (does|can) {thing} (lie|be|be found)", f"in {part} of the picture (is|lies) {thing}",
            f"{part} of the picture is {thing} in", f"{thing} is where",
        ),
        *indirect(f"where {thing} (is|lies|can be found){_HERE}", f"in {part} of the picture {thing} is"),
        *named(f"the (position|place|location) of {thing}{_HERE}"),
        *ordered(f"(find|locate) {thing}{_HERE}"),
    )  # fmt: skip
