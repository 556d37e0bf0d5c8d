"""What an engine tells about an answer: its prompt, its masks, where it looked, and whether that mattered.

Each function takes a model, its processor and the prompt of an answered request, read again; nothing is kept in
between. The engine waits for its turn in the queue and then calls them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.engine.api import MAX_NEW_TOKENS, Answered
from gemma3_core.engine.prompts import Prompt, Tiles, encode
from gemma3_core.errors import AttentionError
from gemma3_core.generation.grammar import Grammar
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.inspection.attention import Check, with_answer
from gemma3_core.inspection.confidence import token_text
from gemma3_core.inspection.heat_maps import AttentionMap, LayerChoice, attention_map
from gemma3_core.inspection.mask_view import MaskView, mask_view
from gemma3_core.inspection.occlusion import occlusion
from gemma3_core.inspection.prompt import PromptToken, Tile, prompt_tokens, tiles_of
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Model
from gemma3_core.processor import Gemma3Processor

T_co = TypeVar("T_co", covariant=True)

Decode = Callable[[Callable[[], None], int], None]
"""Does the work of decoding a picture, which needs this many bytes of memory."""


class Look(Protocol[T_co]):
    """A look at an answer, with its prompt (which has its tiles), the model that gave it and, if it had to fit a JSON
    schema, the grammar of that. It can be pickled."""

    def __call__(
        self,
        prompt: Prompt,
        processor: Gemma3Processor,
        model: Model,
        check: Check,
        decode: Decode,
        grammar: Grammar | None,
    ) -> T_co: ...


@dataclass(frozen=True)
class PromptView:
    """The tokens of a prompt, and the tiles that its image blocks stand for, in order."""

    tokens: tuple[PromptToken, ...]
    tiles: tuple[Tile, ...]

    @property
    def picture_sizes(self) -> list[tuple[int, int]]:
        """Width and height in pixels of each picture, in order."""
        return [(tile.box.right, tile.box.bottom) for tile in self.tiles if tile.crop is None]


@dataclass(frozen=True)
class OcclusionReport:
    """How hiding `box` of picture number `picture` (from 0) changed the token `text` of an answer.

    `before` and `after` are the token's probabilities; `answer` is the greedy answer with the box hidden. Both keep to
    the JSON schema of an answer that had one.
    """

    picture: int
    box: Box
    text: str
    before: float
    after: float
    answer: str


def check_answered(answered: Answered, prompt: Prompt, config: Gemma3TextConfig) -> None:
    """Raises AttentionError if the prompt, read again, differs from the one that was answered, if both don't fit, or
    for tokens that the model doesn't have."""
    if any(not 0 <= token < config.vocab_size for token in answered.done.token_ids):
        raise AttentionError("This answer has tokens that this model doesn't have. Ask again.")
    asked = answered.done.stats.num_images
    if len(prompt.pictures) != asked:
        raise AttentionError(
            f"This answer is about {asked} pictures, but only {len(prompt.pictures)} of them are still there. "
            "Ask again with all of them."
        )
    if prompt.num_tokens != answered.done.stats.prompt_tokens:
        raise AttentionError(
            f"The prompt has {prompt.num_tokens:,} tokens now but had {answered.done.stats.prompt_tokens:,}: the "
            "pictures or their crops have changed. Ask again."
        )
    context_length = config.max_position_embeddings
    if (length := prompt.num_tokens + len(answered.done.token_ids)) > context_length:
        raise AttentionError(
            f"Prompt and answer have {length:,} tokens; this model's context has {context_length:,}. Ask again."
        )


def forward_inputs(
    prompt: Prompt, processor: Gemma3Processor, model: Model, check: Check | None = None
) -> dict[str, torch.Tensor]:
    """The prompt as inputs of `forward`, [1, T] on the model's device; a single row has no padding and needs no mask.

    The prompt must have its tiles; they are encoded one at a time. Raises what `check` raises.
    """
    inputs = {"input_ids": prompt.input_ids.to(model.device)}
    if not isinstance(model, Gemma3ForConditionalGeneration):
        return inputs
    inputs["token_type_ids"] = prompt.token_type_ids.to(model.device)
    parts = []
    for tile in prompt.all_tiles():
        if check is not None:
            check()
        parts.append(encode(model, processor, [tile]))
    return {**inputs, "soft_tokens": torch.cat(parts)} if parts else inputs


def view_prompt(prompt: Prompt, processor: Gemma3Processor) -> PromptView:
    """The prompt's tokens and tiles."""
    tokens = prompt_tokens(processor.tokenizer, prompt.input_ids, None, prompt.token_type_ids)
    return PromptView(tokens, tiles_in(prompt, prompt.token_type_ids))


def view_mask(prompt: Prompt, processor: Gemma3Processor, model: Model) -> MaskView:
    """The masks of the prompt for each kind of layer, as the answer's forward pass used them."""
    types = prompt.token_type_ids if isinstance(model, Gemma3ForConditionalGeneration) else None
    return mask_view(model.text_config, processor.tokenizer, prompt.input_ids, token_type_ids=types)


