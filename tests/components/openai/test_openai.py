"""OpenAI's interface, asked by OpenAI's own client about real pictures, and by raw HTTP."""

import asyncio
import base64
import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Literal

import httpx
import jsonschema
import openai
import pydantic
import pytest
from places import EXAMPLES
from running_app import ScriptedEngine, built, launch, require_demo_model
from window import DEMO, STATS

from components.openai import app as openai_app
from components.openai.told import _logprob, pieces
from components.serving import fetching
from components.serving.desk import FrontDesk, Operation
from components.serving.fetching import OWN_WAIT
from gemma3_core.engine import (
    DoneEvent,
    Engine,
    Gemma3Error,
    NonFiniteError,
    OperatorError,
    OutOfMemoryError,
    QueueFullError,
    Request,
    SamplingSettings,
    TokenEvent,
    Turn,
)
from gemma3_core.errors import PromptError

HEARTS, WIDE = EXAMPLES / "hearts.png", EXAMPLES / "wide.png"
QUESTION = "How many hearts are there?"
MODEL = "demo model"
SECRET = "root:"  # of /etc/passwd
KEY = "one-of-our-keys"
PATIENCE_S = 30


@pytest.fixture(scope="module")
def engine():
    require_demo_model()
    return Engine.load(device="cpu")


@pytest.fixture(scope="module")
def page(engine):
    page = built(engine)
    launch(page)
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def url(page):
    return page.local_url.rstrip("/")


@pytest.fixture(scope="module")
def client(url):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none is needed", max_retries=0, timeout=60)


def data_url(path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def part(path) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(path), "detail": "auto"}}


def picture_at(address: str) -> dict:
    return {"type": "image_url", "image_url": {"url": address}}


def about(*parts) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}]


def own(engine, question: str, *pictures, **options) -> DoneEvent:
    request = Request((Turn("user", question, tuple(str(p) for p in pictures)),), reuse=False, **options)
    *_, done = engine.stream(request)
    return done


def post(url, body, **options):
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, **options)


