"""Pictures that visitors have uploaded: the files on disk, who uses them, and how much space they may take.

A file stays while the page of a visitor who uses it is open, and for a while after its last use. The space is limited
for each visitor and for all together; when it runs out, the oldest unused files are deleted first.
"""

import atexit
import hashlib
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gradio_client.utils import strip_invalid_filename_characters

from gemma3_core.engine import Gemma3Error, check_document, check_picture

MAX_FILE_BYTES = 20_000_000
MAX_DOCUMENT_BYTES = 90_000_000
"""A PDF or a video, of which the visitor takes pages or frames."""
MAX_SESSION_BYTES = 200_000_000
MAX_ALL_BYTES = 2_000_000_000
MAX_FILES = 5_000
KEPT_UNUSED_S = 3600.0
MAX_AWAY = 500
"""Browser windows that are not open and whose files are still known as theirs, in case they come back."""

FULL = "The server has no room for more pictures. Try again in a few minutes."

DOCUMENT = ".document"
_MAX_NAME = 100
_MAX_REFUSED = 1000
_PREFIX = "ask-about-pictures-"


class UploadError(Gemma3Error):
    """An upload was refused; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


@dataclass(eq=False)
class _Upload:
    """One file; `sessions` are the browser windows that use it, `touched` the time of its last use in seconds.

    `caption` stands before the picture in the prompt.
    """

    num_bytes: int
    touched: float
    caption: str = ""
    sessions: set[str] = field(default_factory=set)


class Uploads:
    """The uploads of one server; safe to use from many threads."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.monotonic):
        self.folder, self.now = folder, now
        self._lock = threading.Lock()
        self._files: dict[str, _Upload] = {}
        self._refused: OrderedDict[str, str] = OrderedDict()
        self._open: set[str] = set()
        self._away: OrderedDict[str, float] = OrderedDict()
        """The windows that are not open but use files, with when each was last there; the first one longest ago."""

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    @property
    def num_bytes(self) -> int:
        """The size of all files on disk."""
        return sum(file.num_bytes for file in self._files.values())

    def caption(self, path: str) -> str:
        """What stands before this picture in the prompt; empty for most."""
        file = self._files.get(path)
        return "" if file is None else file.caption

    def add(self, temporary: Path, name: str, caption: str = "", is_document: bool = False) -> str:
        """Stores a file that has arrived and returns its new path.

        A document gets an ending that no browser opens. Raises UploadError if it is not a picture, or for a document
        neither that nor a PDF or a video, or there is no room. The temporary file is removed in any case.
        """
        try:
            try:
                (check_document if is_document else check_picture)(temporary)
            except Gemma3Error as error:
                raise UploadError(f"“{shown(name)}” is not added. {error}", 415) from None
            with open(temporary, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            path = self.folder / digest / (_safe(name) + DOCUMENT if is_document else _safe(name))
            with self._lock:
                known = self._files.get(str(path))
                if known is None:
                    num_bytes = temporary.stat().st_size
                    self._make_room(num_bytes)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(temporary, path)
                    self._files[str(path)] = _Upload(num_bytes, self.now(), caption)
                else:
                    known.touched = self.now()
            return str(path)
        finally:
            temporary.unlink(missing_ok=True)

    def refuse(self, name: str, reason: str) -> str:
        """Returns a path without a file; using it later raises an UploadError with this reason."""
        path = str(self.folder / "refused" / secrets.token_hex(16) / _safe(name))
        with self._lock:
            self._refused[path] = reason
            if len(self._refused) > _MAX_REFUSED:
                self._refused.popitem(last=False)
        return path

    def use(self, session: str, paths: Iterable[str]) -> None:
        """Notes that a browser window uses these files.

        If the window's files take more than MAX_SESSION_BYTES, those that it used longest ago no longer count as used.
        Paths that are not uploads are ignored. Raises UploadError for a refused upload.
        """
        paths = list(paths)
        with self._lock:
            for path in paths:
                if path in self._refused:
                    raise UploadError(self._refused[path], 415)
            wanted = [self._files[path] for path in dict.fromkeys(paths) if path in self._files]
            own = [file for file in self._files.values() if session in file.sessions and file not in wanted]
            room = MAX_SESSION_BYTES
            for file in (*wanted, *sorted(own, key=lambda file: -file.touched)):
                room -= file.num_bytes
                if room < 0:
                    file.sessions.discard(session)
                    continue
                file.sessions.add(session)
            for file in wanted:
                file.touched = self.now()
            if session not in self._open and (wanted or own):
                self._leave(session)

    def opened(self, session: str) -> None:
        """A browser window has opened; the files that it uses stay until it is `closed`."""
        with self._lock:
            self._open.add(session)
            self._away.pop(session, None)

    def closed(self, session: str) -> None:
        """A browser window has closed; its files stay for a while, in case it comes back."""
        with self._lock:
            self._open.discard(session)
            used = [file for file in self._files.values() if session in file.sessions]
            for file in used:
                file.touched = self.now()
            if used:
                self._leave(session)

    def sweep(self, kept_unused_s: float = KEPT_UNUSED_S) -> list[str]:
        """Deletes files that no open window uses and that were last used long ago; returns their paths."""
        with self._lock:
            old = self.now() - kept_unused_s
            for session in [session for session, left in self._away.items() if left <= old]:
                self._forget(session)
            gone = [path for path, file in self._files.items() if not self._in_use(file) and file.touched <= old]
            for path in gone:
                self._delete(path)
            return gone

    def _leave(self, session: str) -> None:
        """A window that is not open uses files; the lock is held. A made-up one never opens."""
        self._away[session] = self.now()
        self._away.move_to_end(session)
        if len(self._away) > MAX_AWAY:
            self._forget(next(iter(self._away)))

    def _forget(self, session: str) -> None:
        del self._away[session]
        for file in self._files.values():
            file.sessions.discard(session)

    def _in_use(self, file: _Upload) -> bool:
        return not self._open.isdisjoint(file.sessions)

    def _make_room(self, num_bytes: int) -> None:
        """Deletes the oldest unused files until one more fits; the lock is held."""
        unused = sorted(
            (path for path, file in self._files.items() if not self._in_use(file)),
            key=lambda path: self._files[path].touched,
        )
        total = self.num_bytes
        while len(self._files) >= MAX_FILES or total + num_bytes > MAX_ALL_BYTES:
            if not unused:
                raise UploadError(FULL, 507)
            oldest = unused.pop(0)
            total -= self._files[oldest].num_bytes
            self._delete(oldest)

    def _delete(self, path: str) -> None:
        del self._files[path]
        Path(path).unlink(missing_ok=True)
        try:
            Path(path).parent.rmdir()
        except OSError:  # it still holds the same picture under another name
            return


def private_folder() -> Path:
    """The folder for Gradio's files: this process's own, in GRADIO_TEMP_DIR or the system's folder for such files.

    A server knows no file of another one, so they share no folder. It is deleted when the process ends, and those that
    killed processes left behind are deleted now.
    """
    parent, own = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir()), f"{_PREFIX}{os.getpid()}-"
    if parent.name.startswith(own):
        return parent
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{_PREFIX}*-*"):
        number = left.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdecimal() and not _runs(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=own, dir=parent)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    return Path(folder)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to another user
        return True
    return True


def _safe(name: str) -> str:
    """A file name without folders or characters that file systems treat specially; its extension stays."""
    stem, ending = os.path.splitext(strip_invalid_filename_characters(Path(name.replace("\\", "/")).name))
    return stem[:_MAX_NAME] + ending[:10]


def shown(name: str) -> str:
    """A file's name, short and safe enough for a message."""
    return _safe(name)[-40:]
