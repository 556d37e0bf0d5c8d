"""Another server behind the same door: our own `/v1/` as that server, and one that fails in odd ways."""

import asyncio
import io
import json
import threading
import time
from contextlib import aclosing
from dataclasses import replace

import httpx
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from places import EXAMPLES
from running_app import free_port, require_demo_model, served

from components.chat.conversation import Exchange
from components.chat.panel import badge
from components.inside.code_view import Address, scripts
from components.inside.handlers import _inputs
from components.serving.callers import Caller
from components.serving.desk import FrontDesk, Operation
from gemma3_core.engine import (
    Answered,
    DoneEvent,
    Engine,
    Gemma3Error,
    ModelRegistry,
    OutsideEngine,
    PartialSampling,
    QueueFullError,
    Request,
    SamplingSettings,
    StageEvent,
    TokenEvent,
    Turn,
    sent_pictures,
    usage_of,
)
from gemma3_core.engine import outside as outsides
from gemma3_core.engine.openai_client import BROKEN, FAILED, GONE, NO_ANSWER
from gemma3_core.engine.outside import NO_LOCAL, _same
from gemma3_core.engine.outside import OutsideEngine as Outside
from gemma3_core.errors import (
    AttentionError,
    CheckpointError,
    ContextLengthError,
    ImageError,
    OperatorError,
    PromptError,
    ReplicaLostError,
    SchemaError,
    UnsupportedOptionError,
)
from gemma3_core.images.load import read_header

HEARTS = EXAMPLES / "hearts.png"
QUESTION = "How many hearts are there?"
ASKED = Request(
    (Turn("user", QUESTION, (str(HEARTS),)),), sampling=SamplingSettings(temperature=0.0), confidence=True, reuse=False
)
TEXT = Request((Turn("user", "Hello"),))


@pytest.fixture(scope="module")
def engine():
    require_demo_model()
    return Engine.load(device="cpu")


@pytest.fixture(scope="module")
def url(engine):
    with served(engine, api_keys=["a-key-of-ours"]) as address:
        yield address


@pytest.fixture(scope="module")
def outside(url, engine):
    return OutsideEngine.connect(f"{url}/v1/", key="a-key-of-ours", local=engine)


@pytest.fixture(scope="module")
def in_front(outside):
    """The page that asks the server."""
    with served(ModelRegistry(outside)) as address:
        yield address


def events_of(engine, request, stop=None) -> tuple[list, DoneEvent]:
    *events, done = engine.stream(request, stop)
    return events, done


def test_its_answer_is_the_servers_with_tokens_probabilities_and_figures(outside, engine):
    events, done = events_of(outside, ASKED)
    own_events, own = events_of(engine, ASKED)
    assert (done.text, done.token_ids) == (own.text, own.token_ids)
    assert (done.stats.prompt_tokens, done.stats.new_tokens) == (own.stats.prompt_tokens, own.stats.new_tokens)
    assert (done.stats.device, done.stats.stop_reason) == ("another server", "stop")
    told = [event.choice for event in events if isinstance(event, TokenEvent) and event.choice]
    expected = [event.choice for event in own_events if isinstance(event, TokenEvent) and event.choice]
    assert [(one.token_id, one.text) for one in told] == [(one.token_id, one.text) for one in expected]
    assert [one.probability for one in told] == pytest.approx([one.probability for one in expected], abs=1e-3)
    assert sum(isinstance(event, TokenEvent) for event in events) > 2  # it streams


def test_inside_reads_the_answer_again_with_the_same_checkpoint_and_says_so(outside, engine):
    _, done = events_of(outside, ASKED)
    seen = outside.attention(Answered(ASKED, done), [2])
    _, own = events_of(engine, ASKED)
    assert seen == engine.attention(Answered(ASKED, own), [2])
    assert outside.occlude(Answered(ASKED, done), 2).before == pytest.approx(
        engine.occlude(Answered(ASKED, own), 2).before
    )
    assert outside.inspect(ASKED).tokens == engine.inspect(ASKED).tokens
    assert "reading its tokens again with demo model" in outside.info.outside
    assert "on another server" in badge(outside.info)
    exchange = Exchange(ASKED.turns[0], False, Answered(ASKED, done))
    assert list(scripts(exchange, outside.info, Address("here", "here"))) == ["gradio_client", "curl"]


