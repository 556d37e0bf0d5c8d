"""What crosses between a page in front and its replicas: our own frozen dataclasses, with pictures as bytes.

Ray pickles both ways, so only these two programs may write there: a visitor's text stays a string and a visitor's file
stays bytes, and neither is ever unpickled or looked up as a path on the other machine. A request's bytes are bounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

from gemma3_core.engine.api import ModelInfo, Request
from gemma3_core.engine.prompts import check_size, load_picture, read_headers
from gemma3_core.engine.registry import ModelEntry
from gemma3_core.errors import ContextLengthError, Gemma3Error
from gemma3_core.images.load import PictureHeader

MAX_SENT_BYTES = 64_000_000
"""The files of one request's pictures together, in bytes."""
_SOURCES = Path(__file__).resolve().parents[1]

LOOKS = ("preview", "picture_tokens", "inspect", "mask", "attention", "why", "occlude")
"""The methods of an engine that a page in front may call on a replica, besides `stream`."""


@dataclass(frozen=True)
class Told:
    """A call's place in the queue, in words."""

    text: str


@dataclass(frozen=True)
class Found:
    """A value that a call gives back."""

    value: Any


@dataclass(frozen=True)
class Failed:
    """The end of a call: an error that the visitor can fix."""

    error: Gemma3Error


@dataclass(frozen=True)
class Description:
    """What a replica holds: its program's `version`, the models that stay, those that can be chosen, its options."""

    version: str
    infos: tuple[ModelInfo, ...]
    entries: tuple[ModelEntry, ...]
    models: dict[str, Any]


def program_version() -> str:
    """A fingerprint of gemma3_core's source: equal where a page and a replica run the same program."""
    found = blake2b(digest_size=8)
    for path in sorted(_SOURCES.rglob("*.py")):
        found.update(path.relative_to(_SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


class Parcel:
    """The pictures of a request, read as headers alone until they are sent.

    Raises what `Engine.stream` raises for broken or too many pictures, and ContextLengthError if their files are too
    large together.
    """

    def __init__(self, request: Request, context_length: int):
        check_size(request, context_length)
        self._request = request
        self._headers = read_headers([picture for turn in request.turns for picture in turn.pictures])
        self.num_bytes = sum({header.digest: _size(header) for header in self._headers}.values())
        _check_bytes(self.num_bytes)

    def request(self) -> Request:
        """The request with its pictures as bytes. Raises ImageError if a file is gone."""
        pictures = iter(as_bytes(self._headers))
        turns = [replace(turn, pictures=tuple(next(pictures) for _ in turn.pictures)) for turn in self._request.turns]
        return replace(self._request, turns=tuple(turns))


def as_bytes(headers: Sequence[PictureHeader]) -> list[bytes]:
    """The files' bytes; equal files are one object, so that they are sent once."""
    known: dict[bytes, bytes] = {}
    for header in headers:
        if header.digest not in known:
            known[header.digest] = _bytes(header)
    return [known[header.digest] for header in headers]


def _check_bytes(num_bytes: int) -> None:
    if num_bytes > MAX_SENT_BYTES:
        raise ContextLengthError(
            f"These pictures have {num_bytes / 1e6:,.0f} MB in all; at most {MAX_SENT_BYTES / 1e6:,.0f} MB are sent to "
            "the machine that answers. Make them smaller, send fewer, or start a new conversation."
        )


def _size(header: PictureHeader) -> int:
    source = header.source
    if isinstance(source, Path):
        return source.stat().st_size
    return len(source) if isinstance(source, bytes | str) else 3 * header.width * header.height


def _bytes(header: PictureHeader) -> bytes:
    """The file's bytes; a picture that a program holds in memory becomes a PNG."""
    if isinstance(header.source, bytes):
        return header.source
    if isinstance(header.source, Path):
        load = header.source.read_bytes
        try:
            return load()
        except OSError:
            pass
    data = BytesIO()
    load_picture(header).save(data, "PNG")  # for a file that is gone, this raises the ImageError that says so
    return data.getvalue()
