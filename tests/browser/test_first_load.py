"""A first load stays as small as it was measured (`python -m benchmarks.first_load`)."""

from benchmarks.first_load import first_load
from benchmarks.watched_app import watched_app

MOST_REQUESTS, MOST_KILOBYTES, MOST_SHIFT = 80, 620, 0.05


def test_a_first_load_is_small_and_steady(browser):
    with watched_app() as app:
        first_load(browser, app)
        load = first_load(browser, app)
    assert load.requests <= MOST_REQUESTS
    assert load.kilobytes <= MOST_KILOBYTES
    assert load.layout_shift <= MOST_SHIFT
