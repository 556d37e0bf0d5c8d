"""adapter_config.json and adapter_model.safetensors: what is read, and what is refused and how."""

import json
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gemma3_core.adapters.config import base_of, read_adapter_config, shown_source
from gemma3_core.adapters.files import read_adapter
from gemma3_core.errors import CheckpointError, Gemma3Error, UnsupportedOptionError

QUERY = "base_model.model.model.layers.0.self_attn.q_proj"
PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}


def write(folder: Path, config: dict | None = None, **tensors: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **(config or {})}))
    pair = {f"{QUERY}.lora_A.weight": torch.ones(2, 4), f"{QUERY}.lora_B.weight": torch.ones(4, 2)}
    save_file(pair | tensors, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_is_its_config_and_its_factors(tmp_path):
    adapter = read_adapter(write(tmp_path / "mine", {"base_model_name_or_path": "google/gemma-3-4b-it"}))
    assert adapter.name == "mine"
    assert set(adapter.factors) == {"model.layers.0.self_attn.q_proj"}
    assert (adapter.config.base, adapter.whole, adapter.hub_id) == ("google/gemma-3-4b-it", {}, "")
    other = read_adapter(write(tmp_path / "other", **{f"{QUERY}.lora_A.weight": torch.zeros(2, 4)}))
    assert adapter.revision != other.revision


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True), ("use_qalora", True), ("use_bdlora", {"nblocks": 2}), ("layer_replication", [[0, 2]]),
        ("trainable_token_indices", [1]), ("alora_invocation_tokens", [1, 2]), ("ensure_weight_tying", True),
        ("arrow_config", {"top_k": 1}), ("kasa_config", {"a": 1}), ("monteclora_config", {"a": 1}),
        ("megatron_config", {"a": 1}), ("velora_config", {"a": 1}), ("something_new", 3),
    ],
)  # fmt: skip
def test_what_changes_the_numbers_and_is_not_computed_is_refused_by_name(field, value, tmp_path):
    with pytest.raises(UnsupportedOptionError, match=f"asks for '{field}', which is not supported"):
        read_adapter(write(tmp_path, {field: value}))
    read_adapter(write(tmp_path, {field: None}))


@pytest.mark.parametrize("begun", ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga"])
def test_a_beginning_that_changes_the_base_is_refused(begun, tmp_path):
    with pytest.raises(UnsupportedOptionError, match=rf"init_lora_weights='{begun}'.*path_initial_model"):
        read_adapter(write(tmp_path, {"init_lora_weights": begun}))


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "PROMPT_TUNING", None, 3, ["LORA"]])
def test_an_adapter_that_is_not_lora_is_named(kind, tmp_path):
    with pytest.raises(UnsupportedOptionError, match=r"the adapter is .*; only LORA is supported"):
        read_adapter(write(tmp_path, {"peft_type": kind}))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("r", 0, "a whole number of 1 or more, got 0"), ("r", "8", "a whole number"), ("r", True, "a whole number"),
        ("r", 2.5, "a whole number"), ("lora_alpha", "a", "a finite number"), ("lora_alpha", None, "a finite number"),
        ("lora_alpha", float("nan"), "a finite number"), ("lora_alpha", 10**400, "a finite number"),
        ("rank_pattern", ["a"], "an object"), ("rank_pattern", {"a": -1}, "a whole number"),
        ("rank_pattern", {"(": 1}, "a regular expression"), ("alpha_pattern", {"a": "b"}, "a finite number"),
        ("target_modules", 3, "a list of names"), ("target_modules", [3], "a list of names"),
        ("target_modules", "(", "a regular expression"), ("exclude_modules", {"a": 1}, "a list of names"),
        ("modules_to_save", "lm_head", "a list of names"), ("target_parameters", "a", "a list of names"),
        ("use_rslora", "yes", "true or false"), ("base_model_name_or_path", 3, "a text"), ("revision", [1], "a text"),
        ("r", "x" * 10_000, "a whole number"),
    ],
)  # fmt: skip
def test_values_of_a_wrong_type_are_named(field, value, expected, tmp_path):
    with pytest.raises(CheckpointError) as error:
        read_adapter(write(tmp_path, {field: value}))
    assert f"{field} must be {expected}" in str(error.value)
    assert len(str(error.value)) < 200


UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|out_proj|fc1|fc2).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
    r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:q_proj|k_proj|v_proj|o_proj)))"
)
PEFT = (r".*language_model.*\.(q_proj|up_proj)", r"^(?!.*vision).*\.(?:k|v)_proj$", r"model\.layers\.\d+\.mlp\..*")


def test_the_patterns_that_peft_and_unsloth_write_are_read(tmp_path):
    for pattern in (UNSLOTH, *PEFT):
        config = read_adapter_config(write(tmp_path, {"target_modules": pattern}))
        assert not config.has_target("model.norm")
    keys = {r"model\.layers\.(0|1|10)\.self_attn\..*": 8, "q_proj": 4, r"layers\.\d+\.mlp\.(gate|up)_proj": 16}
    config = read_adapter_config(write(tmp_path, {"rank_pattern": keys}))
    assert config.rank("model.language_model.layers.10.mlp.up_proj") == 16
    config = read_adapter_config(write(tmp_path, {"target_modules": UNSLOTH}))
    assert config.has_target("model.language_model.layers.0.self_attn.q_proj")


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(.*)*x", r"(\w|\w\w)*x", ".*.*.*.*.*.*.*x", "(.|.)" * 40 + "x", ".?" * 60 + "x", "(?:.?){60}x",
        "(?:m|mo|mod)" * 30, "a" * 2001, "(?=(.*)*x)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("field", ["target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"])
