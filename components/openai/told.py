"""An answer in OpenAI's form: whole, or as server-sent events."""

import json
import logging
import math
import re
import threading
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from components.openai.asked import Asked, WrongError, error_of
from components.serving.server import UNEXPECTED
from gemma3_core.engine import DoneEvent, Event, Gemma3Error, TokenChoice, TokenEvent, fields_told

logger = logging.getLogger(__name__)
_LEAST_LOGPROB = -9999.0
"""OpenAI's value for a probability of 0."""


@dataclass(frozen=True)
class Piece:
    """A part of the answer: text and its tokens, or nothing while it is waited for; the last one has the figures."""

    text: str = ""
    choices: tuple[TokenChoice, ...] = ()
    done: DoneEvent | None = None
    reason: str | None = None


async def pieces(events: AsyncIterator[Event], stops: tuple[str, ...], stop: threading.Event) -> AsyncGenerator[Piece]:
    """The answer up to the first of the stop strings, which sets `stop`. Text that may be the beginning of one is held
    back."""
    held = ""
    choices: list[TokenChoice] = []
    async for event in events:
        if isinstance(event, DoneEvent):
            reason = "length" if event.stats.stop_reason == "length" and not stop.is_set() else "stop"
            yield Piece(held, tuple(choices), event, reason)
        elif isinstance(event, TokenEvent) and not stop.is_set():
            held += event.text
            choices += [event.choice] if event.choice is not None else []
            if (end := _first_of(held, stops)) is not None:
                held = held[:end]
                stop.set()
            elif free := len(held) - _may_begin(held, stops):
                yield Piece(held[:free], tuple(choices))
                held, choices = held[free:], []
        else:
            yield Piece()


def _first_of(text: str, stops: tuple[str, ...]) -> int | None:
    return min((place for stop in stops if (place := text.find(stop)) >= 0), default=None)


def _may_begin(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of the text may be the beginning of a stop string."""
    lengths = (n for stop in stops for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n]))
    return max(lengths, default=0)


async def whole_answer(first: Piece, rest: AsyncIterator[Piece], asked: Asked) -> dict[str, Any]:
    text, choices, last = first.text, [*first.choices], first
    async for piece in rest:
        text, last = text + piece.text, piece
        choices += piece.choices
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": _logprobs(choices, asked),
        "finish_reason": last.reason,
        **_fields(text, choices, asked),
    }
    return {**_head(asked, "chat.completion"), "choices": [choice], "usage": _usage(last)}


async def streamed_answer(first: Piece, rest: AsyncIterator[Piece], asked: Asked) -> AsyncIterator[str]:
    """The answer as server-sent events."""
    head, piece = _head(asked, "chat.completion.chunk"), first
    text, choices = "", list[TokenChoice]()
    role: dict[str, Any] = {"role": "assistant", "content": ""}

    def chunk(delta: dict[str, Any], logprobs: Any = None, reason: str | None = None, **more: Any) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason, **more}
        return _event({**head, "choices": [choice]})

    yield chunk(role)
    try:
        while True:
            text += piece.text
            choices += piece.choices
            if piece.text or piece.choices:
                yield chunk({"content": piece.text}, _logprobs(piece.choices, asked))
            elif piece.reason is None:
                yield ": waiting\n\n"  # a server notices that a program has left only when it sends something
            if piece.reason is not None:
                yield chunk({}, None, piece.reason, **_fields(text, choices, asked))
            following = await anext(rest, None)
            if following is None:
                break
            piece = following
    except Gemma3Error as error:
        yield _event(error_of(error).content())
    except Exception:
        logger.exception("a streamed answer failed")
        yield _event(WrongError(UNEXPECTED, status=500).content())
    else:
        if asked.with_usage:
            yield _event({**head, "choices": [], "usage": _usage(piece)})
    yield "data: [DONE]\n\n"


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def _head(asked: Asked, kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": asked.model}


def _usage(last: Piece) -> dict[str, Any]:
    assert last.done is not None
    stats = last.done.stats
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.new_tokens,
        "total_tokens": stats.prompt_tokens + stats.new_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens},
    }


def _fields(text: str, choices: Sequence[TokenChoice], asked: Asked) -> dict[str, Any]:
    """With log probabilities, those of the values of an answer that fits a schema; OpenAI has no such field."""
    if asked.request.json_schema is None or asked.alternatives is None:
        return {}
    return {"fields": fields_told(text, choices)}


def _logprobs(choices: Sequence[TokenChoice], asked: Asked) -> dict[str, Any] | None:
    if asked.alternatives is None:
        return None
    return {
        "content": [
            {
                **_logprob(choice.text, choice.probability),
                "top_logprobs": [
                    _logprob(other.text, other.probability) for other in choice.alternatives[: asked.alternatives]
                ],
            }
            for choice in choices
        ]
    }


def _logprob(text: str, probability: float) -> dict[str, Any]:
    logprob = math.log(probability) if probability > 0 else _LEAST_LOGPROB
    byte = re.fullmatch("<0x([0-9A-F]{2})>", text)  # a part of a character
    return {"token": text, "logprob": logprob, "bytes": [int(byte[1], 16)] if byte else list(text.encode())}
