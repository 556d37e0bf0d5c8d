"""Brings a repository's large files into the Hub's cache: with progress, with a look at the free space, and in pieces.

huggingface_hub deletes a file whose download breaks off. Here what has arrived stays as `blobs/SHA256.incomplete`, also
after the program has ended, and the next download continues from there. A file takes its place in the cache when its
SHA-256 is the one that the Hub tells.
"""

import errno
import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gemma3_core.errors import CheckpointError, StoppedError

_TIMEOUT_S = 30.0
_ATTEMPTS, _PAUSE_S = 4, 1.0
"""How often a connection may break without a new byte, and the pause before another one is tried."""
RESERVE = 100_000_000
"""Bytes that a download leaves free: other programs need some, and a GGUF file's tokenizer is unpacked."""
_RATE_S = 15.0
NO_SPACE = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


@dataclass
class Watch:
    """What a download tells while it runs, in words and as a share of the whole, and how it is stopped: `stop` ends it
    with the next bytes."""

    tell: Callable[[str, float], None] = lambda _text, _share: None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Missing:
    """A large file that is not in the cache yet; `num_bytes` is its whole size."""

    name: str
    sha256: str
    num_bytes: int


class _Progress:
    """Counts bytes and tells in words how far the download is, at most four times a second; without a watch a bar in
    the terminal shows it."""

    def __init__(self, repo_id: str, total: int, watch: Watch | None):
        from huggingface_hub.utils import tqdm

        self.total, self.done = total, 0
        self._watch = Watch() if watch is None else watch
        self._bar = tqdm(total=total, desc=repo_id, unit="B", unit_scale=True) if watch is None else None
        self._told, self._marks = 0.0, [(time.monotonic(), 0)]

    def have(self, num_bytes: int) -> None:
        """Counts bytes that were there before, or takes back bytes that are of no use."""
        self._count(num_bytes)
        self._marks = [(time.monotonic(), self.done)]

    def _count(self, num_bytes: int) -> None:
        self.done += num_bytes
        if self._bar is not None:
            self._bar.update(num_bytes)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, num_bytes: int) -> None:
        self._count(num_bytes)
        now = time.monotonic()
        if now - self._told >= 0.25:
            self._told = now
            self._marks = [mark for mark in self._marks if now - mark[0] <= _RATE_S] or self._marks[-1:]
            self._marks.append((now, self.done))
            self._watch.tell(self.text(), self.done / self.total)

    def text(self) -> str:
        began, before = self._marks[0]
        passed, arrived = time.monotonic() - began, self.done - before
        left = f", {_duration(passed * (self.total - self.done) / arrived)} left" if passed > 2 and arrived > 0 else ""
        return f"Downloading: {size_of(self.done)} of {size_of(self.total)}{left}"

    def check(self) -> None:
        if self._watch.stop.is_set():
            raise StoppedError("The download was stopped. What has arrived is kept; start it again to continue.")

    def pause(self) -> None:
        self._watch.tell(f"The connection broke after {size_of(self.done)}, and is tried again", self.done / self.total)
        self._watch.stop.wait(_PAUSE_S)
        self.check()


def fetch(
    repo_id: str,
    patterns: Iterable[str],
    given: dict[str, Any],
    watch: Watch | None = None,
    ignored: Iterable[str] = (),
) -> None:
    """Downloads those large files of a repository that fit the patterns, but none of `ignored`, and are not in the
    cache yet.

    `given` are options of snapshot_download. Small files are left to it, and so is saying why the Hub can't be asked.
    Raises CheckpointError for a disk without room, a connection that breaks and a damaged file, StoppedError, and the
    Hub's own errors for files that it does not give.
    """
    from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import filter_repo_objects

    if given.get("local_files_only") or given.get("force_download") or constants.is_offline_mode():
        return
    cache = Path(given.get("cache_dir") or constants.HF_HUB_CACHE).expanduser()
    token = given.get("token")
    try:
        info = HfApi().model_info(repo_id, revision=given.get("revision"), token=token, files_metadata=True)
    except Exception:  # noqa: BLE001  snapshot_download tries again, may find all in its cache, and says what is wrong
        return
    assert info.sha is not None
    large = [
        Missing(file.rfilename, file.lfs.sha256, file.lfs.size) for file in info.siblings or () if file.lfs is not None
    ]
    names = [file.name for file in large]
    wanted = set(filter_repo_objects(names, allow_patterns=list(patterns), ignore_patterns=list(ignored)))
    blobs = cache / f"models--{repo_id.replace('/', '--')}" / "blobs"
    missing = [f for f in large if f.name in wanted and not _is_cached(repo_id, f, info.sha, cache, blobs)]
    if not missing:
        return
    get_hf_file_metadata(hf_hub_url(repo_id, missing[0].name, revision=info.sha), token=token)  # raises if it is gated
    arrived = sum(min(file.num_bytes, _size_on_disk(_partial(blobs, file))) for file in missing)
    total = sum(file.num_bytes for file in missing)
    _require_space(repo_id, total - arrived, cache)
    progress = _Progress(repo_id, total, watch)
    try:
        for file in missing:
            _fetch_file(repo_id, file, info.sha, cache, blobs, token, progress)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CheckpointError(
                f"The disk is full: {size_of(progress.done)} of {size_of(total)} have arrived and are kept. Free "
                f"{size_of(total - progress.done + RESERVE)}, and start again."
            ) from None
        if isinstance(error, PermissionError):
            raise CheckpointError(
                f"{repo_id} can't be written to the Hub's cache. Set HF_HOME to a folder that can be written to."
            ) from None
        raise
    finally:
        progress.close()


