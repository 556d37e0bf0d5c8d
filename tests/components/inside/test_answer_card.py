"""The answer card: one file, complete in itself, with the maps that Inside shows."""

import base64
import json
import re
from dataclasses import replace

import pytest
from places import EXAMPLES
from window import STATS

from components.chat.conversation import Conversation, Exchange
from components.inside.answer_card import make_card
from components.inside.handlers import InsideHandlers
from components.shown.token_view import words_of
from gemma3_core.engine import Answered, DoneEvent, Engine, ModelRegistry, Request, TokenChoices, TokenEvent, Turn


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(device="cpu")


def answered(engine: Engine, *pictures: str, text: str = "What color is the star?", crops: bool = False) -> Exchange:
    question = Turn("user", text, tuple(EXAMPLES / name for name in pictures))
    request = Request((question,), pan_and_scan=crops, max_new_tokens=32, confidence=True)
    *events, done = engine.stream(request)
    choices = [event.choice for event in events if isinstance(event, TokenEvent) and event.choice is not None]
    return Exchange(question, crops, Answered(request, done), TokenChoices(choices))


def card_of(engine: Engine, exchange: Exchange) -> str:
    paths = [picture for turn in exchange.answered.request.turns for picture in turn.pictures]
    return make_card(
        engine,
        exchange,
        engine.preview(paths, pan_and_scan=False),
        lambda tokens: engine.attention(exchange.answered, tokens),
        lambda _told: None,
    )


def data_of(card: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', card, re.DOTALL)[1])


def test_each_word_has_the_map_that_the_engine_gives(engine):
    exchange = answered(engine, "night.png")
    card = card_of(engine, exchange)
    data = data_of(card)
    words = words_of(list(exchange.choices))
    assert "".join(word["text"] for word in data["words"]) == "".join(choice.text for choice in exchange.choices)
    for word, shown in zip(words, data["words"], strict=True):
        attention = engine.attention(exchange.answered, word)
        for tile, shown_map in zip(attention.tiles, shown["maps"], strict=True):
            levels = base64.b64decode(shown_map["grid"])
            exact = [weight for row in tile.grid for weight in row]
            assert shown_map["peak"] == pytest.approx(max(exact))
            for level, weight in zip(levels, exact, strict=True):
                assert abs(level / 255 * shown_map["peak"] - weight) <= shown_map["peak"] / 500
    assert data["tiles"] == [[0, 0.0, 0.0, 1.0, 1.0]]
    assert len(card.encode()) < 2_000_000


def test_crops_and_several_pictures_lie_where_they_are(engine):
    exchange = answered(engine, "wide.png", "night.png", crops=True)
    tiles = data_of(card_of(engine, exchange))["tiles"]
    assert [tile[0] for tile in tiles].count(0) > 1
    assert all(0.0 <= side <= 1.0 for tile in tiles for side in tile[1:])


def test_it_loads_nothing_and_runs_nothing_that_a_text_brings(engine):
    exchange = answered(engine, "night.png")
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(2)> $data ${figures}"
    question = replace(exchange.question, text=nasty)
    request = replace(exchange.answered.request, turns=(Turn("user", nasty), Turn("assistant", nasty), question))
    text = Exchange(question, False, Answered(request, DoneEvent(nasty, replace(STATS, model=nasty), (3,))),
                    TokenChoices())  # fmt: skip
    card = make_card(engine, text, (), lambda _tokens: pytest.fail("no word to look at"), print)
    assert card.count("<script") == 2  # the data and the card's own
    assert "<img src=x" not in card
    assert card.count("$data") >= 3
    assert not re.search(r'(src|href)="?(https?:)?//', card)
    assert "default-src 'none'" in card


def test_without_an_answer_it_says_so_and_a_refusal_is_told(engine):
    handlers = InsideHandlers(ModelRegistry(engine))

    class Visitor:
        session_hash = "one"

    def last(conversation):
        import asyncio

        async def collected():
            return [update async for update in handlers.card(None, conversation, Visitor())]

        return asyncio.run(collected())[-1]

    assert "no answer yet" in last(Conversation())[0]
    exchange = answered(engine, "night.png")
    notice, html = last(Conversation().add(exchange))
    assert (notice, html.startswith("<!doctype html>")) == ("", True)
    foreign = replace(exchange.answered.done, stats=replace(STATS, model="another"))
    notice, html = last(Conversation().add(replace(exchange, answered=replace(exchange.answered, done=foreign))))
    assert "another, which gave this answer, is not offered here" in notice
    assert html == ""
