"""A server as its operator sees it: limits at all doors, figures, log lines, spans, health, and its end."""

import asyncio
import base64
import gzip
import io
import json
import logging
import re
import signal
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import httpx
import openai
import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from places import EXAMPLES, REPOSITORY
from prometheus_client.parser import text_string_to_metric_families
from running_app import ScriptedEngine, built, free_port, launch, require_demo_model, wait_until_ready
from warm import Program
from window import DEMO, STATS, choice, exchange_of

from components.inside.handlers import InsideHandlers, Selected
from components.openai.told import pieces
from components.serving.callers import Caller, Callers
from components.serving.desk import DRAINING, FrontDesk, NotNowError, Operation
from components.serving.ledger import DAY_S, HOUR_S, Allowance, MemoryLedger
from components.serving.stopping import Stopping
from components.serving.tool import prepare_tool
from components.watch import logs, metrics, spans
from components.watch.logs import JsonLines, QuestionLog
from components.watch.metrics import Metrics
from components.watch.record import Account
from components.watch.spans import Spans
from gemma3_core.engine import (
    Answered,
    CheckpointError,
    ContextLengthError,
    DoneEvent,
    Engine,
    Gemma3Error,
    ModelRegistry,
    NonFiniteError,
    OperatorError,
    OutOfMemoryError,
    QueueFullError,
    ReplicaLostError,
    Request,
    StageEvent,
    TokenChoices,
    TokenEvent,
    Turn,
)

MODEL, SECRET = "demo model", "How many zebras?"
NIGHT = f"data:image/png;base64,{base64.b64encode((EXAMPLES / 'night.png').read_bytes()).decode()}"
TOKEN = "a-token-of-ours"
BOARD = json.loads((REPOSITORY / "docs" / "grafana.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def records():
    return []


@pytest.fixture(scope="module")
def page(records):
    require_demo_model()
    prepare_tool()
    operation = Operation(
        knows_addresses=True, watchers=[records.append], metrics=Metrics(), trusted_proxies=["127.0.0.1"]
    )
    page = built(Engine.load(device="cpu"), operation=operation)
    launch(page, mcp_server=True)
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def url(page):
    return page.local_url.rstrip("/")


@pytest.fixture
def limited(page, monkeypatch):
    def limit(*allowances):
        monkeypatch.setattr(page.desk, "_ledger", MemoryLedger(allowances))

    return limit


def from_address(address):
    """The headers of a visitor behind a proxy on this machine, which uvicorn takes the address from."""
    return {"x-forwarded-for": address}


def on_v1(url, address, text="What color is the star?", **options):
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 4, **options}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=from_address(address), timeout=60)


def on_ask(url, address, text="What color is the star?", pictures=()):
    """What `/ask` says at the end: the answer, or why there is none."""
    posted = httpx.post(
        f"{url}/gradio_api/call/ask", json={"data": [list(pictures), text]}, headers=from_address(address), timeout=30
    )
    stream = httpx.get(f"{url}/gradio_api/call/ask/{posted.json()['event_id']}", timeout=60).text
    return re.findall(r"event: (?:complete|error)\ndata: (.*)", stream)[-1]


def on_page(url, address, text="What color is the star?"):
    """What the page's window is told."""
    config = httpx.get(f"{url}/config", timeout=30).json()
    called = next(one for one in config["dependencies"] if any(target[1] == "submit" for target in one["targets"]))
    values = [{"text": text, "files": []}, None, 0, False, "", 0, 64, 0.95, "", 8, False]
    values += [None] * (len(called["inputs"]) - len(values))
    window = uuid.uuid4().hex
    body = {"data": values, "fn_index": called["id"], "session_hash": window}
    httpx.post(f"{url}/gradio_api/queue/join", json=body, headers=from_address(address), timeout=30)
    told = []
    with httpx.stream("GET", f"{url}/gradio_api/queue/data?session_hash={window}", timeout=60) as stream:
        for line in stream.iter_lines():
            told.append(line)
            if "process_completed" in line:
                break
    return "\n".join(told)


