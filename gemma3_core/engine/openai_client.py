"""Asks a server that speaks OpenAI's interface (vLLM, SGLang, llama.cpp, or this program) and reads its stream.

What the server sends is bounded and checked like any other input. Its own words are shown only where it refuses a
question, since they may help with it; everything else is logged.
"""

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from gemma3_core.errors import ContextLengthError, Gemma3Error, OperatorError, QueueFullError, ReplicaLostError

logger = logging.getLogger(__name__)

_CONNECT_S, _SILENT_S = 10.0, 300.0
"""To connect, and between two pieces of an answer; the first one has the prompt before it."""
_MOST_LINE_BYTES, _MOST_BYTES = 4_000_000, 16_000_000
_MOST_ERROR_BYTES = 64_000
_SHOWN = 200
_REFUSALS = (400, 413, 422)
_EXTRAS = ("logprobs", "top_logprobs", "stream_options")
"""Optional fields, dropped if the server rejects them."""

GONE = "The server that answers can't be reached. Try again in a minute."
BROKEN = "The server that answers broke off in the middle. Ask again."
NO_ANSWER = "The server that answers sent an invalid answer. Check its log, and this program's."
LOADING = "The server that answers is loading its model. Try again in a minute."
TOO_LONG = (
    "This conversation has {:,} tokens; the server that answers takes {:,}, with the answer. Shorten it, or start a "
    "new conversation."
)
FAILED = "The server that answers failed. Try again in a minute."


@dataclass(frozen=True)
class TokenTold:
    """A token as the server tells it: its bytes, its log probability, and the likeliest ones in its place."""

    data: bytes
    logprob: float
    others: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Delta:
    """A piece of an answer; the last ones have why it ended, and the usage. `model` is the one that the server names,
    which not every server does."""

    text: str = ""
    tokens: tuple[TokenTold, ...] = ()
    reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    model: str = ""


class OpenAIClient:
    """One server. `url` may end with `/v1` or not; `key` is its API key."""

    def __init__(self, url: str, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None):
        self._url = url.rstrip("/").removesuffix("/v1") + "/v1"
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._transport = transport

    async def models(self) -> list[dict[str, Any]]:
        """What the server offers. Raises Gemma3Error."""
        async with self._sent("GET", "/models") as answer:
            content = _json(await _read(answer, _MOST_LINE_BYTES))
        offered = content.get("data") if isinstance(content, dict) else None
        models = [one for one in offered if isinstance(one, dict)] if isinstance(offered, list) else []
        return [one for one in models if isinstance(one.get("id"), str)]

    async def answer(self, body: dict[str, Any]) -> AsyncIterator[Delta]:
        """Yields the answer as it comes. Raises Gemma3Error: QueueFullError for a server that has too much to do or is
        still loading, ReplicaLostError for one that is gone or fails, OperatorError for one that wants another key or
        lacks the model, ContextLengthError."""
        try:
            async for delta in self._answer(body):
                yield delta
        except _RefusedError as refused:
            unknown = [name for name in _EXTRAS if name in body]
            if not any(name in str(refused) for name in unknown):
                raise
            logger.warning("the server does not know %s: %s", ", ".join(unknown), refused)
            async for delta in self._answer({name: value for name, value in body.items() if name not in unknown}):
                yield delta

    async def _answer(self, body: dict[str, Any]) -> AsyncIterator[Delta]:
        async with self._sent("POST", "/chat/completions", body) as answer:
            if "text/event-stream" not in answer.headers.get("content-type", ""):
                yield _delta(_json(await _read(answer, _MOST_LINE_BYTES)), "message")
                return
            ended = False
            async for line in _lines(answer):
                if not line.startswith(b"data:"):
                    continue  # a comment, or the name of an event
                data = line[5:].strip()
                if data == b"[DONE]":
                    ended = True
                    break
                delta = _delta(_json(data), "delta")
                ended = ended or delta.reason is not None
                yield delta
            if not ended:
                raise ReplicaLostError(BROKEN)

    @asynccontextmanager
    async def _sent(self, method: str, path: str, body: dict[str, Any] | None = None) -> AsyncIterator[httpx.Response]:
        timeout = httpx.Timeout(_SILENT_S, connect=_CONNECT_S)
        async with httpx.AsyncClient(timeout=timeout, transport=self._transport, headers=self._headers) as client:
            request = client.build_request(method, self._url + path, json=body)
            try:
                answer = await client.send(request, stream=True)
                try:
                    if answer.status_code != 200:
                        raise _error_of(answer.status_code, await _read(answer, _MOST_ERROR_BYTES, cut=True))
                    yield answer
                finally:
                    await answer.aclose()
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
                logger.warning("the server can't be reached: %s", error)
                raise ReplicaLostError(GONE) from None
            except httpx.HTTPError as error:
                logger.warning("the server broke off: %s: %s", type(error).__name__, error)
                raise ReplicaLostError(BROKEN) from None


