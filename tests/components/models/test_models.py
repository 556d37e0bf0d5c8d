"""The machine's models on the page, without a browser: who may see them, what is offered, what runs, what is said."""

import asyncio
import re
import threading
from dataclasses import replace
from html import unescape
from types import SimpleNamespace

import pytest
from plain_words import is_plain
from window import DEMO as INFO

from components.models import handlers as handlers_module
from components.models.handlers import ModelsHandlers
from components.models.machine import NOT_YOURS, Machine
from components.page import build_page
from gemma3_core.engine import PUBLISHED, UNGATED, FoundModel, Gemma3Error, ModelRegistry
from gemma3_core.engine.registry import entries_of
from gemma3_core.errors import CheckpointError, StoppedError

GB = 10**9
NEEDS = {"bfloat16": 8 * GB, "float32": 17 * GB, "int4": 4 * GB}
FOUND = FoundModel(
    "gemma-<b>", "/models/gemma.gguf", "LM Studio", "GGUF, Q4_K", 3 * GB, True, "", NEEDS, ("int4", "bfloat16")
)
BROKEN = FoundModel("broken", "/models/broken.gguf", "LM Studio", "GGUF", 1, problem="broken.gguf is cut off.")


class Owner:
    """A request of a browser on this machine."""

    def __init__(self, host="127.0.0.1:7860", client="127.0.0.1", version="1.1", **headers):
        self.headers = {"host": host} | {name.replace("_", "-"): value for name, value in headers.items()}
        self.client = SimpleNamespace(host=client)
        raw = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        scope = {"headers": raw, "client": (client, 1), "http_version": version}
        self.request = SimpleNamespace(scope=scope)
        self.session_hash = "one"


class Engine:
    def __init__(self, name):
        self.info = replace(INFO, name=name)

    def close(self):
        pass


class Loader:
    def __init__(self):
        self.entries, self.failure, self.go_on, self.stopped = [], None, threading.Event(), False
        self.go_on.set()

    def fetch(self, _entry, watch):
        watch.tell("Downloading: 1.0 GB of 3.3 GB, 2 min left", 0.3)
        while not self.go_on.wait(0.02):
            if watch.stop.is_set():
                self.stopped = True
                raise StoppedError("The download was stopped. What has arrived is kept.")

    def __call__(self, entry):
        if self.failure:
            raise self.failure
        self.entries.append(entry)
        return Engine(entry.name)


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def models(loader):
    also = entries_of([UNGATED, PUBLISHED], None, "demo model")
    return ModelRegistry(Engine("demo model"), also, loader, fetch=loader.fetch)


@pytest.fixture
def handlers(models, monkeypatch):
    monkeypatch.setattr(handlers_module, "free_memory", lambda _device: 10 * GB)
    monkeypatch.setattr(handlers_module, "_TICK_S", 0.01)
    return ModelsHandlers(models, Machine(offers=True), lambda: [FOUND, BROKEN])


def all_of(updates):
    async def collected():
        return [update async for update in updates]

    return asyncio.run(collected())


def listed(handlers):
    return all_of(handlers.open(Owner()))[-1][2]


def number_of(handlers, text, html=None):
    return int(re.search(rf'data-number="(\d+)">{text}<', html or listed(handlers))[1])


STRANGERS = [
    Owner(host="abc.gradio.live"), Owner(client="192.168.0.7"), Owner(x_forwarded_for="1.2.3.4"), Owner(host=""),
    Owner(forwarded="for=1.2.3.4"), Owner(host="evil.example:7860"), Owner(host="0.0.0.0:7860"),
    Owner(version="1.0"),
]  # fmt: skip


@pytest.mark.parametrize("stranger", STRANGERS, ids=lambda one: f"{one.headers}, {one.client.host}")
def test_a_stranger_sees_nothing_loads_nothing_and_stops_nothing(handlers, loader, models, stranger):
    for updates in (handlers.open(stranger), handlers.look_again(stranger), handlers.run(0, stranger)):
        with pytest.raises(Gemma3Error, match="Only whoever started"):
            all_of(updates)
    with pytest.raises(Gemma3Error, match=NOT_YOURS):
        handlers.stop(stranger)
    assert handlers.names(stranger) == models.names
    assert loader.entries == []
    assert handlers._found is None
    assert len(models.entries) == 2


