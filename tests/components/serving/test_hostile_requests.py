"""Requests put together by hand, to every event of the page: whatever is sent, a visitor is told plain words.

Hypothesis makes the requests, always the same ones. A test gathers every bad reply and shows each text once, with the
shortest request that led to it.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from places import EXAMPLES
from plain_words import failures_in, is_plain, signs_drawn
from running_app import running_app

from benchmarks.visitors import (
    API,
    Event,
    PageEvents,
    Visitor,
    answered,
    description,
    messages_in,
    new_id,
    read_events,
)
from gemma3_core.engine import DEMO_MODEL

REPLY_WITHIN_S = 2.0  # then the visitor leaves: whoever asks for 2,048 tokens may get them
SILENT_S = 20.0  # a reply that has not begun by then never comes

META = {"meta": {"_type": "gradio.FileData"}}
FORGED = (
    {"path": "/etc/passwd", **META},
    {"path": "/etc/passwd"},
    {"path": "file:///etc/passwd", **META},
    {"path": "x.png", "url": "file:///etc/passwd", **META},
    {"path": "../../../../etc/passwd", **META},
    {"path": "/tmp/gradio/not/there.png", **META},
    {"path": str(EXAMPLES / "hearts.png"), **META},
    {"path": "", **META},
    {"path": "\0", **META},
    {"path": "a" * 5000, **META},
    {"path": "/", **META},
    {"path": "http://127.0.0.1:9/secret.png", **META},
    {"path": "http://169.254.169.254/latest/meta-data", **META},
    {"path": "http://", **META},
    {"path": "http://[", **META},
    {"path": None, **META},
    {"path": 7, **META},
    {"path": ["/etc/passwd"], **META},
    {"path": {"path": "/etc/passwd", **META}, **META},
    {"url": "http://127.0.0.1:9/x.png", **META},
    {"meta": {"_type": "gradio.FileData"}},
    {"path": "x.png", "meta": {"_type": "gradio.Other"}},
    {"path": "x.png", "meta": None},
    {"path": "x.png", "size": "many", "mime_type": 5, "orig_name": [], "is_stream": "yes", **META},
    {"path": "x.png", "is_stream": True, **META},
    {"path": "data:image/png;base64,AAAA", **META},
    {},
    "/etc/passwd",
    "http://127.0.0.1:9/x.png",
    None,
    3,
    [],
)
NUMBERS = (0, 1, -1, 3, 0.5, -0.5, 10**30, -(10**30), 2**31, 2**63, 1e308, -1e308, math.nan, math.inf, -math.inf, True)
TEXTS = (
    "", " ", "x", "-5", "1.5", "0", "5", "global", "nan", "²", "٣", "9" * 5000, "\0", "\ud800", "a" * 50_000,
    "<b>x</b>", "0 0 0 1 1", "0 nan 0 1 1", "5 0 0 1 1", "0 0 0 1", "{}", "null", "pan_and_scan", "<start_of_turn>",
    "\u202e", "\n" * 500,
)  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = "x"
    for number in range(depth):
        value = [value] if number % 2 else {"value": value}
    return value


JUNK = (
    [], {}, [[]], [None], {"": ""}, {"value": 1}, {"index": 0}, [1, 2, 3], ["x"] * 500, {"text": 1},
    {"__type__": "update", "value": 1}, {"files": "x"}, {"text": "x"}, {"text": "x", "files": None}, nested(30),
    nested(300),
)  # fmt: skip

anything = st.one_of(
    st.none(),
    st.sampled_from(NUMBERS),
    st.sampled_from(TEXTS),
    st.sampled_from(JUNK),
    st.sampled_from(FORGED),
    st.integers(-5, 300),
    st.floats(),
    st.text(max_size=20),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ), max_leaves=6),
)  # fmt: skip
files = st.lists(st.sampled_from(FORGED), max_size=3) | anything
messages = st.fixed_dictionaries({}, optional={"text": anything | st.just("Hello"), "files": files, "more": anything})
chosen = st.one_of(
    anything,
    st.fixed_dictionaries({"index": anything, "value": anything}),
    st.fixed_dictionaries({"index": st.integers(0, 12), "value": anything}),
    st.fixed_dictionaries(
        {}, optional={"index": anything, "value": anything, "selected": anything, "target": anything}
    ),
)
BY_KIND: dict[str, st.SearchStrategy[Any]] = {
    "multimodaltextbox": messages | anything,
    "file": files,
    "number": st.sampled_from(NUMBERS) | st.integers(-1, 9) | anything,
    "slider": st.sampled_from(NUMBERS) | anything,
    "textbox": st.sampled_from(TEXTS) | anything,
}


@dataclass(frozen=True)
class Asked:
    """One request: to which event of a group, with which values, about which choice."""

    place: int
    data: Any
    event_data: Any
    prepared: bool
    """Whether it comes from a session that has an answered question and has looked inside."""


@st.composite
def requests_to(draw: st.DrawFn, event: Event, members: int) -> Asked:
    """The event's values with one wrong one, with all of them wrong, with too few or too many of them."""
    data: Any = good_values(event)
    wrong = draw(st.sampled_from(("one", "one", "all", "fewer", "more", "none", "no list")))
    strategies = [BY_KIND.get(kind, anything) for kind in event.types]
    if wrong == "one" and data:
        place = draw(st.integers(0, len(data) - 1))
        data[place] = draw(strategies[place])
    elif wrong == "all":
        data = [draw(strategy) for strategy in strategies]
    elif wrong == "fewer" and data:
        data = data[: draw(st.integers(0, len(data) - 1))]
    elif wrong == "more":
        data = [*data, *draw(st.lists(anything, min_size=1, max_size=3))]
    elif wrong == "no list":
        data = draw(anything)
    return Asked(draw(st.integers(0, members - 1)), data, draw(st.none() | chosen), draw(st.booleans()))


