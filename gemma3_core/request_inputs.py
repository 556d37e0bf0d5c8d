"""A request -> pictures, chat messages, model inputs."""

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from gemma3_core.errors import ImageError
from gemma3_core.events import Request
from gemma3_core.images import ImageSource, load_image
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.precisions import Model
from gemma3_core.processor import Gemma3Processor


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


def pan_and_scan(request: Request) -> list[bool]:
    """For each picture of the request, whether it is cut."""
    return [
        request.pan_and_scan if turn.pan_and_scan is None else turn.pan_and_scan
        for turn in request.turns
        for _ in turn.pictures
    ]


def load_all(pictures: Sequence[ImageSource]) -> list[Image]:
    """Decodes pictures; among several, an ImageError says which one it is about."""
    loaded = []
    for number, source in enumerate(pictures, 1):
        try:
            loaded.append(load_image(source))
        except ImageError as error:
            if len(pictures) == 1:
                raise
            raise ImageError(f"The {ordinal(number)} picture: {error}") from None
    return loaded


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _messages(request: Request, pictures: Sequence[Sequence[Image]]) -> list[dict[str, Any]]:
    """The request as chat messages; pictures stand before the text of their turn."""
    messages: list[dict[str, Any]] = []
    if request.system_prompt.strip():
        messages.append({"role": "system", "content": [{"type": "text", "text": request.system_prompt}]})
    for turn, images in zip(request.turns, pictures, strict=True):
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
    return messages
