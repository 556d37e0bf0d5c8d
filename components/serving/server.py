"""Serves the page: its limits, its assets, and what a browser may load."""

import asyncio
import json
import logging
import mimetypes
import os
import re
import tempfile
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gradio as gr
from anyio import to_thread
from gradio.blocks import BlocksConfig
from gradio_client.utils import async_traverse, is_file_obj_with_meta, is_http_url_like
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from components.chat.conversation import Conversation
from components.chat.panel import prepare
from components.serving.desk import FrontDesk, Operation
from components.serving.fetching import Fetches
from components.serving.gate import MAX_REQUESTS, Gate
from components.serving.limits import (
    allow_open_files,
    close_silent,
    limit_logs,
    return_freed_memory,
    speak_http_alone,
)
from components.serving.messages import HELD_BYTES, NOTHING_HERE
from components.serving.receiving import UNREADABLE
from components.serving.uploads import KEPT_UNUSED_S, MAX_FILE_BYTES, Uploads, private_folder
from components.theme import build_theme
from gemma3_core.engine import Gemma3Error, fetch_image, read_data_url

logger = logging.getLogger(__name__)

UNEXPECTED = "Something went wrong. Try again; if it happens again, see the server's log."
LEFT = "The picture was not fetched, because whoever asked has left."

_ASSETS = Path(__file__).resolve().parents[2] / "assets"
_MAX_WINDOWS = 500
_MAX_EVENTS = 1000
"""Events that wait for their handler, for all windows together."""
_MAX_RUNNING = 200
"""Events that run at the same time: more than the engine's queue holds, or those waiting there would block the rest."""
_LOOK_EVERY_S = 0.01
"""How often the server looks whether an event waits."""
_MAX_UNREAD = 400
"""Unfetched messages of one window. An open page fetches its messages at once."""
_MAX_ADDRESSES, _MAX_FETCHES = 16, 4
"""Pictures given by address in one event, and those that are fetched at the same time for all visitors together."""
SWEEP_S = 30.0
_SCRIPTS = ("start.js", "zip.js", "conversations.js", "regions.js", "masks.js", "pictures.js", "fields.js",
            "table.js")  # fmt: skip
"""Run as the page loads, in this order; page.js runs once it stands."""
_MAX_CONNECTIONS = 2 * MAX_REQUESTS
_OUT_OF_RANGE = re.compile(r"Value -?[\d.]+ is (less|greater) than (minimum|maximum) value -?[\d.]+\.?")

# Scripts, fonts, pictures and connections come from this server only, whatever a question or an answer contains.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
    )
)