def test_models_are_listed(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "gemma3"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")


def test_a_question_about_pictures_is_answered_as_on_the_page(engine, client):
    for question, paths in ((QUESTION, (HEARTS,)), ("What is the same?", (HEARTS, WIDE))):
        asked = about(*map(part, paths), question)
        answer = client.chat.completions.create(model=MODEL, messages=asked, temperature=0)
        expected = own(engine, question, *paths)
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.prompt_tokens == expected.stats.prompt_tokens
        assert answer.usage.completion_tokens == expected.stats.new_tokens
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_answer_is_the_same_and_its_usage_comes_if_it_is_asked_for(engine, client):
    asked = about(part(HEARTS), QUESTION)
    chunks = list(
        client.chat.completions.create(model=MODEL, messages=asked, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == own(engine, QUESTION, HEARTS).text
    assert sum(bool(chunk.choices and chunk.choices[0].delta.content) for chunk in chunks) > 2
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens > 2
    without = list(client.chat.completions.create(model=MODEL, messages=asked, stream=True))
    assert all(chunk.usage is None for chunk in without)


def test_a_conversation_reuses_what_was_read(client):
    """Of a caller on this machine, who is nobody else."""
    asked = about(part(HEARTS), QUESTION)
    first = client.chat.completions.create(model=MODEL, messages=asked)
    asked += [{"role": "assistant", "content": first.choices[0].message.content}]
    asked += [{"role": "user", "content": "What colors are there?"}]
    second = client.chat.completions.create(model=MODEL, messages=asked)
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens


def test_log_probabilities_are_those_of_the_page(engine, client):
    asked = about(part(HEARTS), QUESTION)
    answer = client.chat.completions.create(model=MODEL, messages=asked, logprobs=True, top_logprobs=3)
    request = Request((Turn("user", QUESTION, (str(HEARTS),)),), confidence=True, reuse=False)
    choices = [event.choice for event in engine.stream(request) if isinstance(event, TokenEvent) and event.choice]
    told = answer.choices[0].logprobs.content
    assert [token.token for token in told] == [choice.text for choice in choices]
    for token, choice in zip(told, choices, strict=True):
        assert math.isclose(token.logprob, math.log(choice.probability), abs_tol=1e-3)
        assert bytes(token.bytes).decode() == token.token
        assert [other.token for other in token.top_logprobs] == [other.text for other in choice.alternatives[:3]]
    streamed = client.chat.completions.create(model=MODEL, messages=asked, stream=True, logprobs=True)
    parts = [chunk.choices[0].logprobs for chunk in streamed]
    assert [token.token for part in parts if part for token in part.content] == [token.token for token in told]


def test_settings_reach_the_model(engine, client):
    asked = about(part(HEARTS), QUESTION)
    cut = client.chat.completions.create(model=MODEL, messages=asked, max_completion_tokens=2)
    assert (cut.usage.completion_tokens, cut.choices[0].finish_reason) == (2, "length")
    describe = "What is in the picture?"
    sampled = []
    for seed in (1, 2, 3):
        answer = client.chat.completions.create(
            model=MODEL, messages=about(part(HEARTS), describe), temperature=2.0, top_p=1.0, seed=seed,
            extra_body={"top_k": 50},
        )  # fmt: skip
        sampled.append(answer.choices[0].message.content)
        settings = SamplingSettings(temperature=2.0, top_k=50, top_p=1.0, seed=seed)
        assert sampled[-1] == own(engine, describe, HEARTS, sampling=settings).text
    assert len(set(sampled)) > 1
    wide = about(part(WIDE), QUESTION)
    plain, with_crops = (
        client.chat.completions.create(model=MODEL, messages=wide, extra_body={"pan_and_scan": crops})
        for crops in (False, True)
    )
    assert with_crops.usage.prompt_tokens > plain.usage.prompt_tokens
    twice = [*wide, {"role": "assistant", "content": "Four."}, *about(part(HEARTS), "And here?")]
    of_the_last = client.chat.completions.create(
        model=MODEL, messages=twice, max_completion_tokens=1, extra_body={"crops": [None, [[0, 0, 99, 99]]]}
    )
    of_none = client.chat.completions.create(model=MODEL, messages=twice, max_completion_tokens=1)
    assert of_the_last.usage.prompt_tokens > of_none.usage.prompt_tokens
    int4 = client.chat.completions.create(model=MODEL, messages=asked, extra_body={"int4": True})
    assert int4.choices[0].message.content == own(engine, QUESTION, HEARTS, int4=True).text


def test_system_prompts_and_texts_between_pictures_are_kept(engine, client):
    system = "Answer with a single word."
    asked = [{"role": "system", "content": system}, *about("First: ", part(HEARTS), "second: ", part(WIDE), QUESTION)]
    answer = client.chat.completions.create(model=MODEL, messages=asked)
    turn = Turn("user", QUESTION, (str(HEARTS), str(WIDE)), captions=("First: ", "second: "))
    *_, done = engine.stream(Request((turn,), system_prompt=system, reuse=False))
    assert answer.choices[0].message.content == done.text
    assert answer.usage.prompt_tokens == done.stats.prompt_tokens


def test_a_question_may_stand_before_its_pictures(engine, client):
    """As in OpenAI's own examples."""
    (message,) = about(QUESTION, part(HEARTS))
    answer = client.chat.completions.create(model=MODEL, messages=[message])
    assert answer.choices[0].message.content == own(engine, QUESTION, HEARTS).text
    (message,) = about("First: ", part(HEARTS), QUESTION, part(WIDE), " ")
    answer = client.chat.completions.create(model=MODEL, messages=[message])
    turn = Turn("user", QUESTION, (str(HEARTS), str(WIDE)), captions=("First: ", ""))
    *_, done = engine.stream(Request((turn,), reuse=False))
    assert answer.choices[0].message.content == done.text
    assert answer.usage.prompt_tokens == done.stats.prompt_tokens


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_the_answer_before_it(client, stream):
    asked = about(part(HEARTS), QUESTION)
    whole = client.chat.completions.create(model=MODEL, messages=asked).choices[0].message.content
    stop = whole[4:7]  # across tokens
    options = {"model": MODEL, "messages": asked, "stop": [stop, "never"]}
    if stream:
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
        cut = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        reason, usage = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1], chunks[-1].usage
    else:
        answer = client.chat.completions.create(**options)
        cut, reason, usage = answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage
    assert (cut, reason) == (whole[: whole.index(stop)], "stop")
    assert usage.completion_tokens > 0


def told(*texts: str, stops: tuple[str, ...] = ()) -> list[str]:
    """The pieces of an answer that comes in these texts."""

    async def events():
        for text in texts:
            yield TokenEvent(text)
        yield DoneEvent("", STATS)

    async def collected() -> list[str]:
        return [piece.text async for piece in pieces(events(), stops, threading.Event())]

    return asyncio.run(collected())


def test_text_that_may_begin_a_stop_string_waits_for_the_next():
    assert told("a", "b<", "/", "c", "d") == ["a", "b<", "/", "c", "d", ""]
    assert told("a", "b<", "/", "c", "d", stops=("</s>",)) == ["a", "b", "</c", "d", ""]
    assert told("a", "b<", "/", "s>x", "d", stops=("</s>",)) == ["a", "b", "", ""]
    assert told("ab", "ab", stops=("abac", "bb")) == ["ab", "ab"]


@pytest.fixture(scope="module")
def scripted_page():
    page = built(ScriptedEngine(DEMO))
    launch(page)
    yield page
    page.close(verbose=False)


@pytest.fixture
def scripted(scripted_page):
    engine = scripted_page.desk._models.first
    engine.begin_anew()
    yield engine
    engine.let_through(*engine.go_on)


def test_several_requests_of_one_caller_run_beside_one_another(scripted_page, scripted):
    body = {"model": DEMO.name, "messages": about("What is this?")}
    scripted.let_through("queued", "encoding", "reading")
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(post, scripted_page.local_url.rstrip("/"), body) for _ in range(3)]
        wait_for(lambda: len(scripted.requests) == 3)
        scripted.let_through("writing")
        assert [one.result(PATIENCE_S).status_code for one in asked] == [200, 200, 200]
    assert len({request.visitor for request in scripted.requests}) == 3
    assert [request.reuse for request in scripted.requests].count(True) == 1


def wait_for(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def schema_of(schema) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "fields", "strict": True, "schema": schema}}


