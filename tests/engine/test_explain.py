"""What the engine tells of an answer: prompt, masks, attention, occlusion, confidence; and what it refuses."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from counted_passes import CountedPasses, stopped_after
from engine_inputs import inputs_of
from PIL import Image
from reference import TOKENS_PER_IMAGE, assert_equal

from gemma3_core.engine import Answered, Box, DoneEvent, Engine, Request, StageEvent, TokenEvent, Turn
from gemma3_core.errors import (
    AttentionError,
    ContextLengthError,
    ImageError,
    PromptError,
    StoppedError,
    UnsupportedOptionError,
)
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import ScaledEmbedding

PATIENCE_S = 120


@pytest.fixture(scope="module")
def engine(chat_folder) -> Engine:
    return Engine.load(chat_folder, device="cpu")


@pytest.fixture(scope="module")
def text_engine(text_chat_folder) -> Engine:
    return Engine.load(text_chat_folder, device="cpu")


def picture(seed: int = 0, width: int = 90, height: int = 80) -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.to(torch.uint8).numpy())


def answered(engine: Engine, request: Request) -> Answered:
    *_, last = engine.stream(request)
    assert isinstance(last, DoneEvent)
    return Answered(request, last)


LONG = Request(
    turns=(
        Turn("user", "look", (picture(1), picture(2, width=1100, height=300)), pan_and_scan=True),
        Turn("assistant", "yes"),
        Turn("user", "and this", (picture(3),)),
    ),
    system_prompt="Be brief.",
    max_new_tokens=8,
)
SHORT = Request(turns=(Turn("user", "what is it", (picture(1),)),), max_new_tokens=8)


@pytest.fixture(scope="module")
def long_answer(engine) -> Answered:
    return answered(engine, LONG)


@torch.no_grad()
def weights_of_a_plain_pass(engine: Engine, done: Answered, folder) -> torch.Tensor:
    """[layers, H, T, T] of prompt and answer, by the model's own output_attentions."""
    inputs = inputs_of(engine, done.request)
    ids = torch.cat([inputs["input_ids"], torch.tensor([done.done.token_ids])], dim=1)
    model = Gemma3ForConditionalGeneration.from_pretrained(folder)
    types = torch.nn.functional.pad(inputs["token_type_ids"], (0, len(done.done.token_ids)))
    out = model(
        input_ids=ids,
        token_type_ids=types,
        pixel_values=inputs["pixel_values"],
        output_attentions=True,
        use_cache=False,
    )
    return torch.stack(out.attentions)[:, 0]


def test_attention_is_that_of_the_rows_that_wrote_the_tokens(engine, chat_folder, long_answer):
    weights = weights_of_a_plain_pass(engine, long_answer, chat_folder)
    prompt = long_answer.done.stats.prompt_tokens
    made = engine.attention(long_answer, [1, 2], layer=2, head=3)
    expected = weights[2, 3, [prompt, prompt + 1]].mean(dim=0)
    assert [m.tile.label for m in made.tiles] == [
        *["picture 1", "picture 2", "picture 2, crop 1", "picture 2, crop 2", "picture 2, crop 3", "picture 2, crop 4"],
        "picture 3",
    ]
    assert made.tiles[2].tile.box == Box(0, 0, 275, 300)
    for m in made.tiles:
        assert_equal(torch.tensor(m.grid).flatten(), expected[m.tile.start : m.tile.stop], 1e-4)
    for word in made.tokens:
        assert abs(word.weight - expected[word.token.column]) < 1e-5
    first = engine.attention(long_answer, [0])
    assert first.layers == (5,)
    assert_equal(
        torch.tensor(first.tiles[0].grid).flatten(),
        weights[5, :, prompt - 1].mean(dim=0)[first.tiles[0].tile.start : first.tiles[0].tile.stop],
        1e-4,
    )
    assert engine.attention(long_answer, [0], layer="rollout").layers == tuple(range(7))