def on_mcp(url, address, text="What color is the star?", **headers):
    async def called():
        client = httpx.AsyncClient(headers={**from_address(address), **headers}, timeout=60)
        async with (
            client,
            streamable_http_client(f"{url}/gradio_api/mcp/", http_client=client) as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            return await session.call_tool("ask", {"question": text, "max_new_tokens": 4})

    return asyncio.run(called())


EACH = "You have asked as many questions as a visitor may in an hour: 4. Come back at "


def test_limits_hold_at_all_doors_alike_and_for_each_visitor_alone(url, limited, records):
    limited(Allowance("questions", 4, HOUR_S))
    records.clear()
    one, other = "203.0.113.7", "203.0.113.8"
    assert on_v1(url, one).status_code == 200
    assert "yellow" in on_ask(url, one, pictures=[NIGHT])
    assert '"success":true' in on_page(url, one).replace(" ", "")
    assert not on_mcp(url, one).isError
    assert [(record.door, record.outcome) for record in records] == [
        ("v1", "length"), ("ask", "stop"), ("page", "length"), ("mcp", "length"),
    ]  # fmt: skip
    refused = on_v1(url, one)
    assert refused.status_code == 429
    assert EACH in refused.text
    assert 3500 < int(refused.headers["retry-after"]) <= 3600
    assert EACH in on_ask(url, one)
    assert EACH in on_page(url, one)
    told = on_mcp(url, one)
    assert told.isError
    assert EACH in told.content[0].text
    assert {record.reason for record in records[4:]} == {"questions_per_hour"}
    assert on_v1(url, other).status_code == 200
    assert not on_mcp(url, other).isError


def test_a_program_can_not_say_by_itself_who_asks_a_tool(url, limited):
    limited(Allowance("questions", 1, HOUR_S))
    forged = {"x-asked-by": "x 203.0.113.99"}
    assert not on_mcp(url, "203.0.113.9", **forged).isError
    assert on_mcp(url, "203.0.113.9", **forged).isError
    headers = {**from_address("203.0.113.9"), **forged}
    body = {"data": [[], "Hi"]}
    posted = httpx.post(f"{url}/gradio_api/call/ask", json=body, headers=headers, timeout=30)
    assert "Come back" in httpx.get(f"{url}/gradio_api/call/ask/{posted.json()['event_id']}", timeout=60).text


def test_openais_client_understands_the_refusal(url, limited):
    limited(Allowance("questions", 0, together=True))
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=2, timeout=30)
    began = time.monotonic()
    with pytest.raises(openai.RateLimitError, match="This public link has answered as many") as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert (refused.value.code, refused.value.type) == ("insufficient_quota", "insufficient_quota")
    limited(Allowance("tokens", 0, DAY_S))
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert (refused.value.code, refused.value.type) == ("rate_limit_exceeded", "tokens")
    assert time.monotonic() - began < 20  # it does not wait until tomorrow


def test_tokens_and_pictures_are_counted_as_they_were_read_and_written(url, limited):
    limited(Allowance("pictures", 1, DAY_S), Allowance("tokens", 10_000, DAY_S, together=True))
    address = "203.0.113.10"
    assert "yellow" in on_ask(url, address, pictures=[NIGHT])
    assert "Come back at" in on_ask(url, address, pictures=[NIGHT])
    assert "Come back at" not in on_ask(url, address)
    limited(Allowance("tokens", 5, DAY_S))
    assert on_v1(url, address).status_code == 200
    assert on_v1(url, address).status_code == 429


# Figures


