"""Receives request bodies and uploaded files, within limits."""

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Self

from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope

from components.serving.uploads import FULL, MAX_FILE_BYTES, UploadError, shown

UNREADABLE = "This request can't be read. Reload the page and try again."
TOO_LARGE = "This request is too large. Send less at a time."
TOO_MUCH = "The server receives too much at once. Try again in a minute."

MAX_UPLOAD_BYTES = 100_000_000
MAX_UPLOAD_FILES = 20
IDLE_S = 30.0
"""How long a body may pause."""


class RefusedError(Exception):
    """The request is refused with this HTTP status and message."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class GoneError(Exception):
    """The visitor left before their request was complete."""


class Room:
    """What the requests of some callers hold together, in bytes."""

    def __init__(self, elsewhere: Callable[[], int] = lambda: 0):
        """`elsewhere` counts what is held for requests that have ended."""
        self._elsewhere = elsewhere
        self._num_bytes = 0

    @property
    def num_bytes(self) -> int:
        return self._num_bytes + self._elsewhere()

    def add(self, num_bytes: int) -> None:
        self._num_bytes += num_bytes


class Held:
    """What one request holds of a room until it has ended."""

    def __init__(self, room: Room, most: int):
        """`most` is what all requests may hold together."""
        self._room, self._most = room, most
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._room.add(-self.num_bytes)

    def add(self, num_bytes: int) -> None:
        """Counts bytes. Raises RefusedError if all requests together hold too many."""
        self.num_bytes += num_bytes
        self._room.add(num_bytes)
        if self._room.num_bytes > self._most:
            raise RefusedError(503, TOO_MUCH)


class Receiving:
    """An upload that is arriving. Until it is complete, its files lie in `folder` under names that nobody can guess."""

    def __init__(self, folder: Path, has_room: Callable[[], bool], max_file_bytes: int = MAX_FILE_BYTES):
        """`has_room` says whether the server accepts more bytes of uploads."""
        self._folder, self._has_room, self._max_file_bytes = folder, has_room, max_file_bytes
        self.num_bytes = 0
        self.name = ""
        self.ended = False
        self._files: list[tuple[str, Path]] = []
        self._file: Any = None
        self._in_file = 0
        self._header = b""
        self._headers: dict[bytes, bytes] = {}

    async def read(self, scope: Scope, receive: Receive) -> list[tuple[str, Path]]:
        """The names and temporary paths of all files. Raises UploadError, and GoneError."""
        kind, options = parse_options_header(dict(scope["headers"]).get(b"content-type", b""))
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise UploadError(UNREADABLE, 400)
        parser = MultipartParser(boundary, {
            "on_part_begin": self._begin, "on_header_field": self._on_field, "on_header_value": self._on_value,
            "on_header_end": self._on_header, "on_headers_finished": self._open, "on_part_data": self._write,
            "on_part_end": self._close,
        })  # fmt: skip
        self._folder.mkdir(parents=True, exist_ok=True)
        async for chunk in chunks(receive):
            self.num_bytes += len(chunk)
            if self.num_bytes > MAX_UPLOAD_BYTES:
                raise UploadError(TOO_LARGE, 413)
            if not self._has_room():
                raise UploadError(FULL, 507)
            try:
                await run_in_threadpool(parser.write, chunk)
            except UploadError:
                raise
            except (ValueError, KeyError):
                raise UploadError(UNREADABLE, 400) from None
            except OSError:
                raise UploadError("The server's disk is full. Try again in some minutes.", 507) from None
        if self._file is not None or not self._files:
            raise UploadError(UNREADABLE, 400)
        return self._files

    def end(self) -> None:
        """Deletes the files that have not become uploads."""
        self.ended = True
        if self._file is not None:
            self._file.close()
        for _, path in self._files:
            path.unlink(missing_ok=True)

    def _begin(self) -> None:
        self._headers, self._field, self._value = {}, b"", b""

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field = _header(self._field + data[start:end])

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value = _header(self._value + data[start:end])

    def _on_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"filename" not in options:
            return
        if len(self._files) >= MAX_UPLOAD_FILES:
            raise UploadError(
                f"At most {MAX_UPLOAD_FILES} pictures can be added at a time. Add the rest afterwards.", 413
            )
        self.name, self._in_file = options[b"filename"].decode("utf-8", "replace"), 0
        number, path = tempfile.mkstemp(prefix=".", dir=self._folder)
        self._file = os.fdopen(number, "wb")
        self._files.append((self.name, Path(path)))

    def _write(self, data: bytes, start: int, end: int) -> None:
        if self._file is None:
            return  # a form field, which is not used
        self._in_file += end - start
        if self._in_file > self._max_file_bytes:
            limit = f"{self._max_file_bytes // 1_000_000} MB"
            raise UploadError(f"“{shown(self.name)}” is larger than {limit}. Make it smaller and try again.", 413)
        self._file.write(data[start:end])

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _header(data: bytes) -> bytes:
    if len(data) > 8192:
        raise UploadError(UNREADABLE, 400)
    return data


async def chunks(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body as it arrives. Raises GoneError if the visitor left, RefusedError after a long pause."""
    more = True
    while more:
        try:
            async with asyncio.timeout(IDLE_S):
                message = await receive()
        except TimeoutError:
            raise RefusedError(408, UNREADABLE) from None
        if message["type"] == "http.disconnect":
            raise GoneError
        more = message.get("more_body", False)
        yield message.get("body", b"")