def test_occlusion_hides_the_box_in_that_picture_alone(engine, long_answer):
    box = Box(300, 20, 800, 280)
    report = engine.occlude(long_answer, 0, picture=1, box=box)
    assert (report.picture, report.box) == (1, box)
    assert 0 <= report.after <= 1
    assert report.before != report.after
    events = list(engine.stream(replace(LONG, confidence=True)))
    first = next(event for event in events if isinstance(event, TokenEvent))
    assert first.choice is not None
    assert abs(first.choice.probability - report.before) < 1e-4, "the probability of the very answer"
    hottest = engine.occlude(long_answer, 0)
    tile, region = engine.attention(long_answer, [0]).hottest()
    assert (hottest.picture, hottest.box) == (tile.picture, region)


def test_confidence_comes_only_where_it_is_asked_for(engine):
    plain, sure = (list(engine.stream(replace(SHORT, confidence=flag))) for flag in (False, True))
    texts = [[event.text for event in events if isinstance(event, TokenEvent)] for events in (plain, sure)]
    assert texts[0] == texts[1]
    assert all(event.choice is None for event in plain if isinstance(event, TokenEvent))
    done = sure[-1]
    choices = [event.choice for event in sure if isinstance(event, TokenEvent) and event.choice]
    assert tuple(choice.token_id for choice in choices) == done.token_ids
    for choice in choices:
        likeliest = [other.probability for other in choice.alternatives]
        assert len(likeliest) == 5
        assert likeliest == sorted(likeliest, reverse=True)
        assert choice.alternatives[0].token_id == choice.token_id, "greedy takes the likeliest"
        assert choice.probability == likeliest[0]


def test_the_prompt_and_its_masks_are_those_of_the_request(engine, long_answer):
    view, masks = engine.inspect(LONG), engine.mask(LONG)
    assert len(view.tokens) == long_answer.done.stats.prompt_tokens
    assert masks.tokens == view.tokens
    assert [len(range(s.start, s.stop)) for s in view.tiles] == [TOKENS_PER_IMAGE] * 7
    assert view.picture_sizes == [(90, 80), (1100, 300), (90, 80)]
    for number, tile in enumerate(view.tiles):
        assert {view.tokens[column].tile for column in range(tile.start, tile.stop)} == {number}
        first, last = tile.start, tile.stop - 1
        assert masks.reason("global", first, last) == "same image"
    assert [mask.kind for mask in masks.masks] == ["global", "local"]


def test_a_text_only_model_shows_its_words_and_has_nothing_to_hide(text_engine):
    done = answered(text_engine, Request(turns=(Turn("user", "hello there"),), max_new_tokens=4))
    made = text_engine.attention(done, [0])
    assert made.tiles == ()
    assert abs(sum(word.weight for word in made.tokens) - 1) < 1e-5
    assert text_engine.inspect(done.request).tiles == ()
    with pytest.raises(AttentionError, match="no picture"):
        text_engine.occlude(done, 0)
    with pytest.raises(PromptError, match="reads text only"):
        text_engine.mask(SHORT)


def test_answers_that_can_not_be_looked_at_are_refused_and_the_chat_goes_on(engine, long_answer, tmp_path):
    path = tmp_path / "gone.png"
    picture(1).save(path)
    vanishing = answered(engine, replace(SHORT, turns=(Turn("user", "what", (path,)),)))
    path.unlink()
    with pytest.raises(AttentionError, match="are gone"):
        engine.attention(vanishing, [0])
    picture(1, width=700, height=300).save(path)
    cut = replace(vanishing, request=replace(vanishing.request, pan_and_scan=True))
    with pytest.raises(AttentionError, match="the pictures or their crops have changed"):
        engine.attention(cut, [0])
    fewer = replace(LONG, turns=(replace(LONG.turns[0], pictures=LONG.turns[0].pictures[:1]), *LONG.turns[1:]))
    with pytest.raises(AttentionError, match="about 3 pictures, but only 2 of them are still there"):
        engine.attention(replace(long_answer, request=fewer), [0])
    other = replace(long_answer.done, stats=replace(long_answer.done.stats, model="another-model"))
    with pytest.raises(AttentionError, match="by another-model, but small-model is loaded now"):
        engine.attention(replace(long_answer, done=other), [0])
    with pytest.raises(AttentionError, match="no tokens"):
        engine.attention(replace(long_answer, done=replace(long_answer.done, token_ids=())), [0])
    for tokens in ([], [len(long_answer.done.token_ids)], [-1]):
        with pytest.raises(AttentionError, match="numbered from 0"):
            engine.attention(long_answer, tokens)
    with pytest.raises(AttentionError, match="0 to 6"):
        engine.attention(long_answer, [0], layer=7)
    with pytest.raises(UnsupportedOptionError, match="all heads"):
        engine.attention(long_answer, [0], layer="rollout", head=0)
    assert engine.attention(long_answer, [0]).tiles


