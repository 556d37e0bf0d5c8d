"""Links carry a question, its settings and an example picture; they ask nothing, and hostile ones bring nothing."""

from dataclasses import replace
from urllib.parse import parse_qs, urlencode, urlsplit

from browsing import answered, choose, send, write
from places import EXAMPLES
from running_app import ScriptedEngine, opened, served
from window import DEMO

from gemma3_core.engine import Int4Choice


def share(page, what):
    page.locator("#share summary").click()
    page.get_by_role("button", name=what).click()
    page.locator("#share [role=status]", has_text="Copied").wait_for()
    return page.evaluate("navigator.clipboard.readText()")


def composer_becomes(page, text, pictures=0):
    page.wait_for_function(
        """([text, pictures]) => document.querySelector("#composer textarea")?.value === text
             && document.querySelectorAll("#composer .thumbnail-item").length === pictures""",
        arg=[text, pictures],
    )


def test_a_link_brings_question_picture_and_settings_and_asks_nothing(browser, page, url):
    # A link to the page carries nothing.
    assert share(page, "Copy link to this page") == f"{url}/"
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('#share details').open")

    choose(page)
    answered(page)
    page.locator("#int4 input").check()
    page.locator("#pan-and-scan input").check()
    link = share(page, "Copy link with the question")
    assert parse_qs(urlsplit(link).query) == {
        "q": ["How many hearts are there?"], "example": ["hearts"], "pan_and_scan": ["1"], "int4": ["1"],
    }  # fmt: skip

    # A picture of one's own stays here.
    page.keyboard.press("Escape")
    write(page, "What is it?", EXAMPLES.parents[1] / "docs" / "page.png")
    own = parse_qs(urlsplit(share(page, "Copy link with the question")).query)
    assert own == {"q": ["What is it?"], "pan_and_scan": ["1"], "int4": ["1"]}

    with opened(browser, url, query=f"?{urlsplit(link).query}") as other:
        composer_becomes(other, "How many hearts are there?", 1)
        other.wait_for_function("document.querySelector('#int4 input').checked")
        assert other.locator("#pan-and-scan input").is_checked()
        other.wait_for_timeout(500)
        assert other.locator("#chat .user-row").count() == 0
        send(other)
        assert answered(other) == "There are three hearts."
        assert "int4" in other.locator("#chat .figures").text_content()
        other.reload()  # the link is used once: now the page is where its visitor left it
        answered(other)
        composer_becomes(other, "")


def test_a_link_waits_until_there_is_no_draft_and_the_page_has_opened(page, url):
    write(page, "mine")
    page.wait_for_function("ask.kept.get('text') === 'mine'")
    page.goto(f"{url}/?q=How+many%3F")
    composer_becomes(page, "mine")
    page.wait_for_function("window.ask.stands.then(() => true)")
    page.locator("#composer textarea").fill("")

    opening = "**/run/predict*"
    page.route(opening, lambda route: route.fulfill(status=503, json={"detail": "refused"}))
    with page.expect_response(lambda response: response.status == 503):
        page.reload()
    page.wait_for_function("window.ask?.stands.then(() => true)")
    composer_becomes(page, "")
    page.unroute(opening)
    page.reload()
    composer_becomes(page, "How many?")


def test_what_does_not_exist_is_ignored_and_a_text_is_a_text_and_bounded(browser, url):
    text = "<img src=x onerror=alert(1)> & {{x}}" + "long " * 1000
    link = {"q": text, "example": "/etc/passwd", "model": "../other", "int4": "maybe", "pan_and_scan": "<b>"}
    with opened(browser, url, query=f"?{urlencode({**link, 'unknown': '1'})}") as page:
        page.wait_for_function("document.querySelector('#composer textarea').value.length > 1000")
        value = page.locator("#composer textarea").input_value()
        assert text.startswith(value)
        assert len(value) <= 2000
        page.wait_for_timeout(700)
        assert page.locator("#composer .thumbnail-item").count() == 0
        assert page.locator("#model input").input_value() == "demo model"
        assert not page.locator("#int4 input").is_checked()
        assert not page.locator("#pan-and-scan input").is_checked()
        assert page.locator("#chat button.example").count() > 4


def test_in_a_space_the_link_is_the_spaces_and_brings_full_precision_to_a_server_of_int4(browser, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "somebody/pictures")
    of_int4 = replace(DEMO, int4=Int4Choice(default=True, obstacle="", full_bytes=9, int4_bytes=3))
    with served(ScriptedEngine(of_int4)) as address, opened(browser, address) as page:
        write(page, "How many?")
        link = share(page, "Copy link with the question")
        assert link == "https://huggingface.co/spaces/somebody/pictures?q=How+many%3F"
        page.keyboard.press("Escape")
        page.locator("#int4 input").uncheck()
        query = urlsplit(share(page, "Copy link with the question")).query
        assert parse_qs(query) == {"q": ["How many?"], "int4": ["0"]}
        with opened(browser, address, query=f"?{query}") as other:
            composer_becomes(other, "How many?")
            other.wait_for_function("!document.querySelector('#int4 input').checked")
