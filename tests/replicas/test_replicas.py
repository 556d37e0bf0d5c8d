"""Replicas behind the engine's door, in one local Ray for all tests: two of a small model, each a fraction of a CPU.

A replica takes seconds to start, so the tests that change replicas come last and leave them to the next one.
"""

import asyncio
import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from running_app import served
from safetensors.torch import load, save

pytest.importorskip("ray", reason="Ray is not installed (pip install -r requirements/ray.txt)")

import ray
from ray import serve

from components.serving import shared_ledger
from components.serving.callers import Caller
from components.serving.desk import FrontDesk, NotNowError, Operation
from components.serving.ledger import HOUR_S, Allowance
from components.serving.shared_ledger import NAME, NAMESPACE, SharedLedger
from gemma3_core.engine import (
    Answered,
    DoneEvent,
    Engine,
    Gemma3Error,
    Request,
    SamplingSettings,
    StageEvent,
    StoppedError,
    TokenEvent,
    Turn,
)
from gemma3_core.errors import PromptError, QueueFullError, ReplicaLostError, UnsupportedOptionError
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.replicas import fleet as fleets
from gemma3_core.replicas.deployment import built
from gemma3_core.replicas.options import APPLICATION, ReplicaOptions
from gemma3_core.replicas.start import replicas

pytestmark = pytest.mark.long
LONG = 8_000
WITHIN_S = 120.0  # on a busy machine


@pytest.fixture(scope="module")
def folder(tmp_path_factory, chat_folder):
    """The small checkpoint, with a context and weights for answers that go on for as long as a test takes: no stop
    token is ever the likeliest."""
    folder = tmp_path_factory.mktemp("replicas") / chat_folder.name
    shutil.copytree(chat_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 8_192
    (folder / "config.json").write_text(json.dumps(config))
    (weights,) = folder.glob("*.safetensors")
    tensors = load(weights.read_bytes())
    (embedding,) = (tensor for name, tensor in tensors.items() if name.endswith("embed_tokens.weight"))
    embedding[config["eos_token_id"]] = 0.0
    weights.write_bytes(save(tensors, {"format": "pt"}))
    return folder


@pytest.fixture(scope="module")
def options(folder):
    models = {"model": str(folder), "device": "cpu", "dtype": "float32", "at_once": 4}
    return ReplicaOptions(models, replicas=2, cpus=0.25, threads=1)


@pytest.fixture(scope="module", autouse=True)
def without_kernels():
    """Each replica would build them, for two seconds of a processor."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("GEMMA_CPU_KERNELS", "0")
        patched.setattr(cpu_kernels, "library", lambda: None)  # here too: the numbers are compared
        yield


@pytest.fixture(scope="module")
def registry(options):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fleets, "_COUNTED_EACH_S", 0.5)
        patched.setenv("RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "0.5")  # at 0.1, it takes a twentieth of a processor
        with replicas(options) as registry:
            yield registry


@pytest.fixture
def engine(registry):
    """All replicas run, and none has anything to do."""
    wait_until(lambda: 0 < registry.fleet.health.wanted == registry.fleet.health.running == len(processes(registry)))
    wait_until(lambda: not any(processes(registry).values()))
    return registry.first


@pytest.fixture(scope="module")
def local(folder):
    return Engine.load(folder, device="cpu", dtype="float32")


def wait_until(condition) -> None:
    end = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.25)


def processes(registry) -> dict[int, int]:
    """The replicas' processes, and how many calls run in each."""
    return {one["pid"]: one["running"] for one in registry.fleet.ask_all("record_routing_stats")}


def asked(text: str = "what is it", visitor: str = "a", longest: int = 12, picture=None, **more) -> Request:
    turn = Turn("user", text, () if picture is None else (picture,))
    return Request((turn,), visitor=visitor, max_new_tokens=longest, **more)


def long_one(visitor: str) -> Request:
    """Its answer takes a minute and more of a processor."""
    return asked("a long answer", visitor, LONG, reuse=False)


def done_of(events) -> DoneEvent:
    *_, last = events
    assert isinstance(last, DoneEvent)
    return last


def begun(engine, request, stop=None):
    """An answer whose first token has come."""
    events = engine.stream(request, stop)
    for event in events:
        if isinstance(event, TokenEvent):
            return events
    raise AssertionError("no token came")


@pytest.fixture(scope="module")
def picture_file(tmp_path_factory, gradient_picture):
    path = tmp_path_factory.mktemp("pictures") / "gradient.png"
    gradient_picture.save(path)
    return str(path)


@pytest.mark.usefixtures("engine")
def test_replicas_run_as_any_other_program_and_not_in_the_background(registry):
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in processes(registry)} == {os.getpriority(os.PRIO_PROCESS, 0)}


