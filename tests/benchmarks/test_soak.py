"""The soak in small: it does what it says, and its verdict can fail."""

import sys
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from functools import partial

import pytest
from running_app import free_port
from warm import Program

from benchmarks import soak
from benchmarks.visitors import Visitor
from benchmarks.watched_app import Taken, _started, watched_app

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what a process takes is read from Linux's /proc")

STEADY = Taken(memory=600_000_000, threads=20, descriptors=30, connections=8, disk=10_000_000)
RESOURCES = set(asdict(STEADY))


@pytest.fixture(scope="module")
def app():
    with watched_app(start=Program, port=free_port()) as running:
        yield running


def held(samples, first=60):
    return {name for name, verdict in soak.verdicts(samples, first).items() if verdict.held}


def test_what_stays_as_it_was_has_come_back():
    assert held([STEADY] * 600) == RESOURCES


@pytest.mark.parametrize("name", sorted(RESOURCES))
def test_what_grows_has_not_come_back(name):
    """A leak of a tenth of the slack in a minute, over twenty minutes; nothing else is blamed for it."""
    step = getattr(soak.SLACK, name) / 10
    samples = [replace(STEADY, **{name: getattr(STEADY, name) + step * second / 60}) for second in range(1200)]
    assert held(samples) == RESOURCES - {name}


def test_what_grew_meanwhile_and_went_again_has_come_back():
    high = Taken(*(10 * value for value in asdict(STEADY).values()))
    samples = [STEADY] * 60 + [high] * 60 + [STEADY]
    found = soak.verdicts(samples, 60)
    assert all(verdict.held for verdict in found.values())
    assert found["memory"].most == high.memory
    assert not any(verdict.held for verdict in soak.verdicts([STEADY] * 60 + [high], 60).values())


def test_the_first_seconds_do_not_count():
    """While the server warms up it takes less; the comparison is with the end of the first minute."""
    cold = Taken(0, 0, 0, 0, 0)
    assert held([cold] * 50 + [STEADY] * 100) == RESOURCES


def test_there_must_be_something_to_compare():
    with pytest.raises(ValueError, match="nothing to compare"):
        soak.verdicts([STEADY] * 60, 60)


def until(app, holds, seconds=30.0):
    """What the app takes once this holds; after so long what it takes anyway, for the assertion to tell."""
    end = time.monotonic() + seconds
    while not holds(taken := app.taken()) and time.monotonic() < end:
        time.sleep(0.2)
    return taken


def at_rest(app):
    """What the app takes once no connection is open and its descriptors have stayed as many for two seconds.

    The last question whether the page is ready may still be open, and descriptors close after their connection.
    """
    counts = []

    def rests(taken):
        counts.append(taken.descriptors)
        return not taken.connections and counts[-10:] == [taken.descriptors] * 10

    return until(app, rests)


def test_by_itself_an_app_is_a_process_with_its_arguments_environment_and_log(tmp_path):
    """The other tests fork theirs, with one that has imported all."""
    (tmp_path / "file.py").write_text("import os, sys; print(sys.argv[1:], os.environ, flush=True); sys.exit('end')")
    process = _started(tmp_path / "file.py", ["--port", "1"], {"ONE": "two"}, tmp_path / "log")
    assert process.wait(timeout=60) == 1
    said = (tmp_path / "log").read_text()
    assert said.startswith("['--port', '1'] environ({'ONE': 'two'")
    assert said.endswith("end\n")


def test_what_is_counted_is_what_the_process_holds(app):
    """Shown on the app itself: a file, five connections and their descriptors that come and go."""
    before = at_rest(app)
    assert before.connections == 0
    (app.folder / "file").write_bytes(b"0" * 10_000_000)
    with ExitStack() as pages:
        for _ in range(5):
            pages.enter_context(pages.enter_context(Visitor(app.url)).heartbeat())
        during = until(app, lambda taken: taken.connections >= 5)
    (app.folder / "file").unlink()
    assert during.disk >= before.disk + 9_000_000  # what was there at the start may go
    assert during.connections >= 5
    assert during.threads >= 1
    assert 200_000_000 < before.memory <= app.peak()
    # Not against those of before, among which may be pipes to a compiler that still builds the kernels.
    after = until(app, lambda taken: not taken.connections and taken.descriptors <= during.descriptors - 5)
    assert after.connections == 0
    assert after.disk <= during.disk - 9_000_000
    assert after.descriptors <= during.descriptors - 5


def test_a_short_soak_reports_each_resource(app, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "watched_app", partial(nullcontext, app))
    report = soak.measure(minutes=0.05, visitors=3, settle_s=1, least=2)
    assert set(report) == {"machine", "minutes", "visitors", "done", "log_bytes", "resources"}
    assert set(report["resources"]) == RESOURCES
    for row in report["resources"].values():
        assert set(row) == {"after_first_minute", "most", "end", "slack", "held"}
        assert row["most"] >= row["end"]
    assert report["resources"]["memory"]["most"] > 200_000_000
    assert report["resources"]["connections"]["most"] > 0
    assert sum(report["done"].values()) >= 6
    # What went wrong on the way has a name with a comma: a refusal, or an error of the connection.
    assert not [name for name in report["done"] if ", " in name], report["done"]
    soak.save(report, tmp_path / "soak.json")
    assert (tmp_path / "soak.json").read_text().startswith('{\n  "machine"')
    shown = soak.table(report)
    assert all(name in shown for name in RESOURCES)


def test_the_exit_says_whether_all_came_back(monkeypatch):
    verdict = soak.verdicts([STEADY] * 61, 60)
    rows = {name: asdict(one) | {"held": one.held} for name, one in verdict.items()}
    report = {"machine": {}, "minutes": 1.0, "visitors": 1, "done": {}, "log_bytes": 0, "resources": rows}
    monkeypatch.setattr(soak, "measure", lambda *_: report)
    monkeypatch.setattr(soak, "save", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["soak"])
    with pytest.raises(SystemExit) as ended:
        soak.main()
    assert ended.value.code == 0
    rows["disk"]["held"] = False
    with pytest.raises(SystemExit) as ended:
        soak.main()
    assert ended.value.code == 1
