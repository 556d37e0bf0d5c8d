"""What a visitor has written, chosen and been told survives slips, reloads and a lost connection."""

import pytest
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


def test_what_is_typed_while_a_reload_waits_follows_the_draft(page):
    write(page, "And the st")
    page.wait_for_function("ask.kept.get('text') === 'And the st'")
    waiting = []
    page.route("**/run/predict*", lambda route: waiting.append(route))
    page.reload()
    page.locator("#composer textarea").wait_for()
    in_time(page, lambda: waiting)
    page.locator("#composer textarea").fill("And now")
    for route in waiting:
        route.continue_()
    page.unroute("**/run/predict*")
    composer_becomes(page, "And the st\n\nAnd now")
    page.reload()
    composer_becomes(page, "And the st\n\nAnd now")


def in_time(page, holds):
    for _ in range(100):
        if holds():
            return
        page.wait_for_timeout(100)
    raise AssertionError(page.locator("body").inner_text())


def rewrite_a_question(page, *draft):
    """Begins to edit an answered question, beside what stands in the composer."""
    choose(page)
    answered(page)
    page.locator("#composer .submit-button").wait_for()
    if draft:
        write(page, *draft)
    page.get_by_role("button", name="Edit question 1").click()
    composer_becomes(page, "How many hearts are there?", 1)
    page.locator("#composer textarea").fill("How many are red?")


def test_an_edit_and_the_draft_that_it_set_aside_outlive_a_reload(page):
    rewrite_a_question(page, "And the st", NIGHT)
    page.reload()
    page.locator("#changing", has_text="Editing question 1").wait_for()
    composer_becomes(page, "How many are red?", 1)
    page.get_by_role("button", name="Cancel editing").click()
    composer_becomes(page, "And the st", 1)


def test_escape_closes_the_table_and_leaves_the_edit_behind_it(page):
    rewrite_a_question(page)
    page.get_by_role("button", name="Ask about many pictures").click()
    page.keyboard.press("Escape")
    page.locator("#changing", has_text="Editing question 1").wait_for()
    composer_becomes(page, "How many are red?", 1)


def test_what_is_typed_while_a_draft_comes_back_follows_it(page):
    rewrite_a_question(page, "And the st", NIGHT)
    handing = page.evaluate(
        """gradio_config.dependencies.filter(({ api_name }) => String(api_name).startsWith("hand_back"))
             .map(({ id }) => id)"""
    )
    held = []
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


def test_what_was_replaced_can_be_brought_back_after_a_reload(page):
    choose(page)
    answered(page)
    page.locator("#composer .submit-button").wait_for()
    page.wait_for_function("ask.kept.get('conversation')")
    write(page, "And the st")
    page.locator("#clear").click()
    page.get_by_role("button", name="Bring it back").wait_for()
    page.locator("#chat .placeholder-content").wait_for()
    page.wait_for_function("ask.kept.get('conversation') === null")
    page.reload()
    page.get_by_role("button", name="Bring it back").click()
    assert answered(page) == "There are three hearts."
    composer_becomes(page, "And the st")


def test_a_question_sent_before_the_page_stands_is_answered_once(browser, url):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(_EARLY)
    page.goto(url)
    assert answered(page)
    assert page.evaluate("window.held"), "nothing waited for the question"
    assert page.locator("#chat .user-row .message-content").all_inner_texts() == ["Hello"]
    assert page.locator("#composer textarea").input_value() == ""
    context.close()


def composer_becomes(page, text, pictures=0):
    page.wait_for_function(
        """([text, pictures]) => document.querySelector("#composer textarea")?.value === text
             && document.querySelectorAll("#composer .thumbnail-item").length === pictures""",
        arg=[text, pictures],
    )


def test_enter_on_an_empty_composer_leaves_the_cards(page):
    page.locator("#composer textarea").press("Enter")
    page.get_by_text("There is no question yet").wait_for()
    assert page.locator("#chat button.example").count() > 4
    add(page, HEARTS)
    send(page)
    page.get_by_text("Ask something about the picture.").wait_for()
    composer_becomes(page, "", 1)
    assert page.locator("#chat button.example").count() > 4


def test_typing_reaches_the_composer_from_anywhere(page):
    page.evaluate("document.activeElement.blur()")
    page.keyboard.type("How many?")
    composer_becomes(page, "How many?")


def test_a_letter_typed_before_the_page_stands_reaches_the_composer(browser, url):
    context = browser.new_context()
    page = context.new_page()
    page.add_init_script(_LETTER)
    page.goto(url)
    page.wait_for_function("window.reached !== undefined")
    assert page.evaluate("window.reached")
    context.close()