def nested(levels: int) -> dict:
    inner: dict = {"type": "string"}
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    return inner


FIELDS = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue", "yellow"]}, "is_star": {"type": "boolean"}},
    "required": ["color", "is_star"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_in_a_json_schema_fits_it_and_its_probabilities_are_among_what_fits(client, stream):
    asked = about(part(HEARTS), "What is in the picture?")
    options = {"model": MODEL, "messages": asked, "response_format": schema_of(FIELDS), "logprobs": True}
    options |= {"temperature": 2.0, "seed": 4, "top_logprobs": 5}
    if stream:
        choices = [chunk.choices[0] for chunk in client.chat.completions.create(**options, stream=True)]
        text = "".join(choice.delta.content or "" for choice in choices)
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content]
        choice = choices[-1]
    else:
        (choice,) = client.chat.completions.create(**options).choices
        text, tokens = choice.message.content, choice.logprobs.content
    jsonschema.validate(json.loads(text), FIELDS)
    assert choice.finish_reason == "stop"
    told = choice.model_extra["fields"]
    assert {name: one["value"] for name, one in told.items()} == json.loads(text)
    assert 0 < min(one["probability"] for one in told.values()) < 1
    surest = math.exp(sum(token.logprob for token in tokens))
    assert math.prod(one["probability"] for one in told.values()) == pytest.approx(surest, rel=0.05)
    assert "".join(token.token for token in tokens) == text
    assert tokens[0].logprob == 0.0  # nothing but the bracket fits
    assert [other.token for other in tokens[0].top_logprobs] == ["{"]
    assert min(token.logprob for token in tokens) < 0


