"""Inside, in Debian's chromium with the demo model: inputs, attention, mask and comparison of a turn."""

import base64
import re
from io import BytesIO

import numpy as np
import pytest
from browsing import add, answered, choose, send, write
from PIL import Image
from places import EXAMPLES
from running_app import opened, served

from benchmarks.mask_view import measure_in_browser
from components.examples import load_examples
from gemma3_core.engine import Engine


@pytest.fixture(scope="module")
def asked(browser, url):
    """A visitor's page with an answer about the star."""
    with opened(browser, url) as page:
        ask_about_the_star(page)
        yield page


@pytest.fixture
def page(asked):
    """Inside of that answer, which opens anew for each test: so nothing that one does there reaches the next."""
    open_inside(asked)
    yield asked
    if asked.locator("#inside").is_visible():
        asked.get_by_role("button", name="Close Inside").click()
        asked.locator("#inside").wait_for(state="hidden")


def ask_about_the_star(page):
    number = next(n for n, example in enumerate(load_examples()) if example.pictures[0].name == "night.png")
    choose(page, number)
    answered(page)


def open_inside(page):
    page.get_by_role("button", name="Look inside answer 1").click()
    page.locator("#inside .answer-tokens").wait_for()


def choose_word(page, word):
    """Waits for the maps of the word on which Inside opened, and then chooses another, if it is not that one."""
    maps = page.locator("#inside .maps img")
    maps.first.wait_for()
    button = page.locator("#inside .answer-tokens button", has_text=word)
    if button.get_attribute("aria-pressed") == "true":
        return
    maps.first.evaluate("picture => (picture.dataset.old = 'yes')")
    button.click()
    page.locator("#inside .maps img[data-old]").wait_for(state="detached")
    maps.first.wait_for()


def brightest(page):
    """The brightest place of the first map, in shares of its width and height."""
    source = page.locator("#inside .maps img").first.get_attribute("src")
    light = np.asarray(Image.open(BytesIO(base64.b64decode(source.split(",")[1]))).convert("L"), np.float32)
    row, column = np.unravel_index(light.argmax(), light.shape)
    return column / light.shape[1], row / light.shape[0]


def test_inputs_show_the_tiles_and_every_token(page):
    page.get_by_role("tab", name="Inputs").click()
    inputs = page.locator("#inside-inputs")
    inputs.locator(".strip img").wait_for()
    special = inputs.locator(".tokens .special").all_inner_texts()
    assert special[:2] == ["<bos>", "<start_of_turn>"]
    assert inputs.locator(".tokens .image").inner_text() == "picture 1: 64 soft tokens"
    assert inputs.locator(".tokens .text", has_text="star").get_attribute("title").startswith("token ")


def test_a_word_of_the_answer_lights_up_what_it_is_about(page):
    choose_word(page, "yellow")
    across, down = brightest(page)
    assert 0.55 < across < 0.85  # where the star is
    assert 0.15 < down < 0.6
    assert page.locator("#inside .alternatives tr").count() == 5
    pressed = page.locator("#inside .answer-tokens button[aria-pressed=true]")
    assert pressed.inner_text().strip() == "yellow"


def test_a_region_can_be_hidden(page):
    choose_word(page, "yellow")
    page.locator("#hide").click()
    effect = page.locator("#inside .hidden-region + p")
    effect.wait_for()
    assert "the probability of “yellow” goes from" in effect.inner_text()
    before = page.locator("#inside .hidden-region .box").get_attribute("style")
    # Another, drawn in a corner where nothing is.
    area = page.locator("#inside .drawable")
    area.evaluate("area => area.scrollIntoView({ block: 'center' })")  # all of it
    place = area.bounding_box()
    page.mouse.move(place["x"] + 4, place["y"] + 4)
    page.mouse.down()
    page.mouse.move(place["x"] + 0.1 * place["width"], place["y"] + 0.15 * place["height"])
    page.mouse.up()
    box = "document.querySelector('#inside .hidden-region .box')?.getAttribute('style')"
    page.wait_for_function(f"old => {box} && {box} !== old", arg=before)
    assert "The answer becomes: “The star is yellow.”" in effect.inner_text()


