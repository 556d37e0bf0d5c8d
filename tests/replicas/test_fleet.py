"""Calls that hang or break, as a page in front sees them, without a Ray that runs."""

import asyncio
import threading
import time
from contextlib import aclosing, contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install -r requirements/ray.txt)")

from window import DEMO

from components.serving.callers import Caller
from components.serving.desk import FrontDesk, Operation
from gemma3_core.engine import DoneEvent, ModelRegistry, Request, StageEvent, TokenEvent, Turn
from gemma3_core.replicas import fleet as fleets
from gemma3_core.replicas.fleet import Call, Fleet, Gone
from gemma3_core.replicas.remote import RemoteEngine


@contextmanager
def calls(monkeypatch, answers):
    """A fleet whose calls give what the asynchronous generator `answers` yields."""
    monkeypatch.setattr(fleets, "DeploymentResponseGenerator", object)

    class Handle:
        def remote(self, *_arguments):
            class Answers:
                def __aiter__(self):
                    return answers()

                def cancel(self):
                    pass

            return Answers()

        def options(self, **_options):
            return self

        def broadcast(self, *_arguments):
            raise TimeoutError

        def shutdown(self):
            pass

    counted = [(2, 2)]

    def count():
        if isinstance(counted[0], Exception):
            raise counted[0]
        return counted[0]

    fleet = Fleet(Handle(), 4, count)
    fleet.counted = counted
    try:
        yield fleet
    finally:
        fleet.close()


def test_where_the_application_is_gone_no_replica_runs_and_counting_goes_on(monkeypatch, caplog):
    from ray import serve

    from gemma3_core.replicas.start import replica_count

    async def nothing():
        yield []

    def becomes(told):
        deadline = time.monotonic() + 20
        while not told() and time.monotonic() < deadline:
            time.sleep(0.02)
        return told()

    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={}))
    assert replica_count() == (0, 0)
    monkeypatch.setattr(fleets, "_COUNTED_EACH_S", 0.01)
    with calls(monkeypatch, nothing) as fleet:
        assert fleet.health.ready
        fleet.counted[0] = KeyError("what nobody thought of")
        assert becomes(lambda: "counting the replicas failed" in caplog.text)
        fleet.counted[0] = (0, 0)
        assert becomes(lambda: not fleet.health.ready)


def test_more_replicas_than_fit_are_refused_and_not_waited_for(monkeypatch):
    import ray

    from gemma3_core.errors import UnsupportedOptionError
    from gemma3_core.replicas.options import ReplicaOptions
    from gemma3_core.replicas.start import _check_room

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    options = ReplicaOptions({"device": "cuda"}, 2)
    with pytest.raises(UnsupportedOptionError, match="2 replicas take 2 GPUs, and there are 1"):
        _check_room(options.settled(has_gpus=True, cores=8))
    _check_room(ReplicaOptions({"device": "cuda"}, 1).settled(has_gpus=True, cores=8))


def test_a_replica_that_is_silent_is_given_up(monkeypatch):
    async def silent():
        yield ["first"]
        await asyncio.sleep(600)

    monkeypatch.setattr(fleets, "SILENT_S", 2.0)
    with calls(monkeypatch, silent) as fleet:
        call = fleet.start("stream", "key", "model")
        assert isinstance(call, Call)
        batches = call.batches()
        assert next(filter(None, batches)) == ["first"]
        with pytest.raises(Gone, match="silent"):
            list(batches)
        call.close()


def test_a_broken_connection_is_a_lost_replica_and_a_bug_is_a_bug(monkeypatch):
    from ray.exceptions import ActorDiedError

    async def died():
        yield []
        raise ActorDiedError

    async def broken():
        yield []
        raise KeyError("a bug")

    with calls(monkeypatch, died) as fleet, pytest.raises(Gone, match="ActorDiedError"):
        list(fleet.start("stream", "key", "model").batches())
    with calls(monkeypatch, broken) as fleet, pytest.raises(KeyError):
        list(fleet.start("stream", "key", "model").batches())


def test_stop_ends_an_answer_whose_replica_hangs(monkeypatch):
    from gemma3_core.replicas import remote

    async def hangs():
        yield [StageEvent("reading", "Reading"), TokenEvent("So far")]
        await asyncio.sleep(600)

    monkeypatch.setattr(remote, "_STOPS_WITHIN_S", 0.3)
    stop = threading.Event()
    with calls(monkeypatch, hangs) as fleet:
        engine = RemoteEngine(fleet, SimpleNamespace(name="model", context_length=512))
        for event in engine.stream(Request((Turn("user", "what"),)), stop):
            if isinstance(event, TokenEvent):
                stop.set()
        assert isinstance(event, DoneEvent)
        assert (event.text, event.stats.stop_reason) == ("So far", "cancelled")
        assert fleet.queue.wait_until_empty(1)


def test_a_visitor_who_leaves_ends_an_answer_whose_replica_hangs(monkeypatch):
    from gemma3_core.replicas import remote

    async def hangs():
        yield [StageEvent("reading", "Reading"), TokenEvent("So far")]
        await asyncio.sleep(600)

    async def leave():
        async with aclosing(desk.astream(Caller("ask", "192.0.2.1"), None, Request((Turn("user", "what"),)))) as events:
            async for event in events:
                if isinstance(event, TokenEvent):
                    return

    monkeypatch.setattr(remote, "_STOPS_WITHIN_S", 0.3)
    with calls(monkeypatch, hangs) as fleet:
        engine = RemoteEngine(fleet, replace(DEMO, name="model"))
        desk = FrontDesk(ModelRegistry(engine), Operation())
        asyncio.run(leave())
        assert fleet.queue.wait_until_empty(5)


def test_the_queue_grows_with_the_replicas_and_stays_while_the_head_node_is_away(monkeypatch):
    async def nothing():
        yield []

    with calls(monkeypatch, nothing) as fleet:
        assert fleet.queue.max_running == 8
        fleet.counted[0] = (3, 3)
        fleet._look_around()
        assert fleet.queue.max_running == 12
        fleet.counted[0] = TimeoutError()
        fleet._look_around()
        assert fleet.health.running == 3
        assert not fleet.health.reached
        assert fleet.health.ready
        fleet.counted[0] = (3, 0)
        fleet._look_around()
        assert not fleet.health.ready