def families(url, **options):
    answer = httpx.get(f"{url}/metrics", timeout=30, **options)
    assert answer.status_code == 200, answer.text
    return answer.text, {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(found, family, name=None, **labels):
    samples = found[family].samples
    return sum(s.value for s in samples if s.name == (name or s.name) and labels.items() <= s.labels.items())


def test_figures_count_questions_and_hold_nothing_of_them(url, limited):
    _, before = families(url)
    limited(Allowance("questions", 1, HOUR_S))
    address = "203.0.113.11"
    assert on_v1(url, address, SECRET).status_code == 200
    assert on_v1(url, address, SECRET).status_code == 429
    httpx.get(f"{url}/nothing/here")
    text, after = families(url)

    def more(*where, **labels):
        return value(after, *where, **labels) - (value(before, *where, **labels) if where[0] in before else 0)

    assert more("gemma3_questions", "gemma3_questions_total", door="v1", outcome="length") == 1
    assert more("gemma3_questions", "gemma3_questions_total", door="v1", outcome="refused") == 1
    assert more("gemma3_refusals", "gemma3_refusals_total", reason="questions_per_hour") == 1
    assert more("gemma3_refused_requests", "gemma3_refused_requests_total", status="404") == 1
    assert more("gemma3_tokens", "gemma3_tokens_total", kind="written") == 4
    assert more("gemma3_tokens", "gemma3_tokens_total", kind="prompt") > 4
    for name in ("queue_wait", "time_to_first_token", "answer", "decode_token"):
        assert more(f"gemma3_{name}_seconds", f"gemma3_{name}_seconds_count", model=MODEL) == 1
    assert value(after, "gemma3_slots") == 8
    assert value(after, "gemma3_ready") == value(after, "gemma3_model_loaded", model=MODEL) == 1
    assert value(after, "gemma3_answers_running") == value(after, "gemma3_questions_waiting") == 0
    assert value(after, "process_resident_memory_bytes") > 1e8
    assert "zebras" not in text
    assert "203.0.113" not in text


def test_caches_that_are_kept_are_in_the_figures(url):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200  # of this machine: kept
    assert value(families(url)[1], "gemma3_cache_bytes") > 0


def status_of(url, request):
    """The status of a request that no HTTP client would send."""
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        connection.sendall(request.encode())
        return int(connection.recv(100).split()[1])


def test_figures_are_for_programs_of_this_machine_alone(url, page, monkeypatch):
    assert httpx.get(f"{url}/metrics").status_code == 200
    for headers in (from_address("127.0.0.1"), {"host": "example.org"}, {"via": "1.1 a"}, {"forwarded": "for=1.2.3.4"}):
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 404, headers
    # As nginx asks when it is told nothing: by this machine's address, without a header of its own.
    assert status_of(url, "GET /metrics HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n") == 404
    assert status_of(url, "GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n") == 200
    assert httpx.post(f"{url}/metrics").status_code == 404
    monkeypatch.setattr(page, "is_shared", True)
    assert httpx.get(f"{url}/metrics").status_code == 404
    monkeypatch.undo()
    monkeypatch.setattr(page, "operation", Operation(metrics=page.operation.metrics, behind_proxy=True))
    assert httpx.get(f"{url}/metrics").status_code == 404
    monkeypatch.setattr(page, "operation", Operation())
    assert httpx.get(f"{url}/metrics").status_code == 404


def test_with_a_token_they_are_for_whoever_sends_it(url, page, monkeypatch):
    operation = Operation(metrics=page.operation.metrics, metrics_token=TOKEN, behind_proxy=True)
    monkeypatch.setattr(page, "operation", operation)
    for sent in ({}, {"authorization": "Bearer another-token"}, {"authorization": f"Basic {TOKEN}"}):
        assert httpx.get(f"{url}/metrics", headers=sent).status_code == 401
    sent = {"authorization": f"Bearer {TOKEN}", **from_address("203.0.113.12")}
    assert httpx.get(f"{url}/metrics", headers=sent).status_code == 200


def test_every_query_of_the_board_names_a_metric_that_exists(url):
    """And every metric of ours is on it."""
    assert on_ask(url, "203.0.113.13", pictures=[NIGHT])
    httpx.get(f"{url}/nothing/here")
    found = families(url)[1].values()
    there = {sample.name for family in found for sample in family.samples} | {"gemma3_device_bytes"}  # of a GPU alone
    queries = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"\b(?:gemma3|process)_\w+", query)}
    assert len(queries) > 20
    assert named - {"gemma3_refusals_total"} <= there
    ours = {family.name for family in found if family.name.startswith("gemma3_")}
    assert {name for name in ours if not any(one.startswith(name) for one in named)} == set()
    labels = {name for query in queries for name in re.findall(r"by \(([\w, ]+)\)", query)}
    assert labels <= {"outcome", "door", "reason", "status", "kind", "model", "le, model"}
    places = [tuple(panel["gridPos"][side] for side in "xywh") for panel in BOARD["panels"]]
    assert len({place[:2] for place in places}) == len(places)
    assert all(x + w <= 24 for x, _, w, _ in places)


# Health, and the end


def test_health_is_told_to_everybody_and_readiness_ends_with_draining(url, page, monkeypatch, records):
    sent = from_address("203.0.113.14")
    assert httpx.get(f"{url}/healthz", headers=sent).json() == {"status": "alive"}
    assert httpx.head(f"{url}/readyz", headers=sent).status_code == 200
    assert httpx.get(f"{url}/readyz").json() == {"status": "ready"}
    with monkeypatch.context() as context:  # all replicas have died
        context.setattr(type(page.desk._models), "is_ready", False)
        assert httpx.get(f"{url}/readyz").json() == {"status": "no engine answers"}
    monkeypatch.setattr(page.desk, "is_draining", True)
    assert httpx.get(f"{url}/healthz").status_code == 200
    assert httpx.get(f"{url}/readyz").status_code == 503
    records.clear()
    refused = on_v1(url, "203.0.113.14")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
    assert refused.json()["error"]["message"] == DRAINING
    assert DRAINING in on_ask(url, "203.0.113.14")
    assert DRAINING in on_page(url, "203.0.113.14")
    assert {(record.outcome, record.reason) for record in records} == {("refused", "draining")}


