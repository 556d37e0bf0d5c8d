"""Writes one answer, from tiles to text: encodes the pictures, prefills the new part of the prompt, decodes."""

import logging
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext, suppress
from typing import Any, TypeVar

import torch

from gemma3_core.engine.adapted import AnyVariants
from gemma3_core.engine.api import Event, StageEvent
from gemma3_core.engine.memory import is_out_of_memory
from gemma3_core.engine.prefix_cache import Kept, Lent, PrefixCache, TokenKey, cache_budget, prompt_keys
from gemma3_core.engine.prompts import Prompt, encode, followed_by
from gemma3_core.engine.sequence import RunningRequest
from gemma3_core.engine.slot_runner import Background, SlotRunner, has_slots
from gemma3_core.errors import NonFiniteError
from gemma3_core.generation.grammar import Constraint
from gemma3_core.generation.loop import (
    PREFILL_CHUNK_SIZE,
    DecodePass,
    PrefillProgress,
    RowSampler,
    Step,
    generate_tokens,
)
from gemma3_core.generation.row_sampler import SamplingRow
from gemma3_core.inspection.confidence import choice_of
from gemma3_core.inspection.knockout import UNSEEN_MAX_TOKENS, probabilities_unseen
from gemma3_core.inspection.non_finite import first_not_finite
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration, Model
from gemma3_core.nn.cache import KVCache
from gemma3_core.processor import Gemma3Processor

T = TypeVar("T")
log = logging.getLogger(__name__)
_TILES_PER_PASS = 8
# On a CPU, larger batches are no faster, and Stop waits for the current pass.
_TILES_PER_PASS_ON_CPU = 1
_PREFILL_CHUNK_SIZE_ON_CPU = 512