def size_of(num_bytes: float) -> str:
    """A size in decimal units, as disks are sold: "3.3 GB"."""
    for unit, letters in ((1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.1f} {letters}"
    return f"{num_bytes / 1e3:.0f} kB"


def _duration(seconds: float) -> str:
    """Rounded so that it does not change with each word."""
    if seconds < 60:
        return f"{max(5, -int(-seconds // 5) * 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _partial(blobs: Path, file: Missing) -> Path:
    return blobs / f"{file.sha256}.incomplete"


def _size_on_disk(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _is_cached(repo_id: str, file: Missing, commit: str, cache: Path, blobs: Path) -> bool:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, file.name, cache_dir=cache, revision=commit)
    return isinstance(found, str) or (blobs / file.sha256).exists()


def _require_space(repo_id: str, num_bytes: int, cache: Path) -> None:
    """Raises CheckpointError if the cache's disk has less room."""
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if num_bytes + RESERVE > free:
        raise CheckpointError(
            f"{repo_id} needs {size_of(num_bytes + RESERVE)} on the disk, where {size_of(free)} are free. Free some "
            "space, or set HF_HOME to a folder on another disk."
        )


def _fetch_file(
    repo_id: str, file: Missing, commit: str, cache: Path, blobs: Path, token: Any, progress: _Progress
) -> None:
    from huggingface_hub.file_download import are_symlinks_supported
    from huggingface_hub.utils import WeakFileLock

    lock = cache / ".locks" / blobs.parent.name / f"{file.sha256}.lock"  # which the Hub's own downloads take too
    for folder in (blobs, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    target, partial = blobs / file.sha256, _partial(blobs, file)
    if not are_symlinks_supported(str(cache)):  # such as on Windows: there a snapshot holds the files themselves
        target = blobs.parent / "snapshots" / commit / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        if target.exists():  # another process has brought it meanwhile
            progress.have(file.num_bytes)
            return
        with open(partial, "r+b" if partial.exists() else "w+b") as content:
            _complete(content, repo_id, file, commit, token, progress)
            content.seek(0)
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if digest != file.sha256:
            partial.unlink()
            raise CheckpointError(f"{file.name} arrived damaged, and was deleted. Start the download again.")
        partial.replace(target)


def _complete(content: BinaryIO, repo_id: str, file: Missing, commit: str, token: Any, progress: _Progress) -> None:
    """Appends to the file until it has its whole size; a connection that breaks is opened again."""
    from huggingface_hub.errors import HfHubHTTPError

    done = content.seek(0, 2)
    if done > file.num_bytes:
        done = content.truncate(0)
    progress.have(done)
    fruitless = 0
    while done < file.num_bytes:
        before = done
        try:
            done = _append(content, done, repo_id, file, commit, token, progress)
        except Exception as error:
            if isinstance(error, HfHubHTTPError):
                if error.response.status_code < 500 and error.response.status_code != 429:
                    raise
            elif isinstance(error, OSError | StoppedError):
                raise
            done = content.seek(0, 2)  # the connection broke; which errors say so, the HTTP library decides
        fruitless = 0 if done > before else fruitless + 1
        if fruitless >= _ATTEMPTS:
            raise CheckpointError(
                f"The connection to the Hub broke after {size_of(progress.done)} of {size_of(progress.total)}. What "
                "has arrived is kept: start again, and the download continues."
            )
        if done < file.num_bytes:
            progress.pause()


def _append(
    content: BinaryIO, done: int, repo_id: str, file: Missing, commit: str, token: Any, progress: _Progress
) -> int:
    """Asks for the bytes from `done` on and writes them; returns how many there are then."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    url = hf_hub_url(repo_id, file.name, revision=commit)
    headers = {**build_hf_headers(token=token), "Range": f"bytes={done}-", "Accept-Encoding": "identity"}
    progress.check()
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as answer:
        hf_raise_for_status(answer)
        if done and answer.status_code != 206:  # the whole file again
            progress.have(-done)
            done = content.seek(content.truncate(0))
        for chunk in answer.iter_bytes():  # as they arrive, so that none is lost when the connection breaks
            progress.check()
            content.write(chunk[: file.num_bytes - done])
            content.flush()
            kept = min(len(chunk), file.num_bytes - done)
            done += kept
            progress.add(kept)
    return done
