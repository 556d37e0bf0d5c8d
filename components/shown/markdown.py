"""Texts of people and models, made safe for a component that renders Markdown."""

import re

_MARKUP = re.compile(r"([\\`*_\[\]<&~|$@]|:(?=//)|(?<=www)\.)")  # the last three would become links
_LINE_START = re.compile(r"^([#+=>-]|\d+(?=[.)]))", re.MULTILINE)
_INDENT = re.compile(r"^[ \t]+", re.MULTILINE)
_CODE = re.compile(r"(```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`)", re.DOTALL)
_TAG = re.compile(r"<(?=[A-Za-z/!?])")


def literal(text: str) -> str:
    """Markdown that shows `text` exactly as it was typed."""
    escaped = _LINE_START.sub(_escape_first, _MARKUP.sub(r"\\\1", text))
    return _INDENT.sub(lambda match: "\N{NO-BREAK SPACE}" * len(match.group().expandtabs(4)), escaped)


def _escape_first(match: re.Match[str]) -> str:
    start = match.group()
    # A list's number is kept whole: the full stop or bracket after it is what makes it a list.
    return f"{start}\N{WORD JOINER}" if start.isdigit() else f"\\{start}"


def of_model(text: str) -> str:
    """Markdown of a model's answer: lists and emphasis are kept, HTML is shown as text, pictures as links.

    A model can be talked into writing the address of a picture; loading it would tell that server
    about the visitor.
    """
    parts = _CODE.split(text)
    return "".join(part if index % 2 else _defused(part) for index, part in enumerate(parts))


def _defused(text: str) -> str:
    return _TAG.sub("&lt;", text).replace("![", "!\\[")
