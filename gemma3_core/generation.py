"""Prefill, decode and generate: plain functions over a model; tokens come as they are made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gemma3_core.cache import KVCache
from gemma3_core.config import AnyConfig, Gemma3Config, Gemma3TextConfig
from gemma3_core.errors import ContextLengthError, UnsupportedOptionError
from gemma3_core.hub import read_json, write_json
from gemma3_core.outputs import CausalLMOutput
from gemma3_core.sampling import SamplingSettings, sample

DEFAULT_NEW_TOKENS = 20
"""As in transformers, where nothing else is said."""


class LanguageModel(Protocol):
    """What generation needs of a model."""

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


@torch.inference_mode()
def prefill(model: LanguageModel, cache: KVCache, **inputs: Any) -> torch.Tensor:
    """Reads a prompt into `cache`; logits [B, vocabulary] of the token after its last.

    `inputs` are the processor's: input_ids [B, T], attention_mask [B, past + T] (left padding), and with
    pictures token_type_ids and pixel_values.
    """
    mask, new = inputs.get("attention_mask"), inputs["input_ids"].shape[1]
    position_ids = None if mask is None else _positions_in_row(mask)[:, -new:]
    out = model(**inputs, position_ids=position_ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
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
    after_prefill: Callable[[], None] | None = None,
) -> Iterator[torch.Tensor]:
    """Yields the ids [B] of one new token a row at a time, until every row has stopped or the limit.

    The stopping token is yielded too; rows that stopped earlier go on with whatever comes (cut them
    there). Closing the iterator ends the work before the next token.
    """
    prompt = inputs["input_ids"]
    if max_new_tokens < 1:
        raise UnsupportedOptionError(f"max_new_tokens must be 1 or more, got {max_new_tokens}.")
    past = 0 if cache is None else cache.length
    check_length(model.text_config, past + prompt.shape[1], max_new_tokens)
    cache = cache if cache is not None else KVCache(model.text_config, prompt.shape[1] + max_new_tokens)
    generator = settings.generator(model.device)
    logits = prefill(model, cache, **inputs)
    if after_prefill is not None:
        after_prefill()
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
        seed: int | None = None,
        **inputs: Any,
    ) -> torch.Tensor:
        """Prompt and new ids [B, T + new]; rows that stop early are filled with the pad id.

        Options left out come from generation_config.json. Further `inputs` go to forward
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
        steps = list(generate_tokens(self, prompt, chosen.sampling(seed), limit, stops))
        return torch.cat([input_ids, _padded_after_stop(torch.stack(steps, dim=1), stops, defaults.pad_id)], dim=1)


def _positions_in_row(mask: torch.Tensor) -> torch.Tensor:
    """Rotary positions [B, T]: 0 on each row's first real token (padding gets 0 as well)."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def _padded_after_stop(new: torch.Tensor, stops: tuple[int, ...], pad: int) -> torch.Tensor:
    """New ids [B, new] with everything behind a row's first stopping token replaced by `pad`."""
    is_stop = torch.isin(new, torch.tensor(stops, device=new.device, dtype=torch.long)).long()
    return new.masked_fill(is_stop.cumsum(dim=1) - is_stop > 0, pad)


def _as_tuple(ids: int | list[int]) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else tuple(ids)
