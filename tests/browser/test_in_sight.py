"""The answer is in sight on every window, nothing moves while it comes, and Inside follows what is there."""

import io
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from browsing import add, answered, choose, look_inside, send, write
from PIL import Image
from places import EXAMPLES
from running_app import opened, wait_until_drawn

from benchmarks.first_load import SHIFTS

HEARTS = EXAMPLES / "hearts.png"
# Whether the last such element lies inside the chat's window, the window inside the page, and nothing above it.
IN_SIGHT_JS = """(selector) => {
  const one = [...document.querySelectorAll(selector)].at(-1);
  const box = one.getBoundingClientRect(), chat = document.querySelector("#chat").getBoundingClientRect();
  const top = document.elementFromPoint(box.left + 4, box.top + box.height / 2);
  return box.top >= chat.top - 1 && box.bottom <= Math.min(chat.bottom, innerHeight) + 1
    && (one === top || one.contains(top) || top?.contains(one));
}"""


@contextmanager
def arrived(browser, url, width, height, query=""):
    """A new visitor's page, in which nothing moved as it came."""
    with opened(browser, url, width, height, query, before=lambda page: page.add_init_script(SHIFTS)) as page:
        page.locator("#chat button.example").first.wait_for()
        page.locator("#share summary").wait_for()
        page.wait_for_timeout(700)
        assert page.evaluate("window.shifts") < 0.1
        toggle, title = page.locator("#settings .toggle-button").bounding_box(), page.locator("h1").bounding_box()
        assert toggle["x"] + toggle["width"] <= title["x"]
        yield page


@pytest.mark.parametrize(("width", "height"), [(844, 390), (700, 450), (390, 500)])
def test_the_answer_is_in_sight_on_a_low_window(browser, url, width, height):
    with arrived(browser, url, width, height) as page:
        write(page, "How many hearts are there?", HEARTS)
        send(page)
        answered(page)
        page.wait_for_function("document.querySelector('#strip details[data-answered]:not([open])')")
        page.wait_for_function(IN_SIGHT_JS, arg="#chat .bot-row .message-content")
        page.locator("#strip summary").click()  # its visitor opens it: it stays open, and the answer in sight
        page.wait_for_function("document.querySelector('#strip details').open")
        page.locator("#chat .figures").scroll_into_view_if_needed()
        page.wait_for_function(IN_SIGHT_JS, arg="#chat .figures")
        write(page, "And the stars?", EXAMPLES / "night.png")
        send(page)
        answered(page, 2)
        page.locator("#composer .submit-button").wait_for()
        page.locator("#strip details[data-answered][open]").wait_for()


def test_on_a_phone_nothing_but_code_scrolls_sideways_and_the_answer_stays_in_sight(browser, url):
    with arrived(browser, url, 390, 844) as page:
        choose(page, 1)
        answered(page)
        look_inside(page)
        nothing_but_code_scrolls_sideways(page)
        page.get_by_role("button", name="Close Inside").click()

        # A picture is added below.
        write(page, "Where is the heart?")
        send(page)
        answered(page, 2)
        add(page, HEARTS)
        page.locator("#strip details[open] img").first.wait_for()
        page.wait_for_function(IN_SIGHT_JS, arg="#chat .bot-row .message-content", timeout=5_000)
        wait_until_drawn(page)
        page.locator("#chat .bubble-wrap").hover()
        page.mouse.wheel(0, -1000)
        page.wait_for_function("document.querySelector('#chat .bubble-wrap').scrollTop === 0")
        add(page, EXAMPLES / "night.png")  # somebody who reads further up stays there
        page.locator("#strip details[open] img").nth(1).wait_for()
        wait_until_drawn(page)
        assert page.locator("#chat .bubble-wrap").evaluate("(box) => box.scrollTop") == 0