def good_values(event: Event) -> list[Any]:
    """What an honest page sends, with a short question and answer."""
    by_kind = {"multimodaltextbox": {"text": "Hello", "files": []}, "file": [], "number": 0}
    by_label = {"Longest answer": 4, "Question": "Hello", "Longest answer, in tokens": 4}
    values = event.values()
    for place, part in enumerate(event.inputs):
        values[place] = by_kind.get(part["type"], values[place])
        values[place] = by_label.get(part["props"].get("label"), values[place])
    return values


@dataclass
class BadReplies:
    """Texts that no visitor should be told, each with the shortest request that led to it."""

    found: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """(text, event, request) by what the text has in common with others of its kind"""
    asked: int = 0

    def look_at(self, event: str, request: Any, told: "Told") -> None:
        self.asked += 1
        for text in told.bad():
            shown = repr(request)
            kind = re.sub(r"input_value=.*|\d+|(.)\1{9,}", "…", text)[:120]
            before = self.found.get(kind)
            if before is None or len(shown) < len(before[2]):
                self.found[kind] = (text[:300], event, shown)

    def must_be_none(self) -> None:
        """Fails with the texts alone: what lies between here and them is of no use to a reader."""
        if self.found:
            pytest.fail(str(self), pytrace=False)

    def __str__(self) -> str:
        lines = [f"{len(self.found)} bad texts in {self.asked} replies:"]
        for text, event, request in sorted(self.found.values()):
            lines.append(f"{text}\n    {event} after {request[:300]}")
        return "\n".join(lines)


@dataclass
class Told:
    """What the server said to one request."""

    status: int = 200
    sentences: list[Any] = field(default_factory=list)
    """what is shown to a person as the reason of a failure"""
    outputs: list[Any] = field(default_factory=list)
    complete: bool = True

    def bad(self) -> list[str]:
        failures = [*self.sentences, *failures_in(self.outputs)]
        bad = [f"HTTP {self.status}, {text!r}" for text in failures if not is_plain(text)]
        bad += [f"drawn on the page: {sign!r}" for sign in signs_drawn(self.outputs)]
        return bad + ([] if self.complete else ["nothing: the reply never came"])


def sentences_of(response: httpx.Response) -> Any:
    """What is said in the body of a refusal: the fields that our page and Gradio's clients show."""
    try:
        body = response.json()
    except ValueError:
        return response.text
    if isinstance(body, dict):
        return next((body[key] for key in ("error", "detail") if key in body), response.text)
    return response.text


def body_of(value: Any) -> bytes:
    """JSON as a stranger may write it: with NaN, and with half of a pair of surrogates."""
    return json.dumps(value).encode()


def post(visitor: Visitor, path: str, content: bytes, kind: str = "application/json") -> httpx.Response:
    return visitor.client.post(f"{API}/{path}", content=content, headers={"content-type": kind})