SLOW = f"""
import pathlib, sys, threading, time
sys.path.insert(0, {str(REPOSITORY / "tests" / "support")!r})
import app
from running_app import ScriptedEngine
from window import DEMO
from components.page import build_page

def build(settings):
    engine = ScriptedEngine(DEMO)
    engine.let_through("queued", "encoding", "reading")
    page = build_page(engine, operation=app._operation(settings))

    def write():
        while not pathlib.Path(__file__).with_name("go on").exists():
            time.sleep(0.01)
        engine.let_through("writing")

    threading.Thread(target=write, daemon=True).start()
    return page

app.build = build
app.main()
"""
"""app.py with an answer that ends once there is a file named "go on" beside it."""


def test_sigterm_lets_a_running_answer_end(tmp_path):
    port, file = free_port(), tmp_path / "slow.py"
    url = f"http://127.0.0.1:{port}"
    file.write_text(SLOW)
    options = ["--port", str(port), "--log-format", "json", "--drain-seconds", "300", "--metrics"]
    options += ["--trusted-proxy", "127.0.0.1", "--questions-per-hour", "1"]
    program = Program(file, options, {}, tmp_path)
    try:
        wait_until_ready(url, program)
        body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": SECRET}]}
        # The proxy appends who asked it; what stands before that was made up by them.
        headers = from_address("203.0.113.1, 203.0.113.16")
        address = f"{url}/v1/chat/completions"
        with httpx.stream("POST", address, json=body, headers=headers, timeout=60) as answer:
            lines = answer.iter_lines()
            while "There" not in next(lines):
                pass
            assert on_v1(url, "203.0.113.2, 203.0.113.16").status_code == 429
            assert httpx.get(f"{url}/metrics", timeout=60).status_code == 404  # the proxy is on this machine
            program.terminate()
            end = time.monotonic() + 60
            while httpx.get(f"{url}/readyz", timeout=60).status_code == 200 and time.monotonic() < end:
                time.sleep(0.02)
            refused = on_v1(url, "203.0.113.15")
            assert (refused.status_code, DRAINING in refused.text) == (503, True)
            (tmp_path / "go on").touch()
            rest = list(lines)
            assert "hearts." in "".join(rest)
            assert "data: [DONE]" in rest
        assert program.wait(timeout=60) == 0
    finally:
        program.terminate()
        program.wait(timeout=20)
    said = (tmp_path / "stderr").read_text()
    questions = [json.loads(line) for line in said.splitlines() if line]
    assert [(one["outcome"], one["reason"]) for one in questions if one["message"] == "question"] == [
        ("refused", "questions_per_hour"), ("refused", "draining"), ("stop", ""),
    ]  # fmt: skip
    assert not re.search("zebras|hearts|203[.]0", said)


def test_draining_is_bounded_and_a_second_signal_ends_it():
    desk = FrontDesk(ModelRegistry(ScriptedEngine(DEMO)), Operation())
    desk._running = 1
    sent = []
    stopping, before = Stopping(desk, 0.05), signal.getsignal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, lambda number, _: sent.append(number))
    try:
        stopping(signal.SIGUSR1, None)
        end = time.monotonic() + 5
        while not sent and time.monotonic() < end:
            time.sleep(0.01)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert desk.is_draining
    assert sent == [signal.SIGUSR1]
    with pytest.raises(SystemExit):
        stopping(signal.SIGUSR1, None)


# One question, by its events


class Asker:
    """A gr.Request that tells of a window at an address."""

    def __init__(self, window, address="192.0.2.1", **headers):
        self.session_hash, self.headers, self.client = window, headers, SimpleNamespace(host=address)


def scripted(*watchers, allowances=(), **options):
    engine = ScriptedEngine(DEMO)
    operation = Operation(ledger=MemoryLedger(allowances), watchers=watchers, **options)
    return engine, FrontDesk(ModelRegistry(engine), operation)


