"""Prefill, decode and generate: plain functions over a model; tokens come as they are made."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gemma3_core.cache import KVCache
from gemma3_core.config import AnyConfig, Gemma3Config, Gemma3TextConfig
from gemma3_core.errors import ContextLengthError, PromptError, UnsupportedOptionError
from gemma3_core.hub import read_json, write_json
from gemma3_core.masks import divides_a_block, image_blocks
from gemma3_core.outputs import CausalLMOutput
from gemma3_core.sampling import SamplingSettings, sample

DEFAULT_NEW_TOKENS = 20
"""As in transformers, where nothing else is said."""

PREFILL_CHUNK_SIZE = 1024
"""Tokens that one pass over a prompt reads: enough to keep a GPU busy; memory for masks and attention grows with it."""


class LanguageModel(Protocol):
    """What generation needs of a model."""

    @property
    def config(self) -> Any: ...
    @property
    def text_config(self) -> Gemma3TextConfig: ...
    @property
    def device(self) -> torch.device: ...
    def __call__(self, **inputs: Any) -> CausalLMOutput: ...


@dataclass(frozen=True)
class GenerationConfig:
    """generation_config.json: how a checkpoint likes to be sampled, and where it stops."""

    stop_ids: tuple[int, ...] = ()
    pad_id: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    max_new_tokens: int = DEFAULT_NEW_TOKENS

    @classmethod
    def from_pretrained(cls, folder: Path, config: AnyConfig) -> "GenerationConfig":
        """Read from `folder`; what it leaves open comes from the model's config."""
        path = folder / "generation_config.json"
        return cls.from_dict(read_json(path, optional=True), config)

    @classmethod
    def from_dict(cls, data: dict[str, Any], config: AnyConfig) -> "GenerationConfig":
        """The fields of generation_config.json over those of the model's config.

        The multimodal config's own stops go before its decoder's, as in transformers.
        """
        text = config.text_config if isinstance(config, Gemma3Config) else config
        stops = (data.get("eos_token_id"), config.eos_token_id, text.eos_token_id)
        eos = next((ids for ids in stops if ids is not None), None)
        known = ("do_sample", "temperature", "top_k", "top_p", "max_new_tokens")
        return cls(
            stop_ids=tuple(eos) if isinstance(eos, list) else (() if eos is None else (eos,)),
            pad_id=data.get("pad_token_id", text.pad_token_id) or 0,
            **{name: data[name] for name in known if data.get(name) is not None},
        )

    def save_pretrained(self, folder: Path) -> None:
        """Writes generation_config.json: the ids, and what differs from the defaults."""
        ids = {"eos_token_id": list(self.stop_ids), "pad_token_id": self.pad_id}
        names = ("do_sample", "temperature", "top_k", "top_p", "max_new_tokens")
        chosen = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(GenerationConfig, name)}
        write_json(folder / "generation_config.json", {**ids, **chosen})

    def sampling(self, seed: int | None = None) -> SamplingSettings:
        if not self.do_sample:
            return SamplingSettings(temperature=0.0, top_k=self.top_k, top_p=self.top_p, seed=seed)
        return SamplingSettings(self.temperature, self.top_k, self.top_p, seed)


def check_length(config: Gemma3TextConfig, prompt_tokens: int, new_tokens: int) -> None:
    """ContextLengthError where prompt and answer together do not fit the model's context."""
    room = config.max_position_embeddings
    if prompt_tokens + new_tokens > room:
        raise ContextLengthError(
            f"The conversation has {prompt_tokens:,} tokens and up to {new_tokens:,} are asked for; "
            f"together they may be {room:,}. Shorten the text, send fewer pictures, or start a new conversation."
        )


@dataclass(frozen=True)
class PrefillProgress:
    """How far a prompt has been read, in tokens a row (padding included, without what the cache held before)."""

    read: int
    total: int


@torch.inference_mode()
def prefill(model: LanguageModel, cache: KVCache, **inputs: Any) -> torch.Tensor:
    """Reads a prompt into `cache` in one pass; logits [B, vocabulary] of the token after its last.

    `inputs` are the processor's: input_ids [B, T], attention_mask [B, past + T] (left padding), and with
    pictures token_type_ids and pixel_values (or soft_tokens in their place).
    """
    mask, new = inputs.get("attention_mask"), inputs["input_ids"].shape[1]
    position_ids = None if mask is None else _positions_in_row(mask)[:, -new:]
    return _read(model, cache, position_ids=position_ids, **inputs)


