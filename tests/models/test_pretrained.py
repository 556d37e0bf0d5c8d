"""Loading and saving with the options of transformers, and what every model class has."""

import shutil

import pytest
import torch
from reference import assert_equal, image_prompt, pixels, reference_config
from torch import nn
from transformers import Gemma3ForCausalLM as ReferenceCausalLM
from transformers import Gemma3ForConditionalGeneration as ReferenceModel
from transformers import Gemma3Model as ReferenceBase
from transformers import Gemma3TextModel as ReferenceTextModel

from gemma3_core.errors import CheckpointError, ConfigError, UnsupportedOptionError
from gemma3_core.files import hub
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Gemma3Model
from gemma3_core.models.pretrained import pick_device
from gemma3_core.models.text import Gemma3ForCausalLM, Gemma3TextModel

CLASSES = [
    (Gemma3ForConditionalGeneration, ReferenceModel, True),
    (Gemma3Model, ReferenceBase, True),
    (Gemma3ForCausalLM, ReferenceCausalLM, False),
    (Gemma3TextModel, ReferenceTextModel, False),
]
BY_CLASS = pytest.mark.parametrize(("own", "other", "sees"), CLASSES, ids=lambda value: getattr(value, "__name__", ""))


def result(model: nn.Module, sees: bool) -> torch.Tensor:
    ids, types = image_prompt("t9 i t5" if sees else "t30")
    given = {"token_type_ids": types, "pixel_values": pixels(1)} if sees else {}
    with torch.no_grad():
        return model(input_ids=ids, **given)[0]


@BY_CLASS
def test_what_each_class_saves_loads_in_transformers_and_back(own, other, sees, request, tmp_path):
    source = request.getfixturevalue("reference_folder" if sees else "reference_text_folder")
    mine = own.from_pretrained(source)
    mine.save_pretrained(tmp_path / "ours")
    theirs, info = other.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    expected = result(mine, sees)
    assert_equal(result(theirs.eval(), sees), expected)
    theirs.save_pretrained(tmp_path / "theirs")
    assert {p.name for p in (tmp_path / "ours").iterdir()} == {p.name for p in (tmp_path / "theirs").iterdir()}
    assert torch.equal(result(own.from_pretrained(tmp_path / "theirs"), sees), expected)


def test_a_body_saved_alone_serves_the_class_with_a_head(reference_text_folder, tmp_path):
    """The head is tied to the embedding, so nothing is missing."""
    Gemma3TextModel.from_pretrained(reference_text_folder).save_pretrained(tmp_path)
    expected = result(Gemma3ForCausalLM.from_pretrained(reference_text_folder), False)
    assert torch.equal(result(Gemma3ForCausalLM.from_pretrained(tmp_path), False), expected)
    assert_equal(result(ReferenceCausalLM.from_pretrained(tmp_path).eval(), False), expected)


@BY_CLASS
def test_what_every_class_has(own, other, sees, request):
    source = request.getfixturevalue("reference_folder" if sees else "reference_text_folder")
    mine, theirs = own.from_pretrained(source, device_map="cpu"), other.from_pretrained(source)
    for options in ({}, {"only_trainable": True}, {"exclude_embeddings": True}):
        assert mine.num_parameters(**options) == theirs.num_parameters(**options), options
    mine.requires_grad_(False)
    assert mine.num_parameters(only_trainable=True) == 0
    assert torch.equal(mine.get_input_embeddings().weight, theirs.get_input_embeddings().weight)
    assert (mine.get_output_embeddings() is None) is (theirs.get_output_embeddings() is None)
    assert mine.can_generate() is theirs.can_generate()
    assert mine.get_memory_footprint() == mine.get_memory_footprint(False) == theirs.get_memory_footprint(False)
    assert mine.resize_token_embeddings() is mine.get_input_embeddings()
    with pytest.raises(UnsupportedOptionError, match="push_to_hub"):
        mine.push_to_hub()
    assert (mine.device, mine.dtype) == (theirs.device, theirs.dtype) == (torch.device("cpu"), torch.float32)
    assert not mine.training
    assert mine.train().training
    assert not mine.eval().training
    assert mine.name_or_path == theirs.name_or_path == str(source)
    assert own(mine.config).name_or_path == ""


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, torch.device("cpu"), None], ids=str)
def test_devices_of_every_form(reference_text_folder, device_map):
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder, device_map=device_map)
    assert model.device.type == ("cpu" if device_map != "auto" else pick_device("auto").type)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device_map": {"model.layers.0": "cpu", "lm_head": "cpu"}}, ["model.layers.0, lm_head", "one device"]),
        ({"device_map": "balanced"}, ["balanced", "auto"]),
        ({"device_map": 3.5}, ["3.5"]),
        ({"attn_implementation": "flash_attention_2"}, ["flash_attention_2", "sdpa"]),
        ({"dtype": "float32", "torch_dtype": "bfloat16"}, ["float32", "bfloat16"]),
        ({"dtype": "float16"}, ["float16"]),
        ({"shiny": 1, "max_memory": {0: "1GB"}}, ["max_memory, shiny"]),
        ({"use_safetensors": False}, ["use_safetensors"]),
        ({"ignore_mismatched_sizes": True}, ["ignore_mismatched_sizes"]),
        ({"quantization_config": "int4"}, ["TorchAoConfig", "str"]),
    ],
    ids=str,
)
def test_options_of_loading_that_are_not_supported_are_named(reference_text_folder, options, words):
    with pytest.raises(UnsupportedOptionError) as error:
        Gemma3ForCausalLM.from_pretrained(reference_text_folder, **options)
    assert all(word in str(error.value) for word in words), error.value


