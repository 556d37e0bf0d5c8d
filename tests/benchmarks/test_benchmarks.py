"""The benchmarks run, on shapes small enough for a test, and compare what they say they compare."""

import os
import sys
import time
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from places import DEMO_MODEL, REPOSITORY
from warm import ran

from benchmarks import __main__ as main
from benchmarks import (
    attention,
    attention_memory,
    chart,
    decode_profile,
    language_model,
    limits,
    llama_cpp,
    loading,
    mask_view,
    newcomer,
    next_question,
    table,
    timing,
    vision_language,
)
from benchmarks.limits import Limits
from benchmarks.random_gguf import write_q4_0
from benchmarks.timing import in_turns
from gemma3_core.config.gemma3 import Gemma3Config, Gemma3TextConfig, read_config
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
    wide = {name: value.float() if value.is_floating_point() else value for name, value in prompt.items()}
    a, b = (deepcopy(model).float()(**wide).logits for model in (ours, theirs))
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    a = ours(**prompt).logits.float()
    assert theirs.lm_head.weight.data_ptr() == ours.lm_head.weight.data_ptr()
    language_model.quantize_reference(theirs)
    int4_model = quantized(ours, TorchAoConfig(128))
    own, other = ((model(**prompt).logits.float() - a).square().mean() for model in (int4_model, theirs))
    assert 0 < own < 1.3 * other
    assert isinstance(int4_model.lm_head, Int4Linear)
    assert vision_language.decoded_bytes(int4_model) < 0.4 * vision_language.decoded_bytes(ours)


def test_a_row_tells_medians_their_spread_and_how_many_times_better_ours_is():
    figures = {"ours": [4.0, 2.0, 3.0], "transformers": [1.0, 2.0, 1.5], "llama.cpp": [6.0]}
    faster = table.table_row(table.SPEED, figures, share=0.5)
    assert (faster["ours"], faster["spread"]["ours"], faster["ratio"]) == (3.0, [2.0, 4.0], 2.0)
    assert table.table_row(table.SECONDS, figures)["ratios"] == {"transformers": 0.5, "llama.cpp": 2.0}
    text = table.lines([("decode", faster)])
    assert text[-1] == "| decode | 3.0 tokens/s (2.0 to 4.0) | 50% | 2.00 |  | 0.50 |"
    assert text[0].count("|") == text[-1].count("|")


def test_seconds_that_an_action_tells_itself_count_instead():
    assert timing.times_in_turns({"a": lambda: 7.0}, rounds=2) == {"a": [7.0, 7.0]}


def test_decode_is_what_comes_behind_the_first_token():
    """5 tokens in 2.5 s of which the first took 0.5; noise may leave a round without a time, or a program without."""
    whole = {"ours": [2.5, 0.4], "transformers": [8.5, 4.5], "static": [0.4, 0.5]}
    first = {who: [0.5, 0.5] for who in whole}
    rates = vision_language._decode_rates(whole, first, new_tokens=5)
    assert rates == {"ours": [2.0], "transformers": [0.5, 1.0]}
    assert vision_language._decode_rates({"ours": [0.4]}, {"ours": [0.5]}, new_tokens=5) == {}


LIMITS = Limits(bytes_per_s=1e9, operations_per_s=1e9)


@pytest.fixture
def own_time(monkeypatch):
    """What is timed counts in this process's own time: beside other test processes one round tells nothing."""
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=time.process_time))


@pytest.mark.usefixtures("own_time")
def test_the_picture_benchmark_has_every_part(config: Gemma3Config, monkeypatch):
    monkeypatch.setattr(vision_language, "IN_SLOTS", (1, 3))
    text = config.text_config
    config = replace(config, text_config=replace(text, num_hidden_layers=2, layer_types=text.layer_types[4:6]))
    report = vision_language.measure(config, "cpu", LIMITS, (40,), new_tokens=6, rounds=1)["float32"]
    in_slots = {f"{kind} in slots" for kind in ("decode", "sampled decode")}
    in_slots |= {f"{kind}, 3 rows in slots" for kind in ("decode", "sampled decode")}
    pictures = {"picture to first token", "picture with 4 crops to first token", "second turn"}
    assert set(report) - {"decode"} == {"prefill of 40", *pictures, *in_slots}
    assert all(set(report[name]["ratios"]) == {"transformers"} for name in pictures)
    assert report["second turn"]["ratio"] > report["picture to first token"]["ratio"]  # the picture is not read again
    assert report["prefill of 40"]["share"] > 0


