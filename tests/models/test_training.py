"""Training without any tool: checkpointing, gradients of frozen embeddings, setting a config, int4 that is refused."""

import copy
from typing import Any

import pytest
import torch
from reference import SHARP, assert_equal, ids_of, picture_prompt, save_reference, text_batch
from transformers import Gemma3ForConditionalGeneration as ReferenceModel

from gemma3_core import (
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    Gemma3Model,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
    TorchAoConfig,
)
from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.nn.checkpointing import CheckpointedLayer
from gemma3_core.nn.layers import MLP

SEEING = [Gemma3ForConditionalGeneration, Gemma3ForSequenceClassification, Gemma3Model]
READING = [Gemma3ForCausalLM, Gemma3TextForSequenceClassification, Gemma3TextModel]


def loaded(kind: Any, request: pytest.FixtureRequest) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model in training mode, and inputs with labels where it takes them."""
    sees = kind in SEEING
    model = kind.from_pretrained(request.getfixturevalue("reference_folder" if sees else "reference_text_folder"))
    fields = picture_prompt("t9 i t20") if sees else text_batch()
    if hasattr(model, "score"):
        fields["labels"] = torch.arange(len(fields["input_ids"])) % 2
    elif model.can_generate():
        fields["labels"] = fields["input_ids"]
    return model.train(), fields


def gradients(model: Any, fields: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
    """The loss (of a model without a head, its states' squares), and the gradient of every weight."""
    model.zero_grad()
    out = model(**fields, **options)
    loss = out.loss if "labels" in fields else out.last_hidden_state.square().mean()
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}


def runs(model: Any) -> list[int]:
    """A list that counts the passes of the decoder's layers from now on."""
    counted: list[int] = []
    for module in model.modules():
        if isinstance(module, MLP):
            module.register_forward_hook(lambda *_: counted.append(1))
    return counted


@pytest.mark.parametrize("kind", [*SEEING, *READING])
def test_checkpointing_changes_no_loss_and_no_gradient(kind, request):
    model, fields = loaded(kind, request)
    layers = model.config.get_text_config().num_hidden_layers
    expected = gradients(model, fields)
    model.gradient_checkpointing_enable()
    assert model.supports_gradient_checkpointing
    assert model.is_gradient_checkpointing
    counted = runs(model)
    own = gradients(model, fields)
    assert len(counted) == 2 * layers
    assert own.keys() == expected.keys()
    for name in expected:
        assert_equal(own[name], expected[name])
    with torch.no_grad():
        assert model(**fields, use_cache=False) is not None
    assert model.eval()(**fields).past_key_values is not None  # it takes effect in training alone
    assert len(counted) == 4 * layers
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    assert not any(layer.checkpoint for layer in model.modules() if isinstance(layer, CheckpointedLayer))


@pytest.mark.parametrize(
    ("options", "again"),
    [({"gradient_checkpointing_kwargs": {"use_reentrant": True}}, 14), ({"every_n_layers": 3}, 10)],
    ids=str,
)
def test_the_options_of_checkpointing(our_text, options, again):
    model = copy.deepcopy(our_text).train()
    fields = {**text_batch(), "labels": text_batch()["input_ids"]}
    expected = gradients(model, fields)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(**options)
    counted = runs(model)
    own = gradients(model, fields)
    assert len(counted) == again
    assert_equal(own["model.layers.0.mlp.up_proj.weight"], expected["model.layers.0.mlp.up_proj.weight"])


def test_packed_rows_stay_packed_and_rows_stay_whole_under_checkpointing(our_text):
    model = copy.deepcopy(our_text).train()
    ids = ids_of("t19")
    fields = {"input_ids": ids, "labels": ids, "position_ids": torch.arange(10).repeat(2)[None]}
    for options in ({}, {"use_cache": False}):
        expected = gradients(model, fields, **options)
        model.gradient_checkpointing_enable()
        assert_equal(gradients(model, fields, **options)["loss"], expected["loss"])
        model.gradient_checkpointing_disable()