def test_inside_asks_for_nothing_that_the_server_did_not_tell(outside):
    _, done = events_of(outside, ASKED)
    untold = replace(done, stats=replace(done.stats, prompt_tokens=0))
    assert outside.attention(Answered(ASKED, untold), [2]) == outside.attention(Answered(ASKED, done), [2])


def test_what_it_holds_is_told_like_that_of_other_engines(outside, url):
    assert usage_of(ModelRegistry(outside)).models == (outside.info.name,)
    alone = OutsideEngine.connect(url, key="a-key-of-ours")
    told = usage_of(ModelRegistry(alone))
    assert (told.cache_bytes, told.device_bytes, alone.silent_s) == (0, {}, 0.0)


def test_each_way_of_sampling_is_sent_and_a_broken_picture_has_its_number(outside):
    sampling = SamplingSettings(temperature=1.0, min_p=0.1, repetition_penalty=1.2)
    body = outside._body(replace(ASKED, sampling=sampling), ["data:"])
    assert (body["min_p"], body["repetition_penalty"], body["top_k"]) == (0.1, 1.2, 64)
    assert not {"min_p", "repetition_penalty"} & outside._body(ASKED, ["data:"]).keys()
    before = (ASKED.turns[0], Turn("assistant", "Three."))
    with pytest.raises(ImageError, match="The 2nd picture"):
        list(outside.stream(replace(ASKED, turns=(*before, Turn("user", "And here?", (HEARTS.read_bytes()[:400],))))))


def test_schemas_lengths_and_seeds_reach_the_server(outside):
    fields = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    schema = json.dumps(fields | {"additionalProperties": False})
    _, done = events_of(outside, replace(ASKED, json_schema=schema))
    assert json.loads(done.text)["a"] in ("x", "y")
    _, cut = events_of(outside, replace(ASKED, max_new_tokens=2))
    assert (cut.stats.stop_reason, cut.stats.new_tokens, len(cut.token_ids)) == ("length", 2, 2)
    sampled = replace(ASKED, sampling=PartialSampling(temperature=2.0, seed=5))
    assert events_of(outside, sampled)[1].stats.seed == 5


def test_the_page_asks_the_server(outside, in_front):
    client = Client(in_front, verbose=False)
    answer, stats = client.predict(images=[handle_file(HEARTS)], question=QUESTION, api_name="/ask")
    assert answer == events_of(outside, ASKED)[1].text
    assert stats["device"] == "another server"


@pytest.mark.parametrize("stream", [False, True])
def test_stop_strings_reach_the_server_which_then_tells_its_prompt(outside, in_front, stream):
    body = {"model": outside.info.name, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    body |= {"stream": stream, "stream_options": {"include_usage": True}}
    whole = told_of(httpx.post(f"{in_front}/v1/chat/completions", json=body, timeout=60))
    word = whole[0].split()[1]
    cut, usage = told_of(httpx.post(f"{in_front}/v1/chat/completions", json={**body, "stop": word}, timeout=60))
    assert cut == whole[0].partition(word)[0]
    assert usage["prompt_tokens"] == whole[1]["prompt_tokens"] > 0


def told_of(reply):
    """The text and the usage of an answer in OpenAI's form, streamed or not."""
    if "event-stream" not in reply.headers["content-type"]:
        return reply.json()["choices"][0]["message"]["content"], reply.json()["usage"]
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    *chunks, last = [json.loads(line) for line in lines]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks), last["usage"]


