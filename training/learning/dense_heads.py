"""The dense loss: auxiliary heads predict what lies in each patch and soft token. They are not shipped."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from training.drawing.colors import COLORS
from training.drawing.dense_labels import CHARACTERS_PER_TOKEN, HEIGHTS, POINTS_PER_PATCH, TOKENS_PER_SIDE
from training.drawing.fonts import CHARACTERS
from training.drawing.geometry import SHAPES
from training.learning.model import TEXT_WIDTH, VISION_WIDTH
from training.worlds.scenes.scenes import is_heldout_pair

IGNORED = -100
"""The label that the loss skips, as in torch's cross_entropy."""
DENSE_HEADS = "dense_heads.pt"
"""The file of the heads, beside a checkpoint in training."""
NEVER = -1e4
"""Logit of a class that the loss leaves out; finite in bfloat16."""
_CHARACTER_WEIGHT = 16.0  # weight of a cell with a character; empty ones, the most, have 1


@dataclass(frozen=True)
class DenseLabels:
    """dense_labels.PictureLabels of N pictures, [N, size] each; IGNORED is skipped."""

    patch_shape: torch.Tensor
    patch_color: torch.Tensor
    patch_centre: torch.Tensor
    token_shape: torch.Tensor
    token_color: torch.Tensor
    patch_character: torch.Tensor
    token_characters: torch.Tensor
    token_height: torch.Tensor


class DenseHeads(nn.Module):
    """Predicts shapes, colors, centres, characters, sizes and places from patches and soft tokens.

    A soft token that knows its column and row can be compared with others: left of, above, the label below a bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes = (len(SHAPES) + 1, len(COLORS) + 1, 2)
        self.patch = nn.Linear(VISION_WIDTH, sum(self.sizes))
        self.token = nn.Linear(TEXT_WIDTH, self.sizes[0] + self.sizes[1])
        self.patch_character = nn.Linear(VISION_WIDTH, POINTS_PER_PATCH * (len(CHARACTERS) + 1))
        self.token_characters = nn.Linear(TEXT_WIDTH, CHARACTERS_PER_TOKEN * (len(CHARACTERS) + 1))
        self.token_height = nn.Linear(TEXT_WIDTH, HEIGHTS + 1)
        self.token_place = nn.Linear(TEXT_WIDTH, 2 * TOKENS_PER_SIDE)  # column, row
        pairs = [[is_heldout_pair(shape, color) for shape in ("", *SHAPES)] for color in ("", *COLORS)]
        self.unseen: torch.Tensor
        self.register_buffer("unseen", torch.tensor(pairs), persistent=False)

    def forward(self, patches: torch.Tensor, tokens: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        """Weighted cross-entropy of all predictions from patches [N, 256, E] and soft tokens [N, 64, E]."""
        # Every layer normalises the residual stream that soft tokens join: only their direction counts.
        normed = F.rms_norm(tokens, tokens.shape[-1:])
        shape, color = self.token(normed).split(self.sizes[:2], dim=-1)
        shape, color = self._spared(shape, color, labels.token_shape, labels.token_color)
        token_loss = 0.75 * _rare_weighted(shape, labels.token_shape) + 0.25 * _rare_weighted(color, labels.token_color)
        loss = 0.6 * self._shape_loss(patches, labels) + 0.4 * token_loss + 0.1 * self._place_loss(normed, labels)
        read = self.token_characters(normed).unflatten(-1, (CHARACTERS_PER_TOKEN, -1)).flatten(1, 2)
        token_characters = _rare_weighted(read, labels.token_characters, _CHARACTER_WEIGHT)
        read = self.patch_character(patches).unflatten(-1, (POINTS_PER_PATCH, -1)).flatten(1, 2)
        patch_characters = _rare_weighted(read, labels.patch_character, _CHARACTER_WEIGHT)
        loss = loss + 0.4 * patch_characters + 0.4 * token_characters
        return loss + 0.2 * _rare_weighted(self.token_height(normed), labels.token_height)

    def _place_loss(self, tokens: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        """Loss of the columns and rows that soft tokens [N, 64, E] predict, over the labelled pictures."""
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

    def _shape_loss(self, patches: torch.Tensor, labels: DenseLabels) -> torch.Tensor:
        """Shape, color and centre; shapes weigh most because they are learnt slowest."""
        shape, color, centre = labels.patch_shape, labels.patch_color, labels.patch_centre
        read_shape, read_color, read_centre = self.patch(patches).split(self.sizes, dim=-1)
        read_shape, read_color = self._spared(read_shape, read_color, shape, color)
        predicted = (read_shape, read_color, read_centre)
        losses = [_rare_weighted(p, label) for p, label in zip(predicted, (shape, color, centre), strict=True)]
        return 0.7 * losses[0] + 0.15 * losses[1] + 0.15 * losses[2]

    def _spared(
        self, shape_logits: torch.Tensor, color_logits: torch.Tensor, shape: torch.Tensor, color: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks the classes that would make a held-out pair.

        Otherwise the heads learn that nothing blue is a heart, which is true only of the training pictures.
        """
        unseen_shape = self.unseen[color.clamp(min=0)]
        unseen_color = self.unseen.T[shape.clamp(min=0)]
        return shape_logits.masked_fill(unseen_shape, NEVER), color_logits.masked_fill(unseen_color, NEVER)


def _rare_weighted(logits: torch.Tensor, target: torch.Tensor, rare: float = 4.0) -> torch.Tensor:
    """Cross-entropy of [N, P, classes]; a cell that holds something weighs `rare` times an empty one."""
    logits, target = logits.flatten(0, 1), target.flatten()
    losses = F.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED)
    weights = (target != IGNORED) * (1.0 + (rare - 1.0) * (target > 0))
    return (losses * weights).sum() / weights.sum().clamp(min=1)