def told_by(response: httpx.Response) -> Told:
    """The reply to a request without a queue, or to one that the queue did not take."""
    told = Told(response.status_code)
    if response.status_code >= 400:
        told.sentences.append(sentences_of(response))
    else:
        told.outputs.append(response.json())
    return told


def ask_event(visitor: Visitor, event: Event, asked: Asked, session: str) -> Told:
    """Sends a request as the page's script would, by the queue where the event has one."""
    body = {
        "data": asked.data,
        "fn_index": event.number,
        "trigger_id": next((target for target, _ in event.targets if target is not None), None),
        "session_hash": session,
        "event_data": asked.event_data,
    }
    if not event.queued:
        return told_by(post(visitor, "run/predict", body_of(body)))
    joined = post(visitor, "queue/join", body_of(body))
    if joined.status_code != 200:
        return told_by(joined)
    return told_by_stream(visitor, session)


def told_by_stream(visitor: Visitor, session: str) -> Told:
    """Reads a session's event stream to its end, or leaves it after REPLY_WITHIN_S of an answer."""
    told, begun, ended = Told(), False, False
    start = time.monotonic()
    with visitor.client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as stream:
        if stream.status_code != 200:
            stream.read()
            return told_by(stream)
        for message in messages_in(stream.iter_lines()):
            kind, output = message["msg"], message.get("output")
            begun = begun or kind == "process_starts"
            if kind in ("process_completed", "process_generating"):
                if message["success"]:
                    told.outputs.append(output)  # of a generator the first is whole, and the others say what changes
                else:
                    told.sentences.append((output or {}).get("error"))
            elif kind == "unexpected_error":
                told.sentences.append(message.get("message"))
            elif kind == "log":
                told.sentences.append(message.get("log"))
            ended = kind in ("process_completed", "close_stream", "unexpected_error")
            late = time.monotonic() - start
            if ended or (begun and late > REPLY_WITHIN_S) or late > SILENT_S:
                break
    told.complete = begun or ended
    return told


@pytest.fixture(scope="module")
def url(chat_folder):
    with running_app("--model", str(DEMO_MODEL), "--also", str(chat_folder)) as address:
        yield address


@pytest.fixture(scope="module")
def events(url) -> PageEvents:
    with Visitor(url) as visitor:
        return read_events(visitor.client)


@pytest.fixture
def visitor(url, events) -> Iterator[Visitor]:
    with Visitor(url, events, kept_alive=0) as one:  # a server closes what it failed on: that must not hit the next
        yield one


def prepared_session(url: str, events: PageEvents) -> str:
    """A session with an answered question about a picture, which Inside shows with a word chosen."""
    with Visitor(url, events) as visitor:
        data = (EXAMPLES / "hearts.png").read_bytes()
        visitor.ask("How many hearts are there?", [visitor.upload("hearts.png", data)], longest=4)
        for name in ("open", "look"):
            event = events.named(name)
            list(visitor.call(event, good_values(event)))
        return visitor.session


def answer_of(visitor: Visitor) -> str:
    """What an honest visitor's question is answered with."""
    data = (EXAMPLES / "hearts.png").read_bytes()
    messages = visitor.ask("How many hearts are there?", [visitor.upload("hearts.png", data)])
    shown = [message["output"]["data"] for message in messages if message["msg"] == "process_generating"]
    assert answered(messages), messages
    assert not list(failures_in(shown))
    return json.dumps(shown)


