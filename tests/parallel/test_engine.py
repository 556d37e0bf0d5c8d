"""An engine whose model two processes share, over gloo: it answers as one that has the whole model."""

import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from types import SimpleNamespace

import pytest
import torch

from gemma3_core.engine import Answered, DoneEvent, Engine, ModelRegistry, Request, StoppedError, TokenEvent, Turn
from gemma3_core.errors import CheckpointError, ReplicaLostError, UnsupportedOptionError
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.nn.cache import KVCache
from gemma3_core.parallel import passes, processes
from gemma3_core.parallel.passes import PROCESS_LOST, Exchange, Follower, Pass
from gemma3_core.parallel.processes import LocalProcesses, Seat
from gemma3_core.replicas.replica import Replica

WITHIN_S = 120


@pytest.fixture(scope="module")
def local(chat_folder):
    return Engine.load(chat_folder, device="cpu", dtype="float32")


class Started(LocalProcesses):
    """Remembers the process that it started."""

    process: subprocess.Popen[bytes]

    def __call__(self, seat):
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("GEMMA_CPU_KERNELS", "0")  # which it would build
            self.process = super().__call__(seat)
        return self.process


@pytest.fixture(scope="module")
def started():
    cpu_kernels.library()  # this process keeps its own
    return Started()


@pytest.fixture(scope="module")
def shared(chat_folder, started):
    engine = Engine.load(chat_folder, "cpu", "float32", tensor_parallel=2, start=started)
    yield engine
    was_killed = started.process.poll() is not None
    engine.close()
    assert started.process.wait(WITHIN_S) == 0 or was_killed, "a follower ends with its leader"


def asked(text: str, visitor: str = "a", longest: int = 12, picture=None, **more) -> Request:
    turn = Turn("user", text, () if picture is None else (picture,))
    return Request((turn,), visitor=visitor, max_new_tokens=longest, **more)


def done_of(events) -> DoneEvent:
    *_, last = events
    assert isinstance(last, DoneEvent)
    return last


@torch.inference_mode()
def test_two_processes_are_as_near_to_the_exact_logits_as_one_and_hold_half_of_the_layers_each(
    shared, local, chat_folder
):
    ids = torch.arange(3, 43)[None]
    exact = Gemma3ForConditionalGeneration.from_pretrained(chat_folder).double()(input_ids=ids).logits
    ours, theirs = ((engine._model(input_ids=ids).logits - exact).abs().max() for engine in (shared, local))
    assert ours <= 2 * theirs
    halves, wholes = (
        [w for name, w in engine._model.decoder.layers.named_parameters() if name.endswith("_proj.weight")]
        for engine in (shared, local)
    )
    assert [2 * half.numel() for half in halves] == [whole.numel() for whole in wholes]
    assert shared.info.num_parameters == local.info.num_parameters


def test_it_answers_as_an_engine_with_the_whole_model_also_several_at_once_and_from_kept_caches(
    shared, local, gradient_picture
):
    assert shared.info == replace(local.info, int4=shared.info.int4)
    requests = [asked(f"number {n}", f"visitor {n}", 12, gradient_picture if n % 2 else None) for n in range(4)]
    expected = [done_of(local.stream(request)) for request in requests]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda request: done_of(shared.stream(request)), requests))
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    cut = done_of(shared.stream(replace(requests[1], visitor="cut", max_new_tokens=5)))
    more = {"visitor": "cut", "answer_so_far": cut.token_ids, "max_new_tokens": 7}
    going_on = done_of(shared.stream(replace(requests[1], **more)))
    assert going_on.token_ids == expected[1].token_ids
    assert going_on.stats.reused_tokens >= going_on.stats.prompt_tokens - 1


def test_a_stop_ends_one_answer_and_others_go_on(shared, local):
    stop, request = threading.Event(), asked("a long answer", "b", 60)
    events = shared.stream(asked("a long answer", "stops", 400, reuse=False), stop)
    next(event for event in events if isinstance(event, TokenEvent))
    other = shared.stream(request)
    next(event for event in other if isinstance(event, TokenEvent))
    stop.set()
    assert done_of(events).stats.stop_reason == "cancelled"
    assert done_of(other).token_ids == done_of(local.stream(request)).token_ids


def test_a_look_reads_the_heads_of_all_processes_and_lets_answers_pass(shared, local, gradient_picture):
    request = asked("what is it", "looks", 6, gradient_picture)
    answered = Answered(request, done_of(shared.stream(request)))
    expected = [token.weight for token in local.attention(answered, [0, 1]).tokens]
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(lambda: done_of(shared.stream(asked("beside", "other", 40))))
        seen = [token.weight for token in shared.attention(answered, [0, 1]).tokens]
        assert beside.result(WITHIN_S).token_ids == done_of(local.stream(asked("beside", "other", 40))).token_ids
    assert seen == pytest.approx(expected, abs=1e-5)
    assert shared.occlude(answered, 0).after == pytest.approx(local.occlude(answered, 0).after, abs=1e-5)
    ours, theirs = (engine.why(answered, [0]) for engine in (shared, local))
    rests, expected_rests = (why.rests_on for why in (ours, theirs))
    assert (rests.seen, rests.unseen) == pytest.approx((expected_rests.seen, expected_rests.unseen), abs=1e-5)
    assert [said.probability for said in ours.said] == pytest.approx(
        [said.probability for said in theirs.said], abs=1e-5
    )
    looks = iter(range(1000))
    stop = threading.Event()
    stop.is_set = lambda: next(looks) > 5  # within a layer
    with pytest.raises(StoppedError):
        shared.attention(answered, [0], stop=stop)
    assert done_of(shared.stream(replace(request, reuse=False))).token_ids == answered.done.token_ids


