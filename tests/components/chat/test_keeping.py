"""What a browser is given to keep comes back as it was; whatever else a browser sends is refused in plain words."""

import json
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain_words import is_plain
from window import STATS, Window, choice

from components.chat import record
from components.chat.conversation import Conversation, Exchange
from components.chat.keeping import MISSING, STILL_WRITING, Keeping
from components.examples import load_examples
from gemma3_core.engine import (
    Answered,
    Box,
    DoneEvent,
    PartialSampling,
    Request,
    TokenChoices,
    Turn,
    ask_in_fields,
    read_fields,
)

MINE = "/uploads/0a1b/mine.png"
HEARTS = next(picture for example in load_examples() for picture in example.pictures if picture.stem == "hearts")


class Chat:
    """What Keeping needs of ChatHandlers."""

    def __init__(self):
        self.running: set[str] = set()
        self.forgotten: list[str] = []

    def forget(self, window):
        self.forgotten.append(window)

    def messages(self, conversation):
        return [exchange.answer for exchange in conversation.exchanges]


@pytest.fixture
def chat():
    return Chat()


@pytest.fixture
def keeping(chat):
    return Keeping(chat, {MINE}.__contains__, load_examples())


def conversation_of_two() -> Conversation:
    first = Turn("user", "How many hearts? 心", (HEARTS, Path(MINE)), captions=("", "0:12"))
    sampling = PartialSampling(temperature=0.5, seed=7)
    asked = Request((first,), "Be short.", True, True, 64, sampling, "one", confidence=True, int4_or_default=True)
    tokens = TokenChoices([choice(5, " Th", 0.75), choice(9, "ree", 1.0)])
    one = Exchange(first, True, Answered(asked, DoneEvent("Three", STATS, (5, 9), 0.0125)), tokens)
    conversation = Conversation().add(one)
    second = Turn("user", "And?")
    asked = replace(asked, turns=conversation.turns(second), pan_and_scan=False)
    return conversation.add(Exchange(second, False, Answered(asked, DoneEvent("No", STATS, (4,))), TokenChoices()))


def document_of(given: str) -> str:
    """What the browser makes of what it was given (see conversations.js)."""
    told = json.loads(given)
    return json.dumps({"version": told["version"], "exchanges": [told["new"][key] for key in told["keys"]]})


def test_it_comes_back_as_it_was(keeping, chat):
    before = conversation_of_two()
    kept = document_of(keeping.given("[]", before))
    shown, box, after, notice = keeping.brought(kept, Conversation(), Window())
    assert after == before
    assert (shown, notice) == (["Three", "No"], gr.skip())
    assert "value" not in box  # the draft stays
    assert chat.forgotten == ["one"]


@pytest.mark.parametrize("named", [True, False])
def test_an_answer_in_fields_comes_back_with_them_and_with_the_prompt_that_it_had(keeping, named):
    question, fields = Turn("user", "How many hearts?", (HEARTS,)), "count: number\ncolor: red, blue"
    asked = Request((question,), "", False, None, 64, PartialSampling(), "one", True, int4_or_default=True)
    asked = ask_in_fields(asked, read_fields(fields), named)
    tokens = TokenChoices([choice(1, '{"count": ', 1.0), choice(2, "3", 0.5), choice(3, "}", 0.5)])
    done = DoneEvent('{"count": 3}', STATS, (1, 2, 3))
    before = Conversation().add(Exchange(question, False, Answered(asked, done), tokens, None, fields))
    _, _, after, _ = keeping.brought(document_of(keeping.given("[]", before)), Conversation(), Window())
    assert after == before
    (count,) = after.exchanges[0].values
    assert (count.name, count.value, count.probability) == ("count", 3, 0.25)