@pytest.mark.parametrize(
    ("ids", "words"),
    [((2**31 - 1, 3), "tokens that this model doesn't have"), ((-1,), "doesn't have"), ((3,) * 100_000, "context")],
    ids=["no such token", "below all", "longer than the context"],
)
def test_a_made_up_answer_is_refused(engine, monkeypatch, ids, words):
    """As a browser may bring one back. On a GPU such ids must not reach the model, whose device would be lost."""
    real = answered(engine, SHORT)
    made_up = replace(real, done=replace(real.done, token_ids=ids))
    with monkeypatch.context() as patch:
        patch.setattr(ScaledEmbedding, "forward", lambda *_: pytest.fail("the model got the ids"))
        with pytest.raises(AttentionError, match=words):
            engine.attention(made_up, [len(ids) - 1])
        with pytest.raises(AttentionError, match=words):
            engine.why(made_up, [len(ids) - 1])
        with pytest.raises(AttentionError, match=words):
            engine.occlude(made_up, len(ids) - 1, 0, Box(0, 0, 9, 9))
        with pytest.raises(PromptError, match=words):
            list(engine.stream(replace(SHORT, answer_so_far=ids)))
    assert answered(engine, SHORT).done.token_ids == real.done.token_ids


@pytest.mark.parametrize(
    ("token", "options", "words"),
    [
        (0, {"picture": 3}, "from 0 to 2"),
        (0, {"box": Box(0, 0, 9, 9)}, "which of the 3 pictures"),
        (0, {"picture": 0, "box": Box(0, 0, 99, 9)}, "90 x 80"),
        (99, {"picture": 0, "box": Box(0, 0, 9, 9)}, "no number 99"),
    ],
)
def test_regions_that_can_not_be_hidden_are_refused(engine, long_answer, token, options, words):
    with pytest.raises(AttentionError, match=words):
        engine.occlude(long_answer, token, **options)


def test_requests_that_can_not_be_asked_can_not_be_inspected(engine):
    with pytest.raises(PromptError, match="no question"):
        engine.inspect(Request(turns=()))
    with pytest.raises(ImageError):
        engine.mask(replace(SHORT, turns=(Turn("user", "what", (b"no picture",)),)))
    assert issubclass(ContextLengthError, PromptError)


def test_attention_is_found_while_another_answer_is_written(engine, long_answer, monkeypatch):
    passes = CountedPasses(engine, monkeypatch, allowed=3)
    stream = engine.stream(replace(SHORT, visitor="somebody"))
    while not isinstance(next(stream), TokenEvent):
        pass
    passes.allow(1000)
    before = passes.lengths.count(1)
    assert engine.attention(long_answer, [0]).tiles
    assert passes.lengths.count(1) > before, "its tokens went on"
    stream.close()


def test_where_only_one_is_answered_at_a_time_attention_waits_in_the_queue(engine, long_answer, monkeypatch):
    monkeypatch.setattr(engine.queue, "max_running", 1)
    stream = engine.stream(replace(SHORT, visitor="somebody"))
    while not isinstance(next(stream), TokenEvent):
        pass
    started = threading.Event()

    def look():
        started.set()
        return engine.attention(long_answer, [0])

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(look)
        assert started.wait(PATIENCE_S)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=1.0)
        stream.close()
        assert waiting.result(timeout=PATIENCE_S).tiles
    assert isinstance(next(engine.stream(SHORT)), StageEvent), "the queue is free again"