def test_options_that_change_nothing_are_taken(reference_text_folder, tmp_path):
    options = {"low_cpu_mem_usage": True, "use_safetensors": True, "trust_remote_code": False, "variant": None}
    options |= {"attn_implementation": None, "torch_dtype": "bfloat16", "subfolder": "", "max_memory": None}
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder, **options)
    assert model.dtype == torch.bfloat16
    model.save_pretrained(tmp_path, safe_serialization=True, push_to_hub=False)
    assert ReferenceCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    with pytest.raises(UnsupportedOptionError, match="state_dict, variant"):
        model.save_pretrained(tmp_path, variant="fp16", state_dict={})


def test_attention_is_chosen_when_loading(reference_text_folder):
    models = [
        Gemma3ForCausalLM.from_pretrained(reference_text_folder, attn_implementation=n) for n in ("sdpa", "eager")
    ]
    assert [model.model.eager for model in models] == [False, True]
    assert_equal(result(models[0], False), result(models[1], False))


def test_a_changed_config_may_stand_in(reference_text_folder):
    config = Gemma3ForCausalLM.from_pretrained(reference_text_folder).config
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder, config=config.replace(sliding_window=3))
    assert model.config.sliding_window == 3
    assert not torch.equal(
        result(model, False), result(Gemma3ForCausalLM.from_pretrained(reference_text_folder), False)
    )
    with pytest.raises(ConfigError, match="Gemma3TextConfig"):
        Gemma3ForCausalLM.from_pretrained(reference_text_folder, config=reference_config())


def test_where_downloads_lie_is_passed_on(monkeypatch, reference_text_folder, tmp_path):
    import huggingface_hub

    asked = {}

    def record(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(shutil.copytree(reference_text_folder, tmp_path / "got", dirs_exist_ok=True))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    options = {"cache_dir": tmp_path, "local_files_only": True, "force_download": True, "revision": "v2"}
    Gemma3ForCausalLM.from_pretrained("some/model", **options)
    assert {name: asked[name] for name in options} == options
    hub.resolve_folder("some/model")
    assert asked["revision"] is None


@pytest.mark.parametrize("source", [None, 5, "", " "])
def test_what_names_no_checkpoint_is_told_so(source):
    with pytest.raises(CheckpointError, match="a folder or a Hub id"):
        Gemma3ForCausalLM.from_pretrained(source)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("device", ["cuda", 0, "cuda:3"])
def test_a_device_that_is_not_there_is_told_so(device, reference_text_folder):
    with pytest.raises(UnsupportedOptionError, match="this machine has 0"):
        Gemma3ForCausalLM.from_pretrained(reference_text_folder, device_map=device)


def test_attention_is_switched_by_transformers_name_too(reference_text_folder):
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    model.set_attn_implementation("eager")
    assert model.eager
    with pytest.raises(UnsupportedOptionError, match="flash"):
        model.set_attn_implementation("flash_attention_2")