def test_another_server_is_told_stop_strings_only_where_there_are_some():
    engine, server = odd(chunk("a"), DONE)
    for stops in ((), ("x", "y")):
        events_of(engine, replace(TEXT, stop_strings=stops))
    assert [asked.get("stop") for asked in server.asked] == [None, ["x", "y"]]


@pytest.mark.parametrize("local", [False, True])
def test_without_the_same_checkpoint_inside_says_why_it_shows_nothing(url, engine, local, monkeypatch):
    monkeypatch.setattr(engine, "info", replace(engine.info, name="gemma-3-4b-it"))
    outside = OutsideEngine.connect(url, key="a-key-of-ours", local=engine if local else None)
    _, done = events_of(outside, replace(TEXT, max_new_tokens=3))
    said = "the checkpoint here is gemma-3-4b-it" if local else NO_LOCAL
    with pytest.raises(AttentionError, match=said):
        outside.attention(Answered(TEXT, done), [0])
    assert said in outside.info.outside
    (preview,) = outside.preview([str(HEARTS)], False)
    assert (preview.width, preview.tokens, len(preview.tiles)) == (preview.original.width, 256, 1)


def test_names_of_one_checkpoint():
    assert _same("google/gemma-3-4b-it", "gemma-3-4b-it")
    assert _same("demo model", "demo_model")
    assert _same("gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it-Q4_K_M")
    assert not _same("gemma-3-4b-it", "gemma-3-4b-pt")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"turns": ()}, PromptError),
        ({"int4": True}, UnsupportedOptionError),
        ({"pan_and_scan": True}, UnsupportedOptionError),
        ({"answer_so_far": (1,)}, UnsupportedOptionError),
        ({"continue_text": True}, UnsupportedOptionError),
        ({"json_schema": "{"}, SchemaError),
    ],
)
def test_what_can_not_be_asked_elsewhere_is_said_before_it_is_sent(outside, change, error):
    with pytest.raises(error):
        next(outside.stream(replace(ASKED, **change)))


def test_a_server_that_is_not_there_or_lacks_the_model_is_said_at_the_start(url):
    with pytest.raises(Gemma3Error, match="can't be reached"):
        OutsideEngine.connect(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(CheckpointError, match=r"does not have gpt-4o\. It has demo model"):
        OutsideEngine.connect(url, "gpt-4o", "a-key-of-ours")
    with pytest.raises(Gemma3Error, match="--openai-key"):
        OutsideEngine.connect(url).stream(TEXT).__next__()


LOADING_BY_LLAMA = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
"""What llama.cpp's server says, here and below, as it was seen to (docs/serving.md)."""
OF_LLAMA = {
    "id": "/models/of/somebody/demo-model.gguf",
    "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
    "meta": {"n_vocab": 1024, "n_ctx": 1024, "n_ctx_train": 8192},
}


class Odd(httpx.AsyncBaseTransport):
    """A server that answers each question with these parts, and keeps what it was asked."""

    def __init__(self, *parts: bytes | float, status: int = 200, kind: str = "text/event-stream", model=None, loads=0):
        self.parts, self.status, self.kind, self.asked, self.closed = parts, status, kind, [], threading.Event()
        self.model, self.loads = model or {"id": "odd"}, loads

    async def handle_async_request(self, request):
        if request.url.path.endswith("/models"):
            self.loads -= 1
            if self.loads >= 0:
                return httpx.Response(503, json=LOADING_BY_LLAMA)
            return httpx.Response(200, json={"data": [self.model]})
        self.asked.append(json.loads(await request.aread()))
        return httpx.Response(self.status, headers={"content-type": self.kind}, stream=_Parts(self))


class _Parts(httpx.AsyncByteStream):
    def __init__(self, server: Odd):
        self._server = server

    async def __aiter__(self):
        for part in self._server.parts:
            if isinstance(part, float):
                await asyncio.sleep(part)
            elif isinstance(part, Exception):
                raise part
            else:
                yield part

    async def aclose(self):
        self._server.closed.set()


def test_a_notebook_which_runs_an_event_loop_connects_too(url):
    async def cell() -> OutsideEngine:
        return OutsideEngine.connect(url, key="a-key-of-ours")

    assert asyncio.run(cell()).info.outside


def odd(*parts, local=None, **options) -> tuple[Outside, Odd]:
    server = Odd(*parts, **options)
    return OutsideEngine.connect("http://odd.invalid", local=local, transport=server), server


def chunk(text: str, reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((chunk("Hel"), chunk("lo"), DONE), "Hello"),
        ((b": waiting\r\n", chunk("a")[:9], chunk("a")[9:], b'data: {"choices": []}\n\n', DONE), "a"),
        ((chunk("a", "stop"),), "a"),
        ((b'event: x\ndata: {"choices": [{"delta": {}, "finish_reason": null}]}\n\n', chunk("ü"), DONE), "ü"),
        ((b'data: {"choices": [{"delta": null}], "usage": null}\n\n', chunk("b"), DONE), "b"),
    ],
)
def test_streams_of_every_spelling_are_read(parts, text):
    events, done = events_of(odd(*parts)[0], TEXT)
    assert done.text == "".join(event.text for event in events if isinstance(event, TokenEvent)) == text
    assert (done.stats.stop_reason, done.token_ids) == ("stop", ())


