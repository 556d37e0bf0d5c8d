"""The gate: which addresses are answered at all, how large a request may be, and uploads as they arrive."""

import asyncio
import io
import itertools
import json
import logging
import os
import platform
import re
import socket
import threading
import time
from base64 import b64decode, b64encode
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from gradio import networking
from PIL import Image, ImageChops, ImageStat
from places import EXAMPLES
from plain_words import is_plain
from running_app import ScriptedEngine, built, launch
from starlette.responses import StreamingResponse
from uvicorn.protocols.http.h11_impl import H11Protocol
from window import DEMO, STATS

from components.chat import handlers as chat_handlers
from components.chat import record
from components.chat.conversation import Exchange
from components.examples import load_examples
from components.inside import handlers as inside_handlers
from components.serving import assets, fetching, gate, limits, messages, receiving
from components.serving import server as serving
from components.serving.fetching import OTHERS_WAIT, OWN_WAIT
from components.serving.frontend import FRONTEND
from components.serving.gate import ROUTES, WAITING_ALREADY
from components.serving.limits import LogLimit
from components.serving.messages import BUSY, NOTHING_HERE
from components.serving.receiving import TOO_LARGE, TOO_MUCH, UNREADABLE
from components.serving.uploads import FULL, UploadError
from components.watch.logs import JsonLines
from gemma3_core.engine import Answered, DoneEvent, Request, Turn, openai_client
from gemma3_core.images import documents

NIGHT = (EXAMPLES / "night.png").read_bytes()
PATIENCE_S = 20.0
DOORS = ("queue/join", "run/predict", "call/ask", "mcp/")


@pytest.fixture
def engine():
    engine = ScriptedEngine(DEMO)
    engine.let_through("queued", "encoding", "reading", "writing")
    return engine


@pytest.fixture
def page(engine):
    page = built(engine)
    launch(page)
    yield page
    page.close(verbose=False)


@pytest.fixture
def client(page):
    with httpx.Client(base_url=page.local_url.rstrip("/"), timeout=20) as client:
        yield client


@pytest.fixture(scope="module")
def lasting_page():
    """For tests that leave it as it was."""
    page = built(ScriptedEngine(DEMO))
    launch(page)
    yield page
    page.close(verbose=False)


@pytest.fixture(scope="module")
def lasting(lasting_page):
    with httpx.Client(base_url=lasting_page.local_url.rstrip("/"), timeout=20) as client:
        yield client


def number_of(page, method):
    """The fn_index of the handler of this name."""
    return next(index for index, fn in page.fns.items() if getattr(fn.fn, "__name__", "") == method)


def event(page, method, *data, session="window"):
    index = number_of(page, method)
    shown = [getattr(block, "value", None) for block in page.fns[index].inputs[len(data) :]]
    values = [*data, *(value if isinstance(value, str | int | float) else None for value in shown)]
    return {"data": values, "fn_index": index, "session_hash": session, "trigger_id": None}


def wait_for(condition) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def upload(client, *files, **options):
    return client.post("/gradio_api/upload", files=[("files", file) for file in files], **options)


def test_of_gradios_routes_those_are_answered_that_the_page_needs(lasting_page, lasting):
    asked = set()
    within = [route.original_router.routes for route in lasting_page.app.routes if hasattr(route, "original_router")]
    for route in (*lasting_page.app.routes, *itertools.chain.from_iterable(within)):
        path = getattr(route, "path", "").replace("{path:path}", "x").replace("{path_or_url:path}", "/etc/passwd")
        path = path.replace("{url_path:path}", "x").replace("{session_hash}", "x").replace("{event_id}", "x")
        path = path.replace("{api_name}", "ask")
        for method in getattr(route, "methods", None) or ():
            if "{" in path or not path or any(allowed.fits(method, path) for allowed in ROUTES):
                continue
            asked.add(path)
            reply = lasting.request(method, path)
            assert (reply.status_code, reply.text and reply.json()["detail"]) in ((404, NOTHING_HERE), (404, "")), path
    assert len(asked) > 20
    assert {"/gradio_api/process_recording", "/gradio_api/deep_link", "/gradio_api/vibe-edit/"} <= asked


@pytest.mark.parametrize("path", [
    "/gradio_api/deep_link?session_hash=window", "/dev/reload", "/gradio_api/dev/reload", "/monitoring", "/docs",
    "/openapi.json", "/gradio_api/component_server", "/gradio_api/queue/status", "/gradio_api/proxy=http://localhost/",
    "/gradio_api/file=http://localhost/", "/gradio_api/custom_component/x/client/component/a.js", "/a/b/../../docs",
    "/gradio_api/heartbeat/" + "x" * 65, "/examples/night.png", "/cards.svg/night", "/gradio_api/run/ask",
])  # fmt: skip
def test_what_is_not_on_the_list_is_not_there(lasting, path):
    for method in ("GET", "POST"):
        reply = lasting.request(method, path)
        assert reply.status_code == 404
        assert reply.json()["detail"] in (NOTHING_HERE, messages.NOT_FOUND)