def test_a_closer_look_comes_back_with_its_crops_and_the_answer_before_it(keeping):
    first = conversation_of_two().exchanges[0]
    closer = replace(first.question, crops=((Box(1, 2, 300, 400),), "auto"))
    asked = replace(first.answered.request, turns=(closer,))
    exchange = Exchange(closer, True, Answered(asked, DoneEvent("Four", STATS, (7,))), TokenChoices(), first)
    before = Conversation((exchange,))
    kept = document_of(keeping.given("[]", before))
    assert keeping.brought(kept, Conversation(), Window())[2] == before
    hostile = json.loads(kept)
    elsewhere = json.loads(json.dumps(hostile["exchanges"][0]).replace(MINE, "/elsewhere.png"))
    assert elsewhere != hostile["exchanges"][0]
    assert record.key_of(elsewhere) == record.key_of(hostile["exchanges"][0]), "where the pictures lie does not count"
    hostile["exchanges"][0]["crops"] = [[[0, 0, 9, 9]] * 17]
    assert keeping.brought(json.dumps(hostile), Conversation(), Window())[3] != ""
    deep = json.loads(kept)
    deep["exchanges"][0]["first"]["first"] = dict(deep["exchanges"][0]["first"])
    assert keeping.brought(json.dumps(deep), Conversation(), Window())[2].exchanges[0].first.first is None


def test_only_what_is_new_is_given(keeping):
    whole = json.loads(keeping.given("[]", conversation_of_two()))
    first, second = whole["keys"]
    more = json.loads(keeping.given(json.dumps([first, "other"]), conversation_of_two()))
    assert (more["keys"], list(more["new"])) == ([first, second], [second])
    assert json.loads(keeping.given("no list", Conversation())) == {"version": 1, "id": "", "keys": [], "new": {}}


def test_a_key_says_nothing_of_where_a_picture_lies(keeping):
    document = json.loads(document_of(keeping.given("[]", conversation_of_two())))["exchanges"][0]
    moved = {**document, "pictures": []}
    assert record.key_of(moved) == record.key_of(document)
    assert record.key_of({**document, "answer": "Two"}) != record.key_of(document)
    closer = {**document, "first": document}
    assert record.key_of({**closer, "first": moved}) == record.key_of(closer)
    assert record.key_of({**closer, "first": {**document, "answer": "Two"}}) != record.key_of(closer)


def test_the_browsers_entry_stays_that_of_the_conversation(keeping):
    before = conversation_of_two()
    given = keeping.given("[]", before)
    kept = json.loads(document_of(given))
    assert len(json.loads(given)["id"]) > 8
    after = keeping.brought(json.dumps({**kept, "id": "mine"}), Conversation(), Window())[2]
    assert (after.id, after.up_to(-1).id, json.loads(keeping.given("[]", after))["id"]) == ("mine",) * 3
    assert keeping.brought(json.dumps(kept), Conversation(), Window())[2].id not in ("", "mine", before.id)


@pytest.mark.parametrize("path", ["/uploads/other/mine.png", "/etc/passwd", "", "/uploads/0a1b/../0a1b/mine.png"])
def test_a_picture_that_is_not_the_visitors_is_missing_and_said_to_be(keeping, path):
    kept = json.loads(document_of(keeping.given("[]", conversation_of_two())))
    kept["exchanges"][0]["pictures"][1]["path"] = path
    _, _, after, notice = keeping.brought(json.dumps(kept), Conversation(), Window())
    assert after.exchanges[0].question.pictures == (HEARTS,)
    assert MISSING.format("A picture").replace("'", "&#x27;") in notice


def test_nothing_is_opened_over_an_answer_that_is_being_written(keeping, chat):
    chat.running.add("one")
    *unchanged, notice = keeping.brought(document_of(keeping.given("[]", conversation_of_two())), Conversation(),
                                         Window())  # fmt: skip
    assert STILL_WRITING in notice
    assert all("__type__" in part for part in unchanged)