def test_a_server_that_does_not_stream_is_read_whole():
    whole = json.dumps({"choices": [{"message": {"content": "Hi"}, "finish_reason": "length"}]}).encode()
    _, done = events_of(odd(whole, kind="application/json")[0], TEXT)
    assert (done.text, done.stats.stop_reason) == ("Hi", "length")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ((chunk("a"),), BROKEN),
        ((), BROKEN),
        ((chunk("a"), httpx.ReadError("reset")), BROKEN),
        ((chunk("a"), httpx.RemoteProtocolError("half")), BROKEN),
        ((httpx.ReadTimeout("silent"),), BROKEN),
        ((httpx.ConnectError("refused"),), GONE),
        ((chunk("a"), b"data: {no json\n\n"), NO_ANSWER),
        ((b"data: [1]\n\n",), NO_ANSWER),
        ((b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',), NO_ANSWER),
        ((b'data: {"choices": ["x"]}\n\n',), NO_ANSWER),
        ((b'data: {"error": {"message": "/secret/path died"}}\n\n',), FAILED),
        ((b"x" * 3_000_000,) * 2, NO_ANSWER),
        ((b"x" * 1_000 + b"\n",) * 17_000, NO_ANSWER),
    ],
)  # fmt: skip
def test_a_server_that_fails_in_odd_ways_costs_one_sentence(parts, said):
    engine, _ = odd(*parts)
    with pytest.raises(ReplicaLostError) as error:  # which programs at /v1/ meet as 503, and ask again
        events_of(engine, TEXT)
    assert str(error.value) == said
    assert not [thread for thread in threading.enumerate() if thread.name == "outside"]