def nothing_but_code_scrolls_sideways(page):
    """Chromium shows no scroll bars here; where a person's browser does, each would be a grey strip."""
    for tab in ("Inputs", "Attention", "Mask", "Compare", "Code"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_function("() => !document.querySelector('#inside .generating')")
        scrolled = page.evaluate(
            """() => [...document.querySelectorAll("body *")]
            .filter((one) => /auto|scroll/.test(getComputedStyle(one).overflowX))
            .filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth && one.tagName !== "PRE")
            .map((one) => one.outerHTML.slice(0, 200))"""
        )
        assert not scrolled, (tab, scrolled)


def test_inside_opens_on_a_word_and_follows_what_is_there(browser, url):
    with arrived(browser, url, 1440, 900) as page:
        choose(page)
        answered(page)
        page.get_by_role("button", name="Look inside answer 1").click()
        page.get_by_role("tab", name="Attention", selected=True).wait_for()
        page.locator("#maps figure").wait_for()
        assert page.locator("#inside [aria-pressed=true]").inner_text().strip() == "three"
        page.locator("#hide").click()
        told = page.locator("#inside .hidden-region + p")
        told.get_by_text("the probability of").wait_for()
        effect = told.bounding_box()
        assert effect["y"] + effect["height"] < 900
        figure = page.locator("#maps figure").first.bounding_box()
        assert effect["x"] >= figure["x"] + figure["width"]

        nothing_but_code_scrolls_sideways(page)
        page.get_by_role("tab", name="Mask").click()
        page.get_by_text("Both kinds of layers see the same here").wait_for()
        assert page.locator(".mask-view canvas").count() == 1  # equal masks are shown once

        page.get_by_role("tab", name="Attention").click()
        told.wait_for()
        page.locator("#int4 input").check()
        page.get_by_role("button", name="Retry").click()
        page.get_by_text("The earlier answer is replaced.").wait_for()
        page.wait_for_function("!document.querySelector('#inside').innerText.includes('the probability of')")
        page.locator("#maps figure").wait_for()
        page.get_by_role("button", name="Undo").click()
        page.locator("#inside").wait_for(state="hidden")


def test_the_strip_folds_the_answer_is_the_darkest_text_and_scroll_bars_have_the_themes_colors(browser, url):
    with arrived(browser, url, 1024, 768, "?__theme=dark") as page:
        add(page, HEARTS)
        page.locator("#strip img").first.wait_for()
        page.locator("#composer textarea").fill("How many hearts are there?")
        send(page)
        answered(page)
        page.wait_for_function("document.querySelector('#strip details[data-answered]:not([open])')")
        assert page.evaluate("document.body.classList.contains('dark')")
        has_the_themes_colors(page)
        page.get_by_role("button", name="Settings", exact=True).click()
        page.locator("#theme input[value=Light]").check()
        page.wait_for_function("!document.body.classList.contains('dark')")
        has_the_themes_colors(page)


def has_the_themes_colors(page):
    colors = """() => ["#chat .bot-row .message-content p", ".gradio-container"].map(
      (one) => getComputedStyle(document.querySelector(one)).color)"""
    answer, of_the_page = page.evaluate(colors)
    assert answer == of_the_page
    faint = "one => { for (; one; one = one.parentElement) if (getComputedStyle(one).opacity !== '1') return true; }"
    assert not page.locator("#chat .bot-row .message-content p").evaluate(faint)
    for one in ("#chat", "#inside"):
        thumb, text = page.evaluate(
            """(one) => {
            const styles = getComputedStyle(document.querySelector(one));
            const probe = document.body.appendChild(document.createElement("p"));
            probe.style.color = "var(--body-text-color-subdued)";
            const text = getComputedStyle(probe).color;
            probe.remove();
            return [styles.scrollbarColor, text];
            }""",
            one,
        )
        assert thumb == f"{text} rgba(0, 0, 0, 0)"


def test_while_an_answer_comes_no_bubble_changes_its_width_and_stop_is_no_error(browser, scripted, scripted_url):
    scripted.answer = "There are three red hearts, and beside them a star that is smaller than all of them together."
    with opened(browser, scripted_url) as page:
        boxes = """() => ["#chat .user-row [data-testid=user]:has(.md)", "#chat .bot-row", "#composer"].map((part) => {
          const box = document.querySelector(part).getBoundingClientRect();
          return [Math.round(box.left), Math.round(box.width)];
        })"""
        write(page, "How many?", HEARTS)
        send(page)
        page.get_by_text("2nd in the queue").wait_for()
        page.locator("#composer .stop-button").click()
        page.locator("#chat .remark").get_by_text("Stopped before the first word.").wait_for()
        assert page.locator("#chat .failure").count() == 0

        page.wait_for_function("document.querySelector('#composer textarea').value")  # it is back
        send(page)
        page.get_by_text("2nd in the queue").wait_for()
        seen = [page.evaluate(boxes)]
        for stage in ("queued", "encoding", "reading"):
            scripted.let_through(stage)
            page.wait_for_timeout(150)
            seen.append(page.evaluate(boxes))
        scripted.let_through("writing")
        answered(page)
        page.locator("#composer .submit-button").wait_for()
        seen.append(page.evaluate(boxes))
        assert all(one == seen[0] for one in seen), seen


def test_pictures_may_come_anywhere_on_the_page_and_only_the_cross_removes_one(page):
    data = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(data, "PNG")
    for number, way in enumerate(("drop", "paste")):
        page.evaluate(
            """([bytes, way]) => {
                 const data = new DataTransfer();
                 data.items.add(new File([new Uint8Array(bytes)], "red.png", { type: "image/png" }));
                 const place = document.querySelector("#chat h2") ?? document.body;
                 const event = way === "drop"
                   ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                   : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
                 place.dispatchEvent(event);
               }""",
            [list(data.getvalue()), way],
        )
        page.locator("#composer .thumbnail-item").nth(number).wait_for()
        page.locator("#strip img").nth(number).wait_for()

    cross = page.locator("#composer .delete-button").first
    assert float(cross.evaluate("cross => getComputedStyle(cross).opacity")) == 1
    page.locator("#composer .thumbnail-item img").first.click(position={"x": 8, "y": 30})
    page.locator("dialog[open] img").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#composer .thumbnail-item").count() == 2
    cross.click()
    page.locator("#composer .thumbnail-item").nth(1).wait_for(state="detached")


def test_what_the_demo_model_does_not_know_gets_a_way_onward(page, photos, tmp_path):
    photos[0].save(tmp_path / "photo.jpg")
    write(page, "What is on this picture?", tmp_path / "photo.jpg")
    send(page)
    answered(page)
    page.locator("#chat .advice").get_by_text("choose gemma-3-4b-it-Q4_K_M under Model").wait_for()


# Where a box stands once it has not moved for 20 frames: a wheel scrolls smoothly.
AT_REST_JS = """(box) => new Promise((rests) => {
  let place = NaN, still = 0;
  const look = () => {
    still = box.scrollTop === place ? still + 1 : 0;
    place = box.scrollTop;
    still < 20 ? requestAnimationFrame(look) : rests(place);
  };
  requestAnimationFrame(look);
})"""


def test_whoever_scrolls_up_while_an_answer_comes_stays_there(browser, scripted, scripted_url):
    """Gradio scrolls down 300 ms after each piece, so that nobody could read the beginning until the end had come."""
    scripted.answer, scripted.go_on["writing"] = "Line.\n\n" * 40, SimpleNamespace(wait=pause)
    scripted.let_through("queued", "encoding", "reading")
    with opened(browser, scripted_url, 390, 844) as page:
        write(page, "Go on")
        send(page)
        page.wait_for_function("document.querySelector('#chat .bubble-wrap').scrollTop > 300")
        page.mouse.move(195, 300)
        page.mouse.wheel(0, -200)
        place = page.locator("#chat .bubble-wrap").evaluate(AT_REST_JS)
        answered(page)
        page.wait_for_timeout(400)
        assert abs(page.locator("#chat .bubble-wrap").evaluate("(box) => box.scrollTop") - place) < 10
        scripted.answer = "Line.\n\n" * 10
        write(page, "Once more")  # whoever asks again looks at the end
        send(page)
        answered(page, 2)
        page.wait_for_function("""() => {
          const box = document.querySelector("#chat .bubble-wrap");
          return box.scrollHeight - box.scrollTop - box.clientHeight < 2;
        }""")


def pause(_):
    time.sleep(0.15)
    return True