def test_recordings_and_sessions_are_not_written_to_disk(page, client):
    before = files_in(page.uploads.folder)
    client.post("/gradio_api/process_recording", files={"video": ("a.webm", b"x" * 1000, "video/webm")})
    client.post("/gradio_api/queue/join", json=event(page, "keep"))
    client.get("/gradio_api/deep_link", params={"session_hash": "window"})
    assert files_in(page.uploads.folder) == before
    assert client.get("/", params={"deep_link": "../../x"}).status_code == 200


def test_files_of_the_server_are_not_served(lasting):
    for path in ("/etc/passwd", str(Path(__file__)), str(EXAMPLES / "night.png"), "..%2f..%2fetc%2fpasswd"):
        reply = lasting.get(f"/gradio_api/file={path}")
        assert reply.status_code == 403
        assert reply.json()["detail"] == messages.NOT_FOUND  # which says nothing of the path


def test_cards_come_small_in_one_file(lasting):
    reply = lasting.get("/cards.svg")
    pictures = dict(re.findall(r'<view id="(\w+)"[^>]*/><image [^>]*href="data:image/webp;base64,([^"]+)"', reply.text))
    assert list(pictures) == list(dict.fromkeys(path.stem for card in load_examples() for path in card.pictures))
    night = b64decode(pictures["night"])
    with Image.open(io.BytesIO(NIGHT)) as whole, Image.open(io.BytesIO(night)) as card:
        assert card.format == "WEBP"
        assert card.size == (536, 335)
        apart = ImageChops.difference(card.convert("RGB"), whole.convert("RGB").resize(card.size))
        assert max(ImageStat.Stat(apart).mean) < 3
    assert len(night) < len(NIGHT)
    assert reply.headers["content-type"].startswith("image/svg+xml")
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"].startswith("default-src 'self'")


def test_a_shared_page_is_the_normal_one_and_not_for_search_engines(page, client):
    normal = client.get("/").text
    assert client.get("/robots.txt").text == "User-agent: *\nDisallow: "
    page.share = True
    assert page.is_shared
    assert page.share  # for Gradio's own launch, in this thread
    shared = client.get("/").text
    scripts = re.findall(r'<script[^>]* src="([^"]*)"', shared)
    assert scripts == re.findall(r'<script[^>]* src="([^"]*)"', normal)
    assert all(script.startswith("./") for script in scripts)
    assert client.get("/robots.txt").text == "User-agent: *\nDisallow: /"


def test_a_page_starts_also_where_gradios_check_of_its_address_gives_up(engine, monkeypatch):
    """After three seconds, which a busy machine may need for a page."""
    monkeypatch.setattr(networking, "url_ok", lambda _address: False)
    page = built(engine)
    launch(page)
    try:
        assert httpx.get(f"{page.local_url}healthz", timeout=20).status_code == 200
    finally:
        page.close(verbose=False)


@pytest.mark.parametrize("change", [
    {"session_hash": None}, {"session_hash": ""}, {"session_hash": "x" * 65}, {"session_hash": "a/../b"},
    {"session_hash": 7}, {"fn_index": None}, {"fn_index": -1}, {"fn_index": 10**9}, {"fn_index": "0"},
    {"fn_index": True}, {"data": None}, {"data": {}}, {"data": []}, {"data": [None] * 99}, {"trigger_id": "x"},
    {"more": 1},
])  # fmt: skip
def test_what_is_put_together_by_hand_is_refused_in_a_sentence(lasting_page, lasting, change):
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict"):
        reply = lasting.post(path, json={**event(lasting_page, "undo"), **change})
        assert reply.status_code == 422
        assert reply.json() == {"detail": UNREADABLE, "error": UNREADABLE}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"NaN", b"[" * 100_000, b"\xff\xfe", b'"a"'])
def test_what_is_no_json_is_refused_in_a_sentence(lasting, body):
    for path in ("/gradio_api/queue/join", "/gradio_api/run/predict", "/gradio_api/call/ask"):
        reply = lasting.post(path, content=body, headers={"content-type": "application/json"})
        assert reply.status_code in (400, 422)
        assert reply.json()["detail"] == UNREADABLE


def test_bodies_are_bounded(lasting, monkeypatch):
    monkeypatch.setattr(gate, "MAX_BODY_BYTES", 1000)
    reply = lasting.post("/gradio_api/queue/join", content=b"[" + b" " * 2000)
    assert (reply.status_code, reply.json()["detail"]) == (413, TOO_LARGE)
    reply = lasting.post("/gradio_api/cancel", content=b"x" * 20_000)
    assert (reply.status_code, reply.json()["detail"]) == (413, TOO_LARGE)


