"""The models that a server offers: names, one load for all who wait, failed loads, letting go."""

import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from window import DEMO, STATS

from gemma3_core.engine import (
    DoneEvent,
    Engine,
    PartialSampling,
    Request,
    SamplingSettings,
    StageEvent,
    TokenEvent,
    Turn,
)
from gemma3_core.engine import registry as models_module
from gemma3_core.engine.api import MAX_NEW_TOKENS
from gemma3_core.engine.registry import PUBLISHED, ModelEntry, ModelRegistry, entries_of
from gemma3_core.errors import (
    AttentionError,
    CheckpointError,
    ContextLengthError,
    QueueFullError,
    UnsupportedOptionError,
)

PATIENCE_S = 60
QUESTION = Request((Turn("user", "what is a color"),), max_new_tokens=4)


class Named:
    """An engine that answers with its name, and can be made to wait before."""

    def __init__(self, name):
        self.info = replace(DEMO, name=name)
        self.go_on = threading.Event()
        self.go_on.set()
        self.closed = False

    def stream(self, _request, _stop=None):
        yield TokenEvent(self.info.name)
        assert self.go_on.wait(PATIENCE_S)
        yield DoneEvent("closed" if self.closed else self.info.name, replace(STATS, model=self.info.name))

    def close(self):
        self.closed = True

    def forget(self, visitor):
        self.forgotten = visitor


class Loader:
    """Gives an engine for each entry, counts, and can be held or made to fail."""

    def __init__(self):
        self.loaded, self.engines = [], {}
        self.go_on = threading.Event()
        self.go_on.set()
        self.failures = []

    def __call__(self, entry):
        self.loaded.append(entry.name)
        assert self.go_on.wait(PATIENCE_S)
        if self.failures:
            raise self.failures.pop(0)
        self.engines[entry.name] = Named(entry.name)
        return self.engines[entry.name]


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def models(loader):
    return ModelRegistry(Named("first"), [ModelEntry(name, name) for name in "abc"], loader, keep=2)


def said(models, name):
    return [event.text for event in models.stream(name, QUESTION)][-1]


def in_memory(models):
    held = []
    for name in models.names:
        with models.held(name) as engine:
            held += [name] if engine is not None else []
    return held


def wait_until(holds):
    end = threading.Event()
    for _ in range(PATIENCE_S * 100):
        if holds():
            return
        end.wait(0.01)
    raise AssertionError("it never came to that")


# Names


def test_offers_are_named_by_their_last_part_and_equal_names_stay_apart(tmp_path):
    for folder in ("one/gemma", "two/gemma"):
        (tmp_path / folder).mkdir(parents=True)
    also = [str(tmp_path / "one" / "gemma"), str(tmp_path / "two" / "gemma"), "owner/gemma", PUBLISHED]
    found = entries_of(also, None, "demo model")
    assert [entry.name for entry in found] == ["gemma", "gemma (2)", "gemma (3)", "gemma-3-4b-it"]
    assert [entry.from_hub for entry in found] == [False, False, True, True]
    assert found[2].download_bytes is None
    assert 8e9 < found[3].download_bytes < 9e9
    assert entries_of(["owner/demo"], None, "demo")[0].name == "demo (2)"


def test_the_same_source_twice_is_one_offer_and_the_first_is_none(tmp_path, monkeypatch):
    folder = tmp_path / "gemma"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    assert [o.source for o in entries_of(["gemma", str(folder), "gemma/"])] == [str(folder)]
    assert entries_of(["gemma", PUBLISHED, PUBLISHED], str(folder)) == entries_of([PUBLISHED])
    assert entries_of([str(models_module.DEMO_MODEL)]) == ()
    assert entries_of([PUBLISHED], PUBLISHED) == ()


@pytest.mark.parametrize("source", ["/no/such/folder", "a/b/c", "white space"])
def test_what_can_be_neither_folder_nor_id_is_told_at_the_start(source):
    with pytest.raises(CheckpointError, match="neither a folder"):
        entries_of([source])


