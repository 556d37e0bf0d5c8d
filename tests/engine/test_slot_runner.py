"""Who gets a slot, and what happens without room. That answers stay what they are is in test_device_loop.py."""

import itertools
from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from reference import TEXT, WINDOW, image_prompt, randomise

from gemma3_core import Gemma3ForCausalLM, Gemma3TextConfig
from gemma3_core.engine import device_loop, slot_runner
from gemma3_core.engine.device_loop import _Task
from gemma3_core.engine.slot_runner import LENGTHS, SlotRunner
from gemma3_core.generation.loop import DecodePass, decode_together, prefill
from gemma3_core.generation.row_sampler import SamplingRow, sample_rows
from gemma3_core.generation.sampling import SamplingParams
from gemma3_core.nn.cache import KVCache

PLENTY = 2**40
CONFIG = Gemma3TextConfig(**{**TEXT, "max_position_embeddings": 10_000})


@pytest.fixture(scope="module")
def model() -> Gemma3ForCausalLM:
    made = Gemma3ForCausalLM(CONFIG)
    randomise(made)
    return made.eval()


class Answer:
    """An answer that is decoded step by step."""

    def __init__(
        self,
        model: Gemma3ForCausalLM,
        seed: int,
        reserve: int = 100,
        params: SamplingParams | None = None,
        constraint=None,
    ):
        prompt = image_prompt("t5", seed)[0]
        self.model, self.cache = model, KVCache(CONFIG, reserve)
        self.row = SamplingRow.of(params or SamplingParams(), prompt, CONFIG.vocab_size, constraint=constraint)
        (first,) = sample_rows(prefill(model, self.cache, input_ids=prompt), [self.row]).read()
        self.row.push(first.token, first.token_id)
        self.tokens, self.last = [first.token_id], first.token
        self.probabilities: list[float] = []

    def step(self) -> DecodePass:
        return DecodePass(self.model, self.cache, self.last, self.row)

    def take(self, done: DecodePass) -> None:
        assert done.sampled is not None
        self.row.push(done.sampled.token, done.sampled.token_id)
        self.tokens.append(done.sampled.token_id)
        self.probabilities.append(done.sampled.probability)
        self.last = done.sampled.token


def decode(run, answers: list[Answer], steps: int = 12) -> list[list[int]]:
    for _ in range(steps):
        passes = [answer.step() for answer in answers]
        run(passes)
        for answer, done in zip(answers, passes, strict=True):
            answer.take(done)
    return [answer.tokens for answer in answers]


SETTINGS = (
    None,
    SamplingParams(1.0, 20, 0.9, seed=1),
    SamplingParams(1.0, 0, 1.0, seed=2),
    SamplingParams(repetition_penalty=1.4),
    SamplingParams(1.0, 20, 0.9, seed=3, repetition_penalty=1.4),
)


@pytest.mark.parametrize("some", [SETTINGS, SETTINGS[:2]], ids=["read before the next", "launched ahead"])
def test_answers_of_every_kind_of_sampling_are_as_if_alone(model, some):
    runner = SlotRunner(model, 8, PLENTY, captures=False)
    together = decode(runner.decode, [Answer(model, seed, params=params) for seed, params in enumerate(some)])
    alone = [decode(decode_together, [Answer(model, seed, params=params)])[0] for seed, params in enumerate(some)]
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) == len(some)


class Digits:
    """Stands for a compiled schema: each token must be next to the last one."""

    def __init__(self, last: int = 0):
        self.last = last

    def push(self, token_id: int) -> None:
        self.last = token_id

    def allowed(self, vocabulary: int) -> torch.Tensor:
        allowed = torch.zeros(vocabulary, dtype=torch.bool)
        allowed[[(self.last + 1) % vocabulary, (self.last + 2) % vocabulary]] = True
        return allowed


