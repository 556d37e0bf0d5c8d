"""What crosses between a page and a replica, and a replica that is alone, without Ray."""

import asyncio
import pickle
import threading
import time
from itertools import pairwise

import pytest
from PIL import Image

from gemma3_core.engine import Request, StageEvent, TokenEvent, Turn
from gemma3_core.errors import ContextLengthError, ImageError
from gemma3_core.replicas import wire
from gemma3_core.replicas.options import HEALTH_TIMEOUT_S
from gemma3_core.replicas.replica import STUCK_ELSEWHERE_S, Replica
from gemma3_core.replicas.wire import Failed, Parcel, program_version


@pytest.fixture(scope="module")
def replica(chat_folder):
    return Replica({"model": str(chat_folder), "device": "cpu", "dtype": "float32"})


def test_pictures_cross_as_bytes_and_text_as_text(tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (20, 10), "red").save(path)
    held = Image.new("RGB", (8, 8), "blue")
    turns = (Turn("user", str(path), (path, str(path), held)), Turn("assistant", "yes"), Turn("user", "why"))
    parcel = Parcel(Request(turns, visitor="a"), 512)
    sent = parcel.request()
    first, second, third = sent.turns[0].pictures
    assert first is second
    assert first == path.read_bytes()
    assert third.startswith(b"\x89PNG")
    assert parcel.num_bytes == len(first) + 3 * 64
    assert [turn.text for turn in sent.turns] == [str(path), "yes", "why"]
    assert pickle.loads(pickle.dumps(sent)) == sent


def test_a_request_is_bounded_before_a_file_is_read(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    Image.effect_noise((200, 200), 80).convert("RGB").save(path)
    request = Request((Turn("user", "what", (path,)),))
    parcel = Parcel(request, 512)
    path.unlink()
    with pytest.raises(ImageError):
        parcel.request()
    Image.effect_noise((200, 200), 80).convert("RGB").save(path)
    monkeypatch.setattr(wire, "MAX_SENT_BYTES", 1000)
    with pytest.raises(ContextLengthError, match="MB are sent to the machine that answers"):
        Parcel(request, 512)


async def _read(batches) -> list:
    return [item async for batch in batches for item in batch]


def test_a_replica_calls_nothing_but_the_looks(replica):
    (failed,) = asyncio.run(_read(replica.look(program_version(), "key", "small-model", "close", ())))
    assert isinstance(failed, Failed)
    assert "no method 'close'" in str(failed.error)
    assert replica._models.in_memory


def test_a_device_that_ends_no_pass_is_unhealthy(replica, monkeypatch):
    asyncio.run(replica.check_health())
    ended = threading.Event()
    job = replica._models.first._loop.submit(ended.wait)
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + STUCK_ELSEWHERE_S + 1)
    with pytest.raises(RuntimeError, match="has not ended a pass for 301 s"):
        asyncio.run(replica.check_health())
    ended.set()
    job.result(timeout=60)


def test_a_device_that_can_not_go_on_is_unhealthy(replica, monkeypatch):
    monkeypatch.setattr(replica._models.first._loop, "is_lost", True)
    with pytest.raises(RuntimeError, match="the device can't go on"):
        asyncio.run(replica.check_health())


def test_a_replica_that_is_only_busy_answers_the_check(replica, chat_folder):
    """Threads that never leave the interpreter, a device in the middle of a long pass, and a model that is loaded.

    Counted in this process's own time: beside other test processes the clock counts several times as much.
    """
    ended = threading.Event()

    def spin():
        while not ended.is_set():
            pass

    def work(_emit, stop):
        while not stop.is_set():
            Replica({"model": str(chat_folder), "device": "cpu", "dtype": "float32"})

    async def slowest() -> float:
        async def read():
            async for _ in replica._batches(program_version(), "key", work):
                pass

        reading, waits = asyncio.create_task(read()), []
        for _ in range(15):
            began = time.process_time()
            await asyncio.wait_for(replica.check_health(), 60)
            await asyncio.sleep(0.05)
            waits.append(time.process_time() - began)
        await replica.stop("key")
        await reading
        return max(waits)

    job = replica._models.first._loop.submit(ended.wait)
    threads = [threading.Thread(target=spin) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        assert asyncio.run(slowest()) < HEALTH_TIMEOUT_S
    finally:
        ended.set()
        job.result(timeout=60)
        for thread in threads:
            thread.join()


def test_a_silent_call_sends_beats_and_closing_it_stops_the_work(replica):
    stopped = threading.Event()

    def work(_emit, stop):
        stop.wait(60)
        stopped.set()

    async def one_beat():
        batches = replica._batches(program_version(), "key", work)
        assert await anext(batches) == []
        assert replica._stops
        await batches.aclose()

    asyncio.run(one_beat())
    assert stopped.wait(60)
    assert not replica._stops


def test_a_call_ends_quietly_where_the_replicas_loop_has_ended(replica, monkeypatch):
    monkeypatch.setattr("gemma3_core.replicas.replica.BEAT_S", 0.01)
    raised, loop_ended, threads = [], threading.Event(), []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    def work(emit, _stop):
        threads.append(threading.current_thread())
        assert loop_ended.wait(60)
        emit(TokenEvent("a"))

    async def begin():
        batches = replica._batches(program_version(), "key", work)
        while not threads:
            assert await anext(batches) == []

    asyncio.run(begin())
    loop_ended.set()
    threads[0].join(60)
    assert not threads[0].is_alive()
    assert not raised


def test_the_first_token_and_the_end_go_out_at_once_and_tokens_between_them_together(replica, monkeypatch):
    monkeypatch.setattr("gemma3_core.replicas.replica.PACE_S", 30.0)
    tokens, first_came, pauses = [TokenEvent(text) for text in "abcdef"], threading.Event(), []

    def work(emit, _stop):
        emit(StageEvent("reading", "Reading 90 tokens"))
        emit(tokens[0])
        assert first_came.wait(60)
        for token in tokens[1:]:
            emit(token)

    async def batches():
        found = []
        async for batch in replica._batches(program_version(), "key", work):
            pauses.append(time.monotonic())
            found.append(batch)
            if tokens[0] in batch:
                first_came.set()
        return found

    *_, last = found = asyncio.run(batches())
    assert [item for batch in found for item in batch][1:] == tokens
    assert last == tokens[1:]
    assert max(after - before for before, after in pairwise(pauses)) < 15


def test_tokens_that_arrive_while_others_go_out_are_neither_lost_nor_waited_for(replica, monkeypatch):
    monkeypatch.setattr("gemma3_core.replicas.replica.PACE_S", 0.0)
    tokens = [TokenEvent(str(number)) for number in range(20_000)]

    def work(emit, _stop):
        for token in tokens:
            emit(token)

    assert asyncio.run(_read(replica._batches(program_version(), "key", work))) == tokens