def headers(frame_ancestors: str) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of each answer; `frame_ancestors` are the sources whose pages may show this one in a frame."""
    return (
        (b"content-security-policy", f"{_POLICY}; frame-ancestors {frame_ancestors}".encode()),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    )


class _Components(BlocksConfig):
    """The page's components and events; a window's copy describes none of them.

    Gradio describes all components anew for each window, each call by a program and each redraw of the chat, and keeps
    their values there as well, for links that bring them back. This page has no such links.
    """

    def __copy__(self) -> BlocksConfig:
        copy = super().__copy__()
        copy.config_for_block = lambda *_: {}  # type: ignore[method-assign]
        return copy

    def set_event_trigger(self, *arguments: Any, **options: Any) -> Any:
        """As in Gradio, but the chat has no status: this page says itself what it waits for. With each status Gradio's
        page copies all that it knows of the component, for the chat the whole conversation. It needs that copy of what
        a visitor changes, to notice the change."""
        event, number = super().set_event_trigger(*arguments, **options)
        shown: list[Any] = [output for output in event.outputs if not isinstance(output, gr.Chatbot | gr.State)]
        event.show_progress_on = shown
        return event, number


class Page(gr.Blocks):
    """gr.Blocks with this app's launch options as defaults, its limits and its error messages.

    It implements `gate.Served`.
    """

    desk: FrontDesk
    """Takes the questions; set before the page is launched."""

    def __init__(self, operation: Operation | None = None, **options: Any):
        self.operation = Operation() if operation is None else operation
        self.uploads = Uploads(private_folder())  # before a component asks Gradio for its folder
        self.periodic_tasks: list[Callable[[], None]] = []
        """Called every SWEEP_S while the server runs."""
        self._fetching, self._fetches = ThreadPoolExecutor(_MAX_FETCHES, "fetch"), Fetches()
        self.readers: dict[str, Callable[[list[Any]], list[Any]]] = {}
        """By an event's name for programs: turns the arguments that they send into what its components take."""
        self.programs: ASGIApp = PlainTextResponse(NOTHING_HERE, 404)
        self.is_shared = False
        self.forgetful = False
        """Whether visitors' browsers keep nothing beyond a tab."""
        self.frame_ancestors = ""
        """Whose pages may show this one in a frame, as sources of a Content-Security-Policy; empty for the default:
        everybody's on a Space, whose own page is such a frame, and elsewhere nobody's."""
        self._launching: int | None = None
        super().__init__(**options)
        self.default_config = _Components(self)

    @property
    def share(self) -> bool:
        """Whether there is a public link, but only for `launch`; other code sees False.

        Gradio would serve another page to visitors of a public link, with a script from another server.
        """
        return self.is_shared and threading.get_ident() == self._launching

    @share.setter
    def share(self, value: bool) -> None:
        self.is_shared = value

    def queue(self, **options: Any) -> Any:
        """As in gr.Blocks, which calls it, but nobody can ask for an event that waits past the queue and its limits,
        and a visitor who doesn't fetch their messages counts as gone."""
        ours = {"max_size": _MAX_EVENTS, "api_open": False, "default_concurrency_limit": None}
        made = super().queue(**ours, **options)
        queue = self._queue
        # Gradio sorts these statistics again with each event, and this app shows them nowhere.
        queue.ANALYTICS_MAX_EVENTS = 1
        queue.compute_analytics_summary = lambda _records: {}  # type: ignore[method-assign]
        # Gradio looks a thousand times a second whether an event waits, which keeps a processor busy while nobody asks,
        # and a hundred times for the gr.Progress of one, of which the page has none.
        queue.sleep_when_free, queue.progress_update_sleep_when_free = _LOOK_EVERY_S, 1.0
        # A stream looks its window up here; one that was forgotten while it sent its last message has no events left.
        queue.pending_event_ids_session = defaultdict(set)
        send = queue.send_message

        def send_unless_unread(event: Any, message: Any) -> None:
            unread = queue.pending_messages_per_session.get(event.session_hash)
            if unread is None or unread.qsize() > _MAX_UNREAD:
                event.alive = False  # ends the event's generator
            if unread is not None:  # otherwise the visitor has just left
                send(event, message)

        queue.send_message = send_unless_unread  # type: ignore[method-assign,assignment]
        return made

    def has_login(self) -> bool:
        """Whether visitors must log in (`--auth`)."""
        return self.auth is not None

    def kinds(self) -> frozenset[str]:
        """The kinds of components on the page, such as "chatbot"."""
        return frozenset(block.get_block_name() for block in self.blocks.values())

    def num_inputs(self, event: int | str) -> int | None:
        """How many values an event's handler takes; None if there is no such event.

        `event` is its number, or the name by which programs call it.
        """
        found = (fn for number, fn in self.fns.items() if event in (number, fn.api_name))
        return next((len(fn.inputs) for fn in found), None)

    def left_by(self, session: str, state: gr.State) -> Any:
        """What a browser window that was closed within the last hour held in this state; None if nothing is known.

        The window's name is a secret that only its browser knows.
        """
        known = self.app.state_holder.session_data.get(session)
        return None if known is None else known.state_data.get(state._id)

    def num_waiting(self, session: str) -> int:
        """The number of a browser window's unfinished events."""
        return len(self._queue.pending_event_ids_session.get(session, ()))

    def num_waiting_bytes(self) -> int:
        """What the JSON of all windows' unfinished events takes in memory."""
        return sum(event.request.scope.get(HELD_BYTES, 0) for event in self._queue.event_ids_to_events.values())

    def has_messages(self, session: str) -> bool:
        """Whether a browser window has messages to fetch, or events that will send some."""
        messages = self._queue.pending_messages_per_session.get(session)
        return self.num_waiting(session) > 0 or (messages is not None and messages.qsize() > 0)

    def is_told(self, name: str) -> bool:
        """Whether there are messages for this browser window, or for the event with this id."""
        queue = self._queue
        windows, events = queue.pending_messages_per_session, queue.pending_event_ids_session
        if name in windows or name in queue.event_ids_to_events:
            return True
        return any(name in events.get(session, ()) for session in windows)  # an event that has ended

    async def process_api(  # type: ignore[override]
        self, block_fn: Any, inputs: list[Any], **options: Any
    ) -> dict[str, Any]:
        """As in gr.Blocks, but errors never show the server's internals.

        Pictures given by address are fetched within our limits, because Gradio's own download has none. The uploads in
        the event and in its window's conversation count as used.
        """
        try:
            if options.get("iterator") is None:  # otherwise a running event continues
                if (read := self.readers.get(getattr(block_fn, "api_name", None) or "")) is not None:
                    inputs = read(inputs)
                inputs = await self._with_files_here(inputs, options)
            return await super().process_api(block_fn, inputs, **options)
        except gr.Error as error:
            if error.print_exception:  # Gradio's own messages, which mention files and types
                raise gr.Error(UNREADABLE, print_exception=False) from None
            raise
        except Gemma3Error as error:
            raise gr.Error(str(error), print_exception=False) from None
        except Exception:
            logger.exception("a handler failed")
            raise gr.Error(UNEXPECTED, print_exception=False) from None

    async def preprocess_data(self, *args: Any, **options: Any) -> list[Any]:
        """As in gr.Blocks, but a value that doesn't fit its component becomes one plain sentence."""
        try:
            return await super().preprocess_data(*args, **options)
        except Exception as error:  # noqa: BLE001  components raise any error on malformed values
            told = str(error.message) if isinstance(error, gr.Error) else ""
            told = told if _OUT_OF_RANGE.fullmatch(told) else UNREADABLE
            raise gr.Error(told, print_exception=False) from None

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """As in gr.Blocks, but a chat prepares each message once, not the whole conversation with each redraw."""
        if not isinstance(predictions, list | tuple) or len(block_fn.outputs) < 2:
            return await super().postprocess_data(block_fn, predictions, state)
        predictions, chats = list(predictions), {}
        for index, (block, value) in enumerate(zip(block_fn.outputs, predictions, strict=False)):
            if isinstance(block, gr.Chatbot) and isinstance(value, list):
                chats[index] = await to_thread.run_sync(prepare, block, value, limiter=self.limiter)
                predictions[index] = []  # leaves nothing for Gradio to prepare
        data = await super().postprocess_data(block_fn, predictions, state)
        for index, messages in chats.items():
            data[index] = messages
        return data

    def handle_streaming_diffs(
        self,
        block_fn: Any,
        data: list[Any],
        session_hash: str | None,
        run: Any,
        final: bool,
        simple_format: bool = False,
    ) -> list[Any]:
        """As in gr.Blocks, but an update of properties that follows another one is sent whole, and a page is not told
        the last update again when the generator has ended.

        With a difference, Gradio's page would change the one before in place, even where it has not been drawn yet.
        Told again, the last update would undo what has come since, a new chat for one.
        """
        whole = list(data)
        sent: list[Any] = super().handle_streaming_diffs(block_fn, data, session_hash, run, final, simple_format)
        if final and block_fn.api_visibility == "private":
            return [gr.skip() for _ in sent]
        for place, (update, edits) in enumerate(zip(whole, sent, strict=True)):
            if isinstance(update, dict) and "__type__" in update and isinstance(edits, list) and edits:
                sent[place] = [["replace", [], update]]
        return sent

    async def _with_files_here(self, inputs: list[Any], options: dict[str, Any]) -> list[Any]:
        """The inputs, with a file for each picture given by an address or a data URL; `options` are those of
        `process_api`. Raises Gemma3Error."""
        session, state, request = options.get("session_hash"), options.get("state"), options.get("request")
        event = self._queue.event_ids_to_events.get(options.get("event_id") or "")
        used: list[str] = []

        async def noted(file: dict[str, Any]) -> dict[str, Any]:
            used.append(file["path"])
            return file

        async def here(file: dict[str, Any]) -> dict[str, Any]:
            address = file["path"]
            if address.startswith("data:"):  # takes no turn among those who wait for other servers
                file = {**file, "path": await to_thread.run_sync(self._read, address), "url": None}
            elif is_http_url_like(address):
                fetched = asyncio.get_running_loop().run_in_executor(self._fetching, self._fetched, address, event)
                file = {**file, "path": await fetched, "url": None}
            return file

        await async_traverse(inputs, noted, _is_file)
        given = [path for path in used if path.startswith("data:") or is_http_url_like(path)]
        if len(given) > _MAX_ADDRESSES:
            raise Gemma3Error(
                f"At most {_MAX_ADDRESSES} pictures may be given by address or as data. Upload them, or ask with fewer."
            )
        to_fetch = sum(map(is_http_url_like, given))
        visitor = self.desk.callers.of(request).visitor if to_fetch else ""
        with self._fetches.counted(visitor, to_fetch):
            inputs = await async_traverse(inputs, here, _is_file)
        await async_traverse(inputs, noted, _is_file)
        if session is not None:
            for value in () if state is None else state.state_data.values():
                if isinstance(value, Conversation):
                    used += value.pictures()
            self.uploads.use(session, used)
        return inputs

    def _read(self, data_url: str) -> str:
        """Stores the picture of a data URL and returns its path. Raises Gemma3Error."""
        return self.store(read_data_url(data_url), "picture.bin", "")

    def _fetched(self, address: str, event: Any) -> str:
        """Stores the picture of an address and returns its path, unless the visitor has left the event (None for one
        that stands in no queue) before its turn. Raises Gemma3Error."""
        if event is not None and not event.alive:
            raise Gemma3Error(LEFT)
        return self.store(fetch_image(address), "picture.bin", "")

    def store(self, data: bytes, name: str, caption: str) -> str:
        """Keeps a picture as an upload; `caption` stands before it in the prompt. Raises Gemma3Error."""
        number, temporary = tempfile.mkstemp(prefix=".", dir=self.uploads.folder)
        with os.fdopen(number, "wb") as file:
            file.write(data)
        return self.uploads.add(Path(temporary), name, caption)

    @asynccontextmanager
    async def run_periodic_tasks(self, _app: Any) -> AsyncIterator[None]:
        """While the server runs, removes files that nobody needs, closes connections without requests, and gives freed
        memory back."""
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        silent: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self._clean_up(silent)
            except Exception:
                logger.exception("the clean-up failed; it is tried again")

    async def _clean_up(self, silent: MutableMapping[Any, float]) -> None:
        self._forget_ended()
        gone = set(await asyncio.to_thread(self.uploads.sweep, KEPT_UNUSED_S))
        for names in self.temp_file_sets:
            names -= gone
        for task in self.periodic_tasks:
            await asyncio.to_thread(task)
        server = getattr(self, "server", None)
        if server is not None:
            server.config.limit_concurrency = _MAX_CONNECTIONS
            close_silent(server.server_state.connections, silent)
        await asyncio.to_thread(return_freed_memory)

    def _forget_ended(self) -> None:
        """Forgets ended events of windows that have no messages left to fetch.

        By itself Gradio keeps each window for ever, and each event whose end nobody has fetched.
        """
        queue = self._queue
        for session, events in list(queue.pending_event_ids_session.items()):
            unread = queue.pending_messages_per_session.get(session)
            if unread is None or unread.empty():
                events.intersection_update(queue.event_ids_to_events)
                if not events:
                    del queue.pending_event_ids_session[session]

    def launch(self, *args: Any, **options: Any) -> Any:
        declare_pictures()
        allow_open_files(2 * _MAX_CONNECTIONS)
        speak_http_alone()
        ours = (name for name in logging.root.manager.loggerDict if name.startswith(("components.", "gemma3_core.")))
        limit_logs("uvicorn.error", "asyncio", *ours)
        # uvicorn reads it now; without it, anybody on this machine could say that another address asks.
        os.environ["FORWARDED_ALLOW_IPS"] = ",".join(self.operation.trusted_proxies)
        self._launching = threading.get_ident()
        return super().launch(*args, **{**launch_options(self), **options})