@pytest.mark.parametrize("door", DOORS)
def test_a_request_of_very_many_values_is_refused_before_it_is_read(lasting_page, lasting, monkeypatch, door):
    monkeypatch.setattr(lasting_page, "mcp_server", True)
    body = b'{"session_hash": "window", "fn_index": 0, "data": [' + b"[]," * 333_333 + b"[]]}"
    reply = lasting.post(f"/gradio_api/{door}", content=body, headers={"content-type": "application/json"})
    assert (reply.status_code, reply.json()["detail"]) == (413, TOO_LARGE)


@pytest.mark.parametrize(
    ("body", "number"),
    [
        (b"", 0),
        (b"[1, {}, []]", 5),
        (b'{"a": "[[[,,,{{{", "b": ""}', 2),
        (rb'["\"[,", "\\", [], "\\\"[,{", "\\\\"]', 6),
    ],
)
def test_what_stands_in_a_text_is_no_value(body, number):
    assert messages.num_values(body) == number


def test_a_kept_conversation_may_be_long(page, client):
    question = Turn("user", "How many hearts?")
    done = DoneEvent("There are three.", STATS, (5,) * 400_000)
    kept = record.document(Exchange(question, False, Answered(Request((question,)), done)), lambda _path: "")
    text = json.dumps({"version": record.VERSION, "exchanges": [kept]})
    assert len(text) > 1_000_000
    assert text.count(",") > messages.MAX_VALUES
    assert client.post("/gradio_api/queue/join", json=event(page, "brought", text)).status_code == 200
    assert "There are three." in client.get("/gradio_api/queue/data", params={"session_hash": "window"}).text


@pytest.mark.parametrize("door", DOORS)
def test_bodies_are_bounded_together(lasting_page, lasting, monkeypatch, door):
    monkeypatch.setattr(lasting_page, "mcp_server", True)
    monkeypatch.setattr(gate, "MAX_HELD_BYTES", 1000)
    reply = lasting.post(f"/gradio_api/{door}", json={"data": ["x" * 2000]})
    assert (reply.status_code, reply.json()["detail"]) == (503, TOO_MUCH)
    monkeypatch.setattr(gate, "MAX_HELD_BYTES", 10_000)
    values = {"data": [[]] * 100}
    assert lasting.post(f"/gradio_api/{door}", json=values).status_code == 503  # these are small alone as text
    assert lasting.post(f"/gradio_api/{door}", json={"data": 1}).status_code < 500  # and they count no longer


def test_what_waits_for_its_answer_is_held(page, engine, client, monkeypatch):
    monkeypatch.setattr(gate, "MAX_HELD_BYTES", 30_000)
    engine.go_on["writing"].clear()
    ask = partial(client.post, "/gradio_api/call/ask")
    long = {"data": [[], "x" * 20_000]}
    assert ask(json=long).status_code == 200
    assert (reply := ask(json=long)).status_code == 503
    assert reply.json()["detail"] == TOO_MUCH
    assert client.post("/gradio_api/queue/join", json=event(page, "keep")).status_code == 200
    engine.go_on["writing"].set()
    wait_for(lambda: ask(json=long).status_code == 200)