@pytest.mark.parametrize("owner", [Owner(), Owner("localhost:7860"), Owner("[::1]:7860", "::1")])
def test_the_owner_sees_them(handlers, owner):
    assert "Looking for models" in all_of(handlers.open(owner))[0][2]


def test_a_page_for_others_has_no_such_part(models):
    for machine, there in ((None, False), (Machine(), True)):
        page = build_page(models, machine=machine)
        ids = {getattr(block, "elem_id", None) for block in page.blocks.values()}
        assert ({"machine", "machine-models", "model-run"} <= ids) is there
        assert ("machine" in ids) is there


def test_the_list_says_what_each_is_and_needs(handlers):
    html = listed(handlers)
    for words in (
        "10.0 GB of memory are free.",
        "gemma-&lt;b&gt;",
        "GGUF, Q4_K · 3.0 GB · text and pictures · in LM Studio",
        "Memory: 8.0 GB in bfloat16 · 17.0 GB in float32 · 4.0 GB in int4",
        "broken.gguf is cut off.",
        "Gemma's terms of use apply</a>",
        "ggml-org",
        "2.5 GB, and 0.8 GB for pictures",
        "--find",
    ):
        assert words in html, words
    assert html.index("gemma-3-4b-it-Q4_K_M") < html.index("HF_TOKEN") < html.index("gemma-&lt;b&gt;")
    assert html.count("Download and run") == 2
    assert html.index("Run in int4") < html.index("Run in bfloat16")
    assert "/models/" not in html


def test_where_full_precision_does_not_fit_int4_is_offered_and_where_nothing_fits_it_says_so(handlers, monkeypatch):
    for free, buttons, sentence in (
        (6, ["Run in int4"], "Needs 8.0 GB in bfloat16, and 6.0 GB are free: int4 fits."),
        (3, [], "Needs 4.0 GB in int4, and 3.0 GB are free. Close other programs, or choose a smaller model."),
    ):
        monkeypatch.setattr(handlers_module, "free_memory", lambda _device, free=free: free * GB)
        html = listed(handlers).split("gemma-&lt;b&gt;")[1].split("broken")[0]
        assert re.findall(r"Run in \w+", html) == buttons
        assert sentence in html
    # A button of an earlier list is refused on the server.
    monkeypatch.setattr(handlers_module, "free_memory", lambda _device: 5 * GB)
    number = next(i for i, c in enumerate(handlers._choices) if c.model is not None and c.way == "bfloat16")
    failure = all_of(handlers.run(number, Owner()))[-1][0]
    assert "Needs 8.0 GB in bfloat16, and 5.0 GB are free: int4 fits." in failure


def test_what_would_not_fit_into_memory_is_not_downloaded(handlers, loader, monkeypatch):
    """4B in int4 needs 4.5 GB, in bfloat16 8.8 GB."""
    for free, offered in ((10, 2), (6, 1), (4, 0)):
        monkeypatch.setattr(handlers_module, "free_memory", lambda _device, free=free: free * GB)
        html = listed(handlers)
        assert html.count("Download and run") == offered
        told = f"Needs 8.8 GB of memory, and {free}.0 GB are free. Close other programs, or choose a smaller model."
        assert (told in html) is (free < 10)
    # A button of an earlier list is refused on the server.
    number = next(i for i, c in enumerate(handlers._choices) if c.entry.source == UNGATED)
    assert "Needs 4.5 GB of memory, and 4.0 GB are free." in all_of(handlers.run(number, Owner()))[-1][0]
    assert loader.entries == []
    monkeypatch.setattr(handlers_module, "free_memory", lambda _device: None)  # where the system does not say
    assert listed(handlers).count("Download and run") == 2