@pytest.mark.parametrize(
    ("status", "body", "kind", "said"),
    [
        (
            400,
            {"error": {"message": "The context is 4096."}},
            Gemma3Error,
            "refuses this question: The context is 4096.",
        ),
        (422, {"detail": "no pictures"}, Gemma3Error, "refuses this question: no pictures."),
        (413, "<html>", Gemma3Error, "refuses this question. Change it."),
        (401, {}, OperatorError, "wants another key"),
        (403, {}, OperatorError, "wants another key"),
        (404, {}, OperatorError, "does not have this model"),
        (429, {}, QueueFullError, "too much to do"),
        (503, LOADING_BY_LLAMA, QueueFullError, "is loading its model"),
        (500, {"error": {"message": "image input is not supported - hint: …"}}, Gemma3Error, "image input is not"),
        (
            400,
            {"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 4024, "n_ctx": 1024, "message": "…"}},
            ContextLengthError,
            "has 4,024 tokens; the server that answers takes 1,024",
        ),
        (400, {"error": {"type": "exceed_context_size_error", "message": "too long"}}, Gemma3Error, "too long"),
        (500, {"error": "/secret/path"}, Gemma3Error, FAILED),
        (302, {}, Gemma3Error, FAILED),
    ],
)
def test_what_the_server_refuses_is_said_plainly(status, body, kind, said):
    sent = body if isinstance(body, str) else json.dumps(body)
    engine, _ = odd(sent.encode(), status=status, kind="application/json")
    with pytest.raises(kind) as error:
        events_of(engine, TEXT)
    assert said in str(error.value)
    assert "secret" not in str(error.value)


def test_pictures_are_decoded_within_the_bounds_of_all_and_let_go_after_the_answer(monkeypatch):
    engine, server = odd(chunk("a"), DONE)
    jobs, submit = [], engine._pictures.submit
    monkeypatch.setattr(engine._pictures, "submit", lambda work, size: jobs.append(size) or submit(work, size))
    photo = io.BytesIO()
    Image.new("RGB", (60, 40)).save(photo, "JPEG")
    asked = replace(TEXT, turns=(Turn("user", "Which?", (str(HEARTS), photo.getvalue(), str(HEARTS))),))
    assert events_of(engine, asked)[1].text == "a"
    assert jobs == [read_header(picture).decoding_bytes for picture in asked.turns[0].pictures[:2]]
    *parts, question = server.asked[0]["messages"][0]["content"]
    addresses = [part["image_url"]["url"] for part in parts]
    assert [one.partition(";")[0] for one in addresses] == ["data:image/png", "data:image/jpeg", "data:image/png"]
    assert question == {"type": "text", "text": "Which?"}
    assert not engine._sent._held._held


def test_stop_ends_a_question_whose_pictures_wait_for_room():
    engine, server = odd(chunk("a"), DONE)
    engine._sent._held.hold("another question", sent_pictures.MAX_IN_FLIGHT_BYTES, 0)
    stop = threading.Event()
    events = engine.stream(replace(ASKED, confidence=False), stop)
    assert next(events).text == "Waiting until there is room for these pictures"
    stop.set()
    *_, done = events
    assert (done.stats.stop_reason, server.asked) == ("cancelled", [])


def test_a_server_without_log_probabilities_is_asked_without_them():
    engine, server = odd(b'{"error": {"message": "logprobs is not supported"}}', status=400, kind="application/json")
    with pytest.raises(Gemma3Error, match="logprobs is not supported"):
        events_of(engine, replace(TEXT, confidence=True))
    assert ["logprobs" in asked for asked in server.asked] == [True, False]


def test_a_server_that_loads_its_model_is_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(outsides, "_LOOKS_AGAIN_S", 0.01)
    engine, _ = odd(chunk("a"), DONE, loads=3)
    assert events_of(engine, TEXT)[1].text == "a"
    assert sum("loading its model" in record.message for record in caplog.records) == 1
    monkeypatch.setattr(outsides, "_LOADS_WITHIN_S", 0.0)
    with pytest.raises(QueueFullError, match="is loading its model"):
        odd(loads=3)


def test_what_llama_cpp_tells_of_its_model_is_heeded_and_its_path_is_not_shown(engine):
    alone = odd(model=OF_LLAMA)[0]
    for local in (None, engine):
        outside, server = odd(chunk("a"), DONE, model=OF_LLAMA, local=local)
        assert (outside.info.name, outside.info.context_length) == ("demo-model.gguf", 1024)
        assert not outside.info.multimodal
        with pytest.raises(PromptError, match="reads text only"):
            events_of(outside, ASKED)
        assert events_of(outside, TEXT)[1].stats.model == "demo-model.gguf"
        assert server.asked[0]["model"] == OF_LLAMA["id"]
    by_name = OutsideEngine.connect("http://odd.invalid", "demo-model.gguf", transport=server)
    assert by_name.info == alone.info
    assert odd(model=OF_LLAMA | {"meta": {"n_ctx_train": 8192}})[0].info.context_length == 8192


def told_by(model: str, usage: int = 0) -> bytes:
    return b"data: " + json.dumps(
        {"model": model, "choices": [{"delta": {"content": "There are"}}], "usage": {"prompt_tokens": usage}}
    ).encode() + b"\n\n"  # fmt: skip


def test_inside_does_not_read_the_answer_of_another_model(engine):
    for model, is_same in ((OF_LLAMA["id"], True), ("demo model", True), ("another model", False)):
        outside, _ = odd(told_by(model), DONE, model=OF_LLAMA, local=engine)
        _, done = events_of(outside, TEXT)
        assert bool(done.token_ids) == is_same
        if not is_same:
            with pytest.raises(AttentionError, match="another model than demo model wrote it"):
                outside.attention(Answered(TEXT, done), [0])


def test_a_prompt_that_the_server_words_otherwise_is_said(engine):
    tokens = len(engine.inspect(TEXT).tokens)
    for counted, is_other in ((0, False), (tokens, False), (tokens - 2, False), (tokens + 15, True)):
        outside, _ = odd(told_by("demo model", counted), DONE, model={"id": "demo model"}, local=engine)
        _, done = events_of(outside, TEXT)
        exchange = Exchange(TEXT.turns[0], False, Answered(TEXT, done))
        assert ("chat template is another one" in _inputs(outside, exchange)) == is_other


def test_a_base_model_is_asked_and_read_again_as_a_chat(engine, monkeypatch):
    monkeypatch.setattr(engine, "info", replace(engine.info, continues_text=True))
    outside, _ = odd(chunk("a"), DONE, model={"id": "demo model"}, local=engine)
    assert not outside.info.continues_text
    assert len(outside.inspect(TEXT).tokens) == len(engine.inspect(replace(TEXT, continue_text=False)).tokens)
    assert len(outside.inspect(TEXT).tokens) > len(engine.inspect(TEXT).tokens)


@pytest.mark.parametrize("parts", [(60.0,), (chunk("Hel"), 60.0)], ids=["before the first word", "after it"])
def test_stop_ends_an_answer_wherever_the_server_is(parts):
    engine, server = odd(*parts)
    stop, began = threading.Event(), time.monotonic()
    events = engine.stream(TEXT, stop)
    seen = next(event for event in events if isinstance(event, TokenEvent) or parts[0] == 60.0)
    stop.set()
    *_, done = events
    assert done.stats.stop_reason == "cancelled"
    assert done.text == (seen.text if isinstance(seen, TokenEvent) and not isinstance(seen, StageEvent) else "")
    assert time.monotonic() - began < 30
    assert server.closed.wait(30)


def test_closing_the_iterator_ends_the_request():
    engine, server = odd(chunk("a"), 60.0)
    events = engine.stream(TEXT)
    while not isinstance(next(events), TokenEvent):
        pass
    events.close()
    assert server.closed.wait(30)


def test_a_visitor_who_leaves_ends_an_answer_of_a_server_that_has_fallen_silent():
    engine, server = odd(chunk("a"), 60.0)
    desk = FrontDesk(ModelRegistry(engine), Operation())

    async def leave():
        async with aclosing(desk.astream(Caller("v1", "192.0.2.1"), None, TEXT)) as events:
            async for event in events:
                if isinstance(event, TokenEvent):
                    return

    asyncio.run(leave())
    assert server.closed.wait(30)
    assert engine.queue.wait_until_empty(30)


def test_leaving_before_the_reading_has_begun_ends_it_too(monkeypatch):
    engine, server = odd(60.0)
    work, may_begin = outsides._Reading._work, threading.Event()

    def late(reading):
        may_begin.wait(60)
        work(reading)

    monkeypatch.setattr(outsides._Reading, "_work", late)
    events = engine.stream(TEXT)
    while next(events).text != "Waiting for the server that answers":
        pass
    next(events)
    threading.Timer(0.2, may_begin.set).start()
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 30
    assert server.asked == []