def prefill_in_chunks(
    model: LanguageModel, cache: KVCache, chunk_size: int = PREFILL_CHUNK_SIZE, **inputs: Any
) -> Iterator[tuple[PrefillProgress, torch.Tensor]]:
    """What `prefill` does, a chunk at a time: after each, how far it has got and the logits of the token after it.

    The last logits equal those of one pass. Pictures are encoded with the chunk that reads them. Closing
    the iterator ends the work after a chunk; the cache then holds what was read. See `chunk_ends`.
    Raises PromptError, UnsupportedOptionError.
    """
    unknown = set(inputs) - {"input_ids", "token_type_ids", "attention_mask", "pixel_values", "soft_tokens"}
    if unknown or chunk_size < 1:
        what = f"inputs {sorted(unknown)}" if unknown else f"chunks of {chunk_size} tokens; the least is 1"
        raise UnsupportedOptionError(f"Prefill in chunks does not know {what}.")
    given = {name: value for name, value in inputs.items() if value is not None}
    total = given["input_ids"].shape[1]
    if total <= chunk_size:
        yield PrefillProgress(total, total), prefill(model, cache, **given)
        return
    mask = given.pop("attention_mask", None)
    positions = None if mask is None else _positions_in_row(mask)[:, -total:]
    soft = _soft_token_places(model, given)
    pictures = _PicturesByColumn(soft, {n: given.pop(n) for n in ("pixel_values", "soft_tokens") if n in given})
    start = 0
    for end in chunk_ends(None if soft is None else image_blocks(soft.long()), total, chunk_size):
        chunk = {name: value[:, start:end] for name, value in given.items()}
        if mask is not None and positions is not None:
            seen = mask.shape[1] - total + end  # a mask may begin with what the cache held before
            chunk |= {"attention_mask": mask[:, :seen], "position_ids": positions[:, start:end]}
        logits = _read(model, cache, **chunk, **pictures.beginning_in(start, end))
        yield PrefillProgress(end, total), logits
        start = end


def chunk_ends(blocks: torch.Tensor | None, total: int, chunk_size: int) -> list[int]:
    """The columns at which the chunks of a prompt of `total` tokens end, each as long as `chunk_size` lets it.

    None ends inside an image block of any row (`blocks` [B, T]; see `masks`), whose tokens see one another:
    only a block longer than `chunk_size` makes a chunk longer. With 4, `t t [ I I I ] t` is read as
    `t t [`, `I I I ]` and `t`: ends 3, 7 and 8.
    """
    divides = torch.zeros(total, dtype=torch.bool) if blocks is None else divides_a_block(blocks).cpu()
    cuts = [*(~divides).nonzero()[:, 0].tolist(), total]  # begins with 0
    ends = [0]
    while ends[-1] < total:
        furthest = cuts[bisect_right(cuts, ends[-1] + chunk_size) - 1]
        ends.append(furthest if furthest > ends[-1] else cuts[bisect_right(cuts, ends[-1])])
    return ends[1:]


class _PicturesByColumn:
    """Which pictures of a prompt are to be read with which of its columns."""

    def __init__(self, soft: torch.Tensor | None, pictures: dict[str, torch.Tensor]):
        """`soft` [B, T] marks soft tokens: the k-th of N pictures fills the k-th share of them, row by row.

        `pictures` are the inputs [N, …]. Raises PromptError where the places can't be shared so.
        """
        self._pictures = pictures
        if not pictures:
            return
        assert soft is not None
        count = next(iter(pictures.values())).shape[0]
        rows, columns = soft.nonzero(as_tuple=True)
        # Numbered so that neighbours in a row, and only these, differ by one.
        places = rows * (soft.shape[1] + 1) + columns
        if count == 0 or len(places) % count or (places.view(count, -1).diff(dim=1) != 1).any():
            raise PromptError(
                f"The prompt has {len(places)} places for soft tokens, and they can't be shared among {count} "
                "pictures. Give one picture for each place."
            )
        self._first_columns = columns.view(count, -1)[:, 0]

    def beginning_in(self, start: int, end: int) -> dict[str, torch.Tensor]:
        """The inputs of the pictures whose first soft token stands in columns `start` to `end` - 1."""
        if not self._pictures:
            return {}
        chosen = (self._first_columns >= start) & (self._first_columns < end)
        if not chosen.any():
            return {}
        return {name: value[chosen.to(value.device)] for name, value in self._pictures.items()}


def _soft_token_places(model: LanguageModel, inputs: dict[str, Any]) -> torch.Tensor | None:
    """True [B, T] where soft tokens stand; None in a prompt of text alone."""
    if "token_type_ids" in inputs:
        return inputs["token_type_ids"] == 1
    if "pixel_values" in inputs or "soft_tokens" in inputs:
        return inputs["input_ids"] == model.config.image_token_index
    return None