def question(*pictures):
    return Request((Turn("user", "Earlier?", ("old.png",)), Turn("assistant", "Yes."), Turn("user", SECRET, pictures)))


def answered(desk, request, caller=None):
    async def all_of_it():
        async with aclosing(desk.astream(caller or Caller("page", "192.0.2.1"), None, request)) as events:
            return [event async for event in events]

    return asyncio.run(all_of_it())


def test_a_question_becomes_spans_of_its_parts_without_content():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    engine, desk = scripted(Spans(provider=provider))
    engine.let_through(*engine.go_on)
    answered(desk, question("new.png"))
    *parts, whole = exporter.get_finished_spans()
    assert [part.name for part in parts] == ["queue", "picture", "prefill", "decode"]
    assert whole.name == "question"
    assert whole.parent is None
    assert {part.parent.span_id for part in parts} == {whole.context.span_id}
    times = [time for part in parts for time in (part.start_time, part.end_time)]
    assert times == sorted(times)
    assert whole.start_time == times[0]
    assert whole.end_time >= times[-1]
    assert whole.attributes == {
        "gen_ai.request.model": MODEL, "gen_ai.usage.input_tokens": 90, "gen_ai.usage.output_tokens": 6,
        "gemma3.door": "page", "gemma3.outcome": "stop", "gemma3.pictures": 1, "gemma3.reused_tokens": 0,
    }  # fmt: skip
    answered(desk, question())
    assert len({span.context.trace_id for span in exporter.get_finished_spans()}) == 2
    said = "".join(span.to_json() for span in exporter.get_finished_spans())
    assert not re.search("zebras|hearts|png|192[.]0", said)


def test_spans_reach_a_collector():
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        watcher = Spans(f"http://127.0.0.1:{server.server_port}/v1/traces")
        engine, desk = scripted(watcher)
        engine.let_through(*engine.go_on)
        answered(desk, question())
        watcher.provider.shutdown()
        server.shutdown()
    ((path, sent),) = received
    assert path == "/v1/traces"
    spans_sent = gzip.decompress(sent) if sent.startswith(b"\x1f\x8b") else sent
    assert all(name in spans_sent for name in (b"question", b"queue", b"picture", b"prefill", b"decode"))
    assert b"zebras" not in spans_sent


class Failing(ScriptedEngine):
    def __init__(self, info, error):
        super().__init__(info)
        self.error = error

    def stream(self, *_):
        raise self.error
        yield


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (QueueFullError("Full."), "refused", "queue_full"),
        (ContextLengthError("Long."), "refused", "too_long"),
        (Gemma3Error("No."), "refused", "invalid"),
        (OutOfMemoryError("No room."), "failed", "out_of_memory"),
        (ValueError("a secret"), "failed", "unexpected"),
        (ReplicaLostError("Gone."), "failed", "lost"),
        (NonFiniteError("NaN."), "failed", "not_finite"),
        (CheckpointError("No file."), "failed", "checkpoint"),
        (OperatorError("Another key."), "failed", "operator"),
    ],
)
def test_what_went_wrong_is_a_word(error, outcome, reason):
    records = []
    operation = Operation(ledger=MemoryLedger([Allowance("questions", 1, HOUR_S)]), watchers=[records.append])
    desk = FrontDesk(ModelRegistry(Failing(DEMO, error)), operation)
    with pytest.raises(type(error)):
        answered(desk, question())
    assert [(record.outcome, record.reason) for record in records] == [(outcome, reason)]
    # The next one may be asked only where the visitor could not help it.
    given_back = reason in ("queue_full", "lost", "not_finite", "checkpoint", "operator")
    with pytest.raises(type(error) if given_back else NotNowError):
        answered(desk, question())
    assert desk.running == 0


def test_a_question_that_is_lost_after_its_first_word_is_used_up():
    class Lost(ScriptedEngine):
        def stream(self, *_):
            yield TokenEvent("There ")
            raise ReplicaLostError("Gone.")

    desk = FrontDesk(ModelRegistry(Lost(DEMO)), Operation(ledger=MemoryLedger([Allowance("questions", 1, HOUR_S)])))
    with pytest.raises(ReplicaLostError):
        answered(desk, question())
    with pytest.raises(NotNowError):
        answered(desk, question())


