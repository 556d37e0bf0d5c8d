"""`/v1/chat/completions` and `/v1/models`: OpenAI's interface, so that programs made for it can ask this server.

Pictures come as data URLs, or from public addresses within the bounds of `fetch_image`; a path is never read.
"""

import asyncio
import hmac
import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager, suppress
from dataclasses import replace
from typing import Any

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from components.openai.asked import Asked, WrongError, error_of, read_request
from components.openai.told import pieces, streamed_answer, whole_answer
from components.serving.callers import Caller, headers_of, is_from_here
from components.serving.desk import FrontDesk, Operation
from components.serving.fetching import Fetches
from components.serving.messages import MAX_VALUES, body_of
from components.serving.receiving import TOO_LARGE, UNREADABLE, GoneError, Held, RefusedError, Room
from components.serving.server import UNEXPECTED
from gemma3_core.engine import Gemma3Error, ModelRegistry, fetch_image, read_data_url

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 64_000_000
"""One request's JSON, with its pictures in base64."""
MAX_HELD_BYTES = 128_000_000
"""Bodies and fetched pictures of requests that arrive or are answered: of all strangers together, and of all known
programs together, so that strangers leave room for these."""
MAX_FETCHES = 2
"""Pictures that are fetched at the same time, for each of the two."""


class _CallersRoom(Room):
    """What the requests of some callers hold together."""

    def __init__(self) -> None:
        super().__init__()
        self.fetching, self.fetches = asyncio.Semaphore(MAX_FETCHES), Fetches()


class _Holding(Held):
    """What one request holds of its callers' room until it is answered."""

    def __init__(self, room: _CallersRoom, visitor: str):
        super().__init__(room, MAX_HELD_BYTES)
        self._fetches, self._fetching, self._visitor = room.fetches, room.fetching, visitor

    async def picture(self, address: str) -> bytes:
        """The picture's file, from a data URL or an address. Raises Gemma3Error, RefusedError."""
        if address.startswith("data:"):
            data = await _to_its_end(read_data_url, address)
        else:
            with self._fetches.counted(self._visitor, 1):
                async with self._fetching:
                    data = await _to_its_end(fetch_image, address)
        self.add(len(data))
        return data