def test_what_a_word_rests_on_is_shown_with_its_place_and_its_reasons(page):
    """It comes first; the box lies on the star, and what is hottest in this view is what is hidden."""
    choose_word(page, "yellow")
    assert page.get_by_label("What the answer rests on").is_checked()
    place = page.locator("#inside .maps .place")
    place.wait_for()
    assert page.locator("#view-explained p:visible").inner_text().startswith("Bright is what makes")
    assert not page.locator("#layer-and-head").is_visible(), "layers and heads are attention's"
    picture, box = page.locator("#inside .maps img").bounding_box(), place.bounding_box()
    middle = (box["x"] + box["width"] / 2 - picture["x"]) / picture["width"]
    assert 0.6 < middle < 0.85, "where the star is"
    assert "% with the picture, and" in page.locator("#inside .anyway").inner_text()
    assert not page.locator("#inside .layers").is_visible()
    for fold in page.locator("#inside .fold summary").all():
        fold.press("Enter")
    rows = page.locator("#inside .layers tbody tr")
    assert rows.last.locator("span").count() == 5
    assert rows.last.inner_text().replace("\t", " ").split()[:2] == [str(rows.count()), "yellow"]
    assert page.locator("#inside .heads tr").count() == 10
    page.locator("#hide").click()
    effect = page.locator("#inside .hidden-region + p")
    effect.wait_for()
    assert "the probability of “yellow” goes from" in effect.inner_text()
    choose_word(page, "star")
    page.get_by_text("The picture hardly mattered for “star”").wait_for()
    assert place.count() == 0


def test_where_the_model_looked_is_chosen_by_keyboard_and_stays(page):
    choose_word(page, "yellow")
    light = page.locator("#inside .maps img").first
    rests = light.get_attribute("src")
    page.locator("#inside .answer-tokens button").last.focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.get_by_label("Where it looked").is_checked()
    page.locator("#inside .maps .place").wait_for(state="detached")
    assert page.locator("#view-explained p:visible").inner_text().startswith("The model's attention")
    assert light.get_attribute("src") != rests
    assert page.locator("#layer-and-head").is_visible()
    across, down = brightest(page)
    assert 0.55 < across < 0.85  # where the star is
    assert 0.15 < down < 0.6
    choose_word(page, "star")
    assert page.get_by_label("Where it looked").is_checked()
    assert page.locator("#inside .anyway").count() == 0


