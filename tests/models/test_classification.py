"""Classifiers against transformers: logits, losses, the last token under either padding, files both ways."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import (
    assert_equal,
    image_prompt,
    left_padded,
    pixels,
    randomise,
    reference_config,
    reference_text_config,
    save_reference,
)
from transformers import Gemma3ForSequenceClassification as ReferenceClassifier
from transformers import Gemma3TextForSequenceClassification as ReferenceTextClassifier

from gemma3_core.errors import CheckpointError, ConfigError, PromptError, UnsupportedOptionError
from gemma3_core.models.classification import (
    Gemma3ForSequenceClassification,
    Gemma3TextForSequenceClassification,
    classification_loss,
    last_token_columns,
)
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Gemma3Model
from gemma3_core.models.text import Gemma3TextModel

LABELS = 3
KINDS: dict[bool, Any] = {
    True: (Gemma3ForSequenceClassification, ReferenceClassifier, reference_config),
    False: (Gemma3TextForSequenceClassification, ReferenceTextClassifier, reference_text_config),
}


def save_classifier(folder: Path, multimodal: bool, **labels: Any) -> Any:
    """A random classifier of transformers, also written to `folder` by transformers itself."""
    _, kind, config_of = KINDS[multimodal]
    config = config_of()
    for name, value in (labels or {"num_labels": LABELS}).items():
        setattr(config, name, value)
    model = kind(config)
    randomise(model)
    model.eval().save_pretrained(folder)
    return model


@pytest.fixture(scope="module", params=[True, False], ids=["pictures", "text"])
def pair(request: Any, tmp_path_factory: Any) -> tuple[Any, Any]:
    """Our classifier and the reference's, with the same weights."""
    folder = tmp_path_factory.mktemp("classifier")
    theirs = save_classifier(folder, request.param)
    return KINDS[request.param][0].from_pretrained(folder), theirs


def batch(model: Any, side: str) -> dict[str, torch.Tensor]:
    """Two prompts of unequal length, one beyond the window; with pictures where the model sees them."""
    sees = isinstance(model, Gemma3ForSequenceClassification)
    rows = [image_prompt("t5 i t40" if sees else "t60", 1), image_prompt("t9 i t3 i t2" if sees else "t12", 2)]
    longest = max(ids.shape[1] for ids, _ in rows)
    if side == "left":
        input_ids, mask = left_padded([ids for ids, _ in rows])
        types, _ = left_padded([kind for _, kind in rows])
    else:
        fill = [(0, longest - ids.shape[1]) for ids, _ in rows]
        pad = torch.nn.functional.pad
        input_ids = torch.cat([pad(ids, f) for (ids, _), f in zip(rows, fill, strict=True)])
        types = torch.cat([pad(kind, f) for (_, kind), f in zip(rows, fill, strict=True)])
        mask = torch.cat([pad(torch.ones_like(ids), f) for (ids, _), f in zip(rows, fill, strict=True)])
    inputs = {"input_ids": input_ids, "attention_mask": mask}
    return {**inputs, "token_type_ids": types, "pixel_values": pixels(3)} if sees else inputs


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_transformers_with_padding_on_either_side(pair, side):
    mine, theirs = pair
    inputs = batch(mine, side)
    out, expected = mine(**inputs), theirs(**inputs)
    assert out.logits.shape == (2, LABELS)
    assert_equal(out.logits, expected.logits)


@torch.no_grad()
def test_padding_changes_nothing_about_a_row(pair):
    mine, _ = pair
    left, right = (mine(**batch(mine, side)).logits for side in ("left", "right"))
    assert_equal(left, right)


@torch.no_grad()
def test_embeddings_in_place_of_ids_are_read_to_their_last_column(pair):
    mine, theirs = pair
    embeds = torch.randn(2, 30, 64, generator=torch.Generator().manual_seed(3)) * 0.1
    assert_equal(mine(inputs_embeds=embeds).logits, theirs(inputs_embeds=embeds).logits)


