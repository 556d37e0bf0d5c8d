"""A model whose numbers turn into NaN or infinity says so, and where, in place of an empty answer."""

import pytest
import torch
from places import EXAMPLES

from gemma3_core.engine import Engine, Request, Turn
from gemma3_core.engine.prompts import read_prompt
from gemma3_core.errors import NonFiniteError

TEXT = Request((Turn("user", "Hello"),), max_new_tokens=8)
PICTURE = Request((Turn("user", "How many hearts are there?", (EXAMPLES / "hearts.png",)),), max_new_tokens=8)


@pytest.fixture
def engine():
    return Engine.load()


def answer(engine, request):
    return "".join(getattr(event, "text", "") for event in engine.stream(request))


@pytest.mark.parametrize("int4", [False, True])
def test_the_layer_of_the_decoder_is_named(engine, int4):
    layer = engine._precisions.default.decoder.layers[3]
    with torch.no_grad():
        layer.post_feedforward_layernorm.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match=r"first in model\.language_model\.layers\.3\.post_feedforward_layernorm"):
        answer(engine, Request(TEXT.turns, max_new_tokens=8, int4=int4))


def test_the_layer_of_the_encoder_is_named_and_text_is_still_answered(engine):
    projection = engine._precisions.default.model.vision_tower.encoder.layers[1].mlp.fc2
    with torch.no_grad():
        projection.bias.fill_(3e38)
        projection.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match=r"first in model\.vision_tower\.encoder\.layers\.1\.mlp\.fc2"):
        answer(engine, PICTURE)
    assert answer(engine, TEXT)


def test_a_token_of_the_answer_that_breaks_it_is_found_too(engine):
    """The prompt is finite; the model breaks when it reads the first token that it wrote."""
    *_, done = engine.stream(TEXT)
    used = set(read_prompt(TEXT, engine._processor).input_ids[0].tolist())
    breaking = next(token for token in done.token_ids[1:] if token not in used)

    def infinite(_module, inputs, output):
        return output.masked_fill((inputs[0] == breaking)[..., None], float("inf"))

    engine._precisions.default.decoder.embed_tokens.register_forward_hook(infinite)
    with pytest.raises(NonFiniteError, match=r"first in model\.language_model\.embed_tokens"):
        answer(engine, TEXT)


@pytest.mark.parametrize("greedy", [True, False])
def test_programs_are_told_too(engine, greedy):
    model = engine._precisions.default
    with torch.no_grad():
        model.decoder.norm.weight.fill_(3e38)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        model.generate(torch.tensor([[2, 5, 9]]), max_new_tokens=3, do_sample=not greedy)
