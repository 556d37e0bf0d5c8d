"""What an app needs: load a checkpoint, queue questions, stream answers, preview pictures.

The engine is the only door for components: they import from here and from nowhere below.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from gemma3_core.cache import KVCache
from gemma3_core.config import Gemma3Config, read_config
from gemma3_core.errors import ContextLengthError, Gemma3Error, ImageError, PromptError, UnsupportedOptionError
from gemma3_core.events import (
    DoneEvent,
    Event,
    ModelInfo,
    PicturePreview,
    Request,
    StageEvent,
    Stats,
    TokenEvent,
    Turn,
)
from gemma3_core.fair_queue import FairQueue, Ticket
from gemma3_core.generation import check_length, generate_tokens
from gemma3_core.hub import resolve_folder
from gemma3_core.images import ImageSource, load_image
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.pretrained import pick_device
from gemma3_core.processor import Gemma3Processor
from gemma3_core.sampling import SamplingSettings
from gemma3_core.text import Gemma3ForCausalLM
from gemma3_core.tokenizer import ModelInputs, StreamingDecoder

__all__ = [
    "DoneEvent",
    "Engine",
    "Event",
    "Gemma3Error",
    "ModelInfo",
    "PicturePreview",
    "Request",
    "SamplingSettings",
    "StageEvent",
    "Stats",
    "TokenEvent",
    "Turn",
]

DEMO_MODEL = Path(__file__).resolve().parent.parent / "assets" / "demo_model"
DEMO_NAME = "demo model"
INT4_REASON = "int4 is not part of this version yet. Leave it off: answers are given in full precision."

# Above this many weights a CPU keeps bfloat16: twice the memory costs more than faster products gain.
_LARGEST_FLOAT32_ON_CPU = 2_000_000_000
_QUEUE_TICK_S = 0.5
_SQUARES_PER_PASS = 8

Model = Gemma3ForConditionalGeneration | Gemma3ForCausalLM


class Engine:
    """One loaded model behind a queue; safe to use from many threads."""

    def __init__(self, model: Model, processor: Gemma3Processor, name: str, is_demo: bool = False):
        self._model, self._processor = model, processor
        self._queue = FairQueue()
        self._mean_answer_s: float | None = None
        self.info = self._describe(name, is_demo)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        int4: bool = False,
    ) -> "Engine":
        """A checkpoint folder or Hub id; None is the embedded demo model, and nothing is downloaded.

        Raises CheckpointError, ConfigError, UnsupportedOptionError with what to do.
        """
        if int4:
            raise UnsupportedOptionError(INT4_REASON)
        folder = resolve_folder(model or DEMO_MODEL)
        where = pick_device(device)
        kind = Gemma3ForConditionalGeneration if _is_multimodal(folder) else Gemma3ForCausalLM
        loaded: Model = kind.from_pretrained(folder, dtype=dtype, device_map=where)
        if dtype == "auto" and where.type == "cpu" and _num_parameters(loaded) <= _LARGEST_FLOAT32_ON_CPU:
            # Small models answer faster in float32 on CPUs without matrix units for bfloat16.
            loaded = loaded.float()
        name = DEMO_NAME if model is None else Path(model).name
        return cls(loaded, Gemma3Processor.from_pretrained(folder), name, is_demo=model is None)

    def _describe(self, name: str, is_demo: bool) -> ModelInfo:
        model = self._model
        return ModelInfo(
            name=name,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            quantization="none",
            multimodal=isinstance(model, Gemma3ForConditionalGeneration),
            is_demo=is_demo,
            num_parameters=_num_parameters(model),
            context_length=model.text_config.max_position_embeddings,
            tokens_per_picture=self._processor.image_seq_length,
            sampling=model.generation_config.sampling(),
        )

    def preview(self, pictures: Sequence[ImageSource], pan_and_scan: bool) -> list[PicturePreview]:
        """What the encoder would get of each picture. Raises ImageError that says which one is wrong."""
        processor = self._processor.image_processor.with_options(do_pan_and_scan=pan_and_scan)
        previews = []
        for picture in _load_all(pictures):
            squares = tuple(processor.squares(picture))
            previews.append(
                PicturePreview(
                    width=picture.width,
                    height=picture.height,
                    original=picture,
                    squares=squares,
                    boxes=tuple(processor.boxes(picture.width, picture.height)),
                    tokens=len(squares) * self._processor.image_seq_length,
                    note=processor.explain(picture.width, picture.height),
                )
            )
        return previews

    def stream(self, request: Request) -> Iterator[Event]:
        """Stages, pieces of the answer's text, and at the end its figures.

        Closing the iterator ends the work within one token, in the queue as well. Raises Gemma3Error for
        what the asker can mend; then nothing of the request stays behind.
        """
        self._check(request)
        # Decoded before queueing, so that a broken picture is told at once and never holds others up.
        pictures = [_load_all(turn.pictures) for turn in request.turns]
        entered = time.monotonic()
        ticket = self._queue.enter(request.visitor)
        try:
            yield from self._wait_for_turn(ticket)
            started = time.monotonic()
            yield from self._answer(request, pictures, queue_s=started - entered)
            self._remember_duration(time.monotonic() - started)
        finally:
            self._queue.leave(ticket)

    def _check(self, request: Request) -> None:
        """What can be told before a picture is decoded. Raises PromptError, UnsupportedOptionError."""
        if request.int4:
            raise UnsupportedOptionError(INT4_REASON)
        if request.max_new_tokens < 1:
            raise PromptError(f"The answer must be allowed at least 1 token, got {request.max_new_tokens}.")
        if not request.turns or request.turns[-1].role != "user" or not request.turns[-1].text.strip():
            raise PromptError("There is no question. Write one and send again.")
        pictures = sum(len(turn.pictures) for turn in request.turns)
        if pictures and not self.info.multimodal:
            raise PromptError(f"{self.info.name} reads text only. Remove the picture, or start a model that sees.")
        most = self.info.context_length // self.info.tokens_per_picture
        if pictures > most:
            raise ContextLengthError(
                f"{pictures} pictures are too many: at {self.info.tokens_per_picture} tokens each, at most {most} "
                f"fit into this model's {self.info.context_length:,} tokens. Send fewer, or start a new conversation."
            )

    def _wait_for_turn(self, ticket: Ticket) -> Iterator[Event]:
        place, told = self._queue.wait(ticket, None, 0), ""
        while place:
            if (text := self._queue_text(place)) != told:
                told = text
            # Said again each tick: a closed page is noticed only when something is sent to it.
            yield StageEvent("queued", told)
            place = self._queue.wait(ticket, place, _QUEUE_TICK_S)

    def _queue_text(self, place: int) -> str:
        text = f"{_ordinal(place)} in the queue"
        return text if self._mean_answer_s is None else f"{text}, about {max(1, round(place * self._mean_answer_s))} s"

    def _remember_duration(self, seconds: float) -> None:
        mean = self._mean_answer_s
        self._mean_answer_s = seconds if mean is None else 0.8 * mean + 0.2 * seconds

    def _answer(self, request: Request, pictures: list[list[Image]], queue_s: float) -> Iterator[Event]:
        """Encodes, reads and writes; the queue's turn is ours."""
        clock = _Clock()
        squares = sum(map(len, pictures))
        if squares:
            yield StageEvent("encoding", f"Encoding {_count(squares, 'picture')}")
        inputs = self._inputs(request, pictures)
        prompt_tokens = inputs["input_ids"].shape[1]
        check_length(self._model.text_config, prompt_tokens, request.max_new_tokens)
        crops = 0 if "pixel_values" not in inputs else inputs["pixel_values"].shape[0] - squares
        yield from self._encode(inputs, squares, crops)
        yield StageEvent("reading", f"Reading {prompt_tokens:,} tokens")

        decoder, pieces, stop_reason = StreamingDecoder(self._processor.tokenizer), [], "length"
        stops = self._model.generation_config.stop_ids
        for token in self._tokens(request, inputs):
            clock.tick()
            if token in stops:
                stop_reason = "stop"
                break
            pieces.append(decoder.push(token))
            yield TokenEvent(pieces[-1])
        if rest := decoder.finish():
            pieces.append(rest)
            yield TokenEvent(rest)
        stats = Stats(
            model=self.info.name,
            device=self.info.device,
            dtype=self.info.dtype,
            quantization=self.info.quantization,
            num_images=squares,
            num_crops=crops,
            prompt_tokens=prompt_tokens,
            reused_tokens=0,
            new_tokens=clock.tokens,
            queue_s=round(queue_s, 4),
            time_to_first_token_s=clock.first_token_s,
            tokens_per_s=clock.tokens_per_s,
            stop_reason="stop" if stop_reason == "stop" else "length",
        )
        yield DoneEvent("".join(pieces), stats)

    def _inputs(self, request: Request, pictures: list[list[Image]]) -> ModelInputs:
        """The conversation as model inputs on the model's device; visitors' words can't act as special tokens."""
        messages = self._processor.escape_messages(_messages(request, pictures))
        inputs = self._processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            do_pan_and_scan=request.pan_and_scan,
        )
        return inputs.to(self._model.device, self._model.dtype)

    def _encode(self, inputs: ModelInputs, num_pictures: int, num_crops: int) -> Iterator[Event]:
        """Turns pixel_values into soft tokens, a few squares at a time, so that Stop need not wait for all."""
        pixel_values = inputs.pop("pixel_values", None)
        if pixel_values is None:
            return
        assert isinstance(self._model, Gemma3ForConditionalGeneration)
        parts = []
        for chunk in pixel_values.split(_SQUARES_PER_PASS):
            crops = f" and {_count(num_crops, 'crop')}" if num_crops else ""
            yield StageEvent("encoding", f"Encoding {_count(num_pictures, 'picture')}{crops}")
            with torch.inference_mode():
                parts.append(self._model.get_image_features(chunk).pooler_output)
        inputs["soft_tokens"] = torch.cat(parts)

    def _tokens(self, request: Request, inputs: ModelInputs) -> Iterator[int]:
        settings = request.sampling or self.info.sampling
        config = self._model.text_config
        cache = KVCache(config, reserve=inputs["input_ids"].shape[1] + request.max_new_tokens)
        stops = self._model.generation_config.stop_ids
        # One row is never padded, and without a mask torch's fused attention has less to read.
        fields = {name: inputs[name] for name in ("input_ids", "token_type_ids", "soft_tokens") if name in inputs}
        if not self.info.multimodal:
            fields.pop("token_type_ids", None)
        steps = generate_tokens(self._model, fields, settings, request.max_new_tokens, stops, cache)
        for tokens in steps:
            yield int(tokens[0])

    def close(self) -> None:
        """Frees the model's memory; running answers end with an error of their own."""
        del self._model


