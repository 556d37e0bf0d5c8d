"""Where a closer look at an unsure answer looks: at what its least sure word rests on, where the map says that."""

import asyncio
import threading
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
from places import EXAMPLES
from running_app import require_demo_model
from window import DEMO, STATS, Window, choice, exchange_of, run

from components.chat.closer_look import region_of, word_to_look_for
from components.chat.conversation import Conversation, Exchange, question_of
from components.chat.handlers import ANSWER_STAYS, LOOKING, STOPPED_EARLY, UNEXPECTED, ChatHandlers
from components.serving.desk import FrontDesk, Operation
from components.serving.ledger import DAY_S, Allowance, MemoryLedger
from components.shown.regions import drawn_box, region_around
from gemma3_core.engine import (
    Answered,
    Box,
    DoneEvent,
    Engine,
    Gemma3Error,
    ModelRegistry,
    OutOfMemoryError,
    Place,
    PromptView,
    QueueFullError,
    Request,
    StoppedError,
    TokenChoices,
    TokenEvent,
    Turn,
)
from gemma3_core.engine.fair_queue import FairQueue

VALUES = (False, "", 0.0, 0, 1.0, "", 8)
ORDINARY = replace(DEMO, is_demo=False)
LARGE = replace(ORDINARY, num_parameters=4_300_000_000)
PLACE = Place(0, Box(40, 40, 60, 50), 3, 1)
LOOK_AGAIN = ((Box(30, 35, 70, 55),),)
EVENLY = ("auto",)


def unsure(answer="The sign says stop.", *probabilities, pictures=("/cache/a.png",)) -> Exchange:
    """An unsure answer, a token for each of its words and marks."""
    words = [" " + word for word in answer.replace(".", " .").split()]
    given = probabilities or [0.3] * len(words)
    choices = [choice(place, text, one) for place, (text, one) in enumerate(zip(words, given, strict=True))]
    exchange = exchange_of(question_of("What does it say?", [*pictures]), answer)
    return replace(exchange, choices=TokenChoices(choices))


def with_effect(exchange: Exchange, effect: float) -> Exchange:
    return replace(
        exchange, answered=replace(exchange.answered, done=replace(exchange.answered.done, picture_effect=effect))
    )


@pytest.mark.parametrize(
    ("exchange", "info", "word"),
    [
        (unsure("The sign says stop.", 0.1, 0.6, 0.7, 0.2, 0.1), ORDINARY, 3),  # not "The", and not the full stop
        (unsure("The sign says stop.", 0.9, 0.1, 0.2, 0.9, 0.9), ORDINARY, 1),
        (unsure("It is.", 0.3, 0.2, 0.1), ORDINARY, 1),  # all of it is grammar
        (unsure("…", 0.1), ORDINARY, None),
        (with_effect(unsure(), 0.3), ORDINARY, 1),
        (with_effect(unsure(), 0.01), ORDINARY, None),  # the pictures changed nothing
        (unsure("The writing is too small."), ORDINARY, None),  # no word stands for it
        (unsure("The sign says stop.", *[0.9] * 5), ORDINARY, None),
        (unsure(), DEMO, None),
        (unsure(), LARGE, None),  # minutes
        (unsure(), replace(LARGE, device="cuda:0"), 1),
        (unsure(), replace(LARGE, device="mps:0"), 1),
        (unsure(), replace(LARGE, device="cuda:0", borrowed=True), None),  # a second call of the visitor's
        (unsure(), replace(ORDINARY, outside="another server"), None),
        (unsure(), None, None),
        (unsure(pictures=()), ORDINARY, None),
        (replace(unsure(), first=unsure()), ORDINARY, None),
    ],
)  # fmt: skip
def test_the_least_sure_word_of_content_is_looked_for_where_that_is_soon_done(exchange, info, word):
    if not exchange.question.pictures:
        no_pictures = replace(exchange.answered.done, stats=replace(STATS, num_images=0))
        exchange = replace(exchange, answered=Answered(exchange.answered.request, no_pictures))
    assert word_to_look_for(exchange, info) == (None if word is None else range(word, word + 1))


def test_of_an_answer_in_fields_the_least_sure_value_is_looked_for():
    tokens = ['{"', "color", '": "', "red", '", "', "shape", '": "', "st", "ar", '"}']
    sure = {3: 0.3, 7: 0.9, 8: 0.05}
    answer = exchange_of(question_of("Tell", ["/cache/a.png"]), "".join(tokens))
    asked = replace(answer.answered.request, json_schema='{"type": "object"}')
    choices = [choice(place, text, sure.get(place, 0.3)) for place, text in enumerate(tokens)]
    exchange = replace(answer, answered=replace(answer.answered, request=asked), choices=TokenChoices(choices))
    assert word_to_look_for(exchange, ORDINARY) == exchange.values[1].tokens


def report(place):
    return SimpleNamespace(place=place)


