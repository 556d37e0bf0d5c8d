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
from gemma3_core.errors import ContextLengthError, Gemma3Error, ImageError, PromptError
from gemma3_core.events import (
    DoneEvent,
    Event,
    Int4Choice,
    ModelInfo,
    PicturePreview,
    Request,
    StageEvent,
    Stats,
    TokenEvent,
    Turn,
)
from gemma3_core.fair_queue import FairQueue, Ticket
from gemma3_core.generation import PREFILL_CHUNK_SIZE, PrefillProgress, check_length, generate_tokens
from gemma3_core.hub import resolve_folder
from gemma3_core.images import ImageSource, fetch_image, load_image
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.precisions import Model, Precisions
from gemma3_core.pretrained import pick_device
from gemma3_core.processor import Gemma3Processor
from gemma3_core.quantization import DEFAULT_GROUP_SIZE, TorchAoConfig, count_weights
from gemma3_core.sampling import SamplingSettings
from gemma3_core.tokenizer import ModelInputs, StreamingDecoder

__all__ = [
    "DoneEvent",
    "Engine",
    "Event",
    "Gemma3Error",
    "Int4Choice",
    "ModelInfo",
    "PicturePreview",
    "Request",
    "SamplingSettings",
    "StageEvent",
    "Stats",
    "TokenEvent",
    "Turn",
    "fetch_image",
]

DEMO_MODEL = Path(__file__).resolve().parent.parent / "assets" / "demo_model"
DEMO_NAME = "demo model"

_QUEUE_TICK_S = 0.5
_SQUARES_PER_PASS = 8
# A CPU gains nothing from more at once, and Stop waits for the pass that is running.
_SQUARES_PER_PASS_ON_CPU = 1
_PREFILL_CHUNK_SIZE_ON_CPU = 512


