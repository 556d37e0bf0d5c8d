"""config.json in both spellings, in and out, against transformers' own classes."""

import json
from typing import Any

import pytest

from gemma3_core.config import (
    GLOBAL,
    LOCAL,
    Gemma3Config,
    Gemma3TextConfig,
    RopeParameters,
    SiglipVisionConfig,
    read_config,
)
from gemma3_core.errors import CheckpointError, ConfigError

PUBLISHED = ["270m", "1b", "4b", "12b", "27b"]

OLDER_SPELLING = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 5,
    "sliding_window_pattern": 3,
    "rope_theta": 500_000,
    "rope_local_base_freq": 7_000,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
}
NEWER_SPELLING = {
    "model_type": "gemma3_text",
    "num_hidden_layers": 5,
    "layer_types": [LOCAL, LOCAL, GLOBAL, LOCAL, LOCAL],
    "rope_parameters": {
        GLOBAL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 500_000},
        LOCAL: {"rope_type": "default", "rope_theta": 7_000},
    },
}
VISION = {"image_size": 896, "patch_size": 14}


def published(shared_data, size: str) -> dict[str, Any]:
    return json.loads((shared_data / "configs" / f"gemma-3-{size}-it.config.json").read_text())


def reference_of(data: dict[str, Any]):
    from transformers import Gemma3Config as ReferenceConfig
    from transformers import Gemma3TextConfig as ReferenceTextConfig

    return (ReferenceConfig if data["model_type"] == "gemma3" else ReferenceTextConfig).from_dict(data)