def test_what_checkpointing_can_not_do_is_told(our_text):
    model = copy.deepcopy(our_text)
    cache = model(ids_of("t3")).past_key_values
    for options, words in (
        ({"gradient_checkpointing_kwargs": {"shiny": 1}}, "no option shiny"),
        ({"every_n_layers": 0}, "every_n_layers"),
        ({"offload": True}, "offload"),
    ):
        with pytest.raises(UnsupportedOptionError, match=words):
            model.gradient_checkpointing_enable(**options)
    model.train().gradient_checkpointing_enable()
    with pytest.raises(UnsupportedOptionError, match="can't continue past_key_values of 4 tokens"):
        model(ids_of("t3"), past_key_values=cache)


def test_gradients_reach_what_stands_behind_frozen_embeddings(ours):
    model = copy.deepcopy(ours)
    model.requires_grad_(False)
    fields = picture_prompt("t3 i t5")
    entries: list[torch.Tensor] = []
    for module in (model.get_input_embeddings(), model.model.vision_tower.embeddings):
        module.register_forward_hook(lambda _, __, out: entries.append(out))
    model.enable_input_require_grads()
    model.enable_input_require_grads()
    model(**fields).logits.sum().backward()
    assert [entry.requires_grad for entry in entries] == [True, True]
    model.disable_input_require_grads()
    assert not model(**fields).logits.requires_grad


def test_a_step_of_training_is_that_of_transformers(reference_folder):
    fields = {**picture_prompt("t9 i t20"), "labels": picture_prompt("t9 i t20")["input_ids"]}
    after = []
    for kind in (Gemma3ForConditionalGeneration, ReferenceModel):
        model = kind.from_pretrained(reference_folder).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(**fields).loss.backward()
        optimizer.step()
        after.append(model.eval()(**picture_prompt("t9 i t20")).logits)
    assert_equal(after[0], after[1])


def test_what_training_programs_set_on_a_config(ours, our_text):
    """`use_cache` and the special ids say how a model is used; all else needs a changed copy."""
    for model in (copy.deepcopy(ours), copy.deepcopy(our_text)):
        assert model(ids_of("t3")).past_key_values is not None
        model.config.use_cache = False
        assert model(ids_of("t3")).past_key_values is None
        text = model.config.get_text_config()
        text.pad_token_id, text.eos_token_id = 3, [1, 9]
        assert (text.to_dict()["pad_token_id"], text.to_dict()["eos_token_id"]) == (3, [1, 9])
        with pytest.raises(ConfigError, match=r"pad_token_id \(999\) is not in the vocabulary"):
            text.pad_token_id = 999
        assert text.pad_token_id == 3
        with pytest.raises(ConfigError, match="replace"):
            model.config.vocab_size = 7


@pytest.fixture(scope="module")
def int4_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("int4")
    save_reference(folder, multimodal=False, sharpness=SHARP)
    return Gemma3ForCausalLM.from_pretrained(folder, quantization_config=TorchAoConfig(group_size=32))


def test_int4_weights_answer_but_are_not_trained(int4_model):
    ids, advice = ids_of("t5"), "Load the model in full precision"
    with torch.no_grad():
        expected = int4_model(ids).logits
    for mode in (int4_model.eval(), int4_model.train()):
        out = mode(ids, labels=ids)
        assert_equal(out.logits, expected)
        with pytest.raises(UnsupportedOptionError, match=advice):
            out.loss.backward()
    with pytest.raises(UnsupportedOptionError, match=advice):
        int4_model.requires_grad_(True)
    many = ids_of("t200")  # multiplied by dequantised weights, through which torch could reach the inputs
    with pytest.raises(UnsupportedOptionError, match=advice):
        int4_model(many, labels=many).loss.backward()
    with pytest.raises(UnsupportedOptionError, match=advice):
        _ = int4_model.model.layers[0].mlp.up_proj.weight


def test_a_head_behind_frozen_int4_layers_is_trained(int4_model):
    model = copy.copy(int4_model).requires_grad_(False)
    head = torch.nn.Linear(64, 3)
    head(model.model(ids_of("t5")).last_hidden_state).sum().backward()
    assert head.weight.grad.abs().sum() > 0
