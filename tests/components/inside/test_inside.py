"""Inside, without a browser: what its HTML says, and what its handlers do with the real demo model."""

import asyncio
import base64
import json
import re
import threading
from dataclasses import replace
from functools import partial
from html import unescape
from io import BytesIO
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from counted_passes import stopped_after
from PIL import Image
from places import EXAMPLES
from running_app import require_demo_model
from window import STATS, Window, choice

from components.chat.conversation import Conversation, Exchange, question_of
from components.chat.handlers import ChatHandlers
from components.inside.attention_view import spotlit
from components.inside.compare import both_requests, compared, first_difference
from components.inside.handlers import NO_WORD, InsideHandlers, Selected
from components.inside.mask_view import mask_html
from components.inside.panel import CHOOSE_WORD, HIDING, LOOKED, MEAN_HEADS, OPENED, RESTS, model_updates
from components.inside.word_view import anyway_html, changed_nothing
from components.shown.regions import drawn_box
from components.shown.token_view import alternatives_html, answer_html, percent, prompt_html, word_of_content, words_of
from gemma3_core.engine import (
    Answered,
    Box,
    DoneEvent,
    Engine,
    Gemma3Error,
    ModelRegistry,
    OcclusionReport,
    PicturePreview,
    PromptToken,
    PromptView,
    Request,
    SamplingSettings,
    StageEvent,
    StoppedError,
    TileMap,
    TokenChoices,
    TokenEvent,
    Turn,
    ask_in_fields,
    read_fields,
)
from gemma3_core.inspection.prompt import Tile

NIGHT = EXAMPLES / "night.png"
TILE = Tile(picture=0, crop=None, box=Box(0, 0, 80, 40), start=1, stop=5)


@pytest.fixture(scope="module")
def engine():
    require_demo_model()
    return Engine.load()


@pytest.fixture(scope="module")
def exchange(engine):
    question = Turn("user", "What color is the star?", (NIGHT,))
    request = Request((question,), confidence=True)
    events = list(engine.stream(request))
    done = events[-1]
    assert isinstance(done, DoneEvent)
    choices = tuple(e.choice for e in events if isinstance(e, TokenEvent) and e.choice is not None)
    return Exchange(question, False, Answered(request, done), TokenChoices(choices))


def test_a_prompt_shows_its_text_escaped_its_marks_and_one_name_for_each_picture():
    tokens = [PromptToken(0, 2, "<bos>", "special")]
    tokens += [PromptToken(n, 13, "<image_soft_token>", "image", 0) for n in range(1, 5)]
    tokens += [PromptToken(5, 99, " <b>x", "text"), PromptToken(6, 7, "\n", "text")]
    html = prompt_html(PromptView(tuple(tokens), (TILE,)), {5: 0.2, 6: 0.1})
    assert "<b>x" not in html
    assert " &lt;b&gt;x" in html
    assert html.count("picture 1: 4 soft tokens") == 1
    assert 'class="special" title="token 0: special token, id 2"' in html
    assert "--weight:1.000" in html
    assert "--weight:0.500" in html
    assert "⏎</span><br>" in html


def test_words_of_an_answer_are_buttons_that_tell_doubt_and_alternatives():
    choices = [choice(1, "two", 0.25), replace(choice(2, "\n", 0.9995), alternatives=())]
    html = answer_html(choices, chosen=1)
    assert re.findall(r'data-act="look" data-number="(\d)" aria-pressed="(\w+)"', html) == [
        ("0", "false"),
        ("1", "true"),
    ]
    assert "--doubt:0.750" in html
    assert 'title="two 25 %"' in html
    assert "width:25.0%" in alternatives_html(choices[0])
    assert [percent(p) for p in (0.0004, 0.031, 0.98)] == ["< 0.1 %", "3.1 %", "98 %"]


def test_light_falls_where_the_weight_is_and_keeps_the_color():
    picture = Image.new("RGB", (80, 40), (200, 100, 50))
    grid = ((0.0, 0.0), (0.0, 0.5))
    preview = PicturePreview(80, 40, picture, (), (), 0, "")
    lit = np.asarray(spotlit(TileMap(TILE, grid), preview, most=0.5)).astype(int)
    assert lit[39, 79].tolist() == [200, 100, 50]
    assert lit[0, 0].sum() < 0.35 * (200 + 100 + 50)