def test_answers_with_and_without_a_schema_run_beside_one_another(engine):
    schemas = (None, json.dumps(FIELDS), None, '{"type": "boolean"}')
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(own, engine, QUESTION, HEARTS, json_schema=one, visitor=str(one)) for one in schemas]
        beside = [one.result(PATIENCE_S) for one in asked]
    alone = [own(engine, QUESTION, HEARTS, json_schema=schema) for schema in schemas]
    assert [done.token_ids for done in beside] == [done.token_ids for done in alone]
    jsonschema.validate(json.loads(beside[1].text), FIELDS)
    assert beside[3].text in ("true", "false")


def test_clients_models_of_pydantic_and_json_objects_are_answered(client):
    class Heart(pydantic.BaseModel):
        color: Literal["red", "blue"]

    asked = about(part(HEARTS), "What color is the heart?")
    parsed = client.chat.completions.parse(model=MODEL, messages=asked, response_format=Heart)
    assert parsed.choices[0].message.parsed.color in ("red", "blue")
    answer = client.chat.completions.create(
        model=MODEL, messages=asked, response_format={"type": "json_object"}, max_completion_tokens=8
    )
    assert answer.choices[0].message.content.startswith("{")


GOOD = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model"),
        ({"crops": "some"}, 400, "crops"),
        ({"crops": [None] * 9}, 400, "crops"),
        ({"model": None}, 404, "model"),
        ({"model": ["demo model"]}, 404, "model"),
        ({"messages": None}, 400, "messages"),
        ({"messages": []}, 400, "messages"),
        ({"messages": ["hello"]}, 400, "messages.0"),
        ({"messages": [{"role": "user"}]}, 400, "messages.0"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0"),
        ({"messages": [*GOOD["messages"], {"role": "system", "content": "x"}]}, 400, "messages.1"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, 400, None),
        ({"messages": about(picture_at("/etc/passwd"))}, 400, "messages.0"),
        ({"messages": about(picture_at("file:///etc/passwd"))}, 400, "messages.0"),
        ({"messages": about(picture_at("http://127.0.0.1/x.png"))}, 400, "messages.0"),
        ({"messages": about(picture_at("http://["))}, 400, "messages.0"),
        ({"messages": about(picture_at("data:image/png;base64,AAAA"), "x")}, 400, None),
        ({"messages": about({"type": "input_audio", "input_audio": {}})}, 400, "messages.0"),
        ({"messages": about(*[picture_at("http://x.invalid/")] * 17)}, 400, "messages.0"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"temperature": True}, 400, "temperature"),
        ({"top_p": 0}, 400, None),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 10**12}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"seed": -1}, 200, None),
        ({"seed": 1.5}, 400, "seed"),
        ({"stop": "a" * 501}, 400, "stop"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stop": ""}, 400, "stop"),
        ({"stop": [""]}, 400, "stop"),
        ({"top_logprobs": 20, "logprobs": True}, 400, "top_logprobs"),
        ({"stream": "yes"}, 400, "stream"),
        ({"stream_options": [1]}, 400, "stream_options"),
        ({"n": 2}, 400, "n"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": "json"}, 400, "response_format"),
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, 400, "response_format"),
        ({"response_format": schema_of({"type": "integer", "minimum": 2, "maximum": 1})}, 400, "response_format"),
        ({"response_format": schema_of({"type": "string", "pattern": "(?=a)"})}, 400, "response_format"),
        ({"response_format": schema_of({"enum": ["x" * 70_000]})}, 400, "response_format"),
        ({"response_format": schema_of(nested(100))}, 400, "response_format"),
        ({"response_format": schema_of(nested(900))}, 400, "response_format"),
        ({"response_format": {"type": "text"}}, 200, None),
        ({"an_option_of_tomorrow": 1}, 400, "an_option_of_tomorrow"),
        ({"frequency_penalty": 0, "n": 1, "tools": [], "user": "me", "tool_choice": "none"}, 200, None),
    ],
)  # fmt: skip
def test_what_can_not_be_asked_is_refused_in_openais_form(url, change, status, param):
    reply = post(url, {**GOOD, **change})
    assert reply.status_code == status, reply.text
    if status != 200:
        error = reply.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["param"] == param
        assert error["message"].endswith(".")
        assert SECRET not in reply.text
        assert "/" not in error["message"].replace("Content-Type: application/json", "")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"model": NaN}'])
