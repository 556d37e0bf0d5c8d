"""Chunks of a prompt: where they end, and which pictures they need."""

from bisect import bisect_right
from typing import Any

import torch

from gemma3_core.errors import PromptError
from gemma3_core.nn.masks import divides_a_block


def chunk_ends(blocks: torch.Tensor | None, total: int, chunk_size: int) -> list[int]:
    """The columns at which the chunks of a prompt of `total` tokens end, each chunk as long as possible.

    Tokens of an image block see one another, so no chunk ends inside a block of any row (`blocks` [B, T], see
    `masks`); a block longer than `chunk_size` is one long chunk. With 4, `t t [ I I I ] t` is read as `t t [`,
    `I I I ]` and `t`: ends 3, 7 and 8.
    """
    divides = torch.zeros(total, dtype=torch.bool) if blocks is None else divides_a_block(blocks).cpu()
    cuts = [*(~divides).nonzero()[:, 0].tolist(), total]  # begins with 0
    ends = [0]
    while ends[-1] < total:
        furthest = cuts[bisect_right(cuts, ends[-1] + chunk_size) - 1]
        ends.append(furthest if furthest > ends[-1] else cuts[bisect_right(cuts, ends[-1])])
    return ends[1:]


def soft_token_places(model: Any, inputs: dict[str, Any]) -> torch.Tensor | None:
    """True [B, T] on soft tokens; None for a prompt of text alone."""
    if inputs.get("token_type_ids") is not None:
        return inputs["token_type_ids"] == 1
    if inputs.get("pixel_values") is None and inputs.get("soft_tokens") is None:
        return None
    if inputs.get("input_ids") is not None:
        return inputs["input_ids"] == model.config.image_token_index
    return places_in_embeddings(inputs["inputs_embeds"], model.get_input_embeddings(), model.config.image_token_index)


def places_in_embeddings(embeds: torch.Tensor, embedding: torch.nn.Embedding, soft_id: int) -> torch.Tensor:
    """True [B, T] where embeddings [B, T, E] are the image token's, to be replaced by soft tokens.

    Raises PromptError if the vocabulary has no such token.
    """
    if soft_id >= len(embedding.weight):
        raise PromptError(
            f"inputs_embeds can't hold places for pictures: the vocabulary has no token {soft_id:,}. "
            "Give input_ids, or insert the soft tokens of get_image_features yourself."
        )
    return (embeds == embedding(torch.tensor(soft_id, device=embeds.device))).all(dim=-1)


class PicturesByColumn:
    """Selects the pictures of a prompt that belong to some of its columns."""

    def __init__(self, soft: torch.Tensor | None, pictures: dict[str, torch.Tensor]):
        """`soft` [B, T] marks soft tokens; each of N pictures fills an equal run of them, row by row.

        `pictures` are inputs [N, …]. Raises PromptError if the runs don't fit.
        """
        self._pictures = pictures
        if not pictures:
            return
        assert soft is not None
        count = next(iter(pictures.values())).shape[0]
        rows, columns = soft.nonzero(as_tuple=True)
        # Only neighbours within a row differ by one.
        places = rows * (soft.shape[1] + 1) + columns
        if count == 0 or len(places) % count or (places.view(count, -1).diff(dim=1) != 1).any():
            raise PromptError(
                f"The prompt has {len(places)} soft tokens, which can't be shared among {count} pictures. Give one "
                "picture for each place."
            )
        self._first_columns = columns.view(count, -1)[:, 0]

    def beginning_in(self, start: int, end: int) -> dict[str, torch.Tensor]:
        """The inputs of the pictures whose first soft token is in columns `start` to `end` - 1."""
        if not self._pictures:
            return {}
        chosen = (self._first_columns >= start) & (self._first_columns < end)
        if not chosen.any():
            return {}
        return {name: value[chosen.to(value.device)] for name, value in self._pictures.items()}
