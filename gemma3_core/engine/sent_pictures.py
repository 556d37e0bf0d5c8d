"""Writes the pictures of a question for another server, as data URLs; bounded for a question and over all of them."""

import base64
import io
import threading
from collections.abc import Generator, Hashable, Sequence
from concurrent.futures import wait
from functools import partial
from pathlib import Path

from gemma3_core.engine.api import StageEvent
from gemma3_core.engine.picture_reader import HeldTiles, PictureReader
from gemma3_core.engine.prompts import load_picture, numbered, read_headers
from gemma3_core.errors import ContextLengthError
from gemma3_core.images.load import ImageSource, PictureHeader

MAX_SENT_BYTES = 64_000_000
"""The pictures of one question, as they are sent."""
MAX_IN_FLIGHT_BYTES = 256_000_000
"""Those of all questions that are being answered. A question holds them twice, as texts and as the bytes it sends."""
_MOST_PNG_PIXELS, _MOST_PNG_BYTES = 4_000_000, 16_000_000
"""A larger picture is sent as JPEG, and so are those behind so many bytes."""
_JPEG_QUALITY, _MOST_JPEG_SIDE = 95, 65_500
"""Pixels that libjpeg takes."""
_BYTES_PER_PIXEL = 4
"""At most, in base64."""
_TICK_S = 0.1
_JPEG_BEGINS = b"\xff\xd8\xff"


class SentPictures:
    """Writes the pictures of many questions; safe to use from many threads."""

    def __init__(self, reader: PictureReader):
        self._reader, self._held = reader, HeldTiles(MAX_IN_FLIGHT_BYTES)

    def write(
        self, owner: Hashable, pictures: Sequence[ImageSource], stop: threading.Event
    ) -> Generator[StageEvent, None, list[str]]:
        """Yields what it waits for, and returns a data URL for each picture, or none once `stop` is set. Their memory
        is the owner's until it is released.

        Raises ImageError naming the broken picture, and ContextLengthError for too many pixels or bytes.
        """
        headers = read_headers(pictures)
        most = sum(_BYTES_PER_PIXEL * header.width * header.height for header in headers)
        while not self._held.hold(owner, min(most, MAX_SENT_BYTES), _TICK_S):
            yield StageEvent("preparing", "Waiting until there is room for these pictures")
            if stop.is_set():
                return []
        known: dict[bytes, str] = {}
        urls, num_bytes = list[str](), 0
        for number, header in enumerate(headers):
            if header.digest not in known:
                work = partial(_data_url, header, num_bytes >= _MOST_PNG_BYTES)
                future = self._reader.submit(work, header.decoding_bytes)
                try:
                    while not wait([future], _TICK_S).done:
                        yield StageEvent("preparing", f"Opening picture {number + 1} of {len(headers)}")
                        if stop.is_set():
                            return []
                    with numbered(number, len(headers)):
                        known[header.digest] = future.result()
                finally:
                    future.cancel()
            urls.append(known[header.digest])
            num_bytes += len(urls[-1])
            if num_bytes > MAX_SENT_BYTES:
                raise ContextLengthError(
                    f"The first {number + 1} of these {len(headers)} pictures already take {num_bytes / 1e6:,.0f} MB; "
                    f"at most {MAX_SENT_BYTES / 1e6:,.0f} MB are sent to the server that answers. Make them smaller, "
                    "send fewer, or start a new conversation."
                )
        self._held.hold(owner, num_bytes, 0)
        return urls

    def release(self, owner: Hashable) -> None:
        """Releases the owner's pictures; harmless if it holds none."""
        self._held.release(owner)


def _data_url(header: PictureHeader, as_jpeg: bool) -> str:
    """The picture as the model would see it, without what its file says about place and time."""
    picture, written = load_picture(header), io.BytesIO()
    as_jpeg = as_jpeg or _is_jpeg(header.source) or picture.width * picture.height > _MOST_PNG_PIXELS
    as_jpeg = as_jpeg and max(picture.size) <= _MOST_JPEG_SIDE
    picture.save(written, **({"format": "JPEG", "quality": _JPEG_QUALITY} if as_jpeg else {"format": "PNG"}))
    return f"data:image/{'jpeg' if as_jpeg else 'png'};base64,{base64.b64encode(written.getbuffer()).decode()}"


def _is_jpeg(source: ImageSource) -> bool:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(len(_JPEG_BEGINS)) == _JPEG_BEGINS
    return isinstance(source, bytes) and source.startswith(_JPEG_BEGINS)