def test_a_body_that_pauses_is_given_up(lasting_page, monkeypatch):
    monkeypatch.setattr(receiving, "IDLE_S", 0.3)
    with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as slow:
        slow.sendall(b"POST /gradio_api/queue/join HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


def test_one_window_may_have_so_many_events_waiting(page, client, monkeypatch):
    monkeypatch.setattr(gate, "MAX_WAITING_EVENTS", 3)
    replies = [client.post("/gradio_api/queue/join", json=event(page, "keep")) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert replies[-1].json()["detail"] == WAITING_ALREADY
    assert client.post("/gradio_api/queue/join", json=event(page, "keep", session="other")).status_code == 200


def test_one_session_of_a_program_may_have_so_many_questions_waiting(client, monkeypatch):
    monkeypatch.setattr(gate, "MAX_WAITING_EVENTS", 3)
    ask, question = partial(client.post, "/gradio_api/call/ask"), {"data": [[], "Hi"], "session_hash": "one"}
    replies = [ask(json=question) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
    assert replies[-1].json()["detail"] == WAITING_ALREADY
    client.get(f"/gradio_api/call/ask/{replies[0].json()['event_id']}")
    assert ask(json=question).status_code == 200
    assert ask(json={**question, "session_hash": "other"}).status_code == 200


def test_no_event_that_waits_can_be_asked_for_past_the_queue(lasting_page, lasting):
    assert lasting_page.api_open is False  # by itself, Gradio closes this on a Space alone
    for method, status in (("look", 404), ("stop", 200)):
        reply = lasting.post("/gradio_api/run/predict", json=event(lasting_page, method))
        assert reply.status_code == status, method


def test_so_many_requests_at_once(lasting, monkeypatch):
    monkeypatch.setattr(gate, "MAX_REQUESTS", 2)
    with lasting.stream("GET", "/gradio_api/heartbeat/one"), lasting.stream("GET", "/gradio_api/heartbeat/two"):
        reply = lasting.get("/config")
        assert (reply.status_code, reply.json()["detail"]) == (503, BUSY)
    end = time.monotonic() + 10
    while lasting.get("/config").status_code != 200:
        assert time.monotonic() < end


def test_who_fetches_nothing_is_taken_to_have_left(page, engine, client, monkeypatch):
    monkeypatch.setattr(serving, "_MAX_UNREAD", 20)
    engine.go_on["writing"].clear()  # it writes until it is stopped
    message = {"text": "What is it?", "files": []}
    assert client.post("/gradio_api/queue/join", json=event(page, "send", message)).status_code == 200
    assert engine.wait_until_closed(1, seconds=20) == ["writing"]
    assert page._queue.pending_messages_per_session["window"].qsize() < 40


def test_of_windows_whose_events_have_ended_nothing_stays(page, client):
    queue = page._queue
    queue.pending_messages_per_session.max_size = 10
    windows = [f"made-up-{number}" for number in range(50)]
    question = partial(event, page, "undo", {"text": "a", "files": []})
    joined = [client.post("/gradio_api/queue/join", json=question(session=window)) for window in windows]
    events = [reply.json()["event_id"] for reply in joined]
    end = time.monotonic() + 10
    while queue.event_ids_to_events:
        assert time.monotonic() < end
        time.sleep(0.02)
    swept(page, {})
    assert list(queue.pending_event_ids_session) == windows[40:]  # who may still ask how it ended
    assert page.is_told(windows[-1])
    assert page.is_told(events[-1])
    assert not page.is_told(windows[0])
    assert not page.is_told(events[0])
    del queue.pending_event_ids_session[windows[-1]]  # as if it were forgotten while a stream sends its last message
    for window in windows[40:]:
        told = client.get("/gradio_api/queue/data", params={"session_hash": window}).text
        assert "process_completed" in told
        assert "unexpected_error" not in told
    swept(page, {})
    assert queue.pending_event_ids_session == {}


def messages_of(stream):
    """The messages of a stream, as they come."""
    for line in stream.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def until(messages, kind):
    return next(message for message in messages if message["msg"] == kind)


def test_a_browsers_stream_goes_on_where_an_event_comes_after_the_last_has_ended(page, client, monkeypatch):
    monkeypatch.setattr(gate, "LINGER_S", 6.0)
    join = partial(client.post, "/gradio_api/queue/join")
    browser = {"headers": {"user-agent": "Mozilla/5.0"}, "params": {"session_hash": "window"}, "timeout": 20}
    first = join(json=event(page, "undo", {"text": "a", "files": []})).json()["event_id"]
    with client.stream("GET", "/gradio_api/queue/data", **browser) as stream:
        messages = messages_of(stream)
        assert until(messages, "process_completed")["event_id"] == first
        for wait_s in (0.0, 0.5, 1.0):
            time.sleep(wait_s)
            began = time.monotonic()
            further = join(json=event(page, "undo", {"text": "b", "files": []})).json()["event_id"]
            assert until(messages, "process_completed")["event_id"] == further
        assert until(messages, "close_stream")
        assert time.monotonic() - began >= gate.LINGER_S
        assert list(messages) == []
    assert join(json=event(page, "undo", {"text": "c", "files": []})).status_code == 200


def test_a_programs_stream_ends_with_its_event(page, client):
    client.post("/gradio_api/queue/join", json=event(page, "undo", {"text": "a", "files": []}))
    began = time.monotonic()
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "window"}, timeout=20) as stream:
        assert [message["msg"] for message in messages_of(stream)][-1] == "close_stream"
    assert time.monotonic() - began < gate.LINGER_S / 2


def test_a_page_is_told_an_answers_end_and_not_the_whole_conversation_again(page, client):
    """A new chat that the server had begun meanwhile would be undone."""
    client.post("/gradio_api/queue/join", json=event(page, "send", {"text": "What is it?", "files": []}))
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "window"}, timeout=20) as stream:
        told = [message for message in messages_of(stream) if message["msg"].startswith("process_")]
    assert [message["msg"] for message in told][-2:] == ["process_generating", "process_completed"]
    assert told[-1]["success"]
    assert told[-1]["output"]["data"] == [{"__type__": "update"}] * 4


def test_no_event_has_a_status_on_the_chat(lasting_page):
    """With each status the browser would copy the whole conversation."""
    chats = {block._id for block in lasting_page.blocks.values() if block.get_block_name() == "chatbot"}
    told = [set(event["show_progress_on"]) for event in lasting_page.config["dependencies"]]
    assert chats
    assert any(told)
    assert not any(chats & statuses for statuses in told)


