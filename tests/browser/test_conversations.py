"""Conversations that the visitor's own browser keeps: they outlive the server, and are found, renamed and deleted."""

import json
import re
from hashlib import sha256
from io import BytesIO
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
import running_app as support
from browsing import answered, choose, look_inside, send, write
from places import EXAMPLES
from running_app import built, free_port, launch, opened, running_app, served

HEARTS, NIGHT = EXAMPLES / "hearts.png", EXAMPLES / "night.png"
HOW_MANY, COLOR, STARS = "How many hearts are there?", "What color is the star?", "And the stars?"
PICTURES = "**/file=**"


def listed(page, count):
    """The titles, once there are so many conversations."""
    page.locator("#conversations summary").get_by_text(f"Conversations ({count})").wait_for()
    page.locator("#conversations details").evaluate("(details) => { details.open = true; }")
    return page.locator("#conversations [data-conversation=open]").all_inner_texts()


def new_chat(page):
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()


def ask(page, question, *files, number=1):
    """Asks the numbered question; returns its answer."""
    page.locator("#composer .submit-button").wait_for()
    write(page, question, *files)
    send(page)
    return answered(page, number)


def open_kept(page, title):
    page.locator("#conversations").get_by_role("button", name=f"Open “{title}").click()


def delete_all(page):
    page.get_by_role("button", name="Delete all").click()
    page.get_by_role("button", name="Really: Delete all?").click()
    page.locator("#chat .placeholder-content").wait_for()


def says(page, text):
    page.locator("#conversations .note", has_text=text).wait_for(state="attached")


def composer_holds(page, text):
    page.wait_for_function("(text) => document.querySelector('#composer textarea').value === text", arg=text)


_WITHIN = 'const within = ask.storage("conversations", { conversations: "id", pictures: "digest" });'


def in_browser(page, work):
    """The questions of the entries, oldest first, after `work`, a function on each of them that may change it."""
    return page.evaluate(
        f"""async (work) => {{
          {_WITHIN}
          const all = await within("readonly", (store) => store.getAll());
          all.sort((one, other) => one.changed - other.changed);
          for (const one of all) if (eval(work)(one)) await within("readwrite", (store) => store.put(one));
          return all.map((one) => one.keys.map((key) => one.exchanges[key].question));
        }}""",
        work,
    )


def entries(page):
    return in_browser(page, "() => false")


def pictures_kept(page):
    return page.evaluate(f'() => {{ {_WITHIN} return within("readonly", (_, pictures) => pictures.count()); }}')


def in_time(page, holds):
    for _ in range(300):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(entries(page))


def forgotten(page):
    """The server no longer knows this tab."""
    page.evaluate("sessionStorage.removeItem('session')")
    page.reload()


def test_everything_outlives_a_restart_of_the_server(browser, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))  # what the old server left there is none of the new one's
    port = free_port()
    monkeypatch.setattr(support, "free_port", lambda: port)
    page = browser.new_context().new_page()
    with running_app() as url:
        page.goto(url)
        page.locator("#chat .placeholder-content").wait_for()
        page.locator("#int4 input").check()
        answer = ask(page, HOW_MANY, HEARTS)
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
        assert ask(page, "How many stars are there?", number=2) == "There is one star."
        look_inside(page)
        assert listed(page, 1) == [HOW_MANY]
    page.context.close()


def test_conversations_are_listed_found_renamed_and_deleted(page):
    ask(page, HOW_MANY, HEARTS)
    listed(page, 1)
    new_chat(page)
    choose(page, 1)
    answered(page)
    assert listed(page, 2) == [COLOR, HOW_MANY]
    search = page.get_by_role("searchbox", name="Search your conversations")
    search.fill("YELLOW")
    page.wait_for_function("document.querySelectorAll('#conversations li').length === 1")
    assert listed(page, 2) == [COLOR]
    search.fill("")
    page.wait_for_function("document.querySelectorAll('#conversations li').length === 2")

    row = page.locator("#conversations li").filter(has_text=HOW_MANY)
    row.hover()
    row.get_by_role("button", name="Rename").click()
    page.get_by_label("New name").fill("Hearts <b>")
    page.get_by_label("New name").press("Enter")
    page.get_by_role("button", name="Open “Hearts <b>”").click()
    page.locator("#chat .bot-row", has_text="three hearts").wait_for()
    ask(page, STARS, number=2)
    page.wait_for_function("document.querySelector('#conversations li').innerText.includes('Hearts <b>')")

    # Coming back to the window, which draws the list again, takes away neither a click nor the focus.
    row = page.locator("#conversations li").filter(has_text=COLOR)
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
    page.wait_for_timeout(300)
    assert len(listed(page, 2)) == 2  # it asks first
    row.get_by_role("button", name="Really").click()
    assert listed(page, 1) == ["Hearts <b>"]
    page.wait_for_function("document.activeElement.ariaLabel?.startsWith('Open “Hearts')")

    delete_all(page)
    assert entries(page) == []
    assert pictures_kept(page) == 0