class AnswerWriter:
    """Writes answers; the caller runs their passes one at a time, in one thread. `kept` holds the caches between
    answers, within one budget with those of `beside`; `background` does work between their passes."""

    def __init__(
        self,
        precisions: AnyVariants,
        processor: Gemma3Processor,
        at_once: int,
        beside: PrefixCache | None = None,
        background: Background | None = None,
    ):
        self._precisions, self._processor, self._at_once = precisions, processor, at_once
        self._background = background
        self._slots: dict[int, SlotRunner | None] = {}
        # Both precisions share device, dtype, stop ids and encoder; only decoder passes differ between them.
        self._model = precisions.default
        trim = KVCache.trim if precisions.lead is None else precisions.lead.trim
        self.kept = PrefixCache(*cache_budget(self._model.device), beside=beside, trim=trim)
        if background is not None and has_slots(self._model.device):
            background(self._warming_up())

    def _warming_up(self) -> Iterator[None]:
        """Prepares what the first answers need on CUDA, in the loop's thread."""
        slots = self._slots_of(self._model)
        yield
        if slots is not None:
            slots.warm_up()

    def make_room(self) -> None:
        """Frees what is held between answers: kept caches, and slots that nobody is in."""
        self.kept.clear(all_owners=True)
        for slots in self._slots.values():
            if slots is not None:
                slots.give_back()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()

    def answer(self, running: RunningRequest, prompt: Prompt) -> Iterator[Event | DecodePass]:
        """Yields the stages, the tokens and the end of `running`, and the decode steps that it needs. `prompt` must
        have its tiles, and its precision must be prepared. Each stage stands before one pass."""
        request = prompt.request
        int4 = bool(request.int4)
        keys = self._keys(prompt)
        with self.kept.acquire(request.visitor, int4, keys) if request.reuse else nullcontext(Lent()) as lent:
            running.reused_tokens = 0 if lent.cache is None else lent.cache.length
            soft_tokens = yield from self._encode(prompt, running.reused_tokens)
            yield StageEvent("reading", f"Reading {prompt.num_tokens - running.reused_tokens:,} tokens")
            answer = self._steps(prompt, soft_tokens, keys, lent, constraint=running.constraint())
            del soft_tokens  # not needed after the prefill
            with closing(answer) as steps:
                try:
                    yield from self._written(running, steps)
                except NonFiniteError as error:
                    new = running.token_ids[len(prompt.request.answer_so_far) :]
                    where = self._not_finite_in(followed_by(prompt, new))
                    raise NonFiniteError(f"{error} It happens first in {where}." if where else str(error)) from None

    def _not_finite_in(self, prompt: Prompt) -> str | None:
        """The name of the first module that gives NaN or infinity when this prompt is read again."""
        model = self._precisions.model(bool(prompt.request.int4))
        with first_not_finite(self._model, model) as found, suppress(NonFiniteError):
            soft_tokens = _result(self._encode(prompt, 0))
            for step in self._steps(prompt, soft_tokens, self._keys(prompt), Lent(), longest=1):
                if isinstance(step, Step):
                    break
        return found[0] if found else None

    def _keys(self, prompt: Prompt) -> tuple[TokenKey, ...]:
        return prompt_keys(prompt.input_ids, prompt.token_type_ids, prompt.digests(), self._processor.image_seq_length)

    def _written(
        self, running: RunningRequest, steps: Iterator[Step | PrefillProgress | DecodePass]
    ) -> Iterator[Event | DecodePass]:
        """Yields the answer's text in pieces, and the decode steps between them, then its end."""
        tokenizer, stopped = self._processor.tokenizer, False
        for step in steps:
            if isinstance(step, PrefillProgress):
                yield StageEvent("reading", f"Reading {step.read:,} of {step.total:,} tokens")
                continue
            if isinstance(step, DecodePass):
                yield step
                continue
            running.count()
            assert step.sampled is not None
            if stopped := step.ended:
                break
            choice = choice_of(tokenizer, step.sampled) if running.request.confidence else None
            yield running.push(step.sampled.token_id, choice)
        if rest := running.rest():
            yield rest
        if self._can_check(running):
            yield StageEvent("writing", "Reading the answer again without its pictures")
            try:
                running.picture_effect = self._picture_effect(running)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                log.warning("There was no memory to read an answer again without its pictures: it ends unchecked.")
        yield running.done("stop" if stopped else "length")

    def _can_check(self, running: RunningRequest) -> bool:
        """Whether the answer is to be read again without its pictures, and its probabilities are all known: those of
        one that must fit a schema are among the allowed tokens alone."""
        asked, prompt = running.request, running.prompt
        if not asked.check_pictures or prompt is None or not prompt.pictures or running.grammar is not None:
            return False
        words = prompt.num_tokens - int(prompt.token_type_ids.sum()) + len(running.token_ids)
        return 0 < len(running.probabilities) == len(running.token_ids) and words <= UNSEEN_MAX_TOKENS

    def _picture_effect(self, running: RunningRequest) -> float:
        """The largest change of a token's probability when no word sees a picture."""
        prompt = running.prompt
        assert prompt is not None
        model = self._precisions.model(bool(running.request.int4))
        inputs = {
            "input_ids": prompt.input_ids.to(model.device),
            "token_type_ids": prompt.token_type_ids.to(model.device),
        }
        unseen = probabilities_unseen(model, inputs, running.token_ids)
        return max(abs(seen - other) for seen, other in zip(running.probabilities, unseen, strict=True))

    def _encode(self, prompt: Prompt, reused: int) -> Generator[Event, None, torch.Tensor | None]:
        """Encodes the tiles behind the first `reused` tokens into soft tokens; equal tiles are encoded once.

        Works in small batches, so that Stop need not wait for all tiles.
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

    def _steps(
        self,
        prompt: Prompt,
        soft_tokens: torch.Tensor | None,
        keys: tuple[TokenKey, ...],
        lent: Lent,
        longest: int | None = None,
        constraint: Constraint | None = None,
    ) -> Generator[Step | PrefillProgress | DecodePass]:
        """Yields the answer's tokens, and the decode steps between them; before the first, the progress of a long
        prefill.

        Hands the cache back through `lent`, also when the iterator is closed early, but not after an error.
        """
        request = prompt.request
        longest = request.max_new_tokens if longest is None else longest
        assert longest is not None
        model = self._precisions.model(bool(request.int4))
        total = prompt.num_tokens + longest
        cache = KVCache(self._model.text_config, reserve=total) if lent.cache is None else lent.cache
        began, read, is_good = cache.length, list(keys), False
        # A single row has no padding. Without a mask, torch's fused attention reads less memory.
        ids = prompt.input_ids.to(model.device)
        fields = {"input_ids": ids[:, began:]}
        if isinstance(model, Gemma3ForConditionalGeneration):
            fields["token_type_ids"] = prompt.token_type_ids[:, began:].to(model.device)
        if soft_tokens is not None:
            fields["soft_tokens"] = soft_tokens
        chunk = _PREFILL_CHUNK_SIZE_ON_CPU if self._on_cpu else PREFILL_CHUNK_SIZE
        settings, stops = request.settings(self._model.generation_config.sampling()), model.generation_config.stop_ids
        row = SamplingRow.of(settings, ids, model.text_config.vocab_size, request.confidence, constraint)
        slots = self._slots_of(model)
        sampler = RowSampler(model, cache, row, stops, None if slots is None else slots.decode)
        try:
            tokens = generate_tokens(model, fields, settings, longest, stops, cache, chunk, sampler)
            del fields, soft_tokens
            for step in tokens:
                if isinstance(step, Step) and step.sampled is not None:
                    read.append(step.sampled.token_id)
                yield step
            is_good = True
        except GeneratorExit:  # closed between two passes
            is_good = True
            raise
        finally:
            if slots is not None:
                slots.release(cache)
            if is_good:
                lent.back = Kept(cache, tuple(read[: cache.length]), began, len(keys))

    def _slots_of(self, model: Model) -> SlotRunner | None:
        """What decodes the model's answers on CUDA; called in the loop's thread, since it fuses weights."""
        if id(model) not in self._slots:
            most_bytes = cache_budget(model.device)[0]
            self._slots[id(model)] = SlotRunner.for_model(model, self._at_once, most_bytes, self._background)
        return self._slots[id(model)]


def _result(steps: Generator[Any, None, T]) -> T:
    """Runs a generator to its end and returns its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