def test_uploads_arrive_and_only_pictures_stay(page, client):
    before = set(files_in(page.uploads.folder))  # of other pages of this process
    reply = upload(client, ("night.png", NIGHT), ("again.png", NIGHT), params={"upload_id": "one"})
    first, second = reply.json()
    assert Path(first).read_bytes() == Path(second).read_bytes() == NIGHT
    assert client.get(f"/gradio_api/file={first}").content == NIGHT
    reason = "“notes.png” is not added. These 5 bytes are not a picture that can be read."
    reply = upload(client, ("notes.png", b"words"), params={"upload_id": "two"})
    assert reply.status_code == 415
    assert reply.text.startswith(reason)
    (path,) = upload(client, ("notes.png", b"words")).json()  # a program, which is told once it asks
    with pytest.raises(UploadError, match=reason):
        page.uploads.use("window", [path])
    assert set(files_in(page.uploads.folder)) == before | {Path(first), Path(second)}


def test_uploads_are_bounded(lasting_page, lasting, monkeypatch):
    before = files_in(lasting_page.uploads.folder)
    many = upload(lasting, *[(f"{number}.png", NIGHT) for number in range(21)])
    assert (many.status_code, many.text) == (
        413,
        "At most 20 pictures can be added at a time. Add the rest afterwards.",
    )
    monkeypatch.setattr(gate, "MAX_FILE_BYTES", len(NIGHT) - 1)
    large = upload(lasting, ("night.png", NIGHT))
    assert large.status_code == 413
    assert large.text.startswith("“night.png” is larger than")
    monkeypatch.setattr(receiving, "MAX_UPLOAD_BYTES", 100)
    assert upload(lasting, ("night.png", NIGHT)).status_code == 413
    monkeypatch.undo()
    monkeypatch.setattr(gate, "MAX_ARRIVING_BYTES", 100)  # of all visitors together
    full = upload(lasting, ("night.png", NIGHT))
    assert (full.status_code, full.text) == (507, FULL)
    for body in (b"", b"--x", b"--x--", b"\0" * 50):
        reply = lasting.post(
            "/gradio_api/upload", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert (reply.status_code, reply.text) == (400, UNREADABLE)
    assert lasting.post("/gradio_api/upload", content=NIGHT).status_code == 400
    assert files_in(lasting_page.uploads.folder) == before


def test_with_a_login_nothing_of_a_stranger_is_read(engine):
    page = built(engine)
    launch(page, auth=("me", "a password"))
    question, address = event(page, "undo", {"text": "a", "files": []}), page.local_url.rstrip("/")
    try:
        with httpx.Client(base_url=address, timeout=20) as stranger:
            before = files_in(page.uploads.folder)
            refused = [
                upload(stranger, ("night.png", NIGHT)),
                upload(stranger, ("night.png", NIGHT), params={"upload_id": "one", "document": "1"}),
                stranger.get("/gradio_api/upload_progress?upload_id=one"),
                stranger.post("/gradio_api/queue/join", json=question),
                # Refused in other words if it were read.
                *(stranger.post(f"/gradio_api/{path}", content=b"{") for path in ("run/predict", "call/ask")),
            ]
            assert [reply.status_code for reply in refused] == [401] * len(refused)
            assert all(messages.LOG_IN in reply.text for reply in refused)
            assert refused[0].text == messages.LOG_IN  # which the page shows
            assert files_in(page.uploads.folder) == before
        with httpx.Client(base_url=address, timeout=20) as known:
            assert known.post("/login", data={"username": "me", "password": "a password"}).status_code == 200
            (path,) = upload(known, ("night.png", NIGHT)).json()
            assert Path(path).read_bytes() == NIGHT
            assert known.get("/gradio_api/upload_progress?upload_id=one").status_code == 200
            assert known.post("/gradio_api/queue/join", json=question).status_code == 200
            assert known.post("/gradio_api/call/ask", json={"data": [[], "Hi"]}).status_code == 200
    finally:
        page.close(verbose=False)


def test_an_upload_that_breaks_off_leaves_nothing(lasting_page):
    before = files_in(lasting_page.uploads.folder)
    head = (
        b"POST /gradio_api/upload HTTP/1.1\r\nhost: a\r\ncontent-type: multipart/form-data; boundary=x\r\n"
        b"content-length: 100000\r\n\r\n"
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    )
    with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as broken:
        broken.sendall(head + NIGHT)
        end = time.monotonic() + 10
        while files_in(lasting_page.uploads.folder) == before:  # it is arriving
            assert time.monotonic() < end
    end = time.monotonic() + 10
    while files_in(lasting_page.uploads.folder) != before:
        assert time.monotonic() < end


def test_how_much_of_an_upload_has_arrived_is_told(lasting_page, lasting):
    head = (
        b"POST /gradio_api/upload?upload_id=slow HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\n"
        b"content-type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    named = b'content-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as slow:
        slow.sendall(head)  # before it has a name, nothing is told
        threading.Timer(0.5, slow.sendall, [named + NIGHT[:1000]]).start()
        lines: list[str] = []
        end = time.monotonic() + 20
        while len(lines) < 2:  # before it has begun to arrive, only "done" is told
            assert time.monotonic() < end
            lines.clear()
            with lasting.stream("GET", "/gradio_api/upload_progress?upload_id=slow") as told:
                for line in filter(None, told.iter_lines()):
                    lines.append(line)
                    if "update" in line:
                        slow.close()
    assert '"orig_name": "a.png"' in lines[0]
    assert lines[-1] == 'data: {"msg": "done"}'
    assert lasting.get("/gradio_api/upload_progress?upload_id=nobody").text.strip() == lines[-1]


@pytest.mark.parametrize("query", ["", "?upload_id=", "?upload_id"])
def test_uploads_of_programs_are_told_to_nobody(lasting_page, lasting, query):
    head = (
        b"POST /gradio_api/upload HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\n"
        b"content-type: multipart/form-data; boundary=x\r\n\r\n"
        b'--x\r\ncontent-disposition: form-data; name="files"; filename="private.png"\r\n\r\n'
    )
    with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as slow:
        slow.sendall(head + NIGHT[:1000])
        time.sleep(0.3)
        threading.Timer(0.5, slow.close).start()
        assert lasting.get(f"/gradio_api/upload_progress{query}").text.strip() == 'data: {"msg": "done"}'


WHOLE = b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.mark.parametrize("whole", [0, 1, 2])
def test_silent_connections_are_closed(lasting_page, lasting, monkeypatch, whole):
    """Also those that fall silent in a later request, when uvicorn waits for them without end."""
    monkeypatch.setattr(limits, "SILENT_S", 0.2)
    connections, since = lasting_page.server.server_state.connections, {}
    before = set(connections)  # which may just be closing
    with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as silent:
        for _ in range(whole):
            silent.sendall(WHOLE)
            assert b'"alive"' in answer_on(silent)
        silent.sendall(b"GET / HTTP")
        end = time.monotonic() + 20
        while not connections - before:
            assert time.monotonic() < end
        sweep = partial(swept, lasting_page, since)
        sweep()
        time.sleep(0.4)
        sweep()
        assert silent.recv(100) == b""
    assert lasting.get("/config").status_code == 200


def test_headers_are_bounded(lasting_page):
    """Whatever is installed: with httptools, which Ray brings, uvicorn would keep all that come."""
    assert lasting_page.server.config.http_protocol_class is H11Protocol
    with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as endless:
        try:
            endless.sendall(b"GET /healthz HTTP/1.1\r\nhost: a\r\n")
            endless.sendall(b"".join(b"x-%d: %s\r\n" % (number, b"y" * 1000) for number in range(200)))
            told = endless.recv(100)
        except ConnectionError:  # closed before all of them had come
            told = b""
    assert told == b"" or told.split()[1] in (b"400", b"431")


def test_web_sockets_are_not_opened(lasting_page):
    """They would be connections without requests, which the sweep of silent ones does not know."""
    with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as asking:
        wanted = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
        asking.sendall(WHOLE[:-2] + wanted + b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
        assert answer_on(asking).startswith(b"HTTP/1.1 200 ")
        swept(lasting_page, {})


def test_a_connection_is_silent_since_its_last_request(lasting_page, monkeypatch):
    monkeypatch.setattr(limits, "SILENT_S", 0.5)
    with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as asking:
        since: dict = {}
        for _ in range(4):
            asking.sendall(WHOLE)
            assert b'"alive"' in answer_on(asking)
            swept(lasting_page, since)
            time.sleep(0.3)


def answer_on(connection):
    """The whole answer to a short request that is sent by hand."""
    answer = b""
    while not answer.endswith(b"}"):
        more = connection.recv(1000)
        assert more
        answer += more
    return answer


def swept(page, silent):
    """One round of what the page does every SWEEP_S, in its server's thread."""
    asyncio.run_coroutine_threadsafe(page._clean_up(silent), page.server.servers[0].get_loop()).result(10)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="only Linux counts how often a thread waits")
@pytest.mark.usefixtures("lasting")
def test_a_server_that_nobody_asks_rests(lasting_page):
    async def thread():
        return threading.get_native_id()

    loop = lasting_page.server.servers[0].get_loop()
    status = Path(f"/proc/self/task/{asyncio.run_coroutine_threadsafe(thread(), loop).result(10)}/status")

    def waits():
        return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status.read_text(), re.MULTILINE)[1])

    before = waits()
    time.sleep(1)
    assert waits() - before < 300, "Gradio's own queue looks a thousand times a second for events"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no malloc_trim")