def test_what_is_written_and_what_a_new_chat_set_aside_follow_to_another_conversation(page):
    choose(page)
    answered(page)
    listed(page, 1)
    new_chat(page)
    page.get_by_role("button", name="Bring it back").click()
    answered(page)
    ask(page, STARS, number=2)
    page.wait_for_timeout(500)
    assert len(listed(page, 1)) == 1  # what is brought back and asked on is the same conversation
    new_chat(page)
    choose(page, 1)
    answered(page)
    listed(page, 2)

    page.locator("#composer .submit-button").wait_for()
    write(page, "a draft")
    page.get_by_role("button", name="Edit question 1").click()
    composer_holds(page, COLOR)
    page.locator("#composer textarea").fill("And its color?")
    open_kept(page, HOW_MANY)
    composer_holds(page, "a draft\n\nAnd its color?")
    page.locator("#chat .bot-row", has_text="three hearts").wait_for()
    page.locator("#conversations [aria-current]").get_by_text(HOW_MANY).wait_for()
    page.locator("#changing p").wait_for(state="detached")
    new_chat(page)
    composer_holds(page, "")

    # On a phone the settings lie over the chat, and go for what is opened there.
    page.set_viewport_size({"width": 400, "height": 800})
    page.locator("#settings.open").wait_for()
    open_kept(page, COLOR)
    composer_holds(page, "a draft\n\nAnd its color?")
    page.locator("#settings:not(.open)").wait_for(state="attached")


def test_a_server_that_has_forgotten_the_conversation_is_given_it_before_anything_is_asked(browser, scripted):
    scripted.let_through(*scripted.go_on)
    app = built(scripted)
    launch(app)
    forget = app.app.state_holder.session_data.clear
    try:
        with opened(browser, app.local_url.rstrip("/")) as page:
            ask(page, HOW_MANY, HEARTS)
            listed(page, 1)
            page.evaluate(_NOTES_THAT_IT_BROUGHT)
            forget()
            page.locator("#composer .submit-button").wait_for()
            write(page, STARS)
            send(page)
            page.locator("#changing", has_text="had forgotten this conversation").wait_for()
            composer_holds(page, STARS)
            page.wait_for_function("window.brought")
            send(page)
            answered(page, 2)
            turns = scripted.requests[-1].turns
            assert [turn.text for turn in turns] == [HOW_MANY, scripted.answer, STARS]
            assert turns[0].pictures
            in_time(page, lambda: entries(page) == [[HOW_MANY, STARS]])

            # After a long time away, the visitor need not ask for that.
            page.evaluate("window.opens = window.brought = false")
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
            ask(page, "And in all?", number=3)
            assert len(scripted.requests[-1].turns) == 5
    finally:
        app.close(verbose=False)


_NOTES_THAT_IT_BROUGHT = """() => {
  const { open } = ask.conversations, { answered } = ask;
  ask.conversations.open = (id) => {
    window.opens = true;
    open(id);
  };
  ask.answered = (isSubmit) => {
    answered(isSubmit);
    window.brought = window.opens;
  };
}"""


