"""A page that strangers share: as Gradio serves it behind a public link, and after its files were cleaned up."""

import re
import time

import httpx
import pytest
from browsing import add, answered, choose, send, write
from places import EXAMPLES
from running_app import built, launch, opened

from components.serving import server as serving
from gemma3_core.engine import Engine


@pytest.fixture(scope="module")
def engine():
    return Engine.load(device="cpu")


@pytest.fixture
def server(engine, monkeypatch):
    """The page around the demo model, in this process, which cleans up five times a second."""
    monkeypatch.setattr(serving, "SWEEP_S", 0.2)
    monkeypatch.setattr(serving, "KEPT_UNUSED_S", 3.0)
    page = built(engine)
    launch(page)
    yield page
    page.close(verbose=False)


def address(server):
    return server.local_url.rstrip("/")


def broken_pictures(page):
    """Addresses of pictures on the page that do not show."""
    return page.evaluate(
        """async () => {
          const pictures = [...document.querySelectorAll("#chat img, #composer img")];
          const shown = await Promise.all(pictures.map(async (picture) => {
            const again = new Image();
            again.src = picture.src + (picture.src.startsWith("data:") ? "" : "?again=" + Math.random());
            try { await again.decode(); return true; } catch { return false; }
          }));
          return pictures.filter((_, number) => !shown[number]).map((picture) => picture.src);
        }"""
    )


def until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_shared_link_shows_the_page_and_answers(browser, server):
    server.share = True  # as after launch(share=True)
    with opened(browser, address(server)) as page:  # which fails where another server is asked
        said = []
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.reload()
        page.locator("#chat button.example").first.wait_for()
        choose(page)
        assert "three" in answered(page)
        assert page.locator("#chat .user-row img").count() == 1
        assert not said  # the policy would say there what it refuses


def test_what_an_open_page_shows_outlives_the_clean_up_and_goes_with_it(browser, server):
    with opened(browser, address(server)) as left:  # uploaded, and never used
        add(left, EXAMPLES / "wide.png")
    with opened(browser, address(server)) as page:
        write(page, "What color is the star?", EXAMPLES / "night.png")
        send(page)
        assert answered(page).strip()
        add(page, EXAMPLES / "sign.png")
        until(lambda: len(server.uploads) == 2)  # the one that was left is gone
        page.wait_for_timeout(4000)  # several clean-ups
        assert broken_pictures(page) == []
        picture = page.locator("#chat .user-row img").first.get_attribute("src")
        page.locator("#composer textarea").fill("What does the sign say?")
        send(page)
        assert answered(page, 2).strip()
        assert "2 pictures" in page.locator("#chat .figures").nth(1).text_content()
        with opened(browser, address(server)) as other:
            assert other.locator("#chat button.example img").count() >= 4
            assert broken_pictures(other) == []
            sources = [image.get_attribute("src") for image in other.locator("#chat button.example img").all()]
            assert all(re.search(r"/cards\.svg#\w+$", source) for source in sources)
            choose(other)
            assert answered(other).strip()
            other.wait_for_timeout(4000)
            assert broken_pictures(other) == []
        assert httpx.get(picture).status_code == 200
    until(lambda: len(server.uploads) == 0)
    assert httpx.get(picture).status_code == 403
