"""A closer look: what was too small to read is asked again with crops, and both answers stand side by side."""

import json
import re
import threading
from dataclasses import replace
from zipfile import ZipFile

from browsing import answered, look_inside, send, write
from places import EXAMPLES
from running_app import opened, require_demo_model, served

from gemma3_core.engine import Engine


def test_what_was_too_small_is_read_with_crops_and_both_answers_stay(page):
    write(page, "What does the milk cost?", EXAMPLES / "board.png")
    send(page)
    assert "too small" in answered(page)
    page.wait_for_function("sessionStorage.getItem('seen') !== null")
    seen = page.evaluate("sessionStorage.getItem('seen')")
    page.get_by_role("button", name="Look closer: ask question 1 again").click()
    page.get_by_text("Looked again, with 3 crops").wait_for()
    row = page.locator("#chat .bot-row")
    row.locator(".figures").wait_for()
    texts = row.locator(".message-content")
    assert texts.count() == 2
    assert "too small" in texts.first.inner_text()
    assert "1.50" in texts.last.inner_text()
    before, after = (texts.nth(number).bounding_box() for number in (0, 1))
    assert after["x"] > before["x"] + before["width"] / 2
    assert abs(after["y"] - before["y"]) < 4
    page.locator("#strip summary").get_by_text("4 tiles").wait_for()
    assert page.locator("#strip .box").count() == 3
    page.get_by_role("button", name="Copy answer 1").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert "1.50" in page.evaluate("navigator.clipboard.readText()")
    assert page.get_by_role("button", name="Look closer").count() == 0
    page.wait_for_function("(before) => sessionStorage.getItem('seen') !== before", arg=seen)  # it is kept
    page.reload()
    page.get_by_text("Looked again, with 3 crops").wait_for()
    page.locator("#share summary").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save the conversation (zip)").click()
    page.keyboard.press("Escape")
    with ZipFile(saved.value.path()) as files:
        [exchange] = json.loads(files.read("conversation.json"))["exchanges"]
        assert exchange["first"]["pictures"] == exchange["pictures"]  # named by their files in the zip
        assert "path" not in exchange["pictures"][0]
    write(page, "And the tea?")
    send(page)
    assert answered(page, 2)


def test_an_unsure_answer_is_looked_at_closer_where_its_map_says(browser, monkeypatch):
    require_demo_model()
    engine, may_look = Engine.load(device="cpu"), threading.Event()
    # An ordinary model, which was never quite sure.
    engine.info = replace(engine.info, is_demo=False)
    monkeypatch.setattr("components.chat.closer_look._UNSURE_BELOW", 1.1)
    why = engine.why
    monkeypatch.setattr(engine, "why", lambda *look, **options: may_look.wait(60) and why(*look, **options))
    with served(engine) as url, opened(browser, url) as page:
        write(page, "What color is the star?", EXAMPLES / "night.png")
        send(page)
        assert "yellow" in answered(page)
        page.locator("#chat .advice").get_by_text("The model was unsure of this answer.").wait_for()
        page.get_by_role("button", name="Look closer: ask question 1 again").click()
        page.locator("#chat .stage").get_by_text("Looking for what the answer rests on").wait_for()
        page.get_by_text("At first sight").wait_for()
        page.locator("#composer .stop-button").wait_for()
        may_look.set()
        page.get_by_text("Looked again, with 1 crop").wait_for()
        row = page.locator("#chat .bot-row")
        row.locator(".figures").wait_for()
        texts = row.locator(".message-content")
        assert texts.count() == 2
        before, after = (texts.nth(number).bounding_box() for number in (0, 1))
        assert after["x"] > before["x"] + before["width"] / 2
        assert abs(after["y"] - before["y"]) < 4
        shows_the_star_as_a_crop(page)


def shows_the_star_as_a_crop(page):
    """The strip shows the star and something around it, not the heart, whose right edge is at 40 %."""
    page.locator("#strip summary").get_by_text("2 tiles").wait_for()
    crop = page.locator("#strip .box")
    assert crop.count() == 1
    left, width = (
        float(re.search(rf"{name}: ?([\d.]+)%", crop.get_attribute("style"))[1]) for name in ("left", "width")
    )
    assert 40 < left < 57
    assert 80 < left + width <= 100.1


def test_an_answer_that_its_picture_did_not_change_says_so_also_after_a_reload(page):
    write(page, "Read the sign.", EXAMPLES / "night.png")
    send(page)
    assert "no sign" in answered(page)
    page.locator("#chat .advice").get_by_text("The picture changed nothing in the whole answer").wait_for()
    page.reload()
    page.locator("#chat .advice").get_by_text("The picture changed nothing in the whole answer").wait_for()
    write(page, "What color is the star?", EXAMPLES / "night.png")
    send(page)
    assert "yellow" in answered(page, 2)
    assert page.locator("#chat .advice").count() == 0


def test_a_region_of_ones_own_or_what_an_answer_rests_on_is_looked_at_closer(page):
    write(page, "What color is the star?", EXAMPLES / "night.png")
    send(page)
    answered(page)
    look_inside(page)
    area = page.locator("#inside .drawable")
    area.evaluate("area => area.scrollIntoView({ block: 'center' })")
    place = area.bounding_box()
    page.mouse.click(place["x"] + 0.5 * place["width"], place["y"] + 0.5 * place["height"])
    page.get_by_role("button", name="Look closer at it").click()
    page.get_by_text("Looked again, with 1 crop").wait_for()
    row = page.locator("#chat .bot-row")
    row.locator(".figures").wait_for()
    assert row.locator(".message-content").count() == 2  # whatever the demo model makes of a crop of a scene
    page.locator("#inside .maps figcaption").get_by_text("crop 1").wait_for()  # Inside follows
    page.locator("#strip summary").get_by_text("2 tiles").wait_for()

    area.focus()
    page.keyboard.press("ArrowRight")
    question = page.get_by_label("Question about this region")
    question.fill("What shape is it?")
    question.press("Enter")
    answered(page, 2)
    assert "What shape is it?" in page.locator("#chat .user-row").last.inner_text()
    assert page.locator("#chat .user-row").last.locator("img").count() == 1
    page.locator("#strip summary").get_by_text("2 tiles").wait_for()
    page.get_by_role("button", name="Look inside answer 2").click()
    page.locator("#inside .maps .asked").nth(1).wait_for()  # Inside keeps the regions of both questions
    page.get_by_role("button", name="Close Inside").click()
    page.get_by_role("button", name="Edit question 2").click()
    page.locator("#strip").get_by_text("What the model will see: 2 tiles").wait_for()  # an edit keeps it, too
    page.locator("#strip .box").wait_for()

    page.locator("#clear").click()
    page.locator("#chat .placeholder-content").wait_for()
    write(page, "What color is the star?", EXAMPLES / "night.png")
    send(page)
    answered(page)
    look_inside(page)
    page.locator("#inside .maps .place").wait_for()
    page.locator("#inside .closer-place").click()
    page.get_by_text("Looked again, with 1 crop").wait_for()
    shows_the_star_as_a_crop(page)
