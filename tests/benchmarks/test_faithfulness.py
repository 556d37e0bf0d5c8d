"""The benchmark of faithful maps: its cases, its methods on one word, its scores and its table."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import DEMO_MODEL, EXAMPLES

from benchmarks.faithfulness import __main__ as benchmark
from benchmarks.faithfulness import boxes, methods, records, seconds
from benchmarks.faithfulness.cases import SEED, WORLDS_WITH_OBJECTS, Case, cases_of_folder, drawn_cases
from benchmarks.faithfulness.methods import EVERY_PICTURE, METHODS, _rank_filtered
from benchmarks.faithfulness.report import AT_ONCE, summary, table, tables
from benchmarks.faithfulness.scores import rank_correlation, reached_at_once, scores_of, upsampled
from benchmarks.faithfulness.subject import Subject
from gemma3_core.engine import Engine, Request
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.processor import Gemma3Processor

ALONG_PATCHES = ("gradient x attention, along patches", "ours")


@pytest.fixture(scope="module")
def subject() -> Subject:
    """The answer "The star is yellow." about the picture of the night."""
    model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    processor = Gemma3Processor.from_pretrained(DEMO_MODEL)
    (case,) = [c for c in cases_of_folder(EXAMPLES, "What color is the star?") if c.name == "night.png"]
    texts = ["The", " star", " is", " yellow", "."]
    ids = [processor.tokenizer.backend.token_to_id(text.replace(" ", "▁")) for text in texts]
    assert None not in ids
    made = Subject(model, processor, replace(case, word="yellow"), ids)
    assert made.choose(texts) > 0.5
    assert texts[made.word.start] == " yellow"
    return made


@pytest.fixture(scope="module")
def maps(subject) -> dict[str, np.ndarray]:
    """By each method, with an integral of fewer steps than the benchmark's."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(methods, "_STEPS", 8)
        return {name: np.asarray(method(subject)) for name, method in METHODS.items()}


def test_the_asked_object_lies_in_its_picture():
    for world in WORLDS_WITH_OBJECTS:
        cases = list(drawn_cases(world, 2))
        assert [case.name for case in cases] == [f"{world} 0", f"{world} 1"]
        for case in cases:
            mask = case.mask(100)
            assert 0.001 < mask.mean() < 0.9
            assert case.word in (
                "red",
                "orange",
                "yellow",
                "green",
                "blue",
                "purple",
                "pink",
                "brown",
                "black",
                "white",
                "gray",
            )


def test_every_method_makes_a_finite_map_of_its_own(maps):
    for name, heat in maps.items():
        assert heat.shape == ((128, 128) if name in ALONG_PATCHES else (8, 8)), name
        assert np.isfinite(heat).all(), name
        assert np.ptp(heat) > 0, name
    assert len({heat.tobytes() for heat in maps.values()}) == len(METHODS)
    # The star lies at the top right of the picture; what does not see weights does not know.
    row, column = np.unravel_index(maps["ours"].argmax(), (128, 128))
    assert row < 64 < column
    assert (maps["ours"] > 0.5).mean() < 0.1, "the star and nothing else"


def test_scores_tell_a_map_of_the_object_from_its_opposite(subject, maps):
    heat = maps["integrated gradients"]
    good, bad = scores_of(subject, heat), scores_of(subject, -heat)
    assert good["insertion"] > bad["insertion"]
    assert good["deletion"] < bad["deletion"]
    at_once = reached_at_once(subject)
    assert bad["insertion"] < at_once["insertion"] <= subject.ends()["whole"]
    assert at_once["deletion"] < bad["deletion"]
    assert "pointing_mask" not in good, "nothing is known about the folder's objects"
    assert upsampled(heat, 224).shape == (224, 224)
    assert rank_correlation(heat, heat) == pytest.approx(1)
    assert rank_correlation(heat, -heat) == pytest.approx(-1)
    assert rank_correlation(heat, np.ones((8, 8))) == 0


def test_the_rank_filter_takes_the_middle_of_a_window():
    spike = np.zeros((5, 5))
    spike[2, 2] = 9.0
    assert _rank_filtered(spike)[2, 2] < 2.0
    assert _rank_filtered(np.full((4, 4), 3.0)) == pytest.approx(np.full((4, 4), 3.0))