def test_freed_memory_goes_back_to_the_system():
    blocks = [b"x" * 60_000 for _ in range(3000)]
    last = blocks[-1]  # above all others
    del blocks
    before = resident()
    limits.return_freed_memory()
    assert resident() < before - 100_000_000
    assert len(last) == 60_000


def test_log_lines_are_bounded():
    clock = SimpleNamespace(s=1000.0)
    limit, seen = LogLimit(most=3, period_s=60.0, now=lambda: clock.s), []

    def line(number: int) -> logging.LogRecord:
        record = logging.LogRecord("x", logging.WARNING, "", 0, "line %d", (number,), None)
        record.created = 0.0  # a clock that was set back closes it for no longer
        return record

    for number in range(10):
        if limit.filter(record := line(number)):
            seen.append(record)
        clock.s += 1.0
    assert [record.getMessage() for record in seen] == [
        "line 0", "line 1", "line 2 (further messages are dropped for a minute)",
    ]  # fmt: skip
    assert json.loads(JsonLines().format(seen[-1]))["message"].startswith("line %d (further")
    clock.s += 60.0
    assert limit.filter(line(10))


@pytest.mark.usefixtures("lasting")
def test_every_logger_of_the_page_has_that_bound():
    ours = (chat_handlers.__name__, inside_handlers.__name__, gate.__name__, serving.__name__)
    engines = (openai_client.__name__, documents.__name__)
    for name in ("uvicorn.error", *ours, *engines):
        assert any(isinstance(found, LogLimit) for found in logging.getLogger(name).filters), name