def facts(text: Any, rope: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """What decides a decoder's numbers, in words that fit both implementations' configs."""
    names = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    names += ["num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"]
    names += ["query_pre_attn_scalar", "sliding_window", "attention_bias", "final_logit_softcapping"]
    names += ["pad_token_id", "bos_token_id", "eos_token_id", "hidden_activation"]
    return {**{name: getattr(text, name) for name in names}, "layer_types": list(text.layer_types), "rope": rope}


def our_facts(text: Gemma3TextConfig) -> dict[str, Any]:
    return facts(text, {kind: (text.rope_for(kind).theta, text.rope_for(kind).factor) for kind in (LOCAL, GLOBAL)})


def reference_facts(text: Any) -> dict[str, Any]:
    rope = {kind: text.rope_parameters[kind] for kind in (LOCAL, GLOBAL)}
    return facts(text, {kind: (rope[kind]["rope_theta"], rope[kind].get("factor", 1.0)) for kind in rope})


def vision_facts(vision: Any) -> dict[str, Any]:
    return {
        name: getattr(vision, name)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels",
                     "image_size", "patch_size", "hidden_act", "layer_norm_eps")
    }  # fmt: skip


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_config_means_what_transformers_reads(shared_data, tmp_path, size):
    data = published(shared_data, size)
    (tmp_path / "config.json").write_text(json.dumps(data))
    ours, theirs = read_config(tmp_path), reference_of(data)
    if size in ("270m", "1b"):
        assert isinstance(ours, Gemma3TextConfig)
        assert our_facts(ours) == reference_facts(theirs)
        return
    assert isinstance(ours, Gemma3Config)
    assert our_facts(ours.text_config) == reference_facts(theirs.text_config)
    assert vision_facts(ours.vision_config) == vision_facts(theirs.vision_config)
    for name in ("mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index", "eos_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)


def test_the_4b_file_leaves_heads_and_vocabulary_to_the_defaults(shared_data):
    text = Gemma3Config.from_dict(published(shared_data, "4b")).text_config
    assert (text.num_attention_heads, text.num_key_value_heads, text.head_dim) == (8, 4, 256)
    assert text.vocab_size == 262_208
    assert text.rope_for(GLOBAL) == RopeParameters(1_000_000.0, 8.0)
    assert text.rope_for(LOCAL) == RopeParameters(10_000.0, 1.0)


@pytest.mark.parametrize("data", [OLDER_SPELLING, NEWER_SPELLING], ids=["older", "newer"])
def test_either_spelling_alone_means_what_transformers_reads(data):
    assert our_facts(Gemma3TextConfig.from_dict(data)) == reference_facts(reference_of(json.loads(json.dumps(data))))


def test_older_and_newer_spelling_give_equal_configs():
    assert Gemma3TextConfig.from_dict(OLDER_SPELLING) == Gemma3TextConfig.from_dict(NEWER_SPELLING)


@pytest.mark.parametrize("spelling", ["rope_type", "type"])
def test_linear_scaling_is_read_under_both_of_its_names_and_only_for_global_layers(spelling):
    config = Gemma3TextConfig.from_dict({"rope_scaling": {spelling: "linear", "factor": 8.0}})
    assert config.rope_for(GLOBAL).factor == 8.0
    assert config.rope_for(LOCAL).factor == 1.0


def test_layers_alternate_five_local_to_one_global_by_default():
    config = Gemma3TextConfig(num_hidden_layers=8)
    assert config.layer_types == (LOCAL,) * 5 + (GLOBAL,) + (LOCAL,) * 2
    assert config.window(LOCAL) == config.sliding_window
    assert config.window(GLOBAL) is None


def test_attention_scale_comes_from_query_pre_attn_scalar_not_from_the_head():
    assert Gemma3TextConfig(head_dim=128, query_pre_attn_scalar=168).attention_scale == 168**-0.5


def test_defaults_of_the_text_config_are_those_of_transformers():
    from transformers import Gemma3TextConfig as ReferenceTextConfig

    assert our_facts(Gemma3TextConfig()) == reference_facts(ReferenceTextConfig())


def test_defaults_of_the_vision_config_are_those_of_transformers():
    from transformers import SiglipVisionConfig as ReferenceVisionConfig

    assert vision_facts(SiglipVisionConfig()) == vision_facts(ReferenceVisionConfig())


@pytest.mark.parametrize("size", PUBLISHED)
def test_to_dict_round_trip_changes_nothing(shared_data, size):
    data = published(shared_data, size)
    kind = Gemma3Config if data["model_type"] == "gemma3" else Gemma3TextConfig
    first = kind.from_dict(data)
    written = json.loads(json.dumps(first.to_dict()))
    assert kind.from_dict(written) == first
    assert kind.from_dict(written).to_dict() == first.to_dict()


@pytest.mark.parametrize("size", PUBLISHED)
def test_what_we_write_means_the_same_to_transformers(shared_data, size):
    data = published(shared_data, size)
    kind = Gemma3Config if data["model_type"] == "gemma3" else Gemma3TextConfig
    theirs = reference_of(kind.from_dict(data).to_dict())
    before = reference_of(data)
    assert reference_facts(theirs.get_text_config()) == reference_facts(before.get_text_config())
    if kind is Gemma3Config:
        assert vision_facts(theirs.vision_config) == vision_facts(before.vision_config)
        assert theirs.vision_config.vision_use_head is False


@pytest.mark.parametrize("size", PUBLISHED)
def test_what_transformers_writes_means_the_same_to_us(shared_data, size):
    data = published(shared_data, size)
    rewritten = json.loads(reference_of(data).to_json_string())
    if data["model_type"] == "gemma3_text":
        assert our_facts(Gemma3TextConfig.from_dict(rewritten)) == our_facts(Gemma3TextConfig.from_dict(data))
        return
    ours, before = Gemma3Config.from_dict(rewritten), Gemma3Config.from_dict(data)
    assert our_facts(ours.text_config) == our_facts(before.text_config)
    assert vision_facts(ours.vision_config) == vision_facts(before.vision_config)


def test_unknown_fields_are_kept_at_every_level():
    data = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "newfangled": {"a": [1]},
        "text_config": {"model_type": "gemma3_text", "text_novelty": 3},
        "vision_config": {**VISION, "vision_novelty": "x"},
    }
    written = Gemma3Config.from_dict(data).to_dict()
    assert written["architectures"] == data["architectures"]
    assert written["newfangled"] == data["newfangled"]
    assert written["text_config"]["text_novelty"] == 3
    assert written["vision_config"]["vision_novelty"] == "x"
    assert [written["model_type"], written["text_config"]["model_type"]] == ["gemma3", "gemma3_text"]


