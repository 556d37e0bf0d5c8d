"""Answers in fields, in Debian's chromium with the demo model: the form, the answer, and each value's map."""

from browsing import send, write
from places import EXAMPLES


def filled(page, *fields):
    """Fills in the form: name, kind, choices."""
    page.locator("#settings").get_by_role("button", name="Answer as JSON").click()
    for number, (name, kind, choices) in enumerate(fields):
        page.get_by_role("button", name="Add a field").click()
        line = page.locator("#fields li").nth(number)
        line.get_by_label("Name of the field").fill(name)
        line.get_by_label("Kind of the field").select_option(kind)
        assert line.get_by_label("Choices").is_visible() == (kind == "choice")
        if choices:
            line.get_by_label("Choices").fill(choices)
    page.locator("#composer textarea").click()


def test_an_answer_in_fields_shows_its_values_and_each_opens_its_map(browser, url):
    page = browser.new_context(locale="en-GB", viewport={"width": 1280, "height": 900}).new_page()
    page.goto(url)
    page.locator("#share summary").wait_for()
    filled(page, ("color", "choice", "red, yellow, blue"), ("gone", "text", ""), ("circle", "yes/no", ""))
    page.get_by_role("button", name="Remove the field").nth(1).click()
    write(page, "What color is the star?", EXAMPLES / "night.png")
    send(page)
    page.locator("#chat .figures").wait_for()
    assert "yellow" in page.locator("table.fields").inner_text()
    rows = page.locator("table.fields tr")
    assert rows.locator("th").all_inner_texts() == ["color", "circle"]
    assert all(text.endswith(" %") for text in rows.locator("td:last-child").all_inner_texts())
    rows.nth(1).locator("button").click()
    page.locator("#maps figure img").first.wait_for()
    assert page.locator("#inside .answer-tokens [aria-pressed=true]").inner_text() in ("true", "false")
    rows.nth(0).locator("button").click()
    page.locator("#inside .answer-tokens [aria-pressed=true]", has_text="yellow").wait_for()
    page.reload()
    page.locator("table.fields").wait_for()
    page.locator("#settings").get_by_role("button", name="Answer as JSON").click()
    page.locator("#fields li").nth(1).wait_for()
    names = [one.input_value() for one in page.get_by_label("Name of the field").all()]
    assert names == ["color", "circle"]
    page.context.close()