@torch.no_grad()
def test_states_and_weights_come_with_the_logits_where_asked_for(pair):
    mine, theirs = pair
    theirs.set_attn_implementation("eager")
    inputs = batch(mine, "left")
    asked = {"output_hidden_states": True, "output_attentions": True}
    out, expected = mine(**inputs, **asked), theirs(**inputs, **asked)
    theirs.set_attn_implementation("sdpa")
    real = inputs["attention_mask"].bool()
    for ours, other in zip(out.hidden_states, expected.hidden_states, strict=True):
        assert_equal(ours[real], other[real])
    assert len(out.attentions) == len(expected.attentions)
    assert out["logits"] is out.logits
    assert mine(**inputs, return_dict=False)[0].shape == out.logits.shape


LOSSES = [
    (1, None, torch.tensor([0.5, -2.0])),
    (1, "regression", torch.tensor([[0.5], [-2.0]])),
    (3, "regression", torch.tensor([[0.5, 1.0, 2.0], [0.1, -1.0, 0.0]])),
    (3, None, torch.tensor([2, 0])),
    (3, "single_label_classification", torch.tensor([1, 0])),
    (3, None, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
    (3, "multi_label_classification", torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])),
]


@pytest.fixture(scope="module")
def text_pairs(tmp_path_factory: Any) -> dict[int, tuple[Any, Any]]:
    """Ours and the reference's by number of labels; each test sets the problem."""
    pairs = {}
    for num_labels in (1, 3):
        folder = tmp_path_factory.mktemp("labels")
        theirs = save_classifier(folder, multimodal=False, num_labels=num_labels)
        pairs[num_labels] = (Gemma3TextForSequenceClassification.from_pretrained(folder), theirs)
    return pairs