def _is_file(value: Any) -> bool:
    return is_file_obj_with_meta(value) and isinstance(value["path"], str)


def declare_pictures() -> None:
    """Tells Python that .avif, .heic and .heif are pictures, because Gradio refuses files of unknown types.

    Before 3.13, Python knows these types only from the system's list, which may be missing.
    """
    for kind in ("avif", "heic", "heif"):
        mimetypes.add_type(f"image/{kind}", f".{kind}")


def launch_options(page: Page) -> dict[str, Any]:
    """The options of `gradio.Blocks.launch` that make the page what it is.

    The style sheet goes into the head, because Gradio rewrites the selectors of its `css` option: those inside @media
    (phones, reduced motion) would match nothing.
    """
    names = (name for name in _SCRIPTS if not (page.forgetful and name == "conversations.js"))
    scripts = "".join(f"<script>{_asset(name)}</script>" for name in names)
    space = os.environ.get("SPACE_ID")
    if space:  # inside its frame the page has another address than the Space
        home, address = f"https://huggingface.co/spaces/{space}", f"https://{os.environ.get('SPACE_HOST', '')}"
        scripts += f"<script>Object.assign(window.ask, {json.dumps({'home': home, 'spaceAddress': address})})</script>"
    sent = headers(page.frame_ancestors or ("*" if space else "'self'"))
    return {
        "theme": build_theme(),
        "head": f"<style id='ask-style'>{_asset('style.css')}</style>{scripts}",
        "js": _asset("page.js"),
        "footer_links": ["api"],
        "favicon_path": str(_ASSETS / "icon.svg"),
        "pwa": True,  # browsers offer to install the page as an app
        "max_file_size": MAX_FILE_BYTES,
        "max_threads": _MAX_RUNNING,
        "state_session_capacity": _MAX_WINDOWS,
        "run_history": False,  # questions and answers stay out of the browser's storage
        "strict_cors": True,
        "show_error": False,  # gr.Error is still shown, but no internal error
        "ssr_mode": False,
        "_frontend": False,  # its check ends the program where a busy machine's page takes more than three seconds
        "enable_monitoring": False,
        "app_kwargs": {
            "middleware": [Middleware(Gate, served=page, uploads=page.uploads, headers=sent)],
            "lifespan": page.run_periodic_tasks,
        },
    }


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
