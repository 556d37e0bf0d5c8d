"""The models on a machine: found where programs put them, described from their headers, damaged ones among them."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from gguf_files import converted, rewritten
from local_hub import local_hub
from places import REPOSITORY
from plain_words import is_plain

from gemma3_core.engine import Engine, Loading, ModelEntry, ModelRegistry, find_models, free_memory, listing
from gemma3_core.engine import inventory as inventory_module
from gemma3_core.engine.inventory import usual_places
from gemma3_core.errors import CheckpointError
from gemma3_core.files.hub import resolve_folder
from gemma3_core.gguf import checkpoint

DEMO_MODEL = REPOSITORY / "assets" / "demo_model"


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """An empty cache of the Hub, and an empty home."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LLAMA_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    checkpoint._cache_folder.cache_clear()
    yield
    checkpoint._cache_folder.cache_clear()


@pytest.fixture(scope="module")
def demo_gguf(tmp_path_factory):
    """model.gguf with mmproj-model.gguf beside it."""
    return converted(DEMO_MODEL, tmp_path_factory.mktemp("gguf"), "bf16")


def found(*folders, **options):
    return {model.name: model for model in find_models(folders, device="cpu", **options)}


def test_a_checkpoint_is_described_as_it_is_once_loaded():
    model = found(DEMO_MODEL)["demo_model"]
    assert (model.kind, model.reads_pictures, model.problem) == ("safetensors, bfloat16", True, "")
    assert model.num_bytes == sum(file.stat().st_size for file in DEMO_MODEL.glob("*.safetensors"))
    assert model.ways == ("float32", "int4")  # small ones run in float32 on a CPU
    loaded = Engine.load(DEMO_MODEL, device="cpu")
    choice = loaded.info.int4
    conversation = model.needs["float32"] - choice.full_bytes
    assert model.needs["int4"] - choice.int4_bytes == conversation
    assert 0 < conversation < 10_000_000
    assert found(DEMO_MODEL, dtype="bfloat16")["demo_model"].ways[0] == "bfloat16"


def test_a_gguf_file_with_and_without_the_file_that_reads_pictures(demo_gguf, tmp_path):
    model = found(demo_gguf.parent)["model"]
    assert (model.kind, model.reads_pictures, model.note) == ("GGUF, BF16", True, "")
    assert model.num_bytes == sum(path.stat().st_size for path in demo_gguf.parent.glob("*.gguf"))
    same = found(DEMO_MODEL)["demo_model"]
    assert model.needs.keys() == same.needs.keys()
    for way, needs in model.needs.items():  # converters cut unused rows of the embedding off
        assert abs(needs / same.needs[way] - 1) < 0.01
    scaled = {"gemma3__rope__scaling__factor": 8.0}  # which tells a model that could see from the 270M and the 1B
    rewritten(demo_gguf, tmp_path / "alone.gguf", lambda _, __: "F32", **scaled)
    alone = found(tmp_path)["alone"]
    assert not alone.reads_pictures
    assert is_plain(alone.note)
    assert alone.needs["bfloat16"] < model.needs["bfloat16"]


def test_a_file_of_four_bits_runs_in_int4_as_it_is_stored(demo_gguf, tmp_path):
    rewritten(demo_gguf, tmp_path / "q4.gguf", lambda _, w: "Q4_0" if w.ndim == 2 and w.shape[-1] % 32 == 0 else "F32")
    model = found(tmp_path)["q4"]
    assert (model.kind, model.ways) == ("GGUF, Q4_0", ("int4",))


def test_damaged_ones_are_listed_and_the_others_go_on(demo_gguf, tmp_path):
    data = demo_gguf.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "whole.gguf").write_bytes(data)
    shutil.copytree(DEMO_MODEL, tmp_path / "shards")
    next((tmp_path / "shards").glob("*.safetensors")).unlink()
    shutil.copytree(DEMO_MODEL, tmp_path / "broken")
    next((tmp_path / "broken").glob("*.safetensors")).write_bytes(b"nothing")
    models = found(tmp_path)
    assert set(models) == {"cut", "empty", "whole", "shards", "broken"}
    assert models["whole"].problem == ""
    for name, words in (
        ("cut", "is cut off"), ("empty", "is damaged"), ("shards", "Missing from"), ("broken", "damaged or cut off"),
    ):  # fmt: skip
        assert words in models[name].problem
        assert not models[name].ways


