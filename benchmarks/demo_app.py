"""The demo model behind the page: time to a ready page and to the first token, tokens a second, memory; also in
int4."""

import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "assets" / "examples"


def measure(rounds: int) -> dict[str, Any]:
    """Starts the app as a user does and asks `rounds` questions, each about one picture."""
    port = free_port()
    start = time.perf_counter()
    app = subprocess.Popen(
        [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_page(f"http://127.0.0.1:{port}/", app)
        ready = time.perf_counter() - start
        stats = _ask(f"http://127.0.0.1:{port}/", rounds)
        memory = peak_memory(app.pid)
        int4 = _ask(f"http://127.0.0.1:{port}/", rounds, int4=True)
    finally:
        os.killpg(app.pid, signal.SIGTERM)
        app.wait(timeout=30)
    return {
        "page_ready_s": round(ready, 2),
        **_speeds(stats),
        "peak_memory_gib": round(memory / 2**30, 2),
        "questions": len(stats),
        "int4": _speeds(int4),
    }


def _speeds(stats: list[dict[str, Any]]) -> dict[str, float]:
    """Medians over answers."""
    return {
        "first_token_s": round(statistics.median(s["time_to_first_token_s"] for s in stats), 3),
        "tokens_per_s": round(statistics.median(s["tokens_per_s"] for s in stats), 1),
    }


def _ask(address: str, rounds: int, int4: bool = False) -> list[dict[str, Any]]:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    pictures = sorted(PICTURES.glob("*.png"))
    stats = []
    for number in range(rounds + 1):
        picture = handle_file(pictures[number % len(pictures)])
        question = "How many shapes are there in the picture?"
        _, figures = client.predict([picture], question, int4=int4, api_name="/ask")
        stats.append(figures)
    return stats[1:]  # the first question includes torch's one-time setup


def _wait_for_page(address: str, app: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        if app.poll() is not None:
            raise RuntimeError(f"app.py exited with status {app.returncode} before its page was ready.")
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError(f"The page was not ready after {seconds:g} s.")


def peak_memory(pid: int | str) -> int:
    """Peak resident bytes of a process (Linux)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if found is None:
        raise RuntimeError("This system does not report a process's peak memory. Run this on Linux.")
    return int(found[1]) * 1024


def free_port() -> int:
    """Another program may take it before the app does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
