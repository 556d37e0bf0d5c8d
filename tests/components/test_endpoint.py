"""`/ask` of a really running app, through gradio_client and, for attacks, by raw HTTP."""

import base64
import json
import re
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from places import EXAMPLES
from running_app import ScriptedEngine, built, launch, running_app, served
from window import DEMO

from components.chat import running
from gemma3_core.engine import Gemma3Error, SamplingSettings, TokenEvent

HEARTS = EXAMPLES / "hearts.png"
WIDE = EXAMPLES / "wide.png"
SECRET = "root:"  # of /etc/passwd
STATS = {
    "model", "device", "dtype", "quantization", "num_images", "num_crops", "prompt_tokens", "reused_tokens",
    "new_tokens", "queue_s", "time_to_first_token_s", "tokens_per_s", "stop_reason",
    "seed", "revision",
}  # fmt: skip


@pytest.fixture(scope="module")
def url():
    with running_app() as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


@pytest.fixture(scope="module")
def scripted_engine():
    return ScriptedEngine(DEMO)


@pytest.fixture(scope="module")
def scripted_url(scripted_engine):
    with served(scripted_engine) as address:
        yield address


@pytest.fixture(scope="module")
def scripted_client(scripted_url):
    return Client(scripted_url, verbose=False)


@pytest.fixture
def scripted(scripted_engine):
    scripted_engine.begin_anew()
    yield scripted_engine
    scripted_engine.let_through(*scripted_engine.go_on)


def test_answer_and_stats(client):
    answer, stats = client.predict(images=[handle_file(HEARTS)], question="How many hearts are there?", api_name="/ask")
    assert answer.strip()
    assert set(stats) == STATS
    assert stats["model"] == "demo model"
    assert stats["quantization"] == "none"
    assert (stats["num_images"], stats["num_crops"]) == (1, 0)
    assert stats["prompt_tokens"] > 64
    assert 0 < stats["new_tokens"] <= 256
    assert stats["time_to_first_token_s"] > 0
    assert stats["stop_reason"] == "stop"


@pytest.mark.parametrize("write", [json.dumps, dict], ids=["text", "object"])
def test_an_answer_fits_a_json_schema_and_its_figures_say_how_sure_each_value_is(client, write):
    fields = {"color": {"enum": ["red", "blue"]}, "round": {"type": "boolean"}}
    schema = {"type": "object", "properties": fields, "required": [*fields], "additionalProperties": False}
    question = "What color are the hearts?"
    given = {"images": [handle_file(HEARTS)], "question": question, "json_schema": write(schema)}
    answer, stats = client.predict(**given, api_name="/ask")
    told = json.loads(answer)
    assert told["color"] in ("red", "blue")
    assert set(stats) == STATS | {"fields"}
    assert {name: one["value"] for name, one in stats["fields"].items()} == told
    assert all(0 < one["probability"] <= 1 for one in stats["fields"].values())
    with pytest.raises(AppError, match="can't be answered"):
        client.predict(question=question, json_schema='{"type": "banana"}', api_name="/ask")


def test_the_precision_is_chosen_by_each_request(client):
    question = {"images": [handle_file(HEARTS)], "question": "How many hearts are there?", "api_name": "/ask"}
    given = [client.predict(**question, int4=int4)[1]["quantization"] for int4 in (True, False, None)]
    assert given == ["int4", "none", "none"]


def test_greedy_answers_repeat(client):
    answers = {
        client.predict(images=[handle_file(WIDE)], question="How many shapes are there?", seed=seed, api_name="/ask")[0]
        for seed in (0, 1)
    }
    assert len(answers) == 1


def test_partial_answers_stream(scripted, scripted_client, monkeypatch):
    """The engine writes a further word once the program has the one before."""
    monkeypatch.setattr(running, "_REDRAW_S", 0.0)
    scripted.let_through("queued", "encoding", "reading", "writing")
    whole, shown = scripted.stream, threading.Semaphore(0)

    def stream(request, stop=None):
        for event in whole(request, stop):
            yield event
            if isinstance(event, TokenEvent):
                assert shown.acquire(timeout=60)

    monkeypatch.setattr(scripted, "stream", stream)
    job = scripted_client.submit(question="How many?", api_name="/ask")
    parts = []
    for answer, _ in job:
        if answer and answer not in parts:
            parts.append(answer)
            shown.release()
    words = [scripted.answer[: found.end()] for found in re.finditer(r"\S+\s*", scripted.answer)]
    assert parts == words
    assert parts[-1] == job.result()[0]


