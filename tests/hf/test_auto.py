"""The Auto classes: which class fits a checkpoint, and what is fetched for it."""

import json

import huggingface_hub
import pytest
from adapters import save_adapter

from gemma3_core import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    Gemma3ImageProcessor,
    Gemma3ImageProcessorPil,
    Gemma3Model,
    Gemma3Processor,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
    Gemma3Tokenizer,
    SiglipVisionConfig,
    pipeline,
)
from gemma3_core.errors import CheckpointError, ConfigError, UnsupportedOptionError

MODELS = [AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification]
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
TINY_TEXT = {**TINY, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20}
TINY_VISION = {**TINY, "image_size": 28, "patch_size": 14}


def test_the_class_follows_from_the_checkpoint(chat_folder, text_chat_folder):
    options = {"dtype": "bfloat16", "device_map": "cpu", "attn_implementation": "eager"}
    seeing = AutoModelForCausalLM.from_pretrained(chat_folder, **options)
    assert type(seeing) is Gemma3ForConditionalGeneration
    assert (str(seeing.dtype), seeing.eager) == ("torch.bfloat16", True)
    assert type(AutoModelForImageTextToText.from_pretrained(chat_folder)) is Gemma3ForConditionalGeneration
    assert type(AutoModelForCausalLM.from_pretrained(text_chat_folder)) is Gemma3ForCausalLM
    with pytest.raises(UnsupportedOptionError, match="got Gemma3TextConfig: 270M and 1B read text only"):
        AutoModelForImageTextToText.from_pretrained(text_chat_folder)


@pytest.mark.parametrize("folder", ["chat_folder", "text_chat_folder"])
def test_bare_models_and_classifiers_are_of_the_classes_that_transformers_takes(folder, request, caplog):
    import transformers

    source = request.getfixturevalue(folder)
    sees = folder == "chat_folder"
    body, classifier = (
        AutoModel.from_pretrained(source),
        AutoModelForSequenceClassification.from_pretrained(
            source, num_labels=3, problem_type="single_label_classification"
        ),
    )
    assert type(body) is (Gemma3Model if sees else Gemma3TextModel)
    assert type(classifier) is (Gemma3ForSequenceClassification if sees else Gemma3TextForSequenceClassification)
    assert (classifier.num_labels, classifier.config.problem_type) == (3, "single_label_classification")
    assert "it is new and random" in caplog.text
    for own in (AutoModel, AutoModelForSequenceClassification):
        theirs = getattr(transformers, own.__name__)
        config = transformers.AutoConfig.from_pretrained(source)
        assert type(theirs.from_config(config)).__name__ == type(own.from_config(body.config)).__name__


def test_a_configuration_that_no_class_takes_is_named():
    for auto in (AutoModel, AutoModelForSequenceClassification, AutoModelForCausalLM):
        with pytest.raises(UnsupportedOptionError, match=r"takes Gemma3TextConfig or Gemma3Config, got Siglip\w+\.$"):
            auto.from_config(SiglipVisionConfig())


def test_a_configuration_gives_a_random_model_of_its_class():
    both = Gemma3Config(text_config=TINY_TEXT, vision_config=TINY_VISION, mm_tokens_per_image=4)
    assert type(AutoModelForCausalLM.from_config(both)) is Gemma3ForConditionalGeneration
    assert type(AutoModelForCausalLM.from_config(Gemma3TextConfig(**TINY_TEXT))) is Gemma3ForCausalLM
    with pytest.raises(UnsupportedOptionError, match="makes no object of its own"):
        AutoModelForCausalLM()


def test_processors_and_tokenizers(chat_folder, text_chat_folder):
    default = AutoProcessor.from_pretrained(chat_folder, padding_side="right")
    assert type(default) is Gemma3Processor
    assert type(default.image_processor) is Gemma3ImageProcessor
    assert default.tokenizer.padding_side == "right"
    pil = AutoProcessor.from_pretrained(chat_folder, backend="pil")
    assert type(pil.image_processor) is Gemma3ImageProcessorPil
    assert type(AutoProcessor.from_pretrained(text_chat_folder, padding_side="right")) is Gemma3Tokenizer
    assert AutoTokenizer.from_pretrained(str(chat_folder), use_fast=True).name_or_path == str(chat_folder)


def test_a_pipeline_of_an_adapter_takes_its_bases_processor(chat_folder, text_chat_folder, tmp_path):
    for folder, task in ((chat_folder, "image-text-to-text"), (text_chat_folder, "text-generation")):
        adapter = save_adapter(
            AutoModelForCausalLM.from_pretrained(folder), tmp_path / task, r=2, target_modules=["q_proj"],
            base_model_name_or_path=str(folder),
        )  # fmt: skip
        pipe = pipeline(model=str(adapter), dtype="float32")
        assert (pipe.task, pipe.model.is_adapted) == (task, True)
        assert pipe.tokenizer.name_or_path == str(folder)
        assert (pipe.processor is None) is (task == "text-generation")
        base = pipeline(model=str(folder), dtype="float32")
        given = {"text" if pipe.processor else "text_inputs": "Hello", "max_new_tokens": 4, "do_sample": False}
        pipe.model.disable_adapters()
        assert pipe(**given) == base(**given)
        own = pipeline(model=str(adapter), **{"processor" if pipe.processor else "tokenizer": str(folder)})
        assert own.tokenizer.name_or_path == str(folder)


@pytest.mark.parametrize("auto", [*MODELS, AutoTokenizer, AutoProcessor])
def test_an_unknown_option_is_named(chat_folder, auto):
    with pytest.raises(UnsupportedOptionError, match="no_such_option"):
        auto.from_pretrained(chat_folder, no_such_option=1)


@pytest.mark.parametrize("auto", [*MODELS, AutoTokenizer, AutoProcessor])
def test_a_wrong_folder_says_what_is_missing(tmp_path, auto):
    with pytest.raises(CheckpointError, match=r"config\.json is missing|no tokenizer\.json"):
        auto.from_pretrained(tmp_path)


def test_another_architecture_is_named(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for auto in MODELS:
        with pytest.raises(ConfigError, match="'llama'"):
            auto.from_pretrained(tmp_path)


@pytest.mark.parametrize("auto", [AutoTokenizer, AutoProcessor])
def test_what_needs_no_weights_fetches_none(monkeypatch, chat_folder, auto):
    asked = []

    def record(repo_id, **options):
        asked.append((repo_id, options))
        return str(chat_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    loaded = auto.from_pretrained("some/model", revision="v1", token="secret", local_files_only=True)
    assert all("*.safetensors" not in options["allow_patterns"] for _, options in asked)
    assert all((options["revision"], options["token"]) == ("v1", "secret") for _, options in asked)
    assert all(options["local_files_only"] for _, options in asked)
    assert getattr(loaded, "tokenizer", loaded).name_or_path == "some/model"


def test_a_model_is_refused_by_its_config_before_its_weights_are_fetched(monkeypatch, text_chat_folder):
    asked = []

    def record(_, **options):
        asked.append(options["allow_patterns"])
        return str(text_chat_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    with pytest.raises(UnsupportedOptionError):
        AutoModelForImageTextToText.from_pretrained("some/model")
    assert asked == [["*.json", "*.jinja"]]
    AutoModelForCausalLM.from_pretrained("some/model")
    assert "*.safetensors" in asked[-1]
