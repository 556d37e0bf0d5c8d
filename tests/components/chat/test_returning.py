"""What a page that opens again takes from its browser: nothing that is not the visitor's own."""

import json
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st
from window import DEMO, Window, exchange_of

from components.chat import panel as chat
from components.chat.conversation import Conversation
from components.chat.returning import Returning
from components.examples import load_examples
from components.settings import build_settings
from gemma3_core.engine import Turn

MINE = "/uploads/mine.png"
LEFT = Conversation().add(exchange_of(Turn("user", "What?", (Path(MINE),)), "A star."))
STOPPED = replace(LEFT, returned=Turn("user", "And?", (Path(MINE),)))
KEYS = ("session", "sent", "draft", "link", "text", "files", "path", "q", "example", "model", "int4", "pan_and_scan")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["hearts", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def names():
    """The models that can be chosen now."""
    return ["demo model", "other"]


@pytest.fixture(scope="module")
def returning(names):
    with gr.Blocks():
        settings = build_settings(DEMO, [DEMO.name, "other"])
    return Returning(
        {"secret name": LEFT, "stopped": STOPPED}.get,
        {MINE}.__contains__,
        chat.messages,
        settings,
        lambda _: names,
        load_examples(),
    )


def opened(returning, **left):
    shown, box, conversation, notice, _, *brought = returning.open(json.dumps(left), Window())
    return shown, box, conversation, notice, dict(zip(returning.brought, brought, strict=True))


def test_a_window_finds_what_it_left_and_another_nothing(returning):
    shown, box, conversation, *_ = opened(returning, session="secret name")
    assert conversation.exchanges == LEFT.exchanges
    assert len(shown) == 2
    assert box == gr.skip()
    for session in ("another", None, 3, ["secret name"]):
        assert not opened(returning, session=session)[2].exchanges
    assert not opened(returning)[2].exchanges


def test_a_question_without_an_answer_comes_back_before_the_draft(returning):
    sent, draft = {"text": "And?", "files": [{"path": MINE}]}, {"text": "half", "files": []}
    _, box, _, notice, _ = opened(returning, session="secret name", sent=sent, draft=draft)
    assert box["value"] == {"text": "And?\n\nhalf", "files": [MINE]}
    assert "did not arrive" in notice
    asked = {"text": "What?", "files": [{"path": MINE}], "standing": 0}
    _, box, _, notice, _ = opened(returning, session="secret name", sent=asked)
    assert (box, notice) == (gr.skip(), gr.skip())  # its answer is there


def test_the_same_question_asked_again_or_of_another_picture_comes_back(returning):
    again = {"text": "What?", "files": [{"path": MINE}], "standing": 1}
    _, box, *_ = opened(returning, session="secret name", sent=again)
    assert box["value"] == {"text": "What?", "files": [MINE]}
    other = {"text": "What?", "files": [{"path": "hearts.png"}], "standing": None}
    _, box, *_ = opened(returning, session="secret name", sent=other)
    assert [Path(path).name for path in box["value"]["files"]] == ["hearts.png"]


def test_a_question_that_was_stopped_before_its_first_word_comes_back_once(returning):
    sent = {"text": "And?", "files": [{"path": MINE}]}
    _, box, _, notice, _ = opened(returning, session="stopped", sent=sent)
    assert box["value"] == {"text": "And?", "files": [MINE]}
    assert "did not arrive" in notice
    _, box, _, _, _ = opened(returning, session="stopped", draft={"text": "half", "files": []})
    assert box["value"] == {"text": "And?\n\nhalf", "files": [MINE]}


def test_only_uploads_and_examples_come_back(returning):
    files = [{"path": path} for path in ("/etc/passwd", "/cache/1/hearts.png", "assets/demo_model/config.json", MINE)]
    _, box, *_ = opened(returning, draft={"text": "", "files": [*files, {"path": 3}, "x", None]})
    assert [Path(path).name for path in box["value"]["files"]] == ["hearts.png", "mine.png"]
    assert box["value"]["files"][0].endswith("assets/examples/hearts.png")


def test_a_link_is_used_where_nothing_else_is(returning):
    link = {"q": " How many? ", "example": "hearts", "pan_and_scan": "1", "int4": "0", "model": "other"}
    _, box, _, _, brought = opened(returning, link=link)
    assert box["value"]["text"] == "How many?"
    assert brought["pan_and_scan"] is True
    assert brought["model"] == "other"
    for left in ({"session": "secret name"}, {"draft": {"text": "mine", "files": []}}):
        _, box, _, _, brought = opened(returning, link=link, **left)
        assert box == gr.skip() or box["value"]["text"] == "mine"
        assert all(value == gr.skip() for value in brought.values())


def test_what_a_link_names_that_does_not_exist_is_ignored(returning):
    for link in ({"example": "../../../etc/passwd"}, {"model": "__proto__", "q": ""}, {"q": " \n "}):
        _, box, _, _, brought = opened(returning, link=link)
        assert box == gr.skip(), link
        assert all(value == gr.skip() for value in brought.values()), link


def test_a_link_says_whether_it_was_used(returning):
    """Else it is used by the next reload."""
    for left, used in (
        ({}, True), ({"session": "secret name"}, False), ({"draft": {"text": "mine", "files": []}}, False),
    ):  # fmt: skip
        told = json.loads(returning.open(json.dumps({"link": {"q": "How many?"}, **left}), Window())[4])
        assert told["linked"] is used
    assert json.loads(returning.open("{}", Window())[4])["linked"] is False


def test_a_chosen_model_that_came_since_the_start_comes_back_while_it_is_offered(returning, names):
    assert opened(returning, model="added")[-1]["model"] == gr.skip()
    names.append("added")
    try:
        assert opened(returning, model="added")[-1]["model"]["value"] == "added"
        assert opened(returning, model="added", link={"model": "other"})[-1]["model"]["value"] == "other"
        for model in ("gone", "other", None, 3, ["added"]):  # the browser itself brings back what there was at first
            assert "value" not in opened(returning, model=model)[-1]["model"]
    finally:
        names.remove("added")


@given(JSON)
def test_whatever_a_browser_sends_is_read_or_ignored(returning, left):
    for sent in (json.dumps(left), left):
        _, box, conversation, *_ = returning.open(sent, Window())
        files = [] if box == gr.skip() else box["value"]["files"]
        assert all(Path(file).parent.name == "examples" or file == MINE for file in files)
        assert isinstance(conversation, Conversation)


def test_models_that_came_since_the_program_started_can_be_chosen(returning, names):
    assert "choices" not in opened(returning)[4]["model"]
    names.append("a newcomer")
    try:
        assert opened(returning)[4]["model"]["choices"] == ["demo model", "other", "a newcomer"]
        link = {"q": "Hello?", "model": "a newcomer"}
        assert opened(returning, link=link)[4]["model"]["value"] == "a newcomer"
    finally:
        names.pop()
