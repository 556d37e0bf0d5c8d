"""What a visitor has written, chosen and been told survives slips, reloads and a lost connection."""

from browsing import JOIN, accept, add, answered, choose, refuse, send, write
from places import EXAMPLES
from running_app import opened, unfold

HEARTS, NIGHT = EXAMPLES / "hearts.png", EXAMPLES / "night.png"


# Sends a question in the moment in which the composer is there. What the page asks of the server waits until then, so
# that no machine is too fast, and none too slow, for a question before the page stands.
_EARLY = """const send = window.fetch;
let pressed;
const early = new Promise((resolve) => (pressed = resolve));
window.held = 0;
window.fetch = async (...request) => {
  if (String(request[0]?.url ?? request[0]).includes("/queue/join")) {
    window.held += 1;
    await early;
  }
  return send(...request);
};
new MutationObserver((_, observer) => {
  const box = document.querySelector("#composer textarea");
  if (!box || !document.querySelector("#composer .submit-button")) return;
  observer.disconnect();
  box.value = "Hello";
  box.dispatchEvent(new InputEvent("input", { bubbles: true }));
  for (let press = 0; press < 2; press++)
    box.dispatchEvent(new KeyboardEvent("keypress", { key: "Enter", bubbles: true, cancelable: true }));
  pressed();
}).observe(document, { childList: true, subtree: true });"""
_LETTER = """new MutationObserver((_, observer) => {
  const composer = document.querySelector("#composer textarea");
  if (!composer) return;
  observer.disconnect();
  composer.blur();
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "H", bubbles: true }));
  window.reached = document.activeElement === composer;
}).observe(document, { childList: true, subtree: true });"""


def test_a_reload_finds_conversation_draft_and_settings_and_what_is_typed_meanwhile_follows(browser, url, page):
    choose(page)
    answered(page)
    with opened(browser, url) as another:
        assert another.locator("#chat .bot-row").count() == 0
    page.locator("#int4 input").check()
    write(page, "And the st", NIGHT)
    page.wait_for_function(
        """ask.kept.get("text") === "And the st" && ask.kept.get("files").length === 1
             && ask.kept.get("settings").values.includes(true)"""
    )
    waiting = []
    page.route("**/run/predict*", lambda route: waiting.append(route))
    page.reload()
    page.locator("#composer textarea").wait_for()
    in_time(page, lambda: waiting)
    page.locator("#composer textarea").fill("And now")
    for route in waiting:
        route.continue_()
    page.unroute("**/run/predict*")
    composer_becomes(page, "And the st\n\nAnd now", 1)
    assert answered(page) == "There are three hearts."
    page.wait_for_function("document.querySelector('#int4 input').checked")

    # So does what a new chat replaced.
    page.wait_for_function("ask.kept.get('text') === 'And the st\\n\\nAnd now' && ask.kept.get('conversation')")
    page.locator("#clear").click()
    page.get_by_role("button", name="Bring it back").wait_for()
    page.locator("#chat .placeholder-content").wait_for()
    page.wait_for_function("ask.kept.get('conversation') === null && ask.kept.get('text') === ''")
    page.reload()
    page.get_by_role("button", name="Bring it back").click()
    assert answered(page) == "There are three hearts."
    composer_becomes(page, "And the st\n\nAnd now", 1)

    page.locator("#composer textarea").fill("And the stars?")
    send(page)
    answered(page, 2)
    page.reload()
    answered(page, 2)


def in_time(page, holds):
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(page.locator("body").inner_text())