def test_two_requests_differ_in_one_setting_and_share_their_seed():
    earlier = Turn("user", "a", (NIGHT,), pan_and_scan=True)
    request = Request((earlier, Turn("assistant", "b"), Turn("user", "c")), sampling=SamplingSettings(1.0), int4=True)
    default = SamplingSettings(0.5)
    off, on = both_requests(request, "pan_and_scan", default)
    assert (off.pan_and_scan, on.pan_and_scan) == (False, True)
    assert off.turns[0] == on.turns[0] == earlier
    assert off.sampling == on.sampling
    assert off.sampling.seed is not None
    assert [one.int4 for one in both_requests(request, "int4", default)] == [False, True]
    left_open = both_requests(replace(request, sampling=None), "int4", default)
    assert {one.sampling for one in left_open} == {replace(default, seed=0)}
    assert all(one.confidence for one in (off, on))


def test_an_answer_with_crops_of_its_own_is_compared_without_them_and_as_it_was():
    earlier = Turn("user", "a", (NIGHT,), pan_and_scan=True)
    closer = Turn("user", "c", (NIGHT, NIGHT), crops=((Box(0, 0, 99, 99),), None))
    request = Request((earlier, Turn("assistant", "b"), closer), sampling=SamplingSettings(1.0, seed=3))
    off, on = both_requests(request, "pan_and_scan", SamplingSettings())
    assert off.turns == (*request.turns[:2], replace(closer, crops=(), pan_and_scan=False))
    assert on == replace(request, confidence=True, reuse=False)
    none_chosen = replace(request, turns=(replace(closer, crops=((), None)),))
    assert both_requests(none_chosen, "pan_and_scan", SamplingSettings())[1].turns[0].pan_and_scan is True


def test_the_columns_of_an_answer_with_crops_are_named_for_them(engine):
    turn = Turn("user", "What color is the star?", (NIGHT,), crops=((Box(350, 0, 640, 200),),))
    request = Request((turn,), max_new_tokens=8)
    shown = Answered(request, list(engine.stream(request))[-1])

    async def all_of_it():
        models = ModelRegistry(engine)
        return [html async for html in compared(models, engine.info.name, request, "pan_and_scan")]

    before, after = run(all_of_it())[-1].split("</section>", 1)
    assert "<h3>Without the crops</h3>" in before
    assert "<h3>With the crops</h3>" in after
    assert ("1 crop" in before, "1 crop" in after) == (False, True)
    assert unescape(re.sub("</?mark>", "", after)).count(f"<p>{shown.done.text}</p>") == 1


def test_the_first_difference_of_two_answers():
    one = [choice(1), choice(2), choice(3)]
    assert first_difference(one, one) is None
    assert first_difference(one, [choice(1), choice(9)]) == 1
    assert first_difference(one, one[:2]) == 2


def test_a_drawn_box_is_checked():
    sizes = [(200, 100)]
    assert drawn_box("0 0.1 0.2 0.5 0.6", sizes) == (0, Box(20, 20, 100, 60))
    assert drawn_box("0 -1 0 2 1", sizes) == (0, Box(0, 0, 200, 100))
    wrongs = ("", "0", "1 0 0 1 1", "-1 0 0 1 1", "0 a b c d", "0 0 0 1", "0 nan 0 1 1", "inf 0 0 1 1", "0 .5 .5 .5 1")
    for wrong in wrongs:
        with pytest.raises(Gemma3Error):
            drawn_box(wrong, sizes)


def test_the_mask_that_the_page_draws_is_the_engines(engine, exchange):
    request = exchange.answered.request
    mask = engine.mask(request)
    html = mask_html(mask, engine.inspect(request))
    data = json.loads(unescape(re.search(r'data-view="([^"]*)"', html)[1]))
    assert len(data["tokens"]) == len(mask.tokens)
    assert data["blocks"] == ["picture 1"]
    for kind in ("global", "local"):
        for query, runs in enumerate(data["rows"][kind]):
            allowed = {key for first, last in zip(runs[::2], runs[1::2], strict=True) for key in range(first, last + 1)}
            assert allowed == {key for key in range(len(mask.tokens)) if mask.mask(kind).allows(query, key)}


