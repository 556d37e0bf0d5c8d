"""A first load stays as small as it was measured (`python -m benchmarks.first_load`)."""

import re

import pytest
from running_app import free_port
from warm import Program

from benchmarks.first_load import first_load
from benchmarks.watched_app import watched_app

MOST_REQUESTS, MOST_KILOBYTES, MOST_SHIFT = 59, 450, 0.05


@pytest.fixture(scope="module")
def app():
    with watched_app(start=Program, port=free_port()) as app:
        yield app


def test_a_first_load_is_small_and_steady(browser, app):
    first_load(browser, app)
    load = first_load(browser, app)
    assert load.requests <= MOST_REQUESTS
    assert load.kilobytes <= MOST_KILOBYTES
    assert load.layout_shift <= MOST_SHIFT


def test_it_asks_at_once_for_the_scripts_that_it_takes_and_for_no_others(browser, app):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url.removeprefix(app.url).lstrip("/")))
    page.goto(app.url)
    page.locator("#composer textarea:enabled").wait_for()
    page.wait_for_timeout(1500)
    named = page.locator("link[rel=modulepreload]").evaluate_all("(links) => links.map((l) => l.getAttribute('href'))")
    page.close()
    assert len(named) > 40
    assert {address for address in asked if re.search(r"\.js$", address)} == set(named)
    assert [address for address in asked if ".css" in address] == [
        address for address in asked if "styles.css?" in address
    ]