class StillLoadingError(QueueFullError):
    """The server has begun and does not answer yet."""


class _RefusedError(Gemma3Error):
    """A question that the server does not answer as it stands."""


def _error_of(status: int, body: bytes) -> Gemma3Error:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = None
    logger.warning("the server answered with status %d: %.500r", status, body)
    said = _message(content)
    if (sizes := _too_long(content)) is not None:
        return ContextLengthError(TOO_LONG.format(*sizes))
    # llama.cpp's status for a picture that its model can't read is 500.
    if status in _REFUSALS or (status == 500 and "not supported" in said):
        return _RefusedError(f"The server that answers refuses this question{': ' + said if said else ''}. Change it.")
    if status in (401, 403):
        return OperatorError("The server that answers wants another key. Its operator can give one with --openai-key.")
    if status == 404:
        return OperatorError("The server that answers does not have this model. Its operator can name one that it has.")
    if status == 503 and "loading" in said.lower():
        return StillLoadingError(LOADING)
    if status in (429, 503):
        return QueueFullError("The server that answers has too much to do. Try again in a minute.")
    return ReplicaLostError(FAILED)


def _too_long(content: Any) -> tuple[int, int] | None:
    """The tokens of a prompt and those that llama.cpp takes, where that is why it refuses."""
    told = content.get("error") if isinstance(content, dict) else None
    if not isinstance(told, dict) or told.get("type") != "exceed_context_size_error":
        return None
    prompt, most = told.get("n_prompt_tokens"), told.get("n_ctx")
    return (prompt, most) if isinstance(prompt, int) and isinstance(most, int) else None


def _message(content: Any) -> str:
    """What an error's body says, in the forms of OpenAI, vLLM and FastAPI."""
    inner = content.get("error", content) if isinstance(content, dict) else content
    said = inner.get("message") or inner.get("detail") if isinstance(inner, dict) else inner
    return " ".join(said.split())[:_SHOWN].rstrip(".") if isinstance(said, str) else ""


async def _read(answer: httpx.Response, most: int, cut: bool = False) -> bytes:
    body = b""
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > most:
            if cut:
                return body[:most]
            raise ReplicaLostError(NO_ANSWER)
    return body


async def _lines(answer: httpx.Response) -> AsyncIterator[bytes]:
    rest, total = b"", 0
    async for part in answer.aiter_bytes():
        total += len(part)
        *lines, rest = (rest + part).split(b"\n")
        if len(rest) > _MOST_LINE_BYTES or total > _MOST_BYTES:
            raise ReplicaLostError(NO_ANSWER)
        for line in lines:
            yield line
    yield rest


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        logger.warning("the server sent no JSON: %.200r", data)
        raise ReplicaLostError(NO_ANSWER) from None


def _delta(content: Any, name: str) -> Delta:
    """The piece in a chunk ("delta") or in a whole answer ("message"). Raises Gemma3Error."""
    if not isinstance(content, dict) or content.get("error"):
        logger.warning("the server sent an error: %.500r", content)
        raise ReplicaLostError(FAILED if isinstance(content, dict) else NO_ANSWER)
    choices, usage = content.get("choices") or [], content.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    choice = choices[0] if isinstance(choices, list) and choices else {}
    piece = (choice.get(name) or {}) if isinstance(choice, dict) else None
    text = (piece.get("content") or "") if isinstance(piece, dict) else None
    if not isinstance(text, str):
        raise ReplicaLostError(NO_ANSWER)
    reason, logprobs = choice.get("finish_reason"), choice.get("logprobs")
    told = logprobs.get("content") if isinstance(logprobs, dict) else None
    tokens = tuple(token for one in told or () if (token := _token(one)) is not None) if isinstance(told, list) else ()
    model = content.get("model")
    reason = reason if isinstance(reason, str) else None
    return Delta(text, tokens, reason, usage, model if isinstance(model, str) else "")


def _token(told: Any) -> TokenTold | None:
    if not isinstance(told, dict) or (pair := _pair(told)) is None:
        return None
    others = told.get("top_logprobs")
    pairs = [_pair(one) for one in others if isinstance(one, dict)] if isinstance(others, list) else []
    return TokenTold(*pair, tuple(one for one in pairs if one is not None))


def _pair(told: dict[str, Any]) -> tuple[bytes, float] | None:
    data, text, logprob = told.get("bytes"), told.get("token"), told.get("logprob")
    if not isinstance(logprob, int | float) or not isinstance(text, str):
        return None
    if isinstance(data, list) and all(isinstance(one, int) and 0 <= one < 256 for one in data):
        return bytes(data), min(0.0, float(logprob))
    return text.encode(), min(0.0, float(logprob))