@pytest.mark.parametrize(("stages", "tokens"), [((), 0), (("queued",), 0), (("queued", "encoding"), 135)])
def test_whoever_leaves_before_the_prompt_is_read_has_used_no_tokens(stages, tokens, monkeypatch):
    engine, desk = scripted(allowances=[Allowance("tokens", 1000, DAY_S)])
    engine.let_through(*stages)
    last = ("queued", "encoding", "reading")[len(stages)]
    ends = []
    monkeypatch.setattr(desk._ledger, "end", lambda _number, tokens, _counts: ends.append(tokens))

    async def leave():
        async with aclosing(desk.astream(Caller("page", "192.0.2.1"), None, question("new.png"))) as events:
            async for event in events:
                if isinstance(event, StageEvent) and event.stage == last:
                    return

    asyncio.run(leave())
    assert ends == [tokens]


@pytest.mark.parametrize(("stop_string", "outcome"), [("here", "stop"), ("hearts", "cancelled")])
def test_an_answer_that_ends_at_its_stop_string_was_not_cancelled(stop_string, outcome):
    records, stop = [], threading.Event()
    engine, desk = scripted(records.append)
    engine.let_through("queued", "encoding", "reading")
    asked = replace(question(), stop_strings=(stop_string,))

    async def read():
        async with aclosing(desk.astream(Caller("v1", "192.0.2.1"), None, asked, stop)) as events:
            async for piece in pieces(events, asked.stop_strings, stop):
                if piece.text.strip() == "There":  # as a program might
                    stop.set()

    asyncio.run(read())
    assert [record.outcome for record in records] == [outcome]


def test_a_visitor_who_leaves_has_used_what_was_written():
    records = []
    engine, desk = scripted(records.append, allowances=[Allowance("tokens", 20, DAY_S), Allowance("streams", 1)])
    engine.let_through("queued", "encoding", "reading")

    async def leave():
        async with aclosing(desk.astream(Caller("ask", "192.0.2.1"), None, question("new.png"))) as events:
            async for event in events:
                if isinstance(event, TokenEvent):
                    return

    asyncio.run(leave())
    assert [(record.outcome, record.stats) for record in records] == [("left", None)]
    with pytest.raises(NotNowError, match="as many tokens"):  # two pictures and the text
        answered(desk, question(), Caller("ask", "192.0.2.1"))


def test_whoever_leaves_before_the_ledger_has_answered_uses_nothing():
    class Slow(MemoryLedger):
        def begin(self, *asked):
            time.sleep(0.2)
            return super().begin(*asked)

    ledger = Slow([Allowance("questions", 1, HOUR_S), Allowance("streams", 1)])
    desk = FrontDesk(ModelRegistry(ScriptedEngine(DEMO)), Operation(ledger=ledger))

    async def leave():
        events = desk.astream(Caller("ask", "192.0.2.1"), None, question())
        asking = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.sleep(0.4)

    asyncio.run(leave())
    assert desk.running == 0
    assert isinstance(MemoryLedger.begin(ledger, "address 192.0.2.1", 1, 0), int)


def test_a_question_begins_while_something_else_takes_the_event_loops_threads():
    engine, desk = scripted()
    engine.let_through(*engine.go_on)
    go_on = threading.Event()

    async def asked():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        blocked = [asyncio.ensure_future(asyncio.to_thread(go_on.wait, 20)) for _ in range(4)]
        await asyncio.sleep(0.1)  # until they have taken them
        try:
            async with asyncio.timeout(10), aclosing(desk.astream(Caller("v1"), None, question())) as events:
                return [event async for event in events]
        finally:
            go_on.set()
            await asyncio.wait(blocked)

    assert isinstance(asyncio.run(asked())[-1], DoneEvent)


def test_the_page_counts_a_pictures_first_question_alone_and_programs_each():
    engine, desk = scripted(allowances=[Allowance("pictures", 1, DAY_S)])
    engine.let_through(*engine.go_on)
    for _ in range(3):
        answered(desk, question(), Caller("page", "192.0.2.1"))
    answered(desk, question(), Caller("v1", "192.0.2.2"))
    with pytest.raises(NotNowError):
        answered(desk, question(), Caller("v1", "192.0.2.2"))


def test_what_a_brought_conversation_names_counts_once_as_new():
    """A browser may say that it has asked about pictures before."""
    engine, desk = scripted(allowances=[Allowance("pictures", 3, DAY_S)])
    engine.let_through(*engine.go_on)

    def asked(*pictures):
        return Request((Turn("user", "How many?", pictures), Turn("assistant", "Two."), Turn("user", "So?")))

    for _ in range(2):
        answered(desk, asked("a.png", "b.png"), Caller("page", "192.0.2.1"))
    with pytest.raises(NotNowError, match="1 of 3 in a day are left"):
        answered(desk, asked("a.png", "c.png", "d.png"), Caller("page", "192.0.2.1"))
    answered(desk, asked("b.png", "c.png"), Caller("page", "192.0.2.1"))


