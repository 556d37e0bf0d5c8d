"""A Hub on this machine: its addresses for a repository's files, and what can go wrong with them."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_LARGE = 20_000  # bytes from which a file counts as one of the large-file storage


@dataclass
class Repository:
    """Files by name. A gated one tells its list to everybody, as the Hub does, and its files only with the token."""

    files: dict[str, bytes]
    token: str = ""


@dataclass
class LocalHub:
    """`breaks` are after how many bytes the next answers with a large file break off; `ranges` are what was asked for.

    With `pause_s` a large file comes in pieces of 64 kB, with a pause between them; `ignores_ranges` sends all of it.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    url: str = ""
    breaks: list[int] = field(default_factory=list)
    pause_s: float = 0.0
    ignores_ranges: bool = False
    down: bool = False
    damages: bool = False
    ranges: list[str] = field(default_factory=list)

    def add(self, repo_id: str, folder: Path, token: str = "") -> None:
        """A repository with the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        self.repositories[repo_id] = Repository(files, token)

    def environment(self, home: Path) -> dict[str, str]:
        """For another process that has this Hub instead of the real one; `home` holds its cache."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_TOKEN": ""}

    @contextmanager
    def used(self, cache: Path, token: str | None = None) -> Iterator[None]:
        """This process has this Hub instead of the real one."""
        from huggingface_hub import close_session, constants

        changed = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(cache / "no-token"),
            "HF_STORED_TOKENS_PATH": str(cache / "no-tokens"),
        }
        environment = {"HF_TOKEN": token} if token else {}
        close_session()
        with patch.multiple(constants, **changed), patch.dict(os.environ, environment):
            yield
        close_session()


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """Serves it on a port of its own."""
    hub = LocalHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _etag(data: bytes) -> str:
    """As the Hub: the SHA-256 of a large file, the git id of a small one."""
    if len(data) >= _LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.hub.down:
            return self._json(503, {})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._api(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(found[1], found[3])
        return self._json(404, {})

    def _api(self, repo_id: str, kind: str | None) -> None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            return self._json(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        listed = []
        for name, data in repository.files.items():
            lfs = {"lfs": {"oid": _etag(data), "sha256": _etag(data), "size": len(data), "pointerSize": 130}}
            entry = {"size": len(data), "blobId": "0" * 40, "oid": "0" * 40} | (lfs if len(data) >= _LARGE else {})
            listed.append({"type": "file", "path": name, "rfilename": name, **entry})
        if kind == "tree":
            return self._json(200, listed)
        gated = "manual" if repository.token else False
        return self._json(200, {"id": repo_id, "sha": COMMIT, "siblings": listed, "gated": gated, "private": False})

    def _file(self, repo_id: str, name: str) -> None:
        repository = self.hub.repositories.get(repo_id)
        if repository is None:
            return self._json(401, {}, {"X-Error-Code": "RepoNotFound"})
        told = self.headers.get("Authorization", "")
        if repository.token and told != f"Bearer {repository.token}":
            return self._json(403 if told else 401, {}, {"X-Error-Code": "GatedRepo"})
        if name not in repository.files:
            return self._json(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        data = repository.files[name]
        etag = _etag(data)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        begin = int(asked[1]) if asked and not self.hub.ignores_ranges else 0
        body = data[begin:]
        self.send_response(206 if begin else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return None
        large = len(data) >= _LARGE
        if large:
            self.hub.ranges.append(f"{name} from {begin}")
        if large and self.hub.damages:
            body = bytes(len(body))
        if large and self.hub.breaks:
            self.wfile.write(body[: self.hub.breaks.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return None
        for place in range(0, len(body), 65_536):
            self.wfile.write(body[place : place + 65_536])
            if large:
                time.sleep(self.hub.pause_s)
        return None

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
