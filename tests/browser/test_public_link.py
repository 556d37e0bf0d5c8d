"""A page that strangers share: as Gradio serves it behind a public link, and after its files were cleaned up."""

import re
import time

import httpx
import pytest
from browsing import add, answered, choose, send, write
from places import EXAMPLES
from running_app import built, launch, opened

from components.serving import server as serving


@pytest.fixture
def server(scripted, monkeypatch):
    """The page, in this process, which cleans up five times a second."""
    scripted.let_through(*scripted.go_on)
    monkeypatch.setattr(serving, "SWEEP_S", 0.2)
    monkeypatch.setattr(serving, "KEPT_UNUSED_S", 3.0)
    page = built(scripted)
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


def test_what_an_open_page_shows_outlives_the_clean_up_and_goes_with_it(browser, server, scripted):
    with opened(browser, address(server)) as page:
        write(page, "What color is the star?", EXAMPLES / "night.png")
        send(page)
        assert answered(page).strip()
        add(page, EXAMPLES / "sign.png")
        with opened(browser, address(server)) as other:
            shared_link_shows_the_page_and_answers(server, other)
            add(other, EXAMPLES / "wide.png")  # uploaded, and never used
            assert len(server.uploads) == 3
            other.wait_for_timeout(4000)  # several clean-ups
            assert broken_pictures(page) == broken_pictures(other) == []
        picture = page.locator("#chat .user-row img").first.get_attribute("src")
        until(lambda: len(server.uploads) == 2)  # the one that was left is gone
        assert broken_pictures(page) == []
        assert httpx.get(picture).status_code == 200
        page.locator("#composer textarea").fill("What does the sign say?")
        send(page)
        assert answered(page, 2).strip()
        asked = [path for turn in scripted.requests[-1].turns for path in turn.pictures]
        assert [(path.name, path.is_file()) for path in asked] == [("night.png", True), ("sign.png", True)]
    until(lambda: len(server.uploads) == 0)
    assert httpx.get(picture).status_code == 403


def shared_link_shows_the_page_and_answers(server, page):
    """Where `page` asked another server, `opened` would fail."""
    server.share = True  # as after launch(share=True)
    said = []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.reload()
    page.locator("#chat button.example").first.wait_for()
    assert broken_pictures(page) == []
    sources = [image.get_attribute("src") for image in page.locator("#chat button.example img").all()]
    assert len(sources) >= 4
    assert all(re.search(r"/cards\.svg#\w+$", source) for source in sources)
    choose(page)
    assert "three" in answered(page)
    assert page.locator("#chat .user-row img").count() == 1
    assert not said  # the policy would say there what it refuses