def test_what_is_no_json_is_refused(url, body):
    reply = httpx.post(f"{url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "text/plain; application/json", "text/plain;x=application/json", ""])
def test_another_sites_page_can_not_ask(url, kind):
    """A browser lets any page send a form or plain text; JSON only after it has asked, and no answer allows it."""
    reply = httpx.post(f"{url}/v1/chat/completions", content=json.dumps(GOOD), headers={"content-type": kind})
    assert reply.status_code == 415
    asked = httpx.options(f"{url}/v1/chat/completions", headers={"origin": "https://example.org"})
    assert asked.status_code == 404
    assert "access-control-allow-origin" not in asked.headers


def test_the_kind_of_json_may_be_written_in_any_way(url):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert httpx.post(f"{url}/v1/chat/completions", content=json.dumps(GOOD), headers=headers).status_code == 200


def test_bodies_are_bounded_each_and_together(url, monkeypatch):
    monkeypatch.setattr(openai_app, "MAX_BODY_BYTES", 1000)
    long = {**GOOD, "messages": [{"role": "user", "content": "x" * 2000}]}
    assert post(url, long).status_code == 413
    monkeypatch.setattr(openai_app, "MAX_BODY_BYTES", 10_000)
    monkeypatch.setattr(openai_app, "MAX_HELD_BYTES", 1000)
    assert post(url, long).status_code == 503
    assert post(url, GOOD).status_code == 200  # what was refused counts no longer


def test_fetched_pictures_count_too(url, monkeypatch):
    fetched = []

    def fetch(address: str) -> bytes:
        fetched.append(address)
        return HEARTS.read_bytes() + bytes(100_000)

    monkeypatch.setattr(openai_app, "fetch_image", fetch)
    asked = {**GOOD, "messages": about(*[picture_at("https://example.org/a.png")] * 3, QUESTION)}
    assert post(url, asked).status_code == 200
    assert len(fetched) == 3
    monkeypatch.setattr(openai_app, "MAX_HELD_BYTES", 250_000)
    assert post(url, asked).status_code == 503
    assert post(url, GOOD).status_code == 200


def test_whoever_leaves_counts_until_their_fetch_has_ended(page, url, monkeypatch):
    arrived, go_on = [], threading.Event()

    def fetch(_address: str) -> bytes:
        arrived.append(None)
        go_on.wait(2 * PATIENCE_S)
        return HEARTS.read_bytes()

    def leave() -> None:
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(f"{url}/v1/chat/completions", json=asked, timeout=httpx.Timeout(20, read=0.3))

    monkeypatch.setattr(openai_app, "fetch_image", fetch)
    asked = {**GOOD, "messages": about(picture_at("https://example.org/a.png"), QUESTION)}
    long = {**GOOD, "messages": [{"role": "user", "content": "x" * 2000}]}
    body = json.dumps(asked, separators=(",", ":"))
    try:
        while len(arrived) < openai_app.MAX_FETCHES:  # a server that has no time may read a request too late
            leave()
        for _ in range(2 * openai_app.MAX_FETCHES):
            leave()
        wait_for(lambda: page.programs._rooms[True].num_bytes == openai_app.MAX_FETCHES * len(body))
        assert len(arrived) == openai_app.MAX_FETCHES  # those behind them have left before their turn
        with monkeypatch.context() as context:
            context.setattr(openai_app, "MAX_HELD_BYTES", 2000 + openai_app.MAX_FETCHES * len(body))
            assert post(url, long).status_code == 503
            go_on.set()
            wait_for(lambda: post(url, long).status_code != 503)
    finally:
        go_on.set()
    assert post(url, asked).status_code == 200
    assert len(arrived) == openai_app.MAX_FETCHES + 1


def test_so_many_pictures_wait_to_be_fetched(url, monkeypatch):
    monkeypatch.setattr(fetching, "MOST_OF_ONE", 3)
    arrived, go_on = [], threading.Event()

    def fetch(_address: str) -> bytes:
        arrived.append(None)
        go_on.wait(PATIENCE_S)
        return HEARTS.read_bytes()

    monkeypatch.setattr(openai_app, "fetch_image", fetch)
    asked = {**GOOD, "messages": about(picture_at("https://example.org/a.png"), QUESTION)}
    with ThreadPoolExecutor(3) as threads:
        try:
            waiting = [threads.submit(post, url, asked) for _ in range(3)]
            wait_for(lambda: len(arrived) == openai_app.MAX_FETCHES)
            time.sleep(0.5)  # the third one waits behind them
            reply = post(url, asked)
            assert (reply.status_code, reply.json()["error"]["message"]) == (429, OWN_WAIT)
            assert int(reply.headers["retry-after"]) > 0
            assert post(url, {**GOOD, "messages": about(part(HEARTS), QUESTION)}).status_code == 200
        finally:
            go_on.set()
        assert [one.result().status_code for one in waiting] == [200] * 3


def test_a_schema_that_can_not_be_answered_is_refused_before_pictures_are_fetched(url, monkeypatch):
    fetched = []
    monkeypatch.setattr(openai_app, "fetch_image", lambda address: fetched.append(address) or HEARTS.read_bytes())
    asked = {**GOOD, "messages": about(picture_at("https://example.org/a.png"), QUESTION)}
    for schema in ({"enum": ["x" * 70_000]}, nested(100), nested(400)):
        reply = post(url, {**asked, "response_format": schema_of(schema)})
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "response_format")
    assert not fetched


