"""The gate: an ASGI middleware in front of Gradio that decides which requests are answered.

It lets through only the addresses that the page needs, so that a new version of Gradio opens no others. It bounds
requests before Gradio reads them, receives uploads itself, and removes internals of the server from all answers. What
whoever operates the server asks is answered here too, by operating.py.
"""

import asyncio
import json
import logging
import posixpath
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlencode

import orjson
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.examples import card_sheet
from components.serving.assets import Assets, accepted_encoding, compress
from components.serving.frontend import stand_in
from components.serving.head import WORDS, joined_styles, with_head
from components.serving.messages import (
    BUSY,
    HELD_BYTES,
    LOG_IN,
    NOT_FOUND,
    NOTHING_HERE,
    body_of,
    bounded,
    into,
    json_body,
    plain,
    query_of,
    refusal,
    replayed,
    whole_answer,
)
from components.serving.operating import ROUTES as OPERATORS_ROUTES
from components.serving.operating import Operated, Operating
from components.serving.receiving import UNREADABLE, GoneError, Held, Receiving, RefusedError, Room
from components.serving.uploads import MAX_DOCUMENT_BYTES, MAX_FILE_BYTES, UploadError, Uploads

logger = logging.getLogger(__name__)

WAITING_ALREADY = "Too many actions of this page are still waiting. Wait until some of them are done."

MAX_REQUESTS = 1000
"""Requests that are open at the same time, streams included. An open page has one or two."""
MAX_BODY_BYTES = 8_000_000
"""The JSON of one request. The composer accepts a million characters."""
MAX_HELD_BYTES = 256_000_000
"""JSON of all requests that arrive or are answered and of all events that wait, with the memory of its values."""
MAX_ARRIVING_BYTES = 500_000_000
"""Uploads that are arriving, for all visitors together."""
MAX_WAITING_EVENTS = 32
"""Unfinished events of one browser window."""
LINGER_S = 20.0
"""How long a browser's stream of messages stays open after its last event has ended."""
_CLOSE = b'data: {"msg":"close_stream"'
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SMALL_BODY_BYTES = 10_000


@dataclass(frozen=True)
class _Route:
    """Addresses of one form; `kind` names the method of Gate that handles them."""

    methods: str
    form: str
    kind: str = "passed"

    def fits(self, method: str, path: str) -> bool:
        return method in self.methods.split() and re.fullmatch(self.form, path) is not None


_API = "/gradio_api"
_HASH = _SESSION.pattern
ROUTES = (
    _Route("GET HEAD", "/", "page"),
    _Route("GET HEAD", "/config/?|/theme.css|/favicon.ico|/manifest.json|/pwa_icon"),
    _Route("GET HEAD", "/(assets|static)/[^/].*", "asset"),
    _Route("GET HEAD", "/styles.css", "styles"),
    _Route("GET HEAD", "/words/[a-z]{2}[.]json", "words"),
    _Route("GET HEAD", "/cards.svg", "cards"),
    _Route("GET HEAD", "/robots.txt", "robots"),
    _Route("POST", "/login/?", "small"),
    _Route("GET", f"/logout|{_API}/login_check/?|{_API}/user/?|{_API}/app_id/?|{_API}/startup-events"),
    _Route("GET HEAD", f"{_API}/theme.css|{_API}/info/?|{_API}/openapi.json"),
    _Route("GET HEAD", f"{_API}/file=(?![a-z]+:).+"),
    _Route("POST", f"{_API}/upload", "upload"),
    _Route("GET", f"{_API}/upload_progress", "progress"),
    _Route("GET", f"{_API}/heartbeat/{_HASH}", "heartbeat"),
    _Route("POST", f"{_API}/queue/join|{_API}/run/predict/?", "event"),
    _Route("GET", f"{_API}/queue/data", "stream"),
    _Route("POST", f"{_API}/call/(v2/)?ask/?", "call"),
    _Route("GET", f"{_API}/call/(v2/)?ask/{_HASH}", "stream"),
    _Route("POST", f"{_API}/(cancel|reset)/?", "small"),
    _Route("POST GET DELETE", f"{_API}/mcp/?", "tool"),
    _Route("POST", "/v1/chat/completions/?", "programs"),
    _Route("GET", "/v1/models(/.+)?", "programs"),
    # "Use via API" asks for these two.
    _Route("GET", f"{_API}/mcp/schema", "schema"),
    _Route("GET", "/monitoring/summary", "summary"),
)


