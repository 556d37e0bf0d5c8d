"""The attention mask: which query may attend to which key, by their positions.

Prefill, decode, KV cache and visualiser all call `attention_mask`. A query may attend to a key

- on global layers: if the key is not later than the query, or both lie in the same image block;
- on local layers: if that holds AND query - key < window (one-sided: later keys of the same image
  block always pass);
- never, if the key is padding or lies in another document of a packed row (see `documents`).

An image block is one run of soft tokens, without its begin and end markers; each crop is its own
block. Six tokens, `a [ I I ] b` with the block at 2 and 3, window 3 (x: may attend):

    global                local
        a [ I I ] b           a [ I I ] b
      a x . . . . .         a x . . . . .
      [ x x . . . .         [ x x . . . .
      I x x x x . .         I x x x x . .
      I x x x x . .         I . x x x . .
      ] x x x x x .         ] . . x x x .
      b x x x x x x         b . . . x x x

Source: transformers since pull request 46850 (`create_masks_for_vision_model`).
"""

import torch

NO_BLOCK = -1
"""Block id of a text token."""

PADDING = -1
"""Position of a padding token."""


def attention_mask(
    query_positions: torch.Tensor,
    key_positions: torch.Tensor,
    query_blocks: torch.Tensor,
    key_blocks: torch.Tensor,
    window: int | None,
    documents: torch.Tensor | None = None,
) -> torch.Tensor:
    """True where a query may attend to a key.

    Positions count all tokens of a row from 0; PADDING marks padding. Blocks are ids of image blocks; NO_BLOCK marks
    text. `documents` [B, T] are ids of a packed row's documents, whose tokens are both queries and keys. Queries
    [B, T], keys [B, S]; returns bool [B, T, S].
    """
    query, key = query_positions[:, :, None], key_positions[:, None, :]
    same_block = (query_blocks[:, :, None] == key_blocks[:, None, :]) & (query_blocks != NO_BLOCK)[:, :, None]
    allowed = (key <= query) | same_block
    if window is not None:
        allowed = allowed & (query - key < window)
    if documents is not None:
        allowed = allowed & (documents[:, :, None] == documents[:, None, :])
    return allowed & (key != PADDING)


def documents(position_ids: torch.Tensor) -> torch.Tensor:
    """Document ids [B, T] of packed rows, in which positions [B, T] begin again.

    Positions 0 1 2 3 0 1 2 are documents 0 0 0 0 1 1 1: a document goes on as long as the position grows by 1.
    Source: transformers' `find_packed_sequence_indices`.
    """
    begins = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
    return begins.cumsum(dim=1)


def image_blocks(token_type_ids: torch.Tensor, first_position: int = 0) -> torch.Tensor:
    """Block ids [B, T] from token types [B, T] (1 is a soft token): the position of the run's first token.

    `first_position` is the position of the first column; it keeps ids distinct from those in the cache.
    """
    is_soft = token_type_ids == 1
    before = torch.nn.functional.pad(is_soft, (1, 0))[:, :-1]
    columns = torch.arange(first_position, first_position + is_soft.shape[1], device=is_soft.device).expand(
        is_soft.shape
    )
    starts = torch.where(is_soft & ~before, columns, NO_BLOCK)
    return torch.where(is_soft, starts.cummax(dim=1).values, NO_BLOCK)


def divides_a_block(blocks: torch.Tensor) -> torch.Tensor:
    """True [T] where cutting before a column would split an image block in any row of `blocks` [B, T]."""
    same = (blocks[:, 1:] == blocks[:, :-1]) & (blocks[:, 1:] != NO_BLOCK)
    return torch.nn.functional.pad(same.any(dim=0), (1, 0))