def test_a_place_is_looked_at_with_what_is_around_it_as_inside_does():
    sizes, box = [(300, 200), (640, 400)], Box(375, 106, 500, 228)
    number, crop = region_of(report(Place(1, box, 0, 0)), sizes)
    assert (number, crop) == (1, Box(313, 45, 562, 289))
    inside = drawn_box(region_around(1, box, sizes[1]), sizes)
    assert inside[0] == 1
    assert inside[1] == pytest.approx(crop, abs=1)
    assert region_of(report(Place(0, Box(280, 0, 300, 20), 0, 0)), sizes) == (0, Box(270, 0, 300, 30)), (
        "cut at the edge"
    )


@pytest.mark.parametrize(
    "place",
    [
        None,  # the pictures hardly mattered
        Place(0, Box(40, 40, 140, 160), 0, 0),  # more than half of the picture
        Place(0, Box(40, 40, 47, 60), 0, 0),  # fewer pixels than a crop must have
    ],
)
def test_a_place_that_says_nothing_is_no_region(place):
    assert region_of(report(place), [(200, 200)]) is None


class Looking:
    """An engine whose map of a word has this place, or fails, once it may; it answers at once."""

    def __init__(self, place=PLACE, pictures=1):
        self.info, self.queue, self.place, self.pictures = ORDINARY, FairQueue(), place, pictures
        self.requests, self.words, self.stops = [], [], []
        self.may_end = threading.Event()
        self.may_end.set()

    def stream(self, request, _stop=None):
        self.requests.append(request)
        yield DoneEvent("It says Shop.", STATS)

    def why(self, _answered, word, *, stop, tell):
        self.words.append(word)
        self.stops.append(stop)
        tell("2nd in the queue")
        while not self.may_end.wait(0.01):
            if stop.is_set():
                raise StoppedError("stopped")
        if isinstance(self.place, Exception):
            raise self.place
        return report(self.place)

    def inspect(self, _request):
        whole = [SimpleNamespace(box=Box(0, 0, 200, 200), crop=None)] * self.pictures
        return PromptView((), (*whole, SimpleNamespace(box=Box(0, 0, 100, 200), crop=1)))

    def forget(self, visitor):
        pass


def closer(engine, exchange, **options):
    handlers = ChatHandlers(ModelRegistry(engine), (), **options)
    return handlers, handlers.look_closer(0, "", "", Conversation((exchange,)), Window(), *VALUES)


def test_a_closer_look_at_an_unsure_answer_takes_a_crop_of_what_it_rests_on():
    engine, first = Looking(), unsure("The sign says stop.", 0.3, 0.3, 0.3, 0.1, 0.3)
    shown, after, notice = run(closer(engine, first)[1])
    (exchange,) = after.exchanges
    assert engine.words == [range(3, 4)]
    assert exchange.question.crops == LOOK_AGAIN
    assert (exchange.answer, exchange.first) == ("It says Shop.", first)
    assert "The next question reads the new answer." in notice
    assert [part for part in shown[-1]["content"] if "At first sight" in str(getattr(part, "value", part))]


def test_of_several_pictures_only_the_one_that_the_answer_rests_on_is_cropped():
    engine = Looking(replace(PLACE, picture=1), pictures=2)
    _, after, _ = run(closer(engine, unsure(pictures=("/cache/a.png", "/cache/b.png")))[1])
    assert after.exchanges[0].question.crops == (None, *LOOK_AGAIN)
    assert engine.requests[0].turns[-1].pictures == (Path("/cache/a.png"), Path("/cache/b.png"))


def test_what_is_too_small_and_what_no_map_can_say_soon_is_tiled_evenly_without_a_map():
    for exchange, info in ((unsure("It is too small."), ORDINARY), (unsure(), LARGE), (unsure(), DEMO)):
        engine = Looking()
        engine.info = info
        _, after, _ = run(closer(engine, exchange)[1])
        assert (after.exchanges[0].question.crops, engine.words) == (EVENLY, [])


@pytest.mark.parametrize(
    "place",
    [
        None,
        replace(PLACE, box=Box(0, 0, 200, 200)),
        OutOfMemoryError("no memory"),
        QueueFullError("full"),
        Gemma3Error("This answer is by another model"),
    ],
    ids=["hardly", "large", "memory", "queue", "model"],
)
def test_without_a_region_the_picture_is_tiled_evenly(place, caplog):
    caplog.set_level("INFO", "components.chat.handlers")
    engine = Looking(place)
    _, after, _ = run(closer(engine, unsure())[1])
    assert (after.exchanges[0].question.crops, len(engine.words)) == (EVENLY, 1)
    assert (str(place) in caplog.text) is isinstance(place, Exception)


def test_a_fault_in_the_map_is_told_and_nothing_is_asked(caplog):
    engine, before = Looking(RuntimeError("shapes differ")), unsure()
    shown, after, _ = run(closer(engine, before)[1])
    assert unescape(shown[-1]["content"][0].value).startswith(f'<p class="failure" role="alert">{UNEXPECTED}')
    assert (engine.requests, after.exchanges) == ([], (before,))
    assert "shapes differ" in caplog.text


