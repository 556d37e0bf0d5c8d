"""Whatever the server can say to a visitor has its German, as assets/words.js finds it: read from the sources, without
a browser. tests/browser/test_words.py looks at the page itself."""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html import unescape
from pathlib import Path

import pytest
from places import REPOSITORY
from window import STATS

from components.chat.handlers import LOOKING, _looking
from components.chat.panel import _CHOOSE_PUBLISHED, _DEMO_LIMITS, _DUPLICATE, _ONWARD
from components.settings import _FROM_HUB, _UNGATED
from components.shown.picker import picker_html
from components.shown.stats import figures_line, short_line
from gemma3_core.engine.prompts import ordinal
from gemma3_core.images.documents import Document
from gemma3_core.images.pan_and_scan import explain_pan_and_scan

WORDS = json.loads((REPOSITORY / "assets" / "words" / "de.json").read_text(encoding="utf-8"))
_ANY = "¤"
"""Stands for what a sentence is filled in with."""
_SPEAK = (
    "components/chat/*.py",
    "components/inside/handlers.py",
    "components/inside/compare.py",
    "components/models/*.py",
    "components/settings.py",
    "components/shown/*.py",
    "components/serving/desk.py",
    "components/serving/receiving.py",
    "components/serving/uploads.py",
    "gemma3_core/engine/answer.py",
    "gemma3_core/engine/engine.py",
    "gemma3_core/engine/explain.py",
    "gemma3_core/engine/fields.py",
    "gemma3_core/engine/prompts.py",
    "gemma3_core/engine/registry.py",
    "gemma3_core/engine/zero_gpu.py",
    "gemma3_core/generation/loop.py",
    "gemma3_core/images/documents.py",
    "gemma3_core/images/fetch.py",
    "gemma3_core/images/limits.py",
    "gemma3_core/images/unpacking.py",
    "gemma3_core/inspection/heat_maps.py",
    "gemma3_core/inspection/knockout.py",
    "gemma3_core/inspection/occlusion.py",
)
_NOT_FOR_VISITORS = (
    # What only programs, or whoever starts the server, can get wrong: the page offers no such choice.
    "At least 1 question must be answered at once",
    "At least 1 model must be kept besides the first",
    "Models besides the first need a `load` function",
    f"{_ANY} has an adapter already",
    "The answer must be allowed at least 1 token",
    "A question has crops for",
    "Say which of the",
    "There is no picture number",
    "The answer has ¤ tokens, numbered from 0",
    "With --tensor-parallel",
    "--merge-adapter",
    "Two adapters are",
    "A server whose GPU is lent for each call can't start",
    f"{_ANY} is neither a folder or GGUF file",
    "Prefill in chunks does not support",
    "max_new_tokens must be",
    "This model's heads are",
    "The layer must be",
    "The turn has ¤ tokens, ¤ were described",
    "This model has no global layer",
    # Parts of sentences, which `test_sentences_in_parts_are_german_too` puts together; and what the reader never sees.
    "Encoding ¤¤",
    f"{_ANY}, which gave this answer, ¤",
    f"{_ANY} in the queue",
    "The ¤ picture: ¤",
    f"{_ANY} did not send the picture",
    "The picture could not be fetched from",
    f"{_ANY} is not a public address",
    "Ask whoever gave it to you",
    "This turn has ¤, so nothing",
    "start Gemma 3 4B: `",
    "It knows flat shapes",
    "Your next question downloads this model from the Hub",
    "Gemma 3 4B as a file of 4 bits",
    "{{ bos_token }}",
    "{% for",
)
_ERRORS = re.compile(r"\w*Error")


@cache
def _patterns() -> list[tuple[re.Pattern[str], list[str], bool]]:
    """The patterns in their order, with their places, and whether they are about a list."""
    places = [english for english in sorted(WORDS, key=len, reverse=True) if re.search(r"\{=?\}", english)]
    return [
        (
            re.compile("(.+?)".join(map(re.escape, re.split(r"\{=?\}", english))), re.S),
            re.findall(r"\{=?\}", english),
            " · " in english,
        )
        for english in places
    ]


def english_in(text: str) -> list[str]:
    """The parts of a text that stay English, by the rules of words.js."""
    text = re.sub(r"\s+", " ", text).strip()
    if not re.search("[a-z]", text) or text in WORDS:
        return []
    for pattern, places, joins in _patterns():
        if found := pattern.fullmatch(text):
            filled = [part for place, part in zip(places, found.groups(), strict=True) if place == "{}"]
            if joins or not any(" · " in part for part in filled):
                return [left for part in filled for left in english_in(part)]
    parts = text.split(" · ")
    return [text] if len(parts) == 1 else [left for part in parts for left in english_in(part)]


def _text(node: ast.expr) -> str | None:
    """The text of a constant or an f-string, with _ANY for what is filled in; of a sum, if one side is a text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "" if isinstance(part, ast.Constant) else _ANY for part in node.values)
    return None


def sentences(path: Path) -> Iterator[str]:
    """What a module raises and tells as a stage, the sentences of its constants, and the texts of its HTML."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name == "StageEvent" or _ERRORS.fullmatch(name):
                yield _text(node.args[-1]) or ""
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            text = _text(node.value) or ""
            yield text if text.endswith(".") and "<" not in text else ""
        elif isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in inner and "</" in (_text(node) or ""):
            for text in re.findall(r">([^<>]*)<", _text(node) or ""):
                yield unescape(text) if " " in text else ""


