"""Turns a request into a prompt: ids first, from the pictures' headers alone, then tiles, one picture at a time.

This module bounds what one request makes the server hold or do, over all its turns and before decoding a picture.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import Any

import torch
from PIL.Image import Image

from gemma3_core.engine.api import Request
from gemma3_core.errors import ContextLengthError, ImageError, PromptError
from gemma3_core.images.crops import Crops
from gemma3_core.images.load import ImageSource, PictureHeader, load_image, read_header
from gemma3_core.images.pan_and_scan import Box
from gemma3_core.images.processor import ImageProcessor, Tile
from gemma3_core.inspection.occlusion import hidden
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Model
from gemma3_core.processor import Gemma3Processor

MAX_PICTURES = 64
MAX_PIXELS = 256_000_000
MAX_TILES = 128
MAX_CHARACTERS = 1_000_000
MAX_CHARACTERS_PER_TOKEN = 16  # of the context; longer text can't fit, so it is not tokenized

_DIGEST_BYTES = 16

_PARTS = (
    "{% for part in message.content %}"
    "{{ '<start_of_image>' if part.type == 'image' else part.text if keep else part.text | trim }}"
    "{% endfor %}"
)
_PLAIN_TEXT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% set keep = message.role == 'assistant' %}"
    "{% if not keep and not loop.first %}{{ '\n' }}{% endif %}" + _PARTS + "{% endfor %}"
)
"""For base models: the texts one after the other, each of the visitor's on a line of its own."""
_TURNS = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\n' }}"
    + _PARTS
    + "{{ '<end_of_turn>\n' }}{% endfor %}{{ '<start_of_turn>model\n' }}"
)
"""Gemma 3's chats, for base models that are asked for them."""