@pytest.mark.parametrize(("num_labels", "problem", "labels"), LOSSES)
def test_the_loss_and_its_gradient_are_those_of_transformers(text_pairs, num_labels, problem, labels):
    mine, theirs = text_pairs[num_labels]
    mine.config = mine.config.replace(problem_type=problem)
    theirs.config.problem_type = problem
    inputs = {"input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 5]])}
    out, expected = mine(**inputs, labels=labels), theirs(**inputs, labels=labels)
    assert_equal(out.loss, expected.loss)
    mine.zero_grad()
    theirs.zero_grad()
    out.loss.backward()
    expected.loss.backward()
    assert_equal(mine.score.weight.grad, theirs.score.weight.grad)
    assert_equal(mine.model.layers[0].mlp.up_proj.weight.grad, theirs.model.layers[0].mlp.up_proj.weight.grad)


@pytest.mark.parametrize(
    ("shape", "labels", "problem"),
    [((2, 3), torch.tensor([1, 0, 2]), None), ((2, 3), torch.tensor([1.0, 0.0]), None), ((2, 1), torch.ones(3), None),
     ((2, 3), torch.ones(3, 2), "multi_label_classification"), ((2, 3), torch.ones(2), "regression")],
)  # fmt: skip
def test_labels_of_another_shape_are_told_what_was_expected(shape, labels, problem):
    with pytest.raises(PromptError, match=r"labels for \w+ must be \["):
        classification_loss(torch.zeros(shape), labels, problem)


def test_the_last_token_is_found_on_either_side():
    rows = torch.tensor([[0, 0, 7, 8], [7, 8, 0, 0], [5, 0, 6, 0], [0, 0, 0, 0]])
    assert last_token_columns(rows, 0).tolist() == [3, 1, 2, 0]


def test_a_batch_without_a_padding_id_is_refused(tmp_path):
    save_classifier(tmp_path, multimodal=False)
    model = Gemma3TextForSequenceClassification.from_pretrained(tmp_path)
    model.config = model.config.replace(pad_token_id=None)
    assert model(torch.tensor([[5, 0, 6]])).logits.shape == (1, LABELS)
    with pytest.raises(PromptError, match="batch of 2 needs padding"):
        model(torch.ones(2, 3, dtype=torch.long))


@torch.no_grad()
@pytest.mark.parametrize("multimodal", [True, False])
def test_what_we_save_is_the_same_classifier_in_transformers(tmp_path, multimodal):
    names = {"id2label": {0: "cat", 1: "dog", 2: "cow"}, "label2id": {"cat": 0, "dog": 1, "cow": 2}}
    kind, reference, _ = KINDS[multimodal]
    save_classifier(tmp_path / "theirs", multimodal, **names)
    mine = kind.from_pretrained(tmp_path / "theirs", problem_type="single_label_classification")
    mine.save_pretrained(tmp_path / "ours")
    again, loaded = reference.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    assert (again.config.id2label, again.config.label2id) == (names["id2label"], names["label2id"])
    assert again.config.problem_type == "single_label_classification"
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["architectures"] == [kind.__name__]
    inputs = batch(mine, "right")
    assert_equal(mine(**inputs).logits, again.eval()(**inputs).logits)
    assert_equal(kind.from_pretrained(tmp_path / "ours")(**inputs).logits, mine(**inputs).logits)


@pytest.mark.parametrize("multimodal", [True, False])
def test_a_generating_checkpoint_gets_a_new_head_of_the_size_asked_for(tmp_path, caplog, multimodal):
    theirs = save_reference(tmp_path, multimodal)
    kind = KINDS[multimodal][0]
    model = kind.from_pretrained(tmp_path, num_labels=5, dtype="bfloat16")
    assert "score.weight: it is new and random" in caplog.text
    assert (model.num_labels, model.config.num_labels, model.model.config.num_labels) == (5, 5, 5)
    assert model.score.weight.shape == (5, 64)
    assert model.score.weight.dtype == torch.bfloat16
    assert 0 < model.score.weight.float().std() < 0.1
    name = "layers.0.mlp.up_proj.weight"
    stored = next(p for n, p in theirs.named_parameters() if n.endswith(name) and "vision" not in n)
    assert torch.equal(model.decoder.get_parameter(name), stored.bfloat16())
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(kind.from_pretrained(tmp_path / "again").score.weight, model.score.weight)


def test_a_trained_head_is_never_replaced_by_a_new_one(tmp_path):
    save_classifier(tmp_path, multimodal=False)
    with pytest.raises(CheckpointError, match=r"score\.weight is \[3, 64\], expected \[4, 64\]"):
        Gemma3TextForSequenceClassification.from_pretrained(tmp_path, num_labels=4)
    named = Gemma3TextForSequenceClassification.from_pretrained(tmp_path, id2label={0: "a", 1: "b", 2: "c"})
    assert named.config.id2label[2] == "c"


def test_the_body_of_a_classifier_loads_alone_and_a_generator_refuses_its_head(tmp_path):
    save_classifier(tmp_path / "both", multimodal=True)
    save_classifier(tmp_path / "text", multimodal=False)
    assert Gemma3Model.from_pretrained(tmp_path / "both").config.num_labels == LABELS
    assert Gemma3TextModel.from_pretrained(tmp_path / "text").config.num_labels == LABELS
    with pytest.raises(CheckpointError, match=r"not part of this model: score\.weight"):
        Gemma3ForConditionalGeneration.from_pretrained(tmp_path / "both")


def test_an_unknown_argument_of_forward_is_named(pair):
    with pytest.raises(UnsupportedOptionError, match="head_mask"):
        pair[0](torch.tensor([[5, 6]]), head_mask=torch.ones(1))


def test_the_wrong_sort_of_checkpoint_is_named(tmp_path):
    save_classifier(tmp_path, multimodal=False)
    with pytest.raises(ConfigError, match="Gemma3ForSequenceClassification takes a Gemma3Config"):
        Gemma3ForSequenceClassification.from_pretrained(tmp_path)
