"""Prefill, decode and generate: plain functions over a model that yield tokens one by one."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.errors import ContextLengthError, NonFiniteError, UnsupportedOptionError
from gemma3_core.generation.chunks import PicturesByColumn, chunk_ends, soft_token_places
from gemma3_core.generation.row_sampler import Sampled, SamplingRow, on_device, sample_rows
from gemma3_core.generation.sampling import SamplingParams, process_logits, sample, seen_tokens
from gemma3_core.generation.stop_strings import StopStrings
from gemma3_core.nn.cache import KVCache, RowCaches
from gemma3_core.nn.masks import image_blocks
from gemma3_core.nn.outputs import CausalLMOutput

PREFILL_CHUNK_SIZE = 1024
"""Prompt tokens per pass: enough to keep a GPU busy. Memory for masks and attention grows with it."""

_BY_COLUMN = ("input_ids", "inputs_embeds", "token_type_ids")
_PICTURES = ("pixel_values", "soft_tokens")


class LanguageModel(Protocol):
    """What generation needs from a model."""

    @property
    def config(self) -> Any: ...
    @property
    def text_config(self) -> Gemma3TextConfig: ...
    @property
    def device(self) -> torch.device: ...
    def get_input_embeddings(self) -> Any: ...
    def __call__(self, **inputs: Any) -> CausalLMOutput: ...


def check_length(config: Gemma3TextConfig, prompt_tokens: int, new_tokens: int) -> None:
    """Raises ContextLengthError if the prompt and the answer together exceed the model's context."""
    room = config.max_position_embeddings
    if prompt_tokens + new_tokens > room:
        raise ContextLengthError(
            f"The conversation has {prompt_tokens:,} tokens and the answer may add {new_tokens:,}, but the model's "
            f"context is {room:,}. Shorten the text, send fewer pictures, or start a new conversation."
        )


@dataclass(frozen=True)
class PrefillProgress:
    """How many tokens per row have been read: padding counts, tokens that the cache already held do not."""

    read: int
    total: int


@torch.inference_mode()
def prefill(model: LanguageModel, cache: KVCache, **inputs: Any) -> torch.Tensor:
    """Reads a prompt into `cache` in one pass; returns logits [B, vocabulary] of the next token.

    `inputs` are the processor's: input_ids [B, T] (or inputs_embeds [B, T, E]), attention_mask [B, past + T] (left
    padding), and for pictures token_type_ids and pixel_values (or soft_tokens instead).
    """
    mask = inputs.get("attention_mask")
    if mask is not None and inputs.get("position_ids") is None:
        inputs["position_ids"] = positions_in_row(mask)[:, -prompt_length(inputs) :]
    return _read(model, cache, **inputs)


def prompt_length(inputs: dict[str, Any]) -> int:
    """Tokens per row of a prompt, given as ids or as embeddings."""
    prompt = inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
    return prompt.shape[1]


def prefill_in_chunks(
    model: LanguageModel, cache: KVCache, chunk_size: int = PREFILL_CHUNK_SIZE, **inputs: Any
) -> Iterator[tuple[PrefillProgress, torch.Tensor]]:
    """`prefill` in chunks: yields the progress and the logits of the next token after each chunk.

    The last logits equal those of a single pass. Pictures are encoded with the chunk that contains them. Closing the
    iterator stops after a chunk; the cache keeps the tokens read so far. See `chunk_ends`. Raises PromptError,
    UnsupportedOptionError.
    """
    unknown = set(inputs) - {*_BY_COLUMN, *_PICTURES, "attention_mask", "position_ids"}
    if unknown or not isinstance(chunk_size, int) or chunk_size < 1:
        what = f"inputs {sorted(unknown)}" if unknown else f"chunks of {chunk_size} tokens; use 1 or more"
        raise UnsupportedOptionError(f"Prefill in chunks does not support {what}.")
    given = {name: value for name, value in inputs.items() if value is not None}
    total = prompt_length(given)
    if total <= chunk_size:
        yield PrefillProgress(total, total), prefill(model, cache, **given)
        return
    mask = given.get("attention_mask")
    positions = given.get("position_ids")
    if positions is None and mask is not None:
        positions = positions_in_row(mask)[:, -total:]
    soft = soft_token_places(model, given)
    pictures = PicturesByColumn(soft, {name: given[name] for name in _PICTURES if name in given})
    start = 0
    for end in chunk_ends(None if soft is None else image_blocks(soft.long()), total, chunk_size):
        chunk = {name: given[name][:, start:end] for name in _BY_COLUMN if name in given}
        if mask is not None:
            seen = mask.shape[1] - total + end  # a mask may begin with tokens that the cache held before
            chunk["attention_mask"] = mask[:, :seen]
        if positions is not None:
            chunk["position_ids"] = positions[:, start:end]
        logits = _read(model, cache, **chunk, **pictures.beginning_in(start, end))
        yield PrefillProgress(end, total), logits
        start = end


