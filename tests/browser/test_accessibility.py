"""axe finds nothing on any view of the page, and everything works by keyboard."""

from importlib.resources import files

import pytest
from browsing import answered, choose
from running_app import opened

AXE = files("axe_playwright_python").joinpath("axe.min.js")
TABS = ("Inputs", "Attention", "Mask", "Compare", "Code")
LEAST = 24  # pixels, WCAG 2.2, target size (minimum)


def violations(page, view):
    """What axe finds: the view, the rule, and the first element that breaks it."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    return [f"{view}: {one['impact']} {one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


def small_targets(page):
    """Buttons and links that are narrower or lower than 24 pixels; words within a text may be."""
    return page.evaluate(
        """(least) => [...document.querySelectorAll("button, a[href], summary, [role=tab], input[type=checkbox]")]
             .filter((one) => one.checkVisibility({ visibilityProperty: true }) && !one.closest("footer"))
             .map((one) => [one, (one.matches("input") ? one.closest("label") : one).getBoundingClientRect()])
             .filter(([, box]) => box.width && (Math.round(box.width) < least || Math.round(box.height) < least))
             .filter(([one]) => !one.closest(".answer-tokens, [aria-hidden=true], .visually-hidden"))
             .map(([one]) => one.outerHTML.slice(0, 120))""",
        LEAST,
    )


@pytest.mark.parametrize(("width", "height", "query"), [(1440, 900, ""), (1440, 900, "?__theme=dark"), (390, 844, "")])
def test_axe_finds_nothing(browser, url, width, height, query):
    with opened(browser, url, width, height, query) as page:
        found = violations(page, "first sight")
        small = small_targets(page)
        page.get_by_role("button", name="Ask about many pictures").click()
        found += violations(page, "many pictures")
        small += small_targets(page)
        page.get_by_role("button", name="Back to the chat").click()
        choose(page)
        answered(page)
        found += violations(page, "conversation")
        small += small_targets(page)
        page.get_by_role("button", name="Look inside answer 1").click()
        page.locator("#maps figure").wait_for()
        for tab in TABS:
            page.get_by_role("tab", name=tab).click()
            page.get_by_role("tab", name=tab, selected=True).wait_for()
            if tab == "Mask":
                page.locator(".mask-view canvas").first.wait_for()
            found += violations(page, tab)
            small += small_targets(page)
        assert found == []
        assert small == []


def test_focus_goes_where_the_work_is_and_escape_closes(browser, url):
    with opened(browser, url) as page:
        focused = "document.activeElement.closest('#composer') !== null"
        choose(page)
        answered(page)
        page.wait_for_function(focused)
        opener = page.get_by_role("button", name="Look inside answer 1")
        opener.press("Enter")
        page.locator("#maps figure").wait_for()
        page.get_by_role("tab", name="Attention").focus()
        for key, name in (("ArrowRight", "Mask"), ("End", "Code"), ("Home", "Inputs"), ("ArrowRight", "Attention")):
            page.keyboard.press(key)
            tab = page.get_by_role("tab", name=name, selected=True)
            tab.wait_for()
            assert tab.evaluate("tab => tab === document.activeElement")
        page.keyboard.press("Escape")
        page.locator("#inside").wait_for(state="hidden")
        assert opener.evaluate("button => button === document.activeElement")
        page.get_by_role("button", name="Edit question 1").press("Enter")
        page.locator("#changing [data-act=keep]").wait_for()
        page.wait_for_function(focused)
        page.keyboard.press("Escape")
        page.locator("#changing [data-act=keep]").wait_for(state="detached")
        page.locator("#clear").click()
        page.locator("#chat .placeholder-content").wait_for()
        page.wait_for_function(focused)


def test_a_picture_in_the_chat_opens_large_by_click_and_by_key(browser, url):
    with opened(browser, url) as page:
        choose(page)
        answered(page)
        picture, large = page.get_by_role("button", name="hearts.png"), page.get_by_role("dialog", name="hearts.png")
        picture.click()
        large.wait_for()
        assert large.locator("img").bounding_box()["width"] > picture.bounding_box()["width"]
        page.keyboard.press("Escape")
        large.wait_for(state="hidden")
        picture.focus()
        page.keyboard.press("Enter")
        large.wait_for()
        large.get_by_role("button", name="Close the picture").click()
        large.wait_for(state="hidden")
