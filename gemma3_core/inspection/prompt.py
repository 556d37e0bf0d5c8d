"""A prompt as data to show: its tokens, its tiles, and segments of tokens folded together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch

from gemma3_core.errors import PromptError
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.confidence import token_text
from gemma3_core.nn.masks import NO_BLOCK, PADDING, image_blocks
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

TokenKind = Literal["text", "special", "image", "padding"]

_EDGES = (4, 3, 2, 1, 0)


@dataclass(frozen=True)
class PromptToken:
    """One token of a prompt, in a column from 0 (padding counts); `tile` is a soft token's image block, from 0."""

    column: int
    token_id: int
    text: str
    kind: TokenKind
    tile: int | None = None


@dataclass(frozen=True)
class Tile:
    """One tile for the encoder; its soft tokens stand in columns `start` to `stop` - 1.

    `picture` counts the conversation's pictures from 0, `crop` a picture's crops from 0 (None is the whole picture).
    `box` is the tile's part of the original picture, in pixels.
    """

    picture: int
    crop: int | None
    box: Box
    start: int
    stop: int

    @property
    def label(self) -> str:
        """ "picture 1", "picture 1, crop 2": counted from 1, for readers."""
        return f"picture {self.picture + 1}" + ("" if self.crop is None else f", crop {self.crop + 1}")


@dataclass(frozen=True)
class Segment:
    """Neighbouring tokens shown as one: columns `start` to `stop` - 1."""

    start: int
    stop: int
    label: str
    kind: TokenKind | Literal["mixed"]

    def __len__(self) -> int:
        return self.stop - self.start


def prompt_tokens(
    tokenizer: Gemma3Tokenizer,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    token_type_ids: torch.Tensor | None = None,
) -> tuple[PromptToken, ...]:
    """The tokens of a prompt of one row [1, T]. Raises PromptError for several rows."""
    require_one_row(input_ids)
    ids = input_ids[0].tolist()
    positions = mask_positions(input_ids, attention_mask)[0].tolist()
    blocks = [NO_BLOCK] * len(ids) if token_type_ids is None else image_blocks(token_type_ids)[0].tolist()
    number_of = {block: number for number, block in enumerate(sorted(set(blocks) - {NO_BLOCK}))}

    def kind(column: int) -> TokenKind:
        if positions[column] == PADDING:
            return "padding"
        if blocks[column] != NO_BLOCK:
            return "image"
        return "special" if ids[column] in tokenizer.special_ids else "text"

    return tuple(
        PromptToken(column, token_id, token_text(tokenizer, token_id), kind(column), number_of.get(blocks[column]))
        for column, token_id in enumerate(ids)
    )


def mask_positions(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The positions [B, T] that forward gives to `masks`: columns, or PADDING where the mask is 0."""
    columns = torch.arange(input_ids.shape[1], device=input_ids.device).expand(input_ids.shape)
    return columns if attention_mask is None else columns.masked_fill(attention_mask == 0, PADDING)


def require_one_row(input_ids: torch.Tensor) -> None:
    """Raises PromptError unless `input_ids` is [1, T]."""
    if input_ids.ndim != 2 or input_ids.shape[0] != 1 or input_ids.shape[1] == 0:
        raise PromptError(
            f"One conversation at a time can be looked at: input_ids must be [1, tokens], got {list(input_ids.shape)}."
        )


def tiles_of(
    token_type_ids: torch.Tensor, sizes: Sequence[tuple[int, int]], crops: Sequence[Sequence[Box]]
) -> tuple[Tile, ...]:
    """The tiles of a row whose token types are [1, T] (1 is a soft token).

    `sizes` are the pictures' widths and heights in pixels and `crops` the boxes of their crops, picture by
    picture. Raises PromptError if the row has another number of image blocks than there are tiles.
    """
    blocks = image_blocks(token_type_ids)[0]
    starts = sorted(set(blocks.tolist()) - {NO_BLOCK})
    shown: list[tuple[int, int | None, Box]] = []
    for picture, ((width, height), boxes) in enumerate(zip(sizes, crops, strict=True)):
        shown.append((picture, None, Box(0, 0, width, height)))
        shown += [(picture, crop, box) for crop, box in enumerate(boxes)]
    if len(starts) != len(shown):
        raise PromptError(
            f"The prompt has {len(starts)} image blocks, the pictures and their crops make {len(shown)}. "
            "Give the very pictures and pan & scan setting that the prompt was made with."
        )
    lengths = {start: int((blocks == start).sum()) for start in starts}
    return tuple(
        Tile(picture, crop, box, start, start + lengths[start])
        for (picture, crop, box), start in zip(shown, starts, strict=True)
    )


def folded(tokens: Sequence[PromptToken], most: int) -> tuple[Segment, ...]:
    """At most `most` segments (2 or more), made by folding long image blocks and long runs of text.

    The longest runs fold first and keep as many single tokens at both ends as fit. If even one segment a run is too
    many, neighbouring runs fold together.
    """
    if not isinstance(most, int) or most < 2:
        raise PromptError(f"A folded prompt has 2 segments or more, got most={most!r}.")
    if len(tokens) <= most:
        return tuple(_single(token) for token in tokens)
    runs = [list(run) for _, run in groupby(tokens, key=lambda token: (_kind(token), token.tile))]
    longest_first = sorted(range(len(runs)), key=lambda number: -len(runs[number]))
    for edge in _EDGES:
        excess, folding = len(tokens) - most, set()
        for number in longest_first:
            if excess > 0:
                folding.add(number)
                excess -= max(0, len(runs[number]) - (2 * edge + 1))
        if excess <= 0:
            parts = (_folded_run(run, edge) if n in folding else map(_single, run) for n, run in enumerate(runs))
            return tuple(segment for part in parts for segment in part)
    return tuple(_merged([segment for run in runs for segment in _folded_run(run, 0)], most))


def _folded_run(run: list[PromptToken], edge: int) -> Iterator[Segment]:
    """`edge` single tokens, the rest as one segment, `edge` single tokens; a short run stays single."""
    if len(run) <= 2 * edge + 1:
        yield from map(_single, run)
        return
    middle = run[edge : len(run) - edge]
    yield from map(_single, run[:edge])
    yield Segment(middle[0].column, middle[-1].column + 1, _label(middle, whole=edge == 0), _kind(middle[0]))
    yield from map(_single, run[len(run) - edge :])


def _merged(segments: list[Segment], most: int) -> Iterator[Segment]:
    for number in range(most):
        part = segments[number * len(segments) // most : (number + 1) * len(segments) // most]
        if len(part) == 1:
            yield part[0]
            continue
        kinds = {segment.kind for segment in part}
        pictures = sum(segment.kind == "image" for segment in part)
        tokens = part[-1].stop - part[0].start
        label = f"{tokens} tokens" + (f", {pictures} image{'s' * (pictures > 1)}" if pictures else "")
        yield Segment(part[0].start, part[-1].stop, label, kinds.pop() if len(kinds) == 1 else "mixed")


def _single(token: PromptToken) -> Segment:
    text = token.text if token.tile is None else f"<image {token.tile + 1}>"
    return Segment(token.column, token.column + 1, text, token.kind)


def _label(run: list[PromptToken], whole: bool) -> str:
    name = _kind(run[0]) if run[0].tile is None else f"image {run[0].tile + 1}"
    return f"<{name}: {len(run)} {'tokens' if whole else 'more'}>"


def _kind(token: PromptToken) -> TokenKind:
    """Special tokens belong to the text."""
    return "text" if token.kind == "special" else token.kind
