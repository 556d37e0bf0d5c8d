"""Conversations that the visitor's own browser keeps: they outlive the server, and are found, renamed and deleted."""

import json
import re
from hashlib import sha256
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
import running_app as support
from browsing import add, answered, choose, look_inside, send, write
from places import EXAMPLES
from running_app import built, free_port, launch, opened, running_app

HEARTS, NIGHT = EXAMPLES / "hearts.png", EXAMPLES / "night.png"


def listed(page, count):
    """The titles, once there are so many conversations."""
    page.locator("#conversations summary").get_by_text(f"Conversations ({count})").wait_for()
    page.locator("#conversations details").evaluate("(details) => { details.open = true; }")
    return page.locator("#conversations [data-conversation=open]").all_inner_texts()


def new_chat(page):
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()


def test_everything_outlives_a_restart_of_the_server(browser, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # what the old server left there is none of the new one's
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
        page.goto("about:blank")
        page.go_back()
        assert answered(page) == answer
        page.locator("#composer .submit-button").wait_for()
        write(page, "And the st", NIGHT)
        in_time(page, lambda: pictures_kept(page) == 2)
        page.goto("about:blank")  # it would load again by itself, once there is a server
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
        look_inside(page)
        assert listed(page, 1) == ["How many hearts are there?"]
    page.context.close()


def test_conversations_are_listed_found_opened_renamed_and_deleted(page):
    write(page, "How many hearts are there?", HEARTS)
    send(page)
    hearts = answered(page)
    listed(page, 1)
    new_chat(page)
    choose(page, 1)
    answered(page)
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


def test_a_conversation_is_opened_in_place_of_the_table(page):
    choose(page)
    answered(page)
    listed(page, 1)
    saved = save(page, "Save the conversation (zip)").read_bytes()
    for opens in (
        lambda: page.get_by_role("button", name="Open “How many hearts").click(),
        lambda: open_saved(page, saved),
    ):
        new_chat(page)
        page.get_by_role("button", name="Ask about many pictures").click()
        page.locator("#table textarea").wait_for()
        opens()
        answered(page)


def test_what_is_written_in_an_edit_and_what_a_new_chat_set_aside_follow_to_another_conversation(page):
    two_conversations(page)
    page.locator("#composer .submit-button").wait_for()
    write(page, "a draft")
    page.get_by_role("button", name="Edit question 1").click()
    composer_holds(page, STAR_ASKED[0])
    page.locator("#composer textarea").fill("And its color?")
    page.get_by_role("button", name="Open “How many hearts").click()
    composer_holds(page, "a draft\n\nAnd its color?")
    page.locator("#changing p").wait_for(state="detached")
    new_chat(page)
    composer_holds(page, "")
    page.get_by_role("button", name="Open “What color").click()
    composer_holds(page, "a draft\n\nAnd its color?")


def composer_holds(page, text):
    page.wait_for_function("(text) => document.querySelector('#composer textarea').value === text", arg=text)


def in_browser(page, work):
    """What the entries, oldest first, are after `work`, a function on each of them that may change it."""
    return page.evaluate(
        """async (work) => {
          const within = ask.storage("conversations", { conversations: "id", pictures: "digest" });
          const all = await within("readonly", (store) => store.getAll());
          all.sort((one, other) => one.changed - other.changed);
          for (const one of all) if (eval(work)(one)) await within("readwrite", (store) => store.put(one));
          return all.map((one) => one.keys.map((key) => one.exchanges[key].question));
        }""",
        work,
    )


def entries(page):
    return in_browser(page, "() => false")


def forgotten(page):
    """The server no longer knows this tab."""
    page.evaluate("sessionStorage.removeItem('session')")
    page.reload()


_NOTES_THAT_IT_BROUGHT = """() => {
  const { open } = ask.conversations, { answered } = ask;
  let opened = false;
  ask.conversations.open = (id) => {
    opened = true;
    open(id);
  };
  ask.answered = () => {
    answered();
    window.brought = opened;
  };
}"""


@pytest.fixture
def forgetting(browser, scripted):
    """A visitor's page with one answer, and what makes the server forget its window."""
    app = built(scripted)
    scripted.let_through(*scripted.go_on)
    launch(app)
    try:
        with opened(browser, app.local_url.rstrip("/")) as page:
            write(page, "How many hearts are there?", HEARTS)
            send(page)
            answered(page)
            listed(page, 1)
            page.locator("#composer .submit-button").wait_for()
            page.evaluate(_NOTES_THAT_IT_BROUGHT)
            yield page, app.app.state_holder.session_data.clear
    finally:
        app.close(verbose=False)


def test_a_question_to_a_server_that_has_forgotten_the_conversation_waits_until_it_is_back(forgetting, scripted):
    page, forget = forgetting
    forget()
    write(page, "And the stars?")
    send(page)
    page.locator("#changing", has_text="had forgotten this conversation").wait_for()
    page.wait_for_function("document.querySelector('#composer textarea').value === 'And the stars?'")
    page.wait_for_function("window.brought")
    send(page)
    answered(page, 2)
    turns = scripted.requests[-1].turns
    assert [turn.text for turn in turns] == ["How many hearts are there?", scripted.answer, "And the stars?"]
    assert turns[0].pictures
    in_time(page, lambda: entries(page) == [[*HEARTS_ASKED, "And the stars?"]])


def test_after_a_long_time_away_the_conversation_is_brought_back_before_anything_is_asked(forgetting, scripted):
    page, forget = forgetting
    forget()
    page.evaluate(
        """() => {
          dispatchEvent(new Event("blur"));
          const { now } = Date;
          Date.now = () => now() + 3600e3;
          dispatchEvent(new Event("focus"));
        }"""
    )
    page.wait_for_function("window.brought")
    send_next(page, "And the stars?", 2)
    assert len(scripted.requests[-1].turns) == 3


HEARTS_ASKED, STAR_ASKED = ["How many hearts are there?"], ["What color is the star?"]


def two_conversations(page):
    for number in range(2):
        choose(page, number)
        answered(page)
        listed(page, number + 1)
        if number == 0:
            new_chat(page)
    assert entries(page) == [HEARTS_ASKED, STAR_ASKED]


def test_a_conversation_that_reads_otherwise_than_it_was_kept_takes_no_others_place(page):
    """As after a release that changed what a document holds, or where a crop was of a picture that is missing now."""
    two_conversations(page)
    in_browser(
        page,
        """(one) => {
          if (!one.title.includes("hearts")) return false;
          one.exchanges = { other: one.exchanges[one.keys[0]] };
          one.keys = ["other"];
          return true;
        }""",
    )
    forgotten(page)
    answered(page)
    page.locator("#conversations details").evaluate("(details) => { details.open = true; }")
    page.get_by_role("button", name="Open “How many hearts").click()
    page.locator("#chat .bot-row", has_text="There are three hearts.").wait_for()
    page.locator("#conversations [aria-current]").get_by_text("How many hearts").wait_for()
    send_next(page, "And the stars?", 2)
    in_time(page, lambda: entries(page) == [STAR_ASKED, [*HEARTS_ASKED, "And the stars?"]])


def send_next(page, question, number):
    page.locator("#composer .submit-button").wait_for()
    write(page, question)
    send(page)
    answered(page, number)


def pictures_kept(page):
    return page.evaluate(
        """() => ask.storage("conversations", { conversations: "id", pictures: "digest" })(
             "readonly", (_, pictures) => pictures.count())"""
    )


def in_time(page, holds):
    for _ in range(300):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(entries(page))


def test_a_question_after_a_conversation_that_was_not_opened_takes_no_place_of_it(page):
    choose(page)
    answered(page)
    listed(page, 1)
    in_browser(page, "(one) => Boolean(one.version = 99)")
    forgotten(page)
    page.locator("#changing", has_text="newer version").wait_for()
    choose(page, 1)
    answered(page)
    in_time(page, lambda: entries(page) == [HEARTS_ASKED, STAR_ASKED])


def test_a_card_chosen_while_the_conversation_comes_back_takes_no_place_of_it(page):
    page.add_init_script(
        """const send = window.fetch;
        let opens;
        const chosen = new Promise((resolve) => (opens = resolve));
        window.chosen = opens;
        window.fetch = async (...request) => {
          if (request[1]?.method === "HEAD") await chosen;
          return send(...request);
        };"""
    )
    write(page, "How many hearts are there?", HEARTS)
    send(page)
    answered(page)
    listed(page, 1)
    forgotten(page)
    page.locator("#chat .placeholder-content").wait_for()
    page.locator("#composer .submit-button").wait_for()
    choose(page, 1)
    answered(page)
    in_time(page, lambda: entries(page) == [HEARTS_ASKED, STAR_ASKED])
    page.evaluate("window.chosen()")
    page.locator("#chat .bot-row", has_text="three hearts").wait_for()
    in_time(page, lambda: entries(page) == [HEARTS_ASKED, STAR_ASKED])


def test_a_new_chat_stays_new_though_the_conversation_before_it_is_kept_late(page):
    page.evaluate(
        """() => {
          const { save } = ask.conversations;
          ask.conversations.save = (given) => save(window.given = given);
        }"""
    )
    choose(page)
    answered(page)
    listed(page, 1)
    page.evaluate(
        "async () => { document.querySelector('#clear').click(); await ask.conversations.save(window.given); }"
    )
    page.locator("#chat .placeholder-content").wait_for()
    page.locator("#composer .submit-button").wait_for()
    page.wait_for_function("sessionStorage.getItem('conversation') === 'null'")
    forgotten(page)
    choose(page, 1)
    answered(page)
    in_time(page, lambda: entries(page) == [HEARTS_ASKED, STAR_ASKED])


def test_of_one_conversation_in_two_windows_no_answer_is_lost(page):
    choose(page)
    answered(page)
    listed(page, 1)
    other = page.context.new_page()
    other.goto(page.url)
    listed(other, 1)
    other.get_by_role("button", name="Open “How many hearts").click()
    answered(other)
    send_next(other, "And the stars?", 2)
    in_time(page, lambda: entries(page) == [[*HEARTS_ASKED, "And the stars?"]])
    send_next(page, "And in all?", 2)
    both = [[*HEARTS_ASKED, "And the stars?"], [*HEARTS_ASKED, "And in all?"]]
    in_time(page, lambda: entries(page) == both)
    send_next(page, "Are you sure?", 3)
    both[1].append("Are you sure?")
    in_time(page, lambda: entries(page) == both)
    # An answer that is replaced in its own window is one that nobody wants back.
    page.get_by_role("button", name="Undo").click()
    page.locator("#chat .figures").nth(2).wait_for(state="detached")
    both[1].pop()
    in_time(page, lambda: entries(page) == both)
    page.get_by_role("button", name="Retry: ask question 1 again").click()
    page.locator("#changing", has_text="what came after it are replaced").wait_for()
    both[1].pop()
    in_time(page, lambda: entries(page) == both)


def test_a_conversation_that_another_window_deleted_is_said_to_be_gone(page):
    choose(page)
    answered(page)
    listed(page, 1)
    page.evaluate(
        """async () => {
          const within = ask.storage("conversations", { conversations: "id", pictures: "digest" });
          await within("readwrite", (store) => store.delete(ask.kept.get("conversation")));
        }"""
    )
    forgotten(page)
    said = "This conversation is no longer in this browser: it was deleted in another window."
    page.locator("#conversations .note", has_text=said).wait_for(state="attached")
    assert page.evaluate("ask.kept.get('conversation')") is None
    page.wait_for_timeout(300)
    assert page.locator("#changing p").count() == 0


def test_coming_back_to_the_window_takes_away_neither_a_click_nor_the_focus(page):
    two_conversations(page)
    page.locator("#conversations details").evaluate("(details) => { details.open = true; }")
    row = page.locator("#conversations li").filter(has_text="How many hearts")
    row.locator("[data-conversation=open]").focus()
    drawn = """() => {
      window.row = document.activeElement.closest("li");
      dispatchEvent(new Event("focus"));
      return ask.conversations.draw();  // after that of the event
    }"""
    page.evaluate(drawn)
    assert page.evaluate("window.row.isConnected && window.row.contains(document.activeElement)")
    row.hover()
    row.get_by_role("button", name="Delete").click()
    row.get_by_role("button", name="Really").click()
    page.locator("#conversations summary", has_text="Conversations (1)").wait_for()
    page.wait_for_function("document.activeElement.ariaLabel?.startsWith('Open “What color')")


def test_a_connection_to_the_storage_that_the_browser_closed_is_opened_anew(page):
    page.add_init_script(
        """const { transaction } = IDBDatabase.prototype;
        IDBDatabase.prototype.transaction = function (...given) {
          if (!window.lost) return transaction.apply(this, given);
          window.lost = false;
          this.close();
          return transaction.apply(this, given);
        };"""
    )
    page.reload()
    page.wait_for_function("window.ask?.stands.then(() => true)")
    page.evaluate("window.lost = true")
    choose(page)
    answered(page)
    listed(page, 1)
    assert not page.evaluate("window.lost")


def test_on_a_phone_an_opened_conversation_is_in_sight(browser, url):
    with opened(browser, url, width=400, height=800) as page:
        choose(page)
        answered(page)
        page.locator("#conversations summary", has_text="Conversations (1)").wait_for(state="attached")
        new_chat(page)
        page.get_by_role("button", name="Settings").click()
        page.locator("#settings.open").wait_for()
        listed(page, 1)
        page.get_by_role("button", name="Open “How many hearts").click()
        answered(page)
        page.locator("#settings:not(.open)").wait_for(state="attached")


def without_storage(browser, url):
    """The page in a browser that forbids IndexedDB."""
    page = browser.new_context().new_page()
    page.add_init_script(
        "Object.defineProperty(window, 'indexedDB', { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    page.goto(f"{url}/")
    return page


def test_what_the_browser_did_not_keep_can_not_be_saved_and_is_said_to_be_so(browser, url):
    page = without_storage(browser, url)
    page.locator("#share summary").click()
    page.get_by_role("button", name="Save the conversation (zip)").click()
    page.locator("#share [role=status]", has_text="There is nothing to save yet.").wait_for()
    choose(page)
    answered(page)
    page.locator("#share summary").click()
    page.get_by_role("button", name="Save the conversation (zip)").click()
    page.locator("#share [role=status]", has_text="This browser did not keep this conversation").wait_for()
    page.context.close()


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
        if number == 0:
            page.wait_for_timeout(300)
            new_chat(page)
    page.locator("#conversations").get_by_text("What color is the star?").wait_for()
    assert listed(page, 1) == ["What color is the star?"]
    context.close()


def test_a_full_storage_is_said_and_the_page_goes_on(browser, url):
    context = browser.new_context()
    page = context.new_page()
    quota = {"origin": url, "quotaSize": 1}
    context.new_cdp_session(page).send("Storage.overrideQuotaForOrigin", quota)
    page.goto(f"{url}/")
    choose(page)
    answered(page)
    page.locator("#composer .submit-button").wait_for()
    write(page, "And the stars?")
    send(page)
    answered(page, 2)
    page.wait_for_function(
        "document.querySelector('#conversations .note').textContent.includes('switched off or full')"
        " && document.querySelector('#conversations .note').checkVisibility()"
    )
    context.close()


def test_a_forbidden_storage_is_said_and_the_page_goes_on(browser, url):
    page = without_storage(browser, url)
    choose(page)
    assert answered(page) == "There are three hearts."
    page.locator("#conversations .note", has_text="switched off or full").wait_for()
    page.context.close()


PICTURES = "**/file=**"


def test_a_picture_that_does_not_arrive_costs_no_conversation_and_is_kept_later(page):
    note = page.locator("#conversations .note")
    says = note.text_content()
    page.route(PICTURES, lambda route: route.abort())
    write(page, "How many hearts are there?", HEARTS)
    send(page)
    answered(page)
    assert listed(page, 1) == HEARTS_ASKED
    assert note.text_content() == says
    assert pictures_kept(page) == 0
    page.unroute(PICTURES)
    send_next(page, "And the stars?", 2)
    in_time(page, lambda: pictures_kept(page) == 1)
    assert note.text_content() == says


def test_a_conversation_is_not_opened_while_the_server_can_not_be_reached(page):
    write(page, "How many hearts are there?", HEARTS)
    send(page)
    answer = answered(page)
    listed(page, 1)
    new_chat(page)
    page.route(PICTURES, lambda route: route.abort())
    page.get_by_role("button", name="Open “How many hearts").click()
    page.locator("#conversations .note", has_text="not opened: the server could not be reached.").wait_for()
    assert page.locator("#chat .bot-row").count() == 0
    page.unroute(PICTURES)
    page.get_by_role("button", name="Open “How many hearts").click()
    assert answered(page) == answer


def test_a_draft_keeps_its_pictures_where_the_server_could_not_be_asked_about_them(page):
    write(page, "And the st", NIGHT)
    page.wait_for_function("ask.kept.get('files')?.length === 1 && ask.kept.get('text') === 'And the st'")
    page.route(PICTURES, lambda route: route.abort() if route.request.method == "HEAD" else route.continue_())
    page.reload()
    page.locator("#composer .thumbnail-item").wait_for()
    assert page.locator("#composer textarea").input_value() == "And the st"


def test_a_conversation_of_a_model_that_is_not_offered_opens_to_be_read(page):
    choose(page)
    answer = answered(page)
    listed(page, 1)
    with ZipFile(save(page, "Save the conversation (zip)")) as files:
        document = json.loads(files.read("conversation.json"))
    document["exchanges"][0]["stats"]["model"] = "gemma-9-nine"
    new_chat(page)
    open_saved(page, zipped({"conversation.json": json.dumps(document)}))
    assert answered(page) == answer
    page.locator("#chat .figures", has_text="gemma-9-nine").wait_for()
    page.get_by_role("button", name="Look inside answer 1").click()
    page.locator("#maps", has_text="gemma-9-nine, which gave this answer, is not offered here").wait_for()
    page.locator("#composer .submit-button").wait_for()
    write(page, "And the stars?")
    send(page)
    assert answered(page, 2) == "There is one star."


def test_a_forgetful_page_keeps_nothing(browser):
    with running_app("--forgetful") as url, opened(browser, url) as page:
        add(page, NIGHT)
        page.locator("#composer textarea").fill("What color is the star?")
        send(page)
        answered(page)
        page.wait_for_timeout(500)
        assert page.locator("#conversations").count() == 0
        assert page.locator("#share [data-share=zip], #share [data-share=markdown]").count() == 0
        assert page.evaluate("indexedDB.databases()") == []
        page.reload()
        answered(page)  # a reload of the tab still finds it on the server


def save(page, what):
    page.locator("#share summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=what).click()
    page.keyboard.press("Escape")
    return download.value.path()


def open_saved(page, data):
    file = {"name": "saved.zip", "mimeType": "application/zip", "buffer": data}
    page.locator("#conversations input[type=file]").set_input_files([file])


def test_a_saved_conversation_is_opened_elsewhere_and_replayed(browser, url, page):
    write(page, "How many hearts are there?", HEARTS)
    send(page)
    answer = answered(page)
    listed(page, 1)
    saved = save(page, "Save the conversation (zip)").read_bytes()
    with ZipFile(BytesIO(saved)) as files:
        assert files.testzip() is None
        document = json.loads(files.read("conversation.json"))
        [picture] = document["exchanges"][0]["pictures"]
        assert files.read(picture["file"]) == HEARTS.read_bytes()
        assert sha256(HEARTS.read_bytes()).hexdigest() in picture["file"]
        assert "/tmp" not in files.read("conversation.json").decode()
        assert f"**demo model:** {answer}" in files.read("conversation.md").decode()
        assert document["exchanges"][0]["stats"]["revision"]
    with ZipFile(BytesIO(saved)) as files, ZipFile(packed := BytesIO(), "w", ZIP_DEFLATED) as again:
        for name in files.namelist():
            again.writestr(name, files.read(name))
    for data in (saved, packed.getvalue()):
        with opened(browser, url) as other:
            other.locator("#conversations details").evaluate("(details) => { details.open = true; }")
            open_saved(other, data)
            assert answered(other) == answer
            listed(other, 1)
            look_inside(other)
            other.get_by_role("tab", name="Compare").click()
            other.locator("#replay").click()
            other.get_by_text("Both answers are the same, token by token.").wait_for()


def test_the_pictures_of_the_answer_before_a_closer_look_travel_with_it(browser, url, page):
    write(page, "How many hearts are there?", HEARTS)
    send(page)
    answered(page)
    listed(page, 1)
    in_browser(
        page,
        """(one) => {
          const exchange = one.exchanges[one.keys[0]];
          return Boolean(exchange.first = structuredClone(exchange));
        }""",
    )
    saved = save(page, "Save the conversation (zip)").read_bytes()
    with ZipFile(BytesIO(saved)) as files:
        document = json.loads(files.read("conversation.json"))
        [picture] = document["exchanges"][0]["first"]["pictures"]
        assert files.read(picture["file"]) == HEARTS.read_bytes()
        assert "path" not in picture
    with opened(browser, url) as other:
        other.locator("#conversations details").evaluate("(details) => { details.open = true; }")
        open_saved(other, saved)
        answered(other)
        listed(other, 1)
        other.route("**/file=**", lambda route: route.fulfill(status=404) if route.request.method == "HEAD"
                    else route.continue_())  # fmt: skip
        sent = []
        other.on("request", lambda request: sent.append(request.url) if "/upload?" in request.url else None)
        other.get_by_role("button", name="Open “How many hearts").click()
        in_time(other, lambda: len(sent) == 2)


def zipped(files, method=ZIP_STORED):
    with ZipFile(data := BytesIO(), "w", method) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return data.getvalue()


BOMB = bytearray(zipped({"conversation.json": b"0" * 50_000_000}, ZIP_DEFLATED))
for place in (BOMB.index(b"PK\x03\x04") + 22, BOMB.index(b"PK\x01\x02") + 24):
    BOMB[place : place + 4] = (100).to_bytes(4, "little")  # says that it unpacks to 100 bytes
NO_FORM = {"version": 1, "exchanges": [{"pictures": []}]}
HOSTILE = {
    "no zip": (b"x" * 1000, "no saved conversation"),
    "empty": (b"", "no saved conversation"),
    "a path outside": (zipped({"../conversation.json": "{}"}), "no saved conversation"),
    "an absolute path": (zipped({"/etc/passwd": "x", "conversation.json": "{}"}), "no saved conversation"),
    "a bomb": (bytes(BOMB), "no saved conversation"),
    "cut": (zipped({"conversation.json": "{}" * 1000})[:-300], "no saved conversation"),
    "something else": (zipped({"other.txt": "x"}), "no saved conversation"),
    "no document": (zipped({"conversation.json": "[1, 2"}), "no saved conversation"),
    "another form": (zipped({"conversation.json": json.dumps(NO_FORM)}), "can't be read"),
    "a newer version": (zipped({"conversation.json": '{"version": 9, "exchanges": []}'}), "newer version"),
}


def test_files_that_are_no_saved_conversation_are_refused_and_nothing_changes(page):
    choose(page)
    answer = answered(page)
    listed(page, 1)
    for name, (data, said) in HOSTILE.items():
        page.locator("#conversations .note").evaluate("(note) => { note.textContent = ''; }")
        open_saved(page, data)
        page.locator("#changing, #conversations .note").filter(has_text=said).wait_for()
        assert answered(page) == answer, name
    assert listed(page, 1) == ["How many hearts are there?"]


def test_an_answer_card_lives_without_a_server(browser, page):
    choose(page, 1)
    answered(page)
    card = save(page, "Save the answer as a card")
    context = browser.new_context(offline=True)
    alone, asked = context.new_page(), []
    alone.on("request", lambda request: asked.append(request.url))
    alone.set_content(card.read_text(encoding="utf-8"))
    alone.locator("canvas").wait_for()
    assert alone.locator("#words").inner_text().strip() == "The star is yellow."
    # It opens at the word that says most.
    assert alone.locator("#words [aria-pressed=true]").inner_text().strip() == "yellow"
    assert re.match(r"\s*yellow\s+(9\d|100) %", alone.locator("#alternatives tr").first.inner_text())
    alone.get_by_role("button", name="star").click()
    assert alone.locator("#words [aria-pressed=true]").inner_text().strip() == "star"
    alone.get_by_role("button", name="yellow").click()
    lit = alone.evaluate(
        """() => {
          const canvas = document.querySelector("canvas"), { data } = canvas.getContext("2d")
            .getImageData(0, 0, canvas.width, canvas.height);
          let best = [Infinity, 0];
          for (let at = 3; at < data.length; at += 4) if (data[at] < best[0]) best = [data[at], (at - 3) / 4];
          return [best[1] % canvas.width / canvas.width, Math.floor(best[1] / canvas.width) / canvas.height];
        }"""
    )
    assert 0.55 < lit[0] < 0.85  # the star
    assert 0.2 < lit[1] < 0.65
    assert [address for address in asked if not address.startswith(("data:", "about:"))] == []
    context.close()


def test_a_conversation_is_copied_as_markdown(page):
    choose(page)
    answer = answered(page)
    listed(page, 1)
    page.locator("#share summary").click()
    page.get_by_role("button", name="Copy the conversation as Markdown").click()
    page.locator("#share [role=status]", has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied.startswith("# How many hearts are there?")
    assert f"**You:** How many hearts are there?\n\n**demo model:** {answer}" in copied