def test_a_pass_without_memory_in_one_process_fails_in_all_and_is_tried_again(shared, local, monkeypatch):
    layer = shared._model.decoder.layers[1].mlp.gate_proj
    failures, forward = iter([torch.OutOfMemoryError("too much")]), layer.forward

    def fails_once(x):
        for error in failures:
            raise error
        return forward(x)

    monkeypatch.setattr(layer, "forward", fails_once)
    request = asked("no memory", "c", reuse=False)
    assert done_of(shared.stream(request)).token_ids == done_of(local.stream(request)).token_ids
    assert next(failures, None) is None


def test_the_followers_drop_what_the_leader_drops(shared):
    lead = shared._precisions.lead
    for visitor in ("looks", "a", "b", "other", "cut", *(f"visitor {n}" for n in range(4))):
        shared.forget(visitor)
    done_of(shared.stream(asked("nothing is kept", "d", 2, reuse=False)))
    assert len(lead._numbers) <= 1
    assert len(lead._dropped) <= 1, "the others were told of"


def test_the_followers_give_back_the_room_that_the_leader_gives_back(shared, monkeypatch):
    lead, told = shared._precisions.lead, []
    say = lead._say
    monkeypatch.setattr(lead, "_say", lambda message: [told.append(message), say(message)])
    done_of(shared.stream(asked("a short answer", "reserves", 400)))
    (entry,) = [entry for key, entry in shared._writer.kept._kept.items() if key[1] == "reserves"]
    number = lead._numbers[entry.kept.cache]
    assert not any(message.trimmed for message in told)
    done_of(shared.stream(asked("nothing is kept", "d", 2, reuse=False)))
    assert [message.trimmed for message in told if message.trimmed] == [(number,)]
    shared.forget("reserves")


@torch.inference_mode()
def test_a_follower_trims_what_it_is_told(local, monkeypatch):
    decoder = local._model.decoder
    follower, cache = Follower(decoder, Exchange(), None, torch.device("cpu")), KVCache(decoder.config, reserve=4000)
    decoder(torch.arange(3, 43)[None], past_key_values=cache)
    follower._caches[7], reserved = cache, cache.num_bytes
    monkeypatch.setattr(passes, "_broadcast", lambda _x: None)
    monkeypatch.setattr(Exchange, "run", lambda *_: None)
    told = Pass((1, 1, decoder.config.hidden_size), torch.float32, (), False, {}, False, (), trimmed=(7, 8))
    follower._pass(told)
    assert cache.num_bytes < reserved / 2
    assert cache.length == 40


def test_once_a_process_has_ended_a_sentence_says_so_and_no_question_is_taken(shared, started, monkeypatch):
    """The last test of these processes."""
    import asyncio

    registry = ModelRegistry(shared)
    monkeypatch.setattr(ModelRegistry, "load", lambda **_: registry)
    replica = Replica({})
    assert registry.is_ready
    asyncio.run(replica.check_health())
    events = shared.stream(asked("a long answer", "e", 400, reuse=False))
    next(event for event in events if isinstance(event, TokenEvent))
    started.process.kill()
    with pytest.raises(ReplicaLostError, match="A part of this model is gone"):
        list(events)
    assert not registry.is_ready
    with pytest.raises(ReplicaLostError, match="A part of this model is gone"):
        list(shared.stream(asked("one more")))
    with pytest.raises(RuntimeError, match="A part of this model"):
        asyncio.run(replica.check_health())
    started.process.wait(WITHIN_S)


def test_what_cannot_be_shared_is_refused_before_a_process_starts(chat_folder, text_chat_folder, monkeypatch):
    class Nothing(LocalProcesses):
        def __call__(self, _seat):
            raise AssertionError("a process was started")

    monkeypatch.setattr(processes.distributed, "is_initialized", lambda: False)
    load = {"device": "cpu", "dtype": "float32", "start": Nothing()}
    with pytest.raises(UnsupportedOptionError, match="can't be shared out evenly over 3 devices"):
        Engine.load(chat_folder, tensor_parallel=3, **load)
    with pytest.raises(UnsupportedOptionError, match="in full precision only"):
        Engine.load(chat_folder, int4=True, tensor_parallel=2, **load)
    with pytest.raises(UnsupportedOptionError, match="Leave out --also and --adapter"):
        ModelRegistry.load(chat_folder, [str(text_chat_folder)], tensor_parallel=2, **load)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UnsupportedOptionError, match="takes 2 GPUs, and there are 1"):
        LocalProcesses().check(2, "cuda")


def test_a_process_that_ends_before_it_has_come_is_not_waited_for(chat_folder, monkeypatch):
    class Ends(LocalProcesses):
        def __call__(self, _seat):
            return subprocess.Popen(["true"])

    monkeypatch.setattr(processes.distributed, "is_initialized", lambda: False)
    with pytest.raises(CheckpointError, match="0 of 1 further processes"):
        Engine.load(chat_folder, "cpu", "float32", tensor_parallel=2, start=Ends())


def test_each_process_sees_a_gpu_of_its_own(monkeypatch):
    started = []
    monkeypatch.setattr(
        processes.subprocess, "Popen", lambda *_, env, **__: started.append(env) or SimpleNamespace(stdin=BytesIO())
    )
    seat = Seat(1, 2, ("127.0.0.1", 1), b"key", "store", ("model", None), "auto", "cuda", 1, None)
    for visible in (None, "4,5"):
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        else:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        LocalProcesses()(seat)
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in started] == ["1", "5"]


def test_what_a_visitor_may_be_told_is_said_in_german_too():
    import json

    from places import REPOSITORY

    words = json.loads((REPOSITORY / "assets" / "words" / "de.json").read_text(encoding="utf-8"))
    assert PROCESS_LOST in words