@dataclass(frozen=True)
class Picture:
    """One picture of a conversation before decoding, and the boxes of its crops, in its pixels."""

    header: PictureHeader
    crops: tuple[Box, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.header.width, self.header.height

    def digests(self) -> list[bytes]:
        """Digests of the picture and of each crop, from the file and the box."""
        return [self.header.digest, *(_digest(self.header.digest, box) for box in self.crops)]


@dataclass(frozen=True)
class Prompt:
    """A request in the form that the model reads.

    `input_ids` and `token_type_ids` (1 for soft tokens) are [1, T] on the CPU. `tiles` holds each picture's tiles, the
    whole picture first, as 8-bit images at the encoder's size; it is empty before decoding.
    """

    request: Request
    pictures: tuple[Picture, ...]
    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    tiles: tuple[tuple[Tile, ...], ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.input_ids.shape[1]

    @property
    def num_crops(self) -> int:
        return sum(len(picture.crops) for picture in self.pictures)

    def all_tiles(self) -> list[Tile]:
        """The tiles in the order of their image blocks."""
        return [tile for tiles in self.tiles for tile in tiles]

    def digests(self) -> list[bytes]:
        """The digest of each tile, in the same order."""
        return [digest for picture in self.pictures for digest in picture.digests()]


def check_size(request: Request, context_length: int) -> None:
    """Raises ContextLengthError if a request has too many pictures or too much text; fast, opens no picture."""
    pictures = sum(len(turn.pictures) for turn in request.turns)
    if pictures > MAX_PICTURES:
        raise ContextLengthError(
            f"This conversation has {pictures:,} pictures; at most {MAX_PICTURES} are accepted. "
            "Send fewer, or start a new conversation."
        )
    texts = (text for turn in request.turns for text in (turn.text, *turn.captions))
    characters = len(request.system_prompt) + sum(map(len, texts))
    most = min(MAX_CHARACTERS, MAX_CHARACTERS_PER_TOKEN * context_length)
    if characters > most:
        raise ContextLengthError(
            f"This conversation has {characters:,} characters; at most {most:,} are accepted for this model's "
            f"{context_length:,} tokens. Shorten it, or start a new conversation."
        )


def read_prompt(request: Request, processor: Gemma3Processor, continue_text: bool = False) -> Prompt:
    """The prompt without tiles, from the pictures' headers alone.

    `continue_text` decides for a request that leaves it open. Visitors' text can't act as special tokens. Raises
    ImageError naming the broken picture or a crop outside one, PromptError for crops of other pictures, and
    ContextLengthError if the pictures exceed a request's bounds.
    """
    headers = read_headers([picture for turn in request.turns for picture in turn.pictures])
    pictures = tuple(_cut(headers, request, processor.image_processor))
    tiles = len(pictures) + sum(len(picture.crops) for picture in pictures)
    if tiles > MAX_TILES:
        raise ContextLengthError(
            f"This conversation's pictures have {tiles} tiles, crops included; at most {MAX_TILES} are accepted. "
            "Send fewer, switch pan & scan off, or start a new conversation."
        )
    tokenizer = processor.tokenizer
    continues = continue_text if request.continue_text is None else request.continue_text
    text = processor.apply_chat_template(
        processor.escape_messages(_messages(request)),
        add_generation_prompt=True,
        chat_template=_PLAIN_TEXT if continues else processor.chat_template or _TURNS,
    )
    texts = processor.expand_images([text], [len(picture.crops) for picture in pictures])
    ids = tokenizer(texts, add_special_tokens=not text.startswith(tokenizer.bos_token), return_tensors="pt")[
        "input_ids"
    ]
    soft = tokenizer.image_token_id  # None in a vocabulary of text alone
    prompt = Prompt(request, pictures, ids, torch.zeros_like(ids) if soft is None else (ids == soft).long())
    return followed_by(prompt, request.answer_so_far)


def check_crops(crops: Sequence[Crops], pictures: Sequence[ImageSource]) -> None:
    """Raises PromptError unless there are crops for each of the pictures, or none at all."""
    if crops and len(crops) != len(pictures):
        raise PromptError(
            f"A question has crops for {len(crops)} pictures, and {len(pictures)} pictures. Give one entry per picture."
        )


def followed_by(prompt: Prompt, answer: Sequence[int]) -> Prompt:
    """The prompt followed by the tokens of an answer."""
    ids = torch.tensor([answer], dtype=prompt.input_ids.dtype)
    types = torch.cat([prompt.token_type_ids, torch.zeros_like(ids)], dim=1)
    return replace(prompt, input_ids=torch.cat([prompt.input_ids, ids], dim=1), token_type_ids=types)


def read_headers(sources: Sequence[ImageSource]) -> list[PictureHeader]:
    """Reads the pictures' headers. Raises ImageError naming the broken one, and ContextLengthError for too many
    pixels."""
    headers = []
    for number, source in enumerate(sources):
        with numbered(number, len(sources)):
            headers.append(read_header(source))
    # A file that appears twice is decoded once.
    pixels = sum({header.digest: header.width * header.height for header in headers}.values())
    if pixels > MAX_PIXELS:
        raise ContextLengthError(
            f"These pictures have {pixels / 1e6:,.0f} megapixels in all; at most {MAX_PIXELS / 1e6:,.0f} are accepted. "
            "Make them smaller, send fewer, or start a new conversation."
        )
    return headers


class Tiles:
    """Decodes the tiles of a prompt's pictures: equal pictures once, and none whose tiles the prompt already has.

    `region` is a picture's number and a region to hide in it, in its pixels.
    """

    def __init__(self, prompt: Prompt, images: ImageProcessor, region: tuple[int, Box] | None = None):
        self._prompt, self._images, self._region = prompt, images, region
        known = enumerate(prompt.tiles)
        self._tiles: dict[Any, tuple[Tile, ...]] = {
            self._key(number): tiles for number, tiles in known if self._hidden_in(number) is None
        }

    @property
    def num_bytes(self) -> int:
        """Bytes of all tiles of the prompt, at 8 bits per color."""
        size = self._images.config.size.for_picture
        different = {self._key(number): picture for number, picture in enumerate(self._prompt.pictures)}
        areas = [
            math.prod(size(box.bottom - box.top, box.right - box.left))
            for picture in different.values()
            for box in (Box(0, 0, *picture.size), *picture.crops)
        ]
        return 3 * sum(areas)

    def jobs(self) -> Iterator[tuple[int, Callable[[], None], int]]:
        """Yields each picture to decode: its number, the work, and the bytes of memory that it needs.

        The work raises ImageError naming the broken picture.
        """
        for number, picture in enumerate(self._prompt.pictures):
            if self._key(number) not in self._tiles:
                yield number, partial(self._decode, number), picture.header.decoding_bytes

    def prompt(self) -> Prompt:
        """The prompt with its tiles; call it after all jobs."""
        tiles = tuple(self._tiles[self._key(number)] for number in range(len(self._prompt.pictures)))
        return replace(self._prompt, tiles=tiles)

    def _key(self, number: int) -> Any:
        picture = self._prompt.pictures[number]
        return picture.header.digest, picture.crops, self._hidden_in(number)

    def _hidden_in(self, number: int) -> Box | None:
        return self._region[1] if self._region is not None and self._region[0] == number else None

    def _decode(self, number: int) -> None:
        picture, box = self._prompt.pictures[number], self._hidden_in(number)
        with numbered(number, len(self._prompt.pictures)):
            image = load_picture(picture.header)
        if box is not None:
            image = hidden(image, box)
        self._tiles[self._key(number)] = tuple(self._images.cut(image, picture.crops))


@torch.inference_mode()
def encode(model: Model, processor: Gemma3Processor, tiles: Sequence[Tile]) -> torch.Tensor:
    """Encodes N tiles in one pass; returns soft tokens [N, tokens, E]."""
    assert isinstance(model, Gemma3ForConditionalGeneration)
    pixels = processor.image_processor.pixel_values(tiles).to(model.device, model.dtype)
    return model.get_image_features(pixels).pooler_output


def load_picture(header: PictureHeader) -> Image:
    """Decodes the whole picture. Raises ImageError if it is damaged, gone or changed."""
    image = load_image(header.source)
    if image.size != (header.width, header.height):
        raise ImageError("The picture's file has changed since it was added. Add it again.")
    return image


@contextmanager
def numbered(number: int, count: int) -> Iterator[None]:
    """If there are several pictures, an ImageError says which one it is about."""
    try:
        yield
    except ImageError as error:
        if count == 1:
            raise
        raise ImageError(f"The {ordinal(number + 1)} picture: {error}") from None


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, …"""
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _cut(headers: Sequence[PictureHeader], request: Request, images: ImageProcessor) -> Iterator[Picture]:
    """Each picture of the request with its crops, chosen ones or pan & scan's. Raises ImageError naming the picture,
    and PromptError where a turn has crops for more or fewer pictures than it has."""
    coming = enumerate(headers)
    for turn in request.turns:
        check_crops(turn.crops, turn.pictures)
        cut = request.pan_and_scan if turn.pan_and_scan is None else turn.pan_and_scan
        by_setting = images.with_options(do_pan_and_scan=cut)
        for crops in turn.crops or [None] * len(turn.pictures):
            number, header = next(coming)
            with numbered(number, len(headers)):
                yield Picture(header, tuple(by_setting.boxes(header.width, header.height, crops)))


def _digest(file: bytes, box: Box) -> bytes:
    return blake2b(file + repr(box).encode(), digest_size=_DIGEST_BYTES).digest()


def _messages(request: Request) -> list[dict[str, Any]]:
    """The request as chat messages; each turn's pictures, with what stands before them, come before its text."""
    messages: list[dict[str, Any]] = []
    if request.system_prompt.strip():
        messages.append({"role": "system", "content": [{"type": "text", "text": request.system_prompt}]})
    for turn in request.turns:
        parts: list[dict[str, Any]] = []
        for caption, _ in zip(turn.captions or [""] * len(turn.pictures), turn.pictures, strict=True):
            parts += [{"type": "text", "text": caption}] if caption else []
            parts.append({"type": "image"})
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
    return messages
