"""The engine whose GPU is lent for each call: the same answers, from a forked child that keeps nothing."""

import threading
import time
from dataclasses import replace

import pytest
import torch
from lending import Lender
from PIL import Image

from gemma3_core.engine import (
    Answered,
    DoneEvent,
    Engine,
    Gemma3Error,
    ModelRegistry,
    Request,
    SamplingSettings,
    StageEvent,
    StoppedError,
    TokenEvent,
    Turn,
)
from gemma3_core.engine.zero_gpu import LONGEST_S, BorrowingEngine
from gemma3_core.errors import AttentionError


@pytest.fixture(scope="module")
def engine(chat_folder) -> Engine:
    return Engine.load(chat_folder, device="cpu", int4_group_size=32, name="tiny")


@pytest.fixture
def lender() -> Lender:
    return Lender()


@pytest.fixture
def borrowing(chat_folder, lender) -> BorrowingEngine:
    return BorrowingEngine.load(chat_folder, device="cpu", int4_group_size=32, name="tiny").borrow(lender)


@pytest.fixture
def picture(tmp_path):
    noise = torch.randint(0, 256, (80, 200, 3), generator=torch.Generator().manual_seed(0))
    file = tmp_path / "picture.png"
    Image.fromarray(noise.to(torch.uint8).numpy()).save(file)
    return file


def ask(question: str, *pictures, **options) -> Request:
    return Request((Turn("user", question, pictures),), **{"max_new_tokens": 8, "confidence": True, **options})


def answered(engine: Engine, request: Request) -> tuple[list[TokenEvent], DoneEvent]:
    events = list(engine.stream(request))
    assert isinstance(events[-1], DoneEvent)
    return [event for event in events if isinstance(event, TokenEvent)], events[-1]


def without_times(done: DoneEvent) -> DoneEvent:
    stats = replace(done.stats, queue_s=0.0, time_to_first_token_s=None, tokens_per_s=None, reused_tokens=0)
    return replace(done, stats=stats)


@pytest.mark.parametrize(
    "options",
    [{}, {"pan_and_scan": True}, {"int4": True}, {"sampling": SamplingSettings(temperature=1.0, seed=3)}],
    ids=["greedy", "pan and scan", "int4", "sampled"],
)
def test_the_child_gives_the_answer_that_this_process_would_give(engine, borrowing, picture, options):
    request = ask("What is this?", picture, **options)
    here, there = answered(engine, request), answered(borrowing, request)
    assert [event.text for event in there[0]] == [event.text for event in here[0]]
    assert [event.choice for event in there[0]] == [event.choice for event in here[0]]
    assert without_times(there[1]) == without_times(here[1])
    assert there[1].stats.time_to_first_token_s is not None


def test_an_answer_goes_on_where_it_was_cut(engine, borrowing, picture):
    cut = answered(engine, ask("What is this?", picture, max_new_tokens=3))[1]
    more = ask("What is this?", picture, max_new_tokens=3, answer_so_far=cut.token_ids)
    assert without_times(answered(borrowing, more)[1]) == without_times(answered(engine, more)[1])


def test_nothing_is_kept_for_the_next_question_and_the_model_says_so(borrowing, picture):
    first = ask("What is this?", picture, visitor="one")
    done = answered(borrowing, first)[1]
    turns = (*first.turns, Turn("assistant", done.text), Turn("user", "And now?"))
    again = answered(borrowing, replace(first, turns=turns))[1]
    assert again.stats.reused_tokens == 0
    assert borrowing.info.borrowed


def test_a_look_inside_finds_there_what_it_finds_here(engine, borrowing, picture):
    request = ask("What is this?", picture)
    done = answered(engine, request)[1]
    assert borrowing.attention(Answered(request, done), [1, 2]) == engine.attention(Answered(request, done), [1, 2])
    assert borrowing.occlude(Answered(request, done), 1) == engine.occlude(Answered(request, done), 1)


def test_stop_ends_the_call_and_keeps_the_text(borrowing, lender, picture):
    stop, said = threading.Event(), []
    for event in borrowing.stream(ask("What is this?", picture, max_new_tokens=400), stop):
        if isinstance(event, TokenEvent):
            said.append(event.text)
            stop.set()
    assert isinstance(event, DoneEvent)
    assert (event.stats.stop_reason, event.text, len(event.token_ids)) == ("cancelled", "".join(said), 1)
    assert lender.stopped == 1
    assert answered(borrowing, ask("Again?"))[1].text  # the queue is free


def test_who_leaves_ends_the_call(borrowing, lender, picture):
    events = borrowing.stream(ask("What is this?", picture, max_new_tokens=400))
    while not isinstance(next(events), TokenEvent):
        pass
    events.close()
    assert lender.stopped == 1


def look_for_ever(_answered, _prompt, _processor, _model, check, _decode, _grammar):
    while True:
        check()
        time.sleep(0.01)


def test_a_look_is_stopped_in_the_child_too(borrowing, lender, picture):
    request = ask("What is this?", picture)
    done, stop = answered(borrowing, request)[1], threading.Event()
    with pytest.raises(StoppedError):
        borrowing._looked(look_for_ever, Answered(request, done), (), stop, lambda _text: stop.set())
    assert lender.stopped == 1
    assert answered(borrowing, ask("Again?"))[1].text


def test_an_error_of_the_child_is_raised_here(borrowing, picture):
    request = ask("What is this?", picture)
    done = answered(borrowing, request)[1]
    with pytest.raises(AttentionError, match="The layer must be 0 to"):
        borrowing.attention(Answered(request, done), [1], layer=99)


def test_a_refusal_is_raised_and_frees_the_queue(chat_folder):
    lender = Lender(Gemma3Error("You have 5 s left."))
    engine = BorrowingEngine.load(chat_folder, device="cpu").borrow(lender)
    for _ in range(2):
        with pytest.raises(Gemma3Error, match="You have 5 s left"):
            list(engine.stream(ask("What is this?")))
    lender.refusal = None
    assert answered(engine, ask("What is this?"))[1].text


def test_the_seconds_follow_from_prompt_and_answer_and_have_an_end(borrowing, lender, picture):
    requests = [
        ask("Short?"), ask("Long?", max_new_tokens=200), ask("Picture?", *[picture] * 8, pan_and_scan=True),
    ]  # fmt: skip
    for request in requests:
        next(event for event in borrowing.stream(request) if isinstance(event, TokenEvent))
    short, long, pictures = lender.seconds
    assert 4 <= short < long < 30
    assert short < pictures < 30
    prompt = borrowing._with_length(_read(borrowing, requests[0]))
    assert borrowing.seconds(prompt, 100_000, int4=False) == LONGEST_S


def _read(engine, request):
    from gemma3_core.engine.prompts import read_prompt

    return read_prompt(engine._checked(request), engine._processor)


def test_all_models_are_loaded_before_the_first_call(chat_folder, text_chat_folder, lender):
    models = ModelRegistry.load(chat_folder, [str(text_chat_folder)], device="cpu", keep=1, lend=lender)
    other = models.names[1]
    info = models.info(other)
    assert info is not None
    assert info.borrowed
    events = list(models.stream(other, ask("Who are you?")))
    assert not any(isinstance(event, StageEvent) and event.stage == "loading" for event in events)
    assert len(lender.seconds) == 1