def test_a_model_that_is_no_name_does_not_come_back(url):
    reply = post(url, {**GOOD, "model": [{"a": 1}] * 50_000})
    assert reply.json()["error"]["message"] == f"There is no model '' here. Ask one of {MODEL}."


def test_strangers_leave_room_for_known_programs(url, monkeypatch):
    monkeypatch.setattr(openai_app, "MAX_HELD_BYTES", 1000)
    large = b'{"model": "' + b"x" * 2000
    with httpx.Client() as stranger:
        headers = {"content-type": "application/json", "via": "a proxy"}
        assert stranger.post(f"{url}/v1/chat/completions", content=large, headers=headers).status_code == 503
    assert post(url, GOOD).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "demo model", "messages": [' + b"{}," * 300_000 + b"{}]}",
        b'{"model": "demo model", "messages": ' + b"[" * 300_000 + b"]" * 300_000 + b"}",
    ],
)
def test_a_request_of_very_many_values_is_refused_before_it_is_read(url, body):
    reply = httpx.post(f"{url}/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 413


def test_a_text_in_many_parts_takes_no_longer_than_its_length(url):
    parts = [{"type": "text", "text": "hello there " * 20}] * 40_000
    begin = time.process_time()
    reply = post(url, {**GOOD, "messages": [{"role": "user", "content": parts}]})
    assert reply.status_code == 400  # too long for the model
    assert time.process_time() < begin + 10


def test_a_long_name_of_an_option_does_not_come_back(url):
    reply = post(url, {**GOOD, "x" * 100_000: 1})
    assert reply.status_code == 400
    assert len(reply.text) < 1000


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (QueueFullError("Full. Wait."), 429),
        (OutOfMemoryError("Full. Wait."), 503),
        (PromptError("Wrong. Mend it."), 400),
        (NonFiniteError("NaN. Load it again."), 500),
        (OperatorError("Another key. Give it."), 502),
        (RuntimeError("/a/path"), 500),
    ],
)
def test_whose_fault_an_error_is(engine, url, monkeypatch, error, status):
    def failing(*_):
        raise error
        yield

    monkeypatch.setattr(engine, "stream", failing)
    reply = post(url, GOOD)
    assert reply.status_code == status
    assert "path" not in reply.text
    assert reply.json()["error"]["message"].endswith(".")