class _Clock:
    """Times of one answer, from leaving the queue; decoding speed leaves the first token out."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first: float | None = None
        self.tokens = 0

    def tick(self) -> None:
        self.tokens += 1
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last

    @property
    def first_token_s(self) -> float | None:
        return None if self._first is None else round(self._first - self._start, 4)

    @property
    def tokens_per_s(self) -> float | None:
        if self._first is None or self.tokens < 2 or self._last <= self._first:
            return None
        return round((self.tokens - 1) / (self._last - self._first), 2)


def _messages(request: Request, pictures: list[list[Image]]) -> list[dict[str, Any]]:
    """The request as chat messages; pictures stand before the text of their turn."""
    messages: list[dict[str, Any]] = []
    if request.system_prompt.strip():
        messages.append({"role": "system", "content": [{"type": "text", "text": request.system_prompt}]})
    for turn, images in zip(request.turns, pictures, strict=True):
        parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        messages.append({"role": turn.role, "content": [*parts, {"type": "text", "text": turn.text}]})
    return messages


def _load_all(pictures: Sequence[ImageSource]) -> list[Image]:
    """Decodes pictures; among several, an error says which one it is about."""
    loaded = []
    for number, source in enumerate(pictures, 1):
        try:
            loaded.append(load_image(source))
        except ImageError as error:
            if len(pictures) == 1:
                raise
            raise ImageError(f"The {_ordinal(number)} picture: {error}") from None
    return loaded


def _is_multimodal(folder: Path) -> bool:
    return isinstance(read_config(folder), Gemma3Config)


def _num_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
