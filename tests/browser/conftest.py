"""One app with the demo model for all files that a test process runs, and a new visitor's page for each test."""

from collections.abc import Iterator
from typing import Any

import pytest
from running_app import ScriptedEngine, opened, running_app, served
from window import DEMO


@pytest.fixture(scope="session")
def app_url() -> Iterator[str]:
    with running_app() as address:
        yield address


@pytest.fixture(scope="session")
def url(app_url: str) -> str:
    """The app's, unless a module serves one of its own."""
    return app_url


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    with opened(browser, url) as visitor:
        yield visitor


@pytest.fixture
def scripted() -> ScriptedEngine:
    """An engine that waits in each stage until a test lets it go on."""
    return ScriptedEngine(DEMO)


@pytest.fixture
def scripted_url(scripted: ScriptedEngine) -> Iterator[str]:
    with served(scripted) as address:
        yield address


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A failed test reports what its page shows."""
    report = yield
    if report.failed and report.when == "call" and (shown := getattr(item, "funcargs", {}).get("page")) is not None:
        report.sections.append(("What the page shows", shown.locator("body").inner_text()))
    return report
