"""Scripts, styles and texts of the page, each compressed once and not for every page that opens."""

import gzip
import re
from collections.abc import Awaitable, Callable
from functools import partial

import brotli
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from components.serving.messages import NOT_FOUND
from components.serving.receiving import RefusedError

MAX_ASSET_BYTES = 50_000_000
"""What is kept compressed."""
_ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "br": partial(brotli.compress, quality=7),
    "gzip": partial(gzip.compress, compresslevel=7),
    "identity": bytes,
}


class Assets:
    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, bool], Response] = {}
        """By their addresses, their encodings, and whether the address changes with the content."""

    async def answer(
        self, made: Callable[[], Awaitable[Response]], named: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answers with what `made` gives for this address the first time. `named` says that the address changes with
        the content, so that browsers may keep it for good. Raises RefusedError where nothing is there."""
        encoding = accepted_encoding(scope)
        key = (scope["path"], encoding, named)
        if (asset := self._kept.get(key)) is None:
            asset = await made()
            if asset.status_code != 200:
                raise RefusedError(404, NOT_FOUND)
            await run_in_threadpool(compress, asset, bytes(asset.body), encoding)
            asset.headers["cache-control"] = f"public, max-age={'31536000, immutable' if named else '3600'}"
            if sum(len(one.body) for one in self._kept.values()) + len(asset.body) <= MAX_ASSET_BYTES:
                self._kept[key] = asset
        await (asset if scope["method"] == "GET" else Response(headers=dict(asset.headers)))(scope, receive, send)


def compress(answer: Response, body: bytes, encoding: str) -> None:
    """Makes `body` the answer's, in one of the encodings of `accepted_encoding`."""
    answer.body = _ENCODINGS[encoding](body)
    if encoding != "identity":
        answer.headers["content-encoding"] = encoding
    answer.headers["vary"] = "accept-encoding"
    answer.headers["content-length"] = str(len(answer.body))


def accepted_encoding(scope: Scope) -> str:
    """The best encoding that the browser takes."""
    accepted = dict(scope["headers"]).get(b"accept-encoding", b"").decode("latin-1")
    return next((name for name in _ENCODINGS if name in re.split(r"[ ,;]+", accepted)), "identity")