@pytest.mark.parametrize("params", [None, SamplingParams(1.0, 20, 0.9, seed=1), SamplingParams(1.0, 0, 1.0, seed=2)])
def test_a_constrained_answer_keeps_its_form_and_the_next_step_is_still_launched_ahead(model, monkeypatch, params):
    runner, launched = SlotRunner(model, 8, PLENTY, captures=False), []
    step = runner._step.__call__
    monkeypatch.setattr(runner, "_step", lambda *given: launched.append(None) or step(*given))
    constrained = Answer(model, 0, params=params, constraint=Digits())
    beside = Answer(model, 1, params=SETTINGS[1])
    decode(runner.decode, [constrained, beside], 6)
    tokens = [0, *constrained.tokens]
    assert {(after - before) % CONFIG.vocab_size for before, after in itertools.pairwise(tokens)} <= {1, 2}
    assert constrained.tokens == decode(decode_together, [Answer(model, 0, params=params, constraint=Digits())], 6)[0]
    assert beside.tokens == decode(decode_together, [Answer(model, 1, params=SETTINGS[1])], 6)[0]
    if params is None or params.top_k:
        assert len(launched) == 7


def test_a_step_is_launched_once_a_token_though_it_is_launched_ahead(model, monkeypatch):
    runner, lengths = SlotRunner(model, 8, PLENTY, captures=False), []
    step = runner._step.__call__

    def counted(tokens, at, cache):
        lengths.append(at.tolist())
        return step(tokens, at, cache)

    monkeypatch.setattr(runner, "_step", counted)
    decode(runner.decode, [Answer(model, 0)], steps=5)
    begins = lengths[0][0]
    assert [at[0] for at in lengths] == [begins + number for number in range(6)]


def test_a_newcomer_and_one_who_leaves_change_nobodys_tokens(model):
    runner = SlotRunner(model, 8, PLENTY, captures=False)
    sampled = SamplingParams(1.0, 20, 0.9, seed=7)
    stays, leaves = Answer(model, 0, params=sampled), Answer(model, 1)
    decode(runner.decode, [stays, leaves], 5)
    comes = Answer(model, 2, params=sampled)
    decode(runner.decode, [stays, leaves, comes], 5)
    runner.release(leaves.cache)
    decode(runner.decode, [stays, comes], 5)
    assert stays.tokens == decode(decode_together, [Answer(model, 0, params=sampled)], 15)[0]
    assert comes.tokens == decode(decode_together, [Answer(model, 2, params=sampled)], 10)[0]
    assert leaves.tokens == decode(decode_together, [Answer(model, 1)], 10)[0]


def test_a_step_that_fails_can_be_run_again(model, monkeypatch):
    runner = SlotRunner(model, 8, PLENTY, captures=False)
    answers = [Answer(model, 0), Answer(model, 1)]
    decode(runner.decode, answers, 3)
    step, failing = runner._step.__call__, [True]

    def sometimes(*given):
        if failing.pop() if failing else False:
            raise RuntimeError("broken")
        return step(*given)

    for group in runner._groups.values():
        monkeypatch.setattr(group, "_step", sometimes)
        group.ahead = None
    with pytest.raises(RuntimeError, match="broken"):
        runner.decode([answer.step() for answer in answers])
    for answer in answers:
        decode(runner.decode, [answer], 4)
    alone = [decode(decode_together, [Answer(model, seed)], 7)[0] for seed in range(2)]
    assert [answer.tokens for answer in answers] == alone


def in_loop(answer: Answer, runner: SlotRunner) -> Iterator[DecodePass]:
    """The passes of an answer without end, for the device's loop."""
    while True:
        one = answer.step()
        one.run = runner.decode
        yield one
        if one.error is not None:
            raise one.error
        answer.take(one)


@pytest.mark.parametrize("fails", ["the step ahead", "another length"])
def test_after_a_failure_who_has_a_token_is_not_run_again(model, monkeypatch, fails):
    """By then the ring of a local layer holds the next token, in the column of the oldest one."""
    runner = SlotRunner(model, 8, PLENTY, captures=False)
    answers = [Answer(model, 0), Answer(model, 1, LENGTHS[0])]
    tasks = [_Task(in_loop(answer, runner), lambda: False, lambda _: None) for answer in answers]
    for task in tasks:
        task.advance()
    for _ in range(WINDOW + 4):
        device_loop._decode(tasks)
    groups = list(runner._groups.values())
    step, failing = runner._step.__call__, [True]

    def stored_and_failed_once(*given):
        logits = step(*given)
        if failing.pop() if failing else False:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits

    if fails == "another length":
        groups[1].ahead = None
    monkeypatch.setattr(groups[fails == "another length"], "_step", stored_and_failed_once)
    for _ in range(4):
        device_loop._decode(tasks)
    assert not failing
    alone = [Answer(model, 0), Answer(model, 1)]
    decode(decode_together, alone, WINDOW + 8)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in alone]
    for answer, undisturbed in zip(answers, alone, strict=True):
        assert answer.probabilities == pytest.approx(undisturbed.probabilities, rel=1e-4)