def test_a_new_chat_can_be_undone_with_its_draft(page):
    choose(page)
    answered(page)
    write(page, "And the st", NIGHT)
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()
    composer_becomes(page, "")
    page.get_by_role("button", name="Bring it back").click()
    assert answered(page) == "There are three hearts."
    composer_becomes(page, "And the st", 1)
    page.get_by_role("button", name="Bring it back").wait_for(state="detached")
    page.locator("#composer .submit-button").wait_for()
    page.locator("#composer textarea").fill("And the stars?")
    send(page)
    answered(page, 2)


def test_a_new_chat_right_after_a_card_leaves_none_of_its_settings(page):
    switch = page.locator("#pan-and-scan input")
    board = page.locator("#chat button.example").filter(has_text="pan & scan on")
    board.click()
    page.locator("#clear").wait_for()
    page.locator("#clear").click()
    page.get_by_text("This is a new chat.").wait_for()
    page.wait_for_timeout(500)  # a late answer of the server would switch it on again
    assert not switch.is_checked()


def test_an_earlier_question_is_asked_again_and_that_can_be_undone(page):
    for number, question in enumerate(("How many hearts are there?", "And the stars?", "And in all?"), 1):
        write(page, question, *([HEARTS] if number == 1 else []))
        send(page)
        answered(page, number)
    page.get_by_role("button", name="Retry: ask question 2 again").click()
    page.get_by_text("The earlier answer and what came after it are replaced.").wait_for()
    assert page.locator("#chat .figures").count() == 2
    page.get_by_role("button", name="Bring it back").click()
    answered(page, 3)


def test_an_answer_that_was_cut_goes_on(page):
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


def test_a_reload_finds_conversation_draft_and_settings_again(page):
    choose(page)
    answered(page)
    page.locator("#int4 input").check()
    write(page, "And the st", NIGHT)
    page.wait_for_timeout(300)
    page.reload()
    assert answered(page) == "There are three hearts."
    composer_becomes(page, "And the st", 1)
    page.wait_for_function("document.querySelector('#int4 input').checked")
    page.locator("#composer textarea").fill("And the stars?")
    send(page)
    answered(page, 2)
    page.reload()
    answered(page, 2)


def test_a_question_without_its_answer_comes_back_after_a_lost_connection(browser, scripted, scripted_url):
    """Whether the server first learns that the window has closed, and stops the answer, or that nobody reads it: before
    the first word, nothing of it is kept."""
    with opened(browser, scripted_url) as page:
        scripted.let_through("queued", "encoding", "reading", "writing")
        write(page, "How many?", HEARTS)
        send(page)
        answered(page)
        scripted.go_on["reading"].clear()
        write(page, "And the stars?")
        send(page)
        page.locator("#chat .bot-row").nth(1).get_by_text("Reading 90 tokens").wait_for()
        page.reload()  # what Gradio does once a broken connection is back
        answered(page)
        page.get_by_text("did not arrive").wait_for()
        composer_becomes(page, "And the stars?")
        assert len(scripted.wait_until_closed(2)) == 2
        scripted.go_on["reading"].set()
        send(page)
        answered(page, 2)


def test_the_same_question_about_another_picture_comes_back_though_the_first_is_answered(
    browser, scripted, scripted_url
):
    with opened(browser, scripted_url) as page:
        scripted.let_through(*scripted.go_on)
        write(page, "How many?", HEARTS)
        send(page)
        answered(page)
        scripted.go_on["reading"].clear()
        write(page, "How many?", NIGHT)
        send(page)
        page.locator("#chat .bot-row").nth(1).get_by_text("Reading 90 tokens").wait_for()
        page.reload()
        page.get_by_text("did not arrive").wait_for()
        composer_becomes(page, "How many?", 1)
        page.locator("#composer textarea").fill("How many stars?")
        page.reload()  # it is a draft now
        composer_becomes(page, "How many stars?", 1)


@pytest.mark.parametrize("status", [422, 429, 502, 503])
def test_a_question_that_was_refused_is_back_in_the_composer(page, status):
    write(page, "How many hearts are there?", HEARTS)
    refuse(page, status)
    send(page)
    page.locator("#changing", has_text="did not arrive").wait_for()
    composer_becomes(page, "How many hearts are there?", 1)
    accept(page)
    page.reload()
    page.locator("#composer textarea").wait_for()
    composer_becomes(page, "How many hearts are there?", 1)
    send(page)
    assert answered(page) == "There are three hearts."
    composer_becomes(page, "")


