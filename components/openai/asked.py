"""What a program asks in OpenAI's form, as a request to the engine.

An option that is not supported is refused by name.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import orjson
from starlette.responses import JSONResponse, Response

from components.arguments import crops_of
from components.serving.desk import NotNowError
from components.settings import MOST_NEW_TOKENS
from gemma3_core.engine import (
    ANY_OBJECT,
    CheckpointError,
    Gemma3Error,
    NonFiniteError,
    OperatorError,
    OutOfMemoryError,
    PartialSampling,
    QueueFullError,
    ReplicaLostError,
    Request,
    SchemaError,
    StoppedError,
    Turn,
    check_schema,
)

MAX_ADDRESSES = 16
"""Pictures by address in one request."""
MOST_STOPS, LONGEST_STOP = 4, 500
MOST_ALTERNATIVES = 5
_LONGEST_RETRY_S = 60
_TAKEN = frozenset(
    (
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop"),
        *("temperature", "top_p", "top_k", "seed", "logprobs", "top_logprobs", "response_format"),
        *("pan_and_scan", "crops", "int4", "continue_text"),
    )
)
_WITHOUT_EFFECT = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
"""What clients say about themselves, and hints."""
_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
}
"""Options that are not supported, but harmless with these values."""


class WrongError(Exception):
    """A request that can't be answered, in OpenAI's form."""

    def __init__(
        self,
        message: str,
        param: str | None = None,
        status: int = 400,
        code: str | None = None,
        kind: str = "",
        headers: Mapping[str, str] | None = None,
    ):
        """`kind` is OpenAI's type; by default it follows from the status."""
        super().__init__(message)
        self.param, self.status, self.code, self._kind, self._headers = param, status, code, kind, headers or {}

    def response(self) -> Response:
        headers = {**self._headers, **({"www-authenticate": "Bearer"} if self.status == 401 else {})}
        return JSONResponse(self.content(), self.status, headers)

    def content(self) -> dict[str, Any]:
        is_theirs = self.status < 500 and self.status != 429
        kind = self._kind or ("invalid_request_error" if is_theirs else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


_STATUS: dict[type[Gemma3Error], int] = {
    QueueFullError: 429,
    OutOfMemoryError: 503,
    OperatorError: 502,
    ReplicaLostError: 503,
    StoppedError: 503,
    NonFiniteError: 500,
    CheckpointError: 500,
}
"""Error types that the request did not cause. Clients try again after 429 and 5xx."""


def error_of(error: Gemma3Error) -> WrongError:
    """What the desk or the engine says, in OpenAI's form."""
    if isinstance(error, NotNowError):
        return _not_now(error)
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 400)
    return WrongError(str(error), "response_format" if isinstance(error, SchemaError) else None, status)


def _not_now(error: NotNowError) -> WrongError:
    """Clients wait as long as Retry-After says, but none may hold its program up for hours."""
    if error.retry_s is None:
        return WrongError(
            str(error), None, 429, "insufficient_quota", "insufficient_quota", {"x-should-retry": "false"}
        )
    headers = {"retry-after": str(error.retry_s)}
    if error.retry_s > _LONGEST_RETRY_S:
        headers["x-should-retry"] = "false"
    if error.reason == "draining":
        return WrongError(str(error), status=503, headers=headers)
    kind = "tokens" if error.reason.startswith("tokens") else "requests"
    return WrongError(str(error), None, 429, "rate_limit_exceeded", kind, headers)


@dataclass(frozen=True)
class Asked:
    """A request in the engine's form, and how its answer is sent."""

    model: str
    request: Request
    stream: bool
    with_usage: bool
    alternatives: int | None
    """None without log probabilities."""

    @property
    def stops(self) -> tuple[str, ...]:
        return self.request.stop_strings


async def read_request(
    body: dict[str, Any], models: Sequence[str], picture: Callable[[str], Awaitable[bytes]]
) -> Asked:
    """The request; `picture` gives the bytes behind an address or a data URL. Raises WrongError."""
    for name, value in body.items():
        if name in _TAKEN or name in _WITHOUT_EFFECT or value is None or value in _DEFAULTS.get(name, ()):
            continue
        name = name[:80]
        raise WrongError(f"{name} is not supported here. Leave it out.", name, code="unsupported_parameter")
    model = body.get("model")
    if not isinstance(model, str) or model not in models:
        asked, named = model[:80] if isinstance(model, str) else "", ", ".join(models)
        raise WrongError(f"There is no model {asked!r} here. Ask one of {named}.", "model", 404, "model_not_found")
    schema = _schema(body.get("response_format"))  # what can't be answered is refused before pictures are fetched
    longest = _number(body, "max_completion_tokens", int, 1, 2**31) or _number(body, "max_tokens", int, 1, 2**31)
    system, turns = await _turns(body.get("messages"), picture)
    turns = _cut(turns, body.get("crops"))
    alternatives = _number(body, "top_logprobs", int, 0, MOST_ALTERNATIVES)
    with_logprobs = bool(_switch(body, "logprobs"))
    try:
        sampling = PartialSampling(
            temperature=_number(body, "temperature", float, 0, 2),
            top_k=_number(body, "top_k", int, 0, 2**31),
            top_p=_number(body, "top_p", float, 0, 1),
            seed=None if (seed := _number(body, "seed", int, -(2**63), 2**63 - 1)) is None else seed % 2**63,
        )
    except Gemma3Error as error:
        raise WrongError(str(error)) from None
    request = Request(
        turns=turns,
        system_prompt=system,
        pan_and_scan=bool(_switch(body, "pan_and_scan")),
        int4=_switch(body, "int4"),
        continue_text=_switch(body, "continue_text"),
        max_new_tokens=None if longest is None else min(longest, MOST_NEW_TOKENS),
        sampling=sampling,
        confidence=with_logprobs,
        json_schema=schema,
        stop_strings=_stops(body.get("stop")),
    )
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise WrongError("stream_options must be an object.", "stream_options")
    stream, usage = bool(_switch(body, "stream")), bool(_switch(options, "include_usage"))
    shown = (alternatives or 0) if with_logprobs else None
    return Asked(model, request, stream, usage, shown)