def test_a_model_that_was_found_runs_without_a_new_start(handlers, models, loader):
    updates = all_of(handlers.run(number_of(handlers, "Run in int4"), Owner()))
    assert updates[-1][3]["value"] == "gemma-<b>"
    assert updates[-1][3]["choices"] == [*models.names]
    assert (loader.entries[0].source, loader.entries[0].int4) == ("/models/gemma.gguf", True)
    assert "loaded now" in updates[-1][2]
    assert handlers.names(Owner())[-1] == "gemma-<b>"
    assert "gemma-<b>" not in handlers.names(STRANGERS[0])
    # In another precision it is loaded again, under the same name.
    all_of(handlers.run(number_of(handlers, "Run in bfloat16"), Owner()))
    assert [(entry.name, entry.int4) for entry in loader.entries] == [("gemma-<b>", True), ("gemma-<b>", False)]


def test_the_ungated_file_is_downloaded_with_progress_and_runs_in_int4(handlers, models, loader):
    updates = all_of(handlers.run(number_of(handlers, "Download and run"), Owner()))
    assert (loader.entries[0].source, loader.entries[0].int4) == (UNGATED, True)
    assert updates[-1][3]["value"] == "gemma-3-4b-it-Q4_K_M"
    assert models.in_memory == ("demo model", "gemma-3-4b-it-Q4_K_M")


def test_progress_is_shown_and_can_be_stopped(handlers, models, loader):
    loader.go_on.clear()
    number = number_of(handlers, "Download and run")

    async def stopped():
        updates = []
        async for update in handlers.run(number, Owner()):
            updates.append(update)
            if "1.0 GB of 3.3 GB" in str(update[0]):
                assert update[1]["visible"] is True
                handlers.stop(Owner())
        return updates

    updates = asyncio.run(stopped())
    assert loader.stopped
    shown = [str(update[0]) for update in updates]
    assert any('<progress value="0.300"' in html and "2 min left" in html for html in shown)
    assert "What has arrived is kept." in shown[-1]
    assert "failure" not in shown[-1]
    assert updates[-1][1]["visible"] is False
    assert models.loading == {}


def test_a_page_that_opens_meanwhile_follows_the_download(handlers, models, loader):
    loader.go_on.clear()
    number = number_of(handlers, "Download and run")

    async def both():
        running = asyncio.ensure_future(collect(handlers.run(number, Owner())))
        while not models.loading:
            await asyncio.sleep(0.01)
        async for update in handlers.open(Owner()):
            if "2 min left" in str(update[0]):
                loader.go_on.set()
        assert loader.go_on.is_set(), "the page has not followed it"
        await running

    async def collect(updates):
        return [update async for update in updates]

    asyncio.run(asyncio.wait_for(both(), 60))


def test_what_fails_is_said_and_nothing_that_runs_is_harmed(handlers, models, loader):
    loader.failure = CheckpointError("config.json is missing. Download it again.")
    update = all_of(handlers.run(number_of(handlers, "Run in int4"), Owner()))[-1]
    assert "config.json is missing" in update[0]
    assert models.in_memory == ("demo model",)
    loader.failure = ZeroDivisionError("by zero")
    shown = all_of(handlers.run(number_of(handlers, "Run in int4"), Owner()))[-1][0]
    assert handlers_module.UNEXPECTED in unescape(shown)
    assert is_plain(handlers_module.UNEXPECTED)
    assert is_plain(NOT_YOURS)
    for number in (None, -1, 99):
        with pytest.raises(Gemma3Error, match="Look again"):
            all_of(handlers.run(number, Owner()))


def test_what_is_in_the_hubs_cache_is_no_offer_any_more(models, monkeypatch):
    monkeypatch.setattr(handlers_module, "free_memory", lambda _device: None)
    here = replace(FOUND, name="gemma-3-4b-it-Q4_K_M", source="/cache/gemma-3-4b-it-Q4_K_M.gguf",
                   repo_id="ggml-org/gemma-3-4b-it-GGUF")  # fmt: skip
    handlers = ModelsHandlers(models, Machine(offers=True, everywhere=True), lambda: [here])
    html = listed(handlers)
    assert html.count("Download and run") == 1
    assert "--find" not in html
    all_of(handlers.run(number_of(handlers, "Run in int4"), Owner()))
    assert models.in_memory == ("demo model", "gemma-3-4b-it-Q4_K_M")  # the entry that was offered, and no second one
