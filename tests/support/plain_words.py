"""What a visitor may be told: a sentence or two in plain words, never Python's own messages."""

import html
import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

LONGEST = 400  # characters; anything longer is more than two sentences

# Phrases from Python, its libraries and its logs. Each has been seen somewhere; none belongs in a sentence for people.
SIGNS = tuple(
    re.compile(pattern)
    for pattern in (
        r"Traceback",
        r"\b[A-Za-z]*[a-z](Error|Exception|Warning)\b",
        r"\bException\b",
        r"NoneType",
        r"\bobjects? (is|are|has|have|of type|does|cannot|at 0x)\b",
        r"object is not|object has no|object does not|has no attribute",
        r"not (subscriptable|iterable|callable|hashable|JSON serializable)|unhashable",
        r"(list|tuple|string|dict|dictionary) (index|indices|assignment|changed)|index out of|indices must be",
        r"unexpected keyword|positional argument|required argument|missing \d+ required|takes \d+|got an unexpected",
        r"[Vv]alidation error|[Ff]ield required|Input should be|type=\w+|input_value|string_type|_type'|errors\.",
        r"pydantic|starlette|fastapi|uvicorn|orjson|anyio|asyncio|httpx|gradio|torch\b|numpy|jinja2|PIL\b",
        r"\b(gemma3_core|components)\.\w+",
        r": ?[.!]",  # the reason after the colon is missing
        r"Errno|errno",
        r"\bline \d+(?! of\b)|File \"",
        r"(?<![\w.:/])/(tmp|usr|work|home|root|etc|var|opt|proc|dev|mnt|app)\b",
        r"\b[\w-]+\.py\b|site-packages|python\d",
        r"^\s*['\"][^'\"]*['\"]\s*$",  # a KeyError's message is only its key
        r"'(value|index|text|files|path|meta|data|url|fn_index|session_hash|event_id)'",
        r"'(int|str|float|list|dict|tuple|bool|bytes)'|\b(int|str|dict|bool)\(\)|<class |<\w+ object",
        r"could not convert|invalid literal|cannot (convert|unpack|be interpreted|move)|not supported between",
        r"(must|expected) (be )?(str|int|a string or|bytes|real number|dict|list)\b|expected str|str, bytes or os",
        r"Expecting (value|property|',')|[Dd]elimiter|surrogates|codec can't|utf-8|UTF-8",
        r"Exceeds the limit|integer string conversion|int too (large|big)|too large to convert|recursion depth",
        r"not enough values|too many values|dictionary update|embedded null|null (byte|character)",
        r"http_status|detail'|self\.|\*\*\w|__\w+__|\bNone\b",
    )
)

# The page never draws these either, whatever a question, an answer or a token looks like.
_NEVER_DRAWN = re.compile(
    r"Traceback \(most|has no attribute '|'NoneType'|is not subscriptable|\[Errno |\w+Error: |site-packages"
)

_STANDARD = {status.phrase for status in HTTPStatus if 400 <= status < 500}
_FILE = r"[^/\s]{1,80}\.\w{1,5}"  # a visitor's file, which may begin a sentence
_SENTENCE = re.compile(rf"({_FILE} |({_FILE}: )?[A-Z0-9\"“])[^\n]*[.!?)…]")
_END = re.compile(r"[.!?…](?=\s|$)")
_FAILURE = re.compile(r'<p class="failure"[^>]*>(.*?)</p>', re.DOTALL)


def signs_of_programs(text: str) -> list[str]:
    """The parts of a text that address programmers; empty if there are none."""
    return [found.group() for sign in SIGNS if (found := sign.search(text))]


def is_plain(text: Any) -> bool:
    """Whether a visitor may be told this: a sentence or two without signs of programs, or a standard HTTP refusal such
    as "404: Not Found".

    A short third sentence may say where to find more.
    """
    if not isinstance(text, str):
        return False
    text = text.strip()
    if re.sub(r"^4\d\d: ", "", text) in _STANDARD:
        return True
    if not text or len(text) > LONGEST or len(_END.findall(text)) > 3:
        return False
    return bool(_SENTENCE.fullmatch(text)) and not signs_of_programs(text)


def failures_in(value: Any) -> Iterator[str]:
    """The failures that the page shows in a handler's output."""
    for text in texts_in(value):
        for found in _FAILURE.findall(text):
            yield html.unescape(re.sub(r"<[^>]+>", "", found))


def signs_drawn(value: Any) -> list[str]:
    """The parts of a handler's output that the page must never draw."""
    return [found.group() for text in texts_in(value) if (found := _NEVER_DRAWN.search(text))]


def texts_in(value: Any) -> Iterator[str]:
    """Each text in nested lists and dicts, except descriptions of files, which contain paths by design."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and not ("path" in value and ("meta" in value or "url" in value)):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)