def test_the_map_counts_as_a_look_inside_and_one_that_fails_takes_no_tokens():
    records, ends = [], []

    class Kept(MemoryLedger):
        def end(self, number, tokens, counts):
            ends.append(tokens)
            super().end(number, tokens, counts)

    for place in (PLACE, OutOfMemoryError("no memory")):
        engine = Looking(place)
        desk = FrontDesk(ModelRegistry(engine), Operation(Kept(), watchers=[records.append]))
        run(closer(engine, unsure(), ask=desk.on_page, look=desk.looking)[1])
    told = [(record.door, record.outcome) for record in records]
    assert told == [("inside", "stop"), ("page", "stop"), ("inside", "failed"), ("page", "stop")]
    assert [tokens > 0 for tokens in ends] == [True, True, False, True]


def test_a_visitor_who_may_not_look_now_is_told_so_by_the_question():
    engine = Looking()
    ledger = MemoryLedger([Allowance("tokens", 100, DAY_S, together=True)])
    ledger.end(ledger.begin("", 1, 0), 100, True)
    desk = FrontDesk(ModelRegistry(engine), Operation(ledger))
    shown, after, _ = run(closer(engine, unsure(), ask=desk.on_page, look=desk.looking)[1])
    assert "You have used as many tokens" in shown[-1]["content"][0].value
    assert (engine.words, engine.requests, len(after.exchanges)) == ([], [], 1)


def while_looking(engine, exchange, does):
    """The updates of a closer look, and what `does(handlers)` gives while its map is being made."""
    engine.may_end.clear()
    handlers, look = closer(engine, exchange)
    updates = []

    async def looking():
        async for update in look:
            updates.append(update)

    async def both():
        begun = asyncio.ensure_future(looking())
        while not engine.words and not begun.done():
            await asyncio.sleep(0.01)
        given = await does(handlers)
        await asyncio.wait_for(begun, 20)
        return given

    return updates, asyncio.run(both())


def told(update) -> str:
    return update[0][-1]["content"][0].value


def test_the_page_says_that_it_looks_and_its_event_loop_goes_on():
    engine = Looking()

    async def lets_it_end(handlers):
        second = [update async for update in closer_again(handlers)]
        await asyncio.sleep(0.4)  # until what it waits for is told
        engine.may_end.set()
        return second

    def closer_again(handlers):
        return handlers.look_closer(0, "", "", Conversation((unsure(),)), Window(), *VALUES)

    updates, second = while_looking(engine, unsure(), lets_it_end)
    assert LOOKING in told(updates[0])
    first = updates[0][0][-2]["content"]
    assert "At first sight" in first[0].value
    assert f"{LOOKING} · 2nd in the queue" in told(updates[1])
    assert [update[2] for update in second] == [updates[0][2]], "a second click changes nothing"
    assert len(engine.requests) == 1


def test_stop_ends_the_map_and_nothing_is_asked():
    engine, before = Looking(), unsure()
    updates, _ = while_looking(engine, before, lambda handlers: handlers.stop(Window()))
    assert f"{STOPPED_EARLY} {ANSWER_STAYS}" in told(updates[-1])
    assert updates[-1][2].exchanges == (before,)
    assert engine.requests == []
    assert engine.stops[0].is_set()


def test_a_new_chat_ends_the_map_at_once():
    engine = Looking()
    updates, cleared = while_looking(
        engine, unsure(), lambda handlers: handlers.clear(None, Conversation((unsure(),)), Window())
    )
    assert cleared[2].exchanges == ()
    assert engine.requests == []
    assert engine.stops[0].is_set()
    assert LOOKING in told(updates[0])
    assert len(updates) == 2, "of the look nothing reaches the new chat"


def test_the_demo_model_as_an_ordinary_one_looks_closer_at_the_star():
    require_demo_model()
    engine = Engine.load(device="cpu")
    engine.info = replace(engine.info, is_demo=False)
    question = Turn("user", "What color is the star?", (EXAMPLES / "night.png",))
    request = Request((question,), confidence=True)
    *events, done = engine.stream(request)
    choices = [event.choice for event in events if isinstance(event, TokenEvent) and event.choice is not None]
    # As if it had been unsure, and of the color most.
    doubted = [replace(one, probability=0.1 if one.text.strip() == "yellow" else 0.3) for one in choices]
    exchange = Exchange(question, False, Answered(request, done), TokenChoices(doubted))
    _, after, _ = run(closer(engine, exchange)[1])
    (again,) = after.exchanges
    ((crop,),) = again.question.crops
    # The star lies at 57 to 87 % across and 0 to 72 % down; the heart's right edge is at 40 %, the circle's at 46 %.
    assert 0.4 * 640 < crop.left < 0.6 * 640
    assert 0.78 * 640 < crop.right <= 640
    assert crop.bottom < 0.8 * 400
    assert (again.stats.num_crops, again.first) == (1, exchange)