def test_all_parameters(client):
    answer, stats = client.predict(
        images=[handle_file(WIDE), handle_file(HEARTS)],
        question="How many shapes are there?",
        system_prompt="Answer shortly.",
        pan_and_scan=True,
        int4=None,
        max_new_tokens=3,
        temperature=0.5,
        seed=7,
        api_name="/ask",
    )
    assert stats["num_images"] == 2
    assert stats["num_crops"] >= 2
    assert stats["new_tokens"] == 3
    assert stats["stop_reason"] == "length"
    assert isinstance(answer, str)


@pytest.mark.parametrize(("crops", "count"), [("auto", 6), ([[[0, 0, 90, 90], [10, 20, 300, 200]]], 2), ("[[]]", 0)])
def test_crops_of_ones_own(client, crops, count):
    stats = client.predict(
        images=[handle_file(HEARTS)], question="What is it?", pan_and_scan=True, max_new_tokens=2, crops=crops,
        api_name="/ask",
    )[1]  # fmt: skip
    assert stats["num_crops"] == count


def test_text_alone(client):
    assert client.predict(images=[], question="Hello", max_new_tokens=4, api_name="/ask")[1]["num_images"] == 0
    assert client.predict(question="Hello", max_new_tokens=4, api_name="/ask")[1]["num_images"] == 0


def test_only_ask_is_public_and_int4_defaults_to_the_servers_setting(client):
    endpoints = client.view_api(return_format="dict", print_info=False)
    assert set(endpoints["named_endpoints"]) == {"/ask"}
    assert not endpoints["unnamed_endpoints"]
    parameters = endpoints["named_endpoints"]["/ask"]["parameters"]
    defaults = {parameter["parameter_name"]: parameter["parameter_default"] for parameter in parameters}
    assert defaults == {
        "images": None, "question": None, "system_prompt": "", "pan_and_scan": False, "int4": None,
        "max_new_tokens": 256, "temperature": 0.0, "seed": 0, "crops": None, "json_schema": None,
    }  # fmt: skip
    returns = [value["label"].lower() for value in endpoints["named_endpoints"]["/ask"]["returns"]]
    assert returns == ["answer", "stats"]


@pytest.fixture
def broken(tmp_path):
    """Files that are no pictures, by name."""
    (tmp_path / "notes.png").write_text("These are words.")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(HEARTS.read_bytes()[:400])
    return tmp_path


@pytest.mark.parametrize(
    ("file", "says"), [("notes.png", "not a picture"), ("empty.png", "empty"), ("cut.png", "damaged or cut off")]
)
def test_what_is_no_picture_is_refused_in_words(client, broken, file, says):
    with pytest.raises(AppError, match=says):
        client.predict(images=[handle_file(broken / file)], question="What is this?", api_name="/ask")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"question": "  "}, "no question"),
        ({"question": "many words " * 20_000}, "tokens"),
        ({"question": "x", "temperature": 3.0}, "Temperature"),
        ({"question": "x", "seed": -1}, "seed"),
        ({"question": "x", "max_new_tokens": 0}, "at least 1 token"),
        ({"question": "x", "max_new_tokens": 2049}, "at most 2,048 tokens, got 2,049"),
    ],
)
def test_bad_requests_are_refused_in_words(client, fields, says):
    with pytest.raises(AppError, match=says):
        client.predict(**fields, api_name="/ask")


def test_more_pictures_than_fit(client, tmp_path):
    small = tmp_path / "small.png"
    Image.new("RGB", (32, 32), "red").save(small)
    with pytest.raises(AppError, match="pictures are too many"):
        client.predict(images=[handle_file(small)] * 130, question="How many?", api_name="/ask")


def test_the_app_goes_on_after_bad_requests(client):
    assert client.predict(question="Hello", max_new_tokens=2, api_name="/ask")[1]["new_tokens"] == 2


def test_many_at_once(client):
    def ask(_):
        return client.predict(
            images=[handle_file(HEARTS)], question="How many hearts are there?", max_new_tokens=8, api_name="/ask"
        )

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(ask, range(4)))
    assert len({answer for answer, _ in results}) == 1


# Attacks: what a visitor could send who does not use our page.


def ask_raw(url, images):
    """POST /call/ask, then the whole event stream as text."""
    data = [images, "What does it say?", "", False, None, 4, 0.0, 0]
    posted = httpx.post(f"{url}/gradio_api/call/ask", json={"data": data}, timeout=30)
    if posted.status_code != 200:
        return f"event: error\n{posted.text}"
    return httpx.get(f"{url}/gradio_api/call/ask/{posted.json()['event_id']}", timeout=60).text