def run(awaitable):
    return asyncio.run(awaitable)


def last(updates):
    """What a handler that yields leaves on the page."""

    async def all_of_it():
        return [update async for update in updates]

    return run(all_of_it())[-1]


def test_the_pieces_of_a_word_are_one_button_and_a_word_of_content_is_chosen():
    texts = ["The", " sign", " says", " “", "S", "t", "o", "p", "”", "."]
    choices = [choice(number, text) for number, text in enumerate(texts)]
    assert words_of(choices) == [
        range(0, 1),
        range(1, 2),
        range(2, 3),
        range(3, 4),
        range(4, 8),
        range(8, 9),
        range(9, 10),
    ]
    html = answer_html(choices, chosen=6)
    assert html.count("<button") == 7
    assert 'data-number="4" aria-pressed="true"' in html
    assert ">Stop</button>" in html
    assert word_of_content(choices, "What is it?") == 1
    assert word_of_content(choices, "What does the sign say?") == 2
    assert word_of_content([choice(0, "Yes"), choice(1, ".")], "Is it?") == 0
    assert word_of_content([choice(0, "…")], "") is None
    assert [len(word) for word in words_of([choice(0, "東"), choice(1, "京")])] == [1, 1]


def test_an_answer_that_is_gone_is_never_shown(engine, exchange):
    handlers, other = InsideHandlers(ModelRegistry(engine)), replace(exchange)
    shown = Selected(exchange, 0)
    follow = partial(handlers.follow, request=Window())
    assert all(part == gr.skip() for part in last(follow(shown, Conversation((exchange,)))))
    title, *_, selected = last(follow(shown, Conversation()))
    assert (title, selected) == ("", None)

    async def first():
        return await anext(follow(shown, Conversation((other,))))

    assert run(first())[-1].exchange is other


def test_the_mask_of_the_answer_that_took_the_place_of_another_is_drawn(engine, exchange):
    """Its tab may be in sight, and is not chosen again."""
    handlers = InsideHandlers(ModelRegistry(engine))

    async def first():
        return await anext(handlers.follow(Selected(exchange, 0), Conversation((replace(exchange),)), Window()))

    shown = SimpleNamespace(**dict(zip((*OPENED, "selected"), run(first()), strict=True)))
    assert shown.mask == run(handlers.mask(shown.selected))
    assert 'class="mask-view"' in shown.mask


def opened(handlers, exchange):
    """The first updates of Inside for this answer, by their names."""

    async def first():
        return await anext(handlers.open(0, Conversation((exchange,)), Window()))

    return SimpleNamespace(**dict(zip((*OPENED, "selected"), run(first()), strict=True)))


def test_inside_shows_inputs_words_and_where_a_word_looked(engine, exchange):
    handlers = InsideHandlers(ModelRegistry(engine))
    shown = opened(handlers, exchange)
    selected = shown.selected
    # Whatever was chosen for the answer before.
    assert (shown.layer["value"], shown.head["value"]) == ("global", MEAN_HEADS)
    assert exchange.choices[selected.token].text.strip() == "yellow"  # the word of content
    assert "Inside answer 1" in shown.title
    assert "whole picture" in shown.inputs
    assert f"The prompt: {exchange.stats.prompt_tokens} tokens" in shown.inputs
    assert shown.words.count("<button") == len(words_of(exchange.choices))
    color = next(n for n, one in enumerate(exchange.choices) if one.text.strip() == "yellow")
    chosen = replace(selected, token=color)
    maps = last(handlers.look(color, selected, "global", MEAN_HEADS, Window()))[1]
    data = base64.b64decode(re.search(r"base64,([^\"]*)\"", maps)[1])
    light = np.asarray(Image.open(BytesIO(data)).convert("L"), np.float32)
    row, column = np.unravel_index(light.argmax(), light.shape)
    with Image.open(NIGHT) as picture:
        red, green, blue = picture.convert("RGB").resize(light.shape[::-1]).getpixel((int(column), int(row)))
    assert min(red, green) > 200 > blue  # the star is what lies in the light
    assert last(handlers.look_again(chosen, "0", 1, Window()))[0] != maps
    effect = last(handlers.hide(chosen, Window()))
    assert "the probability of “yellow” goes from" in effect


