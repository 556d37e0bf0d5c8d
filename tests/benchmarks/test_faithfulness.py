"""The benchmark of faithful maps: its cases, its methods on one word, its scores and its table."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from places import DEMO_MODEL, EXAMPLES

from benchmarks.faithfulness import __main__ as benchmark
from benchmarks.faithfulness import boxes, methods
from benchmarks.faithfulness.cases import WORLDS_WITH_OBJECTS, Case, cases_of_folder, drawn_cases
from benchmarks.faithfulness.methods import EVERY_PICTURE, METHODS, _rank_filtered
from benchmarks.faithfulness.report import AT_ONCE, summary, table, tables
from benchmarks.faithfulness.scores import rank_correlation, reached_at_once, scores_of, upsampled
from benchmarks.faithfulness.subject import Subject
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
    figures = summary([*records, {"case": "3", "world": "signs", "left_out": "wrong answer"}])
    assert (figures["every"]["pictures"], figures["part"]["pictures"]) == ({"scenes": 3}, {"scenes": 1})
    assert figures["left_out"] == {"wrong answer": 1}
    assert figures["every"]["methods"]["ours"]["insertion"] == {"mean": 0.9, "low": 0.9, "high": 0.9}
    assert figures["every"]["ours_minus"]["gradient x attention"]["insertion"]["mean"] == pytest.approx(0.1)
    assert figures["every"]["ours_minus"]["gradient x attention"]["deletion"]["mean"] == 0
    assert "| ours | 0.900 (0.900 to 0.900) | 0.100 (0.100 to 0.100) |  |  |  | 0.50 | 0.10 |" in tables(figures)
    assert "| random |" in table(figures["part"])
    assert "| random |" not in table(figures["every"])


def test_a_second_start_goes_on_where_the_first_ended(tmp_path, monkeypatch):
    asked = []

    def record(_engine, _model, _processor, case, _sanity, _names):
        asked.append(case.name)
        return {"case": case.name, "world": case.world, "left_out": "a test"}

    monkeypatch.setattr(benchmark, "record", record)
    monkeypatch.setattr(benchmark, "tables", str)
    command = [
        "faithfulness",
        "--folder",
        str(EXAMPLES),
        "--records",
        str(tmp_path / "r"),
        "--json",
        str(tmp_path / "j"),
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--seconds", "0"])
    benchmark.main()
    assert asked == []
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    benchmark.main()
    assert len(asked) == len(set(asked)) > 3
    assert json.loads((tmp_path / "j").read_text())["left_out"] == {"a test": len(asked)}


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