def test_so_many_addresses_are_fetched_for_one_event(page, client, monkeypatch):
    asked = []
    monkeypatch.setattr(serving, "fetch_image", lambda address: asked.append(address) or NIGHT)
    meta = {"meta": {"_type": "gradio.FileData"}}
    files = [{"path": f"https://pictures.example/{number}.png", **meta} for number in range(17)]
    for some in (files, files[:2]):
        message = {"text": "What is it?", "files": some}
        assert client.post("/gradio_api/queue/join", json=event(page, "send", message)).status_code == 200
        told = client.get("/gradio_api/queue/data", params={"session_hash": "window"}).text
        assert ("At most 16 pictures may be given by address or as data. Upload them, or ask with fewer." in told) == (
            len(some) == 17
        )
    assert len(asked) == 2


class Slow:
    """A server of pictures that sends none until it is told to go on."""

    def __init__(self):
        self.asked: list[str] = []
        self.go_on = threading.Event()

    def fetch(self, address):
        self.asked.append(address)
        self.go_on.wait(PATIENCE_S)
        return NIGHT


@pytest.fixture
def slow(monkeypatch):
    slow = Slow()
    monkeypatch.setattr(serving, "fetch_image", slow.fetch)
    yield slow
    slow.go_on.set()


def ask_about(client, *pictures):
    """The id of a question about these pictures to `/ask`."""
    return client.post("/gradio_api/call/ask", json={"data": [pictures, "What is it?"]}).json()["event_id"]


def told_of(client, event_id):
    return client.get(f"/gradio_api/call/ask/{event_id}").text


def test_a_picture_as_data_waits_for_no_other_server(client, slow):
    for number in range(6):
        ask_about(client, f"https://pictures.example/{number}.png")
    wait_for(lambda: len(slow.asked) == 4)
    as_data = f"data:image/png;base64,{b64encode(NIGHT).decode()}"
    assert "event: complete" in told_of(client, ask_about(client, as_data))
    assert len(slow.asked) == 4


@pytest.mark.parametrize(
    ("limit", "says"), [("MOST_OF_ONE", OWN_WAIT), ("MOST_TOGETHER", OTHERS_WAIT)], ids=["of one", "of all"]
)
def test_so_many_pictures_wait_to_be_fetched(client, slow, monkeypatch, limit, says):
    monkeypatch.setattr(fetching, limit, 5)
    first = ask_about(client, *(f"https://pictures.example/{number}.png" for number in range(4)))
    wait_for(lambda: slow.asked)
    assert is_plain(says)
    assert says in told_of(
        client, ask_about(client, "https://pictures.example/4.png", "https://pictures.example/5.png")
    )
    last = ask_about(client, "https://pictures.example/6.png")
    slow.go_on.set()
    assert "event: complete" in told_of(client, first)
    assert "event: complete" in told_of(client, last)
    assert len(slow.asked) == 5


def test_for_whoever_has_left_nothing_is_fetched(page, client, slow):
    others = [ask_about(client, f"https://pictures.example/{number}.png") for number in range(4)]
    wait_for(lambda: len(slow.asked) == 4)
    waiting = ask_about(client, "https://pictures.example/left.png")
    event = page._queue.event_ids_to_events[waiting]
    with client.stream("GET", f"/gradio_api/call/ask/{waiting}"):
        time.sleep(0.2)
    wait_for(lambda: not event.alive)
    slow.go_on.set()
    for one in others:
        assert "event: complete" in told_of(client, one)
    wait_for(lambda: waiting not in page._queue.event_ids_to_events)
    assert "https://pictures.example/left.png" not in slow.asked