def test_inside_shows_what_a_word_rests_on_and_where_that_is(engine, exchange):
    handlers = InsideHandlers(ModelRegistry(engine))
    assert opened(handlers, exchange).view == RESTS
    color = next(n for n, one in enumerate(exchange.choices) if one.text.strip() == "yellow")
    selected = Selected(exchange, color)
    looked, _ = last(handlers.look_again(selected, "global", MEAN_HEADS, Window()))
    maps, rest = last(handlers.look_again(selected, "global", MEAN_HEADS, Window(), RESTS))
    assert last(handlers.look(color, selected, "global", MEAN_HEADS, Window(), RESTS))[1:3] == (maps, rest)
    source = re.compile(r"base64,([^\"]*)")
    assert source.search(maps)[1] != source.search(looked)[1]
    assert "of the attention" not in maps
    left, top, width, height = map(float, re.findall(r"[\d.]+", re.search(r'class="place" style="([^"]*)', maps)[1]))
    # The star of night.png, as test_inside.py of the browser draws it: 57 to 87 % across, 0 to 72 % down.
    assert 55 < left < left + width < 90
    assert 5 < top < top + height < 75
    assert "The dashed box is an estimate of the place that “yellow” is about" in maps
    number, crop = drawn_box(re.search(r'class="closer-place" data-region="([^"]*)"', maps)[1], [(1000, 1000)])
    box = tuple(10 * side for side in (left, top, left + width, top + height))
    assert number == 0
    assert crop == pytest.approx(
        (box[0] - 5 * width, box[1] - 5 * height, box[2] + 5 * width, box[3] + 5 * height), abs=2
    )
    assert re.search(r"The probability of “yellow” is (100|9\d) % with the picture, and [\d.< ]+ % without it", rest)
    assert "hardly mattered" not in rest
    assert rest.count('scope="row">Layer') == 10, "heads"
    assert "What each layer would have said" in rest
    region = re.search(r'class="maps" data-region="([^"]*)"', maps)[1]
    effect = last(handlers.hide(selected, Window(), region))
    assert "the probability of “yellow” goes from" in effect, "what is hottest here can be hidden"


@pytest.mark.parametrize(
    ("change", "view"),
    [
        ({}, RESTS),
        ({"num_parameters": 4_000_000_000}, LOOKED),
        ({"num_parameters": 4_000_000_000, "device": "cuda"}, RESTS),
        ({"device": "cuda", "borrowed": True}, LOOKED),
        ({"num_parameters": 4_000_000_000, "device": "another server", "outside": "Another server answered."}, LOOKED),
        ({"device": "another server", "outside": "Another server answered."}, RESTS),
    ],
)
def test_the_faithful_map_comes_first_where_it_takes_seconds(engine, exchange, change, view):
    """The demo model's does; a billion weights on a CPU take minutes, and a GPU that is lent would be lent again."""
    handlers = InsideHandlers(registry := ModelRegistry(engine))
    registry.info = lambda _name: replace(engine.info, **change)

    async def first_two():
        updates = handlers.open(0, Conversation((exchange,)), Window())
        panel, *rest = [update async for update in updates]
        return dict(zip(OPENED, panel, strict=False)), dict(zip(OPENED, rest[-1], strict=False))

    panel, drawn = run(first_two())
    assert panel["view"] == view
    assert ("Where the model looked on" in drawn["maps"]) is (view == LOOKED)
    assert ("What the answer rests on in" in drawn["maps"]) is (view == RESTS)
    assert drawn["view"] == gr.skip(), "by now the visitor may have chosen the other"


