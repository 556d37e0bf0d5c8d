"""One answer, from pictures to text: encodes, reads what is new of the prompt, writes token by token."""

from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image

from gemma3_core.answer_clock import AnswerClock
from gemma3_core.cache import KVCache
from gemma3_core.confidence import TokenChoice, token_choice
from gemma3_core.events import DoneEvent, Event, ModelInfo, Request, StageEvent, Stats, TokenEvent
from gemma3_core.generation import (
    PREFILL_CHUNK_SIZE,
    CachedReader,
    Plan,
    PrefillProgress,
    check_length,
    generate_steps,
)
from gemma3_core.kept_caches import Kept, KeptCaches, Lent, Mark, prompt_marks
from gemma3_core.model_inputs import ModelInputs
from gemma3_core.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.precisions import Precisions, quantization_name
from gemma3_core.processor import Gemma3Processor
from gemma3_core.request_inputs import request_inputs
from gemma3_core.tokenizer import StreamingDecoder

_SQUARES_PER_PASS = 8
# A CPU gains nothing from more at once, and Stop waits for the pass that is running.
_SQUARES_PER_PASS_ON_CPU = 1
_PREFILL_CHUNK_SIZE_ON_CPU = 512


@dataclass(frozen=True)
class _Token:
    """A new token of an answer, and how sure the model was of it where that is asked for."""

    token_id: int
    choice: TokenChoice | None


class AnswerWriter:
    """Answers one request at a time: whoever calls has the queue's turn. `kept` is what it keeps between answers."""

    def __init__(self, precisions: Precisions, processor: Gemma3Processor, info: ModelInfo):
        self._precisions, self._processor, self._info = precisions, processor, info
        # The precisions share device, type, stops and encoder; only the decoder's passes depend on the request's.
        self._model = precisions.default
        self.kept = KeptCaches()

    def answer(self, request: Request, pictures: list[list[Image]], queue_s: float) -> Iterator[Event]:
        """Encodes, reads and writes; the queue's turn is ours."""
        clock, int4 = AnswerClock(), self._precisions.asked(request.int4)
        for text in self._precisions.prepare(int4):
            yield StageEvent("preparing", text)
        squares = sum(map(len, pictures))
        if squares:
            yield StageEvent("encoding", f"Encoding {_count(squares, 'picture')}")
        inputs = request_inputs(request, pictures, self._processor, self._model)
        prompt_tokens = inputs["input_ids"].shape[1]
        check_length(self._model.text_config, prompt_tokens, request.max_new_tokens)
        crops = 0 if "pixel_values" not in inputs else inputs["pixel_values"].shape[0] - squares
        marks = self._marks(inputs)
        with self.kept.lend(request.visitor, int4, marks) if request.reuse else nullcontext(Lent()) as lent:
            reused = 0 if lent.cache is None else lent.cache.length
            yield from self._encode(inputs, reused, squares, crops)
            known = Stats(
                model=self._info.name,
                device=self._info.device,
                dtype=self._info.dtype,
                quantization=quantization_name(int4),
                num_images=squares,
                num_crops=crops,
                prompt_tokens=prompt_tokens,
                reused_tokens=reused,
                new_tokens=0,
                queue_s=round(queue_s, 4),
                time_to_first_token_s=None,
                tokens_per_s=None,
                stop_reason="cancelled",
            )
            yield StageEvent("reading", f"Reading {prompt_tokens - reused:,} tokens", known)
            with closing(self._tokens(request, inputs, marks, lent)) as tokens:
                yield from self._written(tokens, known, clock)

    def _written(self, tokens: "Iterator[_Token | StageEvent]", known: Stats, clock: AnswerClock) -> Iterator[Event]:
        """The answer's text, piece by piece, and its end."""
        decoder, stop_reason = StreamingDecoder(self._processor.tokenizer), "length"
        pieces: list[str] = []
        token_ids: list[int] = []
        stops = self._model.generation_config.stop_ids
        for token in tokens:
            if isinstance(token, StageEvent):
                yield token
                continue
            clock.tick()
            if token.token_id in stops:
                stop_reason = "stop"
                break
            token_ids.append(token.token_id)
            pieces.append(decoder.push(token.token_id))
            yield TokenEvent(pieces[-1], token.choice)
        if rest := decoder.finish():
            pieces.append(rest)
            yield TokenEvent(rest)
        stats = replace(
            known,
            new_tokens=clock.tokens,
            time_to_first_token_s=clock.first_token_s,
            tokens_per_s=clock.tokens_per_s,
            stop_reason="stop" if stop_reason == "stop" else "length",
        )
        yield DoneEvent("".join(pieces), stats, tuple(token_ids))

    def _marks(self, inputs: ModelInputs) -> tuple[Mark, ...]:
        soft, pixels = inputs.get("token_type_ids"), inputs.get("pixel_values")
        return prompt_marks(inputs["input_ids"], soft, pixels, self._processor.image_seq_length)

    def _encode(self, inputs: ModelInputs, reused: int, num_pictures: int, num_crops: int) -> Iterator[Event]:
        """Turns pixel_values into soft tokens, a few squares at a time, so that Stop need not wait for all.

        Squares among the `reused` tokens are left out.
        """
        pixel_values = inputs.pop("pixel_values", None)
        if pixel_values is None:
            return
        known = int(inputs["token_type_ids"][:, :reused].sum()) // self._processor.image_seq_length
        pixel_values = pixel_values[known:]
        if not len(pixel_values):
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

    def _tokens(
        self, request: Request, inputs: ModelInputs, marks: tuple[Mark, ...], lent: Lent
    ) -> "Generator[_Token | StageEvent]":
        """The answer's tokens; before the first, how far the prompt has been read where that takes several passes.

        However it ends but by an error, what the cache then holds goes back with it.
        """
        model = self._precisions.model(self._precisions.asked(request.int4))
        settings = request.sampling or self._info.sampling
        total = inputs["input_ids"].shape[1] + request.max_new_tokens
        cache = KVCache(self._model.text_config, reserve=total) if lent.cache is None else lent.cache
        cache.reserve(total)
        began, read = cache.length, list(marks)
        stops = self._model.generation_config.stop_ids
        # One row is never padded, and without a mask torch's fused attention has less to read.
        fields = {name: inputs[name][:, began:] for name in ("input_ids", "token_type_ids") if name in inputs}
        fields |= {"soft_tokens": inputs["soft_tokens"]} if "soft_tokens" in inputs else {}
        if not self._info.multimodal:
            fields.pop("token_type_ids", None)
        chunk = _PREFILL_CHUNK_SIZE_ON_CPU if self._on_cpu else PREFILL_CHUNK_SIZE
        reader = CachedReader(model, cache, fields, chunk)
        plan = Plan(settings, request.max_new_tokens, stops)
        try:
            for step in generate_steps(reader, plan, settings.generator(model.device), inputs["input_ids"]):
                if isinstance(step, PrefillProgress):
                    yield StageEvent("reading", f"Reading {step.read:,} of {step.total:,} tokens")
                    continue
                token_id, tokenizer = int(step.tokens[0]), self._processor.tokenizer
                read.append(token_id)
                choice = token_choice(tokenizer, step.logits[0], token_id) if request.confidence else None
                yield _Token(token_id, choice)
        except GeneratorExit:  # between two passes
            lent.back = Kept(cache, tuple(read[: cache.length]), began)
            raise
        lent.back = Kept(cache, tuple(read[: cache.length]), began)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
