"""A prompt's masks as data: which token may attend to which on each kind of layer, and why.

Every entry comes from `masks.attention_mask` with forward's arguments. A row is stored as a few runs of allowed keys,
so that prompts of any length fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from gemma3_core.config.gemma3 import GLOBAL, LOCAL, Gemma3TextConfig
from gemma3_core.errors import PromptError
from gemma3_core.inspection.prompt import PromptToken, Segment, folded, mask_positions, prompt_tokens, require_one_row
from gemma3_core.nn.masks import attention_mask as mask_of
from gemma3_core.nn.masks import image_blocks
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

KindOfLayer = Literal["global", "local"]
Reason = Literal["causal", "same image", "later", "outside the window", "padding"]

_NAMES: dict[str, KindOfLayer] = {GLOBAL: "global", LOCAL: "local"}
_ENTRIES_AT_A_TIME = 2**22


@dataclass(frozen=True)
class LayerMask:
    """The mask of one kind of layer, used by the layers with the numbers `layers`.

    `window` is in tokens; None has no limit. `runs` holds for each query the keys that it may attend to, as runs of
    columns (first, last + 1).
    """

    kind: KindOfLayer
    layers: tuple[int, ...]
    window: int | None
    runs: tuple[tuple[tuple[int, int], ...], ...]

    def allows(self, query: int, key: int) -> bool:
        return any(start <= key < stop for start, stop in self.runs[query])


@dataclass(frozen=True)
class FoldedMask:
    """A mask between segments: `shares[i][j]` is the share of allowed pairs (query in i, key in j), 0 to 1."""

    kind: KindOfLayer
    window: int | None
    shares: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class MaskView:
    """A prompt's tokens, and a mask for each kind of layer that the model has, global first."""

    tokens: tuple[PromptToken, ...]
    masks: tuple[LayerMask, ...]

    def mask(self, kind: KindOfLayer) -> LayerMask:
        """The mask of a kind of layer. Raises PromptError if the model has no such layers."""
        for mask in self.masks:
            if mask.kind == kind:
                return mask
        raise PromptError(f"This model has no {kind} layers, only {', '.join(mask.kind for mask in self.masks)}.")

    def reason(self, kind: KindOfLayer, query: int, key: int) -> Reason:
        """Why a query may attend to a key ("causal", "same image") or may not (the others)."""
        columns = (self.tokens[query], self.tokens[key])
        if "padding" in (columns[0].kind, columns[1].kind):
            return "padding"
        same_image = columns[0].tile is not None and columns[0].tile == columns[1].tile
        if self.mask(kind).allows(query, key):
            return "same image" if same_image else "causal"
        return "later" if key > query and not same_image else "outside the window"

    def folded(self, most: int) -> tuple[tuple[Segment, ...], tuple[FoldedMask, ...]]:
        """At most `most` segments, and each mask between them."""
        segments = folded(self.tokens, most)
        return segments, tuple(FoldedMask(m.kind, m.window, _shares(m.runs, segments)) for m in self.masks)


def mask_view(
    config: Gemma3TextConfig,
    tokenizer: Gemma3Tokenizer,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
) -> MaskView:
    """The masks that forward uses on a prompt of one row [1, T]. Raises PromptError for several rows."""
    require_one_row(input_ids)
    positions = mask_positions(input_ids, attention_mask)
    blocks = torch.full_like(positions, -1) if token_type_ids is None else image_blocks(token_type_ids)
    masks = []
    for name in (GLOBAL, LOCAL):
        layers = tuple(i for i in range(config.num_hidden_layers) if config.layer_type(i) == name)
        if layers:
            window = config.window(name)
            runs = tuple(_runs(positions.cpu().int(), blocks.cpu().int(), window))
            masks.append(LayerMask(_NAMES[name], layers, window, runs))
    return MaskView(prompt_tokens(tokenizer, input_ids, attention_mask, token_type_ids), tuple(masks))


def _runs(positions: torch.Tensor, blocks: torch.Tensor, window: int | None) -> Iterator[tuple[tuple[int, int], ...]]:
    """The runs of each row, for some rows at a time: the whole mask of 131,072 tokens would take 17 GB."""
    total = positions.shape[1]
    at_a_time = max(1, _ENTRIES_AT_A_TIME // total)
    for start in range(0, total, at_a_time):
        rows = slice(start, start + at_a_time)
        mask = mask_of(positions[:, rows], positions, blocks[:, rows], blocks, window)[0]
        padded = np.pad(mask.numpy(), ((0, 0), (1, 1)))
        # Entries that differ from the one before: in turn the first of a run and the first after it.
        row, column = np.divmod(np.flatnonzero(padded[:, 1:] != padded[:, :-1]), total + 1)
        pairs = list(zip(column[::2].tolist(), column[1::2].tolist(), strict=True))
        ends = np.searchsorted(row[::2], np.arange(1, mask.shape[0] + 1)).tolist()
        yield from (tuple(pairs[first:last]) for first, last in zip([0, *ends], ends, strict=False))


def _shares(runs: Sequence[Sequence[tuple[int, int]]], segments: Sequence[Segment]) -> tuple[tuple[float, ...], ...]:
    """The share of allowed pairs for each two segments."""
    edges = np.array([segment.start for segment in segments] + [segments[-1].stop])
    shares = []
    for segment in segments:
        pairs = np.array([run for row in runs[segment.start : segment.stop] for run in row]).reshape(-1, 2)
        # Allowed keys before each edge, summed over the segment's rows.
        before = (np.clip(edges, pairs[:, :1], pairs[:, 1:]) - pairs[:, :1]).sum(axis=0)
        shares.append(tuple((np.diff(before) / np.diff(edges) / len(segment)).tolist()))
    return tuple(shares)