def test_an_edit_and_the_draft_that_it_set_aside_outlive_a_card_the_table_and_a_reload(page):
    choose(page)
    answered(page)
    page.locator("#composer .submit-button").wait_for()
    write(page, "And the st", NIGHT)
    rewrite_the_question(page)

    page.locator("#share summary").click()
    with page.expect_download():
        page.get_by_role("button", name="Save the answer as a card").click()
    page.wait_for_timeout(300)
    is_rewritten(page)
    page.get_by_role("button", name="Ask about many pictures").click()
    page.keyboard.press("Escape")
    is_rewritten(page)
    page.reload()
    is_rewritten(page)
    page.get_by_role("button", name="Cancel editing").click()
    composer_becomes(page, "And the st", 1)

    # The draft comes back once the edit is sent, before what is typed until then.
    rewrite_the_question(page)
    held, handing = [], events_of(page, "hand_back")
    page.route(
        JOIN,
        lambda route: held.append(route) if route.request.post_data_json["fn_index"] in handing else route.continue_(),
    )
    send(page)
    in_time(page, lambda: held)
    page.locator("#composer textarea").fill("abc")
    for route in held:
        route.continue_()
    page.unroute(JOIN)
    composer_becomes(page, "And the st\n\nabc", 1)


def rewrite_the_question(page):
    page.get_by_role("button", name="Edit question 1").click()
    composer_becomes(page, "How many hearts are there?", 1)
    page.locator("#composer textarea").fill("How many are red?")


def is_rewritten(page):
    page.locator("#changing", has_text="Editing question 1").wait_for()
    composer_becomes(page, "How many are red?", 1)


def events_of(page, handler):
    """The numbers under which Gradio's queue is asked for this handler."""
    return page.evaluate(
        """(name) => gradio_config.dependencies.filter((one) => String(one.api_name).startsWith(name))
             .map((one) => one.id)""",
        handler,
    )


def composer_becomes(page, text, pictures=0):
    page.wait_for_function(
        """([text, pictures]) => document.querySelector("#composer textarea")?.value === text
             && document.querySelectorAll("#composer .thumbnail-item").length === pictures""",
        arg=[text, pictures],
    )


def test_a_letter_and_a_question_that_come_before_the_page_stands_are_taken_once(browser, url):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(_LETTER)
    page.add_init_script(_EARLY)
    page.goto(url)
    assert answered(page)
    assert page.evaluate("window.reached"), "the letter did not reach the composer"
    assert page.evaluate("window.held"), "nothing waited for the question"
    assert page.locator("#chat .user-row .message-content").all_inner_texts() == ["Hello"]
    assert page.locator("#composer textarea").input_value() == ""
    context.close()


def test_what_is_not_sent_or_is_refused_stays_in_the_composer(page):
    page.locator("#composer textarea").press("Enter")
    page.get_by_text("There is no question yet").wait_for()
    assert page.locator("#chat button.example").count() > 4
    add(page, HEARTS)
    send(page)
    page.get_by_text("Ask something about the picture.").wait_for()
    composer_becomes(page, "", 1)
    assert page.locator("#chat button.example").count() > 4

    # Typing reaches it from anywhere.
    page.evaluate("document.activeElement.blur()")
    page.keyboard.type("How many hearts are there?")
    composer_becomes(page, "How many hearts are there?", 1)
    sending = events_of(page, "send")  # the preview is asked for as well
    for status in (422, 429, 502, 503):
        refuse(page, status)
        with page.expect_response(
            lambda response: JOIN.strip("*") in response.url and response.request.post_data_json["fn_index"] in sending
        ) as refused:
            send(page)
        assert refused.value.status == status
        page.locator("#changing", has_text="did not arrive").wait_for()
        composer_becomes(page, "How many hearts are there?", 1)
        accept(page)
    page.reload()
    page.locator("#composer textarea").wait_for()
    composer_becomes(page, "How many hearts are there?", 1)
    send(page)
    assert answered(page) == "There are three hearts."
    composer_becomes(page, "")


