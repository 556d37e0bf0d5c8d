"""One answer, from pictures to text: encodes, reads what is new of the prompt, writes token by token."""

from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace

import torch

from gemma3_core.engine.answer_clock import AnswerClock
from gemma3_core.engine.api import DoneEvent, Event, ModelInfo, StageEvent, Stats, TokenEvent
from gemma3_core.engine.precisions import ModelVariants, quantization_name
from gemma3_core.engine.prefix_cache import Kept, Lent, PrefixCache, TokenKey, prompt_keys
from gemma3_core.engine.prompts import Prompt, encode
from gemma3_core.generation.loop import (
    PREFILL_CHUNK_SIZE,
    Decoder,
    Plan,
    PrefillProgress,
    generate_steps,
)
from gemma3_core.inspection.confidence import TokenChoice, token_choice
from gemma3_core.nn.cache import KVCache
from gemma3_core.processor import Gemma3Processor
from gemma3_core.tokenizer.tokenizer import StreamingDecoder

_TILES_PER_PASS = 8
# A CPU gains nothing from more at once, and Stop waits for the pass that is running.
_TILES_PER_PASS_ON_CPU = 1
_PREFILL_CHUNK_SIZE_ON_CPU = 512


@dataclass(frozen=True)
class _Token:
    """A new token of an answer, and how sure the model was of it where that is asked for."""

    token_id: int
    choice: TokenChoice | None


class AnswerWriter:
    """Answers one request at a time: whoever calls has the queue's turn. `kept` is what it keeps between answers."""

    def __init__(self, precisions: ModelVariants, processor: Gemma3Processor, info: ModelInfo):
        self._precisions, self._processor, self._info = precisions, processor, info
        # The precisions share device, type, stops and encoder; only the decoder's passes depend on the request's.
        self._model = precisions.default
        self.kept = PrefixCache()

    def answer(self, prompt: Prompt, queue_s: float) -> Iterator[Event]:
        """Encodes, reads and writes; `prompt` has its tiles."""
        request = prompt.request
        clock, int4 = AnswerClock(), self._precisions.asked(request.int4)
        for text in self._precisions.prepare(int4):
            yield StageEvent("preparing", text)
        keys = prompt_keys(prompt.input_ids, prompt.token_type_ids, prompt.digests(), self._processor.image_seq_length)
        with self.kept.acquire(request.visitor, int4, keys) if request.reuse else nullcontext(Lent()) as lent:
            reused = 0 if lent.cache is None else lent.cache.length
            soft_tokens = yield from self._encode(prompt, reused)
            known = Stats(
                model=self._info.name,
                device=self._info.device,
                dtype=self._info.dtype,
                quantization=quantization_name(int4),
                num_images=len(prompt.pictures),
                num_crops=prompt.num_crops,
                prompt_tokens=prompt.num_tokens,
                reused_tokens=reused,
                new_tokens=0,
                queue_s=round(queue_s, 4),
                time_to_first_token_s=None,
                tokens_per_s=None,
                stop_reason="cancelled",
            )
            yield StageEvent("reading", f"Reading {prompt.num_tokens - reused:,} tokens", known)
            with closing(self._tokens(prompt, soft_tokens, keys, lent)) as tokens:
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

    def _encode(self, prompt: Prompt, reused: int) -> Generator[Event, None, torch.Tensor | None]:
        """Soft tokens of the tiles behind the `reused` tokens, a few at a time, so that Stop need not wait for all.

        Equal tiles are encoded once.
        """
        known = int(prompt.token_type_ids[:, :reused].sum()) // self._processor.image_seq_length
        tiles = dict(zip(prompt.digests()[known:], prompt.all_tiles()[known:], strict=True))
        different, parts = list(tiles.values()), []
        per_pass = _TILES_PER_PASS_ON_CPU if self._on_cpu else _TILES_PER_PASS
        for start in range(0, len(different), per_pass):
            crops = f" and {_count(prompt.num_crops, 'crop')}" if prompt.num_crops else ""
            yield StageEvent("encoding", f"Encoding {_count(len(prompt.pictures), 'picture')}{crops}")
            parts.append(encode(self._model, self._processor, different[start : start + per_pass]))
        if not parts:
            return None
        places = {digest: place for place, digest in enumerate(tiles)}
        return torch.cat(parts)[[places[digest] for digest in prompt.digests()[known:]]]

    @property
    def _on_cpu(self) -> bool:
        return self._model.device.type == "cpu"

    def _tokens(
        self, prompt: Prompt, soft_tokens: torch.Tensor | None, keys: tuple[TokenKey, ...], lent: Lent
    ) -> "Generator[_Token | StageEvent]":
        """The answer's tokens; before the first, how far the prompt has been read where that takes several passes.

        However it ends but by an error, what the cache then holds goes back with it.
        """
        request = prompt.request
        model = self._precisions.model(self._precisions.asked(request.int4))
        settings = request.sampling or self._info.sampling
        total = prompt.num_tokens + request.max_new_tokens
        cache = KVCache(self._model.text_config, reserve=total) if lent.cache is None else lent.cache
        cache.reserve(total)
        began, read = cache.length, list(keys)
        stops = self._model.generation_config.stop_ids
        # One row is never padded, and without a mask torch's fused attention has less to read.
        ids = prompt.input_ids.to(model.device)
        fields = {"input_ids": ids[:, began:]}
        if self._info.multimodal:
            fields["token_type_ids"] = prompt.token_type_ids[:, began:].to(model.device)
        if soft_tokens is not None:
            fields["soft_tokens"] = soft_tokens
        chunk = _PREFILL_CHUNK_SIZE_ON_CPU if self._on_cpu else PREFILL_CHUNK_SIZE
        reader = Decoder(model, cache, fields, chunk)
        plan = Plan(settings, request.max_new_tokens, stops)
        try:
            for step in generate_steps(reader, plan, settings.generator(model.device), ids):
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