def view_attention(
    prompt: Prompt,
    inputs: Mapping[str, torch.Tensor],
    answer_ids: Sequence[int],
    chosen: Sequence[int],
    processor: Gemma3Processor,
    model: Model,
    layer: LayerChoice,
    head: int | None,
    check: Check | None = None,
) -> AttentionMap:
    """Where the answer's tokens numbered `chosen` (from 0) looked when they were written, as the mean over them.

    `inputs` are the prompt's `forward_inputs`. Raises AttentionError if the answer has no such tokens,
    UnsupportedOptionError, and what `check` raises.
    """
    if not chosen or min(chosen) < 0 or max(chosen) >= len(answer_ids):
        raise AttentionError(
            f"The answer has {len(answer_ids)} tokens, numbered from 0; choose at least one of them, "
            f"got {list(chosen)}."
        )
    # Each token is written by the row before it, so the rows from the last chosen token on are not needed.
    turn = with_answer(inputs, answer_ids[: max(chosen)])
    types = turn.get("token_type_ids")
    tokens = prompt_tokens(processor.tokenizer, turn["input_ids"], None, types)
    rows = [prompt.num_tokens - 1 + number for number in chosen]
    return attention_map(model, turn, rows, tokens, tiles_in(prompt, types), layer, head, check)


def look_at_attention(
    answered: Answered,
    tokens: Sequence[int],
    layer: LayerChoice,
    head: int | None,
    prompt: Prompt,
    processor: Gemma3Processor,
    model: Model,
    check: Check,
    _decode: Decode,
    _grammar: Grammar | None,
) -> AttentionMap:
    """A Look: where the answer's `tokens` looked. Raises what `view_attention` raises."""
    inputs = forward_inputs(prompt, processor, model, check)
    return view_attention(prompt, inputs, answered.done.token_ids, tokens, processor, model, layer, head, check)


def look_without_region(
    answered: Answered,
    token: int,
    picture: int | None,
    box: Box | None,
    prompt: Prompt,
    processor: Gemma3Processor,
    model: Model,
    check: Check,
    decode: Decode,
    grammar: Grammar | None,
) -> OcclusionReport:
    """A Look: what hiding `box`, or the hottest region of the `token`'s map, changes.

    Raises what `region_to_hide` and `view_occlusion` raise.
    """
    inputs = forward_inputs(prompt, processor, model, check)

    def hottest(among: int | None) -> tuple[int, Box]:
        ids = answered.done.token_ids
        seen = view_attention(prompt, inputs, ids, [token], processor, model, "global", None, check)
        tile, found = seen.hottest(among)
        return tile.picture, found

    region = region_to_hide(prompt, picture, box, hottest)
    tiles = Tiles(prompt, processor.image_processor, region)
    for _, work, num_bytes in tiles.jobs():
        decode(work, 2 * num_bytes)  # the picture and a copy without the region
    without = forward_inputs(tiles.prompt(), processor, model, check)
    return view_occlusion(inputs, without, region, answered, token, processor, model, check, grammar)


def region_to_hide(
    prompt: Prompt,
    picture: int | None,
    box: Box | None,
    hottest: Callable[[int | None], tuple[int, Box]],
) -> tuple[int, Box]:
    """The picture's number and the box to hide in it; `hottest` finds the hottest region of one picture, or of any.

    Raises AttentionError if there is no such picture, and what `hottest` raises.
    """
    count = len(prompt.pictures)
    if not count:
        raise AttentionError("This question had no picture, so there is no region to hide. Ask about a picture.")
    if picture is not None and not 0 <= picture < count:
        raise AttentionError(f"There is no picture number {picture}. Choose one from 0 to {count - 1}.")
    if box is None:
        return hottest(picture)
    if picture is None and count > 1:
        raise AttentionError(f"Say which of the {count} pictures the region lies in.")
    return picture or 0, box


def view_occlusion(
    inputs: Mapping[str, torch.Tensor],
    inputs_hidden: Mapping[str, torch.Tensor],
    region: tuple[int, Box],
    answered: Answered,
    token: int,
    processor: Gemma3Processor,
    model: Model,
    check: Check | None = None,
    grammar: Grammar | None = None,
) -> OcclusionReport:
    """How hiding a region changed the answer's token number `token`; both inputs are `forward_inputs`.

    Raises AttentionError if there is no such token, and what `check` raises.
    """
    most, stops = answered.request.max_new_tokens or MAX_NEW_TOKENS, model.generation_config.stop_ids
    with torch.inference_mode():
        done = occlusion(model, inputs, inputs_hidden, answered.done.token_ids, token, most, stops, check, grammar)
    tokenizer = processor.tokenizer
    return OcclusionReport(
        *region,
        token_text(tokenizer, done.token_id),
        done.before,
        done.after,
        tokenizer.decode(list(done.answer_ids), skip_special_tokens=True),
    )


def tiles_in(prompt: Prompt, token_type_ids: torch.Tensor | None) -> tuple[Tile, ...]:
    """The tiles of a prompt and its answer; `token_type_ids` cover both."""
    if not prompt.pictures or token_type_ids is None:
        return ()
    sizes, crops = [picture.size for picture in prompt.pictures], [picture.crops for picture in prompt.pictures]
    return tiles_of(token_type_ids.cpu(), sizes, crops)
