"""What a model made from a config begins with, against transformers: each tensor's distribution, and the first loss."""

import math

import pytest
import torch
import transformers
from reference import SOFT, TEXT, TOKENS_PER_IMAGE, VISION, image_prompt, pixels

import gemma3_core
from gemma3_core import Gemma3Config, Gemma3TextConfig

WIDE = {**TEXT, "hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "vocab_size": 1000, "pad_token_id": 3}
SEEING = {**VISION, "hidden_size": 96, "intermediate_size": 256}
CLASSES = (
    "Gemma3TextModel", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification",
    "Gemma3Model", "Gemma3ForConditionalGeneration", "Gemma3ForSequenceClassification",
)  # fmt: skip


def config_of(name: str, **options) -> Gemma3Config | Gemma3TextConfig:
    text = Gemma3TextConfig.from_dict({**WIDE, **options})
    if "Text" in name or name == "Gemma3ForCausalLM":
        return text
    ids = {"image_token_id": SOFT, "boi_token_id": 248, "eoi_token_id": 249, "mm_tokens_per_image": TOKENS_PER_IMAGE}
    return Gemma3Config(text_config=text, vision_config=SEEING, initializer_range=text.initializer_range, **ids)


def reference_of(name: str, config: Gemma3Config | Gemma3TextConfig) -> torch.nn.Module:
    kind = transformers.Gemma3TextConfig if isinstance(config, Gemma3TextConfig) else transformers.Gemma3Config
    return getattr(transformers, name)(kind(**config.to_dict()))


@pytest.mark.parametrize("name", CLASSES)
def test_fresh_weights_are_distributed_as_in_transformers(name):
    torch.manual_seed(0)
    config = config_of(name, initializer_range=0.03)
    model, reference = getattr(gemma3_core, name)(config), reference_of(name, config)
    mine, theirs = model.state_dict(), reference.state_dict()
    assert len(mine) >= 20
    assert mine.keys() <= theirs.keys()
    for key, tensor in mine.items():
        other, count = theirs[key].double(), tensor.numel()
        own = tensor.double()
        # A standard deviation of n draws is off by some 1 / sqrt(2 n) of itself, a mean by 1 / sqrt(n) of it.
        assert torch.isclose(own.std(), other.std(), rtol=6 / math.sqrt(count), atol=1e-12), key
        assert abs(own.mean() - other.mean()) <= 6 * other.std() / math.sqrt(count) + 1e-12, key
        assert own.abs().max() <= 1.5 * other.abs().max() + 1e-12, key
        assert torch.equal(own == 0, other == 0) or not (other == 0).any(), key
    embedding = model.get_input_embeddings().weight
    assert not embedding[3].any()
    assert embedding[4].any()


@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_that_of_a_guess(tied):
    torch.manual_seed(0)
    guess = math.log(WIDE["vocab_size"])
    text = gemma3_core.Gemma3ForCausalLM(config_of("Gemma3ForCausalLM", tie_word_embeddings=tied))
    ids = torch.randint(4, WIDE["vocab_size"], (4, 40))
    with torch.no_grad():
        assert abs(text(ids, labels=ids).loss - guess) < 0.2
    assert (text.lm_head.weight is text.model.embed_tokens.weight) is tied
    seeing = gemma3_core.Gemma3ForConditionalGeneration(config_of("Gemma3ForConditionalGeneration"))
    prompt, types = image_prompt("t9 i t9")
    with torch.no_grad():
        loss = seeing(prompt, token_type_ids=types, pixel_values=pixels(1), labels=prompt).loss
    assert abs(loss - guess) < 0.3


def test_a_seed_makes_the_same_weights_again():
    models = []
    for _ in range(2):
        torch.manual_seed(7)
        models.append(gemma3_core.Gemma3ForCausalLM(config_of("Gemma3ForCausalLM")))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