def test_what_stands_above_the_composer_goes_only_with_what_it_is_about(keeping, chat):
    kept = document_of(keeping.given("[]", conversation_of_two()))
    editing = replace(conversation_of_two(), changing=0)
    replaced = Conversation().replacing(conversation_of_two(), "This is a new chat.")
    assert keeping.brought(kept, Conversation(), Window())[3] == gr.skip()  # an answer did not arrive
    assert keeping.brought(kept, editing, Window())[3] == keeping.brought(kept, replaced, Window())[3] == ""
    for running in (set(), {"one"}):
        chat.running = running
        for conversation, button in ((editing, "Cancel editing"), (replaced, "Bring it back")):
            *unchanged, notice = keeping.brought("{}" if not running else kept, conversation, Window())
            assert button in notice
            assert (STILL_WRITING if running else record.UNREADABLE.split("'")[0]) in notice
            assert all(part == gr.skip() for part in unchanged)
    assert all(part == gr.skip() for part in keeping.brought("", editing, Window()))  # the browser has said why


def test_what_an_edit_or_a_new_chat_has_set_aside_returns_to_the_composer(keeping):
    draft, kept = Turn("user", "draft"), document_of(keeping.given("[]", conversation_of_two()))
    editing = replace(conversation_of_two(), changing=0, aside=draft)
    for conversation in (editing, Conversation().replacing(conversation_of_two(), "This is a new chat.", draft)):
        _, box, after, _ = keeping.brought(kept, conversation, Window())
        assert after.returned == draft
        assert "value" not in box  # what was written in the edit, or since, stays


LIMITS = {
    "fields that are none": (("exchanges", 0, "settings", "fields"), "color: red", "needs a name"),
    "a newer version": (("version",), 2, record.NEWER),
    "no version": (("version",), None, record.UNREADABLE),
    "a number as text": (("exchanges", 0, "question"), 3, record.UNREADABLE),
    "a long name": (("exchanges", 0, "stats", "model"), "x" * 201, record.UNREADABLE),
    "a huge number": (("exchanges", 0, "stats", "new_tokens"), 10**400, record.UNREADABLE),
    "a token below 0": (("exchanges", 0, "token_ids"), [-1], record.UNREADABLE),
    "a probability above 1": (("exchanges", 0, "choices"), [[[1, "a", 1.5], []]], record.UNREADABLE),
    "not a number": (("exchanges", 0, "stats", "queue_s"), float("nan"), record.UNREADABLE),
    "many alternatives": (("exchanges", 0, "choices"), [[[1, "a", 0.5], [[1, "a", 0.5]] * 21]], record.UNREADABLE),
    "a wrong setting": (("exchanges", 0, "settings", "top_p"), 7.0, "top_p must lie"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_what_is_outside_the_form_is_refused(keeping, case):
    path, value, said = LIMITS[case]
    document = json.loads(document_of(keeping.given("[]", conversation_of_two())))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    shown, _, after, notice = keeping.brought(json.dumps(document), Conversation(), Window())
    assert shown == {"__type__": "update"} == after
    assert said.replace("'", "&#x27;") in notice


KEYS = (
    "version",
    "id",
    "exchanges",
    "question",
    "pictures",
    "path",
    "stats",
    "token_ids",
    "choices",
    "settings",
    "answer",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.text(min_size=1, max_size=20))
def test_whatever_a_browser_sends_is_refused_in_plain_words(told, text):
    keeping = Keeping(Chat(), {MINE}.__contains__, load_examples())
    for sent in (json.dumps(told), json.dumps({"version": 1, "exchanges": told}), text, "[" * 100_000):
        shown, _, after, notice = keeping.brought(sent, Conversation(), Window())
        if isinstance(after, Conversation):
            assert (shown, after.exchanges) == ([], ())
        else:
            assert is_plain(notice.replace("&#x27;", "'").removeprefix('<p role="status"><span>').split("<")[0])
        assert json.loads(keeping.given(sent, Conversation()))["new"] == {}