@pytest.mark.parametrize("name", ["../etc", "google/gemma-3-27b-it", "", "d"])
def test_only_what_is_offered_can_be_chosen(models, loader, name):
    with pytest.raises(UnsupportedOptionError, match="offers no model"):
        said(models, name)
    assert loader.loaded == []


def test_options_that_make_no_sense():
    with pytest.raises(UnsupportedOptionError, match="At least 1"):
        ModelRegistry(Named("first"), keep=0)
    with pytest.raises(UnsupportedOptionError, match="load"):
        ModelRegistry(Named("first"), [ModelEntry("a", "a")])


# Loading


def test_a_model_is_loaded_when_it_is_first_chosen_and_only_then(models, loader):
    assert said(models, None) == said(models, "first") == "first"
    assert (loader.loaded, models.info("a")) == ([], None)
    stages = [event for event in models.stream("a", QUESTION) if isinstance(event, StageEvent)]
    assert stages[0] == StageEvent("loading", "Loading a")
    assert said(models, "a") == "a"
    assert loader.loaded == ["a"]
    assert models.info("a").name == "a"


def test_two_who_choose_the_same_share_one_load_and_others_answers_go_on(models, loader):
    loader.go_on.clear()
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(said, models, "a") for _ in range(2)]
        wait_until(lambda: models._waiting == 2)
        assert said(models, None) == "first"  # while that model is being loaded
        loader.go_on.set()
        assert [future.result(PATIENCE_S) for future in both] == ["a", "a"]
    assert loader.loaded == ["a"]


def test_who_leaves_is_forgotten_by_each_model_in_memory(models, loader):
    said(models, "a")
    models.forget("someone")
    assert [engine.forgotten for engine in (models.first, loader.engines["a"])] == ["someone", "someone"]


def test_a_failed_load_tells_all_who_wait_and_may_be_tried_again(models, loader):
    loader.go_on.clear()
    loader.failures.append(CheckpointError("config.json is missing."))
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(said, models, "a") for _ in range(2)]
        wait_until(lambda: models._waiting == 2)
        loader.go_on.set()
        for future in both:
            with pytest.raises(CheckpointError, match=r"config\.json is missing\."):
                future.result(PATIENCE_S)
    assert loader.loaded == ["a"]
    assert said(models, "a") == "a"


def test_an_unexpected_failure_reaches_who_asked_as_it_is(models, loader):
    loader.failures.append(ZeroDivisionError("by zero"))
    with pytest.raises(ZeroDivisionError):
        said(models, "a")
    assert said(models, "a") == "a"


class Panic(BaseException):
    """As Python raises where Rust code panics."""


def test_a_load_that_ends_with_no_exception_is_told_too(models, loader):
    loader.failures.append(Panic("index out of bounds"))
    stop = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(list, models.stream("a", QUESTION, stop))
        wait([asked], 5)
        stop.set()
        with pytest.raises(Panic, match="index out of bounds"):
            asked.result(PATIENCE_S)
    assert models.loading == {}
    assert said(models, "a") == "a"


def test_who_leaves_while_it_loads_does_not_end_it(models, loader):
    loader.go_on.clear()
    leaving = models.stream("a", QUESTION)
    assert next(leaving).stage == "loading"
    wait_until(lambda: loader.loaded)
    leaving.close()
    loader.go_on.set()
    wait_until(lambda: "a" in in_memory(models))
    assert models._waiting == 0


def test_not_everybody_can_wait_at_once(models, loader, monkeypatch):
    monkeypatch.setattr(models_module, "_MOST_WAITING", 1)
    loader.go_on.clear()
    waiting = models.stream("a", QUESTION)
    next(waiting)
    with pytest.raises(QueueFullError, match="1 questions wait"):
        said(models, "b")
    loader.go_on.set()
    assert [event.text for event in waiting][-1] == "a"


