"""axe finds nothing on any view of the page, and everything works by keyboard."""

from importlib.resources import files

import pytest
from browsing import answered, choose
from running_app import opened

AXE = files("axe_playwright_python").joinpath("axe.min.js")
TABS = ("Inputs", "Attention", "Mask", "Compare", "Code")
LEAST = 24  # pixels, WCAG 2.2, target size (minimum)


def violations(page, view, options=None):
    """What axe finds: the view, the rule, and the first element that breaks it."""
    run = "(options) => axe.run(document, { resultTypes: ['violations'], ...options })"
    found = page.evaluate(run, options or {})["violations"]
    return [f"{view}: {one['impact']} {one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


def violations_in_the_dark(page, view):
    """The other theme has other colors, and nothing else."""
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    page.wait_for_function("document.body.classList.contains('dark')")
    found = violations(page, f"dark {view}", {"runOnly": ["color-contrast", "link-in-text-block"]})
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    page.wait_for_function("!document.body.classList.contains('dark')")
    return found


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


@pytest.mark.parametrize(("width", "height"), [(1440, 900), (390, 844)])
def test_axe_finds_nothing(browser, url, width, height):
    with opened(browser, url, width, height, before=lambda page: page.add_init_script(path=AXE)) as page:
        found, small = [], []

        def look(view):
            found.extend(violations(page, view))
            if width == 1440:
                found.extend(violations_in_the_dark(page, view))
            small.extend(small_targets(page))

        look("first sight")
        page.get_by_role("button", name="Ask about many pictures").click()
        look("many pictures")
        page.get_by_role("button", name="Back to the chat").click()
        choose(page)
        answered(page)
        look("conversation")
        page.get_by_role("button", name="Look inside answer 1").click()
        page.locator("#maps figure").wait_for()
        for tab in TABS:
            page.get_by_role("tab", name=tab).click()
            page.get_by_role("tab", name=tab, selected=True).wait_for()
            if tab == "Mask":
                page.locator(".mask-view canvas").first.wait_for()
            look(tab)
        assert found == []
        assert small == []


def test_pictures_open_by_click_and_key_focus_goes_where_the_work_is_and_escape_closes(browser, url):
    with opened(browser, url) as page:
        focused = "document.activeElement.closest('#composer') !== null"
        choose(page)
        answered(page)
        page.wait_for_function(focused)

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
