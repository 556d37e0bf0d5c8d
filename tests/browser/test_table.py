"""One question about many pictures: a table that is stopped, survives a reload, goes on, is sorted and downloaded."""

import csv
import io
from dataclasses import replace
from pathlib import Path

from browsing import accept, refuse
from places import EXAMPLES
from running_app import ScriptedEngine, opened, served
from window import DEMO, choice

from gemma3_core.engine import TokenEvent

QUESTION = "How many hearts are there?"


class Doubting(ScriptedEngine):
    """Less sure of each answer than of the one before."""

    def _events(self, request):
        for event in super()._events(request):
            is_word = isinstance(event, TokenEvent) and event.text
            yield replace(event, choice=choice(1, event.text, 1 / len(self.requests))) if is_word else event


def choose(page, *files):
    with page.expect_file_chooser() as opening:
        page.get_by_role("button", name="Choose pictures").click()
    opening.value.set_files([str(file) for file in files])


def names(page):
    return page.locator("#table tbody th").all_inner_texts()


def test_a_table_is_stopped_goes_on_after_a_reload_and_is_sorted_and_downloaded(browser, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    engine = Doubting(DEMO)
    with served(engine) as url, opened(browser, url) as page:
        said = page.locator("#table .said")
        page.get_by_role("button", name="Ask about many pictures").click()
        page.get_by_role("button", name="Ask", exact=True).click()
        said.get_by_text("There are no pictures yet.").wait_for()
        choose(page, EXAMPLES / "night.png", tmp_path / "broken.png", EXAMPLES / "hearts.png", tmp_path / "notes.txt")
        said.get_by_text("1 file of another kind is left out.").wait_for()
        page.locator("#table textarea").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        rows = page.locator("#table tbody tr")
        rows.nth(0).locator(".failure").wait_for()
        rows.nth(1).get_by_text("2nd in the queue").wait_for()
        page.get_by_role("button", name="Stop", exact=True).click()
        said.get_by_text("Stopped.").wait_for()

        page.reload()
        said.get_by_text("“Go on” asks for the rows that are missing.").wait_for()
        assert not page.locator("#chat").is_visible()
        assert names(page) == ["broken.png", "hearts.png", "night.png"]
        assert "not a picture that can be read" in rows.nth(0).inner_text()
        engine.let_through(*engine.go_on)
        page.get_by_role("button", name="Go on").click()
        said.get_by_text("All pictures are asked about. 1 row without an answer says why.").wait_for()
        asked = [Path(str(request.turns[0].pictures[0])).name for request in engine.requests]
        assert asked == ["hearts.png", "hearts.png", "night.png"]
        assert engine.answer in rows.nth(1).inner_text()
        assert [one.inner_text() for one in page.locator("#table td.sure").all()] == ["50 %", "33 %"]

        page.get_by_role("button", name="Doubtful first").click()
        assert names(page) == ["broken.png", "night.png", "hearts.png"]
        assert page.locator("#table th[aria-sort=ascending]").inner_text() == "Sureness"
        with page.expect_download() as download:
            page.get_by_role("button", name="Download as CSV").click()
        told = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_bytes().decode())))
        assert list(told[0]) == ["picture", "answer", "sureness", "error", "model", "question"]
        assert [(row["picture"], row["answer"], row["sureness"]) for row in told] == [
            ("broken.png", "", ""), ("night.png", engine.answer, "0.3333"), ("hearts.png", engine.answer, "0.5"),
        ]  # fmt: skip
        assert "not a picture that can be read" in told[0]["error"]
        page.get_by_role("button", name="Open night.png large").click()
        page.locator("#large-picture[open] img").wait_for()
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")  # back to the chat
        page.locator("#composer textarea").wait_for()


def test_a_table_stays_with_the_window_that_has_it(browser, scripted, scripted_url):
    with opened(browser, scripted_url) as page:
        page.get_by_role("button", name="Ask about many pictures").click()
        choose(page, EXAMPLES / "hearts.png", EXAMPLES / "night.png")
        page.locator("#table textarea").fill(QUESTION)
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator("#table tbody tr").nth(0).get_by_text("2nd in the queue").wait_for()
        others = [page.context.new_page() for _ in range(2)]
        for other, own in zip(others, (None, page.evaluate("ask.kept.get('table')")), strict=True):
            other.goto(page.url)
            other.wait_for_function("window.ask?.stands.then(() => true)")
            other.evaluate("(own) => ask.kept.set('table', own)", own)  # as in a copy of the first window
            other.get_by_role("button", name="Ask about many pictures").click()
            other.locator("#table .said", has_text="Your table is open in another window.").wait_for()
            choose(other, EXAMPLES / "night.png")
            other.locator("#table textarea").fill(QUESTION)
            other.get_by_role("button", name="Ask", exact=True).click()
            other.locator("#table tbody tr").nth(0).get_by_text("2nd in the queue").wait_for()
        scripted.let_through(*scripted.go_on)
        for window in (page, *others):
            window.locator("#table .said", has_text="All pictures have an answer.").wait_for()
        for window, count in ((page, "2 of 2 pictures"), *((other, "1 of 1 picture") for other in others)):
            window.reload()
            window.locator("#table .count").get_by_text(count, exact=True).wait_for()
            window.locator("#table tbody tr").last.locator(".thumb img").wait_for()


def test_each_of_two_windows_keeps_its_own_table_and_rows_that_are_refused_say_so_and_are_asked_again(page):
    other = page.context.new_page()
    other.goto(page.url)
    other.wait_for_function("window.ask?.stands.then(() => true)")
    for window in (page, other):  # before there is a table that could come back
        window.get_by_role("button", name="Ask about many pictures").click()
    choose(page, *(EXAMPLES / name for name in ("blue.png", "hearts.png", "night.png")))
    page.locator("#table textarea").fill(QUESTION)
    gateway = {"content_type": "text/html", "body": "<html><body>nginx</body></html>"}
    page.route("**/upload*", lambda route: route.fulfill(status=502, **gateway))
    page.get_by_role("button", name="Ask", exact=True).click()
    not_taken = page.locator("#table tbody .failure", has_text="The server did not take the file. Try again.")
    not_taken.wait_for()
    page.unroute("**/upload*")

    refuse(page)  # the rows; the table itself does not wait in the queue
    page.get_by_role("button", name="Go on").click()
    page.locator("#table tbody .failure", has_text="The answer did not arrive.").wait_for()
    accept(page)

    page.route("**/upload*", lambda route: route.fulfill(status=413, **gateway))
    page.get_by_role("button", name="Go on").click()  # blue.png is there by now
    not_taken.nth(1).wait_for()
    assert "<html" not in page.locator("#table").inner_text()
    page.unroute("**/upload*")
    page.get_by_role("button", name="Ask the failed ones again").click()
    page.locator("#table .said", has_text="All pictures have an answer.").wait_for()

    choose(other, EXAMPLES / "night.png")
    other.locator("#table textarea").fill(QUESTION)
    other.get_by_role("button", name="Ask", exact=True).click()
    other.locator("#table .said", has_text="All pictures have an answer.").wait_for()
    for window, kept in ((page, ["blue.png", "hearts.png", "night.png"]), (other, ["night.png"])):
        window.reload()
        window.locator("#table tbody tr").last.locator(".thumb img").wait_for()
        assert names(window) == kept