SMALL = {
    "vocab_size": 640,
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "sliding_window_pattern": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "sliding_window": 64,
    "max_position_embeddings": 1024,
}


def test_the_language_benchmark_compares_the_same_tokens_in_every_way(monkeypatch):
    """With a step that is traced but not compiled, which takes a minute."""
    written: list[list[int]] = []
    max_of = torch.Tensor.argmax

    def noted(*given, **more):
        found = max_of(*given, **more)
        if more == {"keepdim": True}:  # in transformers' greedy answers
            written.append(found.tolist())
        return found

    monkeypatch.setattr(torch.Tensor, "argmax", noted)
    config = Gemma3TextConfig.from_dict(SMALL)
    report = language_model.compare(torch.float32, (32,), 3, 1, False, config, (2,), "eager", LIMITS)
    assert report["logits_differ_by"] < 1e-5
    parts = {"decode, 2 rows", "sampled decode, 2 rows"}
    assert set(report) == {"dtype", "logits_differ_by", "prefill of 32", *parts}
    assert all(set(report[part]["ratios"]) == {"transformers", "static"} for part in parts)
    # In each of two rounds three tokens of either way; the second goes on where the first ended.
    assert len(written) == 12
    assert [written[0:3], written[6:9]] == [written[3:6], written[9:12]]
    assert len({str(tokens) for tokens in written}) > 1


def test_a_random_gguf_file_is_the_model_in_q4_0(tmp_path):
    model = language_model.random_model(Gemma3TextConfig.from_dict(SMALL), torch.float32)
    write_q4_0(model, tmp_path / "q4_0.gguf")
    ours = llama_cpp.OurFile(tmp_path / "q4_0.gguf", "float32").model
    ids = torch.arange(300, 320)[None]
    exact, rounded = (one(input_ids=ids).logits for one in (model, ours))
    assert 0 < (exact - rounded).abs().max() < 0.5 * exact.abs().max()
    assert isinstance(ours.lm_head, Int4Linear)
    assert llama_cpp.count_layer_weights(model.config) == sum(p.numel() for p in model.decoder.layers.parameters())


def test_loading_is_measured_in_a_process_of_its_own(tmp_path, monkeypatch):
    """Forked from one that has imported torch, which is not part of what is measured."""

    def run(command, **_):
        python, option, module, *arguments = command
        assert (python, option) == (sys.executable, "-m")
        file = REPOSITORY / f"{module.replace('.', '/')}.py"
        status, output, errors = ran(file, arguments, os.environ, said)
        return SimpleNamespace(returncode=status, stdout=output, stderr=errors)

    said = tmp_path / "said"
    said.mkdir()
    monkeypatch.setattr(loading, "subprocess", SimpleNamespace(run=run))
    language_model.random_model(Gemma3TextConfig.from_dict(SMALL), torch.bfloat16).save_pretrained(tmp_path)
    told = loading._in_own_process(loading.OURS, tmp_path, 8, 2)
    assert 0 < told["load_s"] < 30
    assert 0.1 < told["peak_gib"] < 2
    found = iter([{"load_s": 9.0, "peak_gib": 9.0}] * 2 + [told, {"load_s": 2 * told["load_s"], "peak_gib": 1.0}])
    monkeypatch.setattr(loading, "_in_own_process", lambda *_: next(found))
    ways = {"ours": (loading.OURS, tmp_path), "transformers": (loading.TRANSFORMERS, tmp_path)}
    figures = loading.measure(ways, rounds=1)  # after one that does not count
    assert figures["loading"]["ratio"] == 2.0
    assert figures["peak memory"]["transformers"] == 1.0