def test_a_part_of_a_character_is_told_by_its_byte():
    assert _logprob("<0xE5>", 0.5)["bytes"] == [0xE5]
    assert _logprob("å", 0.0) == {"token": "å", "logprob": -9999.0, "bytes": [0xC3, 0xA5]}


@pytest.fixture
def guarded(engine):
    """A page with keys, for the same engine; and the requests that came to it."""
    page = built(engine, api_keys=(KEY, "another-of-our-keys"))
    launch(page)
    yield page.local_url.rstrip("/")
    page.close(verbose=False)


def test_with_keys_a_program_must_send_one(guarded):
    for wrong in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}):
        for reply in (post(guarded, GOOD, headers=wrong), httpx.get(f"{guarded}/v1/models", headers=wrong)):
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            assert KEY not in reply.text
    client = openai.OpenAI(base_url=f"{guarded}/v1", api_key=KEY, max_retries=0)
    assert client.chat.completions.create(**GOOD).choices[0].message.content


def test_a_page_with_a_login_is_closed_to_programs_without_a_key(engine):
    page = built(engine)
    launch(page, auth=("me", "a password"))
    try:
        reply = post(page.local_url.rstrip("/"), GOOD)
        assert (reply.status_code, reply.json()["error"]["code"]) == (401, "no_keys")
    finally:
        page.close(verbose=False)


@contextmanager
def sent(page, body, version="1.1"):
    """A connection over which a program has asked, by this machine's address and without a header of its own."""
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: 127.0.0.1:{page.server_port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    with socket.create_connection((page.server_name, page.server_port), timeout=PATIENCE_S) as connection:
        connection.sendall(head.encode() + content)
        yield connection


def status_over_http_1_0(page, body) -> int:
    """As nginx asks when it is told nothing."""
    with sent(page, body, "1.0") as connection:
        return int(connection.recv(100).split()[1])


@pytest.mark.parametrize("proxy", ["", "x-forwarded-for", "forwarded", "x-real-ip", "via", "host", "1.0", "named"])
def test_strangers_share_a_place_in_the_queue_and_no_cache(scripted_page, scripted, monkeypatch, proxy):
    """Through a public link, through a proxy, or from another site's page whose name leads here."""
    scripted.let_through("queued", "encoding", "reading", "writing")
    monkeypatch.setattr(scripted_page, "is_shared", not proxy)
    behind = FrontDesk(scripted_page.desk._models, Operation(behind_proxy=proxy == "named")).behind_proxy
    monkeypatch.setattr(scripted_page.desk, "behind_proxy", behind)
    for number in range(2):
        name = "evil.example" if proxy == "host" else f"127.0.0.{number}"
        headers = {} if proxy in ("", "1.0", "named") else {proxy: name}
        asked = {**GOOD, "model": DEMO.name}
        if proxy == "1.0":
            assert status_over_http_1_0(scripted_page, asked) == 200
            continue
        assert post(scripted_page.local_url.rstrip("/"), asked, headers=headers).status_code == 200
    assert len(scripted.requests) == 2
    assert len({request.visitor for request in scripted.requests}) == 1
    assert not any(request.reuse for request in scripted.requests)


@pytest.mark.parametrize("stream", [False, True])
def test_a_program_that_leaves_ends_its_answer(scripted_page, scripted, stream):
    scripted.let_through("queued", "encoding", "reading")
    with sent(scripted_page, {**GOOD, "model": DEMO.name, "stream": stream}):
        wait_for(lambda: scripted.reached[-1:] == ["writing"])
    assert scripted.wait_until_closed() == ["writing"]


def test_an_error_in_the_middle_of_a_stream_is_told(engine, url, monkeypatch):
    def failing(*_):
        yield TokenEvent("A ")
        raise Gemma3Error("It broke. Ask again.")

    monkeypatch.setattr(engine, "stream", failing)
    reply = post(url, {**GOOD, "stream": True})
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert json.loads(events[-2])["error"]["message"] == "It broke. Ask again."
    assert events[-1] == "[DONE]"
    assert post(url, GOOD).json()["error"]["message"] == "It broke. Ask again."
