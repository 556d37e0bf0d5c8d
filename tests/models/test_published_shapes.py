"""The published sizes, built without storage: every tensor's name and shape is transformers' own."""

import json

import pytest
import torch

from gemma3_core.config.gemma3 import Gemma3Config, Gemma3TextConfig
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.models.weights import build_on_meta, hub_name, module_name

PARAMETERS = {
    "270m": 268_098_176,
    "1b": 999_885_952,
    "4b": 4_300_079_472,
    "12b": 12_187_325_040,
    "27b": 27_432_406_640,
}


@pytest.fixture(params=PARAMETERS)
def size(request):
    return request.param


@pytest.fixture
def config_data(shared_data, size):
    return json.loads((shared_data / "configs" / f"gemma-3-{size}-it.config.json").read_text())


@pytest.fixture
def ours(config_data):
    if config_data["model_type"] == "gemma3":
        return build_on_meta(lambda: Gemma3ForConditionalGeneration(Gemma3Config.from_dict(config_data)))
    return build_on_meta(lambda: Gemma3ForCausalLM(Gemma3TextConfig.from_dict(config_data)))


@pytest.fixture
def theirs(config_data):
    import transformers

    name = config_data["architectures"][0]
    config_class = "Gemma3Config" if config_data["model_type"] == "gemma3" else "Gemma3TextConfig"
    config = getattr(transformers, config_class).from_dict(config_data)
    with torch.device("meta"):
        return getattr(transformers, name)(config)


def shapes(model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_every_tensor_has_the_name_and_shape_that_transformers_gives_it(ours, theirs, config_data):
    multimodal = config_data["model_type"] == "gemma3"
    assert shapes(ours) == {module_name(name, multimodal): shape for name, shape in shapes(theirs).items()}
    hub = {hub_name(name, multimodal): shape for name, shape in shapes(ours).items()}
    assert len(hub) == len(shapes(theirs))
    assert {module_name(name, multimodal): shape for name, shape in hub.items()} == shapes(ours)


def test_names_on_disk_are_the_hubs(ours, config_data):
    multimodal = config_data["model_type"] == "gemma3"
    names = {hub_name(name, multimodal) for name in shapes(ours)}
    if not multimodal:
        assert {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"} <= names
        assert {name.split(".")[0] for name in names} == {"model"}
        return
    assert {
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_norm.weight",
        "vision_tower.vision_model.embeddings.patch_embedding.weight",
        "vision_tower.vision_model.encoder.layers.26.mlp.fc2.bias",
        "vision_tower.vision_model.post_layernorm.weight",
        "multi_modal_projector.mm_input_projection_weight",
        "multi_modal_projector.mm_soft_emb_norm.weight",
    } <= names
    prefixes = ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector.")
    assert all(name.startswith(prefixes) for name in names)


def test_the_number_of_parameters_is_the_published_one(ours, size):
    assert sum(parameter.numel() for parameter in ours.parameters()) == PARAMETERS[size]


def test_nothing_is_stored_and_nothing_but_parameters_is_needed(ours):
    assert all(parameter.is_meta for parameter in ours.parameters())
    assert not list(ours.buffers()), "a buffer would stay without content after the weights are assigned"