class Completions:
    """The ASGI app behind `/v1/`.

    With `keys`, programs must send one of them. Without, everybody may ask, unless the page `has_login`. Where it
    `is_shared` by a public link, a caller on this machine may be anybody.
    """

    def __init__(
        self,
        models: ModelRegistry,
        keys: Sequence[str] = (),
        has_login: Callable[[], bool] = lambda: False,
        is_shared: Callable[[], bool] = lambda: False,
        desk: FrontDesk | None = None,
    ):
        self._desk = FrontDesk(models, Operation()) if desk is None else desk
        self._models, self._keys, self._has_login, self._is_shared = models, tuple(keys), has_login, is_shared
        self._running: Counter[str] = Counter()
        self._rooms = {is_known: _CallersRoom() for is_known in (True, False)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            caller, is_known = self._caller(scope)
            path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
            if scope["method"] == "GET":
                await self._listed(path)(scope, receive, send)
                return
            with _Holding(self._rooms[is_known], caller.visitor) as held:
                content = await run_in_threadpool(_read, await _body(scope, receive, held))
                asked = await _unless_left(read_request(content, self._models.names, held.picture), receive)
                del content
                if asked is not None:
                    with self._as_visitor(f"v1 {caller.visitor}", is_known) as (visitor, reuse):
                        asked = replace(asked, request=replace(asked.request, visitor=visitor, reuse=reuse))
                        await self._answer(asked, caller, scope, receive, send)
        except WrongError as wrong:
            await wrong.response()(scope, receive, send)
        except RefusedError as refused:
            await WrongError(str(refused), status=refused.status).response()(scope, receive, send)
        except GoneError:
            return
        except Exception:
            logger.exception("a program's request failed")
            await WrongError(UNEXPECTED, status=500).response()(scope, receive, send)

    def _caller(self, scope: Scope) -> tuple[Caller, bool]:
        """Who asks, and whether it is somebody whom the operator knows. Raises WrongError."""
        headers = headers_of(scope)
        scheme, _, key = headers.get("authorization", "").partition(" ")
        host = (scope.get("client") or ("",))[0]
        if self._keys:
            known = [number for number, own in enumerate(self._keys) if hmac.compare_digest(own.encode(), key.encode())]
            if scheme.lower() != "bearer" or not known:
                raise WrongError("Give an API key of this server.", status=401, code="invalid_api_key")
            return Caller("v1", key=known[0]), True
        if self._has_login():
            raise WrongError(
                "This server has a login. Its operator can let programs in with --api-key.", status=401, code="no_keys"
            )
        address = self._desk.callers.address(headers, host)
        may_be_anybody = self._is_shared() or self._desk.behind_proxy
        return Caller("v1", address), is_from_here(scope) and not may_be_anybody

    @contextmanager
    def _as_visitor(self, name: str, is_known: bool) -> Iterator[tuple[str, bool]]:
        """The visitor for the queue, which answers one question of each at a time, and whether to keep the KV cache.

        A known caller's further requests run beside the first. A stranger may stand behind the same address as
        another, who must not learn from a cache what was asked before.
        """
        if not is_known:
            yield name, False
            return
        self._running[name] += 1
        is_first = self._running[name] == 1
        try:
            yield (name, True) if is_first else (f"{name} {uuid.uuid4().hex}", False)
        finally:
            self._running[name] -= 1

    def _listed(self, path: str) -> Response:
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "gemma3"} for name in self._models.names]
        if path.endswith("/models"):
            return JSONResponse({"object": "list", "data": models})
        name = path.rpartition("/models/")[2]
        found = next((model for model in models if model["id"] == name), None)
        if found is None:
            message = f"There is no model {name[:80]!r} here. GET /v1/models lists those that are."
            raise WrongError(message, "model", 404, "model_not_found")
        return JSONResponse(found)

    async def _answer(self, asked: Asked, caller: Caller, scope: Scope, receive: Receive, send: Send) -> None:
        stop = threading.Event()
        async with aclosing(self._desk.astream(caller, asked.model, asked.request, stop)) as events:
            told = pieces(events, asked.stops, stop)
            try:
                first = await anext(told)  # what can't be asked at all fails here, before an answer has begun
                if asked.stream:
                    sent = streamed_answer(first, told, asked)
                    await StreamingResponse(sent, media_type="text/event-stream")(scope, receive, send)
                    return
                whole = await _unless_left(whole_answer(first, told, asked), receive)
            except Gemma3Error as error:
                raise error_of(error) from None
            finally:
                await told.aclose()
        if whole is not None:
            await JSONResponse(whole)(scope, receive, send)


async def _body(scope: Scope, receive: Receive, held: Held) -> bytes:
    kind = dict(scope["headers"]).get(b"content-type", b"").split(b";")[0].strip().lower()
    # Other sites' pages can send this kind only after the browser has asked, and it is told no.
    if kind != b"application/json":
        raise WrongError("Send JSON, with the header Content-Type: application/json.", status=415)
    return await body_of(receive, MAX_BODY_BYTES, held)


async def _unless_left(answer: Any, receive: Receive) -> Any:
    """The awaited answer; None once the program has left, which ends the answer."""
    writing = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(_left(receive))
    await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
    for task in (writing, leaving):
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    return None if writing.cancelled() else writing.result()


async def _to_its_end(read: Callable[[str], bytes], address: str) -> bytes:
    """Reads in a thread. A program that leaves stays counted until the thread has ended, which can't be broken off."""
    reading = asyncio.ensure_future(run_in_threadpool(read, address))
    try:
        await asyncio.wait([reading])
    except asyncio.CancelledError:
        await asyncio.wait([reading])
        reading.exception()  # nobody is left who could be told
        raise
    return reading.result()


async def _left(receive: Receive) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


def _read(body: bytes) -> dict[str, Any]:
    # There are at least as many values. Texts hold commas too, but no more than a context has tokens.
    if sum(map(body.count, (b"{", b"[", b","))) > MAX_VALUES:
        raise WrongError(TOO_LARGE, status=413)
    try:
        content = orjson.loads(body)
    except (orjson.JSONDecodeError, RecursionError):
        raise WrongError(UNREADABLE) from None
    if not isinstance(content, dict):
        raise WrongError("Send an object with model and messages.")
    return content
