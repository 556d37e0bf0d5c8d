"""The demo model's shape, its initial weights, and the extra heads of the dense loss."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from gemma3_core.config import Gemma3Config, Gemma3TextConfig, RopeParameters, SiglipVisionConfig
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.tokenizer import Gemma3Tokenizer
from training.drawing.dense_labels import (
    CHARACTERS_PER_TOKEN,
    HEIGHTS,
    PATCHES_PER_SIDE,
    POINTS_PER_PATCH,
    TOKENS_PER_SIDE,
)
from training.language.words import CHARACTERS
from training.worlds.scenes.scenes import COLORS, SHAPES, is_heldout_pair

# Widths are multiples of 128, so that int4 with group size 128 fits each of the decoder's linears.
TEXT_WIDTH = 256
VISION_WIDTH = 384
IMAGE_SIZE = 224
PATCH_SIZE = IMAGE_SIZE // PATCHES_PER_SIDE
IGNORED = -100
"""Label of what is not learnt, as in torch's cross_entropy."""
DENSE_HEADS = "dense_heads.pt"
"""The file of a checkpoint in training with the heads of the dense loss."""
NEVER = -1e4
"""Logit of what is left out of a loss; finite in bfloat16."""
_CHARACTER_WEIGHT = 16.0  # of a cell with a character against an empty one: few have any


def demo_config(tokenizer: Gemma3Tokenizer) -> Gemma3Config:
    """The true architecture at small size: both layer kinds, 13.3 million weights."""
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
        rope={"full_attention": RopeParameters(1_000_000.0), "sliding_attention": RopeParameters(10_000.0)},
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


def write_processor_files(folder: Path, end_of_turn: int) -> None:
    """generation_config.json, preprocessor_config.json and processor_config.json beside the weights."""
    generation = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": [1, end_of_turn], "do_sample": False}
    image = {
        "image_processor_type": "Gemma3ImageProcessor",
        "processor_class": "Gemma3Processor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "resample": 2,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "image_seq_length": TOKENS_PER_SIDE**2,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "do_convert_rgb": None,
        "do_pan_and_scan": None,
        "pan_and_scan_max_num_crops": None,
        "pan_and_scan_min_crop_size": None,
        "pan_and_scan_min_ratio_to_activate": None,
    }
    processor = {"image_seq_length": TOKENS_PER_SIDE**2, "processor_class": "Gemma3Processor"}
    files = {
        "generation_config.json": generation,
        "preprocessor_config.json": image,
        "processor_config.json": processor,
    }
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def initialise(model: Gemma3ForConditionalGeneration, seed: int) -> None:
    """Scaled normal weights; the norms behind each sublayer begin small, so that depth does not shout."""
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


@dataclass(frozen=True)
class DenseLabels:
    """dense_labels.PictureLabels of N pictures, [N, size] each; IGNORED is not learnt."""

    patch_shape: torch.Tensor
    patch_color: torch.Tensor
    patch_centre: torch.Tensor
    token_shape: torch.Tensor
    token_color: torch.Tensor
    patch_character: torch.Tensor
    token_characters: torch.Tensor
    token_height: torch.Tensor