def test_scripts_are_compressed_once_and_stay_what_they_are(lasting):
    address = re.search(r'src="\./(assets/[^"]+\.js)"', lasting.get("/").text)[1]
    plain, *packed = (
        lasting.get(f"/{address}", headers={"accept-encoding": encoding, "range": "bytes=0-9"})
        for encoding in ("identity", "gzip", "br, gzip;q=0.5", "gzip")
    )
    assert "content-encoding" not in plain.headers
    assert [answer.headers["content-encoding"] for answer in packed] == ["gzip", "br", "gzip"]
    assert {answer.content for answer in packed} == {plain.content}
    assert len(plain.content) > 2 * int(packed[0].headers["content-length"])
    assert "immutable" in plain.headers["cache-control"]
    assert lasting.head(f"/{address}").headers["content-type"] == plain.headers["content-type"]
    missing = lasting.get("/assets/none.js")
    assert missing.status_code == 404
    assert is_plain(missing.json()["detail"])
    assert lasting.get("/", headers={"accept-encoding": "gzip"}).headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("spelling", [
    "assets/none/../{}", "assets/%2e%2e/assets/{}", "assets/%2e/{}", "assets/x/%2e%2e%2f{}", "assets/x//%2e./{}",
    "assets/{}/", "assets/{}/.", "assets/./{}", "assets/x%5c..%5c{}", "assets/none/{}", "static/../assets/{}",
])  # fmt: skip
def test_another_spelling_of_a_scripts_path_is_not_there_and_keeps_nothing(
    lasting_page, lasting, spelling, monkeypatch
):
    kept = []
    monkeypatch.setattr(assets, "compress", lambda *_: kept.append(spelling))
    script = re.search(r'src="\./assets/([^"]+\.js)"', lasting.get("/").text)[1]
    for name in (script, next(FRONTEND.glob("assets/hls-*.js")).name):
        asked = f"GET /{spelling.format(name)} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
        with socket.create_connection((lasting_page.server_name, lasting_page.server_port), timeout=10) as raw:
            raw.sendall(asked.encode())  # a client would shorten it
            assert b" 404 " in raw.recv(1000)
    assert kept == []


def test_gradios_styles_come_as_one(lasting):
    page = lasting.get("/").text
    (address,) = re.findall(r'<link rel="stylesheet" href="(styles[.]css[^"]*)">', page)
    joined = lasting.get(f"/{address}")
    assert joined.headers["content-type"].startswith("text/css")
    assert "immutable" in joined.headers["cache-control"]
    assert "immutable" not in lasting.get("/styles.css").headers["cache-control"]
    *names, theme = json.loads(re.search(r"const name of (\[.*?\])", page)[1])
    assert len(names) > 30  # what the page shows is among them: a first load asks for one (test_first_load)
    for name in (*names, theme):
        assert lasting.get(f"/{name}").text in joined.text
    (gradios,) = re.findall(r'<link disabled rel="stylesheet"[^>]* href="\./([^"]+)"', page)
    assert gradios == names[0]


def test_the_page_comes_compressed_and_is_the_same_in_each_encoding(lasting):
    pages = [lasting.get("/", headers={"accept-encoding": encoding}) for encoding in ("identity", "gzip", "br")]
    assert [page.headers.get("content-encoding") for page in pages] == [None, "gzip", "br"]
    assert {page.text for page in pages} == {pages[0].text}
    assert len(pages[0].content) > 4 * int(pages[2].headers["content-length"])


def test_the_video_players_library_for_streams_is_not_sent(lasting):
    (name,) = (file.name for file in FRONTEND.glob("assets/hls-*.js"))
    sent, whole = lasting.get(f"/assets/{name}"), (FRONTEND / "assets" / name).read_text(encoding="utf-8")
    assert len(sent.content) < 200
    assert sent.headers["content-type"].startswith("text/javascript")
    # Each name that another script may import, once more from what is sent.
    exported = [re.findall(r"\bas (\w+)", script[script.rindex("export") :]) for script in (whole, sent.text)]
    assert exported[0]
    assert exported[1] == exported[0]


def test_a_visitor_who_leaves_spoils_no_script_for_others(monkeypatch):
    """The first visitor is gone before the script is complete; the next one gets all of it."""
    parts = [b"a" * 100, b"b" * 100]

    async def slowly():
        for part in parts:
            await asyncio.sleep(0.05)
            yield part

    async def app(scope, receive, send):
        await StreamingResponse(slowly())(scope, receive, send)

    one = gate.Gate(app, SimpleNamespace(num_waiting_bytes=lambda: 0), None, ())
    scope = {"type": "http", "method": "GET", "path": "/assets/a.js", "headers": []}

    async def answer(*received):
        messages, sent = iter(received), []

        async def receive():
            return next(messages, None) or await asyncio.get_running_loop().create_future()

        async def send(message):
            sent.append(message)

        await one(scope, receive, send)
        return b"".join(message.get("body", b"") for message in sent)

    gone = {"type": "http.disconnect"}
    asyncio.run(answer(gone, gone))
    assert asyncio.run(answer({"type": "http.request", "body": b""})) == b"".join(parts)
    assert len(one._assets._kept) == 1
    monkeypatch.setattr(assets, "MAX_ASSET_BYTES", 300)
    scope["path"] = "/assets/b.js"
    assert asyncio.run(answer({"type": "http.request", "body": b""})) == b"".join(parts)
    assert len(one._assets._kept) == 1  # no room for a second one
