"""How the page is served: limits, look, and what a browser may load."""

import asyncio
import mimetypes
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from gradio_client.utils import async_traverse, is_file_obj_with_meta, is_http_url_like
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from components.examples import FOLDER as EXAMPLES
from components.theme import build_theme
from gemma3_core.engine import Gemma3Error, fetch_image

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_MAX_UPLOAD_BYTES = 20_000_000
_MAX_WINDOWS = 500

# The page, its fonts, pictures and connections come from here and from nowhere else, even where a
# model's answer or a visitor's question would have it otherwise.
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
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class Page(gr.Blocks):
    """Blocks that are launched in one way, whoever launches them; options given there still win."""

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Pictures given by address are fetched with our limits: Gradio's own way bounds no download."""
        inputs = await async_traverse(inputs, self._with_file_here, is_file_obj_with_meta)
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)

    async def _with_file_here(self, file: dict[str, Any]) -> dict[str, Any]:
        """A file's description whose path is an upload. Raises gr.Error where the address gives no file."""
        if not is_http_url_like(file["path"]):
            return file
        try:
            data = await asyncio.to_thread(fetch_image, file["path"])
        except Gemma3Error as error:
            raise gr.Error(str(error), print_exception=False) from error
        path = save_bytes_to_cache(data, "picture.bin", get_upload_folder())
        self.upload_file_set.add(path)  # deleted with the uploads
        return {**file, "path": path, "url": None}

    def launch(self, *args: Any, **options: Any) -> Any:
        declare_avif()
        return super().launch(*args, **{**launch_options(), **options})


def declare_avif() -> None:
    """Tells Python that .avif is a picture: before 3.13 only the system's list does, where there is one, and
    Gradio refuses files of unknown kinds."""
    mimetypes.add_type("image/avif", ".avif")


def launch_options() -> dict[str, Any]:
    """The options of `gradio.Blocks.launch` that make the page what it is.

    The style sheet goes into the head: Gradio's `css` rewrites selectors, and what it makes of those
    inside @media (the phone, reduced motion) matches nothing.
    """
    return {
        "theme": build_theme(),
        "head": f"<style>{_asset('style.css')}</style><script>{_asset('masks.js')}</script>",
        "js": _asset("page.js"),
        "footer_links": ["api", "settings"],
        "allowed_paths": [str(EXAMPLES)],
        "max_file_size": _MAX_UPLOAD_BYTES,
        "state_session_capacity": _MAX_WINDOWS,
        "run_history": False,  # questions and answers stay out of the browser's storage
        "strict_cors": True,
        "show_error": True,
        "ssr_mode": False,
        "enable_monitoring": False,
        "app_kwargs": {"middleware": [Middleware(SafeHeaders)]},
    }


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


class SafeHeaders:
    """Adds _HEADERS to each response. Plain ASGI: Starlette's own base class would hide from Gradio
    that a visitor has left."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers if scope["type"] == "http" else send)
