"""`python app.py` in its own process, and the resources that it uses (Linux)."""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.demo_app import ROOT, free_port

READY_WITHIN_S = 120.0
_DEMO_MODEL = ROOT / "assets" / "demo_model"


@dataclass(frozen=True)
class Taken:
    """The resources of the app's process at one moment: memory and disk in bytes, the others as counts."""

    memory: int
    threads: int
    descriptors: int
    connections: int
    disk: int


@dataclass(frozen=True)
class WatchedApp:
    """A running app. `folder` holds all its temporary files, `log` its output."""

    url: str
    process: Any  # subprocess.Popen, or what a start of one's own returns
    folder: Path
    log: Path

    def alive(self) -> bool:
        return self.process.poll() is None

    def memory(self) -> int:
        """Resident bytes."""
        return self._status("VmRSS") * 1024

    def peak(self) -> int:
        """Peak resident bytes since the start, or since `forget_peak`."""
        return self._status("VmHWM") * 1024

    def forget_peak(self) -> None:
        """Resets `peak` to the current size."""
        (self._of_process() / "clear_refs").write_text("5")

    def limit_data(self, more: int) -> None:
        """Lets the process's data grow by `more` bytes from now on; larger allocations fail."""
        limit = self._status("VmData") * 1024 + more
        resource.prlimit(self.process.pid, resource.RLIMIT_DATA, (limit, limit))

    def taken(self) -> Taken:
        links = self._links()
        sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
        return Taken(
            memory=self.memory(),
            threads=self._status("Threads"),
            descriptors=len(links),
            connections=len(sockets & _connected()),
            disk=_bytes_under(self.folder),
        )

    def _of_process(self) -> Path:
        return Path("/proc") / str(self.process.pid)

    def _status(self, name: str) -> int:
        found = re.search(rf"^{name}:\s+(\d+)", (self._of_process() / "status").read_text(), re.MULTILINE)
        if found is None:
            raise RuntimeError(f"The app has ended, or this system does not report a process's {name}.")
        return int(found[1])

    def _links(self) -> list[str]:
        """The targets of the process's descriptors; some may close while this reads them."""
        links = []
        for entry in (self._of_process() / "fd").iterdir():
            try:
                links.append(os.readlink(entry))
            except FileNotFoundError:
                continue
        return links


def _started(file: Path, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Any:
    with log.open("wb") as said:
        return subprocess.Popen(
            [sys.executable, str(file), *arguments], cwd=ROOT, env=environment, stdout=said, stderr=subprocess.STDOUT
        )


@contextmanager
def watched_app(
    *arguments: str, start: Callable[..., Any] = _started, port: int | None = None, **environment: str
) -> Iterator[WatchedApp]:
    """Runs the app with only the demo model; it is ready when the block begins and gone when the block ends.

    `port` is by default one that is free now. `start` takes the file, its arguments, its environment and its log, and
    returns what subprocess.Popen would.
    """
    with tempfile.TemporaryDirectory(prefix="watched-app-") as name:
        folder, log = Path(name) / "temporary", Path(name) / "log"
        (folder / "uploads").mkdir(parents=True)
        port = free_port() if port is None else port
        options = ["--model", str(_DEMO_MODEL), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
        own = {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "uploads"), "HF_HUB_OFFLINE": "1"}
        process = start(ROOT / "app.py", [*options, *arguments], {**os.environ, **own, **environment}, log)
        app = WatchedApp(f"http://127.0.0.1:{port}", process, folder, log)
        try:
            _wait_until_ready(app)
            yield app
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=20)


def _wait_until_ready(app: WatchedApp) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end:
        if not app.alive():
            raise RuntimeError(f"app.py exited with status {app.process.returncode}: {app.log.read_text()[-2000:]}")
        try:
            # Without reading certificates, which takes 20 ms of what the app could have.
            if httpx.get(app.url, timeout=5, trust_env=False, verify=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError(f"The page was not ready within {READY_WITHIN_S:g} s.")


def _connected() -> set[str]:
    """The inodes of all open TCP connections on this machine."""
    listening = "0A"
    found = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            fields = line.split()
            if fields[3] != listening:
                found.add(fields[9])
    return found


def _bytes_under(folder: Path) -> int:
    """Bytes of all files in a folder; some may disappear during the count."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total