def test_enter_while_an_answer_is_written_loses_nothing(browser, scripted_url):
    with opened(browser, scripted_url) as page:
        write(page, "How many?", HEARTS)
        send(page)
        page.locator("#chat .bot-row").get_by_text("2nd in the queue").wait_for()
        page.locator("#composer .stop-button").wait_for()
        page.evaluate(
            """() => {
              const { answered } = ask;
              window.ended = 0;
              ask.answered = () => {
                answered();
                window.ended += 1;
              };
            }"""
        )
        page.locator("#composer textarea").press("Enter")
        page.wait_for_function("window.ended")
        page.reload()
        page.locator("#composer textarea").wait_for()
        page.get_by_text("did not arrive").wait_for()
        composer_becomes(page, "How many?", 1)


def test_a_new_chat_brings_back_the_question_that_was_being_answered(browser, scripted_url):
    with opened(browser, scripted_url) as page:
        write(page, "How many?", HEARTS)
        send(page)
        page.locator("#chat .bot-row").get_by_text("2nd in the queue").wait_for()
        page.locator("#clear").click()
        page.locator("#chat .placeholder-content").wait_for()
        page.get_by_role("button", name="Bring it back").click()
        composer_becomes(page, "How many?", 1)


def test_the_second_of_two_clicks_does_nothing(page):
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
    page.locator("#clear").evaluate("(clear) => { clear.click(); clear.click(); }")
    page.locator("#chat .placeholder-content").wait_for()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Bring it back").click()
    answered(page)
    composer_becomes(page, "And the stars?")


def test_a_card_that_is_clicked_twice_is_asked_once_and_its_settings_go_with_it(page):
    board = page.locator("#chat button.example").filter(has_text="pan & scan on")
    board.evaluate("(card) => { card.click(); setTimeout(() => card.click(), 30); }")
    answered(page)
    page.locator("#composer .submit-button").wait_for()
    page.wait_for_function("document.querySelector('#pan-and-scan input').checked")
    composer_becomes(page, "")
    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()
    page.wait_for_function("!document.querySelector('#pan-and-scan input').checked")


def test_after_a_reload_a_new_chat_still_brings_back_the_settings_before_the_card(page):
    page.locator("#chat button.example").filter(has_text="pan & scan on").click()
    answered(page)
    page.wait_for_function("document.querySelector('#pan-and-scan input').checked")
    page.wait_for_function("ask.kept.get('settings').values.includes(true)")
    page.reload()
    answered(page)
    page.wait_for_function("document.querySelector('#pan-and-scan input').checked")
    page.locator("#clear").click()
    page.wait_for_function("!document.querySelector('#pan-and-scan input').checked")


def test_making_an_answer_card_ends_no_editing(page):
    choose(page)
    answered(page)
    page.get_by_role("button", name="Edit question 1").click()
    page.locator("#changing", has_text="Editing question 1").wait_for()
    page.locator("#share summary").click()
    with page.expect_download():
        page.get_by_role("button", name="Save the answer as a card").click()
    page.wait_for_timeout(300)
    page.get_by_role("button", name="Cancel editing").click(timeout=3000)
    page.get_by_role("button", name="Edit question 1").wait_for()


def test_of_an_answer_that_had_begun_its_words_stay_or_its_question_comes_back(browser, scripted, scripted_url):
    """It is kept like any stopped answer where the server first learns that the window has closed."""
    with opened(browser, scripted_url) as page:
        scripted.let_through("queued", "encoding", "reading")
        write(page, "How many?", HEARTS)
        send(page)
        page.locator("#chat .bot-row").get_by_text("There").wait_for()
        page.reload()
        begun, lost = page.locator("#chat .bot-row", has_text="There"), page.get_by_text("did not arrive")
        begun.or_(lost).first.wait_for()
        composer_becomes(page, "How many?" if lost.count() else "", 1 if lost.count() else 0)


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


def test_another_window_finds_nothing(browser, url):
    with opened(browser, url) as first:
        choose(first)
        answered(first)
        with opened(browser, url) as second:
            assert second.locator("#chat .bot-row").count() == 0


def test_a_page_whose_opening_is_refused_can_be_used(page):
    opening = "**/run/predict*"
    page.route(opening, lambda route: route.fulfill(status=503, json={"detail": "refused"}))
    with page.expect_response(lambda response: response.status == 503):
        page.reload()
    page.locator("#composer textarea").wait_for()
    page.unroute(opening)
    write(page, "How many hearts are there?", HEARTS)
    send(page)
    assert answered(page)