_MODULES = sorted({path for pattern in _SPEAK for path in REPOSITORY.glob(pattern)})


@pytest.mark.parametrize("path", _MODULES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_a_module_says_has_its_german(path):
    said = (re.sub(r"\{\w*(:[^}]*)?\}", _ANY, text) if "{%" not in text else text for text in sentences(path))
    missing = {text for text in said if not text.startswith(_NOT_FOR_VISITORS) and english_in(text)}
    assert not missing


@pytest.mark.parametrize("path", sorted((REPOSITORY / "assets").glob("*.js")), ids=lambda path: path.name)
def test_what_a_script_says_has_its_german(path):
    """Its sentences, but those that choose a word for how many there are, and those for the console."""
    source = re.sub(r"console[.].*", "", path.read_text(encoding="utf-8"))
    said = re.findall(r'"([A-Z“][^"\n]*[.…])"|`([A-Z“$][^`?\n]*[.…])`', source)
    texts = [text or re.sub(r"\$\{[^}]*\}", _ANY, template) for text, template in said]
    assert [text for text in texts if english_in(text)] == []


def test_the_sentences_are_found():
    found = {str(path.relative_to(REPOSITORY)): list(filter(None, sentences(path))) for path in _MODULES}
    assert "Waiting for another look inside" in found["gemma3_core/engine/engine.py"]
    assert "This file is no longer on the server. Add it again." in found["components/chat/documents.py"]
    assert "evenly spaced, each with its time in the prompt" in found["components/shown/picker.py"]
    assert sum(map(len, found.values())) > 150


def _shown(html: str) -> list[str]:
    return [unescape(text) for text in re.findall(r">([^<>]+)<|aria-label=\"([^\"]+)\"", html) for text in text if text]


_LONG = replace(
    STATS, num_images=2, num_crops=1, reused_tokens=100, stop_reason="length", quantization="int4", new_tokens=256
)
_LIMITS = _DEMO_LIMITS.format(_ONWARD.format(""))
_LOADS = "Your next question loads this model, which takes a while."
_DEFAULTS = "Settings that you have not changed will take this model's defaults."
_IN_PARTS = [
    *(f"{ordinal(place)} in the queue{rest}" for place in (1, 2, 3, 4, 11) for rest in ("", ", about 6 s")),
    *(f"Encoding {pictures}{crops}" for pictures in ("1 picture", "3 pictures")
      for crops in ("", " and 1 crop", " and 4 crops")),
    "Reading 812 tokens", "Reading 512 of 812 tokens", "Reading demo model",
    *(f"Looked again, with {crops}" for crops in ("1 crop", "3 crops")),
    LOOKING, _looking(f"{ordinal(2)} in the queue, about 6 s"),
    *(explain_pan_and_scan(*size) for size in ((300, 300), (310, 300), (1100, 300), (300, 1100), (400, 300))),
    *(f"demo model, which gave this answer, {why}. Ask again to look at the new answer."
      for why in ("is not loaded now: other models took its place", "is not offered here")),
    *(text for stats in (STATS, _LONG, replace(STATS, stop_reason="cancelled"))
      for text in (figures_line(stats), short_line(stats))),
    "The 2nd picture: This PDF has no pages. Save it again, and add that.",
    "a.b did not send the picture within 20 s. Download it yourself and add it as a file.",
    "The picture could not be fetched from a.b. Check the address, or add the picture as a file.",
    "This PDF has 3 pages; give numbers from 1 to that.",
    "A picture of this conversation can't be brought back. Its answers can be read; to ask on about it, add the "
    "picture again.",
    "With this region hidden, the probability of “y” in “yellow” goes from",
    "These are too many pictures: 3 of 5 in an hour are left. Ask with fewer, or come back at 10:30.",
    "Copied.", "Saved.",
    *(f"{_LIMITS}{onward}" for onward in (_CHOOSE_PUBLISHED, "start Gemma 3 4B:", _DUPLICATE)),
    *(f"{text.format(size)} {_DEFAULTS}" for text in (_FROM_HUB, _UNGATED, _LOADS) for size in ("", ": 2.5 GB")),
]  # fmt: skip


@pytest.mark.parametrize("text", _IN_PARTS)
def test_sentences_in_parts_are_german_too(text):
    assert [left for left in english_in(text) if left not in ("demo model", "PDF", "bfloat16", "int4")] == []


@pytest.mark.parametrize(("seconds", "count"), [(None, 1), (None, 900), (12.0, 300)])
def test_the_choice_of_pages_and_frames_is_german(seconds, count):
    problem = "No page is chosen. Give numbers, such as 1-3, 7."
    html = picker_html(Document("PDF", count, ((10, 10),), seconds, (), None), "a.pdf", (), 3, problem)
    left = [part for text in _shown(html) for part in english_in(text.removeprefix(": "))]
    assert [part for part in left if part not in ("a.pdf", "PDF")] == []


def test_a_sentence_without_german_is_noticed():
    assert english_in("Pages of nothing.") == ["Pages of nothing."]
    assert english_in("Choose colors") == ["colors"], "half of it"
