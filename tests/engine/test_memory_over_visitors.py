"""Memory over visitors who ask once and never come back: what is kept for them is bounded."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_app import free_port
from warm import Program

from benchmarks.visitors import PageEvents, Visitor, answered, read_events
from benchmarks.watched_app import WatchedApp, watched_app

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from Linux's /proc"),
]

WARM_UP, VISITORS = 50, 150
MAY_GROW = 60_000_000  # bytes; the keys and values of the visitors after the first alone are some 110 MB
AT_ONCE = 4
# Each visitor's text differs, so that nobody's prompt is the beginning of another's. It is short and so is the answer,
# because many of them are asked: keys and values of its 30 tokens are still more than a MB, each.
QUESTION = "How many hearts are there, and where is the red star?"


def ask_once(app: WatchedApp, events: PageEvents, number: int) -> bool:
    """A session of its own, that is never heard of again: no heartbeat, so that nothing says it has left."""
    with Visitor(app.url, events) as visitor:
        return answered(visitor.ask(f"{number}: {QUESTION}", longest=1))


def test_150_visitors_leave_no_more_than_fifty_did():
    with watched_app(start=Program, port=free_port()) as app:
        with Visitor(app.url) as visitor:
            events = read_events(visitor.client)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            done = list(pool.map(lambda number: ask_once(app, events, number), range(WARM_UP)))
            after_few = app.memory()
            done += pool.map(lambda number: ask_once(app, events, number), range(WARM_UP, VISITORS))
        grown = app.memory() - after_few
        assert done.count(True) == VISITORS
        print(f"{after_few / 1e6:.0f} MB after {WARM_UP} visitors, {grown / 1e6:.0f} MB more after {VISITORS}")
        assert grown <= MAY_GROW, f"{grown / 1e6:.0f} MB more after {VISITORS} visitors than after {WARM_UP}"