@torch.inference_mode()
def _read(model: LanguageModel, cache: KVCache, **inputs: Any) -> torch.Tensor:
    out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    assert out.logits is not None
    return out.logits[:, -1]


@torch.inference_mode()
def decode_step(
    model: LanguageModel, cache: KVCache | RowCaches, token_ids: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """Reads one token per row [B] at rotary positions [B]; returns logits [B, vocabulary] of the next token."""
    out = model(input_ids=token_ids[:, None], position_ids=position_ids[:, None], past_key_values=cache, use_cache=True)
    assert out.logits is not None
    return out.logits[:, -1]


class AnyDecoder(Protocol):
    """Prefills a prompt and decodes new tokens; both return logits [B, vocabulary] of the next token."""

    def prefill(self) -> Generator[PrefillProgress, None, torch.Tensor]: ...
    def decode(self, tokens: torch.Tensor) -> Generator["DecodePass", None, torch.Tensor]: ...


@dataclass
class DecodePass:
    """A decode step that is left to the caller, who may run it together with others: see `decode_together`."""

    model: LanguageModel
    cache: KVCache
    token_ids: torch.Tensor
    """[1]"""
    row: SamplingRow | None = None
    """How the next token is sampled."""
    run: "Callable[[Sequence[DecodePass]], None] | None" = None
    """Runs such passes of the model; None is `decode_together`."""
    logits: torch.Tensor | None = None
    """[1, vocabulary], once it has been run without a row."""
    sampled: Sampled | None = None
    """The next token, once it has been run with a row."""
    error: Exception | None = None
    """Why it could not be run; it is raised where the answer goes on."""

    @property
    def is_done(self) -> bool:
        """Whether it has been run."""
        return self.logits is not None or self.sampled is not None


def decode_together(passes: Sequence[DecodePass]) -> None:
    """Runs decode steps of one model as one batch. After an error none counts, and each may be run again."""
    lengths = [one.cache.length for one in passes]
    cache = passes[0].cache if len(passes) == 1 else RowCaches([one.cache for one in passes])
    positions = on_device(lengths, passes[0].token_ids.device)
    try:
        logits = decode_step(passes[0].model, cache, torch.cat([one.token_ids for one in passes]), positions)
        hand_out(passes, logits)
    except BaseException:
        for one, length in zip(passes, lengths, strict=True):
            one.cache.length = length  # the pass may have failed after it was counted
        raise


def hand_out(passes: Sequence[DecodePass], logits: torch.Tensor) -> None:
    """Gives each pass its logits, of [R, vocabulary], or the token sampled from them."""
    rows = [one.row for one in passes if one.row is not None]
    if len(rows) == len(passes):
        for one, sampled in zip(passes, sample_rows(logits, rows).read(), strict=True):
            one.sampled = sampled
        return
    for one, row in zip(passes, logits.split(1), strict=True):
        one.logits = row


class Decoder:
    """Reads each token once, into a KV cache; the prompt in chunks."""

    def __init__(self, model: LanguageModel, cache: KVCache, inputs: dict[str, Any], chunk_size: int):
        self._model, self._cache, self._inputs, self._chunk_size = model, cache, inputs, chunk_size
        self._positions = torch.empty(0)

    def prefill(self) -> Generator[PrefillProgress, None, torch.Tensor]:
        inputs, self._inputs = self._inputs, {}  # pictures take memory that decoding does not need
        mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
        for progress, logits in prefill_in_chunks(self._model, self._cache, self._chunk_size, **inputs):  # noqa: B007
            if progress.read < progress.total:
                yield progress
        del inputs
        if positions is not None:
            behind = (positions[:, -1] + 1).expand(logits.shape[0])
        elif mask is not None:
            behind = mask.sum(dim=1)
        else:
            behind = torch.full((logits.shape[0],), self._cache.length)
        self._positions = behind.to(self._model.device)
        return logits

    def decode(self, tokens: torch.Tensor) -> Generator[DecodePass, None, torch.Tensor]:
        yield from ()
        logits = decode_step(self._model, self._cache, tokens, self._positions)
        self._positions = self._positions + 1
        return logits


class UncachedDecoder:
    """Reads the whole row again for each token: slow and simple, the reference for tests of the cache."""

    def __init__(self, model: LanguageModel, inputs: dict[str, Any]):
        self._model = model
        self._inputs = {name: value for name, value in inputs.items() if value is not None}
        if "attention_mask" in self._inputs and "position_ids" not in self._inputs:
            self._inputs["position_ids"] = positions_in_row(self._inputs["attention_mask"])

    def prefill(self) -> Generator[PrefillProgress, None, torch.Tensor]:
        yield from ()
        return self._pass()

    def decode(self, tokens: torch.Tensor) -> Generator[DecodePass, None, torch.Tensor]:
        yield from ()
        new = tokens[:, None]
        added = {"input_ids": new, "attention_mask": torch.ones_like(new), "token_type_ids": torch.zeros_like(new)}
        if "position_ids" in self._inputs:
            added["position_ids"] = self._inputs["position_ids"][:, -1:] + 1
        grown = {name: torch.cat([self._inputs[name], added[name]], dim=1) for name in added if name in self._inputs}
        self._inputs = {**self._inputs, **grown}
        return self._pass()

    @torch.inference_mode()
    def _pass(self) -> torch.Tensor:
        out = self._model(**self._inputs, use_cache=False, logits_to_keep=1)
        assert out.logits is not None
        return out.logits[:, -1]


@dataclass(frozen=True)
class Plan:
    """How an answer is sampled, and where its rows end.

    A row ends with one of `stop_ids`, when its text completes one of `stop_strings`, or after `max_new_tokens`. The
    first `min_new_tokens` are never a stop id. After its end a row is filled with `pad_id`; if that is None, it keeps
    generating. `with_scores` asks for the processed logits of each step.
    """

    sampling: SamplingParams
    max_new_tokens: int
    stop_ids: tuple[int, ...] = ()
    min_new_tokens: int = 0
    stop_strings: StopStrings | None = None
    pad_id: int | None = None
    with_scores: bool = False


@dataclass(frozen=True)
class Step:
    """One new token per row: tokens [B], and whether every row has ended."""

    tokens: torch.Tensor
    ended: bool
    logits: torch.Tensor | None = None
    """[B, vocabulary], from `BatchSampler`."""
    scores: torch.Tensor | None = None
    """The processed logits, if requested."""
    sampled: Sampled | None = None
    """What the host knows of the token, from `RowSampler`."""


class AnySampler(Protocol):
    """Chooses the next tokens; `count` is their number in the answer, from 1."""

    def first(self, logits: torch.Tensor) -> Step: ...
    def next(self, decoder: AnyDecoder, tokens: torch.Tensor, count: int) -> Generator[DecodePass, None, Step]: ...


class BatchSampler:
    """Samples a batch of rows with one plan, from what a decoder computes.

    The repetition penalty and stop strings also look at prompt_ids [B, T]; prompt_mask is 0 on padding. With
    `generator` None, samples come from torch's default generator.
    """

    def __init__(
        self,
        plan: Plan,
        generator: torch.Generator | None,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor | None = None,
    ):
        self._plan, self._generator = plan, generator
        self._tail, self._prompt = prompt_ids, (prompt_ids, prompt_mask)
        self._seen: torch.Tensor | None = None
        self._ended = torch.zeros(())
        self._stops = torch.zeros(())

    def first(self, logits: torch.Tensor) -> Step:
        if self._plan.sampling.penalises:
            self._seen = seen_tokens(*self._prompt, logits.shape[-1])
        self._ended = torch.zeros(logits.shape[0], dtype=torch.bool, device=logits.device)
        self._stops = torch.tensor(self._plan.stop_ids, device=logits.device, dtype=torch.long)
        return self._step(logits, 1)

    def next(self, decoder: AnyDecoder, tokens: torch.Tensor, count: int) -> Generator[DecodePass, None, Step]:
        logits = yield from decoder.decode(tokens)
        return self._step(logits, count)

    def _step(self, logits: torch.Tensor, count: int) -> Step:
        plan = self._plan
        _require_finite(logits)
        banned = plan.stop_ids if count <= plan.min_new_tokens else ()
        tokens = sample(logits, plan.sampling, self._generator, self._seen, banned)
        scores = process_logits(logits, plan.sampling, self._seen, banned) if plan.with_scores else None
        if plan.pad_id is not None:
            tokens = tokens.masked_fill(self._ended, plan.pad_id)
        self._ended = self._ended | torch.isin(tokens, self._stops)
        if plan.stop_strings is not None:
            self._tail = torch.cat([self._tail, tokens[:, None]], dim=1)[:, -plan.stop_strings.longest :]
            self._ended = self._ended | plan.stop_strings.ended(self._tail)
        if self._seen is not None:
            self._seen = self._seen.scatter(1, tokens[:, None], True)
        return Step(tokens, bool(self._ended.all()), logits, scores)


class RowSampler:
    """Samples one row in the passes that it leaves to the caller, together with other answers' rows."""

    def __init__(
        self,
        model: LanguageModel,
        cache: KVCache,
        row: SamplingRow,
        stop_ids: tuple[int, ...],
        run: Callable[[Sequence[DecodePass]], None] | None = None,
    ):
        self._model, self._cache, self._row, self._stop_ids, self._run = model, cache, row, stop_ids, run

    def first(self, logits: torch.Tensor) -> Step:
        return self._step(sample_rows(logits, [self._row]).read()[0])

    def next(self, decoder: AnyDecoder, tokens: torch.Tensor, count: int) -> Generator[DecodePass, None, Step]:
        del decoder, count  # the caller runs the pass
        one = DecodePass(self._model, self._cache, tokens, self._row, self._run)
        yield one
        if one.error is not None:
            raise one.error
        assert one.sampled is not None
        return self._step(one.sampled)

    def _step(self, sampled: Sampled) -> Step:
        if not sampled.is_finite:
            raise NonFiniteError(NOT_FINITE)
        self._row.push(sampled.token, sampled.token_id)
        return Step(sampled.token, sampled.token_id in self._stop_ids, sampled=sampled)


def generate_steps(
    decoder: AnyDecoder, sampler: AnySampler, max_new_tokens: int
) -> Iterator[Step | PrefillProgress | DecodePass]:
    """Yields PrefillProgress between the chunks of a long prompt, then Steps until every row has ended; in between, the
    passes that the sampler leaves to the caller. Closing the iterator stops before the next chunk or token."""
    step = sampler.first((yield from decoder.prefill()))
    for count in range(2, max_new_tokens + 1):
        yield step
        if step.ended:
            return
        step = yield from sampler.next(decoder, step.tokens, count)
    yield step


NOT_FINITE = (
    "The model computes NaN or infinity. Its weights are damaged, or too large for their type: "
    "download the checkpoint again, or load it in float32."
)


def _require_finite(logits: torch.Tensor) -> None:
    """Raises NonFiniteError; otherwise the answer would be empty, or CUDA's sampling would fail for good."""
    low, high = torch.aminmax(logits)
    if not bool(torch.isfinite(low) & torch.isfinite(high)):
        raise NonFiniteError(NOT_FINITE)


def generate_tokens(
    model: LanguageModel,
    inputs: dict[str, Any],
    params: SamplingParams,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    cache: KVCache | None = None,
    prefill_chunk_size: int = PREFILL_CHUNK_SIZE,
    sampler: AnySampler | None = None,
) -> Iterator[Step | PrefillProgress | DecodePass]:
    """`generate_steps` with a KV cache and without further options; `inputs` are the tokens that `cache` lacks.

    Stop tokens are yielded too. A row that has stopped keeps generating, so cut it at its stop token.
    """
    if max_new_tokens < 1:
        raise UnsupportedOptionError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
    past = 0 if cache is None else cache.length
    total = past + prompt_length(inputs) + max_new_tokens
    check_length(model.text_config, total - max_new_tokens, max_new_tokens)
    cache = cache if cache is not None else KVCache(model.text_config)
    cache.reserve(total)
    decoder = Decoder(model, cache, inputs, prefill_chunk_size)
    if sampler is None:
        plan = Plan(params, max_new_tokens, stop_ids)
        sampler = BatchSampler(plan, params.generator(model.device), inputs["input_ids"])
    return generate_steps(decoder, sampler, max_new_tokens)


def positions_in_row(mask: torch.Tensor) -> torch.Tensor:
    """Rotary positions [B, T]: 0 on each row's first real token (padding gets 0 as well)."""
    return (mask.long().cumsum(dim=1) - 1).masked_fill(mask == 0, 0)