def test_slips_can_be_undone_and_the_second_of_two_clicks_does_nothing(page):
    for number, question in enumerate(("How many hearts are there?", "And the stars?"), 1):
        write(page, question, *([HEARTS] if number == 1 else []))
        send(page)
        answered(page, number)
    page.locator("#composer .submit-button").wait_for()
    page.get_by_role("button", name="Undo").evaluate("(undo) => { undo.click(); undo.click(); }")
    composer_becomes(page, "And the stars?")
    page.wait_for_timeout(500)
    assert page.locator("#chat .figures").count() == 1
    page.wait_for_function("ask.kept.get('text') === 'And the stars?'")
    page.reload()
    answered(page)
    composer_becomes(page, "And the stars?")

    add(page, NIGHT)
    page.locator("#clear").evaluate("(clear) => { clear.click(); clear.click(); }")
    page.locator("#chat .placeholder-content").wait_for()
    composer_becomes(page, "")
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Bring it back").click()
    assert answered(page) == "There are three hearts."
    composer_becomes(page, "And the stars?", 1)
    page.get_by_role("button", name="Bring it back").wait_for(state="detached")
    send(page)
    answered(page, 2)

    write(page, "And in all?")
    send(page)
    answered(page, 3)
    page.get_by_role("button", name="Retry: ask question 2 again").click()
    page.get_by_text("The earlier answer and what came after it are replaced.").wait_for()
    assert page.locator("#chat .figures").count() == 2
    page.get_by_role("button", name="Bring it back").click()
    answered(page, 3)


def test_a_card_that_is_clicked_twice_is_asked_once_and_its_settings_go_with_it(page):
    board = page.locator("#chat button.example").filter(has_text="pan & scan on")
    board.click()
    page.locator("#clear").click()
    page.get_by_text("This is a new chat.").wait_for()
    page.wait_for_timeout(500)  # a late answer of the server would switch it on again
    assert not page.locator("#pan-and-scan input").is_checked()
    # The card's stopped answer may also end after "New chat" has.
    assert page.evaluate("ask.useCard(Array(9).fill([true, '']), false, '')[0]") is False

    board.evaluate("(card) => { card.click(); setTimeout(() => card.click(), 30); }")
    answered(page)
    page.locator("#composer .submit-button").wait_for()
    pan_and_scan_becomes(page, "on")
    composer_becomes(page, "")
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()
    pan_and_scan_becomes(page, "off")

    # Also where the page was loaded again in between.
    board.click()
    answered(page)
    pan_and_scan_becomes(page, "on")
    page.wait_for_function("ask.kept.get('settings').values.includes(true)")
    page.reload()
    answered(page)
    pan_and_scan_becomes(page, "on")
    page.locator("#clear").click()
    pan_and_scan_becomes(page, "off")


def pan_and_scan_becomes(page, state):
    page.wait_for_function("(on) => document.querySelector('#pan-and-scan input').checked === on", arg=state == "on")


def test_a_page_whose_opening_is_refused_can_be_used_and_an_answer_that_was_cut_goes_on(browser, url):
    opening, refused = "**/run/predict*", []

    def refuse_opening(page):
        page.on("response", lambda response: refused.append(response.url) if response.status == 503 else None)
        page.route(opening, lambda route: route.fulfill(status=503, json={"detail": "refused"}))

    with opened(browser, url, before=refuse_opening) as page:
        assert refused
        page.unroute(opening)
        write(page, "How many hearts are there?", HEARTS)
        unfold(page, "Sampling", "#seed input")
        longest = page.get_by_label("number input for Longest answer")
        longest.fill("2")
        longest.press("Enter")
        page.locator("#composer textarea").focus()
        send(page)
        cut = answered(page)
        assert "There are three hearts.".startswith(cut)
        assert cut != "There are three hearts."
        for _ in range(4):
            if (button := page.get_by_role("button", name="Continue the answer")).count():
                page.locator("#composer .submit-button").wait_for()
                before = page.locator("#chat .bot-row .message-content").first.inner_text()
                button.click()
                page.wait_for_function(
                    "(before) => document.querySelector('#chat .bot-row .message-content').innerText !== before"
                    " && document.querySelector('#chat .figures')",
                    arg=before,
                )
        assert answered(page) == "There are three hearts."
        page.get_by_role("button", name="Look inside answer 1").click()
        words = page.locator("#inside .answer-tokens button")
        words.first.wait_for()
        assert [word.strip() for word in words.all_inner_texts()] == ["There", "are", "three", "hearts", "."]
        page.locator("#maps figure").wait_for()