def test_the_table_has_the_rows_of_every_shape():
    decode = table.table_row(table.SPEED, {"ours": [1.0]})
    report = {"1b": [{"dtype": "int4", "logits_differ_by": 0.1, "decode": decode}], "4b": {"int4": {"decode": decode}}}
    names = [name for name, _ in main.rows({**report, "pictures": {"float32": {"second turn": decode}}})]
    assert names == ["1B, int4: decode", "demo model's shape, float32: second turn", "4B, int4: decode"]


def test_the_limits_are_those_of_the_machine():
    found = limits.measure(torch.device("cpu"), 2**24, 256)
    assert 1e8 < found.bytes_per_s < 1e13
    assert 1e8 < found.operations_per_s < 1e15
    assert LIMITS.share_of_bytes(5e8, 2.0) == 0.25
    shared = torch.ones(10)
    assert limits.bytes_of([shared, shared.view(2, 5), torch.ones(3)]) == 52


def test_a_further_question_is_answered_sooner():
    figures = next_question.measure(rounds=1)
    assert 0 < figures["reused_tokens"] < figures["prompt_tokens"]
    assert figures["ratio"] > 1


def test_a_newcomers_wait_is_measured_beside_answers_that_go_on():
    figures = newcomer.measure(rounds=1, running=2)
    assert 0 < figures["alone_s"] < 60
    assert figures["times_alone"] == pytest.approx(figures["beside_s"] / figures["alone_s"], rel=0.01)  # all rounded


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
    attention, why = figures["attention"], figures["why"]
    assert 0.5 < attention["allocated_mb"] < 60  # tiles are decoded elsewhere and encoded one by one
    rows = 32 * 8 * figures["tokens"] * 2 + 262_208 * 2
    assert attention["further_layers_mb"] == round(rows / 1e6, 1)
    # Of 34 narrow layers, each of the 64 rows at most fits into one batch.
    a_token = 2 * 4 * 16 * 2
    assert why["rows_at_a_time"] == 400_000_000 // (figures["tokens"] * 34 * a_token + 4 * 8 * figures["tokens"])
    assert why["allocated_mb"] > attention["allocated_mb"]
    caches = (1 + why["rows_at_a_time"]) * 32 * figures["tokens"] * a_token
    assert why["further_layers_mb"] == pytest.approx((caches + rows) / 1e6, rel=0.01)


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("precision", decode_profile.PRECISIONS)
def test_a_profile_of_decoding_tells_layers_and_head_apart(precision: str):
    shape = {**language_model.SHAPE, "num_hidden_layers": 2, "vocab_size": 4096, "intermediate_size": 512}
    config = Gemma3TextConfig.from_dict(shape)
    parts = decode_profile.profile(precision, 2, 2, LIMITS, config)
    assert all(part["time"] > 0 and part["limit"] > 0 for part in parts.values())
    assert sum(part["time"] for part in parts.values()) <= 1


def test_the_chart_shows_the_results_that_are_committed(tmp_path):
    """Drawn anew with `python -m benchmarks.chart` whenever they are measured."""
    results = chart.committed()
    assert [row["dtype"] for row in results] == ["float32", "bfloat16", "int4, bfloat16"]
    chart.draw(results, tmp_path / "drawn.svg")
    for drawn in (tmp_path / "drawn.svg", chart.CHART):
        text = drawn.read_text(encoding="utf-8")
        for values in chart.ratios(results).values():
            assert all(f">{value:.2f}<" in text for value in values)


def test_llama_cpp_is_asked_for_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(sys, "argv", ["llama_cpp.py", "x.gguf"])
    with pytest.raises(SystemExit, match=r"^llama\.cpp is not here: pip install llama-cpp-python builds it\.$"):
        llama_cpp.main()
