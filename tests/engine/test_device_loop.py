"""Answers that are decoded together: each as if alone, whatever comes and goes beside it."""

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from gemma3_core.engine import (
    DoneEvent,
    Engine,
    Request,
    SamplingSettings,
    StageEvent,
    TokenEvent,
    Turn,
    device_loop,
    slot_runner,
)
from gemma3_core.engine import answer as answer_module
from gemma3_core.engine.device_loop import DeviceLoop
from gemma3_core.engine.slot_runner import SlotRunner
from gemma3_core.generation.fused_decoder import why_not_fused
from gemma3_core.generation.loop import DecodePass, decode_together, prefill
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.nn.cache import KVCache

PATIENCE_S = 60


@pytest.fixture(scope="module")
def engine(chat_folder) -> Engine:
    return Engine.load(chat_folder, device="cpu", int4_group_size=32)


@pytest.fixture(params=["plainly", "in slots"])
def batches(request, engine, monkeypatch):
    """How many answers each decode step served: decoded as on a CPU, and in slots, as on CUDA."""
    sizes, together, in_slots = [], device_loop.decode_together, SlotRunner.decode
    monkeypatch.setattr(device_loop, "decode_together", lambda steps: sizes.append(len(steps)) or together(steps))
    if request.param == "in slots":
        monkeypatch.setattr(SlotRunner, "decode", lambda self, steps: sizes.append(len(steps)) or in_slots(self, steps))
        # The int4 layers of this checkpoint are too small to be fused.
        runner = lambda model, *given: None if why_not_fused(model) else SlotRunner(model, *given[:2], True, given[2])  # noqa: E731
        monkeypatch.setattr(SlotRunner, "for_model", runner)
        monkeypatch.setattr(engine._writer, "_slots", {})
        monkeypatch.setattr(slot_runner, "new_pool", object)
        monkeypatch.setattr(slot_runner, "captured", launched_again)
    return sizes


def launched_again(run, _pool):
    """In place of a CUDA graph: as there, nothing is computed by the capture."""
    return run


