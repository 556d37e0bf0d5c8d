"""The app as a Space runs it: its variables, no network, a home that can't be written, on ZeroGPU its own package.

SPACE_PYTHON names another interpreter to run the app with, for example one of Python 3.12 and torch 2.8.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapters import PROJECTOR, save_adapter
from browsing import answered, send, write
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from places import EXAMPLES, REPOSITORY
from running_app import free_port, require_demo_model, unfold, wait_until_ready
from warm import Program

from components.serving.zero_gpu import told
from gemma3_core import Gemma3ForConditionalGeneration
from gemma3_core.engine import DEMO_MODEL, Engine, Request, Turn

pytestmark = pytest.mark.long

VISITOR = {"x-ip-token": "a.e30.c"}
"""The header by which the Hub tells a ZeroGPU Space who its visitor is."""


class Hub:
    """Lends GPUs to a Space, as the Hub's machines do, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.left_s: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                hub.asked.append(self.path)
                status, body = hub.answer(self.path)
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str) -> tuple[int, dict[str, Any]]:
        if not path.startswith("/schedule"):
            return 200, {}
        if self.left_s is not None:
            return 429, {"left": self.left_s, "wait": 11_000.0}
        return 200, {"idle": True, "nvidiaIndex": 0, "nvidiaUUID": "GPU-0", "allowToken": "token"}

    def count(self, what: str) -> int:
        return sum(path.startswith(f"/{what}") for path in self.asked)


@contextmanager
def space(log: Path, from_its_first_import: bool = False, **environment: str) -> Iterator[str]:
    """Runs the app as a Space; yields its address. Unless told so it is forked from a process that has imported Gradio
    and torch."""
    require_demo_model()
    port = free_port()
    variables = {
        "SPACE_ID": "somebody/pictures", "SPACE_HOST": "somebody-pictures.hf.space", "SYSTEM": "spaces",
        "GRADIO_SERVER_NAME": "0.0.0.0", "GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1",
        "HOME": "/proc",  # where not even root can make a file
    }  # fmt: skip
    python, program = os.environ.get("SPACE_PYTHON"), REPOSITORY / "tests" / "support" / "as_a_space.py"
    variables = {**os.environ, **variables, **environment}
    process: Program | subprocess.Popen
    if python or from_its_first_import:
        with log.open("w") as out:
            command = [python or sys.executable, "-u", str(program)]
            process = subprocess.Popen(command, env=variables, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT)
    else:  # Gradio has read its own variable for the port before
        log.touch()
        process = Program(program, [], {**variables, "GEMMA_PORT": str(port)}, log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert "REACHED FOR THE NETWORK" not in log.read_text()


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    made = Hub()
    yield made
    made.server.shutdown()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL)
    options = {"target_modules": ["q_proj", "v_proj", "down_proj", "fc1"], "target_parameters": [PROJECTOR], "r": 8}
    return save_adapter(model, tmp_path_factory.mktemp("adapters") / "mine", seed=5, size=0.2, **options)


@pytest.fixture(scope="module")
def zero_gpu(hub, tmp_path_factory, adapter, text_chat_folder) -> Iterator[str]:
    """With an adapter of the demo model, and a random model beside it: its answers are as long as they may be."""
    log = tmp_path_factory.mktemp("space") / "log.txt"
    variables = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": hub.url, "GEMMA_DTYPE": "float32"}
    with space(log, True, **variables, GEMMA_ADAPTER=str(adapter), GEMMA_ALSO=str(text_chat_folder)) as url:
        yield url


@pytest.fixture(scope="module")
def client(zero_gpu) -> Client:
    return Client(zero_gpu, headers=VISITOR, verbose=False)


@contextmanager
def visitor(browser: Any, url: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1440, "height": 900}, extra_http_headers=VISITOR)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(url)
    page.locator("#chat .placeholder-content").wait_for()
    yield page
    context.close()


def choose_model(page: Any, name: str) -> None:
    page.locator("#model input").click()
    page.get_by_role("option", name=name, exact=True).click()
    page.locator(".badge").filter(has_text=re.compile(rf"{name}(?! \+)")).wait_for()


def test_a_space_on_a_cpu_answers_and_names_no_command_line(tmp_path):
    with space(tmp_path / "log.txt") as url:
        page = httpx.get(url).text
        assert "python app.py" not in page
        assert "duplicate this Space" in page
        picture = handle_file(EXAMPLES / "blue.png")
        answer, stats = Client(url, verbose=False).predict([picture], "How many shapes are there?", api_name="/ask")
        assert (answer, stats["device"]) == ("There are three shapes.", "cpu")


def test_on_zero_gpu_int4_from_the_start_is_refused_in_a_sentence(hub, tmp_path):
    log = tmp_path / "log.txt"
    variables = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": hub.url, "GEMMA_INT4": "1"}
    with pytest.raises(AssertionError, match=r"ended with 1"), space(log, **variables):
        pass
    assert log.read_text().splitlines()[-1].startswith("app.py: A server whose GPU is lent")