class Engine:
    """One loaded model, in full precision and in int4, behind a queue; safe to use from many threads."""

    def __init__(self, precisions: Precisions, processor: Gemma3Processor, name: str, is_demo: bool = False):
        self._precisions, self._processor = precisions, processor
        # The precisions share device, type, stops and encoder; only the decoder's passes depend on the request's.
        self._model = precisions.default
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
        int4_group_size: int = DEFAULT_GROUP_SIZE,
    ) -> "Engine":
        """A checkpoint folder or Hub id; None is the embedded demo model, and nothing is downloaded.

        `int4` is what answers a request that leaves it open; the other precision is made when first asked for.
        A checkpoint that holds int4 weights always answers in int4.
        Raises CheckpointError, ConfigError, UnsupportedOptionError with what to do.
        """
        folder = resolve_folder(model or DEMO_MODEL)
        precisions = Precisions.load(folder, dtype, pick_device(device), int4, TorchAoConfig(int4_group_size))
        name = DEMO_NAME if model is None else Path(model).name
        where = precisions.default.device
        # Pictures are resized where the model is if that is a CUDA device; elsewhere the CPU does as well.
        processor = Gemma3Processor.from_pretrained(folder, device=where if where.type == "cuda" else "cpu")
        return cls(precisions, processor, name, is_demo=model is None)

    def _describe(self, name: str, is_demo: bool) -> ModelInfo:
        model, precisions = self._model, self._precisions
        return ModelInfo(
            name=name,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            quantization=_quantization(precisions.default_int4),
            multimodal=isinstance(model, Gemma3ForConditionalGeneration),
            is_demo=is_demo,
            num_parameters=count_weights(model),
            context_length=model.text_config.max_position_embeddings,
            tokens_per_picture=self._processor.image_seq_length,
            sampling=model.generation_config.sampling(),
            int4=Int4Choice(
                default=precisions.default_int4,
                obstacle=precisions.obstacle,
                full_bytes=precisions.full_bytes,
                int4_bytes=precisions.int4_bytes,
                left=precisions.left,
            ),
        )

    def preview(self, pictures: Sequence[ImageSource], pan_and_scan: bool) -> list[PicturePreview]:
        """What the encoder would get of each picture.

        Raises ImageError that says which one is wrong, and PromptError where the model reads text only.
        """
        self._check_sees(len(pictures))
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

        Closing the iterator ends the work, in the queue as well, after the pass that is running: a token, a
        chunk of the prompt or a few squares of the pictures. Raises Gemma3Error for what the asker can mend;
        then nothing of the request stays behind.
        """
        self._check(request)
        # Decoded before queueing, so that a broken picture is told at once and never holds others up.
        pictures = [_load_all(turn.pictures) for turn in request.turns]
        entered = time.monotonic()
        ticket = self._queue.enter(request.visitor)
        try:
            yield from self._wait_for_turn(ticket)
            started = time.monotonic()
            was_ready = self._precisions.ready(self._int4(request))
            yield from self._answer(request, pictures, queue_s=started - entered)
            if was_ready:  # else it took longer than the next answers will
                self._remember_duration(time.monotonic() - started)
        finally:
            self._queue.leave(ticket)

    def _check(self, request: Request) -> None:
        """What can be told before a picture is decoded. Raises PromptError, UnsupportedOptionError."""
        self._precisions.require(self._int4(request))
        if request.max_new_tokens < 1:
            raise PromptError(f"The answer must be allowed at least 1 token, got {request.max_new_tokens}.")
        if not request.turns or request.turns[-1].role != "user" or not request.turns[-1].text.strip():
            raise PromptError("There is no question. Write one and send again.")
        pictures = sum(len(turn.pictures) for turn in request.turns)
        self._check_sees(pictures)
        most = self.info.context_length // self.info.tokens_per_picture
        if pictures > most:
            raise ContextLengthError(
                f"{pictures} pictures are too many: at {self.info.tokens_per_picture} tokens each, at most {most} "
                f"fit into this model's {self.info.context_length:,} tokens. Send fewer, or start a new conversation."
            )

    def _check_sees(self, pictures: int) -> None:
        if pictures and not self.info.multimodal:
            raise PromptError(f"{self.info.name} reads text only. Remove the picture, or start a model that sees.")

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
        clock, int4 = _Clock(), self._int4(request)
        for text in self._precisions.prepare(int4):
            yield StageEvent("preparing", text)
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
        for token in self._tokens(request, inputs, self._precisions.model(int4)):
            if isinstance(token, StageEvent):
                yield token
                continue
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
            quantization=_quantization(int4),
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
            do_pan_and_scan=_pan_and_scan(request),
        )
        return inputs.to(self._model.device, self._model.dtype)

    def _encode(self, inputs: ModelInputs, num_pictures: int, num_crops: int) -> Iterator[Event]:
        """Turns pixel_values into soft tokens, a few squares at a time, so that Stop need not wait for all."""
        pixel_values = inputs.pop("pixel_values", None)
        if pixel_values is None:
            return
        assert isinstance(self._model, Gemma3ForConditionalGeneration)
        parts = []
        for chunk in pixel_values.split(_SQUARES_PER_PASS_ON_CPU if self._on_cpu else _SQUARES_PER_PASS):
            crops = f" and {_count(num_crops, 'crop')}" if num_crops else ""
            yield StageEvent("encoding", f"Encoding {_count(num_pictures, 'picture')}{crops}")
            with torch.inference_mode():
                parts.append(self._model.get_image_features(chunk).pooler_output)
        inputs["soft_tokens"] = torch.cat(parts)

    @property
    def _on_cpu(self) -> bool:
        return self._model.device.type == "cpu"

    def _tokens(self, request: Request, inputs: ModelInputs, model: Model) -> Iterator[int | StageEvent]:
        """The answer's tokens; before the first, how far the prompt has been read where that takes several passes."""
        settings = request.sampling or self.info.sampling
        config = self._model.text_config
        cache = KVCache(config, reserve=inputs["input_ids"].shape[1] + request.max_new_tokens)
        stops = self._model.generation_config.stop_ids
        # One row is never padded, and without a mask torch's fused attention has less to read.
        fields = {name: inputs[name] for name in ("input_ids", "token_type_ids", "soft_tokens") if name in inputs}
        if not self.info.multimodal:
            fields.pop("token_type_ids", None)
        chunk = _PREFILL_CHUNK_SIZE_ON_CPU if self._on_cpu else PREFILL_CHUNK_SIZE
        steps = generate_tokens(model, fields, settings, request.max_new_tokens, stops, cache, prefill_chunk_size=chunk)
        for step in steps:
            if isinstance(step, PrefillProgress):
                yield StageEvent("reading", f"Reading {step.read:,} of {step.total:,} tokens")
            else:
                yield int(step[0])

    def close(self) -> None:
        """Frees the model's memory; running answers end with an error of their own."""
        del self._model, self._precisions

    def _int4(self, request: Request) -> bool:
        return self._precisions.default_int4 if request.int4 is None else request.int4


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


def _pan_and_scan(request: Request) -> list[bool]:
    """For each picture of the request, whether it is cut."""
    return [
        request.pan_and_scan if turn.pan_and_scan is None else turn.pan_and_scan
        for turn in request.turns
        for _ in turn.pictures
    ]


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


def _quantization(int4: bool) -> str:
    return "int4" if int4 else "none"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