def picture(seed: int) -> Image.Image:
    noise = torch.randint(0, 256, (80, 90, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def random_request(chance: random.Random, number: int) -> Request:
    """Lengths beyond the window too, pictures, and settings of every kind."""
    words = " ".join(chance.choice(["what", "is", "a", "color", "and", "this"]) for _ in range(chance.randrange(1, 60)))
    pictures = tuple(picture(chance.randrange(9)) for _ in range(chance.choice([0, 0, 1, 2])))
    sampled = SamplingSettings(temperature=1.0, top_k=chance.choice([0, 5, 64]), seed=number)
    return Request(
        turns=(Turn("user", words, pictures),),
        max_new_tokens=chance.randrange(3, 40),
        sampling=chance.choice([None, None, sampled]),
        int4=chance.random() < 0.3,
        confidence=chance.random() < 0.5,
        visitor=f"visitor {number}",
    )


@contextmanager
def held(loop: DeviceLoop) -> Iterator[None]:
    """Keeps the loop from its answers."""
    begun, go_on = threading.Event(), threading.Event()
    job = loop.submit(lambda: begun.set() or go_on.wait(PATIENCE_S))
    assert begun.wait(PATIENCE_S)
    try:
        yield
    finally:
        go_on.set()
        job.result(PATIENCE_S)


def wait_until_arrived(engine: Engine, number: int) -> None:
    """Waits until so many answers have come to the loop, which is held."""
    end = time.monotonic() + PATIENCE_S
    while len(engine._loop._arrived) < number:
        assert time.monotonic() < end
        time.sleep(0.001)


def answer(engine: Engine, request: Request) -> DoneEvent:
    *_, last = engine.stream(request)
    assert isinstance(last, DoneEvent)
    return last


@pytest.mark.parametrize("seed", range(4))
def test_random_arrivals_stops_and_departures_leave_every_answer_as_if_alone(engine, batches, seed):
    chance = random.Random(seed)
    requests = [random_request(chance, seed * 100 + number) for number in range(14)]
    alone = [answer(engine, replace(request, visitor="alone", reuse=False)) for request in requests]
    assert set(batches) <= {1}
    batches.clear()
    fates = [chance.choice(["ends", "ends", "stops", "leaves"]) for _ in requests]
    delays = [chance.random() * 0.2 for _ in requests]

    def one(number: int) -> None:
        time.sleep(delays[number])
        stop, tokens, done = threading.Event(), 0, None
        cut = number % 5 + 1
        events = engine.stream(requests[number], stop)
        for event in events:
            tokens += isinstance(event, TokenEvent)
            done = event if isinstance(event, DoneEvent) else None
            if fates[number] == "leaves" and tokens == cut:
                events.close()
                return
            if fates[number] == "stops" and tokens == cut:
                stop.set()
        expected = alone[number]
        assert done is not None
        if fates[number] == "stops" and done.stats.stop_reason == "cancelled":
            assert done.token_ids == expected.token_ids[: len(done.token_ids)]
        else:
            assert (done.token_ids, done.text) == (expected.token_ids, expected.text)

    with ThreadPoolExecutor(len(requests)) as threads:
        with held(engine._loop):
            all_done = [threads.submit(one, number) for number in range(len(requests))]
            wait_until_arrived(engine, 5)
        for done in all_done:
            done.result(PATIENCE_S)
    assert max(batches) > 2, "nothing was decoded together"
    assert max(batches) <= engine.queue.max_running
    assert not engine.queue._running
    assert not engine.queue._waiting


ROUNDED = 2e-2  # as for int4's kernels: bfloat16 keeps 8 bits


@pytest.mark.parametrize("own_kernels", [True, False])
@pytest.mark.parametrize("int4", [False, True])
@torch.inference_mode()
def test_in_bfloat16_and_int4_rows_decoded_together_differ_by_rounding_alone(
    chat_folder, monkeypatch, int4, own_kernels
):
    """Logits of the same tokens. So the best token is the same wherever the two best lie further apart than that."""
    if not own_kernels:
        monkeypatch.setattr(cpu_kernels, "library_for", lambda *_: None)
    model = Gemma3ForConditionalGeneration.from_pretrained(
        chat_folder, dtype="bfloat16", quantization_config=TorchAoConfig(32) if int4 else None
    )
    numbers = torch.Generator().manual_seed(0)
    caches: dict[str, list[KVCache]] = {"alone": [], "together": []}
    for length in (3, 17, 40, 64, 90):
        prompt = torch.randint(4, model.text_config.vocab_size - 4, (1, length), generator=numbers)
        for rows in caches.values():
            rows.append(KVCache(model.text_config))
            prefill(model, rows[-1], input_ids=prompt)
    for _ in range(20):
        tokens = torch.randint(4, model.text_config.vocab_size - 4, (5,), generator=numbers)
        passes = {
            name: [DecodePass(model, cache, token) for cache, token in zip(rows, tokens.split(1), strict=True)]
            for name, rows in caches.items()
        }
        for alone in passes["alone"]:
            decode_together([alone])
        decode_together(passes["together"])
        for alone, together in zip(*passes.values(), strict=True):
            assert alone.logits is not None
            assert together.logits is not None
            expected, got = alone.logits.float(), together.logits.float()
            assert (got - expected).abs().max() <= ROUNDED * expected.abs().max()


def test_a_newcomers_long_prompt_does_not_hold_up_those_who_are_being_answered(engine, monkeypatch):
    """Seen where the loop runs them: their readers may be told of it in another order."""
    monkeypatch.setattr("gemma3_core.engine.answer._PREFILL_CHUNK_SIZE_ON_CPU", 16)
    running = Request((Turn("user", "what is this"),), max_new_tokens=200, visitor="first", sampling=SAMPLED)
    newcomer = Request((Turn("user", "color " * 50),), max_new_tokens=2, visitor="second")
    log: list[device_loop._Task] = []
    advance = device_loop._Task.advance
    monkeypatch.setattr(device_loop._Task, "advance", lambda task: log.append(task) or advance(task))

    with ThreadPoolExecutor(2) as threads:
        with held(engine._loop):
            answers = []
            for request in (running, newcomer):
                answers.append(threads.submit(answer, engine, request))
                wait_until_arrived(engine, len(answers))
        for one in answers:
            one.result(PATIENCE_S)
    first, second = dict.fromkeys(log)
    begins, ends = log.index(second), len(log) - 1 - log[::-1].index(second)
    during = log[begins:ends]
    assert during.count(second) > 8
    assert during.count(first) >= during.count(second) - 2


SAMPLED = SamplingSettings(temperature=1.5, top_k=0, top_p=1.0, seed=3)


def three_of_their_own(engine: Engine) -> tuple[list[Request], list[tuple[int, ...]]]:
    """Requests of three visitors, and the tokens that answer each alone."""
    requests = [
        Request((Turn("user", "what " * (3 + number)),), max_new_tokens=40, visitor=str(number), sampling=SAMPLED)
        for number in range(3)
    ]
    return requests, [answer(engine, replace(request, reuse=False)).token_ids for request in requests]


def test_an_answer_that_fails_ends_no_other(engine, monkeypatch):
    together = device_loop.decode_together
    broken: list[DecodePass] = []

    def failing(passes):
        if not broken and len(passes) == 3:
            broken.append(passes[1])
        if broken and any(one.cache is broken[0].cache for one in passes):
            raise RuntimeError("broken")
        together(passes)

    requests, alone = three_of_their_own(engine)
    monkeypatch.setattr(device_loop, "decode_together", failing)
    with ThreadPoolExecutor(3) as threads:
        with held(engine._loop):
            answers = [threads.submit(answer, engine, request) for request in requests]
            wait_until_arrived(engine, 3)
        errors = [one.exception(PATIENCE_S) for one in answers]
    assert sorted(str(error) for error in errors if error is not None) == ["broken"]
    assert [
        one.result().token_ids == expected
        for one, expected, error in zip(answers, alone, errors, strict=True)
        if error is None
    ] == [True, True]
    monkeypatch.undo()
    assert answer(engine, requests[0]).token_ids == alone[0]


@pytest.mark.parametrize("where", ["lm_head", "a layer"])
def test_a_step_that_fails_for_all_is_done_again_for_each(engine, monkeypatch, where):
    """Whether the pass fails before or after the caches have counted the token."""
    model = engine._model
    failing = model.lm_head if where == "lm_head" else model.decoder.layers[2].mlp
    forward, failed = failing.forward, []

    def once(x):
        if x.shape[0] == 3 and len(failed) < 5:
            failed.append(x)
            raise RuntimeError("too much for one pass")
        return forward(x)

    requests, alone = three_of_their_own(engine)
    monkeypatch.setattr(failing, "forward", once)
    with ThreadPoolExecutor(3) as threads:
        with held(engine._loop):
            answers = [threads.submit(answer, engine, request) for request in requests]
            wait_until_arrived(engine, 3)
        assert [one.result(PATIENCE_S).token_ids for one in answers] == alone
    assert len(failed) == 5


def test_after_an_error_nothing_is_kept_for_the_next_question(engine, monkeypatch):
    def failing(_):
        raise RuntimeError("broken")

    request = Request((Turn("user", "what is this"),), max_new_tokens=5, visitor="unlucky")
    engine.forget("unlucky")
    kept = len(engine._writer.kept)
    monkeypatch.setattr(device_loop, "decode_together", failing)
    with pytest.raises(RuntimeError, match="broken"):
        answer(engine, request)
    assert len(engine._writer.kept) == kept


@pytest.mark.parametrize("is_dead", [True, False])
def test_a_device_that_is_dead_after_an_error_is_told(engine, monkeypatch, caplog, is_dead):
    """A dead one raises again at each call; after other errors it goes on."""
    fault, waited = torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), []

    def failing(_):
        raise fault

    def synchronize(device):
        waited.append(device)
        if is_dead:
            raise fault

    own = Engine(engine._precisions, engine._processor, "of its own loop")
    monkeypatch.setattr(device_loop, "decode_together", failing)
    monkeypatch.setattr(torch.accelerator, "synchronize", synchronize)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        answer(own, Request((Turn("user", "what is this"),), max_new_tokens=5))
    assert waited == [own._model.device]
    assert (own.is_ready, "device can't go on" in caplog.text) == (not is_dead, is_dead)


def test_a_long_prompt_lets_others_pass():
    loop, order = DeviceLoop(), []

    def passes(name: str, prompts: int):
        for _ in range(prompts):
            yield StageEvent("reading", name)
            order.append(name)

    with ThreadPoolExecutor(2) as threads:
        with held(loop):
            answers = []
            for name, prompts in (("long", 20), ("short", 2)):
                answers.append(threads.submit(list, loop.run(passes(name, prompts))))
                while len(loop._arrived) < len(answers):
                    time.sleep(0.001)
        assert [len(one.result(PATIENCE_S)) for one in answers] == [20, 2]
    assert order.index("short") <= 2 * device_loop._PASSES_IN_A_ROW


def test_jobs_run_one_after_another_and_answers_go_on_where_they_give_way():
    loop, order = DeviceLoop(), []

    def job(name: str) -> str:
        for _ in range(3):
            order.append(name)
            loop.give_way()
        return threading.current_thread().name

    def passes():
        for _ in range(100):
            order.append(".")
            yield StageEvent("reading", "Reading")

    with ThreadPoolExecutor(1) as threads:
        with held(loop):
            answer = threads.submit(list, loop.run(passes()))
            while not loop._arrived:
                time.sleep(0.001)
            jobs = [loop.submit(partial(job, name)) for name in "ab"]
        assert [each.result(PATIENCE_S) for each in jobs] == ["device", "device"]
        assert len(answer.result(PATIENCE_S)) == 100
    assert "".join(order).strip(".") == "a.a.a..b.b.b"


@pytest.mark.parametrize("batches", ["in slots"], indirect=True)
def test_slots_that_are_made_during_a_look_serve_the_answers_after_it(engine, batches):
    request = Request((Turn("user", "what is this"),), max_new_tokens=40, visitor="early", reuse=False)

    def look():
        """Reads in inference mode, as each look does, until the answer beside it has a slot."""
        end = time.monotonic() + PATIENCE_S
        with torch.inference_mode():
            while not batches and time.monotonic() < end:
                engine._loop.give_way()

    with ThreadPoolExecutor(1) as threads:
        looking = engine._loop.submit(look)
        beside = threads.submit(answer, engine, request)
        looking.result(PATIENCE_S)
        assert batches
        assert beside.result(PATIENCE_S).token_ids == answer(engine, request).token_ids


def test_work_in_the_background_is_done_a_step_at_a_time_between_rounds(caplog):
    loop, order = DeviceLoop(), []

    def passes():
        for _ in range(8):
            order.append(".")
            yield StageEvent("reading", "Reading")

    def work(name: str, steps: int):
        for _ in range(steps):
            order.append(name)
            yield
        raise RuntimeError(f"{name} is broken")

    with ThreadPoolExecutor(1) as threads:
        with held(loop):
            answer = threads.submit(list, loop.run(passes()))
            while not loop._arrived:
                time.sleep(0.001)
            loop.in_background(work("a", 3))
            loop.in_background(work("b", 2))
        assert len(answer.result(PATIENCE_S)) == 8
    assert "".join(order) == ".a.a.a..b.b.."
    assert "a is broken" in caplog.text
    loop.in_background(work("c", 4))  # nobody asks
    loop.submit(lambda: None).result(PATIENCE_S)
    while loop._thread is not None:
        time.sleep(0.001)
    assert order[-4:] == ["c"] * 4


def test_decode_steps_are_captured_while_an_answer_is_written(engine, monkeypatch, caplog):
    """It goes on between any two of them, and its tokens are what they are without."""
    caplog.set_level("INFO", "gemma3_core.engine")

    def replayed(run):
        order.append("replayed")
        return run()

    request = Request((Turn("user", "what is this"),), max_new_tokens=40, visitor="early", reuse=False)
    alone, order = answer(engine, request), []
    monkeypatch.setattr(slot_runner, "new_pool", object)
    monkeypatch.setattr(slot_runner, "captured", lambda run, _pool: order.append("captured") or partial(replayed, run))
    fused = lambda model, *given: SlotRunner(model, *given[:2], True, given[2])  # noqa: E731
    monkeypatch.setattr(SlotRunner, "for_model", fused)
    monkeypatch.setattr(answer_module, "has_slots", lambda _device: True)
    decode = SlotRunner.decode
    monkeypatch.setattr(SlotRunner, "decode", lambda self, steps: order.append("token") or decode(self, steps))
    other = Engine(engine._precisions, engine._processor, "warm", at_once=6)
    assert answer(other, request).token_ids == alone.token_ids
    while other._loop._thread is not None:
        time.sleep(0.001)
    captured = [place for place, what in enumerate(order) if what == "captured"]
    assert len(captured) == 4  # of 1, 2, 4 and 6 rows
    assert "captured captured" not in " ".join(order[order.index("token") :])
    assert [record.getMessage() for record in caplog.records] == [
        f"Decode steps of answers up to 1,024 tokens: {number} of 4 captured." for number in range(1, 5)
    ]
    order.clear()
    assert answer(other, request).token_ids == alone.token_ids
    assert order.count("replayed") > 30
    assert "launched" not in order


def test_a_job_that_is_given_up_before_it_begins_does_not_run():
    loop, ran = DeviceLoop(), []
    with held(loop):
        given_up, other = loop.submit(lambda: ran.append(1)), loop.submit(lambda: ran.append(2))
        assert given_up.cancel()
    other.result(PATIENCE_S)
    assert ran == [2]


def test_the_loops_thread_ends_with_the_last_answer(engine):
    answer(engine, Request((Turn("user", "what"),), max_new_tokens=3))
    for _ in range(1000):
        if not any(thread.name == "device" for thread in threading.enumerate()):
            return
        time.sleep(0.01)
    raise AssertionError("the thread goes on")


def test_what_a_pass_raises_reaches_the_reader_and_the_loop_goes_on():
    def passes(error: Exception | None):
        yield StageEvent("reading", "Reading")
        if error is not None:
            raise error
        yield TokenEvent("x")

    loop = DeviceLoop()
    with pytest.raises(ValueError, match="mine"):
        list(loop.run(passes(ValueError("mine"))))
    assert [type(event) for event in loop.run(passes(None))] == [StageEvent, TokenEvent]


def test_a_thread_that_can_not_start_holds_nobody_up(monkeypatch):
    loop = DeviceLoop()

    def passes():
        yield TokenEvent("x")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_thread)
        with pytest.raises(RuntimeError, match="can't start"):
            list(loop.run(passes()))
    assert list(loop.run(passes())) == [TokenEvent("x")]


def no_thread(*_):
    raise RuntimeError("can't start new thread")


def test_an_answer_that_can_not_be_closed_is_an_error_of_its_own():
    loop = DeviceLoop()

    def passes():
        try:
            yield StageEvent("reading", "Reading")
            yield StageEvent("reading", "Reading more")
        finally:
            raise ValueError("while closing")

    stop = threading.Event()
    events = loop.run(passes(), stop.is_set)
    next(events)
    stop.set()
    with pytest.raises(ValueError, match="while closing"):
        list(events)
    assert [type(event) for event in loop.run(iter_of(TokenEvent("x")))] == [TokenEvent]


def iter_of(*events):
    yield from events


def test_a_stream_that_nobody_holds_any_more_ends():
    loop = DeviceLoop()
    ended = threading.Event()

    def passes():
        try:
            for _ in range(100_000):
                yield StageEvent("reading", "Reading")
                time.sleep(0.001)
        finally:
            ended.set()

    events = loop.run(passes())
    next(events)
    del events
    assert ended.wait(PATIENCE_S)