def test_on_zero_gpu_a_program_gets_the_answer_of_a_child(zero_gpu, client, hub, adapter):
    question = "What color is the star?"
    asked = Request((Turn("user", question, (EXAMPLES / "night.png",)),), max_new_tokens=8)
    *_, expected = Engine.load(device="cpu", adapter=adapter).stream(asked)
    picture = handle_file(EXAMPLES / "night.png")
    answer, stats = client.predict([picture], question, max_new_tokens=8, api_name="/ask")
    assert (answer, stats["model"], stats["device"]) == (expected.text, "demo model + mine", "cuda:0")
    assert (stats["reused_tokens"], stats["new_tokens"]) == (0, expected.stats.new_tokens)
    assert hub.count("startup-report") == hub.count("allow") == 1
    call = next(path for path in hub.asked if path.startswith("/schedule"))
    assert "token=a.e30.c" in call  # the visitor's time, not the Space's
    assert 4 <= int(call.partition("durationSeconds=")[2].partition("&")[0]) < 30

    shown = {"url": f"data:image/png;base64,{b64encode((EXAMPLES / 'night.png').read_bytes()).decode()}"}
    content = [{"type": "image_url", "image_url": shown}, {"type": "text", "text": question}]
    body = {"model": "demo model", "messages": [{"role": "user", "content": content}], "temperature": 0}
    told = httpx.post(f"{zero_gpu}/v1/chat/completions", json=body, headers=VISITOR, timeout=60).json()
    assert told["choices"][0]["message"]["content"] == "The star is yellow." != answer, "the model without the adapter"


def test_on_zero_gpu_another_model_answers_and_stop_gives_the_gpu_back(zero_gpu, hub, browser):
    given = hub.count("schedule")
    with visitor(browser, zero_gpu) as page:
        choose_model(page, "small-text-model")
        unfold(page, "Sampling", "#seed input")
        longest = page.get_by_label("number input for Longest answer")
        longest.fill("480")  # on a busy machine a shorter one is over before Stop is pressed
        longest.press("Enter")
        write(page, "what is a color")
        send(page)
        _wait_for(lambda: hub.count("schedule") > given)
        page.locator("#composer .stop-button").click()
        page.locator("#composer .submit-button").wait_for()
        page.locator("#chat").get_by_text(re.compile("stopped", re.IGNORECASE)).first.wait_for()
    _wait_for(lambda: hub.count("release") == hub.count("schedule"))


def _wait_for(happens: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_on_zero_gpu_a_visitor_without_time_is_told_so_and_one_with_time_looks_inside_and_compares(
    zero_gpu, client, hub, browser
):
    with visitor(browser, zero_gpu) as page:
        assert "python app.py" not in page.content()
        assert "Nothing is kept between two answers" in page.content()
        assert "on ZeroGPU" in page.locator(".badge").inner_text()

        # A used-up quota is a sentence, and the question comes back.
        hub.left_s = 5
        try:
            write(page, "Who are you?")
            send(page)
            page.locator("#chat").get_by_text("you have 5 s left for today. Try again in 3 h 4 min").wait_for()
            page.locator("#composer .submit-button").wait_for()
            assert page.locator("#composer textarea").input_value() == "Who are you?"
            with pytest.raises(AppError, match="5 s left"):
                client.predict([], "Who are you?", api_name="/ask")
        finally:
            hub.left_s = None
            hub.asked.clear()

        choose_model(page, "demo model")  # without the adapter, whose answers need not end
        write(page, "How many hearts are there?", EXAMPLES / "hearts.png")
        send(page)
        assert answered(page)
        page.locator('#chat [data-act="inside-open"]').first.click()
        page.locator("#maps img").first.wait_for()
        page.locator("#hide").click()
        page.locator("#hiding .hidden-region").wait_for()
        page.get_by_role("tab", name="Compare").click()
        page.get_by_role("button", name="Pan & scan off and on").click()
        page.locator("#inside .compared + .note").filter(has_text="token").wait_for()
        assert page.locator("#inside .failure").count() == 0
    _wait_for(lambda: hub.count("release") == hub.count("schedule") >= 4)


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("You have exceeded your free ZeroGPU quota (17s requested vs. 5s left). Try again in 0:12:01. Subscribe",
         "This may take 17 s of GPU time, and you have 5 s left for today. Try again in 13 min"),
        ("Quota (9s requested vs. 0s left). Try again in 1 day, 2:00:00. ", "Try again in 26 h 0 min"),
        ("Space app has reached its GPU limit. Try re-running", "Sign in to Hugging Face"),
        ("You have exceeded your ZeroGPU runs limit. ", "Try again later"),
        ("The requested GPU duration (300s) is larger than the maximum allowed", "shorter longest answer"),
        ("No GPU was available after 60s. Retry later", "No GPU was free"),
        ("GPU task aborted", "taken back"),
        ("something new <a href=", "ZeroGPU does not answer as it should"),
    ],
)  # fmt: skip
def test_what_the_package_says_becomes_a_sentence(message, says):
    assert says in told(message)