def explore(strategy: st.SearchStrategy[Any], examples: int, look: Callable[[Any], None]) -> None:
    """Runs `look` on so many values of the strategy, the same ones each time."""
    phases = [Phase.explicit, Phase.generate]

    @settings(max_examples=examples, phases=phases, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(value: Any) -> None:
        look(value)

    run()


def groups(events: PageEvents) -> dict[str, list[Event]]:
    """Events of one handler with the same kinds of inputs: they differ only in what led to them."""
    found: dict[str, list[Event]] = {}
    for event in events.all:
        if not any(kind == "unload" for _, kind in event.targets):
            found.setdefault(f"{event.handler}({', '.join(event.types)})", []).append(event)
    return found


# Handlers that ask the model again take longest; of the others each can have more.
SLOW = ("send", "ask_example", "retry", "hide", "compare", "look", "look_again", "ask", "open", "mask")


@pytest.mark.parametrize("slow", [False, True], ids=["quick handlers", "handlers that ask the model"])
def test_every_event_answers_whatever_it_is_sent_in_plain_words(url, events, visitor, slow):
    bad, reached, prepared = BadReplies(), set(), ""
    states = {part["id"] for event in events.all for part in event.inputs if part["type"] == "state"}
    assert any(states.intersection(event.outputs) for event in events.all)
    for name, members in groups(events).items():
        if (members[0].handler in SLOW) is not slow:
            continue
        prepared = prepared or prepared_session(url, events)

        def look(asked: Asked, name: str = name, members: list[Event] = members, prepared: str = prepared) -> None:
            event = members[asked.place]
            reached.add(event.number)
            session = prepared if asked.prepared else new_id()
            bad.look_at(name, (asked.data, asked.event_data), ask_event(visitor, event, asked, session))

        explore(requests_to(members[0], len(members)), 12 if slow else 20, look)
        for place, event in enumerate(members):
            if event.number not in reached:
                look(Asked(place, [], {"index": "value"}, True))
        if any(states.intersection(event.outputs) for event in members):
            prepared = ""  # these may have taken away what it had
    bad.must_be_none()
    assert "hearts" in answer_of(visitor)


# Each event data that the page's own cards could never send.
CHOICES = (
    None, {}, [], "value", {"index": 0}, {"value": 1}, {"index": "value", "value": 1}, {"index": -1, "value": 1},
    {"index": 10**30, "value": 1}, {"index": {"value": {}}, "value": 1}, {"index": math.nan, "value": 1},
    {"index": 1.0, "value": 1}, {"index": True, "value": 1}, {"index": [0, 0], "value": None}, 7, [["index", 0]],
    {"index": None, "value": {"files": [FORGED[0]]}}, nested(300),
)  # fmt: skip


def test_a_forged_choice_of_a_card_is_answered_in_plain_words(events, visitor):
    bad = BadReplies()
    chosen_by = [event for event in events.all if any(kind.endswith("select") for _, kind in event.targets)]
    assert {event.handler for event in chosen_by} >= {"ask_example", "mask"}
    for event in chosen_by:
        for choice in CHOICES:
            asked = Asked(0, good_values(event), choice, False)
            bad.look_at(event.name, choice, ask_event(visitor, event, asked, new_id()))
    bad.must_be_none()
    assert "hearts" in answer_of(visitor)


HASHES = (None, "", " ", "x" * 5000, "../../etc/passwd", "\0", "\ud800", 5, [], {}, True, 1.5)
INDICES = (None, -1, 10**6, 10**30, "2", "x", 1.5, [], {}, True, math.nan)
BODIES = (
    b"", b"null", b"[]", b"{}", b'"x"', b"5", b"{", b"\xff\xfe", b'{"data": }', b'{"data": [], "fn_index": 99}' * 2,
    b'{"data": null}', b'{"data": {}}', b'{"data": "x", "fn_index": 2, "session_hash": "a"}', b"[" * 100_000,
    b'{"data": [NaN], "fn_index": NaN, "session_hash": NaN}', b'{"data": [1e999], "session_hash": 1e999}',
    b'{"data": [], "fn_index": 2, "session_hash": "a", "event_id": 5, "batched": "x", "simple_format": []}',
    b'{"data": [], "fn_index": 2, "session_hash": "abc", "batched": true}',
    b'{"data": [], "fn_index": 2, "session_hash": "abd", "simple_format": true}',
    b'{"fn_index": 2, "session_hash": "abe"}',
)  # fmt: skip
ROUTES = (
    "queue/join",
    "run/predict",
    "call/ask",
    "run/ask",
    "api/ask",
    "call/v2/ask",
    "cancel",
    "reset",
    "call/no_such",
)


def test_forged_envelopes_are_answered_in_plain_words(events, visitor):
    """Session, number of the event and of what led to it: each wrong in each way, by each route."""
    bad = BadReplies()
    queued, direct = events.named("keep"), events.named("stop")

    def look(route: str, event: Event, **wrong: Any) -> None:
        body = {"data": good_values(event), "fn_index": event.number, "session_hash": new_id(), **wrong}
        reply = post(visitor, route, body_of(body))
        bad.look_at(route, wrong, told_by(reply))
        session = body["session_hash"]
        # Half of a pair of surrogates is in no address, so nobody can ask for that session's stream.
        if reply.status_code == 200 and route == "queue/join" and isinstance(session, str) and session != "\ud800":
            bad.look_at(route, wrong, told_by_stream(visitor, session))

    for route, event in (("queue/join", queued), ("run/predict", direct), ("run/predict", queued)):
        for session in HASHES:
            look(route, event, session_hash=session)
        for number in INDICES:
            look(route, event, fn_index=number)
            look(route, event, trigger_id=number)
        for event_id in (5, "x", [], "\ud800"):
            look(route, event, event_id=event_id)
        look(route, event, batched=True)
        look(route, event, simple_format=True)
        for unload in (other for other in events.all if any(kind == "unload" for _, kind in other.targets)):
            look(route, unload)
    bad.must_be_none()
    assert "hearts" in answer_of(visitor)


def test_bodies_that_are_no_requests_are_answered_in_plain_words(visitor):
    bad = BadReplies()
    for route in ROUTES:
        for content in BODIES:
            bad.look_at(route, content[:80], told_by(post(visitor, route, content)))
        for kind in ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""):
            reply = post(visitor, route, b'{"data": [], "fn_index": 2, "session_hash": "f"}', kind)
            bad.look_at(route, kind, told_by(reply))
    for session in (new_id(), f"\0{new_id()}", "x" * 3000):
        bad.look_at("queue/data", session, told_by_get(visitor, "queue/data", {"session_hash": session}))
    for path in ("queue/data", "call/ask/nobody", "call/no_such/nobody", "heartbeat/", "run/", "call/"):
        bad.look_at(path, "GET", told_by_get(visitor, path))
    bad.must_be_none()
    assert "hearts" in answer_of(visitor)