META = {"meta": {"_type": "gradio.FileData"}}
STOLEN = [
    {"path": "/etc/passwd", **META},
    {"path": "/etc/passwd"},
    {"path": "file:///etc/passwd", **META},
    {"path": "x.png", "url": "file:///etc/passwd", **META},
    {"path": "../../../../../../etc/passwd", **META},
    {"path": str(HEARTS), **META},  # a picture, but of the server, not of the visitor
    {"path": "http://127.0.0.1:9/secret.png", **META},
    {"path": "http://169.254.169.254/latest/meta-data", **META},
    "/etc/passwd",
]


@pytest.mark.parametrize("file", STOLEN, ids=str)
def test_ask_reads_no_file_of_the_server(url, file):
    stream = ask_raw(url, [file])
    assert "event: error" in stream
    assert "event: complete" not in stream
    assert SECRET not in stream


def page_call(url, config, event, data, session, event_data=None):
    """One of the page's own handlers, called as its script would; the server's messages as text."""
    called = next(d for d in config["dependencies"] if any(target[1] == event for target in d["targets"]))
    data = [*data, *[None] * (len(called["inputs"]) - len(data))]
    body = {"data": data, "fn_index": called["id"], "session_hash": session, "event_data": event_data}
    joined = httpx.post(f"{url}/gradio_api/queue/join", json=body, timeout=30)
    if joined.status_code != 200:
        raise AssertionError(joined.text)
    lines = []
    with httpx.stream("GET", f"{url}/gradio_api/queue/data?session_hash={session}", timeout=60) as stream:
        for line in stream.iter_lines():
            lines.append(line)
            if "process_completed" in line or "close_stream" in line:
                break
    return "\n".join(lines)


@pytest.mark.parametrize("file", STOLEN, ids=str)
def test_the_page_reads_no_file_of_the_server(url, file):
    config = httpx.get(f"{url}/config", timeout=30).json()
    message = {"text": "What is this?", "files": [file]}
    # The conversation is the second input; whatever is sent for it, the server's own state counts.
    claimed = {"exchanges": [{"question": {"pictures": ["/etc/passwd"]}}]}
    data = [message, claimed, 0, False, "", 0, 64, 0.95, "", 8, False]
    answer = page_call(url, config, "submit", data, uuid.uuid4().hex)
    assert SECRET not in answer
    assert '"success":false' in answer.replace(" ", "")


def choose_example(url, event_data):
    """The card handler with a made-up event, as the server's messages."""
    config = httpx.get(f"{url}/config", timeout=30).json()
    return page_call(
        url, config, "example_select", [None, False, "", 0, 64, 0.95, "", 8, False], uuid.uuid4().hex, event_data
    )


@pytest.mark.parametrize("number", [-1, 99, "0", None, [0]], ids=str)
def test_an_example_that_there_is_not_is_not_asked(url, number):
    messages = choose_example(url, {"index": number, "value": {"text": "x"}})
    assert '"role"' not in messages


def test_an_example_brings_no_file_of_its_own(url):
    messages = choose_example(url, {"index": 0, "value": {"text": "x", "files": [{"path": "/etc/passwd", **META}]}})
    assert SECRET not in messages
    assert "/etc/passwd" not in messages
    assert "How many hearts are there?" in messages  # the card of that number is asked, and nothing else of it counts


@pytest.mark.parametrize("path", ["/etc/passwd", "app.py", "assets/demo_model/config.json", "assets/../app.py"])
def test_files_of_the_server_are_not_served(url, path):
    assert httpx.get(f"{url}/gradio_api/file={path}", timeout=30).status_code in (403, 404)


def test_uploads_are_bounded(url):
    answer = httpx.post(f"{url}/gradio_api/upload", files={"files": ("big.png", b"0" * 20_100_000)}, timeout=60)
    assert answer.status_code == 413


def test_headers_keep_the_page_to_this_server(url):
    headers = httpx.get(url, timeout=30).headers
    assert "img-src 'self' data: blob:" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_can_be_installed_as_an_app(url):
    assert 'rel="manifest"' in httpx.get(url, timeout=30).text
    manifest = httpx.get(f"{url}/manifest.json", timeout=30).json()
    assert (manifest["name"], manifest["display"]) == ("Gemma 3 and pictures", "standalone")
    [icon] = manifest["icons"]
    answer = httpx.get(f"{url}{icon['src']}", timeout=30)
    assert (answer.status_code, answer.headers["content-type"]) == (200, icon["type"])
    assert answer.content == httpx.get(f"{url}/favicon.ico", timeout=30).content