class Served(Operated, Protocol):
    """What the gate needs to know of the page."""

    mcp_server: bool
    theme_css: str
    theme_hash: str
    programs: ASGIApp
    """Answers programs that speak OpenAI's interface."""

    def has_login(self) -> bool: ...

    def kinds(self) -> frozenset[str]: ...

    def num_inputs(self, event: int | str) -> int | None: ...

    def num_waiting(self, session: str) -> int: ...

    def num_waiting_bytes(self) -> int: ...

    def has_messages(self, session: str) -> bool: ...

    def is_told(self, name: str) -> bool: ...


class Gate:
    """The middleware. It is plain ASGI, because Starlette's base class hides from Gradio that a visitor has left."""

    def __init__(self, app: ASGIApp, served: Served, uploads: Uploads, headers: tuple[tuple[bytes, bytes], ...]):
        self._app, self._served, self._uploads, self._headers = app, served, uploads, headers
        self._operating = Operating(served)
        self._requests = 0
        self._room = Room(served.num_waiting_bytes)
        self._heartbeats: Counter[str] = Counter()
        self._receiving: dict[Receiving, str] = {}
        """Uploads that are arriving, with the ids that the page gave them."""
        self._lingering: dict[str, asyncio.Event] = {}
        """Streams without events, by their session; set when an event comes."""
        self._assets = Assets()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, self._with_headers(send))
        # Web sockets are not used: the server takes none (limits.py), and others refuse them without an answer.

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        if scope["method"] in ("GET", "HEAD") and path in OPERATORS_ROUTES:  # also when it is busy
            await self._operating(path, scope, receive, send)
            return
        route = next((route for route in ROUTES if route.fits(scope["method"], path)), None)
        if route is None:
            await self._refuse(404, NOTHING_HERE)(scope, receive, send)
            return
        if self._requests >= MAX_REQUESTS:
            await self._refuse(503, BUSY)(scope, receive, send)
            return
        self._requests += 1
        started = False

        async def sent(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await getattr(self, f"_{route.kind}")(scope, receive, sent)
        except RefusedError as refused:
            await self._refuse(refused.status, str(refused))(scope, receive, send)
        except GoneError:
            return
        except Exception:
            logger.exception("%s %s failed", scope["method"], path)
            if not started:
                await self._refuse(400, UNREADABLE)(scope, receive, send)
        finally:
            self._requests -= 1

    def _refuse(self, status: int, message: str) -> Response:
        self._operating.count(status)
        return refusal(status, message)

    async def _check_login(self, scope: Scope) -> None:
        """Asks Gradio, before anything of a request is read, whether its visitor has logged in where the page has a
        login. Raises RefusedError."""
        if self._served.has_login():
            path = f"{scope.get('root_path', '')}{_API}/login_check"
            asked = {**scope, "path": path, "raw_path": path.encode(), "query_string": b""}
            if (await whole_answer(self._app, asked, b"cookie")).status_code != 200:
                raise RefusedError(401, LOG_IN)

    async def _passed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on to Gradio, without a body."""
        await self._app(scope, bounded(receive, 0), plain(send))

    async def _small(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, replayed(await body_of(receive, _SMALL_BODY_BYTES), receive), plain(send))

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page itself, without the parameters of Gradio's deep links, which would write sessions to disk.

        What goes into its head here is asked for at once; Gradio adds its `head` option only when its scripts run.
        """
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        asked = urlencode([(name, value) for name, value in query if name not in ("deep_link", "page")])
        page = Response()
        await self._app({**scope, "query_string": asked.encode()}, bounded(receive, 0), plain(into(page)))
        if scope["method"] == "GET" and page.status_code == 200:
            await run_in_threadpool(self._prepare, page, scope)
        await page(scope, receive, send)

    def _prepare(self, page: Response, scope: Scope) -> None:
        """Adds our own head to the page and compresses it."""
        served = self._served
        html = with_head(bytes(page.body).decode(), served.kinds(), served.theme_css, served.theme_hash)
        compress(page, html.encode(), accepted_encoding(scope))

    async def _asset(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's scripts and styles."""
        # Another spelling of a path would be the same file, and be compressed and kept once more.
        if posixpath.normpath(path := scope["path"]) != path or "\\" in path:
            raise RefusedError(404, NOT_FOUND)
        # The names in /assets change with their content.
        named = path.startswith("/assets/")

        async def made() -> Response:
            other = await run_in_threadpool(stand_in, path.removeprefix("/assets/")) if named else None
            if other is not None:
                return Response(other, media_type="text/javascript")
            return await whole_answer(self._app, scope)

        await self._assets.answer(made, named, scope, receive, send)

    async def _styles(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def joined() -> Response:
            made = await run_in_threadpool(joined_styles, self._served.kinds(), self._served.theme_css)
            return Response(made, media_type="text/css")

        await self._assets.answer(joined, bool(scope["query_string"]), scope, receive, send)

    async def _words(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The page's sentences in another language."""
        file = WORDS / Path(scope["path"]).name

        async def read() -> Response:
            if not file.is_file():
                raise RefusedError(404, NOTHING_HERE)
            return Response(await run_in_threadpool(file.read_bytes), media_type="application/json")

        await self._assets.answer(read, False, scope, receive, send)

    async def _cards(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The pictures of all example cards."""

        async def made() -> Response:
            return Response(await run_in_threadpool(card_sheet), media_type="image/svg+xml")

        await self._assets.answer(made, False, scope, receive, send)

    async def _robots(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keeps search engines away from a public link, which is meant for those who were given it."""
        hidden = "/" if self._served.is_shared else ""
        await PlainTextResponse(f"User-agent: *\nDisallow: {hidden}")(scope, receive, send)

    async def _heartbeat(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The connection of an open page: while it lasts, the page's uploads stay."""
        session = scope["path"].rpartition("/")[2]
        self._heartbeats[session] += 1
        self._uploads.opened(session)
        try:
            await self._app(scope, receive, plain(send))
        finally:
            self._heartbeats[session] -= 1
            if not self._heartbeats[session]:
                del self._heartbeats[session]
                self._uploads.closed(session)

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The messages of a browser window's events, or of one event by its id."""
        last = scope["path"].rpartition("/")[2]
        name = query_of(scope).get("session_hash", "") if last == "data" else last
        if not self._served.is_told(name):
            raise RefusedError(404, NOT_FOUND)
        if last == "data" and b"mozilla" in dict(scope["headers"]).get(b"user-agent", b"").lower():
            await self._browsers_stream(scope, receive, send, name)
        else:
            await self._passed(scope, receive, send)

    async def _browsers_stream(self, scope: Scope, receive: Receive, send: Send, session: str) -> None:
        """Gradio's messages for a page, which go on where an event comes soon after the last one has ended.

        Gradio ends the stream at once, and its page stops listening even if it has just sent an event: a click right
        after an answer would be without effect.
        """
        started = closing = False

        async def forward(message: Message) -> None:
            nonlocal started, closing
            if message["type"] == "http.response.start":
                if not started:
                    await send(message)
                started = True
                return
            body, mark, _ = message.get("body", b"").partition(_CLOSE)
            closing = closing or bool(mark)
            if body:
                await send({"type": "http.response.body", "body": body, "more_body": True})

        while True:
            closing = False
            await self._app(scope, replayed(b"", receive), plain(forward))
            if not closing:
                break
            if not await self._comes_another(session, receive):
                await send({"type": "http.response.body", "body": _CLOSE + b',"event_id":null}\n\n', "more_body": True})
                break
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _comes_another(self, session: str, receive: Receive) -> bool:
        """Waits for messages of the session's next event; False after LINGER_S, or if the visitor has left."""
        came = self._lingering[session] = asyncio.Event()
        left = asyncio.ensure_future(receive())
        end = asyncio.get_running_loop().time() + LINGER_S
        try:
            while not self._served.has_messages(session):
                came.clear()
                called = asyncio.ensure_future(came.wait())
                seconds = end - asyncio.get_running_loop().time()
                await asyncio.wait((called, left), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                called.cancel()
                if left.done() or not came.is_set():
                    return False
            return True
        finally:
            left.cancel()
            if self._lingering.get(session) is came:
                del self._lingering[session]

    async def _event(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An event of the page, such as a click. Malformed events are refused before they reach Gradio."""
        await self._check_login(scope)
        with Held(self._room, MAX_HELD_BYTES) as held:
            body, event = await json_body(receive, MAX_BODY_BYTES, held)
            session, fn_index, data = event.get("session_hash"), event.get("fn_index"), event.get("data")
            expected = self._served.num_inputs(fn_index) if type(fn_index) is int else None
            checks = (
                isinstance(session, str) and _SESSION.fullmatch(session),
                isinstance(data, list) and len(data) == expected,
                isinstance(event.get("trigger_id"), int | None),
                event.keys() <= {"session_hash", "fn_index", "data", "event_data", "trigger_id", "event_id"},
            )
            if not all(checks):
                raise RefusedError(422, UNREADABLE)
            if self._served.num_waiting(str(session)) >= MAX_WAITING_EVENTS:
                raise RefusedError(429, WAITING_ALREADY)
            if (told := event.get("event_data")) is not None:
                # Only the number of a choice is used; the server knows the rest.
                index = told.get("index") if isinstance(told, dict) else None
                event["event_data"] = {"index": index if type(index) is int else None, "value": None}
                body = orjson.dumps(event)
            await self._app(self._checked(scope, held), replayed(body, receive), plain(send, own_errors=True))
        if (came := self._lingering.get(str(session))) is not None:
            came.set()

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A question to `/ask`, with positional or named arguments."""
        await self._check_login(scope)
        with Held(self._room, MAX_HELD_BYTES) as held:
            body, question = await json_body(receive, MAX_BODY_BYTES, held)
            by_place = "/v2/" not in scope["path"]
            session = question.get("session_hash")
            if by_place and not isinstance(question.get("data"), list):
                raise RefusedError(422, UNREADABLE)
            if session is not None and not (isinstance(session, str) and _SESSION.fullmatch(session)):
                raise RefusedError(422, UNREADABLE)
            if session is not None and self._served.num_waiting(session) >= MAX_WAITING_EVENTS:
                raise RefusedError(429, WAITING_ALREADY)
            if by_place:  # missing arguments at the end become None, so that new ones break no program
                missing = (self._served.num_inputs("ask") or 0) - len(question["data"])
                body = orjson.dumps({**question, "data": [*question["data"], *[None] * missing]})
            await self._app(self._checked(scope, held), replayed(body, receive), plain(send))

    async def _tool(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A program's message to the MCP server (`--mcp`), which keeps nothing between two messages and sends none
        unasked."""
        if not self._served.mcp_server:
            raise RefusedError(404, NOTHING_HERE)
        if scope["method"] != "POST":
            raise RefusedError(405, NOTHING_HERE)
        with Held(self._room, MAX_HELD_BYTES) as held:
            body = (await json_body(receive, MAX_BODY_BYTES, held))[0]
            marked = self._served.desk.callers.marked(self._checked(scope, held))
            await self._app(marked, replayed(body, receive), plain(send))

    def _checked(self, scope: Scope, held: Held) -> Scope:
        """The request as Gradio gets it, with what its body takes in memory for as long as its event waits."""
        return {**self._served.desk.callers.checked(scope), HELD_BYTES: held.num_bytes}

    async def _programs(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._served.programs(scope, receive, send)

    async def _schema(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The MCP server's tools. Without `--mcp` the answer is no success, which Gradio's page takes for a server, and
        no error, which browsers report."""
        if self._served.mcp_server:
            await self._passed(scope, receive, send)
        else:
            await refusal(300, NOTHING_HERE)(scope, receive, send)

    async def _summary(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio's statistics of requests, which this app doesn't keep."""
        await JSONResponse({"functions": {}})(scope, receive, send)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Uploaded pictures, as multipart form data; the answer lists their paths.

        The page sends `document=1` with a PDF or a video, of which it takes pictures then.
        """
        upload_id, is_document = query_of(scope).get("upload_id", ""), query_of(scope).get("document") == "1"
        most = MAX_DOCUMENT_BYTES if is_document else MAX_FILE_BYTES
        upload = Receiving(self._uploads.folder, self._has_room, most)
        self._receiving[upload] = upload_id
        try:
            await self._check_login(scope)
            files = await upload.read(scope, receive)
            paths = [
                await run_in_threadpool(self._add, file, name, bool(upload_id), is_document) for name, file in files
            ]
        except (UploadError, RefusedError) as error:  # as text, which the page shows
            await PlainTextResponse(str(error), error.status)(scope, receive, send)
        else:
            await JSONResponse(paths)(scope, receive, send)
        finally:
            upload.end()
            del self._receiving[upload]

    def _has_room(self) -> bool:
        return sum(upload.num_bytes for upload in self._receiving) <= MAX_ARRIVING_BYTES

    def _add(self, file: Path, name: str, from_page: bool, is_document: bool) -> str:
        """Stores an upload. The page hears at once of a file that is no picture; a program when it asks about it."""
        try:
            return self._uploads.add(file, name, is_document=is_document)
        except UploadError as error:
            if from_page or error.status != 415:
                raise
            return self._uploads.refuse(name, str(error))

    async def _progress(self, scope: Scope, receive: Receive, send: Send) -> None:
        """How much of an upload has arrived, for its progress bar."""
        await self._check_login(scope)
        upload_id = query_of(scope).get("upload_id", "")

        async def told() -> AsyncIterator[str]:
            # Programs give their uploads no id, and are told nothing of one another's.
            named = (one for one, name in self._receiving.items() if upload_id and name == upload_id)
            upload, said = next(named, None), 0
            while upload is not None and not upload.ended:
                if upload.name and upload.num_bytes > said:
                    news = {"msg": "update", "orig_name": upload.name, "chunk_size": upload.num_bytes - said}
                    said = upload.num_bytes
                    yield f"data: {json.dumps(news)}\n\n"
                await asyncio.sleep(0.1)
            yield 'data: {"msg": "done"}\n\n'

        await StreamingResponse(told(), media_type="text/event-stream")(scope, receive, send)

    def _with_headers(self, send: Send) -> Send:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        return send_with_headers
