"""What an engine tells of an answer: its prompt, its masks, where it looked, whether that mattered.

Each function takes a model, its processor and an answered request, whose pictures it reads again; nothing of an
answer is kept between. The engine waits for the model's turn and calls them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image

from gemma3_core.attention_maps import Check, with_answer
from gemma3_core.confidence import token_text
from gemma3_core.errors import AttentionError, ImageError
from gemma3_core.events import Answered, Request
from gemma3_core.heat_maps import AttentionMap, LayerChoice, attention_map
from gemma3_core.mask_view import MaskView, mask_view
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.occlusion import hidden, occlusion
from gemma3_core.pan_and_scan import Box
from gemma3_core.precisions import Model
from gemma3_core.processor import Gemma3Processor
from gemma3_core.prompt_view import PromptToken, Square, prompt_tokens, squares_of
from gemma3_core.request_inputs import crop_boxes, load_all, request_inputs, request_tokens, sizes_of


@dataclass(frozen=True)
class PromptView:
    """The tokens of a prompt, and the squares that its image blocks stand for, in order."""

    tokens: tuple[PromptToken, ...]
    squares: tuple[Square, ...]


@dataclass(frozen=True)
class OcclusionReport:
    """What hiding `box` of picture number `picture` (from 0) did to the token `text` of an answer.

    `before` and `after` are the token's probabilities; `answer` is the greedy answer with the box hidden.
    """

    picture: int
    box: Box
    text: str
    before: float
    after: float
    answer: str


@dataclass(frozen=True)
class Reading:
    """A request read again: its pictures turn by turn, decoded, and its model inputs [1, T]."""

    request: Request
    pictures: tuple[tuple[Image, ...], ...]
    inputs: ModelInputs


@dataclass(frozen=True)
class Tokens:
    """A request's prompt: the sizes of its pictures turn by turn, in pixels, and its ids and types [1, T]."""

    request: Request
    sizes: tuple[tuple[tuple[int, int], ...], ...]
    inputs: ModelInputs


def read_request(request: Request, processor: Gemma3Processor, model: Model) -> Reading:
    """Raises ImageError for pictures that can't be read."""
    pictures = tuple(tuple(load_all(turn.pictures)) for turn in request.turns)
    return Reading(request, pictures, request_inputs(request, pictures, processor, model))


def read_tokens(request: Request, processor: Gemma3Processor) -> Tokens:
    """Needs no model and decodes no picture. Raises ImageError for pictures that can't be read."""
    sizes = tuple(tuple(sizes_of(turn.pictures)) for turn in request.turns)
    return Tokens(request, sizes, request_tokens(request, sizes, processor))


def read_answered(answered: Answered, processor: Gemma3Processor, model: Model) -> Reading:
    """The request of an answer read again, the same as it was then.

    Raises AttentionError where its pictures are gone or are others now.
    """
    given = sum(len(turn.pictures) for turn in answered.request.turns)
    asked = answered.done.stats.num_images
    if given != asked:
        raise AttentionError(
            f"This answer was given about {asked} pictures, of which {given} are still there. "
            "Ask again with all of them."
        )
    try:
        reading = read_request(answered.request, processor, model)
    except ImageError as error:
        raise AttentionError(f"The pictures of this answer are gone ({error}). Add them and ask again.") from None
    tokens, then = reading.inputs["input_ids"].shape[1], answered.done.stats.prompt_tokens
    if tokens != then:
        raise AttentionError(
            f"The prompt has {tokens:,} tokens now and had {then:,}: the pictures or their crops are others. Ask again."
        )
    return reading


def view_prompt(tokens: Tokens, processor: Gemma3Processor) -> PromptView:
    """The prompt's tokens and squares."""
    ids, types = tokens.inputs["input_ids"], tokens.inputs["token_type_ids"]
    squares = _squares(tokens.request, tokens.sizes, types, processor)
    return PromptView(prompt_tokens(processor.tokenizer, ids, None, types), squares)


def view_mask(tokens: Tokens, processor: Gemma3Processor, model: Model) -> MaskView:
    """The masks of the prompt, on each kind of layer, as the answer's forward pass used them."""
    types = tokens.inputs["token_type_ids"] if isinstance(model, Gemma3ForConditionalGeneration) else None
    return mask_view(model.text_config, processor.tokenizer, tokens.inputs["input_ids"], token_type_ids=types)


