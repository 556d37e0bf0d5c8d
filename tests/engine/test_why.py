"""Why an answer has a word, through the engine: one report, what it refuses, and whether the pictures mattered."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from counted_passes import stopped_after
from engine_inputs import inputs_of
from PIL import Image

from gemma3_core.engine import Answered, Box, DoneEvent, Engine, Request, TokenEvent, Turn
from gemma3_core.errors import AttentionError, StoppedError
from gemma3_core.inspection.knockout import probabilities_unseen
from gemma3_core.inspection.occlusion import token_probability


@pytest.fixture(scope="module")
def engine(chat_folder) -> Engine:
    return Engine.load(chat_folder, device="cpu")


def picture(seed: int = 0, width: int = 90, height: int = 80) -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.to(torch.uint8).numpy())


TWO = Request(
    turns=(
        Turn("user", "look", (picture(1), picture(2, width=1100, height=300)), pan_and_scan=True),
        Turn("assistant", "yes"),
        Turn("user", "and now"),
    ),
    max_new_tokens=6,
    confidence=True,
)


def answered(engine: Engine, request: Request) -> Answered:
    *_, last = engine.stream(request)
    assert isinstance(last, DoneEvent)
    return Answered(request, last)


@pytest.fixture(scope="module")
def answer(engine) -> Answered:
    return answered(engine, TWO)


def test_a_report_has_the_map_the_probabilities_the_layers_and_the_heads(engine, answer):
    report = engine.why(answer, [2])
    assert [tile.tile.label for tile in report.rests_on.tiles] == [
        "picture 1", "picture 2", "picture 2, crop 1", "picture 2, crop 2", "picture 2, crop 3", "picture 2, crop 4",
    ]  # fmt: skip
    assert report.rests_on.rows <= 64
    inputs = inputs_of(engine, TWO)
    seen = token_probability(engine._model, inputs, answer.done.token_ids, 2)
    assert abs(report.rests_on.seen - seen) < 1e-5
    assert report.attention == engine.attention(answer, [2])
    assert len(report.said) == len(engine.info.layers)
    assert all(len(one.likeliest) == 5 for one in report.said)
    assert abs(report.said[-1].probability - seen) < 1e-5, "the last layer says what the model said"
    assert len(report.heads) == len(engine.info.layers) * engine.info.heads
    unseen = probabilities_unseen(engine._model, inputs, answer.done.token_ids)
    assert report.unseen == pytest.approx(unseen, abs=1e-6)
    assert (report.place is None) == report.picture_hardly_mattered
    assert report.region is not None
    asked = engine.why(answer, [1, 2], 1, Box(0, 0, 500, 300))
    assert asked.region == (1, Box(0, 0, 500, 300))
    assert asked.heads != report.heads
    assert asked.attention == engine.attention(answer, [1, 2])


def test_words_and_regions_that_are_none_are_refused_and_the_chat_goes_on(engine, answer):
    for tokens in ([], [6], [-1], [0, 2], [2, 1]):
        with pytest.raises(AttentionError, match="numbered from 0"):
            engine.why(answer, tokens)
    for number, box in ((0, Box(0, 0, 91, 80)), (0, Box(5, 5, 5, 9)), (0, Box(-1, 0, 9, 9)), (2, Box(0, 0, 9, 9))):
        with pytest.raises(AttentionError, match=r"must lie within|no picture number 2"):
            engine.why(answer, [0], number, box)
    one_pixel = engine.why(answer, [0], 0, Box(1, 1, 2, 2))
    assert one_pixel.heads == (), "a pixel between the middles of soft tokens is looked at by no head"
    assert engine.why(answer, [0]).rests_on is not None


def test_a_text_only_model_has_layers_but_rests_on_no_picture(text_chat_folder):
    text_engine = Engine.load(text_chat_folder, device="cpu")
    report = text_engine.why(answered(text_engine, Request((Turn("user", "hello"),), max_new_tokens=3)), [1])
    assert (report.rests_on, report.heads, report.region) == (None, (), None)
    assert (report.place, report.unseen) == (None, ())
    assert not report.picture_hardly_mattered
    assert len(report.said) == len(text_engine.info.layers)
    asked = Request((Turn("user", "hello"),), max_new_tokens=3, confidence=True, check_pictures=True)
    assert answered(text_engine, asked).done.picture_effect is None


def test_a_stopped_answer_has_its_reasons_too(engine, answer):
    stopped, _ = stopped_after(engine, TWO, 3)
    whole, part = engine.why(answer, [1]), engine.why(stopped, [1])
    assert part == replace(whole, unseen=part.unseen)
    assert part.unseen == pytest.approx(whole.unseen[:3], abs=1e-6)
    with pytest.raises(AttentionError, match="3 tokens"):
        engine.why(stopped, [3])


def test_a_report_ends_when_it_is_stopped_and_others_are_answered_meanwhile(engine, answer):
    looks, limit = 0, 9

    class Stop(threading.Event):
        def is_set(self) -> bool:
            nonlocal looks
            looks += 1
            return looks > limit

    with pytest.raises(StoppedError):
        engine.why(answer, [2], stop=Stop())
    assert looks < limit + 20
    with ThreadPoolExecutor(2) as pool:
        report = pool.submit(engine.why, answer, [2])
        other = pool.submit(answered, engine, replace(TWO, visitor="another"))
        assert other.result(60).done.token_ids == answer.done.token_ids
        assert report.result(60) == engine.why(answer, [2])


def test_an_answer_says_by_how_much_its_pictures_changed_it(engine):
    request = replace(TWO, check_pictures=True)
    events = list(engine.stream(request))
    done, choices = events[-1], [e.choice for e in events if isinstance(e, TokenEvent) and e.choice is not None]
    inputs = {name: inputs_of(engine, TWO)[name] for name in ("input_ids", "token_type_ids")}
    unseen = probabilities_unseen(engine._model, inputs, done.token_ids)
    expected = max(abs(choice.probability - other) for choice, other in zip(choices, unseen, strict=True))
    assert done.picture_effect is not None
    assert abs(done.picture_effect - expected) < 1e-6
    assert answered(engine, TWO).done.picture_effect is None, "nobody asked"
    only = replace(request, json_schema='{"type": "object"}')
    assert answered(engine, only).done.picture_effect is None, "its probabilities are among the allowed tokens"
    words = replace(request, turns=(Turn("user", "hello"),))
    assert answered(engine, words).done.picture_effect is None, "there is no picture"


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")], ids=["GPU", "CPU"]
)
def test_an_answer_is_whole_where_there_is_no_memory_to_check_it(engine, answer, monkeypatch, caplog, error):
    def full(*_):
        raise error

    monkeypatch.setattr("gemma3_core.engine.answer.probabilities_unseen", full)
    done = answered(engine, replace(TWO, check_pictures=True)).done
    assert (done.token_ids, done.text) == (answer.done.token_ids, answer.done.text)
    assert done.stats.stop_reason == answer.done.stats.stop_reason
    assert done.picture_effect is None
    assert "no memory to read an answer again" in caplog.text
    error = RuntimeError("shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        answered(engine, replace(TWO, check_pictures=True))