@pytest.mark.parametrize("opens", [True, False])
def test_what_is_asked_after_the_words_are_shown_is_the_newer_look(engine, exchange, opens):
    """On a busy machine it may begin before the words' own map does, and must not be given up for that."""
    color = next(n for n, one in enumerate(exchange.choices) if one.text.strip() == "yellow")
    handlers, selected = InsideHandlers(ModelRegistry(engine)), Selected(exchange, color)

    async def both():
        if opens:
            words = handlers.open(0, Conversation((exchange,)), Window())
        else:
            words = handlers.look(color, selected, "global", MEAN_HEADS, Window())
        await anext(words)
        again = handlers.look_again(selected, "global", MEAN_HEADS, Window(), RESTS)
        first = await anext(again)  # it waits for its map
        maps = [update async for update in words]
        return maps, [first, *[update async for update in again]]

    maps, again = run(both())
    assert all(change == gr.skip() for update in maps for change in update)
    assert "The dashed box" in again[-1][0]


@pytest.fixture(scope="module")
def in_fields(engine):
    question = Turn("user", "What color is the star?", (NIGHT,))
    request = ask_in_fields(Request((question,)), read_fields("color: red, yellow, blue, green"), named=False)
    *tokens, done = engine.stream(request)
    choices = [e.choice for e in tokens if isinstance(e, TokenEvent) and e.choice is not None]
    return Exchange(question, False, Answered(request, done), TokenChoices(choices), fields="color: red, yellow")


def test_a_value_is_hidden_by_its_least_sure_token_and_the_new_answer_keeps_to_the_schema(engine, in_fields):
    pytest.importorskip("llguidance")
    (color,) = in_fields.values
    assert in_fields.choices[color.tokens.start].text == '"', "a value's first token is a quote"
    handlers = InsideHandlers(ModelRegistry(engine))
    effect = last(handlers.hide(Selected(in_fields, color.tokens.start), Window(), "0 0.5 0 1 0.8"))
    assert f"the probability of “y” in “yellow” goes from <b>{percent(color.probability)}</b> to" in effect
    becomes = unescape(re.search(r"The answer becomes: “(.*)”", effect)[1])
    assert json.loads(becomes)["color"] in ("red", "yellow", "blue", "green")


def test_a_value_rests_on_the_picture_with_the_probability_of_the_table(engine, in_fields):
    pytest.importorskip("llguidance")
    (color,) = in_fields.values
    handlers = InsideHandlers(ModelRegistry(engine))
    selected = Selected(in_fields, color.tokens.start)
    _, rest = last(handlers.look_again(selected, "global", MEAN_HEADS, Window(), RESTS))
    assert f"The probability of “yellow” is {percent(color.probability)} with the picture" in rest
    rests = engine.why(in_fields.answered, color.tokens).rests_on
    assert rests.seen == pytest.approx(color.probability, abs=1e-4)
    assert rests.unseen < 0.5


def test_an_answer_in_json_by_another_server_gets_no_verdict(engine, in_fields, monkeypatch):
    monkeypatch.setattr(engine, "info", replace(engine.info, outside="by another server"))
    monkeypatch.setattr(engine, "occlude", lambda *_, **__: OcclusionReport(0, Box(0, 0, 9, 9), "y", 0.9, 0.1, "Red."))
    handlers, selected = InsideHandlers(ModelRegistry(engine)), Selected(in_fields, in_fields.values[0].tokens.start)
    assert "The answer becomes" not in last(handlers.hide(selected, Window()))


@pytest.mark.parametrize(("outside", "offered"), [("", True), ("by another server", False)])
def test_a_closer_look_is_offered_only_where_the_model_takes_crops(engine, exchange, monkeypatch, outside, offered):
    monkeypatch.setattr(engine, "info", replace(engine.info, outside=outside))
    handlers, selected = InsideHandlers(ModelRegistry(engine)), Selected(exchange, 0)
    for view in (RESTS, LOOKED):
        maps, _ = last(handlers.look_again(selected, "global", MEAN_HEADS, Window(), view))
        offers = [name for name in ("closer-box", "ask-box", "closer-place", "to ask about it") if name in maps]
        assert bool(offers) == offered
        assert "hide-box" in maps
        assert "to hide that region" in maps


def test_a_picture_that_changed_nothing_is_told(engine):
    asked = Turn("user", "Thank you!", (NIGHT,))
    request = Request((asked,), confidence=True)
    events = list(engine.stream(request))
    choices = [e.choice for e in events if isinstance(e, TokenEvent) and e.choice is not None]
    report = engine.why(Answered(request, events[-1]), [1])
    assert report.place is None
    assert "The picture changed nothing in the whole answer" in anyway_html(report, choices)
    # Of one whose probabilities are unknown, this word is told alone.
    assert "The picture hardly mattered for “can”" in anyway_html(report, ())
    assert not changed_nothing(report, choices[:-1])
    surer = [replace(choices[0], probability=0.5), *choices[1:]]
    assert not changed_nothing(report, surer)


