"""ASGI messages between a browser, the gate and Gradio: reads request bodies within bounds and replays them; rewrites
responses in our words."""

import asyncio
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import orjson
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.serving.receiving import TOO_LARGE, UNREADABLE, Held, RefusedError, chunks

NOTHING_HERE = "There is nothing at this address. Check it and try again."
BUSY = "The server is handling too many requests. Try again in a minute."
NOT_FOUND = "This doesn't exist, or no longer does. Reload the page and try again."
LOG_IN = "You are not logged in, or no longer. Reload the page and log in."

MAX_VALUES = 200_000
"""Values in one request's JSON, each of which takes far more memory than its text."""
_VALUE_BYTES = 100
"""About what an empty list or object takes, in the list that holds it."""
_BEGIN_VALUES = np.isin(np.arange(256), [*b"{[,"])
HELD_BYTES = "gemma3.held_bytes"
"""In the scope of a request that Gradio gets: what its JSON takes in memory, in bytes."""


async def whole_answer(app: ASGIApp, scope: Scope, *kept: bytes) -> Response:
    """What the app answers to anybody who asks for this address: whole, plain, and even if this visitor has left.

    Of the visitor's headers it gets those named in `kept`, besides the host.
    """
    answer = Response()

    async def never_left() -> Message:
        return await asyncio.get_running_loop().create_future()

    headers = [(name, value) for name, value in scope["headers"] if name in (b"host", *kept)]
    await app({**scope, "method": "GET", "headers": headers}, replayed(b"", never_left), into(answer))
    return answer


def into(answer: Response) -> Send:
    """Takes an app's answer, instead of the connection."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status_code = message["status"]
            answer.raw_headers = [(n, v) for n, v in message["headers"] if n not in (b"etag", b"last-modified")]
        answer.body = bytes(answer.body) + message.get("body", b"")

    return sent


def query_of(scope: Scope) -> dict[str, str]:
    return dict(parse_qsl(scope["query_string"].decode("latin-1")))


def json_of(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises RefusedError."""
    try:
        content = orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError):
        raise RefusedError(400, UNREADABLE) from None
    if not isinstance(content, dict):
        raise RefusedError(422, UNREADABLE)
    return content


async def json_body(receive: Receive, most: int, held: Held) -> tuple[bytes, dict[str, Any]]:
    """A body of at most `most` bytes and its JSON object, held as what they take in memory.

    Raises RefusedError, and GoneError.
    """
    body = await body_of(receive, most, held)
    values = await run_in_threadpool(num_values, body)
    if values > MAX_VALUES:
        raise RefusedError(413, TOO_LARGE)
    held.add(values * _VALUE_BYTES)
    return body, await run_in_threadpool(json_of, body)


def num_values(body: bytes) -> int:
    """The commas, and the brackets that open, outside the texts of a JSON, which has at least as many values.

    Takes time and memory as the body is long, whatever it holds.
    """
    # Without what is escaped, each quotation mark begins or ends a text.
    bare = np.frombuffer(body.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    inside = np.logical_xor.accumulate(bare == ord('"'))
    return int(np.count_nonzero(_BEGIN_VALUES[bare] & ~inside))


async def body_of(receive: Receive, most: int, held: Held | None = None) -> bytes:
    """A whole body of at most `most` bytes. Raises RefusedError, and GoneError."""
    body = bytearray()
    async for chunk in chunks(receive):
        body += chunk
        if held is not None:
            held.add(len(chunk))
        if len(body) > most:
            raise RefusedError(413, TOO_LARGE)
    return bytes(body)


def replayed(body: bytes, receive: Receive) -> Receive:
    """Gives a body that has been read a second time, and then the messages that follow it."""
    messages = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def received() -> Message:
        return next(messages, None) or await receive()

    return received


def bounded(receive: Receive, most: int) -> Receive:
    """As `receive`, but cuts the body after `most` bytes."""

    async def received() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            return {**message, "body": message.get("body", b"")[:most], "more_body": False}
        return message

    return received


def refusal(status: int, message: str) -> Response:
    return JSONResponse({"detail": message, "error": message}, status)


_SENTENCES = {
    400: UNREADABLE, 403: NOT_FOUND, 404: NOT_FOUND, 405: NOTHING_HERE, 413: TOO_LARGE, 422: UNREADABLE,
    500: UNREADABLE, 503: BUSY,
}  # fmt: skip


def plain(send: Send, own_errors: bool = False) -> Send:
    """Replaces Gradio's error bodies, which mention paths and Python, by one sentence of ours.

    With `own_errors` a 500 already holds one of our messages, and stays.
    """
    replaced: bytes | None = None

    async def send_plainly(message: MutableMapping[str, Any]) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start":
            status = message["status"]
            if status in _SENTENCES and not (own_errors and status == 500):
                replaced = orjson.dumps({"detail": _SENTENCES[status], "error": _SENTENCES[status]})
                length = str(len(replaced)).encode()
                message = {
                    **message,
                    "headers": [(b"content-type", b"application/json"), (b"content-length", length)],
                }
        elif message["type"] == "http.response.body" and replaced is not None:
            message = {"type": "http.response.body", "body": replaced, "more_body": message.get("more_body", False)}
            replaced = b""
        await send(message)

    return send_plainly