def test_a_login_is_asked_for_when_set():
    engine = ScriptedEngine(DEMO)
    engine.let_through(*engine.go_on)
    page = built(engine)
    launch(page, auth=("me", "secret"))  # as app.py does: tests/test_app.py
    try:
        address = page.local_url.rstrip("/")
        assert httpx.get(f"{address}/config", timeout=30).status_code == 401
        with pytest.raises(Exception):  # noqa: B017, PT011  gradio_client raises what its version likes
            Client(address, verbose=False)
        client = Client(address, auth=("me", "secret"), verbose=False)
        assert client.predict(question="Hello", api_name="/ask")[0] == engine.answer
    finally:
        page.close(verbose=False)


# Stop: a client that cancels, or goes away, must not leave work behind.


@pytest.mark.parametrize("stage", ["queued", "encoding", "reading", "writing"])
def test_a_cancelled_job_stops_the_engine(scripted, scripted_client, stage):
    scripted.let_through(*_before(stage))
    job = scripted_client.submit(question="How many?", api_name="/ask")
    # Gradio can end what it has sent something of, and the client name what it was given a number of.
    _wait_for(lambda: scripted.reached[-1:] == [stage] and job.outputs())
    job.cancel()
    assert scripted.wait_until_closed() == [stage]


@pytest.mark.parametrize("stage", ["queued", "writing"])
def test_a_vanished_client_stops_the_engine(scripted, scripted_url, stage):
    scripted.let_through(*_before(stage))
    data = [None, "How many?", "", False, None, 8, 0.0, 0]
    event = httpx.post(f"{scripted_url}/gradio_api/call/ask", json={"data": data}, timeout=30).json()["event_id"]
    with httpx.stream("GET", f"{scripted_url}/gradio_api/call/ask/{event}", timeout=30) as stream:
        next(stream.iter_lines())
    assert scripted.wait_until_closed(seconds=20) == [stage]


def _before(stage):
    stages = ("queued", "encoding", "reading", "writing")
    return stages[: stages.index(stage)]


def _wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    assert condition()


def test_messages_of_errors_hold_no_path_of_the_server(client):
    with pytest.raises(AppError) as caught:
        client.predict(images=[handle_file(EXAMPLES / "examples.json")], question="What?", api_name="/ask")
    assert "/tmp" not in json.dumps(str(caught.value))


def test_a_picture_by_address_is_fetched_within_our_limits(scripted, scripted_url, monkeypatch):
    asked_for = []

    def fetch(address):
        asked_for.append(address)
        if address.endswith("huge.png"):
            raise Gemma3Error("This picture has more than 20 MB.")
        return HEARTS.read_bytes()

    monkeypatch.setattr("components.serving.server.fetch_image", fetch)
    scripted.let_through("queued", "encoding", "reading", "writing")
    stream = ask_raw(scripted_url, [{"path": "https://pictures.example/hearts.png", **META}])
    assert "event: complete" in stream
    (picture,) = scripted.requests[0].turns[0].pictures
    assert picture.read_bytes() == HEARTS.read_bytes()
    refused = ask_raw(scripted_url, [{"path": "https://pictures.example/huge.png", **META}])
    assert "more than 20 MB" in refused
    assert "event: complete" not in refused
    assert [name.rpartition("/")[2] for name in asked_for] == ["hearts.png", "huge.png"]
    assert len(scripted.requests) == 1


def test_nothing_is_kept_for_a_program(scripted, scripted_url):
    scripted.let_through("queued", "encoding", "reading", "writing")
    assert "event: complete" in ask_raw(scripted_url, [])
    assert [request.reuse for request in scripted.requests] == [False]


def test_what_a_program_leaves_out_is_left_open(scripted, scripted_url):
    scripted.let_through("queued", "encoding", "reading", "writing")
    for data in ([None, "How many?"], [None, "How many?", None, None, None, None, None, None]):
        event = httpx.post(f"{scripted_url}/gradio_api/call/ask", json={"data": data}, timeout=30).json()["event_id"]
        assert "event: complete" in httpx.get(f"{scripted_url}/gradio_api/call/ask/{event}", timeout=30).text
    first, second = scripted.requests
    assert replace(first, visitor="") == replace(second, visitor="")
    assert (first.max_new_tokens, first.system_prompt, first.int4, first.pan_and_scan) == (256, "", None, False)
    assert first.sampling == SamplingSettings(temperature=0.0, seed=0)


# What programs write by hand.

PICTURE = base64.b64encode(HEARTS.read_bytes()).decode()
FORMS = {
    "data URL": [f"data:image/png;base64,{PICTURE}"],
    "base64": [PICTURE],
    "one, not in a list": PICTURE,
    "url": [{"url": f"data:image/png;base64,{PICTURE}"}],
    "OpenAI's part": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}],
    "a file's description": [{"path": f"data:image/png;base64,{PICTURE}", **META}],
}