def test_a_config_of_wrong_types_does_not_end_the_list(tmp_path):
    for name, content in (
        ("layers", json.dumps({"model_type": "gemma3_text", "num_hidden_layers": "26"})),
        ("kinds", json.dumps({"model_type": "gemma3_text", "layer_types": 5})),
        ("theta", json.dumps({"model_type": "gemma3_text", "rope_theta": "a"})),
        ("deep", "[" * 100_000),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
        (tmp_path / name / "model.safetensors").touch()
    shutil.copytree(DEMO_MODEL, tmp_path / "whole")
    models = found(tmp_path)
    assert set(models) == {"layers", "kinds", "theta", "deep", "whole"}
    assert [name for name, model in models.items() if not model.problem] == ["whole"]
    assert "'26'" in models["layers"].problem
    assert "config.json can't be read (RecursionError)" in models["deep"].problem


def test_models_of_other_kinds_are_no_ones_business(demo_gguf, tmp_path):
    shutil.copytree(DEMO_MODEL, tmp_path / "llama")
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    rewritten(demo_gguf, tmp_path / "llama.gguf", lambda _, __: "F32", general__architecture="llama")
    shutil.copy(demo_gguf.with_name("mmproj-model.gguf"), tmp_path / "mmproj-other.gguf")
    (tmp_path / "model-00002-of-00002.gguf").write_bytes(b"GGUF")
    assert found(tmp_path) == {}


def test_the_hubs_cache_is_looked_through(tmp_path):
    with local_hub() as hub, hub.used(tmp_path / "cache"):
        hub.add("somebody/our-gemma", DEMO_MODEL)
        resolve_folder("somebody/our-gemma")
        model = found()["our-gemma"]
    assert (model.place, model.repo_id, model.problem) == ("the Hub's cache", "somebody/our-gemma", "")
    assert Engine.load(model.source, device="cpu").info.multimodal


def test_llama_cpp_and_lm_studio_only_where_asked(demo_gguf, tmp_path):
    home = tmp_path / "home"
    places = {
        home / ".cache" / "llama.cpp": "llama.cpp",
        home / ".lmstudio" / "models" / "a" / "b": "LM Studio",
    }
    for number, folder in enumerate(places):
        folder.mkdir(parents=True)
        shutil.copy(demo_gguf, folder / f"model-{number}.gguf")
    assert found() == {}
    assert [model.place for model in found(everywhere=True).values()] == list(places.values())


@pytest.mark.parametrize(
    ("system", "environment", "place"),
    [
        ("linux", {}, ".cache/llama.cpp"), ("darwin", {}, "Library/Caches/llama.cpp"),
        ("win32", {}, "AppData/Local/llama.cpp"), ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/llama.cpp"),
        ("linux", {"LLAMA_CACHE": "/y"}, "/y"), ("win32", {"LOCALAPPDATA": "/z"}, "/z/llama.cpp"),
    ],
)  # fmt: skip
def test_the_usual_places_of_each_system(system, environment, place):
    assert usual_places(environment, system)[0] == ("llama.cpp", Path.home() / place)


def test_a_folder_that_is_not_there_and_one_that_is_very_large(tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match=r"There is no folder nowhere .* Check its place"):
        found(tmp_path / "nowhere")
    deep = tmp_path / "/".join("abcdefgh")
    deep.mkdir(parents=True)
    (deep / "model.gguf").write_bytes(b"nothing")
    assert found(tmp_path / "a") == {}
    monkeypatch.setattr(inventory_module, "_MOST_FOLDERS", 2)
    (tmp_path / "a" / "b" / "model.gguf").write_bytes(b"nothing")
    assert found(tmp_path / "a") == {}


def test_the_published_sizes_and_what_the_page_says_of_its_offers(shared_data):
    from components.models.panel import _OFFERED
    from gemma3_core.config.gemma3 import config_from
    from gemma3_core.engine import PUBLISHED, UNGATED

    data = json.loads(next((shared_data / "configs").glob("gemma-3-4b-it*config.json")).read_text())
    needs = inventory_module._memory(config_from(data), torch.device("cpu"), "auto", four_bits=False)["needs"]
    assert abs(_OFFERED[UNGATED][2] / needs["int4"] - 1) < 0.02
    assert abs(_OFFERED[PUBLISHED][2] / needs["bfloat16"] - 1) < 0.02


def test_the_list_in_the_terminal():
    text = listing(find_models([DEMO_MODEL], device="cpu"), 50_000_000)
    assert text.startswith("Gemma 3 models on this machine: 1. 50.0 MB of memory are free.\n")
    assert "Needs 60.1 MB in float32, 41.2 MB in int4." in text
    assert "more than is free" not in text
    assert "That is more than is free." in listing(find_models([DEMO_MODEL], device="cpu"), 10_000_000)
    assert listing([], None) == "Gemma 3 models on this machine: 0."
    free = free_memory("cpu")
    assert free is None or free > 0


def test_the_ungated_file_is_downloaded_loaded_in_int4_and_told_on_the_way(demo_gguf, tmp_path):
    """The registry alone, against a Hub on this machine."""
    with local_hub() as hub, hub.used(tmp_path / "cache"):
        hub.add("somebody/model-GGUF", demo_gguf.parent)
        hub.pause_s = 0.005
        models = ModelRegistry.load(None, device="cpu")
        entry = models.offer(ModelEntry("model", "somebody/model-GGUF:model.gguf", from_hub=True, int4=True))
        told: list[Loading] = []
        for _ in models.prepare(entry.name):
            told += models.loading.values()
        assert any(one.share is not None and one.text.startswith("Downloading: ") for one in told)
        assert models.info("model").quantization == "int4"
        assert models.info("model").multimodal
        assert models.in_memory == ("demo model", "model")
        assert models.makes_way() == ("model",)
        assert models.offer(ModelEntry("model", entry.source, from_hub=True, int4=True)) is models.entries[0]
        assert models.offer(ModelEntry("model", "elsewhere")).name == "model (2)"