def test_a_prompt_that_another_server_does_not_count_is_estimated():
    asked = Request((Turn("user", "word " * 1000, ("a.png",)),))
    stats = replace(STATS, prompt_tokens=0, reused_tokens=0, new_tokens=7, stop_reason="cancelled")
    account = Account("page", "m", 1)
    account.take(StageEvent("queued", "1st in the queue"))
    account.take(DoneEvent("", stats))
    assert account.tokens(asked, 64) == 0  # it was never sent
    account.take(StageEvent("reading", "Waiting for the server that answers"))
    account.take(DoneEvent("", stats))
    assert account.tokens(asked, 64) == 1250 + 64


def test_figures_that_a_browser_wrote_change_no_count(page):
    ledger = MemoryLedger([Allowance("tokens", 1000, DAY_S, together=True)])
    desk = FrontDesk(page.desk._models, Operation(ledger))
    request = Request((Turn("user", "What color is the star?", (str(EXAMPLES / "night.png"),)),), confidence=True)
    done = answered(desk, request)[-1]
    forged = replace(done, stats=replace(done.stats, prompt_tokens=999_999_999))
    handlers = InsideHandlers(page.desk._models, desk.on_page, desk.looking)
    exchange = replace(exchange_of(request.turns[0], done.text, done.stats), answered=Answered(request, forged))
    exchange = replace(exchange, choices=TokenChoices(choice(token) for token in done.token_ids))

    async def looked():
        return [maps async for maps, _ in handlers.look_again(Selected(exchange, 0), "global", -1, Asker("one"))][-1]

    assert "failure" in asyncio.run(looked())
    assert answered(desk, request)[-1].text == done.text


def test_looks_inside_take_tokens_and_end_with_them(page):
    records = []
    desk = FrontDesk(
        page.desk._models, Operation(MemoryLedger([Allowance("tokens", 150, DAY_S)]), watchers=[records.append])
    )
    request = Request((Turn("user", "What color is the star?", (str(EXAMPLES / "night.png"),)),), confidence=True)
    done = answered(desk, request)[-1]
    exchange = exchange_of(request.turns[0], done.text, done.stats)
    choices = tuple(choice(token) for token in done.token_ids)
    exchange = replace(exchange, answered=Answered(request, done), choices=TokenChoices(choices))
    handlers = InsideHandlers(page.desk._models, desk.on_page, desk.looking)

    async def looked():
        return [maps async for maps, _ in handlers.look_again(Selected(exchange, 0), "global", -1, Asker("one"))][-1]

    assert "<figure" in asyncio.run(looked())
    assert "You have used as many tokens as a visitor may in a day: 150." in asyncio.run(looked())
    assert [(record.door, record.outcome) for record in records[1:]] == [("inside", "stop"), ("inside", "refused")]
    assert desk.running == 0


def test_a_watcher_that_fails_spoils_no_answer(caplog):
    records = []

    def fail(_):
        raise OSError("the disk is full")

    engine, desk = scripted(fail, records.append)
    engine.let_through(*engine.go_on)
    assert answered(desk, question())[-1].text == engine.answer
    assert len(records) == 1
    assert "a watcher failed" in caplog.text


# Who asks


def test_a_visitor_is_an_address_and_all_of_a_network_of_version_6():
    assert Caller("page", "192.0.2.1", "one").visitor == Caller("v1", "192.0.2.1").visitor
    assert Caller("page", "192.0.2.1").visitor != Caller("page", "192.0.2.2").visitor
    assert Caller("page", "2001:db8::1").visitor == Caller("page", "2001:db8::ffff:1:2:3").visitor
    assert Caller("page", "2001:db8::1").visitor != Caller("page", "2001:db8:0:1::1").visitor
    assert Caller("page", "::ffff:192.0.2.1").visitor == Caller("page", "192.0.2.1").visitor
    assert Caller("v1", "192.0.2.1", key=0).visitor != Caller("v1", "192.0.2.1", key=1).visitor
    assert Caller("page", "", "one").visitor != Caller("page", "", "two").visitor
    assert Caller("v1").visitor == Caller("v1").visitor != Caller("mcp").visitor