def test_a_prompt_is_counted_before_it_is_asked_and_without_a_pixel_read(engine, monkeypatch):
    inputs = inputs_of(engine, LONG)
    stream = engine.stream(replace(SHORT, visitor="somebody"))
    while not isinstance(next(stream), TokenEvent):
        pass
    monkeypatch.setattr(type(engine._processor.image_processor), "__call__", None)
    view = engine.inspect(LONG)  # while another answer is being written: nothing waits here
    assert [token.token_id for token in view.tokens] == inputs["input_ids"][0].tolist()
    assert [token.tile is not None for token in view.tokens] == inputs["token_type_ids"][0].bool().tolist()
    unfinished = replace(LONG, turns=(*LONG.turns[:2], Turn("user", "", LONG.turns[2].pictures)))
    assert len(engine.inspect(unfinished).tokens) == len(view.tokens) - len("and this")
    stream.close()
    with pytest.raises(PromptError, match="no question"):
        engine.mask(unfinished)


def test_an_answer_that_was_stopped_or_cut_is_looked_into_like_others(engine, long_answer):
    assert long_answer.done.stats.stop_reason == "length"
    stopped, _ = stopped_after(engine, LONG, 3)
    stats = stopped.done.stats
    assert (stats.stop_reason, stats.new_tokens, stats.prompt_tokens, stats.num_crops) == (
        "cancelled",
        3,
        long_answer.done.stats.prompt_tokens,
        long_answer.done.stats.num_crops,
    )
    assert stopped.done.token_ids == long_answer.done.token_ids[:3]
    assert engine.attention(stopped, [2]) == engine.attention(long_answer, [2])
    box = Box(0, 0, 40, 40)
    assert engine.occlude(stopped, 2, 0, box) == engine.occlude(long_answer, 2, 0, box)
    with pytest.raises(AttentionError, match="has 3 tokens"):
        engine.attention(stopped, [3])


def test_attention_that_waits_can_be_given_up_and_leaves_the_queue(engine, long_answer, monkeypatch):
    monkeypatch.setattr(engine.queue, "max_running", 1)
    stream = engine.stream(replace(SHORT, visitor="somebody"))
    while not isinstance(next(stream), TokenEvent):
        pass
    stop, told = threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.attention, long_answer, [0], stop=stop, tell=told.append)
        end = time.monotonic() + PATIENCE_S
        # Before that it opens the pictures, and says so where that takes a while.
        while not (queued := [text for text in told if text.startswith("1st in the queue")]) and time.monotonic() < end:
            time.sleep(0.02)
        stop.set()
        with pytest.raises(StoppedError):
            waiting.result(timeout=PATIENCE_S)
    assert queued
    assert not engine.queue._waiting
    stream.close()


class _Stop(threading.Event):
    """Set once it has been looked at so many times."""

    def __init__(self, looks: int):
        super().__init__()
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("looks", [1, 4, 10])
@pytest.mark.parametrize("act", ["attention", "rollout", "occlude"])
def test_attention_that_runs_is_given_up_within_one_picture_or_layer(engine, long_answer, act, looks, monkeypatch):
    """Seven pictures are encoded one by one before seven layers are read: each looks at the stop first."""
    monkeypatch.setattr("gemma3_core.engine.engine._TICK_S", 20)  # or it looks again while it waits
    encoded, features = [], type(engine._model).get_image_features
    monkeypatch.setattr(
        type(engine._model), "get_image_features", lambda self, pixels: encoded.append(1) or features(self, pixels)
    )
    calls = {
        "attention": lambda: engine.attention(long_answer, [0], stop=_Stop(looks)),
        "rollout": lambda: engine.attention(long_answer, [0], "rollout", stop=_Stop(looks)),
        "occlude": lambda: engine.occlude(long_answer, 0, stop=_Stop(looks)),
    }
    with pytest.raises(StoppedError):
        calls[act]()
    assert len(encoded) == min(looks - 1, 7)
    assert not engine.queue._running
    assert not engine.queue._waiting