def test_a_region_is_placed_and_hidden_by_keyboard(page):
    choose_word(page, "yellow")
    area = page.locator("#inside .drawable")
    assert area.get_attribute("aria-label") == "Region to hide on picture 1"
    assert "arrow keys" in page.locator(f"#{area.get_attribute('aria-describedby')}").inner_text()
    page.locator("#view input").last.focus()
    page.keyboard.press("Tab")
    assert area.evaluate("area => area === document.activeElement && getComputedStyle(area).outlineStyle") == "solid"
    says = page.locator("#inside .maps [role=status]")
    page.keyboard.press("ArrowRight")
    assert says.inner_text() == "Box from 35 to 65 % across and 35 to 65 % down."
    for key in ("ArrowRight", "ArrowUp", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowUp"):
        page.keyboard.press(key)
    assert says.inner_text() == "Box from 37 to 69 % across and 31 to 59 % down."
    page.keyboard.press("Escape")
    assert area.locator(".box").count() == 0
    page.keyboard.press("ArrowLeft")
    for _ in range(14):
        page.keyboard.press("ArrowRight")
    for _ in range(30):
        page.keyboard.press("Shift+ArrowUp")
    assert says.inner_text() == "Box from 63 to 93 % across and 35 to 37 % down."
    for _ in range(20):
        page.keyboard.press("ArrowUp")
    for _ in range(35):
        page.keyboard.press("Shift+ArrowDown")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    assert says.inner_text() == "Box from 57 to 87 % across and 0 to 72 % down."  # all of the star, its tips too
    page.keyboard.press("Enter")
    told = page.locator("#inside .hidden-region + p").inner_text()
    before, after = (float(part.split(" %")[0].replace("< ", "")) for part in told.split("from ")[1].split("to ")[:2])
    assert after < before - 50


def test_inside_is_a_sheet_on_a_phone_in_which_a_region_is_tapped(browser, url):
    with opened(browser, url, width=390, height=844) as page:
        ask_about_the_star(page)
        open_inside(page)
        sheet = page.locator("#inside").bounding_box()
        assert sheet["width"] == 390
        assert sheet["y"] > 100
        choose_word(page, "yellow")
        area = page.locator("#inside .drawable")
        area.evaluate("area => area.scrollIntoView({ block: 'center' })")
        assert area.evaluate("area => getComputedStyle(area).touchAction") == "pan-y"
        place = area.bounding_box()
        x, y = place["x"] + 0.5 * place["width"], place["y"] + 0.5 * place["height"]
        finger = page.context.new_cdp_session(page)
        finger.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
        finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        assert page.locator("#inside .maps [role=status]").inner_text().startswith("Box from 35 to 65 % across")
        assert area.evaluate("area => getComputedStyle(area).touchAction") == "none", "now a finger draws"
        page.get_by_role("button", name="Hide this region").click()
        page.locator("#inside .hidden-region").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.get_by_role("button", name="Close Inside").click()
        page.locator("#inside").wait_for(state="hidden")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def total_of(counted):
    return int(re.search(r"prompt: (\d+)", counted.inner_text())[1])


def test_the_prompts_tokens_are_counted_where_typing_pauses(browser, url):
    with opened(browser, url) as page:
        add(page, EXAMPLES / "night.png")
        page.locator("#composer textarea").press_sequentially("What color", delay=20)
        page.locator("#token-count summary").wait_for()
        counted = page.locator("#token-count summary")
        page.wait_for_function("/prompt: \\d+/.test(document.querySelector('#token-count summary')?.innerText)")
        assert page.locator("#token-count .tokens").count() == 0
        counted.click()
        page.locator("#token-count .tokens .image").wait_for()
        page.wait_for_function("document.querySelector('#token-count .tokens').innerText.includes('What color')")
        few = total_of(counted)
        page.locator("#composer textarea").press_sequentially(" is the star?", delay=20)
        page.wait_for_function("document.querySelector('#token-count .tokens')?.innerText.includes('star?')")
        assert total_of(counted) > few
        assert page.locator("#token-count .tokens .text", has_text="color").get_attribute("title").startswith("token ")
        total = total_of(counted)
        page.locator("#composer textarea").press("Enter")
        page.locator("#chat .figures").wait_for()
        assert f"{total} tokens" in page.locator("#chat .figures").text_content()
        page.locator("#token-count details").wait_for(state="detached")


def test_the_mask_of_4000_tokens_is_on_the_screen_within_a_second(browser):
    """Three for the page's part on a busy machine; `python -m benchmarks.mask_view` measures all of it."""
    figures = measure_in_browser(browser, 4000, 6, rounds=2)
    assert 3990 <= figures.tokens <= 4000
    assert 0 < figures.html_s + figures.painted_s < 3, figures


def test_the_mask_tells_each_cell_by_mouse_and_keyboard(page):
    page.get_by_role("tab", name="Mask").click()
    canvas = page.locator("#inside canvas.mask").first
    canvas.focus()
    says = page.locator("#inside .mask-says")
    page.keyboard.press("ArrowRight")
    assert "sees “" in says.inner_text()
    place = canvas.bounding_box()
    page.mouse.move(place["x"] + 0.95 * place["width"], place["y"] + 0.1 * place["height"])
    assert "it comes later" in says.inner_text()
    page.mouse.move(place["x"] + 0.5 * place["width"], place["y"] + 0.3 * place["height"])
    assert "both belong to the same picture" in says.inner_text()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as SVG, local and global layers").click()
    assert download.value.suggested_filename == "mask-local.svg"
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as PNG, local and global layers").click()
    assert download.value.suggested_filename == "mask-local.png"


def test_zoomed_in_the_mask_has_its_tokens_beside_it(page):
    """What lies left of the mask is drawn on; what is under the mouse stays the same cell."""
    page.get_by_role("tab", name="Mask").click()
    canvas = page.locator("#inside canvas.mask").first
    canvas.focus()
    beside = """canvas => {
      const dense = canvas.width / canvas.clientWidth;
      const strip = canvas.getContext("2d").getImageData(0, 80 * dense, 50 * dense, canvas.height - 80 * dense).data;
      return strip.filter((value, at) => at % 4 === 3 && value > 0).length / (strip.length / 4);
    }"""
    assert canvas.evaluate(beside) > 0.5  # the mask itself
    for _ in range(12):
        page.keyboard.press("+")
    written = canvas.evaluate(beside)
    assert 0.01 < written < 0.4  # letters
    cursor = """canvas => {
      const view = canvas.closest(".mask-view").maskView, seen = view.side(canvas) / view.scaleOf(canvas);
      const within = (number, first) => first <= number && number + 1 <= first + seen + 0.01;
      return within(view.cursor.key, view.left) && within(view.cursor.query, view.top);
    }"""
    assert canvas.evaluate(cursor)
    says = page.locator("#inside .mask-says")
    place = canvas.bounding_box()
    page.mouse.move(place["x"] + 0.6 * place["width"], place["y"] + 0.7 * place["height"])
    cell = says.inner_text()
    page.mouse.dblclick(place["x"] + 0.6 * place["width"], place["y"] + 0.7 * place["height"])
    assert says.inner_text() == cell


def test_both_precisions_are_compared(page):
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Full precision and int4").click()
    page.locator("#inside .compared section .note").nth(1).wait_for()
    page.get_by_text("Both answers are the same").or_(page.get_by_text("The answers part at")).wait_for()


def test_inside_of_a_model_that_reads_text_only(browser, text_chat_folder):
    with served(Engine.load(text_chat_folder, device="cpu")) as address, opened(browser, address) as page:
        page.locator("#composer textarea").fill("what is a color")
        page.locator("#composer textarea").press("Enter")
        page.get_by_role("button", name="Look inside answer 1").click()
        page.locator("#inside .answer-tokens").wait_for()
        page.get_by_role("tab", name="Attention").click()
        page.locator("#inside .answer-tokens button").first.click()
        page.get_by_text("This conversation has no pictures").wait_for()
        assert not page.locator("#hide").is_visible()
        page.get_by_label("What the answer rests on").click()
        page.locator("#inside .fold", has_text="What each layer would have said").wait_for()
        page.get_by_text("This conversation has no pictures").wait_for()
        page.get_by_role("tab", name="Mask").click()
        page.locator("#inside canvas.mask").first.wait_for()


def test_an_answer_is_shown_as_a_program_and_replayed_and_inside_stays_with_it_until_a_new_chat(browser, url):
    with opened(browser, url) as page:
        choose(page)
        answered(page)
        page.get_by_role("button", name="Show answer 1 as a program").click()
        script = page.locator("#code pre").first
        script.wait_for()
        assert "Engine.load(" in script.inner_text()
        page.get_by_role("button", name="Copy the script for gemma3_core").click()
        page.locator("#code [data-copy]", has_text="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()").strip() == script.inner_text().strip()
        page.get_by_role("tab", name="Compare").click()
        page.locator("#replay").click()
        page.get_by_text("Both answers are the same, token by token.").wait_for()
        open_inside(page)

        write(page, "How many shapes are there?", EXAMPLES / "blue.png")
        send(page)
        answered(page, 2)
        assert page.locator("#inside h2").inner_text() == "Inside answer 1"
        page.get_by_role("button", name="Look inside answer 2").click()
        page.get_by_role("heading", name="Inside answer 2").wait_for()
        page.locator("#clear").click()
        page.locator("#inside").wait_for(state="hidden")


def test_escape_that_closes_a_list_or_ends_a_composition_leaves_inside_open(page):
    page.evaluate(
        """() => {
          window.closings = 0;
          document.querySelector("#inside-close").addEventListener("click", () => (window.closings += 1));
        }"""
    )
    page.get_by_label("Where it looked").check()
    page.locator("#layer-and-head .label-wrap").click()
    page.locator("#layer-and-head input").first.click()
    page.locator("#inside input[aria-expanded=true]").wait_for()
    page.keyboard.press("Escape")
    page.locator("#inside input[aria-expanded=true]").wait_for(state="detached")
    page.locator("#composer textarea").evaluate(
        """(box) => {
          const key = { key: "Escape", isComposing: true, bubbles: true };
          box.dispatchEvent(new KeyboardEvent("keydown", key));
        }"""
    )
    assert page.evaluate("window.closings") == 0
    page.keyboard.press("Escape")
    page.locator("#inside").wait_for(state="hidden")