def view_attention(
    reading: Reading,
    answer_ids: Sequence[int],
    chosen: Sequence[int],
    processor: Gemma3Processor,
    model: Model,
    layer: LayerChoice,
    head: int | None,
    check: Check | None = None,
) -> AttentionMap:
    """Where the answer's tokens number `chosen` (from 0) looked when they were written: the mean over them.

    Raises AttentionError where the answer has no such tokens, UnsupportedOptionError, and what `check` raises.
    """
    if not chosen or min(chosen) < 0 or max(chosen) >= len(answer_ids):
        raise AttentionError(
            f"The answer has {len(answer_ids)} tokens, numbered from 0; choose at least one of them, "
            f"got {list(chosen)}."
        )
    prompt = _forward_inputs(reading)
    # The last token chosen is written by the row before it: nothing from it on is needed.
    turn = with_answer(prompt, answer_ids[: max(chosen)])
    first = prompt["input_ids"].shape[1] - 1
    types = turn.get("token_type_ids")
    tokens = prompt_tokens(processor.tokenizer, turn["input_ids"], None, types)
    rows = [first + number for number in chosen]
    sizes = [[image.size for image in images] for images in reading.pictures]
    squares = _squares(reading.request, sizes, types, processor)
    return attention_map(model, turn, rows, tokens, squares, layer, head, check)


def view_occlusion(
    reading: Reading,
    answer_ids: Sequence[int],
    token: int,
    picture: int | None,
    box: Box | None,
    processor: Gemma3Processor,
    model: Model,
    check: Check | None = None,
) -> OcclusionReport:
    """Hides a box of a picture (both numbered from 0), or the hottest region of the token's own map.

    Raises AttentionError where there is no such token or picture, or the box reaches beyond it, and what `check`
    raises.
    """
    flat = [image for images in reading.pictures for image in images]
    if not flat:
        raise AttentionError("This answer is about no picture, so nothing of it can be hidden.")
    if picture is not None and not 0 <= picture < len(flat):
        raise AttentionError(f"The pictures are numbered 0 to {len(flat) - 1}; there is no number {picture}.")
    if box is None:
        square, box = view_attention(reading, answer_ids, [token], processor, model, "global", None, check).hottest(
            picture
        )
        picture = square.picture
    elif picture is None:
        if len(flat) > 1:
            raise AttentionError(f"Say which of the {len(flat)} pictures the region lies in.")
        picture = 0
    edited = iter([hidden(image, box) if number == picture else image for number, image in enumerate(flat)])
    pictures = [[next(edited) for _ in images] for images in reading.pictures]
    inputs = request_inputs(reading.request, pictures, processor, model)
    without = Reading(reading.request, tuple(map(tuple, pictures)), inputs)
    most, stops = max(reading.request.max_new_tokens, 1), model.generation_config.stop_ids
    with torch.inference_mode():
        prompts = _forward_inputs(reading), _forward_inputs(without)
        done = occlusion(model, *prompts, answer_ids, token, most, stops, check)
    tokenizer = processor.tokenizer
    return OcclusionReport(
        picture,
        box,
        token_text(tokenizer, done.token_id),
        done.before,
        done.after,
        tokenizer.decode(list(done.answer_ids), skip_special_tokens=True),
    )


def _forward_inputs(reading: Reading) -> dict[str, torch.Tensor]:
    """What forward takes of them; one row is never padded, so that it needs no mask."""
    names = ("input_ids", "token_type_ids", "pixel_values")
    return {name: reading.inputs[name] for name in names if name in reading.inputs}


def _squares(
    request: Request,
    sizes: Sequence[Sequence[tuple[int, int]]],
    token_type_ids: torch.Tensor | None,
    processor: Gemma3Processor,
) -> tuple[Square, ...]:
    """`sizes` are those of each turn's pictures."""
    flat = [size for turn in sizes for size in turn]
    if not flat or token_type_ids is None:
        return ()
    return squares_of(token_type_ids.cpu(), flat, crop_boxes(request, sizes, processor))
