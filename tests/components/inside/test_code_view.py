"""The programs that an answer is shown as: each runs, and gives the answer."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from adapters import save_adapter
from places import EXAMPLES, REPOSITORY
from running_app import running_app
from warm import ran
from window import DEMO, STATS, exchange_of

from components.chat.conversation import Conversation, Exchange
from components.inside.code_view import INSIDE, Address, address, code_html, scripts
from components.shown.token_view import word_of_content
from gemma3_core import Gemma3ForConditionalGeneration
from gemma3_core.engine import (
    DEMO_MODEL,
    Answered,
    Box,
    DoneEvent,
    Engine,
    PartialSampling,
    Request,
    SamplingSettings,
    TokenChoices,
    TokenEvent,
    Turn,
)

QUESTION = 'How many hearts are there? It\'s "$HOME"'


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(device="cpu", dtype="float32")


def exchange(engine: Engine, captions: tuple[str, ...] = (), crops: tuple = (), **settings) -> Exchange:
    question = Turn("user", QUESTION, (EXAMPLES / "hearts.png",), captions=captions, crops=crops)
    request = Request((question,), max_new_tokens=32, int4_or_default=True, **settings)
    *_, done = engine.stream(request)
    assert isinstance(done, DoneEvent)
    return Exchange(question, request.pan_and_scan, Answered(request, done))


@pytest.fixture(scope="module")
def greedy(engine) -> Exchange:
    return exchange(engine)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    with running_app("--device", "cpu", "--dtype", "float32") as url:
        yield url


@pytest.fixture
def run(tmp_path):
    """Runs a program of Python; returns what it prints."""

    def printed(script: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TQDM_DISABLE": "1"}
        (tmp_path / "program.py").write_text(script)
        status, output, errors = ran(tmp_path / "program.py", [], environment, tmp_path)
        assert status == 0, errors[-2000:]
        return output.strip()

    return printed


@pytest.fixture
def run_here(monkeypatch, capsys):
    """As `run`, in this process, which has imported transformers: that takes most of such a program's time."""
    monkeypatch.chdir(REPOSITORY)

    def printed(script: str) -> str:
        capsys.readouterr()
        exec(compile(script, "program.py", "exec"), {"__name__": "__main__"})
        return capsys.readouterr().out.strip()

    return printed


def test_a_program_looks_inside_as_the_page_does(engine, greedy, run_here):
    assert INSIDE not in scripts(greedy, engine.info, Address("", "")), "the tokens of this answer are not known"
    events = engine.stream(replace(greedy.answered.request, confidence=True))
    choices = TokenChoices(event.choice for event in events if isinstance(event, TokenEvent))
    known = replace(greedy, choices=choices)
    first, *printed = run_here(scripts(known, engine.info, Address("", ""))[INSIDE]).splitlines()
    assert first == greedy.answer
    word = list(choices)[word_of_content(list(choices), QUESTION)].text
    assert f"{len(engine.info.layers) - 1} [{word!r}" in "\n".join(printed), "the last layer says what the model said"
    assert any(line.startswith("estimated place: Place(picture=0, box=Box(") for line in printed)


@pytest.mark.parametrize("name", ["gemma3_core", "transformers", "gradio_client", "curl"])
def test_each_program_gives_the_answer(engine, greedy, served, run, run_here, name):
    script = scripts(greedy, engine.info, Address(served, served))[name]
    if name == "curl":
        command = ["sh", "-c", script]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=300)
        said = re.findall(r'data: \["(.*?)", \{', done.stdout)[-1]
    else:
        said = (run_here if name == "transformers" else run)(script)
    assert said.splitlines()[-1] == greedy.answer


@pytest.mark.parametrize("merged", [False, True])
def test_programs_load_the_adapter_that_answered(merged, tmp_path, run, run_here):
    model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL)
    folder = save_adapter(model, tmp_path / "mine", seed=5, size=0.15, r=8, target_modules=["q_proj", "v_proj", "fc1"])
    engine = Engine.load(device="cpu", dtype="float32", adapter=folder, merge_adapter=merged)
    answer = exchange(engine)
    programs = scripts(answer, engine.info, Address("", ""))
    own = "adapter='path/to/mine', merge_adapter=True, dtype" if merged else "adapter='path/to/mine', dtype"
    for name, loads in (("gemma3_core", own), ("transformers", "model.load_adapter('path/to/mine')")):
        assert loads in programs[name]
        runs = run if name == "gemma3_core" else run_here
        assert runs(programs[name].replace("path/to/mine", str(folder))) == answer.answer
    of_hub = replace(engine.info.adapter, hub_id="me/mine")
    program = scripts(answer, replace(engine.info, adapter=of_hub, base_name="a.gguf"), Address("", ""))["gemma3_core"]
    assert "Engine.load('path/to/a.gguf', adapter='me/mine'" in program


def test_a_frames_time_stands_before_it(engine, served, run, run_here):
    timed = exchange(engine, ("0:12",))
    programs = scripts(timed, engine.info, Address(served, served))
    assert run(programs["gemma3_core"]).splitlines()[-1] == timed.answer
    assert run_here(programs["transformers"]).splitlines()[-1] == timed.answer
    assert "no times" in programs["curl"]