def test_an_address_counts_only_where_nobody_could_have_made_it_up():
    forwarded = {"x-forwarded-for": "192.0.2.9"}
    unsure, sure = Callers(), Callers(knows_addresses=True)
    assert unsure.of_page(Asker("one")).address == "192.0.2.1"
    assert unsure.of_page(Asker("one", **forwarded)) == Caller("page", "", "one")
    assert sure.of_page(Asker("one", "192.0.2.9", **forwarded)).address == "192.0.2.9"
    marked = unsure.marked({"headers": [], "client": ("192.0.2.1", 1)})
    headers = {name.decode(): text.decode() for name, text in marked["headers"]}
    assert unsure.checked(marked) == marked
    assert unsure.of(Asker("shared", "127.0.0.1", **headers)) == Caller("mcp", "192.0.2.1")
    assert sure.checked(marked)["headers"] == []  # another server's secret


@pytest.mark.parametrize(("named", "statuses"), [((), [200, 429, 429]), (("127.0.0.1", "::1"), [200] * 3)])
def test_a_proxy_on_this_machine_makes_up_no_visitors_unless_it_is_named(named, statuses):
    """It may pass on what a stranger wrote. Behind one that nobody named, all are one visitor."""
    engine = ScriptedEngine(DEMO)
    engine.let_through(*engine.go_on)
    ledger = MemoryLedger([Allowance("questions", 1, HOUR_S)])
    page = built(engine, operation=Operation(ledger, knows_addresses=True, trusted_proxies=named))
    launch(page)
    try:
        asked = [on_v1(page.local_url.rstrip("/"), f"203.0.113.{number}") for number in range(3)]
        assert [reply.status_code for reply in asked] == statuses
    finally:
        page.close(verbose=False)


# Log lines


@pytest.fixture
def lines():
    """What is logged as JSON, line by line."""
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.addHandler(handler)
    yield lambda: [json.loads(line) for line in out.getvalue().splitlines()]
    root.removeHandler(handler)


def test_a_question_is_a_line_of_figures(lines):
    engine, desk = scripted(QuestionLog())
    engine.let_through(*engine.go_on)
    answered(desk, question("new.png"))
    (line,) = lines()
    assert line["stages"].keys() == {"queue", "picture", "prefill", "decode"}
    assert (line["message"], line["level"], line["logger"]) == ("question", "info", logs.QUESTIONS)
    told = {name: line[name] for name in ("door", "outcome", "reason", "pictures", "prompt_tokens", "new_tokens")}
    assert told == {
        "door": "page",
        "outcome": "stop",
        "reason": "",
        "pictures": 1,
        "prompt_tokens": 90,
        "new_tokens": 6,
    }
    assert not re.search("zebras|hearts|png|192[.]0", json.dumps(line))


def test_an_error_is_told_by_its_kind_and_place_without_what_it_says(lines):
    try:
        raise ValueError(SECRET)
    except ValueError:
        logging.getLogger("components.test").exception("%s failed", SECRET)
    (line,) = lines()
    assert (line["message"], line["error"]) == ("%s failed", "ValueError")
    assert line["where"][0].startswith("test_an_error_is_told")
    assert "zebras" not in json.dumps(line)


def test_all_that_a_process_says_is_json(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import logging, sys, threading, warnings\n"
        "from components.watch.logs import log_as_json\n"
        "logging.getLogger('other').addHandler(logging.StreamHandler())\n"
        "log_as_json()\n"
        "logging.getLogger('other').error('one %s', 'secret')\n"
        "warnings.warn('a secret')\n"
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join()\n"
        "sys.excepthook(ValueError, ValueError('a secret'), None)\n"
    )
    Program(program, [], {}, tmp_path).wait(timeout=60)
    said = (tmp_path / "stderr").read_text()
    told = [json.loads(line) for line in said.splitlines()]
    assert told[-1]["error"] == "ValueError"
    assert [line["message"] for line in told] == ["one %s", "warning", "uncaught in a thread", "uncaught"]
    assert "secret" not in said


@pytest.mark.parametrize(
    ("needs", "module", "make"),
    [(metrics.MISSING, "prometheus_client", Metrics), (spans.MISSING, "opentelemetry", lambda: Spans("http://a/"))],
)
def test_a_missing_package_is_named(needs, module, make, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    with pytest.raises(Gemma3Error, match=r"requirements/watch\.txt"):
        make()
    assert (REPOSITORY / needs.rpartition(" ")[2]).is_file()
