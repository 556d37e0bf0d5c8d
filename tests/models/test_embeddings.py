"""The token embedding and the head: read, replaced and resized, against transformers."""

from typing import Any

import pytest
import torch
import transformers
from reference import SOFT, assert_equal, picture_prompt, save_reference, text_batch
from torch import nn

import gemma3_core
from gemma3_core import Gemma3ForCausalLM, Gemma3ForConditionalGeneration, TorchAoConfig
from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.int4.quantize import quantized

SEEING = ["Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification", "Gemma3Model"]
READING = ["Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", "Gemma3TextModel"]


@pytest.fixture(scope="module")
def untied_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untied")
    theirs = save_reference(folder / "tied", multimodal=False)
    config = transformers.Gemma3TextConfig(**{**theirs.config.to_dict(), "tie_word_embeddings": False})
    torch.manual_seed(1)
    transformers.Gemma3ForCausalLM(config).save_pretrained(folder)
    return folder


def both(name: str, folder: Any) -> tuple[Any, Any]:
    return tuple(getattr(module, name).from_pretrained(folder) for module in (gemma3_core, transformers))


def weights(model: Any) -> list[torch.Tensor]:
    head = model.get_output_embeddings()
    return [layer.weight.detach() for layer in (model.get_input_embeddings(), head) if layer is not None]


@pytest.mark.parametrize("name", [*SEEING, *READING])
@pytest.mark.parametrize("arguments", [(300,), (260, 64), (None, 64), (200,)], ids=str)
def test_rows_are_added_and_taken_away_as_in_transformers(name, arguments, request, tmp_path):
    """The same seed gives the same new rows."""
    folder = "reference_folder" if name in SEEING else "reference_text_folder"
    ours, theirs = both(name, request.getfixturevalue(folder))
    old, config, resized = weights(ours)[0].clone(), ours.config, []
    for model in (ours, theirs):
        torch.manual_seed(5)
        resized.append(model.resize_token_embeddings(*arguments))
    assert resized[0] is ours.get_input_embeddings()
    rows = resized[1].num_embeddings
    assert (resized[0].num_embeddings, ours.vocab_size, ours.config.get_text_config().vocab_size) == (rows,) * 3
    for own, other in zip(weights(ours), weights(theirs), strict=True):
        assert_equal(own, other)
    kept = min(rows, len(old))
    assert torch.equal(weights(ours)[0][:kept], old[:kept])
    assert config.get_text_config().vocab_size == len(old), "whoever shares the configuration keeps theirs"
    held = [module.config for module in ours.modules() if hasattr(module, "config")]
    assert {id(each) for each in held} <= {id(ours.config), *(id(part) for part in vars(ours.config).values())}
    if name.endswith(("ForCausalLM", "ForConditionalGeneration")):
        assert ours.lm_head.weight is resized[0].weight
        assert ours.lm_head.out_features == rows
        ours.save_pretrained(tmp_path)
        again, theirs_again = both(name, tmp_path)
        prompt = text_batch()
        prompt["input_ids"] = prompt["input_ids"] % 200
        assert torch.equal(again(**prompt).logits, ours(**prompt).logits)
        real = prompt["attention_mask"].bool()
        assert_equal(theirs_again.eval()(**prompt).logits[real], again(**prompt).logits[real])


def test_new_tokens_are_read_and_answered(reference_folder):
    """Pictures too, whose token lies inside the vocabulary now and was beyond it before."""
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder)
    config = model.config.replace(image_token_index=251)
    model = Gemma3ForConditionalGeneration.from_pretrained(reference_folder, config=config)
    prompt = picture_prompt("t9 i t5")
    prompt["input_ids"] = torch.where(prompt["input_ids"] == SOFT, 251, prompt["input_ids"])
    before = model(**prompt).logits
    model.resize_token_embeddings(256)
    assert_equal(model(**prompt).logits[..., :251], before)
    assert model.generate(torch.tensor([[2, 255]]), max_new_tokens=2).shape == (1, 4)


@pytest.mark.parametrize("around_the_mean", [True, False])
def test_a_head_of_its_own_is_resized_too(untied_folder, around_the_mean):
    ours, theirs = both("Gemma3ForCausalLM", untied_folder)
    for model in (ours, theirs):
        torch.manual_seed(5)
        model.resize_token_embeddings(280, mean_resizing=around_the_mean)
    assert ours.lm_head.weight is not ours.get_input_embeddings().weight
    for own, other in zip(weights(ours), weights(theirs), strict=True):
        assert own.shape == (280, 64)
        assert_equal(own, other)


def test_modules_can_be_put_in_place(reference_text_folder):
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    embedding, head = nn.Embedding(251, 64), nn.Linear(64, 251, bias=False)
    model.set_input_embeddings(embedding)
    model.set_output_embeddings(head)
    assert model.get_input_embeddings() is model.model.get_input_embeddings() is embedding
    assert model.get_output_embeddings() is head
    model.tie_weights()
    assert head.weight is embedding.weight
    with pytest.raises(UnsupportedOptionError, match="Gemma3TextModel has no head"):
        model.model.set_output_embeddings(head)
    with pytest.raises(UnsupportedOptionError, match=r"takes a torch\.nn\.Module, got int"):
        model.set_input_embeddings(5)


def test_what_can_not_be_resized_is_told(reference_text_folder):
    model = Gemma3ForCausalLM.from_pretrained(reference_text_folder)
    for arguments, words in (((0,), "new_num_tokens"), ((2.5,), "2.5"), ((None, -1), "pad_to_multiple_of")):
        with pytest.raises(UnsupportedOptionError, match=words):
            model.resize_token_embeddings(*arguments)
    model.config.pad_token_id = 250
    with pytest.raises(ConfigError, match=r"pad_token_id \(250\) is not in the vocabulary of 100"):
        model.resize_token_embeddings(100)
    assert model.get_input_embeddings().num_embeddings == 251
    model.config.pad_token_id = 0
    model.resize_token_embeddings(256)
    with pytest.raises(UnsupportedOptionError, match=r"head that is a Int4Linear\. Resize the model in full precision"):
        quantized(model, TorchAoConfig(group_size=32)).resize_token_embeddings(300)


def test_a_state_dict_holds_a_tied_head_once(ours, untied_folder):
    """safetensors' own saving, which trainers use, refuses a tensor with two names."""
    state = ours.state_dict()
    assert "lm_head.weight" not in state
    empty = Gemma3ForConditionalGeneration(ours.config)
    assert not any(empty.load_state_dict(state))
    assert empty.lm_head.weight is empty.get_input_embeddings().weight
    prompt = picture_prompt("t9 i t5")
    assert torch.equal(empty(**prompt).logits, ours(**prompt).logits)
    wrapped = nn.ModuleDict({"inner": empty})
    assert "inner.lm_head.weight" not in wrapped.state_dict()
    assert not any(wrapped.load_state_dict(wrapped.state_dict()))
    assert "lm_head.weight" in Gemma3ForCausalLM.from_pretrained(untied_folder).state_dict()