def test_a_sampled_answer_is_given_again_by_its_seed(engine, run):
    sampling, hot = PartialSampling(temperature=2.0, top_k=0, top_p=1.0), None
    while hot is None or not hot.answer.strip():  # as hot as this, an answer may end before its first word
        hot = exchange(engine, system_prompt="Answer in one word.", pan_and_scan=True, int4=True, sampling=sampling)
    assert hot.stats.seed is not None
    programs = scripts(hot, engine.info, Address("x", "x"))
    assert run(programs["gemma3_core"]).splitlines()[-1].strip() == hot.answer.strip().splitlines()[-1]
    assert "in another way" in programs["transformers"]
    assert "full precision" in programs["transformers"]
    assert all("samples with top_k 64" in programs[name] for name in ("gradio_client", "curl"))


def test_an_answer_that_looked_closer_is_given_again_with_its_crops(engine):
    closer = exchange(engine, crops=((Box(0, 0, 200, 150), Box(10, 40, 90, 90)),))
    programs = scripts(closer, engine.info, Address("x", "x"))
    lines = programs["gemma3_core"].split("request = ")[1].split("*_, done")[0]
    request = eval(lines, {"Request": Request, "Turn": Turn, "SamplingSettings": SamplingSettings})
    asked = [replace(turn, pictures=(EXAMPLES / "hearts.png",)) for turn in request.turns]
    *_, done = engine.stream(replace(request, turns=tuple(asked)))
    assert (done.text, done.stats.num_crops) == (closer.answer, 2)
    assert "[[[0, 0, 200, 150], [10, 40, 90, 90]]]" in programs["gradio_client"].replace("\n", "")
    assert "takes no crops" in programs["transformers"]


def test_a_conversation_is_told_whole_and_ask_says_that_it_takes_one_question(greedy):
    conversation = Conversation().add(greedy)
    request = Request(conversation.turns(Turn("user", "And?", (Path("/uploads/0a/mine.png"),))))
    second = Exchange(request.turns[-1], False, Answered(request, DoneEvent("No", STATS)))
    programs = scripts(second, DEMO, Address("x", "x"))
    for name in ("gemma3_core", "transformers"):
        assert programs[name].count("assets/examples/hearts.png") == programs[name].count("mine.png") == 1
        assert greedy.answer in programs[name]
        assert "/uploads" not in programs[name]
    assert all("takes one question" in programs[name] for name in ("gradio_client", "curl"))


def test_what_a_visitor_wrote_is_text_in_every_program_and_on_the_page():
    nasty = '\'; import os #\n""" </code><script>$(ls) `ls`'
    named = Turn("user", nasty, (Path("/uploads/0a/$(ls) 'x'.png"),))
    made = replace(exchange_of(named, "A"), answered=Answered(Request((named,), nasty), DoneEvent("A", STATS)))
    programs = scripts(made, replace(DEMO, is_demo=False, hub_id="google/gemma-3-4b-it"), Address("x", "x"))
    for name in ("gemma3_core", "transformers", "gradio_client"):
        compile(programs[name], name, "exec")
    assert shlex.split(programs["curl"])  # closed quotes
    subprocess.run(["sh", "-n", "-c", programs["curl"]], check=True)
    assert "'google/gemma-3-4b-it'" in programs["transformers"]
    assert "<script>" not in code_html(made, DEMO, Address("x", "x"))


def test_the_address_is_the_one_that_the_visitor_uses():
    assert address({"host": "a.org", "x-forwarded-proto": "https"}, {}) == Address("https://a.org", "https://a.org")
    assert address({}, {}).url == "http://127.0.0.1:7860"
    space = {"SPACE_ID": "ada/gemma", "SPACE_HOST": "ada-gemma.hf.space"}
    assert address({"host": "10.0.0.1"}, space) == Address("ada/gemma", "https://ada-gemma.hf.space")


def test_seeds_are_drawn_told_and_not_told_where_nothing_is_drawn(engine, greedy):
    assert greedy.stats.seed is None
    drawn = {exchange(engine, sampling=SamplingSettings(temperature=1.0)).stats.seed for _ in range(3)}
    assert len(drawn) == 3
    assert exchange(engine, sampling=SamplingSettings(temperature=1.0, seed=7)).stats.seed == 7
    assert greedy.stats.revision == engine.info.revision != ""


def test_an_answer_that_ask_would_not_give_is_no_program_for_it():
    made = exchange_of(Turn("user", "Hi"), "Hello")
    assert "Client(" in scripts(made, DEMO, Address("x", "x", asks=DEMO.name))["gradio_client"]
    other = scripts(made, DEMO, Address("x", "x", asks="gemma-3-4b-it"))
    told = "# /ask asks gemma-3-4b-it, and this answer is by demo model: use one of the first two programs.\n"
    assert other["gradio_client"] == other["curl"] == told
    elsewhere = scripts(made, replace(DEMO, outside="by another server"), Address("x", "x", asks="gemma-3-4b-it"))
    assert elsewhere["curl"].endswith(": ask /v1/chat/completions.\n")
    continued = replace(made, answered=replace(made.answered, request=Request((made.question,), max_new_tokens=2304)))
    assert scripts(continued, DEMO, Address("x", "x"))["curl"].startswith("# /ask takes at most 2,048 new tokens")