def test_what_depends_on_the_model_comes_with_the_panel_and_never_again(engine, exchange, monkeypatch):
    models = ModelRegistry(engine)
    monkeypatch.setattr(ModelRegistry, "names", ("another", engine.info.name, "a third"))
    handlers, fields = InsideHandlers(models), (*OPENED, "selected")

    async def updates(opens):
        return [SimpleNamespace(**dict(zip(fields, update, strict=True))) async for update in opens]

    conversation = Conversation((exchange,))
    for opens in (
        handlers.open(0, conversation, Window()),
        # After its exchange is gone, the one that took its place is shown: perhaps another model's.
        handlers.follow(Selected(replace(exchange), 0), conversation, Window()),
    ):
        first, *later = run(updates(opens))
        assert (first.other["choices"], first.other["value"]) == (["another", "a third"], "another")
        assert first.hide["interactive"]
        assert len(first.layer["choices"]) == 2 + len(engine.info.layers)
        assert later
        for update in later:  # by now the visitor may have chosen another model, layer or head
            assert update.other == update.layer == update.head == gr.skip()


def test_pan_and_scan_is_compared_only_where_the_question_has_pictures_of_its_own(engine):
    for own in (True, False):
        updates = model_updates(engine.info, [engine.info.name], RESTS, True, own)
        assert updates["compare_pan_and_scan"]["visible"] is own
        assert updates["compare_pan_and_scan"]["value"] == "Pan & scan off and on"
    updates = model_updates(engine.info, [engine.info.name], RESTS, True, True, own_crops=True)
    assert updates["compare_pan_and_scan"]["value"] == "Without and with the crops"


def test_rollout_of_one_head_is_refused_in_place(engine, exchange):
    maps, _ = last(InsideHandlers(ModelRegistry(engine)).look_again(Selected(exchange, 0), "rollout", 1, Window()))
    assert 'role="alert"' in maps


def test_what_can_not_be_looked_at_says_why(engine, exchange, tmp_path):
    handlers = InsideHandlers(ModelRegistry(engine))
    assert NO_WORD in last(handlers.hide(Selected(exchange), Window()))
    gone = Turn("user", "What color is the star?", (tmp_path / "gone.png",))
    request = replace(exchange.answered.request, turns=(gone,))
    lost = replace(exchange, question=gone, answered=Answered(request, exchange.answered.done))
    assert 'role="alert"' in opened(handlers, lost).inputs
    other = replace(exchange.answered.done, stats=replace(STATS, model="another model"))
    switched = replace(exchange, answered=Answered(exchange.answered.request, other))
    for view in (LOOKED, RESTS):
        told = last(handlers.look_again(Selected(switched, 0), "global", MEAN_HEADS, Window(), view))[0]
        assert "is not offered here" in told
        assert "gone" in last(handlers.look_again(Selected(lost, 0), "global", MEAN_HEADS, Window(), view))[0]
    for number in (None, 7, -1):
        nothing = last(handlers.open(number, Conversation((exchange,)), Window()))
        assert all(part == gr.skip() for part in nothing)
        assert last(handlers.look(number, Selected(exchange), "global", MEAN_HEADS, Window()))[0] == run(
            handlers.mask(None)
        )


def test_both_precisions_are_compared(engine, exchange):
    async def all_of_it():
        return [
            html async for html in InsideHandlers(ModelRegistry(engine)).compare(Selected(exchange), "int4", Window())
        ]

    last = run(all_of_it())[-1]
    assert last.count("<section>") == 2
    assert "first token" in last
    assert "Both answers are the same" in last or "The answers part at token" in last


@pytest.fixture
def closed(engine, monkeypatch):
    """Holds an entry for each answer that was closed; all answers are without end."""
    ends = []

    def stream(_request, _stop=None):
        try:
            while True:
                yield TokenEvent("a ")
        finally:
            ends.append(True)

    monkeypatch.setattr(engine, "stream", stream)
    return ends


