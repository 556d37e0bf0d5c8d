"""bfloat16: against the float32 reference we err at most 1.2 times as much as transformers itself does."""

import pytest
import torch
from reference import image_prompt, pixels
from transformers import Gemma3ForConditionalGeneration as ReferenceModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from gemma3_core.engine.precisions import auto_dtype
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import ScaledEmbedding
from gemma3_core.nn import layers
from gemma3_core.nn.cache import KVCache

# bfloat16 counts exactly up to 256 only: one prompt is longer, as positions must not be rounded.
LAYOUTS = ["t9", "t330", "i t9", "t20 i t30 i t5", "t4 i i i t6"]
PROMPTS = [(layout, seed) for seed in range(4) for layout in LAYOUTS]
MOST = 1.2


@pytest.fixture(scope="module")
def exact(reference_folder):
    return ReferenceModel.from_pretrained(reference_folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def theirs(reference_folder):
    return ReferenceModel.from_pretrained(reference_folder, dtype=torch.bfloat16).eval()


@pytest.fixture(scope="module")
def ours(reference_folder):
    return Gemma3ForConditionalGeneration.from_pretrained(reference_folder, dtype="bfloat16")


def prompt_of(layout: str, seed: int) -> dict[str, torch.Tensor]:
    input_ids, token_type_ids = image_prompt(layout, seed)
    prompt = {"input_ids": input_ids, "token_type_ids": token_type_ids}
    count = layout.split().count("i")
    return {**prompt, "pixel_values": pixels(count, seed)} if count else prompt


def errors(result: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """The largest and the root-mean-square difference, each as a share of the exact one's size: [2]."""
    difference = result.double() - exact.double()
    largest = difference.abs().max() / exact.abs().max()
    return torch.stack([largest, difference.square().mean().sqrt() / exact.double().square().mean().sqrt()])


@torch.inference_mode()
def test_error_of_logits_over_twenty_prompts(ours, theirs, exact):
    assert len(PROMPTS) == 20
    own, other = torch.zeros(2), torch.zeros(2)
    for layout, seed in PROMPTS:
        prompt = prompt_of(layout, seed)
        expected = exact(**prompt).logits
        assert ours(**prompt).logits.dtype == torch.bfloat16
        own += errors(ours(**prompt).logits, expected)
        other += errors(theirs(**prompt).logits, expected)
    assert (other > 0).all()
    assert (own <= MOST * other).all(), f"ours {(own / 20).tolist()}, transformers {(other / 20).tolist()}"


@torch.inference_mode()
def test_error_of_logits_decoded_one_by_one_over_twenty_prompts(ours, theirs, exact):
    """The cache keeps bfloat16 and decoding runs other kernels: no worse than a whole pass of transformers."""
    own, other = torch.zeros(2), torch.zeros(2)
    for layout, seed in PROMPTS:
        prompt = prompt_of(layout, seed)
        more = image_prompt("t12", seed + 100)[0][:, 1:]
        whole = {name: prompt[name] for name in prompt if name == "pixel_values"}
        whole["input_ids"] = torch.cat([prompt["input_ids"], more], 1)
        whole["token_type_ids"] = torch.cat([prompt["token_type_ids"], torch.zeros_like(more)], 1)
        expected = exact(**whole).logits[:, -12:]
        cache = KVCache(ours.config.text_config)
        ours(**prompt, past_key_values=cache)
        steps = [ours(input_ids=token[None], past_key_values=cache).logits for token in more.T]
        own += errors(torch.cat(steps, 1), expected)
        other += errors(theirs(**whole).logits[:, -12:], expected)
    assert (own <= MOST * other).all(), f"ours {(own / 20).tolist()}, transformers {(other / 20).tolist()}"


@torch.inference_mode()
def test_error_of_image_features_over_twenty_pictures(ours, theirs, exact):
    pictures = pixels(20, seed=9)
    expected = exact.get_image_features(pictures).pooler_output
    own = errors(ours.get_image_features(pictures.bfloat16()).pooler_output, expected)
    other = errors(theirs.get_image_features(pictures.bfloat16()).pooler_output, expected)
    assert (own <= MOST * other).all(), (own, other)


@pytest.mark.parametrize("width", [640, 1152, 2560, 3840, 5376])
@torch.no_grad()
def test_the_embedding_scale_is_rounded_to_the_weights_type_as_in_transformers(width):
    """At the published widths: sqrt(1152) is 33.94 and becomes 34 in bfloat16."""
    weight = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
    reference = Gemma3TextScaledWordEmbedding(9, width, 0, embed_scale=width**0.5)
    mine = ScaledEmbedding(9, width, padding_idx=0)
    for dtype in (torch.float32, torch.bfloat16):
        for embedding in (mine.to(dtype), reference.to(dtype)):
            embedding.weight.copy_(weight)
        assert torch.equal(mine(torch.arange(9)), reference(torch.arange(9)))


def test_many_rows_are_multiplied_in_float32_and_err_less(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(layers, "multiplies_bfloat16_fast", lambda: False)
    torch.manual_seed(0)
    linear = layers.Linear(640, 96, dtype=torch.bfloat16)
    rows = torch.randn(2, layers.MANY_ROWS, 640, dtype=torch.bfloat16)
    exact = rows.double() @ linear.weight.double().T + linear.bias.double()
    wide, plain = linear(rows), torch.nn.functional.linear(rows, linear.weight, linear.bias)
    assert wide.dtype == torch.bfloat16
    assert torch.equal(wide, (rows.float() @ linear.weight.float().T + linear.bias.float()).bfloat16())
    assert (wide.double() - exact).abs().max() <= (plain.double() - exact).abs().max()
    few = rows[:1, : layers.MANY_ROWS - 1]
    assert torch.equal(linear(few), torch.nn.functional.linear(few, linear.weight, linear.bias))


@torch.no_grad()
def test_wide_products_change_no_token_that_is_not_a_near_tie(ours, monkeypatch: pytest.MonkeyPatch):
    """Against the plain path: teacher-forced logits within 2 % of the largest, tokens where none is so near."""
    bound, compared = 0.02, 0
    monkeypatch.setattr(layers, "multiplies_bfloat16_fast", lambda: False)
    for layout, seed in PROMPTS:
        prompt = prompt_of(layout, seed)
        monkeypatch.setattr(layers, "MANY_ROWS", 1)
        wide = ours(**prompt).logits.float()
        monkeypatch.setattr(layers, "MANY_ROWS", 10**9)
        plain = ours(**prompt).logits.float()
        reach = bound * plain.abs().max()
        assert (wide - plain).abs().max() <= reach
        best = plain.topk(2, dim=-1)
        clear = best.values[..., 0] - best.values[..., 1] > 2 * reach
        assert torch.equal(wide.argmax(-1)[clear], best.indices[..., 0][clear])
        compared += int(clear.sum())
    assert compared > 300


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "auto"), ((8, 9), "auto"), ((12, 0), "auto")],
)
def test_a_gpu_without_bfloat16_units_takes_float32(capability, dtype):
    assert auto_dtype(capability) == dtype


def test_expanded_heads_attend_like_grouped_ones():
    """CUDA expands keys and values where there is a mask; the result is that of grouped heads."""
    queries, keys, values = torch.randn(2, 8, 5, 16), torch.randn(2, 2, 9, 16), torch.randn(2, 2, 9, 16)
    mask = torch.ones(2, 1, 5, 9, dtype=torch.bool).tril(4)
    grouped, _ = layers.attend(queries, keys, values, mask, 0.25, False)
    expanded, _ = layers.attend(queries, *layers.expand_heads(keys, values, 4), mask, 0.25, False)
    torch.testing.assert_close(expanded, grouped)
