"""The demo model: its folder, configuration, initial weights, and the files beside them."""

import shutil
from pathlib import Path

import torch
from torch import nn

from gemma3_core import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    Gemma3Tokenizer,
    SiglipVisionConfig,
)
from training.drawing.dense_labels import PATCHES_PER_SIDE, TOKENS_PER_SIDE

DEMO_MODEL = Path(__file__).resolve().parents[2] / "assets" / "demo_model"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
SETTINGS_FILES = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
# Widths are multiples of 128: int4 has groups of 128 in each of the decoder's linears.
TEXT_WIDTH = 256
VISION_WIDTH = 384
IMAGE_SIZE = 224
PATCH_SIZE = IMAGE_SIZE // PATCHES_PER_SIDE


def demo_config(tokenizer: Gemma3Tokenizer) -> Gemma3Config:
    """The full architecture at small size: both layer kinds, 13.3 million weights."""
    stops = [1, special_id(tokenizer, "<end_of_turn>")]
    text = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=384,
        num_hidden_layers=12,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        sliding_window=512,
        max_position_embeddings=8192,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=stops,
        bos_token_id=tokenizer.bos_token_id,
    )
    vision = SiglipVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=TOKENS_PER_SIDE**2,
        boi_token_index=special_id(tokenizer, "<start_of_image>"),
        eoi_token_index=special_id(tokenizer, "<end_of_image>"),
        image_token_index=special_id(tokenizer, "<image_soft_token>"),
        eos_token_id=stops,
    )


def special_id(tokenizer: Gemma3Tokenizer, token: str) -> int:
    """The id of a special token that the demo tokenizer must have."""
    number = tokenizer.token_id(token)
    assert number is not None, token
    return number


def copy_settings(folder: Path) -> None:
    """Copies the settings of generation and of the image processor, which training never changes."""
    for name in SETTINGS_FILES:
        if folder.resolve() != DEMO_MODEL:
            shutil.copy(DEMO_MODEL / name, folder / name)


def initialise(model: Gemma3ForConditionalGeneration, seed: int) -> None:
    """Scaled normal weights; the norms after each sublayer start small, so that a deep residual stream stays small."""
    torch.manual_seed(seed)
    quiet = (2 * model.text_config.num_hidden_layers) ** -0.5 - 1.0
    for name, parameter in model.named_parameters():
        if name.endswith(("post_attention_layernorm.weight", "post_feedforward_layernorm.weight")):
            nn.init.constant_(parameter, quiet)
        elif name.endswith("mm_input_projection_weight"):
            nn.init.normal_(parameter, std=0.5 * parameter.shape[0] ** -0.5)
        elif name.endswith("embed_tokens.weight"):
            nn.init.normal_(parameter, std=0.02)
        elif name.endswith("position_embedding.weight"):
            nn.init.normal_(parameter, std=0.3)
        elif "patch_embedding" in name and parameter.ndim == 4:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.7 * parameter.shape[1] ** -0.5)