def test_leaving_a_comparison_ends_the_engines_work(engine, exchange, closed):
    async def leave():
        comparison = InsideHandlers(ModelRegistry(engine)).compare(Selected(exchange), "int4", Window())
        await anext(comparison)
        await comparison.aclose()
        for _ in range(100):
            if closed:
                return
            await asyncio.sleep(0.05)

    run(leave())
    assert closed == [True]


def test_many_who_wait_inside_hold_no_thread_of_the_event_loop(engine, exchange, monkeypatch):
    waiting = threading.Event()
    monkeypatch.setattr(engine, "mask", lambda _request: waiting.wait(20))

    async def others_go_on():
        handlers = InsideHandlers(ModelRegistry(engine))
        held = [asyncio.create_task(handlers.mask(Selected(exchange))) for _ in range(12)]
        await asyncio.sleep(0.1)
        try:
            return await asyncio.wait_for(asyncio.to_thread(lambda: "answered"), 5)
        finally:
            waiting.set()
            await asyncio.gather(*held)

    assert run(others_go_on()) == "answered"


class Waits:
    """In the place of Engine.attention and Engine.occlude: waits until it is given up."""

    def __init__(self):
        self.stops = []

    def __call__(self, *_given, stop, tell):
        self.stops.append(stop)
        tell("2nd in the queue")
        assert stop.wait(20)
        raise StoppedError("given up")


async def waited(updates, text):
    """Goes on until one of the updates holds this text."""
    async for update in updates:
        if text in str(update):
            return update
    raise AssertionError(f"{text} never came")


@pytest.mark.parametrize(
    "leave",
    [
        lambda handlers, _selected: handlers.close(Window()),
        lambda handlers, _selected: handlers.leave(Window()),
        lambda handlers, _selected: handlers.stop_looking(Window()),
        lambda handlers, selected: anext(handlers.open(0, Conversation((selected.exchange,)), Window())),
        lambda handlers, selected: anext(handlers.look(1, selected, "global", MEAN_HEADS, Window())),
        lambda handlers, selected: anext(handlers.look_again(selected, "rollout", MEAN_HEADS, Window())),
    ],
    ids=["close", "leave", "stop", "another turn", "another word", "another layer"],
)
@pytest.mark.parametrize("view", [LOOKED, RESTS])
def test_looking_that_waits_says_so_and_is_given_up(engine, exchange, monkeypatch, leave, view):
    waits = Waits()
    monkeypatch.setattr(engine, "attention", waits)
    monkeypatch.setattr(engine, "why", waits)

    async def go():
        handlers, selected = InsideHandlers(ModelRegistry(engine)), Selected(exchange, 0)
        first = handlers.look(0, selected, "global", MEAN_HEADS, Window(), view)
        other = handlers.look(0, selected, "global", MEAN_HEADS, Window("another visitor"))
        shown = await waited(first, "2nd in the queue")
        await waited(other, "2nd in the queue")
        leaving = asyncio.create_task(_of(leave(handlers, selected)))
        last_one = [update async for update in first][-1]
        assert [stop.is_set() for stop in waits.stops[:2]] == [True, False], "nobody else's is given up"
        await handlers.close(Window("another visitor"))
        async for _ in other:
            pass
        await handlers.close(Window())
        await leaving
        return shown, last_one

    shown, last_one = run(go())
    assert 'data-act="look-stop"' in shown[1]
    assert all(part == gr.skip() for part in last_one), "what has been given up changes nothing on the page"


async def _of(awaitable):
    return await awaitable


def test_hiding_that_waits_is_given_up_without_the_maps(engine, exchange, monkeypatch):
    monkeypatch.setattr(engine, "occlude", waits := Waits())

    async def go():
        handlers, selected = InsideHandlers(ModelRegistry(engine)), Selected(exchange, 0)
        hiding = handlers.hide(selected, Window())
        shown = await waited(hiding, "2nd in the queue")
        assert await handlers.stop_hiding(Window()) == HIDING
        return shown, [update async for update in hiding]

    shown, rest = run(go())
    assert 'data-act="hide-stop"' in shown
    assert rest[-1] == gr.skip()
    assert waits.stops[0].is_set()


