"""How much of the server's memory a conversation takes, beside its text."""

import gc
import json
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from operator import is_

import pytest
import torch
from places import DEMO_MODEL
from window import STATS

from components.chat import record
from components.chat.conversation import Conversation, Exchange
from gemma3_core.engine import Answered, DoneEvent, Request, TokenChoice, TokenChoices, Turn
from gemma3_core.generation.row_sampler import SamplingRow, sample_rows
from gemma3_core.generation.sampling import SamplingParams
from gemma3_core.inspection.confidence import choice_of
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

MOST_BYTES_PER_TOKEN = 200
MOST_BYTES_OF_400 = 20_000_000


def bytes_per_token(num_tokens: int) -> float:
    """What an exchange keeps for each token of an answer whose probabilities were asked for."""
    tokenizer = Gemma3Tokenizer.from_pretrained(DEMO_MODEL)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_tokens, len(tokenizer.get_vocab()), generator=generator)
    greedy = SamplingRow(SamplingParams(), None)

    def chosen(row: torch.Tensor) -> TokenChoice:
        return choice_of(tokenizer, sample_rows(row[None], [greedy]).read()[0])

    chosen(logits[0])  # what the first call alone allocates is not counted
    question = Turn("user", "How many hearts are there?")
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        choices = tuple(chosen(row) for row in logits)
        ids = tuple(choice.token_id for choice in choices)
        text = "".join(choice.text for choice in choices)
        answered = Answered(Request((question,)), DoneEvent(text, STATS, ids))
        exchange = Exchange(question, False, answered, TokenChoices(choices))
        del choices, ids, text
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(exchange.choices) == num_tokens
    return (after - before) / num_tokens


def test_a_token_of_an_answer_keeps_little_memory():
    assert bytes_per_token(1_000) < MOST_BYTES_PER_TOKEN


def asked_one_after_the_other(number: int) -> Conversation:
    conversation = Conversation()
    for _ in range(number):
        question = Turn("user", "And?")
        answered = Answered(Request(conversation.turns(question)), DoneEvent("Yes", STATS))
        conversation = conversation.add(Exchange(question, False, answered))
    return conversation


def brought_back(number: int) -> Callable[[], Conversation]:
    """Reads a document of so many exchanges, each after a closer look."""
    one = record.document(asked_one_after_the_other(1).exchanges[0], lambda _path: "")
    text = json.dumps({"version": record.VERSION, "exchanges": [{**one, "first": one}] * number})
    return lambda: record.read(text, lambda _picture: None, "one").conversation


@pytest.mark.parametrize(
    "make", [partial(asked_one_after_the_other, 400), brought_back(400)], ids=["asked", "brought back"]
)
def test_a_long_conversation_holds_each_of_its_turns_once(make):
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        conversation = make()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(conversation.exchanges) == 400
    assert after - before < MOST_BYTES_OF_400
    for one, following in pairwise(conversation.exchanges):
        earlier = one.answered.request.turns[:-1]
        assert all(map(is_, earlier, following.answered.request.turns))
        if one.first is not None:
            assert all(map(is_, earlier, one.first.answered.request.turns))
