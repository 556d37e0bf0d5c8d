"""config.json in both spellings, in and out, against transformers' own classes."""

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch

from gemma3_core.config.gemma3 import (
    GLOBAL,
    LOCAL,
    Gemma3Config,
    Gemma3TextConfig,
    RopeParameters,
    SiglipVisionConfig,
    read_config,
)
from gemma3_core.errors import CheckpointError, ConfigError, UnsupportedOptionError
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3TextModel

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
        ({"attention_dropout": 0.1}, ["attention_dropout", "0.1"]),
        ({"sliding_window": None}, ["sliding_window", "None"]),
        ({"output_attentions": True}, ["output_attentions", "call"]),
        ({"return_dict": False}, ["return_dict", "True"]),
        ({"problem_type": "ranking"}, ["'ranking'", "regression"]),
        ({"problem_type": "single_label_classification", "num_labels": 1}, ["num_labels", "regression"]),
        ({"num_labels": 0}, ["num_labels", "0"]),
        ({"id2label": {"first": "cat"}}, ["id2label", "first"]),
        ({"dtype": "int3"}, ["dtype", "'int3'", "bfloat16"]),
        ({"rope_parameters": {GLOBAL: {"partial_rotary_factor": 0.5}}}, ["partial_rotary_factor", "0.5"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["'yarn'", "linear"]),
        ({"num_hidden_layers": "26"}, ["num_hidden_layers", "'26'"]),
        ({"layer_types": 5}, ["layer_types", "5"]),
        ({"layer_types": [[]], "num_hidden_layers": 1}, ["layer_types", "a list, each item a text"]),
        ({"sliding_window_pattern": "6"}, ["sliding_window_pattern", "'6'"]),
        ({"rope_theta": "a"}, ["rope_theta", "'a'"]),
        ({"rope_local_base_freq": -1.0}, ["rope_theta", "-1.0"]),
        ({"rope_parameters": {GLOBAL: {"rope_theta": 0}}}, ["rope_theta", "got 0"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, ["factor", "got 0"]),
        ({"rope_scaling": {"rope_type": "linear", "factor": [8]}}, ["factor", "[8]"]),
        ({"query_pre_attn_scalar": 0}, ["query_pre_attn_scalar", "above 0", "0"]),
        ({"query_pre_attn_scalar": "256"}, ["query_pre_attn_scalar", "'256'"]),
        ({"rms_norm_eps": -1e-6}, ["rms_norm_eps", "-1e-06"]),
        ({"rms_norm_eps": float("nan")}, ["rms_norm_eps", "nan"]),
        ({"final_logit_softcapping": 10**400}, ["final_logit_softcapping"]),
        ({"initializer_range": -0.02}, ["initializer_range", "-0.02"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "true or false", "'yes'"]),
        ({"eos_token_id": "1"}, ["eos_token_id", "'1'"]),
        ({"num_labels": 10**9}, ["num_labels", "1,000,000"]),
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
        ({"vision_config": {**VISION, "attention_dropout": 0.1}}, ["attention_dropout", "0.1"]),
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


def test_no_value_of_a_field_raises_anything_but_a_config_error():
    """Each field with each kind of value that JSON has: a config, or a sentence."""
    junk = ["26", 5, -1, 0, 0.5, True, [], {}, [[1]], ["a"], {GLOBAL: 5}, {"rope_type": "linear", "factor": "x"}]
    junk += [{GLOBAL: {"rope_theta": "a"}}, float("inf"), float("nan"), 10**400]
    more = ["rope_theta", "rope_local_base_freq", "rope_scaling", "rope_parameters", "sliding_window_pattern"]
    parts: list[tuple[Any, list[str]]] = [(Gemma3TextConfig, [*more, "num_labels", "torch_dtype"]),
                                          (SiglipVisionConfig, []), (Gemma3Config, ["image_token_id"])]  # fmt: skip
    refused = 0
    for kind, others in parts:
        for name in [*(field.name for field in dataclasses.fields(kind)), *others]:
            for value in junk:
                try:
                    json.dumps(kind.from_dict({name: value}).to_diff_dict())
                except ConfigError:
                    refused += 1
    assert refused > 600


@pytest.mark.parametrize("tokens", [250, 9])
def test_a_grid_that_does_not_fit_is_refused_when_it_is_loaded_or_sees_a_picture(tokens, tmp_path):
    """As in transformers, where the class defaults (14 patches a side, 256 soft tokens) do not fit, a model may be
    built all the same."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**small, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20}
    config = Gemma3Config(text_config=text, vision_config={**small, **VISION}, mm_tokens_per_image=tokens)
    model, words = Gemma3ForConditionalGeneration(config), f"mm_tokens_per_image .{tokens}.*64 patches"
    with pytest.raises(ConfigError, match=words):
        model.get_image_features(torch.zeros(1, 3, 896, 896))
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=words):
        Gemma3ForConditionalGeneration.from_pretrained(tmp_path)
    assert Gemma3ForConditionalGeneration(config.replace(mm_tokens_per_image=16)).config.tokens_per_side == 4


def test_the_examples_of_the_class_pages():
    """One of them gives both parts without a name, which transformers 5.23 itself no longer takes."""
    vision, text = SiglipVisionConfig(), Gemma3TextConfig()
    configuration = Gemma3Config(vision, text)
    assert configuration == Gemma3Config(text, vision) == Gemma3Config(vision_config=vision, text_config=text)
    with torch.device("meta"):
        assert Gemma3ForConditionalGeneration(configuration).config is configuration
        assert Gemma3TextModel(text).config is text


@pytest.mark.parametrize(
    ("kind", "parts", "named", "words"),
    [
        (Gemma3Config, (Gemma3TextConfig(), Gemma3TextConfig()), {}, ["one Gemma3TextConfig", "got Gemma3TextConfig"]),
        (Gemma3Config, (Gemma3TextConfig(),), {"text_config": Gemma3TextConfig()}, ["without a name"]),
        (Gemma3Config, ({"hidden_size": 4},), {}, ["got dict"]),
        (Gemma3Config, (256,), {}, ["got int"]),
        (Gemma3TextConfig, (262_208,), {}, ["by name only", "262208"]),
        (SiglipVisionConfig, (768,), {}, ["by name only"]),
    ],
)
def test_what_is_given_without_a_name_and_can_not_be_told_is_an_error(kind, parts, named, words):
    with pytest.raises(ConfigError) as error:
        kind(*parts, **named)
    assert all(word in str(error.value) for word in words), error.value


def test_another_architecture_is_named_in_the_error(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ConfigError, match="'llama'"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[1, 2]", "[" * 100_000],
    ids=["missing", "empty", "cut off", "no object", "nested without end"],
)
def test_an_unreadable_config_names_the_file_and_not_its_folder(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError) as error:
        read_config(tmp_path)
    assert "config.json" in str(error.value)
    assert str(tmp_path) not in str(error.value)


KINDS = [Gemma3TextConfig, SiglipVisionConfig, Gemma3Config]
OURS_ALONE = {"vision_use_head"}
"""False inside our Gemma3Config: its encoder has no pooling head, and the reference's is used by nothing."""


def theirs_of(kind: type) -> Any:
    import transformers

    return getattr(transformers, kind.__name__)


def comparable(data: dict[str, Any]) -> dict[str, Any]:
    """A configuration as JSON, without what says who wrote it, and without the reference's private fields."""
    data = json.loads(json.dumps(data))
    names = {name for name in data if name.startswith("_")} | {"transformers_version"} | OURS_ALONE
    return {k: comparable(v) if isinstance(v, dict) else v for k, v in data.items() if k not in names}


@pytest.mark.parametrize("kind", KINDS)
def test_class_defaults_written_out_are_those_of_transformers(kind):
    assert comparable(kind().to_dict()) == comparable(theirs_of(kind)().to_dict())
    assert comparable(kind().to_diff_dict()) == comparable(theirs_of(kind)().to_diff_dict())
    assert comparable(json.loads(kind().to_json_string())) == comparable(json.loads(theirs_of(kind)().to_json_string()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_transformers_is_an_attribute_with_its_default(kind):
    ours, theirs = kind(), theirs_of(kind)()
    parts = {"text_config", "vision_config"}
    for name in {k for k in theirs.to_dict() if not k.startswith("_")} - {"transformers_version"} - parts:
        mine, other = getattr(ours, name), getattr(theirs, name)
        assert (list(mine) if isinstance(mine, tuple) else mine) == other, name
    assert ours.num_labels == theirs.num_labels
    assert ours.torch_dtype is None
    with pytest.raises(AttributeError, match="has no 'colour'"):
        _ = ours.colour


def test_token_ids_are_attributes_under_both_names():
    config = Gemma3Config(image_token_id=7, boi_token_index=5)
    theirs = theirs_of(Gemma3Config)(image_token_id=7, boi_token_index=5)
    for name in ("image_token_id", "image_token_index", "boi_token_id", "boi_token_index", "eoi_token_id"):
        assert getattr(config, name) == getattr(theirs, name)
    assert config.replace(image_token_id=9).image_token_index == 9


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_named_and_counted_as_in_transformers(kind):
    for given in ({"num_labels": 3}, {"id2label": {"0": "cat", "1": "dog", "2": "cow"}, "num_labels": 3}):
        ours, theirs = kind(**given), theirs_of(kind)(**given)
        for name in ("id2label", "label2id", "num_labels"):
            assert getattr(ours, name) == getattr(theirs, name)
        again = kind.from_dict(json.loads(ours.to_json_string()))
        assert (again.id2label, again.num_labels) == (ours.id2label, 3)
    assert kind(num_labels=3).replace(num_labels=5).id2label[4] == "LABEL_4"
    assert kind(num_labels=3).replace(id2label={0: "yes", 1: "no"}).num_labels == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [{}, {"label2id": {"cat": 0, "dog": 1, "cow": 2}}], ids=["", "label2id"])
def test_a_count_that_contradicts_the_labels_is_told_and_counts_as_in_transformers(kind, more, caplog):
    given = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "num_labels": 4, **more}
    for ours, theirs in [
        (kind(**given), theirs_of(kind)(**given)),
        (kind.from_dict(given), theirs_of(kind).from_dict(given)),
    ]:
        for name in ("id2label", "label2id", "num_labels"):
            assert getattr(ours, name) == getattr(theirs, name), name
    assert "num_labels=4" in caplog.text


def test_the_type_of_the_weights_is_read_under_both_names_and_by_both_forms():
    for given in ({"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}, {"dtype": torch.bfloat16}):
        config = Gemma3TextConfig(**given)
        assert config.dtype == config.torch_dtype == torch.bfloat16
        assert config.to_dict()["dtype"] == "bfloat16"
    assert Gemma3TextConfig(dtype="bfloat16").replace(torch_dtype="float32").dtype == torch.float32


def test_parts_may_be_given_as_dicts_or_as_configurations():
    text, vision = {"hidden_size": 64, "num_hidden_layers": 2}, {"image_size": 896, "patch_size": 14}
    as_dicts = Gemma3Config(text_config=text, vision_config=vision)
    assert as_dicts == Gemma3Config(text_config=Gemma3TextConfig(**text), vision_config=SiglipVisionConfig(**vision))
    assert as_dicts.get_text_config() is as_dicts.text_config
    assert as_dicts.text_config.get_text_config() is as_dicts.text_config
    theirs = theirs_of(Gemma3Config)(text_config=text, vision_config=vision)
    assert comparable(as_dicts.to_dict()) == comparable(theirs.to_dict())


def test_gemma_uses_no_pooling_head_whatever_siglip_says_alone():
    assert SiglipVisionConfig().vision_use_head
    assert not Gemma3Config().vision_config.vision_use_head
    assert not Gemma3Config(vision_config=SiglipVisionConfig(image_size=448)).vision_config.vision_use_head


def test_rotary_parameters_are_given_and_read_in_the_newer_spelling():
    given = {GLOBAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5, "novelty": 1}}
    config = Gemma3TextConfig(rope_parameters=given)
    assert config.rope_parameters == {**given, LOCAL: {"rope_type": "default", "rope_theta": 10_000.0}}
    assert config.replace(rope_parameters={LOCAL: {"rope_theta": 7.0}}).rope_for(LOCAL).theta == 7.0
    with pytest.raises(ConfigError, match="rope and rope_theta"):
        config.replace(rope_theta=3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_misspelt_name_is_an_error_and_a_field_of_a_newer_file_is_kept(kind):
    with pytest.raises(UnsupportedOptionError, match=f"{kind.__name__} has no hiden_size"):
        kind(hiden_size=3)
    config = kind.from_dict({"hiden_size": 3})
    assert config.hiden_size == 3
    assert config.to_dict()["hiden_size"] == config.replace(num_labels=3).to_diff_dict()["hiden_size"] == 3


@pytest.mark.parametrize("size", PUBLISHED)
def test_files_go_both_ways_between_transformers_and_us(shared_data, tmp_path, size):
    data = published(shared_data, size)
    kind = Gemma3Config if data["model_type"] == "gemma3" else Gemma3TextConfig
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "config.json").write_text(json.dumps({**data, "newfangled": [1, {"a": None}]}))
    config = kind.from_pretrained(tmp_path / "first")
    config.save_pretrained(tmp_path / "ours")
    theirs = theirs_of(kind).from_pretrained(tmp_path / "ours")
    assert comparable(theirs.to_dict()) == comparable(config.to_dict())
    theirs.save_pretrained(tmp_path / "theirs")
    again = kind.from_pretrained(tmp_path / "theirs")
    assert comparable(again.to_dict()) == comparable(config.to_dict())
    assert again.newfangled == [1, {"a": None}]
    again.to_json_file(tmp_path / "again.json")
    assert kind.from_json_file(tmp_path / "again.json") == again


def test_a_part_is_read_from_the_file_of_the_whole_and_changed_by_name(shared_data, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(published(shared_data, "4b")))
    whole = Gemma3Config.from_pretrained(tmp_path)
    assert Gemma3TextConfig.from_pretrained(tmp_path) == whole.text_config
    assert SiglipVisionConfig.from_pretrained(tmp_path) == whole.vision_config
    assert Gemma3TextConfig.from_pretrained(tmp_path, sliding_window=8).sliding_window == 8
    with pytest.raises(UnsupportedOptionError, match="sliding_windw"):
        Gemma3TextConfig.from_pretrained(tmp_path, sliding_windw=8)
    whole.text_config.save_pretrained(tmp_path / "text")
    with pytest.raises(ConfigError, match="'gemma3_text'; Gemma3Config reads 'gemma3'"):
        Gemma3Config.from_pretrained(tmp_path / "text")


@pytest.mark.parametrize("kind", KINDS)
def test_configurations_survive_copying_and_pickling_and_stay_frozen(kind):
    config = kind.from_dict({"novelty": [1], "num_labels": 3})
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(AttributeError):
        config.num_labels = 7
    with pytest.raises(AttributeError, match="num_labels can't be deleted"):
        del config.num_labels