def test_a_comparison_that_waits_is_stopped(engine, exchange, monkeypatch):
    """The button stands there from the first drawing on, and the engine sees the stop while it waits."""
    given = []

    def stream(_request, stop=None):
        given.append(stop)
        yield StageEvent("queued", "9th in the queue")
        assert stop.wait(60)
        yield DoneEvent("", replace(STATS, stop_reason="cancelled"))

    monkeypatch.setattr(engine, "stream", stream)

    async def go():
        handlers = InsideHandlers(ModelRegistry(engine))
        drawings = handlers.replay(Selected(exchange), Window())
        first = await anext(drawings)
        assert await handlers.stop_comparing(Window()) == ""
        return first, [html async for html in drawings]

    first, rest = run(go())
    assert "9th in the queue" in first
    assert 'data-act="compare-stop"' in first
    assert rest == [gr.skip()]
    assert given[0].is_set()


def test_closing_the_panel_ends_a_comparison(engine, exchange, closed):
    async def go():
        handlers = InsideHandlers(ModelRegistry(engine))
        comparison = handlers.compare(Selected(exchange), "int4", Window())
        await anext(comparison)
        await handlers.close(Window())
        rest = [update async for update in comparison]
        for _ in range(100):
            if not closed:
                await asyncio.sleep(0.05)
        return rest

    assert run(go())[-1] == gr.skip()
    assert closed == [True]


def test_a_stopped_answer_is_looked_into(engine, exchange):
    answered, choices = stopped_after(engine, exchange.answered.request, 4)
    stopped = Exchange(exchange.question, False, answered, TokenChoices(choices))
    assert stopped.stats.stop_reason == "cancelled"
    handlers = InsideHandlers(ModelRegistry(engine))
    shown = opened(handlers, stopped)
    selected = shown.selected
    assert f"The prompt: {exchange.stats.prompt_tokens} tokens" in shown.inputs
    assert (shown.words.count("<button"), shown.maps) == (4, CHOOSE_WORD)
    whole = last(handlers.look(3, Selected(exchange), "global", MEAN_HEADS, Window()))
    assert last(handlers.look(3, selected, "global", MEAN_HEADS, Window()))[1] == whole[1]
    assert "the probability of" in last(handlers.hide(Selected(stopped, 3), Window()))
    assert "data-view" in run(handlers.mask(selected))


SETTINGS = (False, "Be brief.", 0.0, 0, 1.0, "", 256)


def test_the_prompt_is_counted_before_it_is_sent(engine, exchange):
    previews, conversation = ChatHandlers(ModelRegistry(engine), ()).previews, Conversation((exchange,))
    message = {"text": "And the heart?", "files": [str(NIGHT)]}
    html = previews.token_count(message, conversation, Window(), *SETTINGS, None, None, None, False)
    turns = conversation.turns(question_of("And the heart?", [str(NIGHT)]))
    prompt = engine.inspect(Request(turns, "Be brief."))
    assert f"Tokens in the whole prompt: {len(prompt.tokens):,} (128 for 2 pictures)<" in html
    assert "<span" not in html
    opened = previews.token_count(message, conversation, Window(), *SETTINGS, None, None, None, True)
    assert prompt_html(prompt) in opened
    assert opened.startswith("<details open>")
    assert "picture 2: 64 soft tokens" in opened
    assert (
        previews.token_count({"text": " ", "files": []}, conversation, Window(), *SETTINGS, None, None, None, True)
        == ""
    )
    gone = {"text": "What?", "files": ["/cache/gone.png"]}
    assert previews.token_count(gone, conversation, Window(), *SETTINGS, None, None, None, False) == ""
    many = {"text": "What?", "files": [str(NIGHT)] * 200}
    assert "pictures are too many" in previews.token_count(
        many, conversation, Window(), *SETTINGS, None, None, None, False
    )
    long = {"text": "star " * 9000, "files": []}
    told = previews.token_count(long, conversation, Window(), *SETTINGS, None, None, None, True)
    assert "that fit beside the answer" in told
    assert re.search(r"[\d,]+ tokens not shown here", told)
