"""Links carry a question, its settings and an example picture; they ask nothing, and hostile ones bring nothing."""

from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from browsing import answered, choose, send, write
from places import EXAMPLES
from running_app import opened, served

from gemma3_core.engine import Engine


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
    choose(page)
    answered(page)
    page.locator("#int4 input").check()
    page.locator("#pan-and-scan input").check()
    link = share(page, "Copy link with the question")
    assert parse_qs(urlsplit(link).query) == {
        "q": ["How many hearts are there?"], "example": ["hearts"], "pan_and_scan": ["1"], "int4": ["1"],
    }  # fmt: skip
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


def test_a_link_whose_opening_was_refused_brings_its_question_with_a_reload(browser, url):
    context = browser.new_context()
    page, opening = context.new_page(), "**/run/predict*"
    page.route(opening, lambda route: route.fulfill(status=503, json={"detail": "refused"}))
    with page.expect_response(lambda response: response.status == 503):
        page.goto(f"{url}/?q=How+many%3F")
    page.wait_for_function("window.ask?.stands.then(() => true)")
    page.unroute(opening)
    page.reload()
    composer_becomes(page, "How many?")
    context.close()


def test_a_link_that_found_a_draft_waits_until_there_is_none(page, url):
    write(page, "mine")
    page.wait_for_function("ask.kept.get('text') === 'mine'")
    page.goto(f"{url}/?q=How+many%3F")
    composer_becomes(page, "mine")
    page.wait_for_function("window.ask.stands.then(() => true)")
    page.locator("#composer textarea").fill("")
    page.reload()
    composer_becomes(page, "How many?")


def test_a_link_to_the_page_carries_nothing_and_a_picture_of_ones_own_stays_here(page, url):
    assert share(page, "Copy link to this page") == f"{url}/"
    page.keyboard.press("Escape")
    page.wait_for_function("!document.querySelector('#share details').open")
    write(page, "What is it?", EXAMPLES.parent / "demo_model" / ".." / ".." / "docs" / "page.png")
    link = share(page, "Copy link with the question")
    assert parse_qs(urlsplit(link).query) == {"q": ["What is it?"]}


HOSTILE = [
    {"example": "../../../etc/passwd"},
    {"example": "/etc/passwd", "model": "../other", "int4": "maybe", "pan_and_scan": "<b>", "unknown": "1"},
    {"model": "__proto__", "q": ""},
    {"q": " \n "},
]


@pytest.mark.parametrize("parameters", HOSTILE, ids=str)
def test_what_does_not_exist_is_ignored(browser, url, parameters):
    with opened(browser, url, query=f"?{urlencode(parameters)}") as page:
        page.wait_for_timeout(700)
        composer_becomes(page, "")
        assert page.locator("#model input").input_value() == "demo model"
        assert not page.locator("#int4 input").is_checked()
        assert not page.locator("#pan-and-scan input").is_checked()
        assert page.locator("#chat button.example").count() > 4


def test_a_text_is_a_text_and_bounded(browser, url):
    text = "<img src=x onerror=alert(1)> & {{x}}" + "long " * 1000
    with opened(browser, url, query=f"?{urlencode({'q': text})}") as page:
        page.wait_for_function("document.querySelector('#composer textarea').value.length > 1000")
        value = page.locator("#composer textarea").input_value()
        assert text.startswith(value)
        assert len(value) <= 2000


def test_a_link_brings_full_precision_to_a_server_of_int4(browser):
    with served(Engine.load(device="cpu", int4=True)) as address, opened(browser, address) as page:
        write(page, "What is it?")
        assert "int4" not in parse_qs(urlsplit(share(page, "Copy link with the question")).query)
        page.keyboard.press("Escape")
        page.locator("#int4 input").uncheck()
        link = share(page, "Copy link with the question")
        assert parse_qs(urlsplit(link).query) == {"q": ["What is it?"], "int4": ["0"]}
        with opened(browser, address, query=f"?{urlsplit(link).query}") as other:
            composer_becomes(other, "What is it?")
            other.wait_for_function("!document.querySelector('#int4 input').checked")


def test_in_a_space_the_link_is_the_spaces(browser, monkeypatch, scripted):
    monkeypatch.setenv("SPACE_ID", "somebody/pictures")
    with served(scripted) as address, opened(browser, address) as page:
        write(page, "How many?")
        link = share(page, "Copy link with the question")
    assert link == "https://huggingface.co/spaces/somebody/pictures?q=How+many%3F"