def test_the_page_sees_the_same_model(engine, local, registry):
    assert engine.info == local.info
    assert registry.names == (local.info.name,)
    assert registry.fleet.health.ready


def test_every_public_method_of_an_engine_is_forwarded():
    from gemma3_core.replicas.remote import RemoteEngine

    public = {name for name in vars(Engine) if not name.startswith("_")}
    looks = {"attention", "occlude", "why"}
    assert public - set(vars(RemoteEngine)) == {"astream", *looks}, "which call `stream`, and `_looked`"
    assert "_looked" in vars(RemoteEngine)


def test_answers_are_those_of_an_engine_in_this_process_and_nobody_gets_anothers(engine, local, picture_file):
    requests = [asked(f"number {n}", f"visitor {n}", 12, picture_file if n % 2 else None) for n in range(12)]
    sampled = SamplingSettings(temperature=2.0, seed=11)  # its 40 tokens end with a whole character
    requests.append(asked("a long answer", "sampled", 40, sampling=sampled, confidence=True))
    expected = [done_of(local.stream(request)) for request in requests]
    with ThreadPoolExecutor(13) as pool:
        answers = list(pool.map(lambda request: list(engine.stream(request)), requests))
    for events, alone in zip(answers, expected, strict=True):
        done = done_of(events)
        assert (done.text, done.token_ids) == (alone.text, alone.token_ids)
        assert "".join(event.text for event in events if isinstance(event, TokenEvent)) == alone.text
        same = ("model", "prompt_tokens", "num_images", "new_tokens", "stop_reason", "seed")
        assert [getattr(done.stats, name) for name in same] == [getattr(alone.stats, name) for name in same]
    assert all(event.choice is not None for event in answers[-1] if isinstance(event, TokenEvent) and event.text)


def test_a_visitors_next_question_goes_to_the_replica_that_holds_the_cache(engine, registry):
    def homes_of(*visitors: str) -> dict[str, int]:
        """The replica of each, who come one after another and stay until all have come."""
        homes: dict[str, int] = {}
        running = []
        for visitor in visitors:
            before = processes(registry)
            running.append(begun(engine, long_one(visitor)))
            homes[visitor] = next(pid for pid, calls in processes(registry).items() if calls > before[pid])
        for events in running:
            events.close()
        wait_until(lambda: not any(processes(registry).values()))
        return homes

    first = homes_of("ann", "ben")
    assert first["ann"] != first["ben"], "a new visitor goes to the emptier one"
    assert homes_of("ben", "ann") == first
    engine.forget("ann")


def test_a_stopped_answer_ends_with_its_figures_and_a_closed_one_at_once(engine, registry):
    stop = threading.Event()
    events = begun(engine, long_one("stops"), stop)
    stop.set()
    done = done_of(events)
    assert done.stats.stop_reason == "cancelled"
    assert 1 <= len(done.token_ids) < LONG
    events = begun(engine, long_one("leaves"))
    events.close()
    began = time.monotonic()
    wait_until(lambda: not any(processes(registry).values()))
    assert time.monotonic() - began < 20
    assert engine.queue.wait_until_empty(1)


def test_a_question_that_is_stopped_in_the_queue_never_begins(engine, monkeypatch):
    monkeypatch.setattr(engine.queue, "max_running", 1)
    monkeypatch.setattr(engine.queue, "resize", lambda *_: None)
    running, stop = begun(engine, long_one("first")), threading.Event()
    waiting = engine.stream(asked("second", "second"), stop)
    event = next(waiting)
    assert isinstance(event, StageEvent)
    assert event.text.startswith("1st in the queue")
    stop.set()
    assert done_of(waiting).stats.stop_reason == "cancelled"
    running.close()