def test_where_the_browser_keeps_nothing_the_page_works_all_the_same(browser, url):
    context = browser.new_context()
    context.add_init_script(
        """for (const name of ["sessionStorage", "localStorage"])
             Object.defineProperty(window, name, { get() { throw new DOMException("denied", "SecurityError"); } });"""
    )
    page = context.new_page()
    page.goto(url)
    choose(page)
    assert answered(page) == "There are three hearts."
    write(page, "And the stars?")
    send(page)
    answered(page, 2)
    page.locator("#theme input[value=Dark]").check()
    page.wait_for_function("document.body.classList.contains('dark')")
    context.close()


def test_a_question_without_its_answer_comes_back_after_a_lost_connection(browser, scripted, scripted_url):
    """Whether the server first learns that the window has closed, and stops the answer, or that nobody reads it: before
    the first word, nothing of it is kept. The same question about another picture has its answer."""
    with opened(browser, scripted_url) as page:
        scripted.let_through(*scripted.go_on)
        write(page, "How many?", HEARTS)
        send(page)
        answered(page)
        scripted.go_on["reading"].clear()
        write(page, "How many?", NIGHT)
        send(page)
        page.locator("#chat .bot-row").nth(1).get_by_text("Reading 90 tokens").wait_for()
        page.reload()  # what Gradio does once a broken connection is back
        answered(page)
        page.get_by_text("did not arrive").wait_for()
        composer_becomes(page, "How many?", 1)
        assert len(scripted.wait_until_closed(2)) == 2
        page.locator("#composer textarea").fill("How many stars?")
        page.reload()  # it is a draft now
        composer_becomes(page, "How many stars?", 1)
        scripted.go_on["reading"].set()
        send(page)
        answered(page, 2)


_ANOTHER_EVENT_ENDS = """() => {
  const { send } = ask;
  ask.send = async (message) => {
    const sent = await send(message);
    ask.answered(false); // before the server has told of the answer, as that of "Bring it back" may
    return sent;
  };
}"""


def test_a_question_that_is_being_answered_outlives_a_new_chat_enter_and_a_reload(browser, scripted, scripted_url):
    with opened(browser, scripted_url) as page:
        write(page, "How many?", HEARTS)
        send(page)
        page.locator("#chat .bot-row").get_by_text("2nd in the queue").wait_for()
        page.locator("#clear").click()
        page.locator("#chat .placeholder-content").wait_for()
        page.get_by_role("button", name="Bring it back").click()
        composer_becomes(page, "How many?", 1)

        page.evaluate(_ANOTHER_EVENT_ENDS)
        send(page)
        page.locator("#chat .bot-row").get_by_text("2nd in the queue").wait_for()
        page.locator("#composer .stop-button").wait_for()
        page.evaluate(
            """() => {
              const { answered } = ask;
              window.ended = 0;
              ask.answered = (isSubmit) => {
                answered(isSubmit);
                window.ended += isSubmit;
              };
            }"""
        )
        page.locator("#composer textarea").press("Enter")
        page.wait_for_function("window.ended")
        page.reload()
        page.locator("#composer textarea").wait_for()
        page.get_by_text("did not arrive").wait_for()
        composer_becomes(page, "How many?", 1)

        # An answer that has begun is kept like any stopped one, where the server first learns that the window closed.
        scripted.let_through("queued", "encoding", "reading")
        send(page)
        page.locator("#chat .bot-row").get_by_text("There").wait_for()
        page.reload()
        begun, lost = page.locator("#chat .bot-row", has_text="There"), page.get_by_text("did not arrive")
        begun.or_(lost).first.wait_for()
        composer_becomes(page, "How many?" if lost.count() else "", 1 if lost.count() else 0)
