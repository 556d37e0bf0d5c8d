"""torch.compile in one graph, and torch.export with shapes left open: the numbers of the model as it is."""

import shutil
import warnings
from typing import Any

import pytest
import torch
from reference import (
    BEGIN,
    END,
    SOFT,
    TEXT,
    TOKENS_PER_IMAGE,
    VISION,
    assert_equal,
    left_padded,
    picture_prompt,
    randomise,
)
from reference import ids_of as row
from torch import nn

from gemma3_core import (
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
)

OPEN = torch.export.Dim.DYNAMIC
TWO = {**TEXT, "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}


def randomised(model: nn.Module) -> Any:
    randomise(model)
    return model.eval()


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    """One layer of each kind, and one in the encoder."""
    text = Gemma3TextConfig(**TWO)
    ids = {"boi_token_id": BEGIN, "eoi_token_id": END, "image_token_id": SOFT, "mm_tokens_per_image": TOKENS_PER_IMAGE}
    both = Gemma3Config(text_config=text, vision_config={**VISION, "num_hidden_layers": 1}, **ids)
    made = (Gemma3ForCausalLM(text), Gemma3ForConditionalGeneration(both), Gemma3TextForSequenceClassification(text))
    return dict(zip(("text", "both", "classifier"), map(randomised, made), strict=True))


def texts(*lengths: int) -> dict[str, torch.Tensor]:
    """Rows with padding on the left."""
    ids, mask = left_padded([row(f"t{length}", seed) for seed, length in enumerate(lengths)])
    return {"input_ids": ids, "attention_mask": mask}


def pictures(*layouts: str) -> dict[str, torch.Tensor]:
    """Conversations of one length, with pictures."""
    parts = [picture_prompt(layout, seed) for seed, layout in enumerate(layouts)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def with_labels(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**fields, "labels": fields["input_ids"].masked_fill(fields["input_ids"] >= BEGIN, -100)}


def packed(*lengths: int) -> dict[str, torch.Tensor]:
    """Two rows of several documents, whose positions begin again."""
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    ids = torch.cat([row(f"t{sum(lengths) - 1}", seed) for seed in (0, 1)])
    return {"input_ids": ids, "position_ids": positions.expand(2, -1).contiguous()}


CASES = {
    "text": ("text", with_labels(texts(40, 7)), with_labels(texts(5, 50, 9))),
    "packed": ("text", with_labels(packed(4, 40, 3)), with_labels(packed(30, 2, 2))),
    "pictures": (
        "both",
        with_labels(pictures("t9 i i t3", "t2 i i t10")),
        with_labels(pictures("t9 i i t30", "t2 i i t37", "t12 i i t27")),
    ),
    "classifier": (
        "classifier",
        {**texts(40, 7), "labels": torch.tensor([0, 1])},
        {**texts(5, 3, 9), "labels": torch.tensor([1, 1, 0])},
    ),
}
"""Which model, inputs to compile it with, and inputs of other shapes."""


def assert_same(out: Any, expected: Any) -> None:
    assert type(out) is type(expected)
    assert list(out) == list(expected)
    for name in expected:
        assert_equal(out[name], expected[name])


@pytest.mark.parametrize(("case", "backend"), [("packed", "eager"), ("pictures", "aot_eager")])
def test_one_graph_gives_the_numbers_of_the_model_and_its_gradients(models, case, backend):
    kind, fields, _ = CASES[case]
    model = models[kind]
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(model, fullgraph=True, backend=backend)
        out = compiled(**fields, use_cache=False)
    expected = model(**fields, use_cache=False)
    assert_same(out, expected)
    weight = model.model.decoder.layers[0].self_attn.q_proj.weight
    own, other = (torch.autograd.grad(result.logits.square().sum(), weight)[0] for result in (out, expected))
    assert_equal(own, other)


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler (g++)")
@torch.no_grad()
def test_inductor_compiles_a_layer():
    text = Gemma3ForCausalLM(Gemma3TextConfig(**{**TWO, "num_hidden_layers": 1, "layer_types": ["full_attention"]}))
    model, fields = randomised(text), texts(12, 7)
    torch.compiler.reset()
    # In this process: to start others takes longer than to compile.
    compiled = torch.compile(model, fullgraph=True, options={"compile_threads": 1})
    assert_same(compiled(**fields, use_cache=False), model(**fields, use_cache=False))


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_an_exported_program_takes_other_rows_lengths_and_pictures(models, case):
    kind, fields, others = CASES[case]
    shapes: dict[str, Any] = {
        name: {0: OPEN} if name == "pixel_values" or value.ndim == 1 else {0: OPEN, 1: OPEN}
        for name, value in fields.items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = torch.export.export(
            models[kind], (), {**fields, "use_cache": False}, dynamic_shapes={**shapes, "use_cache": None}
        )
    for given in (fields, others):
        assert_same(program.module()(**given, use_cache=False), models[kind](**given, use_cache=False))
