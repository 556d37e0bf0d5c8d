"""One app with the demo model for all files that a test process runs, and a new visitor's page for each test."""

from collections.abc import Iterator
from typing import Any

import pytest
from running_app import ScriptedEngine, opened, running_app, served
from window import DEMO


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with running_app() as address:
        yield address


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