def test_what_is_asked_takes_no_place_of_a_conversation_that_does_not_stand(page):
    ask(page, HOW_MANY, HEARTS)
    listed(page, 1)
    held = []  # while the conversation comes back, which asks whether its picture is there
    page.route(PICTURES, lambda route: held.append(route) if route.request.method == "HEAD" else route.continue_())
    forgotten(page)
    page.locator("#chat .placeholder-content").wait_for()
    page.locator("#composer .submit-button").wait_for()
    choose(page, 1)
    answered(page)
    in_time(page, lambda: entries(page) == [[HOW_MANY], [COLOR]])
    for route in held:
        route.continue_()
    page.unroute(PICTURES)
    page.locator("#chat .bot-row", has_text="three hearts").wait_for()
    in_time(page, lambda: entries(page) == [[HOW_MANY], [COLOR]])

    # One that reads otherwise than it was kept: as after a release that changed what a document holds, or where a crop
    # was of a picture that is missing now.
    in_browser(
        page,
        """(one) => {
          if (!one.title.includes("color")) return false;
          one.exchanges = { other: one.exchanges[one.keys[0]] };
          one.keys = ["other"];
          return true;
        }""",
    )
    forgotten(page)
    answered(page)
    page.locator("#conversations details").evaluate("(details) => { details.open = true; }")
    open_kept(page, COLOR)
    page.locator("#chat .bot-row", has_text="yellow").wait_for()
    page.locator("#conversations [aria-current]").get_by_text(COLOR).wait_for()
    ask(page, STARS, number=2)
    in_time(page, lambda: entries(page) == [[HOW_MANY], [COLOR, STARS]])

    # One that was not opened.
    in_browser(page, "(one) => one.title.includes('color') && Boolean(one.version = 99)")
    forgotten(page)
    page.locator("#changing", has_text="newer version").wait_for()
    page.evaluate(
        """() => {
          const { save } = ask.conversations;
          ask.conversations.save = (given) => save(window.given = given);
        }"""
    )
    choose(page, 2)
    answered(page)
    in_time(page, lambda: entries(page) == [[HOW_MANY], [COLOR, STARS], [WHERE]])

    # One that is kept late, after a new chat.
    page.evaluate(
        "async () => { document.querySelector('#clear').click(); await ask.conversations.save(window.given); }"
    )
    page.locator("#chat .placeholder-content").wait_for()
    page.locator("#composer .submit-button").wait_for()
    page.wait_for_function("sessionStorage.getItem('conversation') === 'null'")
    forgotten(page)
    choose(page, 3)
    answered(page)
    in_time(page, lambda: entries(page) == [[HOW_MANY], [COLOR, STARS], [WHERE], [SIGN]])


WHERE, SIGN = "Where is the blue circle?", "What does the sign say?"


def test_of_one_conversation_in_two_windows_no_answer_is_lost(page):
    choose(page)
    answered(page)
    listed(page, 1)
    other = page.context.new_page()
    other.goto(page.url)
    listed(other, 1)
    open_kept(other, HOW_MANY)
    answered(other)
    ask(other, STARS, number=2)
    in_time(page, lambda: entries(page) == [[HOW_MANY, STARS]])
    ask(page, "And in all?", number=2)
    both = [[HOW_MANY, STARS], [HOW_MANY, "And in all?"]]
    in_time(page, lambda: entries(page) == both)
    ask(page, "Are you sure?", number=3)
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

    # What another window deleted is said to be gone.
    delete_all(other)
    in_time(page, lambda: entries(page) == [])
    forgotten(page)
    says(page, "This conversation is no longer in this browser: it was deleted in another window.")
    assert page.evaluate("ask.kept.get('conversation')") is None
    page.wait_for_timeout(300)
    assert page.locator("#changing p").count() == 0


def test_a_storage_that_the_browser_closes_or_that_is_full(page, url):
    """A full one is said to be; a closed connection is opened anew; beyond its room the oldest conversation goes."""
    browser = page.context.new_cdp_session(page)
    browser.send("Storage.overrideQuotaForOrigin", {"origin": url, "quotaSize": 1})  # later, it would hold after 30 s
    ask(page, HOW_MANY, HEARTS)
    page.wait_for_function(
        "document.querySelector('#conversations .note').textContent.includes('switched off or full')"
        " && document.querySelector('#conversations .note').checkVisibility()"
    )
    browser.send("Storage.overrideQuotaForOrigin", {"origin": url})

    page.evaluate(
        """() => {
          const { transaction } = IDBDatabase.prototype;
          window.lost = true;
          IDBDatabase.prototype.transaction = function (...given) {
            if (window.lost) this.close();
            window.lost = false;
            return transaction.apply(this, given);
          };
        }"""
    )
    ask(page, STARS, number=2)
    assert listed(page, 1) == [HOW_MANY]
    assert not page.evaluate("window.lost")

    new_chat(page)
    write(page, COLOR, NIGHT)
    page.evaluate("Object.defineProperty(Blob.prototype, 'size', { get: () => 201e6 })")  # more than its whole room
    send(page)
    answered(page)
    page.locator("#conversations").get_by_text(COLOR).wait_for()
    page.wait_for_function("document.querySelectorAll('#conversations li').length === 1")
    assert listed(page, 1) == [COLOR]