def test_inside_shows_the_same_numbers_by_any_replica(engine, local, picture_file):
    request = asked("what is it", "looks", 6, picture_file)
    answered = Answered(request, done_of(engine.stream(request)))
    assert engine.inspect(request) == local.inspect(request)
    assert engine.picture_tokens(800, 300, True) == local.picture_tokens(800, 300, True)
    ours, theirs = (next(iter(one.preview([picture_file], True))) for one in (local, engine))
    assert np.array_equal(np.asarray(ours.tiles[0]), np.asarray(theirs.tiles[0]))
    for visitor in ("looks", "somebody else"):  # whose calls go to the other replica as well
        told: list[str] = []
        moved = replace(answered, request=replace(request, visitor=visitor))
        seen = engine.attention(moved, [0, 1], tell=told.append)
        assert [token.weight for token in seen.tokens] == pytest.approx(
            [token.weight for token in local.attention(answered, [0, 1]).tokens], abs=1e-6
        )
        assert engine.occlude(moved, 0).after == pytest.approx(local.occlude(answered, 0).after, abs=1e-6)
    assert type(engine.mask(request)) is type(local.mask(request))
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoppedError):
        engine.attention(answered, [0], stop=stop)


def test_errors_are_those_of_an_engine_in_this_process(engine, registry, tmp_path):
    with pytest.raises(PromptError, match="There is no question"):
        list(engine.stream(asked("  ")))
    with pytest.raises(Gemma3Error, match=r"gone\.png"):
        list(engine.stream(asked(picture=tmp_path / "gone.png")))
    with pytest.raises(UnsupportedOptionError, match="offers no model 'other'"):
        list(registry.stream("other", asked()))
    assert engine.queue.wait_until_empty(1)


def test_a_page_of_another_version_is_told_so(engine, monkeypatch):
    monkeypatch.setattr(engine._fleet, "_version", "older")
    with pytest.raises(UnsupportedOptionError, match="different versions"):
        list(engine.stream(asked()))


def test_a_replica_that_dies_costs_running_answers_a_sentence_and_what_was_not_shown_is_asked_again(engine, registry):
    requests = [asked(f"number {n}", f"visitor {n}", 30) for n in range(8)]
    expected = [done_of(engine.stream(request)).token_ids for request in requests]

    def ask(request: Request) -> tuple[int, ...] | None:
        shown = False
        try:
            for event in engine.stream(request):
                shown = shown or isinstance(event, TokenEvent)
        except ReplicaLostError:
            assert shown, "a question without a token was not asked again"
            return None
        return event.token_ids

    running = begun(engine, long_one("unlucky"))
    before = processes(registry)
    (victim,) = [pid for pid, calls in before.items() if calls]
    with ThreadPoolExecutor(len(requests)) as pool:
        futures = [pool.submit(ask, request) for request in requests]
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(ReplicaLostError, match=r"has failed\. Ask again"):
            list(running)
        for future, ids in zip(futures, expected, strict=True):
            assert future.result(timeout=WITHIN_S) in (ids, None), "somebody got another's answer"
    assert done_of(engine.stream(requests[0])).token_ids == expected[0]
    wait_until(lambda: len(processes(registry)) == 2)
    assert victim not in processes(registry)


def test_the_page_and_programs_ask_replicas_without_knowing_it(engine, registry):
    import httpx

    with served(registry) as url, httpx.Client(base_url=url, timeout=WITHIN_S) as client:
        models = client.get("/v1/models").json()["data"]
        assert [model["id"] for model in models] == list(registry.names)
        message = {"role": "user", "content": "what is it"}
        body = {"model": engine.info.name, "messages": [message], "max_completion_tokens": 12, "temperature": 0}
        answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        assert answer["choices"][0]["message"]["content"] == done_of(engine.stream(asked())).text
        event = client.post("/gradio_api/call/ask", json={"data": [[], "what is it", "", False, None, 12]}).json()
        told = client.get(f"/gradio_api/call/ask/{event['event_id']}").text
        assert "event: complete" in told


