"""The task for lmms-eval: its file names what is there, and its judge knows right answers from wrong ones."""

import importlib.util
import json
import re

import pytest
from places import REPOSITORY
from running_app import require_demo_model

from gemma3_core.engine import Engine, Request, SamplingSettings, Turn

TASK = REPOSITORY / "benchmarks" / "lmms_eval"


@pytest.fixture(scope="module")
def questions():
    """The module, loaded from its path as lmms-eval does."""
    spec = importlib.util.spec_from_file_location("questions", TASK / "questions.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_task_names_what_is_there(questions):
    task = (TASK / "gemma3_examples.yaml").read_text(encoding="utf-8")
    names = re.findall(r"!function questions\.(\w+)", task)
    assert len(names) == 2
    assert all(callable(getattr(questions, name)) for name in names)
    (rows,) = re.findall(r"test: (\S+)", task)
    assert (REPOSITORY / rows).is_file()


def test_the_demo_models_answers_are_judged_right_and_others_wrong(questions):
    require_demo_model()
    engine = Engine.load(device="cpu")
    lines = (TASK / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    for doc in map(json.loads, lines):
        turn = Turn("user", doc["question"], tuple(questions.pictures(doc)))
        *_, done = engine.stream(Request((turn,), sampling=SamplingSettings(temperature=0.0), reuse=False))
        assert questions.judged(doc, [done.text]) == {"right": 1.0}, done.text
        assert questions.judged(doc, ["I don't know."]) == {"right": 0.0}