def test_patterns_that_may_take_very_long_are_refused(pattern, field, tmp_path):
    with pytest.raises(CheckpointError, match=f"{field} has a regular expression that may take very long"):
        read_adapter(write(tmp_path, {field: {pattern: 2} if field.endswith("pattern") else pattern}))


def test_what_is_let_through_takes_a_bounded_time(tmp_path):
    config = read_adapter_config(write(tmp_path, {"target_modules": ".*.*.*.*x"}))
    began = time.thread_time()
    assert not config.has_target("model.vision_tower.vision_model.encoder.layers.10.self_attn.q_proj")
    assert time.thread_time() - began < 5


def test_folders_that_are_no_adapter(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no adapter_config.json, so it is no adapter"):
        read_adapter(tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json is a file"):
        read_adapter(write(tmp_path / "a") / "adapter_config.json")
    with pytest.raises(CheckpointError, match=r"neither a folder on this machine nor a Hub id"):
        read_adapter("/no/such/place")
    with pytest.raises(CheckpointError, match="An adapter is a folder or a Hub id"):
        read_adapter(" ")
    with pytest.raises(UnsupportedOptionError, match="no option mmproj"):
        read_adapter(tmp_path / "a", mmproj="x")
    (tmp_path / "a" / "adapter_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        read_adapter(tmp_path / "a")


def test_pickled_weights_are_not_read(tmp_path):
    write(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled adapter_model.bin.*not read.*save it again"):
        read_adapter(tmp_path / "a")
    (tmp_path / "a" / "adapter_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter_model.safetensors"):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_named(bad, tmp_path):
    name = f"{QUERY}.lora_B.weight"
    with pytest.raises(CheckpointError, match=r"q_proj.lora_B.weight holds NaN or infinity"):
        read_adapter(write(tmp_path, **{name: torch.full((4, 2), bad)}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_tensors_that_are_no_floats_are_named(dtype, tmp_path):
    with pytest.raises(CheckpointError, match=r"lora_A.weight is stored as \w+, expected a float type"):
        read_adapter(write(tmp_path, **{f"{QUERY}.lora_A.weight": torch.ones(2, 4).to(dtype)}))


@pytest.mark.parametrize(
    ("name", "variant"),
    [("lora_magnitude_vector", "DoRA"), ("token_adapter.trainable_tokens_delta", "trainable_token_indices")],
)
def test_tensors_of_variants_are_refused_whatever_the_config_says(name, variant, tmp_path):
    with pytest.raises(UnsupportedOptionError, match=f"a tensor of {variant}"):
        read_adapter(write(tmp_path, **{f"{QUERY}.{name}": torch.ones(4)}))


def test_damaged_files(tmp_path):
    path = write(tmp_path / "a") / "adapter_model.safetensors"
    whole = path.read_bytes()
    hostile = json.dumps(
        {"x.lora_A.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 16]}}
    ).encode()
    for data in (
        b"", whole[:7], whole[:-1], whole[: len(whole) // 2], b"\xff" * 64, struct.pack("<Q", 2**63) + whole[8:],
        struct.pack("<Q", len(hostile)) + hostile + b"\0" * 16, whole + b"\0",
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"adapter_model.safetensors is damaged or cut off"):
            read_adapter(tmp_path / "a")
    save_file({}, path)
    with pytest.raises(CheckpointError, match="holds no tensors"):
        read_adapter(tmp_path / "a")


def test_a_base_is_shown_without_its_path(tmp_path):
    assert shown_source("google/gemma-3-4b-it") == "google/gemma-3-4b-it"
    assert shown_source("/home/me/models/gemma") == "gemma"
    folder = write(tmp_path / "a", {"base_model_name_or_path": "google/gemma-3-4b-it", "revision": "abc"})
    base = base_of(folder)
    assert base is not None
    assert (base.source, base.hub_options({"revision": "of the adapter", "token": "t"})) == (
        "google/gemma-3-4b-it", {"revision": "abc", "token": "t"},
    )  # fmt: skip
    (folder / "config.json").write_text("{}")
    assert base_of(folder) is None  # a checkpoint with an adapter beside it
    assert base_of(tmp_path) is None


def error_of(folder: Path) -> Gemma3Error | None:
    try:
        read_adapter_config(folder)
    except Gemma3Error as error:
        return error
    return None


@pytest.mark.parametrize(
    "field", [*PLAIN, "rank_pattern", "alpha_pattern", "use_rslora", "modules_to_save", "init_lora_weights", "bias"]
)
def test_any_json_in_place_of_a_field_gives_an_adapter_or_two_sentences(field, tmp_path):
    values = [None, True, 0, -1, 1e308, "", "x", [], {}, [None], {"a": None}, [[1]]]
    errors = [error_of(write(tmp_path, {field: value})) for value in values]
    assert all(str(error).count(". ") <= 1 for error in errors if error is not None)