class DenseHeads(nn.Module):
    """Reads shape, color, centres, characters, sizes and places off patches and soft tokens; thrown away later.

    A soft token that tells its own column and row can be compared with others: left of, above, the label below a
    bar. Without `characters` or `heights`, their heads are there and neither used nor trained.
    """

    def __init__(self, characters: bool = False, heights: bool = False) -> None:
        super().__init__()
        self.characters = characters
        self.heights = heights
        self.sizes = (len(SHAPES) + 1, len(COLORS) + 1, 2)
        self.patch = nn.Linear(VISION_WIDTH, sum(self.sizes))
        self.token = nn.Linear(TEXT_WIDTH, self.sizes[0] + self.sizes[1])
        with torch.random.fork_rng(devices=[]):  # what is drawn after the older heads stays as it was
            self.patch_character = nn.Linear(VISION_WIDTH, POINTS_PER_PATCH * (len(CHARACTERS) + 1))
            self.token_characters = nn.Linear(TEXT_WIDTH, CHARACTERS_PER_TOKEN * (len(CHARACTERS) + 1))
            self.token_height = nn.Linear(TEXT_WIDTH, HEIGHTS + 1)
            self.token_place = nn.Linear(TEXT_WIDTH, 2 * TOKENS_PER_SIDE)  # column, row
        pairs = [[is_heldout_pair(shape, color) for shape in ("", *SHAPES)] for color in ("", *COLORS)]
        self.unseen: torch.Tensor
        self.register_buffer("unseen", torch.tensor(pairs), persistent=False)

    def load(self, state: dict[str, torch.Tensor]) -> list[str]:
        """Takes over saved weights; returns the names of the heads that these lack, which stay fresh.

        Raises RuntimeError where a head has another shape, or where weights are left over.
        """
        missing, left_over = self.load_state_dict(state, strict=False)
        fresh = sorted({name.split(".")[0] for name in missing})
        if left_over or not set(fresh) <= {"patch_character", "token_characters", "token_height", "token_place"}:
            raise RuntimeError(f"dense heads: missing {fresh}, left over {left_over}")
        return fresh

    def forward(self, patches: torch.Tensor, tokens: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        """Weighted cross-entropy over all readings of patches [N, 256, E] and soft tokens [N, 64, E]."""
        # Soft tokens join a residual stream that every layer normalises: what counts is their direction.
        normed = F.rms_norm(tokens, tokens.shape[-1:])
        shape, color = self.token(normed).split(self.sizes[:2], dim=-1)
        shape, color = self._spared(shape, color, labels.token_shape, labels.token_color)
        token_loss = 0.75 * _rare_weighted(shape, labels.token_shape) + 0.25 * _rare_weighted(color, labels.token_color)
        loss = 0.6 * self._shape_loss(patches, labels) + 0.4 * token_loss + 0.1 * self._place_loss(normed, labels)
        if self.characters:
            read = self.token_characters(normed).unflatten(-1, (CHARACTERS_PER_TOKEN, -1)).flatten(1, 2)
            token_characters = _rare_weighted(read, labels.token_characters, _CHARACTER_WEIGHT)
            loss = loss + 0.4 * self._character_loss(patches, labels) + 0.4 * token_characters
        if self.heights:
            loss = loss + 0.2 * _rare_weighted(self.token_height(normed), labels.token_height)
        return loss

    def _place_loss(self, tokens: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        """Of the columns and rows that the soft tokens [N, 64, E] tell, of the pictures that have labels."""
        labelled = (labels.token_characters != IGNORED).any(dim=1, keepdim=True)
        number = torch.arange(TOKENS_PER_SIDE**2, device=tokens.device)
        column, row = self.token_place(tokens).flatten(0, 1).split(TOKENS_PER_SIDE, dim=-1)
        columns, rows = (
            torch.where(labelled, place, IGNORED).flatten()
            for place in (number % TOKENS_PER_SIDE, number // TOKENS_PER_SIDE)
        )
        told = labelled.sum() * len(number)
        loss = F.cross_entropy(column, columns, reduction="sum") + F.cross_entropy(row, rows, reduction="sum")
        return loss / told.clamp(min=1)

    def patch_loss(self, patches: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        """Of the readings of patches [N, P, E] alone; the labels of patches are [N, P], of characters [N, 2 P]."""
        loss = self._shape_loss(patches, labels)
        return loss + self._character_loss(patches, labels) if self.characters else loss

    def _character_loss(self, patches: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        read = self.patch_character(patches).unflatten(-1, (POINTS_PER_PATCH, -1)).flatten(1, 2)
        return _rare_weighted(read, labels.patch_character, _CHARACTER_WEIGHT)

    def _shape_loss(self, patches: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        """Shape, color and centre; shapes, the slow part, weigh most."""
        shape, color, centre = labels.patch_shape, labels.patch_color, labels.patch_centre
        read_shape, read_color, read_centre = self.patch(patches).split(self.sizes, dim=-1)
        read_shape, read_color = self._spared(read_shape, read_color, shape, color)
        predicted = (read_shape, read_color, read_centre)
        losses = [_rare_weighted(p, label) for p, label in zip(predicted, (shape, color, centre), strict=True)]
        return 0.7 * losses[0] + 0.15 * losses[1] + 0.15 * losses[2]

    def _spared(
        self, shape_logits: torch.Tensor, color_logits: torch.Tensor, shape: torch.Tensor, color: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits without the classes that would make a held-out pair.

        Else "what is blue is never a heart" is learnt, which is true of the training pictures only.
        """
        unseen_shape = self.unseen[color.clamp(min=0)]
        unseen_color = self.unseen.T[shape.clamp(min=0)]
        return shape_logits.masked_fill(unseen_shape, NEVER), color_logits.masked_fill(unseen_color, NEVER)


def _rare_weighted(logits: torch.Tensor, target: torch.Tensor, rare: float = 4.0) -> torch.Tensor:
    """Cross-entropy of [N, P, classes] with cells that hold something weighing `rare` times the empty ones."""
    logits, target = logits.flatten(0, 1), target.flatten()
    losses = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED)
    weights = (target != IGNORED) * (1.0 + (rare - 1.0) * (target > 0))
    return (losses * weights).sum() / weights.sum().clamp(min=1)