def test_the_tables_have_means_intervals_and_what_was_left_out():
    scores = {"insertion": 0.9, "deletion": 0.1, "seconds": 0.5}
    every = dict.fromkeys((AT_ONCE, *EVERY_PICTURE), scores)
    records = [{"case": str(n), "world": "scenes", "methods": dict(every)} for n in range(3)]
    records[0] |= {"methods": every | dict.fromkeys(METHODS, scores), "sanity": {"ours": [0.5, 0.25, 0.1]}}
    records[1]["methods"]["gradient x attention"] = scores | {"insertion": 0.6}
    records[2]["methods"]["ours"] = scores | {"seconds": 487.4}
    figures = summary([*records, {"case": "3", "world": "signs", "left_out": "wrong answer"}])
    assert (figures["every"]["pictures"], figures["part"]["pictures"]) == ({"scenes": 3}, {"scenes": 1})
    assert figures["left_out"] == {"wrong answer": 1}
    assert figures["every"]["methods"]["ours"]["insertion"] == {"mean": 0.9, "low": 0.9, "high": 0.9}
    assert figures["every"]["methods"]["ours"]["seconds"] == {"median": 0.5, "least": 0.5, "most": 487.4}
    assert figures["every"]["ours_minus"]["gradient x attention"]["insertion"]["mean"] == pytest.approx(0.1)
    assert figures["every"]["ours_minus"]["gradient x attention"]["deletion"]["mean"] == 0
    assert "| ours | 0.900 (0.900 to 0.900) | 0.100 (0.100 to 0.100) |  |  |  | 0.50 | 0.50, 0.25, 0.10 |" in tables(
        figures
    )
    assert "| random |" in table(figures["part"])
    assert "| random |" not in table(figures["every"])


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Starts the command with these arguments, in a results' folder that has the repository's records; returns what
    each start has asked."""
    for name in ("faithfulness.jsonl", "faithfulness.json"):
        shutil.copy(records.RESULTS / name, tmp_path)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    asked, measured = [], benchmark.record

    def record(engine, model, processor, case, *options):
        asked.append((engine.info.name, case.name))
        return measured(engine, model, processor, case, *options)

    monkeypatch.setattr(benchmark, "record", record)

    def start(*arguments):
        asked.clear()
        monkeypatch.setattr(sys, "argv", ["faithfulness", *map(str, arguments)])
        benchmark.main()
        return list(asked)

    return start


@pytest.fixture
def unmeasured(monkeypatch):
    """Pictures are left out at once."""

    def record(_engine, _model, _processor, case, *_options):
        return {"case": case.name, "world": case.world, "left_out": "a test"}

    monkeypatch.setattr(benchmark, "record", record)


@pytest.mark.usefixtures("unmeasured")
def test_a_second_start_goes_on_where_the_first_ended(tmp_path, started):
    command = ["--folder", EXAMPLES, "--records", tmp_path / "r.jsonl", "--json", tmp_path / "j"]
    assert started(*command, "--seconds", 0) == []
    asked = started(*command)
    assert len(asked) == len(set(asked)) > 3
    assert started(*command) == []
    assert json.loads((tmp_path / "j").read_text())["left_out"] == {"a test": len(asked)}


def test_figures_of_another_model_are_its_own(chat_folder, tmp_path, monkeypatch, started, capsys):
    """Of one picture and the methods that all pictures are scored for, with the probabilities of a random model."""
    results, pictures = tmp_path, tmp_path / "pictures"
    pictures.mkdir()
    shutil.copy(EXAMPLES / "night.png", pictures)
    monkeypatch.setattr(benchmark, "LEAST_FALL", -1.0)
    monkeypatch.setattr(benchmark, "METHODS", {name: METHODS[name] for name in EVERY_PICTURE})
    committed = {path: path.read_bytes() for path in results.glob("faithfulness*")}
    command = ["--model", chat_folder, "--folder", pictures, "--question", "what is it", "--sanity", 0]
    assert started(*command) == [("small-model", "night.png")]
    printed = capsys.readouterr().out
    assert printed.startswith("| {'pictures': 1} | insertion |")
    assert "scenes" not in printed
    named = results / "faithfulness_small-model_pictures.jsonl"
    (one,) = map(json.loads, named.read_text().splitlines())
    ours = one["methods"]["ours"]
    assert f"| ours | {ours['insertion']:.3f} (" in printed
    figures = json.loads(named.with_suffix(".json").read_text())
    assert figures["about"] == one["about"]
    assert figures["every"]["methods"]["ours"]["insertion"]["mean"] == pytest.approx(ours["insertion"], abs=1e-4)
    assert [(here["processor"], here["records"]) for here in figures["machines"]] == [(one["machine"]["processor"], 1)]
    assert started(*command) == [], "it is known"
    assert capsys.readouterr().out == printed
    assert started(*command, "--question", "and now") == [("small-model", "night.png")], "another question"
    assert len(committed) == 2
    assert {path: path.read_bytes() for path in committed} == committed


@pytest.mark.usefixtures("unmeasured")
def test_records_of_one_file_count_only_where_they_are_about_the_same(chat_folder, tmp_path, started):
    shared = tmp_path / "shared.jsonl"
    for line in (tmp_path / "faithfulness.jsonl").read_text().splitlines():
        # whatever the demo model is by now
        records.add_record(shared, {**json.loads(line), "about": records.about_of(None, None, "", SEED)})
    before = shared.read_text()
    command = ["--worlds", "scenes", "--pictures", 1, "--records", shared]
    assert started(*command) == [], "the demo model's are known"
    assert shared.read_text() == before
    for other in (["--model", chat_folder], ["--seed", 5]):
        asked = started(*command, *other)
        assert asked[0][1] == "scenes 0"
        figures = json.loads(shared.with_suffix(".json").read_text())
        assert figures["left_out"] == {"a test": len(asked)}
        assert [one["records"] for one in figures["machines"]] == [len(asked)]
    assert shared.read_text().startswith(before)


def test_the_committed_figures_are_those_of_the_committed_records():
    """Whoever sums them up again is not taken for who measured them."""
    kept = json.loads((records.RESULTS / "faithfulness.json").read_text())
    known = records.records_about(records.RESULTS / "faithfulness.jsonl", kept["about"])
    assert {**summary(known), "machines": records.machines_of(known), "about": kept["about"]} == kept
    assert sum(one["records"] for one in kept["machines"]) == len(known) > 0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((None, None, SEED), "faithfulness.jsonl"),
        ((Path("a/gemma"), None, SEED), "faithfulness_gemma.jsonl"),
        ((Path("a/gemma"), Path("photos"), 5), "faithfulness_gemma_photos.jsonl"),
        ((None, None, 5), "faithfulness_seed_5.jsonl"),
    ],
)
def test_only_the_demo_models_own_worlds_are_in_the_usual_file(options, name):
    assert records.usual_file(*options) == records.RESULTS / name


def test_the_seconds_of_a_report_are_those_of_the_questions_that_are_named(monkeypatch):
    engine = Engine.load(device="cpu")
    tiles = {name: len(engine.inspect(Request((turn,))).tiles) for name, (turn, _) in seconds.ASKED.items()}
    assert list(tiles.values()) == [1, 4, 7]
    name = next(iter(tiles))
    monkeypatch.setattr(seconds, "ASKED", {name: seconds.ASKED[name]})
    (row,) = seconds.measure(engine, 1)
    assert row.startswith(f"| {name} | 1 | ")


def test_boxes_are_held_against_the_true_one_with_what_does_best_on_the_training_split():
    assert boxes.overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert boxes.overlap((0, 0, 1, 1), (2, 2, 3, 3)) == 0
    picture = Image.new("RGB", (300, 200), (20, 30, 120))
    picture.paste((200, 30, 30), (110, 60, 170, 100))
    corners = np.array([(110, 60), (170, 60), (170, 100), (110, 100)])
    case, truth = Case("one", "scenes", picture, "What color is it?", "red", corners), (110.0, 60.0, 170.0, 100.0)
    cells = case.mask(64).reshape(8, 8, 8, 8).mean(axis=(1, 3))
    heads = np.full((2, 3, 8, 8), 1 / 64)
    heads[1, 2] = cells / cells.sum()
    found = [boxes.Found(case, truth, {boxes.PAGE: cells}, heads)]
    assert boxes.best_heads(found)[0] == (1, 2)
    assert boxes.best_share(found, lambda one: one.maps[boxes.PAGE]) in boxes.SHARES
    figures = boxes.figures_of(found, found, 224)
    by_box = {(way["map"], way["box"]): way["overlap"]["mean"] for way in figures["ways"]}
    assert by_box[boxes.PAGE, "patches of like color"] > 0.9, "the shape's own edges"
    assert boxes.PAGE in boxes.table(figures)