def test_two_pages_count_a_visitors_questions_together_and_each_by_itself_while_that_place_is_gone(
    registry, monkeypatch, caplog
):
    assert registry.is_ready  # so Ray is there
    monkeypatch.setattr(shared_ledger, "ANSWERS_WITHIN_S", WITHIN_S)

    def page(most: int) -> FrontDesk:
        ledger = SharedLedger([Allowance("questions", most, HOUR_S)])
        return FrontDesk(registry, Operation(ledger, knows_addresses=True))

    async def read(desk: FrontDesk, address: str) -> None:
        async for _ in desk.astream(Caller("ask", address), None, asked("count", address, 2)):
            pass

    def asks(desk: FrontDesk, address: str = "192.0.2.1") -> bool:
        try:
            asyncio.run(read(desk, address))
        except NotNowError:
            return False
        return True

    one, two = page(2), page(2)
    assert asks(one)
    assert asks(two)
    assert not asks(one)
    assert not asks(two)
    assert asks(one, "192.0.2.2"), "another visitor"
    more = page(3)
    assert asks(more), "what was used stays used, and the latest page's limit holds"
    assert not asks(one)
    assert not [record for record in caplog.records if record.name == shared_ledger.__name__]

    ledger = ray.get_actor(NAME, NAMESPACE)
    ray.kill(ledger)
    with pytest.raises(ray.exceptions.RayActorError):  # it may answer once more
        wait_until(lambda: ray.get(ledger.__ray_ready__.remote(), timeout=WITHIN_S) is None)
    monkeypatch.setattr(shared_ledger, "_AGAIN_S", 600.0)
    assert [asks(one), asks(one), asks(one)] == [True, True, False], "still answered, and still limited"
    assert [asks(two), asks(two), asks(two)] == [True, True, False]
    assert "this page counts by itself" in caplog.text
    monkeypatch.setattr(shared_ledger, "_AGAIN_S", 0.0)
    for desk in (one, two):
        desk._ledger._own_until = 0.0
        wait_until(desk._ledger._found)
    assert [asks(one), asks(two), asks(one), asks(two)] == [True, True, False, False]


def is_alive(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_a_replica_that_hangs_is_ended_within_seconds_and_its_question_answered_elsewhere(engine, registry):
    question = asked("hangs", "hangs")
    expected = done_of(engine.stream(question)).token_ids
    events = begun(engine, long_one("hangs"))  # by the replica that holds the visitor's cache
    (victim,) = [pid for pid, calls in processes(registry).items() if calls]
    events.close()
    wait_until(lambda: not any(processes(registry).values()))
    os.kill(victim, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(lambda: done_of(engine.stream(question)))
            wait_until(lambda: not is_alive(victim))  # in how many seconds on an idle machine: test_options
            assert answer.result(WITHIN_S).token_ids == expected
    finally:
        if is_alive(victim):
            os.kill(victim, signal.SIGKILL)


def test_replacing_the_replicas_loses_nothing_and_the_number_of_the_new_ones_follows_the_answers(registry, options):
    """Two processes share each new one's model. First there is one, with many answers two, and with none one again."""
    engine = registry.first  # while the replica that hung may still be on its way back
    ended, ending = [], threading.Event()
    models = {**options.models, "tensor_parallel": 2}
    quick = {"min_replicas": 1, "max_replicas": 2, "upscale_delay_s": 0.5, "downscale_delay_s": 1.0}
    new = replace(options, models=models, replicas=1, cpus=0.1, **quick)

    def ask(visitor: str) -> None:
        while not ending.is_set():
            ended.append(done_of(engine.stream(asked("all the time", visitor, 24))))
            ending.wait(0.5)  # the processor is for those that start

    def are_new(number: int) -> bool:
        return [told.models for told in registry.fleet.ask_all("describe")] == [models] * number

    def is_new_and_alone() -> bool:
        return are_new(1) and registry.fleet.health.wanted == 1

    with ThreadPoolExecutor(2) as pool:  # too few for a second replica
        futures = [pool.submit(ask, f"visitor {n}") for n in range(2)]
        try:
            serve.run(built(new), name=APPLICATION, route_prefix=None)
            wait_until(is_new_and_alone)
            many = [begun(engine, long_one(f"many {n}")) for n in range(4)]
            wait_until(lambda: are_new(2))
            for events in many:
                events.close()
            written = len(ended)
            wait_until(lambda: len(ended) > written + 4)
        finally:
            ending.set()
        for future in futures:
            future.result(timeout=WITHIN_S)
    assert len({done.token_ids for done in ended}) == 1
    assert {done.stats.stop_reason for done in ended} <= {"stop", "length"}
    wait_until(is_new_and_alone)


def test_a_page_that_is_told_to_end_finishes_its_answers_and_takes_no_further_ones(engine, registry):
    """The last test: the queue stays closed."""
    running = begun(engine, asked("a long answer", "last", 60, reuse=False))
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(registry.drain, WITHIN_S)
        wait_until(lambda: registry.fleet.health.draining)
        assert not registry.fleet.health.ready
        with pytest.raises(QueueFullError, match="about to end"):
            next(engine.stream(asked("too late", "late")))
        assert done_of(running).stats.stop_reason in ("stop", "length")
        assert drained.result()