def test_how_long_it_has_taken_is_told_in_steps(models, loader, monkeypatch):
    monkeypatch.setattr(models_module, "_TICK_S", 0.01)
    ticks = iter(range(0, 1000, 5))
    monkeypatch.setattr(models_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    loader.go_on.clear()
    waiting = models.stream("a", QUESTION)
    told = [next(waiting).text for _ in range(4)]
    assert told == [f"Loading a ({seconds} s so far)" for seconds in (5, 10, 15, 20)]
    loader.go_on.set()
    waiting.close()


# Letting go


def test_the_one_least_recently_used_is_let_go(models, loader):
    for name in ("a", "b", "a", "c"):
        assert said(models, name) == name
    assert in_memory(models) == ["first", "a", "c"]
    assert loader.engines["b"].closed
    assert models.info("b").name == "b"  # what is known of it stays
    assert said(models, "b") == "b"
    assert loader.loaded == ["a", "b", "c", "b"]


def test_answers_that_run_finish_on_the_model_they_began_with(models):
    for name in "ab":
        said(models, name)
    running = {name: models.stream(name, QUESTION) for name in "ab"}
    for stream in running.values():
        next(stream)
    third = models.stream("c", QUESTION)
    assert next(third).stage == "loading"
    wait_until(lambda: any("still at work" in next(third).text for _ in range(1)))
    assert [event.text for event in running["b"]] == ["b"]
    assert [event.text for event in third][-1] == "c"
    assert [event.text for event in running["a"]] == ["a"]  # never closed under it
    assert in_memory(models) == ["first", "a", "c"]


def test_a_model_that_nobody_waits_for_any_more_is_not_loaded_for_want_of_room(models):
    for name in "ab":
        said(models, name)
    running = [models.stream(name, QUESTION) for name in "ab"]
    for stream in running:
        next(stream)
    third = models.stream("c", QUESTION)
    next(third)
    third.close()
    wait_until(lambda: models._slots["c"].load is None)
    for stream in running:
        stream.close()
    assert in_memory(models) == ["first", "a", "b"]
    assert said(models, "c") == "c"


def test_who_looks_inside_keeps_the_model_and_else_is_told_that_it_is_gone(models):
    said(models, "a")
    with models.that_answered("a") as engine:
        said(models, "b")
        said(models, "c")
        assert not engine.closed
    assert in_memory(models) == ["first", "a", "c"]
    for name in ("b", "of another server"):
        with pytest.raises(AttentionError, match="Ask again"), models.that_answered(name):
            pass
    with pytest.raises(ZeroDivisionError), models.that_answered("c"):
        raise ZeroDivisionError  # what goes wrong there is not taken for something else


# With real checkpoints


@pytest.fixture
def real(chat_folder, text_chat_folder):
    return ModelRegistry.load(chat_folder, [str(text_chat_folder)], device="cpu")


def done(models, name, request=QUESTION):
    event = list(models.stream(name, request))[-1]
    assert isinstance(event, DoneEvent)
    return event


def test_two_checkpoints_answer_each_as_if_it_were_alone(real, chat_folder, text_chat_folder):
    assert real.names == ("small-model", "small-text-model")
    assert done(real, "small-text-model").stats.model == "small-text-model"
    for name, folder in (("small-model", chat_folder), ("small-text-model", text_chat_folder)):
        alone = list(Engine.load(folder, device="cpu").stream(QUESTION))[-1]
        assert done(real, name).token_ids == alone.token_ids
    with real.held("small-text-model") as engine:
        assert engine.queue is real.first.queue  # one queue for one device
        assert engine.info.vocabulary == real.first.info.vocabulary


def test_it_is_idle_while_nobody_is_answered_by_any_of_the_models(real):
    done(real, "small-text-model")
    assert real.is_idle
    events = real.stream("small-text-model", QUESTION)
    next(events)
    assert not real.is_idle
    events.close()
    assert real.is_idle


def test_pictures_for_a_model_that_reads_text_only(real):
    request = Request((Turn("user", "what", (torch.zeros(3, 8, 8, dtype=torch.uint8),)),))
    with pytest.raises(ValueError, match="small-text-model reads text only"):
        done(real, "small-text-model", request)


def test_what_a_request_leaves_open_is_filled_in_by_the_model_that_answers(real):
    asked = replace(QUESTION, sampling=PartialSampling(top_k=3))
    with real.held() as first:
        assert first._filled(asked).settings(SamplingSettings()) == replace(first.info.sampling, top_k=3)
        assert first._filled(asked).int4 is False
    done(real, "small-text-model")
    assert real.info("small-text-model").int4.obstacle
    with pytest.raises(UnsupportedOptionError):
        done(real, "small-text-model", replace(QUESTION, int4=True))
    other = done(real, "small-text-model", replace(QUESTION, int4=True, int4_or_default=True))
    assert other.stats.quantization == "none"


def test_a_length_that_is_left_open_is_what_the_context_has_room_for(real):
    with real.held() as engine:

        def said(words):
            return replace(QUESTION, turns=(Turn("user", "a " * words),), max_new_tokens=None)

        def tokens(words):
            return len(engine.inspect(said(words)).tokens)

        context = engine.info.context_length
        long = said(int((context - 50 - tokens(1)) / ((tokens(101) - tokens(1)) / 100)))
        left = context - len(engine.inspect(long).tokens)
        assert 0 < left < MAX_NEW_TOKENS
        stats = done(real, None, long).stats
        assert (stats.new_tokens, stats.stop_reason) == (left, "length") or stats.stop_reason == "stop"
        with pytest.raises(ContextLengthError):
            done(real, None, replace(long, max_new_tokens=left + 1))


def test_an_answer_that_is_stopped_while_its_model_loads_ends_as_cancelled():
    loader = Loader()
    loader.go_on.clear()
    stop, models = threading.Event(), ModelRegistry(Named("a"), [ModelEntry("b", "/b")], loader)
    events = models.stream("b", QUESTION, stop)
    assert next(events).stage == "loading"
    stop.set()
    (end,) = events
    assert (end.text, end.stats.model, end.stats.stop_reason) == ("", "b", "cancelled")
    loader.go_on.set()


def test_a_model_that_is_let_go_leaves_memory(chat_folder, text_chat_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(chat_folder, other)
    models = ModelRegistry.load(chat_folder, [str(other), str(text_chat_folder)], device="cpu")
    done(models, "other")
    with models.held("other") as engine:
        weights = weakref.ref(engine._model)
    del engine
    done(models, "small-text-model")
    assert weights() is None


def test_a_folder_that_went_away_is_no_path_in_the_message_and_no_download(chat_folder, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    models = ModelRegistry.load(chat_folder, [str(gone), PUBLISHED], device="cpu")
    with pytest.raises(CheckpointError, match=r"config\.json is missing") as told:
        done(models, "gone")
    assert str(tmp_path) not in str(told.value)
    gone.rmdir()
    with pytest.raises(CheckpointError, match="gone is no longer there"):
        done(models, "gone")
    with pytest.raises(CheckpointError, match="could not be downloaded"):
        done(models, "gemma-3-4b-it")  # tests are offline


def test_a_gpu_without_room_is_told_before_anything_is_loaded(real, monkeypatch):
    monkeypatch.setattr(models_module, "free_bytes", lambda _device: 10)
    with pytest.raises(UnsupportedOptionError, match="no room for small-text-model"):
        done(real, "small-text-model")
    monkeypatch.setattr(models_module, "free_bytes", lambda _device: None)
    full = SimpleNamespace(load=lambda *_args, **_options: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    monkeypatch.setattr(models_module, "Engine", full)
    with pytest.raises(UnsupportedOptionError, match="no room for small-text-model"):
        done(real, "small-text-model")
    monkeypatch.undo()
    assert done(real, "small-text-model").stats.model == "small-text-model"
