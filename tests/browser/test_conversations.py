"""Conversations that the visitor's own browser keeps: they outlive the server, and are found, renamed and deleted."""

import re

import running_app as support
from browsing import add, answered, choose, send, write
from places import EXAMPLES
from running_app import free_port, opened, running_app

HEARTS, NIGHT = EXAMPLES / "hearts.png", EXAMPLES / "night.png"


def listed(page, count):
    """The titles, once there are so many conversations."""
    page.locator("#conversations summary").get_by_text(f"Conversations ({count})").wait_for()
    page.locator("#conversations details").evaluate("(details) => { details.open = true; }")
    return page.locator("#conversations [data-conversation=open]").all_inner_texts()


def new_chat(page):
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()


def test_everything_outlives_a_restart_of_the_server(browser, monkeypatch):
    port = free_port()
    monkeypatch.setattr(support, "free_port", lambda: port)
    page = browser.new_context().new_page()
    with running_app() as url:
        page.goto(url)
        page.locator("#chat .placeholder-content").wait_for()
        page.locator("#int4 input").check()
        write(page, "How many hearts are there?", HEARTS)
        send(page)
        answer = answered(page)
        listed(page, 1)
        page.locator("#composer .submit-button").wait_for()
        write(page, "And the st", NIGHT)
        page.wait_for_timeout(500)
    with running_app() as url:
        page.goto(url)
        assert answered(page) == answer
        page.wait_for_function(
            "document.querySelector('#composer textarea').value === 'And the st'"
            " && document.querySelectorAll('#composer .thumbnail-item').length === 1"
            " && document.querySelector('#int4 input').checked"
        )
        page.locator("#composer textarea").fill("How many stars are there?")
        send(page)
        assert answered(page, 2) == "There is one star."
        page.get_by_role("button", name="Look inside answer 1").click()
        page.locator("#maps figure img").first.wait_for()
        assert listed(page, 1) == ["How many hearts are there?"]
    page.context.close()


def test_conversations_are_listed_found_opened_renamed_and_deleted(page):
    write(page, "How many hearts are there?", HEARTS)
    send(page)
    hearts = answered(page)
    listed(page, 1)
    new_chat(page)
    choose(page, 1)
    star = answered(page)
    assert listed(page, 2) == ["What color is the star?", "How many hearts are there?"]
    write(page, "a draft")
    page.locator("#conversations").get_by_role("button", name="Open “How many hearts").click()
    page.wait_for_function("(said) => document.querySelector('#chat .bot-row').innerText.includes(said)", arg=hearts)
    assert page.locator("#composer textarea").input_value() == "a draft"
    page.locator("#conversations [aria-current]").get_by_text("How many hearts").wait_for()

    search = page.get_by_role("searchbox", name="Search your conversations")
    search.fill("YELLOW")
    page.wait_for_function("document.querySelectorAll('#conversations li').length === 1")
    assert listed(page, 2) == ["What color is the star?"]
    search.fill("")
    page.wait_for_function("document.querySelectorAll('#conversations li').length === 2")

    row = page.locator("#conversations li").filter(has_text="How many hearts")
    row.hover()
    row.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("Hearts <b>")
    page.get_by_label("New name").press("Enter")
    page.get_by_role("button", name="Open “Hearts <b>”").wait_for()
    page.locator("#composer textarea").fill("And the stars?")
    send(page)
    answered(page, 2)
    page.wait_for_function("document.querySelector('#conversations li').innerText.includes('Hearts <b>')")

    row = page.locator("#conversations li").filter(has_text="What color")
    row.hover()
    row.get_by_role("button", name="Delete").click()
    page.wait_for_timeout(300)
    assert len(listed(page, 2)) == 2  # it asks first
    row.get_by_role("button", name="Really").click()
    assert listed(page, 1) == ["Hearts <b>"]
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("button", name="Really: Delete all?").click()
    page.locator("#chat .placeholder-content").wait_for()
    assert star
    assert page.evaluate(
        """async () => {
          const request = indexedDB.open("conversations");
          await new Promise((done) => (request.onsuccess = done));
          const stores = request.result.transaction(["conversations", "pictures"]);
          const count = (name) => new Promise((done) => {
            stores.objectStore(name).count().onsuccess = (event) => done(event.target.result);
          });
          return Promise.all([count("conversations"), count("pictures")]);
        }"""
    ) == [0, 0]


def test_a_new_chat_brought_back_and_asked_on_is_one_conversation(page):
    choose(page)
    answered(page)
    listed(page, 1)
    new_chat(page)
    page.get_by_role("button", name="Bring it back").click()
    answered(page)
    page.locator("#composer .submit-button").wait_for()
    write(page, "And the stars?")
    send(page)
    answered(page, 2)
    page.wait_for_timeout(500)
    assert len(listed(page, 1)) == 1


def test_beyond_its_room_the_oldest_conversation_goes(browser, url):
    """With room for less than one: the constant is replaced in what the server sends."""
    context = browser.new_context()
    page = context.new_page()
    page.route(
        f"{url}/",
        lambda route: (answer := route.fetch()) and route.fulfill(
            response=answer, body=re.sub(r"MOST_BYTES = 200e6", "MOST_BYTES = 1e3", answer.text())
        ),
    )  # fmt: skip
    page.goto(f"{url}/")
    for number in range(2):
        page.locator("#chat .placeholder-content").wait_for()
        choose(page, number)
        answered(page)
        assert len(listed(page, 1)) == 1
        page.wait_for_timeout(300)
        if number == 0:
            new_chat(page)
    assert listed(page, 1) == ["What color is the star?"]
    context.close()


def test_a_forgetful_page_keeps_nothing(browser):
    with running_app("--forgetful") as url, opened(browser, url) as page:
        add(page, NIGHT)
        page.locator("#composer textarea").fill("What color is the star?")
        send(page)
        answered(page)
        page.wait_for_timeout(500)
        assert page.locator("#conversations").count() == 0
        assert page.evaluate("indexedDB.databases()") == []
        page.reload()
        answered(page)  # a reload of the tab still finds it on the server