def ask_by_hand(url, data, version="call"):
    """POST, then the event stream: (answer, stats) or the text of the error."""
    body = {"data": data} if isinstance(data, list) else data
    posted = httpx.post(f"{url}/gradio_api/{version}/ask", json=body, timeout=30)
    assert posted.status_code == 200, posted.text
    stream = httpx.get(f"{url}/gradio_api/{version}/ask/{posted.json()['event_id']}", timeout=60).text
    kind, told = re.findall(r"event: (complete|error)\ndata: (.*)", stream)[-1]
    told = json.loads(told)
    return told if kind == "complete" else (told["error"] if isinstance(told, dict) else told)


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_may_come_in_any_form(url, form):
    answer, stats = ask_by_hand(url, [FORMS[form], "How many hearts are there?"])
    assert answer == "There are three hearts."
    assert stats["num_images"] == 1


@pytest.mark.parametrize("data", [
    [PICTURE, "How many hearts are there?", None, "false", "", "8", "0", "7"],
    [PICTURE, "How many hearts are there?", "", 0, None, 8.0, 0.0],
    [[PICTURE], "How many hearts are there?", None, None, "no", " 8 "],
], ids=str)  # fmt: skip
def test_numbers_and_switches_may_be_text_and_the_end_left_out(url, data):
    answer, stats = ask_by_hand(url, data)
    assert answer == "There are three hearts."
    assert (stats["quantization"], stats["num_crops"]) == ("none", 0)


def test_arguments_by_name(url):
    named = {"images": [PICTURE], "question": "How many hearts are there?", "seed": None, "max_new_tokens": "3"}
    answer, stats = ask_by_hand(url, named, "call/v2")
    assert (stats["new_tokens"], stats["stop_reason"]) == (3, "length")
    assert "There are three hearts.".startswith(answer)


WRONG = [
    ([None, None], "There is no question."),
    ([None], "There is no question."),
    ([None, ["Hello"]], "“question” must be text, got a list."),
    ([None, "Hi", None, "perhaps"], '“pan_and_scan” must be true or false, got "perhaps".'),
    ([None, "Hi", None, None, 3], "“int4” must be true or false, got 3."),
    ([None, "Hi", None, None, None, "many"], '“max_new_tokens” must be a number, got "many".'),
    ([None, "Hi", None, None, None, 2.5], "“max_new_tokens” must be a whole number, got 2.5."),
    ([None, "Hi", None, None, None, 1e300], "An answer can have at most 2,048 tokens, got 1e+300. Ask for fewer."),
    ([None, "Hi", None, None, None, None, "nan"], '“temperature” must be a number, got "nan".'),
    ([None, "Hi", None, None, None, None, None, True], "“seed” must be a number, got true."),
    ([[7], "Hi"], "“images” must be pictures (uploads, addresses, data URLs or base64), got 7."),
    ([[{}], "Hi"], "“images” must be pictures (uploads, addresses, data URLs or base64), got an object."),
    (["no picture", "Hi"], "This text is neither base64, nor a URL, nor the path of a picture."),
    ([PICTURE[:4000], "Hi"], "The PNG picture is damaged or cut off."),
    (["A" * 4000, "Hi"], "These 3,000 bytes are not a picture that can be read."),
    (["data:image/png,AAAA", "Hi"], "This data URL holds no base64 picture."),
    ([[PICTURE] * 17, "Hi"], "At most 16 pictures may be given by address or as data."),
    ([None, "Hi", *[None] * 9], "At most 10 arguments are taken"),
    ([PICTURE, "Hi", *[None] * 6, "all"], '“crops” is neither “auto” nor JSON: "all". Write boxes as'),
    ([PICTURE, "Hi", *[None] * 6, "[" * 200_000], "at most 100,000 characters, got 200,000. Shorten it."),
    ([PICTURE, "Hi", *[None] * 6, [None, None]], "a list with one entry per picture, got 2 for 1"),
    ([PICTURE, "Hi", *[None] * 6, "[[[0, 0, 9]]]"], "a list of boxes [left, top, right, bottom]"),
    ([PICTURE, "Hi", *[None] * 6, [[[0, 0, "9", 9]]]], "A crop must be four whole numbers"),
    ([PICTURE, "Hi", *[None] * 6, [[[9000, 0, 9100, 90]]]], "leaves too little of a picture"),
]


@pytest.mark.parametrize(("data", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_wrong_argument_is_named_in_a_sentence(url, data, says):
    told = ask_by_hand(url, data)
    assert says in told
    assert len(told) < 200