def test_token_ids_are_read_under_both_of_their_names():
    newer = {"image_token_id": 11, "boi_token_id": 12, "eoi_token_id": 13, "vision_config": VISION}
    config = Gemma3Config.from_dict(newer)
    assert (config.image_token_index, config.boi_token_index, config.eoi_token_index) == (11, 12, 13)
    assert config.to_dict()["image_token_index"] == 11


def test_null_means_the_default_except_for_ids_that_may_be_absent():
    config = Gemma3TextConfig.from_dict({"head_dim": None, "layer_types": None, "bos_token_id": None})
    assert config.head_dim == 256
    assert len(config.layer_types) == config.num_hidden_layers
    assert config.bos_token_id is None


def test_replace_leaves_the_original_alone():
    config = Gemma3TextConfig(sliding_window=512)
    assert config.replace(sliding_window=8).sliding_window == 8
    assert config.sliding_window == 512


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, ["num_attention_heads (6)", "num_key_value_heads (4)"]),
        ({"head_dim": 15}, ["head_dim", "15"]),
        ({"vocab_size": 50, "pad_token_id": 50}, ["pad_token_id (50)", "50 tokens"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"sliding_window": -1}, ["sliding_window", "-1"]),
        ({"vocab_size": "many"}, ["vocab_size", "'many'"]),
        ({"num_hidden_layers": 3, "layer_types": [LOCAL]}, ["1 layers", "num_hidden_layers is 3"]),
        ({"num_hidden_layers": 1, "layer_types": ["chunked_attention"]}, ["chunked_attention"]),
        ({"hidden_activation": "silu"}, ["hidden_activation", "'silu'", "gelu_pytorch_tanh"]),
        ({"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping", "50.0"]),
        ({"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["'yarn'", "linear"]),
    ],
)
def test_a_decoder_that_can_not_be_is_refused_with_what_was_got(change, words):
    with pytest.raises(ConfigError) as error:
        Gemma3TextConfig.from_dict(change)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vision_config": {**VISION, "hidden_size": 50, "num_attention_heads": 4}}, ["50", "4"]),
        ({"vision_config": {**VISION, "hidden_act": "relu"}}, ["hidden_act", "'relu'"]),
        ({"vision_config": {**VISION, "vision_use_head": True}}, ["vision_use_head"]),
        ({"vision_config": VISION, "mm_tokens_per_image": 250}, ["mm_tokens_per_image", "250"]),
        ({"vision_config": VISION, "mm_tokens_per_image": 9}, ["mm_tokens_per_image", "64 patches"]),
    ],
)
def test_an_encoder_that_can_not_be_is_refused_with_what_was_got(change, words):
    with pytest.raises(ConfigError) as error:
        Gemma3Config.from_dict(change)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, ["rope_parameters"]),
        ({"text_config": [1]}, ["text_config"]),
        ({"text_config": {"hidden_size": 64, "rope_scaling": 8}}, ["rope_scaling"]),
        ({"vision_config": "siglip"}, ["vision_config"]),
        ({"mm_tokens_per_image": "256"}, ["mm_tokens_per_image"]),
        ({"vision_config": VISION, "mm_tokens_per_image": 0}, ["mm_tokens_per_image"]),
    ],
)
def test_malformed_fields_are_config_errors_and_never_raw_ones_or_silence(change, words):
    kind = Gemma3TextConfig if "rope_parameters" in change else Gemma3Config
    with pytest.raises(ConfigError) as error:
        kind.from_dict(change)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_another_architecture_is_named_in_the_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="'llama'"):
        read_config(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[1, 2]"], ids=["missing", "empty", "cut off", "no object"])
def test_an_unreadable_config_names_the_file_and_not_its_folder(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    assert "config.json" in str(error.value)
    assert str(tmp_path) not in str(error.value)
