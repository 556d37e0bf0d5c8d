"""The page inside another site's page: in an <iframe> and as <gradio-app>, only where the policy lets it."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gradio
import pytest
from browsing import answered, choose
from running_app import ScriptedEngine, served
from window import DEMO

FRONTEND = Path(gradio.__file__).parent / "templates" / "frontend"
WORDS = "<h1>Another site</h1>" + "<p>Its own words.</p>" * 8
PAGES = {
    "/frame": '{words}<input autofocus><iframe src="{app}" width="100%" height="640"></iframe>{words}',
    "/tag": '<script type="module" src="/gradio.js"></script>{words}<input autofocus>'
    '<gradio-app src="{app}"></gradio-app>{words}',
}  # fmt: skip


class Site(BaseHTTPRequestHandler):
    """Another site's pages, and Gradio's script that a site loads for <gradio-app>."""

    def do_GET(self) -> None:
        path, _, app = self.path.partition("?")
        file = FRONTEND / path[1:]
        if path in PAGES:
            body, kind = PAGES[path].format(words=WORDS, app=app).encode(), "text/html"
        elif file.is_file():
            body, kind = file.read_bytes(), "text/css" if file.suffix == ".css" else "text/javascript"
        else:
            body, kind = b"", "text/plain"
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def app(site: str) -> Iterator[str]:
    engine = ScriptedEngine(DEMO)
    engine.let_through(*engine.go_on)
    with served(engine, frame_ancestors=site) as url:
        yield url


@pytest.mark.parametrize(("way", "widths"), [("/frame", (1440, 390)), ("/tag", (390, 1440))])
def test_it_fits_into_another_sites_page(browser, site, app, way, widths):
    page = browser.new_context(viewport={"width": widths[0], "height": 900}).new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{site}{way}?{app}")
    page.locator("iframe").wait_for(timeout=60_000)
    frame = page.frame_locator("iframe")
    frame.locator("#chat button.example").first.wait_for(timeout=60_000)
    assert page.locator("gradio-app").count() == 0
    assert any("iframeResizer" in address for address in asked)  # which only a frame needs (test_first_load)
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(1000)
        assert page.evaluate("document.activeElement.tagName") == "INPUT"  # no focus is stolen
        fits(page)
    assert page.evaluate("sessionStorage.length") == 0
    choose(frame)
    assert answered(frame) == "There are three red hearts."
    page.context.close()


def fits(page):
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    inside = page.frames[1]
    assert inside.evaluate("document.documentElement.scrollHeight <= innerHeight")  # no second scroll bar
    assert inside.evaluate("document.querySelector('#settings').getBoundingClientRect().right <= 40")
    words = page.locator("p", has_text="Its own words.")
    tops = [(box["y"], box["y"] + box["height"]) for box in (words.nth(n).bounding_box() for n in (7, 8))]
    framed = page.locator("iframe").bounding_box()
    assert tops[0][1] <= framed["y"]
    assert framed["y"] + framed["height"] <= tops[1][0]


def test_a_site_that_is_not_named_shows_nothing(browser, site, url):
    page = browser.new_page()
    for way in PAGES:
        with page.expect_console_message(lambda message: "frame-ancestors" in message.text, timeout=60_000):
            page.goto(f"{site}{way}?{url}")
        page.locator("iframe").wait_for(timeout=60_000)
        page.wait_for_timeout(500)
        assert page.frame_locator("iframe").locator("#chat").count() == 0, way
        assert page.locator("#chat").count() == 0, way
    page.close()