def test_a_forbidden_storage_is_said_and_what_it_did_not_keep_can_not_be_saved(browser, url):
    page = browser.new_context().new_page()
    page.add_init_script(
        "Object.defineProperty(window, 'indexedDB', { get() { throw new DOMException('no', 'SecurityError'); } });"
    )
    page.goto(f"{url}/")
    page.locator("#share summary").click()
    page.get_by_role("button", name="Save the conversation (zip)").click()
    page.locator("#share [role=status]", has_text="There is nothing to save yet.").wait_for()
    choose(page)
    assert answered(page) == "There are three hearts."
    says(page, "switched off or full")
    page.locator("#share summary").click()
    page.get_by_role("button", name="Save the conversation (zip)").click()
    page.locator("#share [role=status]", has_text="This browser did not keep this conversation").wait_for()
    page.context.close()


def test_a_server_that_can_not_be_reached_costs_no_conversation_and_no_draft(page):
    # A picture that does not arrive is kept later.
    note = page.locator("#conversations .note")
    said = note.text_content()
    page.route(PICTURES, lambda route: route.abort())
    answer = ask(page, HOW_MANY, HEARTS)
    assert listed(page, 1) == [HOW_MANY]
    assert note.text_content() == said
    assert pictures_kept(page) == 0
    page.unroute(PICTURES)
    ask(page, STARS, number=2)
    in_time(page, lambda: pictures_kept(page) == 1)
    assert note.text_content() == said

    # A conversation is not opened meanwhile.
    new_chat(page)
    page.route(PICTURES, lambda route: route.abort())
    open_kept(page, HOW_MANY)
    says(page, "not opened: the server could not be reached.")
    assert page.locator("#chat .bot-row").count() == 0
    page.unroute(PICTURES)
    open_kept(page, HOW_MANY)
    assert answered(page) == answer

    # A draft keeps its pictures.
    page.locator("#composer .submit-button").wait_for()
    write(page, "And the st", NIGHT)
    page.wait_for_function("ask.kept.get('files')?.length === 1 && ask.kept.get('text') === 'And the st'")
    page.route(PICTURES, lambda route: route.abort() if route.request.method == "HEAD" else route.continue_())
    page.reload()
    page.locator("#composer .thumbnail-item").wait_for()
    assert page.locator("#composer textarea").input_value() == "And the st"


def test_a_forgetful_page_keeps_nothing(browser, scripted):
    scripted.let_through(*scripted.go_on)
    with served(scripted, forgetful=True) as url, opened(browser, url) as page:
        ask(page, COLOR, NIGHT)
        page.wait_for_timeout(500)
        assert page.locator("#conversations").count() == 0
        assert page.locator("#share [data-share=zip], #share [data-share=markdown]").count() == 0
        assert page.evaluate("indexedDB.databases()") == []
        page.reload()
        answered(page)  # a reload of the tab still finds it on the server


@pytest.fixture(scope="module")
def keeper(browser, url):
    """A visitor's page with one answer about a picture of their own."""
    with opened(browser, url) as page:
        assert ask(page, COLOR, NIGHT) == "The star is yellow."
        listed(page, 1)
        yield page


