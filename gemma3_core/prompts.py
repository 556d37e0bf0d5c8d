"""A request -> pictures, chat messages, model inputs."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from PIL.Image import Image

from gemma3_core.errors import ImageError
from gemma3_core.events import Request
from gemma3_core.images import ImageSource, load_image, picture_size
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.pan_and_scan import Box
from gemma3_core.precisions import Model
from gemma3_core.processor import Gemma3Processor

Read = TypeVar("Read")


def request_inputs(
    request: Request, pictures: Sequence[Sequence[Image]], processor: Gemma3Processor, model: Model
) -> ModelInputs:
    """The conversation as model inputs [1, T] on the model's device; `pictures` are those of each turn, decoded.

    Visitors' words can't act as special tokens.
    """
    inputs = processor.apply_chat_template(
        processor.escape_messages(_messages(request, pictures)),
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        do_pan_and_scan=pan_and_scan(request),
    )
    return inputs.to(model.device, model.dtype)


def request_tokens(
    request: Request, sizes: Sequence[Sequence[tuple[int, int]]], processor: Gemma3Processor
) -> ModelInputs:
    """input_ids and token_type_ids [1, T], the same as `request_inputs` gives, from the pictures' sizes alone.

    `sizes` are widths and heights of each turn's pictures, in pixels; no pixel is read, so this is quick.
    """
    prompt = processor.apply_chat_template(
        processor.escape_messages(_messages(request, sizes)), add_generation_prompt=True
    )
    counts = [len(boxes) for boxes in crop_boxes(request, sizes, processor)]
    texts = processor.expand_images([prompt], counts)
    tokenizer = processor.tokenizer
    inputs = tokenizer(texts, add_special_tokens=not prompt.startswith(tokenizer.bos_token), return_tensors="pt")
    types = (inputs["input_ids"] == tokenizer.image_token_id).long()
    return ModelInputs({"input_ids": inputs["input_ids"], "token_type_ids": types})


def crop_boxes(
    request: Request, sizes: Sequence[Sequence[tuple[int, int]]], processor: Gemma3Processor
) -> list[list[Box]]:
    """For each picture of the request the boxes of its crops, in its pixels."""
    flat = [size for turn in sizes for size in turn]
    images = processor.image_processor
    return [
        images.with_options(do_pan_and_scan=cut).boxes(*size)
        for size, cut in zip(flat, pan_and_scan(request), strict=True)
    ]


def pan_and_scan(request: Request) -> list[bool]:
    """For each picture of the request, whether it is cut."""
    return [
        request.pan_and_scan if turn.pan_and_scan is None else turn.pan_and_scan
        for turn in request.turns
        for _ in turn.pictures
    ]


def load_all(pictures: Sequence[ImageSource]) -> list[Image]:
    """Decodes pictures; among several, an ImageError says which one it is about."""
    return _each(load_image, pictures)


def sizes_of(pictures: Sequence[ImageSource]) -> list[tuple[int, int]]:
    """Widths and heights in pixels, as `load_all` would give them, and errors as there."""
    return _each(picture_size, pictures)


def _each(read: Callable[[ImageSource], Read], pictures: Sequence[ImageSource]) -> list[Read]:
    results = []
    for number, source in enumerate(pictures, 1):
        try:
            results.append(read(source))
        except ImageError as error:
            if len(pictures) == 1:
                raise
            raise ImageError(f"The {ordinal(number)} picture: {error}") from None
    return results


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _messages(request: Request, pictures: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """The request as chat messages; pictures (or what stands for each) before the text of their turn."""
    messages: list[dict[str, Any]] = []
    if request.system_prompt.strip():
        messages.append({"role": "system", "content": [{"type": "text", "text": request.system_prompt}]})
    for turn, images in zip(request.turns, pictures, strict=True):
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
    return messages