def told_by_get(visitor: Visitor, path: str, query: dict[str, str] | None = None) -> Told:
    """The first that a stream says, or the refusal of one."""
    with visitor.client.stream("GET", f"{API}/{path}", params=query, timeout=SILENT_S) as stream:
        if stream.status_code != 200:
            stream.read()
            return told_by(stream)
        for line in stream.iter_lines():
            if line.startswith("data: "):
                said = json.loads(line.removeprefix("data: "))
                return Told(sentences=[said.get("message") if isinstance(said, dict) else said])
    return Told(complete=False)


UPLOADS: tuple[dict[str, Any], ...] = (
    {"content": b""},
    {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
    {"content": b"x", "headers": {"content-type": "multipart/form-data; boundary=a"}},
    {"content": b"--a\r\n\r\n", "headers": {"content-type": "multipart/form-data; boundary=a"}},
    {"json": {"files": []}},
    {"data": {"files": "no file"}},
    {"files": {"files": ("", b"x")}},
    {"files": {"files": ("../../x.png", b"x")}},
    {"files": {"files": ("a" * 300 + ".png", b"x")}},
    {"files": {"files": ("\ud83d\ude00\n.png".encode("utf-16", "surrogatepass").decode("utf-16"), b"x")}},
    {"files": {"files": ("x.html", b"<script>")}},
    {"files": {"other": ("x.png", b"x")}},
    {"files": {"files": ("big.png", b"0" * 20_100_000)}},
)


@pytest.mark.parametrize("upload", UPLOADS, ids=lambda upload: repr(upload)[:60])
def test_uploads_that_are_none_are_answered_in_plain_words(visitor, upload):
    """A refusal is plain; what is taken, and is no picture, is refused in plain words where it is asked about."""
    bad = BadReplies()
    reply = visitor.client.post(f"{API}/upload", **upload)
    if reply.status_code == 200:
        for path in reply.json():
            meta = {**description(path, "x.png", 1), "url": None}
            event = visitor.events.named("send")
            data = good_values(event)
            data[0] = {"text": "What is this?", "files": [meta]}
            bad.look_at("send", upload, ask_event(visitor, event, Asked(0, data, None, False), visitor.session))
    else:
        bad.look_at("upload", upload, told_by(reply))
    bad.must_be_none()


def told_by_name(visitor: Visitor, data: Any) -> Told:
    """By `/call/ask`, as a program asks by hand."""
    joined = post(visitor, "call/ask", body_of({"data": data}))
    if joined.status_code != 200:
        return told_by(joined)
    told, kind, ended, start = Told(), "", False, time.monotonic()
    with visitor.client.stream("GET", f"{API}/call/ask/{joined.json()['event_id']}") as stream:
        for line in stream.iter_lines():
            field_name, _, value = line.partition(": ")
            if field_name == "event":
                kind = value
            if field_name != "data":
                continue
            if kind == "error":
                said = json.loads(value)
                told.sentences.append(said.get("error") if isinstance(said, dict) else said)
            elif kind != "heartbeat":
                told.outputs = [json.loads(value)]
            ended, late = kind in ("error", "complete"), time.monotonic() - start
            if ended or (told.outputs and late > REPLY_WITHIN_S) or late > SILENT_S:
                break
    told.complete = ended or bool(told.outputs)
    return told


def test_ask_answers_whatever_it_is_sent_in_plain_words(events, visitor):
    bad = BadReplies()
    event = events.named("ask")

    def look(asked: Asked) -> None:
        bad.look_at("/ask", asked.data, told_by_name(visitor, asked.data))

    explore(requests_to(event, 1), 30, look)
    for place in range(len(event.inputs)):
        for value in (None, "x", -1, 10**30, math.nan, [[]], "\ud800"):
            data = good_values(event)
            data[place] = value
            look(Asked(0, data, None, False))
    for file in FORGED:
        look(Asked(0, [[file], *good_values(event)[1:]], None, False))
    bad.must_be_none()
    assert "hearts" in answer_of(visitor)


# The predicate itself: what it must find, and what it must let through.


@pytest.mark.parametrize(
    "text",
    [
        "'value'",
        "'index'",
        "'int' object is not subscriptable",
        "'NoneType' object has no attribute 'get'",
        "int() argument must be a string, a bytes-like object or a real number, not 'NoneType'",
        "float() argument must be a string or a real number, not 'list'",
        "cannot convert float NaN to integer",
        "ChatHandlers.send() got an unexpected keyword argument 'x'",
        "Choices.__init__() missing 1 required positional argument: 'top_p'",
        "1 validation error for FileData\npath\n  Field required [type=missing, input_value={}, input_type=dict]",
        "list index out of range",
        "[Errno 2] No such file or directory: '/tmp/gradio/x.png'",
        "Cannot move /etc/passwd to the gradio cache dir because it was not uploaded by a user.",
        "The file is at /tmp/gradio/0123.",
        "Traceback (most recent call last):",
        "KeyError: 99",
        "Something failed in components.chat.handlers.",
        "Something failed in app.py.",
        "Something failed, line 12.",
        "Exceeds the limit (4300 digits) for integer string conversion.",
        "str is not valid UTF-8: surrogates not allowed",
        "404: Not here",
        "The picture can't be read: .",
        "",
        None,
        99,
        [{"type": "missing", "loc": ["body", "data"], "msg": "Field required"}],
        "no sentence",
        "uploads/x.png is no picture.",
        "One. Two. Three. Four sentences are too many.",
        "Internal Server Error",
        "Too long, " * 60 + "at last.",
    ],
    ids=lambda text: repr(text)[:60],
)
def test_what_python_says_is_not_plain(text):
    assert not is_plain(text)
    assert Told(sentences=[text]).bad()


def test_what_the_app_says_is_plain():
    from components.chat import handlers as asking
    from components.inside import handlers as looking

    said = [
        asking.NO_QUESTION,
        asking.ONLY_PICTURE,
        asking.UNEXPECTED,
        f"{asking.STOPPED_EARLY} {asking.QUESTION_BACK}",
        f"{asking.NOTHING_SAID} {asking.ANSWER_STAYS}",
        looking.UNEXPECTED,
        looking.NO_WORD,
        "The picture is empty: 0 bytes. Choose the file again.",
        "The seed must be a whole number, 0 or larger; got -5. Leave it empty to draw one.",
        "There is no picture file named x.png; check the name and try again.",
        "x.html: These 8 bytes are not a picture that can be read. Use JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF.",
        "big.png is larger than 20 MB. Make it smaller and try again.",
        "Not Found",
        "404: Not Found",
    ]
    assert [text for text in said if not is_plain(text)] == []
    assert not Told(sentences=said).bad()


def test_failures_are_found_in_what_the_page_draws():
    drawn = {"data": [{"value": [{"content": [{"text": '<p class="failure" role="alert">&#x27;value&#x27;</p>'}]}]}]}
    assert list(failures_in(drawn)) == ["'value'"]
    assert Told(outputs=[drawn]).bad()
    assert Told(outputs=[{"data": ["Traceback (most recent call last):"]}]).bad()
    assert Told(complete=False).bad()
    assert not Told(outputs=[{"data": ["Three.", {"path": "/tmp/gradio/x.png", "meta": {}}]}]).bad()