def save(page, what="Save the conversation (zip)"):
    page.locator("#share summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name=what).click()
    page.keyboard.press("Escape")
    return download.value.path()


def open_saved(page, data):
    file = {"name": "saved.zip", "mimeType": "application/zip", "buffer": data}
    page.locator("#conversations input[type=file]").set_input_files([file])


def test_a_conversation_is_saved_with_its_pictures_and_copied_as_markdown(keeper):
    told = f"**You:** {COLOR}\n\n**demo model:** The star is yellow."
    with ZipFile(save(keeper)) as files:
        assert files.testzip() is None
        document = json.loads(files.read("conversation.json"))
        [picture] = document["exchanges"][0]["pictures"]
        assert files.read(picture["file"]) == NIGHT.read_bytes()
        assert sha256(NIGHT.read_bytes()).hexdigest() in picture["file"]
        assert "/tmp" not in files.read("conversation.json").decode()
        assert told in files.read("conversation.md").decode()
        assert document["exchanges"][0]["stats"]["revision"]
    keeper.locator("#share summary").click()
    keeper.get_by_role("button", name="Copy the conversation as Markdown").click()
    keeper.locator("#share [role=status]", has_text="Copied").wait_for()
    keeper.keyboard.press("Escape")
    copied = keeper.evaluate("navigator.clipboard.readText()")
    assert copied.startswith(f"# {COLOR}")
    assert told in copied


def test_a_saved_conversation_is_opened_elsewhere_and_replayed(browser, url, keeper):
    saved = save(keeper).read_bytes()
    with ZipFile(BytesIO(saved)) as files:
        packed = zipped({name: files.read(name) for name in files.namelist()}, ZIP_DEFLATED)  # by another program
    with opened(browser, url) as other:
        other.locator("#conversations details").evaluate("(details) => { details.open = true; }")
        open_saved(other, saved)
        assert answered(other) == "The star is yellow."
        listed(other, 1)
        look_inside(other)
        other.get_by_role("tab", name="Compare").click()
        other.locator("#replay").click()
        other.get_by_text("Both answers are the same, token by token.").wait_for()

        delete_all(other)
        open_saved(other, packed)
        assert answered(other) == "The star is yellow."
        listed(other, 1)
        assert sha256(NIGHT.read_bytes()).hexdigest() in other.locator("#chat .user-row img").get_attribute("src")
        assert other.locator("#changing p").count() == 0

        # The pictures of the answer before a closer look travel with it.
        in_browser(
            other,
            """(one) => {
              const exchange = one.exchanges[one.keys[0]];
              return Boolean(exchange.first = structuredClone(exchange));
            }""",
        )
        saved = save(other).read_bytes()
        with ZipFile(BytesIO(saved)) as files:
            [picture] = json.loads(files.read("conversation.json"))["exchanges"][0]["first"]["pictures"]
            assert files.read(picture["file"]) == NIGHT.read_bytes()
            assert "path" not in picture
        delete_all(other)
        open_saved(other, saved)
        answered(other)
        listed(other, 1)
        other.route(PICTURES, lambda route: route.fulfill(status=404) if route.request.method == "HEAD"
                    else route.continue_())  # fmt: skip
        sent = []
        other.on("request", lambda request: sent.append(request.url) if "/upload?" in request.url else None)
        open_kept(other, COLOR)
        in_time(other, lambda: len(sent) == 2)


def test_an_answer_card_lives_without_a_server(browser, keeper):
    card = save(keeper, "Save the answer as a card")
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


def test_files_that_are_no_saved_conversation_are_refused_and_nothing_changes(keeper):
    for name, (data, said) in HOSTILE.items():
        keeper.locator("#conversations .note").evaluate("(note) => { note.textContent = ''; }")
        open_saved(keeper, data)
        keeper.locator("#changing, #conversations .note").filter(has_text=said).wait_for()
        assert answered(keeper) == "The star is yellow.", name
    assert listed(keeper, 1) == [COLOR]
    in_time(keeper, lambda: keeper.evaluate("ask.kept.get('conversation') !== null"))  # it is still what stands here


def test_a_conversation_opens_in_place_of_the_table_and_without_its_model_to_be_read(keeper):
    with ZipFile(save(keeper)) as saved:
        files = {name: saved.read(name) for name in saved.namelist()}
    document = json.loads(files["conversation.json"])
    document["exchanges"][0]["stats"]["model"] = "gemma-9-nine"
    files["conversation.json"] = json.dumps(document)
    for opens in (lambda: open_kept(keeper, COLOR), lambda: open_saved(keeper, zipped(files))):
        new_chat(keeper)
        keeper.get_by_role("button", name="Ask about many pictures").click()
        keeper.locator("#table textarea").wait_for()
        opens()
        assert answered(keeper) == "The star is yellow."
    keeper.locator("#chat .figures", has_text="gemma-9-nine").wait_for()
    keeper.get_by_role("button", name="Look inside answer 1").click()
    keeper.locator("#maps", has_text="gemma-9-nine, which gave this answer, is not offered here").wait_for()
    assert ask(keeper, "How many stars are there?", number=2) == "There is one star."
