"""llama.cpp's own server behind our page, with the demo model: what another server really does."""

import os
import signal
import threading
from dataclasses import replace

import pytest
from browsing import answered, look_inside, send, write
from gguf_files import converted
from llama_server import llama_server
from openai import OpenAI
from places import DEMO_MODEL, EXAMPLES
from running_app import free_port, opened, require_demo_model, served

from gemma3_core.engine import (
    Answered,
    DoneEvent,
    Engine,
    ModelRegistry,
    OutsideEngine,
    Request,
    SamplingSettings,
    TokenEvent,
    Turn,
    told_otherwise,
)
from gemma3_core.engine.openai_client import BROKEN, GONE
from gemma3_core.errors import ContextLengthError, Gemma3Error, PromptError, ReplicaLostError

pytestmark = pytest.mark.long
pytest.importorskip("xllamacpp", reason="no llama.cpp server (pip install -r tests/requirements-real.txt)")

QUESTION = "How many hearts are there?"
ASKED = Request(
    (Turn("user", QUESTION, (str(EXAMPLES / "hearts.png"),)),),
    sampling=SamplingSettings(temperature=0.0),
    confidence=True,
    reuse=False,
)
TEXT = Request((Turn("user", "Who are you?"),), sampling=SamplingSettings(temperature=0.0))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    require_demo_model()
    return converted(DEMO_MODEL, tmp_path_factory.mktemp("gguf"), name="demo-model.gguf")


@pytest.fixture(scope="module")
def engine():
    require_demo_model()
    return Engine.load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def outside(file, engine):
    port = free_port()
    with llama_server(file, port, "--mmproj", str(file.with_name(f"mmproj-{file.name}"))):
        yield OutsideEngine.connect(f"http://127.0.0.1:{port}/v1", local=engine)


def events_of(engine, request, stop=None) -> tuple[list, DoneEvent]:
    *events, done = engine.stream(request, stop)
    assert isinstance(done, DoneEvent)
    return events, done


def test_its_answer_about_a_picture_is_ours_with_tokens_and_probabilities(outside, engine):
    events, done = events_of(outside, ASKED)
    own_events, own = events_of(engine, ASKED)
    assert (done.text, done.token_ids, done.stats.stop_reason) == (own.text, own.token_ids, "stop")
    told = [event.choice for event in events if isinstance(event, TokenEvent) and event.choice]
    expected = [event.choice for event in own_events if isinstance(event, TokenEvent) and event.choice]
    assert [(one.token_id, one.text) for one in told] == [(one.token_id, one.text) for one in expected]
    # It makes pictures smaller in a way of its own, so the numbers are not the same.
    assert [one.probability for one in told] == pytest.approx([one.probability for one in expected], abs=0.02)


def test_inside_reads_its_answer_again_from_almost_the_same_prompt(outside, engine):
    _, done = events_of(outside, ASKED)
    answered = Answered(ASKED, done)
    _, own = events_of(engine, ASKED)
    assert outside.attention(answered, [2]) == engine.attention(Answered(ASKED, own), [2])
    assert told_otherwise(answered, len(outside.inspect(ASKED).tokens)) == ""


def test_it_tells_its_name_its_context_and_that_it_sees(outside):
    info = outside.info
    assert (info.name, info.multimodal, info.context_length) == ("demo-model.gguf", True, 2048)


def test_system_prompts_schemas_lengths_and_seeds_reach_it(outside, engine):
    in_words = replace(ASKED, system_prompt="Answer with a single word.")
    assert events_of(outside, in_words)[1].text == events_of(engine, in_words)[1].text
    schema = '{"type": "object", "properties": {"hearts": {"type": "integer"}}, "required": ["hearts"]}'
    _, done = events_of(outside, replace(ASKED, json_schema=schema, max_new_tokens=60))
    assert done.text.lstrip().startswith("{")
    _, cut = events_of(outside, replace(ASKED, max_new_tokens=2))
    assert (cut.stats.stop_reason, cut.stats.new_tokens) == ("length", 2)
    hot = SamplingSettings(temperature=2.0, top_k=64, top_p=1.0, min_p=0.001)
    described = replace(ASKED, turns=(replace(ASKED.turns[0], text="Describe the picture."),))
    written = [
        events_of(outside, replace(described, sampling=replace(hot, seed=seed)))[1].text for seed in (5, 5, 6, 7, 8, 9)
    ]
    assert written[0] == written[1]
    assert len(set(written)) > 1


def test_a_program_asks_it_through_our_interface(outside):
    with served(ModelRegistry(outside)) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        options = {"model": outside.info.name, "messages": [{"role": "user", "content": "Who are you?"}]}
        answer = client.chat.completions.create(**options, temperature=0, logprobs=True, top_logprobs=2)
        whole, told = answer.choices[0].message.content, answer.choices[0].logprobs.content
        assert "".join(one.token for one in told if not one.token.startswith("<end")) == whole
        pieces = client.chat.completions.create(**options, temperature=0, stream=True, stop=[whole[4:7]])
        assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == whole[:4]


def test_a_visitor_asks_it_on_the_page_and_looks_inside(outside, browser):
    with served(ModelRegistry(outside)) as url, opened(browser, url) as page:
        assert "on another server" in page.locator("body").inner_text()
        write(page, QUESTION, EXAMPLES / "hearts.png")
        send(page)
        assert answered(page) == "There are three hearts."
        look_inside(page)
        told = page.locator("#inside").inner_text()
        assert "reading its tokens again with demo model" in told
        assert "chat template is another one" not in told
        assert page.locator("#inside button", has_text="three").count()


def test_without_its_part_for_pictures_it_is_not_asked_about_any(file):
    port = free_port()
    with llama_server(file, port, "--context", "256", "--key", "right"):
        outside = OutsideEngine.connect(f"http://127.0.0.1:{port}", key="right")
        assert not outside.info.multimodal
        with pytest.raises(PromptError, match="reads text only"):
            events_of(outside, ASKED)
        # As a page would that was started before the server was restarted like this.
        outside.info = replace(outside.info, multimodal=True)
        with pytest.raises(Gemma3Error, match="refuses this question: image input is not supported"):
            events_of(outside, ASKED)
        with pytest.raises(ContextLengthError, match="tokens; the server that answers takes 256"):
            events_of(outside, replace(TEXT, turns=(Turn("user", "hearts and stars " * 100),)))
        with pytest.raises(Gemma3Error, match="wants another key"):
            OutsideEngine.connect(f"http://127.0.0.1:{port}", key="wrong")


def test_an_answer_that_is_stopped_or_loses_its_server_says_so_and_the_next_one_comes(file):
    port, stop = free_port(), threading.Event()
    with llama_server(file, port) as process:
        outside = OutsideEngine.connect(f"http://127.0.0.1:{port}")
        expected = events_of(outside, TEXT)[1].text
        os.kill(process.pid, signal.SIGSTOP)
        asking = outside.stream(TEXT, stop)
        next(asking)
        threading.Timer(0.5, stop.set).start()
        assert list(asking)[-1].stats.stop_reason == "cancelled"
        threading.Timer(0.5, process.kill).start()
        with pytest.raises(ReplicaLostError, match=BROKEN):
            events_of(outside, TEXT)
    with pytest.raises(ReplicaLostError, match=GONE):
        events_of(outside, TEXT)
    with llama_server(file, port):
        assert events_of(outside, TEXT)[1].text == expected