def test_a_row_is_free_again_even_if_its_tokens_can_not_be_copied_back(model, monkeypatch):
    runner = SlotRunner(model, 1, PLENTY, captures=False)
    answer = Answer(model, 0)
    decode(runner.decode, [answer], 2)

    def broken(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(KVCache, "restore", broken)
        with pytest.raises(torch.OutOfMemoryError):
            runner.release(answer.cache)
    following = Answer(model, 1)
    decode(runner.decode, [following], 2)
    assert slots_of(runner, following) == [LENGTHS[0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_that_can_not_run_are_found_before_the_first_answer(model, monkeypatch, dtype):
    other = Gemma3ForCausalLM(CONFIG).to(dtype)
    assert slot_runner.why_no_kernels(other) is None

    def broken(*_):
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(slot_runner.kernels, "attend_slots", broken)
    assert slot_runner.why_no_kernels(model) == "their kernels can't run: RuntimeError: Failed to find C compiler"


def slots_of(runner: SlotRunner, answer: Answer) -> list[int]:
    return [length for length, group in runner._groups.items() if group and id(answer.cache) in group.slots]


def test_each_answer_gets_the_shortest_slot_that_it_fits_into(model):
    runner = SlotRunner(model, 2, PLENTY, captures=False)
    exact = [Answer(model, 0, LENGTHS[0] - 1), Answer(model, 1, LENGTHS[0]), Answer(model, 2, LENGTHS[-1])]
    decode(runner.decode, exact, 2)
    assert [slots_of(runner, one) for one in exact] == [[LENGTHS[0]], [LENGTHS[1]], []]
    for one in exact:
        runner.release(one.cache)
    assert [slots_of(runner, one) for one in exact] == [[], [], []]


def test_who_finds_no_slot_is_decoded_plainly_and_stays_so(model):
    runner = SlotRunner(model, 2, PLENTY, captures=False)
    answers = [Answer(model, seed) for seed in range(3)]
    decode(runner.decode, answers, 4)
    runner.release(answers[0].cache)
    decode(runner.decode, answers[1:], 4)
    assert [bool(slots_of(runner, one)) for one in answers] == [False, True, False]
    assert answers[2].tokens == decode(decode_together, [Answer(model, 2)], 8)[0]


@pytest.mark.parametrize("when", ["it is known before", "it shows"])
def test_without_memory_answers_are_decoded_plainly(model, monkeypatch, when):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    if when == "it shows":
        monkeypatch.setattr(slot_runner, "SlotCache", full)
    runner = SlotRunner(model, 2, 1000 if when == "it is known before" else PLENTY, captures=False)
    assert decode(runner.decode, [Answer(model, 0)]) == decode(decode_together, [Answer(model, 0)])
    assert runner._groups == {LENGTHS[0]: None}


def test_slots_that_nobody_is_in_can_be_given_back(model):
    runner = SlotRunner(model, 2, PLENTY, captures=False)
    short, long = Answer(model, 0), Answer(model, 1, LENGTHS[0])
    decode(runner.decode, [short, long], 2)
    runner.release(short.cache)
    runner.give_back()
    assert list(runner._groups) == [LENGTHS[1]]
    decode(runner.decode, [long], 2)
    assert long.tokens == decode(decode_together, [Answer(model, 1)], 4)[0]


def warmed(model, monkeypatch, capture) -> tuple[SlotRunner, list]:
    """A runner whose steps are captured by that function in place of CUDA, and its work in the background."""
    work: list = []
    monkeypatch.setattr(slot_runner, "new_pool", object)
    monkeypatch.setattr(slot_runner, "captured", capture)
    runner = SlotRunner(model, 4, PLENTY, background=work.append)
    runner.warm_up()
    return runner, work


def test_a_step_that_can_not_be_captured_is_launched_and_the_log_says_so(model, monkeypatch, caplog):
    caplog.set_level("INFO", "gemma3_core.engine")

    def no_capture(*_):
        raise RuntimeError("operation not permitted when stream is capturing")

    runner, (work,) = warmed(model, monkeypatch, no_capture)
    answer = Answer(model, 0)
    decode(runner.decode, [answer], 3)
    assert len(list(work)) == 2  # launched, then one attempt; the next number of rows is not tried
    assert "1 of 3 captured" not in caplog.text
    assert "A decode step of 1 rows can't be captured, so it is launched part by part: operation not" in caplog.text
    decode(runner.decode, [answer], 3)
    assert answer.tokens == decode(decode_together, [Answer(model, 0)], 6)[0]
    decode(runner.decode, [Answer(model, 1, LENGTHS[0])], 2)
    assert len(runner._groups) == 2  # slots of another length are not captured either


def test_after_a_warm_up_that_failed_steps_are_captured_when_they_are_used(model, monkeypatch):
    replays = []
    runner, (work,) = warmed(model, monkeypatch, lambda run, _pool: lambda: replays.append(1) or run())
    (group,) = runner._groups.values()
    with monkeypatch.context() as context:
        context.setattr(group, "_launch", lambda _: (_ for _ in ()).throw(torch.OutOfMemoryError("no memory")))
        with pytest.raises(torch.OutOfMemoryError):
            next(work)
    answer = Answer(model, 0)
    decode(runner.decode, [answer], 12)
    assert replays
    assert answer.tokens == decode(decode_together, [Answer(model, 0)], 12)[0]


def test_capturing_between_any_two_steps_changes_no_token(model, monkeypatch):
    replays, pools = [], []

    def capture(run, pool):
        pools.append(pool)
        return lambda: replays.append(1) or run()

    sampled = SamplingParams(1.0, 20, 0.9, seed=7)
    runner, (work,) = warmed(model, monkeypatch, capture)
    answers = [Answer(model, 0), Answer(model, 1, params=sampled), Answer(model, 2)]
    for done in range(6):
        assert len(pools) == done // 2
        decode(runner.decode, answers, 2)
        next(work)
    assert list(work) == []
    assert replays == []  # three rows need the step of four, which came last
    decode(runner.decode, answers, 2)
    assert len(replays) == 2  # the first was launched ahead, before the capture
    assert len(set(pools)) == 1
    alone = [Answer(model, 0), Answer(model, 1, params=sampled), Answer(model, 2)]
    assert [one.tokens for one in answers] == [decode(decode_together, [one], 14)[0] for one in alone]


def test_slots_that_are_given_back_are_not_captured_further(model, monkeypatch):
    runner, (work,) = warmed(model, monkeypatch, lambda run, _pool: run)
    next(work)
    runner.give_back()
    assert list(work) == []


def test_the_pool_of_captured_steps_is_given_up_with_the_last_of_them(model, monkeypatch):
    """torch 2.8 to 2.11 capture into no pool whose graphs have all gone."""
    pools = []
    runner, work = warmed(model, monkeypatch, lambda run, pool: pools.append(pool) or run)
    assert len(list(work.pop())) == 6
    long = Answer(model, 0, LENGTHS[0])
    decode(runner.decode, [long], 2)
    assert len(list(work.pop())) == 6
    runner.give_back()
    runner.warm_up()
    assert len(list(work.pop())) == 6
    assert len(set(pools)) == 1  # the steps of the long answer are left
    runner.release(long.cache)
    runner.give_back()
    runner.warm_up()
    assert len(list(work.pop())) == 6
    assert [pool is pools[0] for pool in pools] == 9 * [True] + 3 * [False]


def test_each_model_has_a_stream_and_a_pool_of_its_own_for_its_captures(model, monkeypatch):
    """On one stream its steps would share cuBLAS's workspace, which lies in the pool of whoever captured first."""
    begun: list[tuple[object, object]] = []

    def graph(_graph, *, pool, stream=None, capture_error_mode):
        assert capture_error_mode == "thread_local"
        begun.append((pool, stream))
        return nullcontext()

    for name in ("CUDAGraph", "Stream", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, object)
    for name in ("synchronize", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    for _ in range(2):
        work: list = []
        runner = SlotRunner(model, 4, PLENTY, background=work.append)
        runner.warm_up()
        assert len(list(work.pop())) == 6
    pools, streams = zip(*begun, strict=True)
    for own in (pools, streams):
        assert len(begun) == 6
        assert len(set(own)) == 2
        assert len(set(own[:3])) == len(set(own[3:])) == 1


def test_there_are_none_but_on_cuda(model):
    assert SlotRunner.for_model(model, 8, PLENTY) is None
