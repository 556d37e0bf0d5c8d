"""Makes the texts of visitors and models safe for a component that renders Markdown."""

import re

_MARKUP = re.compile(r"([\\`*_\[\]<&~|$@]|:(?=//)|(?<=www)\.)")  # the last alternatives would become links
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
    # A number starts a list only with the full stop or bracket that follows; the joiner separates the two.
    return f"{start}\N{WORD JOINER}" if start.isdigit() else f"\\{start}"


def of_model(text: str) -> str:
    """Markdown of a model's answer: lists and emphasis stay, HTML becomes text, pictures become links.

    A prompt can make a model write the address of a picture. Loading that would tell its server about the visitor.
    """
    parts = _CODE.split(text)
    return "".join(part if index % 2 else _defused(part) for index, part in enumerate(parts))


def _defused(text: str) -> str:
    return _TAG.sub("&lt;", text).replace("![", "!\\[")
