"""The benchmarks run, on shapes small enough for a test, and compare what they say they compare."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from places import DEMO_MODEL, REPOSITORY

from benchmarks import attention, attention_memory, chart, language_model, mask_view, next_question, vision_language
from benchmarks.timing import in_turns
from gemma3_core.config.gemma3 import Gemma3Config, read_config
from gemma3_core.engine import AttentionMap, Box, Engine, TileMap
from gemma3_core.inspection.prompt import Tile
from gemma3_core.int4.linear import Int4Linear
from gemma3_core.int4.quantize import TorchAoConfig, quantized


@pytest.fixture(scope="module")
def config() -> Gemma3Config:
    config = read_config(DEMO_MODEL)
    assert isinstance(config, Gemma3Config)
    return config


def test_actions_take_turns():
    done: list[str] = []
    seconds = in_turns({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, rounds=2)
    assert done == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_both_sides_of_the_picture_benchmark_compute_the_same(config: Gemma3Config):
    ours = vision_language.random_model(config, torch.device("cpu"))
    theirs = vision_language.reference_model(ours)
    prompt = vision_language._picture_prompt(ours)
    a, b = (model(**prompt).logits.float() for model in (ours, theirs))
    assert (a - b).abs().max() <= 0.02 * b.abs().max()
    assert theirs.lm_head.weight.data_ptr() == ours.lm_head.weight.data_ptr()
    language_model.quantize_reference(theirs)
    int4_model = quantized(ours, TorchAoConfig(128))
    own, other = ((model(**prompt).logits.float() - a).square().mean() for model in (int4_model, theirs))
    assert 0 < own < 1.3 * other
    assert isinstance(int4_model.lm_head, Int4Linear)
    assert vision_language.decoded_bytes(int4_model) < 0.4 * vision_language.decoded_bytes(ours)


def test_the_picture_benchmark_tells_tokens_a_second_and_seconds():
    """Of 40 tokens read and 5 written; reading alone takes half a second of ours, all of it two more."""
    ours = {"first/ours": 0.5, "all/ours": 2.5, "picture/ours": 0.25}
    default = {"first/default": 1.0, "all/default": 9.0, "picture/default": 0.75}
    static = {"first/static": 1.0, "all/static": 0.9, "picture/static": 0.5}  # noise: all of it sooner than its start
    figures = vision_language._figures({**ours, **default, **static}, prompt_tokens=40, new_tokens=5, floor=0.1)
    assert figures == {
        "prefill": {"ours": 80.0, "default": 40.0, "static": 40.0},
        "decode": {"ours": 2.0, "default": 0.5, "static": None},
        "picture_to_first_token_s": {"ours": 0.25, "default": 0.75, "static": 0.5},
        "share_of_bandwidth": {"ours": 0.2, "default": 0.05, "static": None},
    }


def test_the_picture_benchmark_runs_each_way_in_each_precision(config: Gemma3Config, monkeypatch):
    """Each action once; not the static cache, whose decode step takes a minute to compile."""
    asked: list[set[str]] = []

    def each_once(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
        assert rounds == 3
        asked.append(set(actions))
        for name, action in actions.items():
            if not name.endswith("/static"):
                action()
        return dict.fromkeys(actions, 1.0)

    monkeypatch.setattr(vision_language, "in_turns", each_once)
    report = vision_language.measure(config, "cpu", prompt_tokens=40, new_tokens=4, rounds=3)
    every = {f"{part}/{way}" for part in ("first", "all", "picture") for way in ("ours", "default", "static")}
    assert asked == [every, *[{"slots"}] * 3] * 2
    assert {f"decode_in_slots_{rows}" for rows in (1, 8, 32)} <= set(report["bfloat16"]) & set(report["int4"])
    assert set(report) == {"copy_gb_per_s", "bfloat16", "int4"}
    assert report["copy_gb_per_s"] > 0


def test_a_further_question_is_answered_sooner():
    figures = next_question.measure(rounds=2)
    assert 0 < figures["reused_tokens"] < figures["prompt_tokens"]
    assert figures["ratio"] > 1


def test_attention_in_a_box_counts_cells_by_the_part_that_it_covers():
    tile = Tile(picture=0, crop=None, box=Box(0, 0, 40, 20), start=0, stop=4)
    seen = AttentionMap("global", (0,), None, (TileMap(tile, ((0.1, 0.2), (0.3, 0.4))),), ())
    assert attention.share_in(seen, Box(0, 0, 40, 20)) == pytest.approx(1.0)
    assert attention.share_in(seen, Box(20, 10, 40, 20)) == pytest.approx(0.4)
    assert attention.share_in(seen, Box(10, 0, 30, 10)) == pytest.approx(0.15)


def test_the_demo_model_looks_at_what_it_is_asked_about():
    engine = Engine.load(device="cpu")
    findings = [found for case in attention.cases(6) if (found := attention.find(engine, case, ["global", 0]))]
    figures = attention.report(findings)
    assert figures["layers"]["global"]["times_its_area_median"] > 4
    assert figures["layers"]["0"]["share_on_object"] < figures["layers"]["global"]["share_on_object"]
    assert figures["probability_without_asked"] < figures["probability_without_other"] - 0.2
    assert f"{figures['layers']['global']['share_on_object']:.1%}" in attention.table(figures)


def test_the_mask_benchmark_measures_the_page_that_it_is_given():
    shown: list[str] = []
    figures = mask_view.measure(700, 2, 3, lambda html: shown.append(html) or [40.0, 20.0])
    assert 690 <= figures.tokens <= 700
    assert (figures.painted_s, figures.redrawn_s, figures.html_bytes) == (0.04, 0.02, len(shown[0].encode()))
    assert figures.total_s == figures.engine_s + figures.html_s + 0.04
    assert shown[0].count("picture 2") == 1


def test_the_memory_benchmark_counts_what_is_allocated_at_the_peak(tmp_path):
    def work() -> None:
        first = torch.ones(1_000_000)
        second = first + 1
        del first
        second.sum()

    assert 8_000_000 <= attention_memory.peak_allocated(work) < 8_100_000
    text = {**attention_memory.TEXT_4B, "hidden_size": 64, "intermediate_size": 256, "head_dim": 16}
    vision = {**attention_memory.VISION_4B, "hidden_size": 32, "intermediate_size": 64, "image_size": 224}
    attention_memory.write_checkpoint(tmp_path, text, vision, soft_tokens=16)
    figures = attention_memory.measure(tmp_path, (1200, 300), device="cpu")
    assert figures["crops"] == 4
    assert figures["tokens"] > 5 * 16
    assert 0.5 < figures["allocated_mb"] < 60  # tiles are decoded elsewhere and encoded one by one
    rows = 32 * 8 * figures["tokens"] * 2 + 262_208 * 2
    assert figures["further_layers_mb"] == round(rows / 1e6, 1)


def test_the_chart_shows_the_results_that_are_committed(tmp_path):
    """Drawn anew with `python -m benchmarks.chart` whenever they are measured."""
    results = json.loads((chart.RESULTS / "cpu.json").read_text(encoding="utf-8"))["1b"]
    chart.draw(results, tmp_path / "drawn.svg")
    for drawn in (tmp_path / "drawn.svg", chart.CHART):
        text = drawn.read_text(encoding="utf-8")
        for values in chart.ratios(results).values():
            assert all(f">{value:.2f}<" in text for value in values)


def test_llama_cpp_is_asked_for_in_a_sentence():
    program = "import sys; sys.modules['llama_cpp'] = None; from benchmarks.llama_cpp import main; main()"
    command = [sys.executable, "-c", program, "x.gguf"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "llama.cpp is not here: pip install llama-cpp-python builds it.\n")
