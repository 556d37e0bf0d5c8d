"""The real app, and a browser to view it with."""

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import httpx
import pytest
from places import REPOSITORY
from warm import Program

_PORTS = iter(range(20_000 + os.getpid() * 101 % 11_000, 32_000))  # each process begins elsewhere
READY_WITHIN_S = 120.0  # on a busy machine; an idle one takes under 20
_STANDS_JS = """() => Promise.race([
  window.ask.stands.then(() => true),
  new Promise((_, fails) => setTimeout(() => fails(new Error("the page does not stand")), 30000)),
])"""
_CHROMIUM_OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def require_demo_model() -> None:
    """Skips the test if the checkpoint is missing."""
    folder = REPOSITORY / "assets" / "demo_model"
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        pytest.skip("assets/demo_model holds no weights")


@contextmanager
def running_app(*arguments: str, **environment: str) -> Iterator[str]:
    """Runs app.py with the demo model in its own process; yields its address."""
    require_demo_model()
    port = free_port()
    process = Program(REPOSITORY / "app.py", ["--port", str(port), *arguments], {**os.environ, **environment})
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


@contextmanager
def served(engine: Any, **options: Any) -> Iterator[str]:
    """Serves the page for another engine in this process, with options of `build_page`; yields its address."""
    page = built(engine, **options)
    launch(page)
    try:
        yield page.local_url.rstrip("/")
    finally:
        page.close(verbose=False)


def built(engine: Any, **options: Any) -> Any:
    """The page, without the three apps that Gradio makes and throws away before it is launched: half of the time."""
    from gradio.routes import App

    from components.page import build_page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(App, "create_app", lambda *_, **__: None)
        return build_page(engine, **options)


def launch(page: Any, **options: Any) -> None:
    """Serves the page from this process, on a port of its own, with further options of `gradio.Blocks.launch`.

    Gradio gives up where another process has taken the port first: then it is launched again.
    """
    for left in (2, 1, 0):
        try:
            page.launch(server_port=free_port(), prevent_thread_lock=True, quiet=True, **options)
            return
        except OSError:
            if not left:
                raise
            page.close(verbose=False)


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's chromium, driven by playwright; its headless shell takes half the processor's time."""
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=list(_CHROMIUM_OPTIONS))
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any,
    url: str,
    width: int = 1440,
    height: int = 900,
    query: str = "",
    before: Callable[[Any], Any] = lambda _: None,
) -> Iterator[Any]:
    """A new visitor's page, ready for use; fails on requests to other servers and on errors in the page. `before` gets
    the page before it loads."""
    context = browser.new_context(viewport={"width": width, "height": height})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(30_000)
    foreign, faults = [], []
    page.on("request", lambda request: foreign.append(request.url) if _leaves(request.url, url) else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    before(page)
    page.goto(f"{url}/{query}")
    page.locator("#composer textarea").wait_for()
    page.locator("#chat .placeholder-content").wait_for()
    page.evaluate(_STANDS_JS)
    yield page
    context.close()
    assert not foreign, foreign
    assert not faults, faults


def unfold(page: Any, name: str, field: str) -> Any:
    """Opens the fold of this name and returns its field, once text typed there stays.

    Gradio draws a fold's fields when it opens, and sets their first values a frame later. No visitor types in between,
    but a test can.
    """
    page.locator("#settings").get_by_role("button", name=name).click()
    page.locator(field).wait_for()
    wait_until_drawn(page)
    return page.locator(field)


def wait_until_drawn(page: Any) -> None:
    """Waits until the page has been drawn once more, and has seen which sizes that changed."""
    page.evaluate("() => new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")


def free_port() -> int:
    """A port below those that the system gives to whoever asks for any: an app takes its own only seconds later."""
    for port in _PORTS:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def _leaves(address: str, url: str) -> bool:
    return not re.match(rf"({re.escape(url)}|data:|blob:)", address)


def wait_until_ready(url: str, process: subprocess.Popen | Program) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end:
        assert process.poll() is None, f"app.py ended with {process.returncode}"
        try:
            if httpx.get(url, timeout=5).status_code in (200, 401):
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError(f"the page was not ready within {READY_WITHIN_S:g} s")


class ScriptedEngine:
    """An engine that waits in each stage until told to continue, for tests of Stop.

    It has the real engine's interface, which also shows that the page needs no more of an engine.
    """

    def __init__(self, info: Any):
        from gemma3_core.engine.fair_queue import FairQueue

        self.info, self.queue = info, FairQueue()
        self.begin_anew()

    def begin_anew(self) -> None:
        """For the next test on the same page, once nothing is asked any more."""
        self.go_on = {stage: threading.Event() for stage in ("queued", "encoding", "reading", "writing")}
        self.requests: list[Any] = []
        self.reached: list[str] = []  # stages, as they begin
        self.closed_in: list[str] = []
        self.forgotten: list[str] = []
        self.answer = "There are three red hearts."
        self.echoes = False  # repeats the question as the answer
        self.is_ready = True

    def let_through(self, *stages: str) -> None:
        """Continues from these stages."""
        for stage in stages:
            self.go_on[stage].set()

    def stream(self, request: Any, stop: threading.Event | None = None) -> Iterator[Any]:
        from gemma3_core.engine import DoneEvent, Stats, TokenEvent

        written = []
        with closing(self._events(request)) as events:
            for event in events:
                yield event
                if isinstance(event, DoneEvent):
                    return
                written += [event.text] if isinstance(event, TokenEvent) else []
                if stop is not None and stop.is_set():
                    break
        stats = Stats("demo model", "cpu", "float32", "none", 1, 2, 90, 0, len(written), 0.0, 0.21, 64.2, "cancelled")
        yield DoneEvent("".join(written), stats)

    def _events(self, request: Any) -> Iterator[Any]:
        from gemma3_core.engine import DoneEvent, StageEvent, Stats, TokenEvent

        self.requests.append(request)
        stage = "queued"
        words = {
            "queued": "2nd in the queue, about 6 s",
            "encoding": "Encoding 1 picture",
            "reading": "Reading 90 tokens",
        }
        try:
            for stage, text in words.items():
                self.reached.append(stage)
                while True:
                    yield StageEvent(stage, text)  # type: ignore[arg-type]
                    if self.go_on[stage].wait(0.2):
                        break
            stage = "writing"
            self.reached.append(stage)
            answer = request.turns[-1].text if self.echoes else self.answer
            for piece in re.findall(r"\S+\s*", answer):
                yield TokenEvent(piece)
                while not self.go_on["writing"].wait(0.2):
                    yield TokenEvent("")
            stage = "done"
            stats = Stats("demo model", "cpu", "float32", "none", 1, 2, 90, 0, 6, 0.0, 0.21, 64.2, "stop")
            yield DoneEvent(answer, stats)
        finally:
            self.closed_in.append(stage)

    def forget(self, visitor: str) -> None:
        self.forgotten.append(visitor)

    def evict(self) -> None:
        pass

    def inspect(self, _request: Any) -> Any:
        from gemma3_core.engine import PromptView

        return PromptView((), ())

    def preview(self, _pictures: Any, _pan_and_scan: bool, _crops: Any = ()) -> list[Any]:
        return []

    def wait_until_closed(self, count: int = 1, seconds: float = 30.0) -> list[str]:
        end = time.monotonic() + seconds
        while len(self.closed_in) < count and time.monotonic() < end:
            time.sleep(0.02)
        return self.closed_in