async def _turns(messages: Any, picture: Callable[[str], Awaitable[bytes]]) -> tuple[str, tuple[Turn, ...]]:
    """The system prompt, and the turns with their pictures as bytes. Raises WrongError."""
    if not isinstance(messages, list) or not messages:
        raise WrongError("messages must be a list with a question.", "messages")
    system: list[str] = []
    turns: list[Turn] = []
    addresses = 0
    for place, message in enumerate(messages):
        where = f"messages.{place}"
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise WrongError("A message needs a role, and content that is a text or a list of parts.", where)
        pictures: list[bytes] = []
        texts: list[str] = []  # one before each picture, and one behind the last
        pieces: list[str] = []
        for part in parts:
            address = _address(part, where)
            if address is None:
                pieces.append(part["text"])
                continue
            texts.append("".join(pieces))
            pieces = []
            addresses += not address.startswith("data:")
            if addresses > MAX_ADDRESSES:
                raise WrongError(
                    f"At most {MAX_ADDRESSES} pictures may be given by address. Send the others as data.", where
                )
            pictures.append(await _picture(address, where, picture))
        texts.append("".join(pieces))
        if not texts[-1].strip() and (said := [place for place, text in enumerate(texts) if text.strip()]):
            # OpenAI's examples have the question before its pictures, Gemma's behind them, as it was trained.
            texts[-1], texts[said[-1]] = texts[said[-1]], ""
        if role in ("system", "developer") and not turns and not pictures:
            system.append(texts[0])
        elif role in ("user", "assistant") and (role == "user" or not pictures):
            captions = tuple(texts[:-1]) if any(texts[:-1]) else ()
            turns.append(Turn(role, texts[-1], tuple(pictures), captions=captions))
        else:
            raise WrongError(
                "A message's role is system (first, and without pictures), user, or assistant (without pictures).",
                where,
            )
    return "\n\n".join(system), tuple(turns)


def _cut(turns: tuple[Turn, ...], crops: Any) -> tuple[Turn, ...]:
    """The turns with their crops, which are given in the order of all their pictures. Raises WrongError."""
    try:
        coming = iter(crops_of(crops, sum(len(turn.pictures) for turn in turns)))
    except Gemma3Error as error:
        raise WrongError(str(error), "crops") from None
    return tuple(replace(turn, crops=tuple(islice(coming, len(turn.pictures)))) for turn in turns)


async def _picture(address: str, where: str, read: Callable[[str], Awaitable[bytes]]) -> bytes:
    try:
        return await read(address)
    except NotNowError as error:
        raise error_of(error) from None
    except Gemma3Error as error:
        raise WrongError(str(error), where) from None


def _address(part: dict[str, Any], where: str) -> str | None:
    """The address of a picture's part; None for text. Raises WrongError."""
    kind, text, picture = part.get("type"), part.get("text"), part.get("image_url")
    if kind == "text" and isinstance(text, str):
        return None
    address = picture.get("url") if isinstance(picture, dict) else picture
    if kind == "image_url" and isinstance(address, str) and address.startswith(("data:", "http://", "https://")):
        return address
    raise WrongError('A part is {"type": "text", "text": …} or {"type": "image_url", "image_url": {"url": …}}.', where)


def _stops(given: Any) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    fit = isinstance(stops, list) and all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in stops)
    if not fit or len(stops) > MOST_STOPS:
        raise WrongError(
            f"stop must be a text of at most {LONGEST_STOP} characters, or a list of at most {MOST_STOPS}.", "stop"
        )
    return tuple(stops)


def _schema(given: Any) -> str | None:
    """The JSON schema of a `response_format`, as text; None for plain text. Raises WrongError."""
    kind = given.get("type") if isinstance(given, dict) else given
    if kind is None or kind == "text":
        return None
    if kind == "json_object":
        return ANY_OBJECT
    inner = given.get("json_schema") if isinstance(given, dict) else None
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict | bool):
        raise WrongError(
            'response_format is {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "json_schema": '
            '{"name": …, "schema": {…}}}.',
            "response_format",
        )
    try:
        text = orjson.dumps(schema).decode()  # in a fraction of the time that json takes, in the event loop
        check_schema(text)
    except orjson.JSONEncodeError:
        raise WrongError("The JSON schema is nested too deep. Make it flatter.", "response_format") from None
    except SchemaError as error:
        raise error_of(error) from None
    return text


def _number(body: dict[str, Any], name: str, kind: type, least: float, most: float) -> Any:
    value = body.get(name)
    if value is None:
        return None
    fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if not fits or not least <= value <= most:
        number = "a whole number" if kind is int else "a number"
        raise WrongError(f"{name} must be {number} from {least:,} to {most:,}.", name)
    return value


def _switch(body: dict[str, Any], name: str) -> bool | None:
    value = body.get(name)
    if not isinstance(value, bool | None):
        raise WrongError(f"{name} must be true or false.", name)
    return value
