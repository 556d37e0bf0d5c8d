"""However fast tokens come, the page, `/ask` and Compare are drawn twenty times a second at most."""

import asyncio
from itertools import count
from types import SimpleNamespace

import pytest
from window import DEMO, STATS, Window, exchange_of, typed

from components.chat.conversation import Conversation, question_of
from components.chat.handlers import ChatHandlers
from components.endpoint import AskEndpoint
from components.inside.compare import compared, replayed
from components.serving.desk import FrontDesk, Operation
from gemma3_core.engine import DoneEvent, ModelRegistry, TokenEvent
from gemma3_core.engine.fair_queue import FairQueue

TOKENS, MOST_PER_S = 400, 20
TICK_S = 0.01  # by which the clock goes on whenever it is read: at least once a token


class Talking:
    """An engine whose tokens come as fast as they are read."""

    def __init__(self):
        self.info, self.queue = DEMO, FairQueue()

    def forget(self, visitor):
        pass

    def stream(self, _request, _stop=None):
        yield from (TokenEvent("word ") for _ in range(TOKENS))
        yield DoneEvent("word " * TOKENS, STATS)


def sent(models):
    updates = ChatHandlers(models, ()).send(typed("Talk."), Conversation(), Window(), 0, False, "", 0.0, 0, 1.0, "", 8)
    return updates, 1


def asked(models):
    program = SimpleNamespace(session_hash="one", headers={})
    return AskEndpoint(FrontDesk(models, Operation())).ask(program, question="Talk."), 1


def beside(models):
    return compared(models, DEMO.name, exchange_of(question_of("Talk.", []), "word").answered.request, "int4"), 2


def again(models):
    return replayed(models, exchange_of(question_of("Talk.", []), "word")), 1


@pytest.mark.parametrize("asks", [sent, asked, beside, again])
def test_tokens_are_drawn_together(monkeypatch, asks):
    ticks = count()
    monkeypatch.setattr("components.chat.running.time", SimpleNamespace(monotonic=lambda: TICK_S * next(ticks)))

    async def drawn():
        updates, answers = asks(ModelRegistry(Talking()))
        return sum([1 async for _ in updates]), answers

    times, answers = asyncio.run(drawn())
    passed_s = TICK_S * next(ticks)
    assert passed_s >= TICK_S * TOKENS * answers, "each token asks whether it is to be drawn"
    assert 10 < times <= MOST_PER_S * passed_s + 3 * answers, "and the first and the last update of an answer"