@torch.inference_mode()
def _read(model: LanguageModel, cache: KVCache, **inputs: Any) -> torch.Tensor:
    out = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
    assert out.logits is not None
    return out.logits[:, -1]


@torch.inference_mode()
def decode_step(
    model: LanguageModel, cache: KVCache, token_ids: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """Reads one token a row [B] at rotary positions [B]; logits [B, vocabulary] of the next."""
    out = model(input_ids=token_ids[:, None], position_ids=position_ids[:, None], past_key_values=cache, use_cache=True)
    assert out.logits is not None
    return out.logits[:, -1]


def generate_tokens(
    model: LanguageModel,
    inputs: dict[str, Any],
    settings: SamplingSettings,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    cache: KVCache | None = None,
    prefill_chunk_size: int = PREFILL_CHUNK_SIZE,
) -> Iterator[torch.Tensor | PrefillProgress]:
    """Yields the ids [B] of one new token a row at a time, until every row has stopped or the limit.

    Between the chunks of a long prompt it yields PrefillProgress. The stopping token is yielded too; rows
    that stopped earlier go on with whatever comes (cut them there). Closing the iterator ends the work
    before the next chunk or token.
    """
    prompt = inputs["input_ids"]
    if max_new_tokens < 1:
        raise UnsupportedOptionError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
    past = 0 if cache is None else cache.length
    check_length(model.text_config, past + prompt.shape[1], max_new_tokens)
    cache = cache if cache is not None else KVCache(model.text_config)
    cache.reserve(past + prompt.shape[1] + max_new_tokens)
    generator = settings.generator(model.device)
    for progress, logits in prefill_in_chunks(model, cache, prefill_chunk_size, **inputs):  # noqa: B007
        if progress.read < progress.total:
            yield progress
    mask = inputs.get("attention_mask")
    length = torch.full((prompt.shape[0],), cache.length) if mask is None else mask.sum(dim=1)
    positions = length.to(model.device)
    stopped = torch.zeros_like(positions, dtype=torch.bool)
    stops = torch.tensor(stop_ids, device=model.device, dtype=torch.long)
    for count in range(1, max_new_tokens + 1):
        tokens = sample(logits, settings, generator)
        stopped |= torch.isin(tokens, stops)
        yield tokens
        if count == max_new_tokens or bool(stopped.all()):
            return
        logits = decode_step(model, cache, tokens, positions)
        positions = positions + 1


class GenerationMixin:
    """`generate` of the model classes, after transformers."""

    generation_config: GenerationConfig

    def generate(
        self: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        max_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | list[int] | None = None,
        prefill_chunk_size: int | None = None,
        seed: int | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """Prompt and new ids [B, T + new]; rows that stop early are filled with the pad id.

        Options left out come from generation_config.json. The prompt is read in chunks of
        `prefill_chunk_size` tokens (PREFILL_CHUNK_SIZE where nothing is said). Further `inputs` go to forward
        (token_type_ids, pixel_values). Raises ContextLengthError, UnsupportedOptionError.
        """
        unknown = set(inputs) - {"token_type_ids", "pixel_values"}
        if unknown:
            raise UnsupportedOptionError(f"generate does not know {sorted(unknown)}.")
        defaults: GenerationConfig = self.generation_config
        given = {"do_sample": do_sample, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        chosen = GenerationConfig(**{**vars(defaults), **{k: v for k, v in given.items() if v is not None}})
        stops = _as_tuple(eos_token_id) if eos_token_id is not None else defaults.stop_ids
        limit = max_new_tokens if max_new_tokens is not None else defaults.max_new_tokens
        prompt = {"input_ids": input_ids, "attention_mask": attention_mask, **inputs}
        chunk = PREFILL_CHUNK_SIZE if prefill_chunk_size is None else prefill_chunk_size
        steps = generate_tokens(self, prompt, chosen.sampling(seed), limit, stops, prefill_chunk_size=chunk)
        tokens = [step for step in steps if not isinstance(step, PrefillProgress)]
        return torch.cat([input_ids, _padded_after_stop(torch.stack(tokens, dim=1), stops, defaults.pad_id)], dim=1)


def _positions_in_row(mask: torch.Tensor) -> torch.Tensor:
    """Rotary positions [B, T]: 0 on each row's first real token (padding gets 0 as well)."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _padded_after_stop(new: torch.Tensor, stops: tuple[int, ...], pad: int) -> torch.Tensor:
    """New ids [B, new] with everything behind a row's first stopping token replaced by `pad`."""
    is_stop = torch.isin(new, torch.tensor(stops, device=new.device, dtype=torch.long)).long()
    return new.masked_fill(is_stop.cumsum(dim=1) - is_stop > 0, pad)


def _as_tuple(ids: int | list[int]) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else tuple(ids)
