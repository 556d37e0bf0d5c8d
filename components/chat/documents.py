"""Pictures from where people have them: the pages of a document, the frames of a video, an address."""

import json
import mimetypes
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from components.shown.picker import clock, failure_html, picker_html, smaller_html
from gemma3_core.engine import (
    MAX_TAKEN,
    Document,
    Gemma3Error,
    ModelRegistry,
    Taken,
    fetch_image,
    open_document,
    take_frames,
    take_pages,
)

GONE = "This file is no longer on the server. Add it again."
_SUGGESTED = 8
_MAX_ADDRESS, _MAX_CHOICE = 2000, 500  # characters

Arrival = tuple[str, str]
"""HTML of the picker, and the pictures that have arrived, as JSON for the composer."""


class Documents:
    """The handlers of the picker. Pictures arrive as uploads of the visitor's, and the browser adds them to whatever
    the composer holds then."""

    def __init__(
        self, models: ModelRegistry, is_upload: Callable[[str], bool], store: Callable[[bytes, str, str], str]
    ):
        """`store` keeps a picture under a name, with what stands before it in the prompt; returns its path."""
        self._models, self._is_upload, self._store = models, is_upload, store

    def look(self, path: str | None, pan_and_scan: bool, model: str | None) -> Arrival:
        """Shows what an uploaded document holds; if it holds one picture, that arrives at once."""
        path = path or ""
        try:
            document = self._opened(path)
            if document.only is None:
                return self._picker(document, path, pan_and_scan, model), "[]"
            return smaller_html(document.only, _name(path)), self._arrived([document.only], path)
        except Gemma3Error as error:
            return failure_html(f"“{_name(path)}” is not added. {error}" if path else str(error)), "[]"

    def take(self, path: str | None, chosen: str | None, pan_and_scan: bool, model: str | None) -> Arrival:
        """The chosen pages ("1-3, 7"), or frames of a video ("8 frames"), arrive. An unfit choice is asked again."""
        path, chosen = path or "", chosen or ""
        try:
            if not self._is_upload(path):
                raise Gemma3Error(GONE)
            if chosen.endswith(" frames"):
                taken = take_frames(Path(path), _number(chosen.removesuffix(" frames")))
            else:
                taken = take_pages(Path(path), pages(chosen))
            return "", self._arrived(taken, path, several=True)
        except Gemma3Error as wrong:
            try:
                return self._picker(self._opened(path), path, pan_and_scan, model, str(wrong)), "[]"
            except Gemma3Error as error:
                return failure_html(str(error)), "[]"

    def fetch(self, address: str | None) -> tuple[str, str]:
        """Why the picture at an address does not arrive; empty where it does. And what has arrived, as in `Arrival`."""
        address = address or ""
        try:
            if len(address) > _MAX_ADDRESS or not address.startswith(("http://", "https://")):
                raise Gemma3Error("This is no http or https address. Check it, or add the picture as a file.")
            name = re.sub(r"[^\w.-]", "_", address.partition("?")[0].rpartition("/")[2]) or "picture"
            return "", json.dumps([_file(self._store(fetch_image(address), name, ""))])
        except Gemma3Error as error:
            return str(error), "[]"

    def _opened(self, path: str) -> Document:
        if not self._is_upload(path):
            raise Gemma3Error(GONE)
        return open_document(Path(path))

    def _picker(self, document: Document, path: str, pan_and_scan: bool, model: str | None, problem: str = "") -> str:
        with self._models.held(model) as engine:
            costs = [] if engine is None else [engine.picture_tokens(*size, pan_and_scan) for size in document.sizes]
            room = MAX_TAKEN if engine is None else engine.info.context_length // 4 // max(1, *costs, 1)
        most = MAX_TAKEN if document.seconds is not None else document.count
        return picker_html(document, _name(path), costs, max(1, min(_SUGGESTED, room, most)), problem)

    def _arrived(self, taken: Sequence[Taken], path: str, several: bool = False) -> str:
        """Stores the pictures; their names say where they are from."""
        stem, files = Path(_name(path)).stem, []
        for one in taken:
            where, caption = "", ""
            if one.second is not None:
                caption = clock(one.second)
                where = f" at {caption.replace(':', '-')}"
            elif several:
                where = f" page {one.number + 1}"
            files.append(_file(self._store(one.data, f"{stem}{where}{one.suffix}", caption)))
        return json.dumps(files)


def pages(text: str) -> list[int]:
    """ "1-3, 7" -> [0, 1, 2, 6], in this order and each once. Raises Gemma3Error."""
    if len(text) > _MAX_CHOICE:
        raise Gemma3Error("This names too many pages. Give numbers, such as 1-3, 7.")
    numbers: dict[int, None] = {}
    for part in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*[-–]\s*", "-", text.strip()))):
        found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= first <= last:
            raise Gemma3Error(f"“{part[:20]}” names no pages: give numbers, such as 1-3, 7.")
        if last - first >= MAX_TAKEN or len(numbers) > MAX_TAKEN:
            break
        numbers |= dict.fromkeys(range(first - 1, last))
    else:
        if 1 <= len(numbers) <= MAX_TAKEN:
            return list(numbers)
        if not numbers:
            raise Gemma3Error("No page is chosen. Give numbers, such as 1-3, 7.")
    raise Gemma3Error(f"At most {MAX_TAKEN} pages can be added at a time. Choose fewer, and add the rest afterwards.")


def _number(text: str) -> int:
    if not re.fullmatch(r"\d{1,4}", text.strip()) or not 1 <= int(text) <= MAX_TAKEN:
        raise Gemma3Error(f"Give a number of frames from 1 to {MAX_TAKEN}.")
    return int(text)


def _name(path: str) -> str:
    """A document's name as the visitor knows it."""
    return Path(path).name.removesuffix(".document")[-60:]


def _file(path: str) -> dict[str, Any]:
    """A picture as Gradio's composer holds it; the browser adds its address."""
    file = Path(path)
    kind = mimetypes.guess_type(file.name)[0] or "image/jpeg"
    return {
        "path": path, "orig_name": file.name, "size": file.stat().st_size, "mime_type": kind,
        "meta": {"_type": "gradio.FileData"},
    }  # fmt: skip
