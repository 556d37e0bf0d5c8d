"""Small random models in transformers (the reference) and the same weights in ours."""

from pathlib import Path

import torch
from transformers import Gemma3Config as ReferenceConfig
from transformers import Gemma3ForCausalLM as ReferenceCausalLM
from transformers import Gemma3ForConditionalGeneration as ReferenceModel
from transformers import Gemma3TextConfig as ReferenceTextConfig

SOFT, BEGIN, END = 250, 248, 249
TOKENS_PER_IMAGE = 16
WINDOW = 24
TEXT = {
    "vocab_size": 251,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
VISION = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 112,
    "patch_size": 14,
    "vision_use_head": False,
    "model_type": "siglip_vision_model",
}


def reference_config() -> ReferenceConfig:
    return ReferenceConfig(
        text_config=dict(TEXT),
        vision_config=dict(VISION),
        mm_tokens_per_image=TOKENS_PER_IMAGE,
        boi_token_index=BEGIN,
        eoi_token_index=END,
        image_token_index=SOFT,
    )


def reference_text_config() -> ReferenceTextConfig:
    return ReferenceTextConfig(**TEXT)


SHARP = 2.0
"""Attention sharp enough that generated tokens vary; rounding errors grow with it (1e-5 of the largest logit)."""


def randomise(model: torch.nn.Module, seed: int = 0, sharpness: float = 0.5) -> None:
    """Fills every weight with noise: initial values (zero projector, zero norms) would hide mistakes.

    Small embeddings, and norms of 1 + `sharpness` on queries and keys, make each token depend on what it attends to;
    otherwise a tied head repeats the last token forever. At 0.5, two float32 results of transformers itself (eager,
    sdpa) differ by 1e-6 of the largest logit.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            scale = 0.3 if "norm" in name else 1.5 / parameter.shape[-1] ** 0.5
            if "embed_tokens" in name:
                scale = 0.05
            mean = sharpness if "q_norm" in name or "k_norm" in name else 0.0
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + mean)


def save_reference(folder: Path, multimodal: bool = True, sharpness: float = 0.5) -> ReferenceModel | ReferenceCausalLM:
    """A random reference model; transformers also writes it to `folder`."""
    torch.manual_seed(0)
    model = ReferenceModel(reference_config()) if multimodal else ReferenceCausalLM(reference_text_config())
    randomise(model, sharpness=sharpness)
    model.eval().save_pretrained(folder)
    return model


def image_prompt(layout: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids and token_type_ids [1, T] from a layout such as "t5 i t30 i": text tokens and images."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = [2]
    for part in layout.split():
        if part == "i":
            ids += [BEGIN, *[SOFT] * TOKENS_PER_IMAGE, END]
        else:
            ids += torch.randint(5, BEGIN, (int(part[1:]),), generator=generator).tolist()
    input_ids = torch.tensor([ids])
    return input_ids, (input_ids == SOFT).long()


def ids_of(layout: str, seed: int = 0) -> torch.Tensor:
    """The ids of `image_prompt`."""
    return image_prompt(layout, seed)[0]


def pixels(num_images: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    side = VISION["image_size"]
    return torch.rand(num_images, 3, side, side, generator=generator) * 2 - 1


def left_padded(rows: list[torch.Tensor], pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Stacks rows [1, T] to [B, longest] with padding on the left; returns the attention mask too."""
    longest = max(row.shape[1] for row in rows)
    padded = [torch.nn.functional.pad(row, (longest - row.shape[1], 0), value=pad) for row in rows]
    masks = [torch.nn.functional.pad(torch.ones_like(row), (longest - row.shape[1], 0)) for row in rows]
    return torch.cat(padded), torch.cat(masks)


NEVER = 9_999
"""A stop id that never occurs: it lies beyond the small models' vocabulary."""


def picture_prompt(layout: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """All inputs of one conversation with at least one picture."""
    input_ids, types = image_prompt(layout, seed)
    pictures = pixels(layout.split().count("i"), seed)
    mask = torch.ones_like(input_ids)
    return {"input_ids": input_ids, "token_type_ids": types, "attention_mask": mask, "pixel_values": pictures}


def text_batch() -> dict[str, torch.Tensor]:
    """Three rows of text with left padding; one is longer than the window."""
    input_ids, mask = left_padded([ids_of("t3", 1), ids_of(f"t{WINDOW + 6}", 2), ids_of("t9", 3)])
    return {"input_ids": input_ids, "attention_mask": mask}


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor, bound: float = 1e-5) -> None:
    """The project's definition of equal: max|a - b| <= bound * max|b|."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    difference = (ours.double() - theirs.double()).abs().max().item()
    largest = theirs.double().abs().max().item()
    assert difference <= bound * largest, f"max|a - b| {difference:.3g} > {bound:g} x {largest:.3g}"
