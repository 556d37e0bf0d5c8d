"""Values of a wrong type or out of range, as programs pass them by mistake: typed errors that name them."""

import pytest
import torch

from gemma3_core.errors import Gemma3Error
from gemma3_core.models.text import Gemma3ForCausalLM

IDS = torch.tensor([[2, 5, 9]])


@pytest.fixture(scope="module")
def model(reference_text_folder):
    return Gemma3ForCausalLM.from_pretrained(reference_text_folder)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"input_ids": torch.tensor([[5000, 3]])}, "5000"),
        ({"input_ids": torch.tensor([[-7, 3]])}, "-7"),
        ({"input_ids": IDS, "labels": [[2, 5, 9]]}, "labels must be a tensor"),
        ({"input_ids": IDS, "labels": torch.tensor([[2, 5, 5000]])}, "labels hold 5000"),
        ({"input_ids": IDS, "logits_to_keep": "x"}, "logits_to_keep"),
        ({"input_ids": IDS, "logits_to_keep": -1}, "logits_to_keep"),
        ({"inputs_embeds": torch.zeros(1, 2, 25)}, "25 wide"),
        ({"input_ids": IDS, "attention_mask": "x"}, "attention_mask must be a tensor, got str"),
        ({"input_ids": IDS, "attention_mask": [[1, 1, 1]]}, "attention_mask must be a tensor, got list"),
        ({"input_ids": IDS, "position_ids": [0, 1, 2]}, "position_ids must be a tensor, got list"),
        ({"input_ids": IDS, "labels": IDS.float()}, "labels must be int64, got float32"),
        ({"input_ids": IDS, "labels": IDS, "num_items_in_batch": "x"}, "num_items_in_batch"),
        ({"input_ids": IDS, "logits_to_keep": torch.tensor([0.5])}, "logits_to_keep"),
        ({"input_ids": IDS, "logits_to_keep": torch.tensor([3])}, "below 3"),
    ],
)
def test_forward(model, given, said):
    with pytest.raises(Gemma3Error, match=said):
        model(**given)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"streamer": "x"}, "streamer must have put"),
        ({"max_length": "9"}, "max_length must be a whole number, 1 or more, got '9'"),
        ({"max_length": 2.5}, "max_length must be a whole number, 1 or more, got 2.5"),
        ({"max_new_tokens": "5"}, "got '5'"),
        ({"max_new_tokens": True}, "got True"),
        ({"pad_token_id": "a"}, "pad_token_id must be an id"),
        ({"stop_strings": 5, "tokenizer": "x"}, "stop_strings"),
        ({"max_new_tokens": 2, "cache_implementation": "static", "max_cache_len": "x"}, "max_cache_len"),
        ({"max_new_tokens": 2, "cache_implementation": "static", "max_cache_len": -4}, "max_cache_len"),
    ],
)
def test_generate(model, option, said):
    with pytest.raises(Gemma3Error, match=said):
        model.generate(IDS, **option)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"token_type_ids": [[0, 0, 0]]}, "token_type_ids must be a tensor, got list"),
        ({"soft_tokens": "x"}, "soft_tokens must be a tensor, got str"),
        ({"mm_encoder_outputs": "x"}, "mm_encoder_outputs must be"),
    ],
)
def test_forward_with_pictures(ours, given, said):
    with pytest.raises(Gemma3Error, match=said):
        ours(IDS, **given)


def test_what_is_made_of_options():
    from gemma3_core import KVCache, TorchAoConfig

    with pytest.raises(Gemma3Error, match="needs the model's config"):
        KVCache(5)
    with pytest.raises(Gemma3Error, match="modules_to_not_convert must be a list"):
        TorchAoConfig("int4_weight_only", modules_to_not_convert=5)


@pytest.mark.parametrize("folder", [None, "", 5])
def test_save_pretrained(model, folder):
    with pytest.raises(Gemma3Error, match="needs a folder"):
        model.save_pretrained(folder)


def test_saving_over_a_file(model, tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(Gemma3Error, match="is a file"):
        model.save_pretrained(tmp_path / "taken")


def test_pipeline_visualizer_and_template(chat_folder):
    from gemma3_core import AttentionMaskVisualizer, AutoProcessor, pipeline

    pipe = pipeline("image-text-to-text", model=str(chat_folder), device=-1)
    picture = torch.zeros(3, 40, 40, dtype=torch.uint8)
    with pytest.raises(Gemma3Error, match="text must be a string"):
        pipe(picture, text=5)
    with pytest.raises(Gemma3Error, match="generate_kwargs must be"):
        pipe(picture, text="<start_of_image>a", generate_kwargs=5)
    with pytest.raises(Gemma3Error, match="processor_kwargs must be"):
        pipe(picture, text="<start_of_image>a", processor_kwargs=5)
    with pytest.raises(Gemma3Error, match="model_kwargs must be"):
        pipeline("image-text-to-text", model=str(chat_folder), model_kwargs=5)
    with pytest.raises(Gemma3Error, match="processor_kwargs must be"):
        pipe.processor.apply_chat_template([{"role": "user", "content": "a"}], processor_kwargs=5)
    with pytest.raises(Gemma3Error, match="A sentence is a string"):
        AttentionMaskVisualizer(chat_folder)(5)
    with pytest.raises(Gemma3Error, match="chat_template must be"):
        AutoProcessor.from_pretrained(chat_folder).apply_chat_template(
            [{"role": "user", "content": "a"}], chat_template=5, tokenize=True
        )


def test_a_field_that_is_set_on_a_frozen_configuration(model):
    with pytest.raises(Gemma3Error, match=r"config.replace\(sliding_window=5\)"):
        model.config.sliding_window = 5
    assert model.config.sliding_window == 24
