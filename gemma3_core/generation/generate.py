"""`generate` of the model classes, after transformers: options in, a plan, tokens out."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.generation.config import CACHES, DEFAULT_NEW_TOKENS, GenerationConfig
from gemma3_core.generation.inputs import GenerationInputs, prepare_inputs
from gemma3_core.generation.loop import (
    PREFILL_CHUNK_SIZE,
    AnyDecoder,
    Decoder,
    Plan,
    PrefillProgress,
    Step,
    UncachedDecoder,
    check_length,
    generate_steps,
)
from gemma3_core.generation.stop_strings import StopStrings
from gemma3_core.generation.streamers import BaseStreamer
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.outputs import GenerateOutput
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

logger = logging.getLogger(__name__)

_REFUSED = (
    "logits_processor",
    "stopping_criteria",
    "prefix_allowed_tokens_fn",
    "synced_gpus",
    "assistant_model",
    "assistant_tokenizer",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    "custom_generate",
    "trust_remote_code",
    "logits_to_keep",
    "labels",
    "cache_position",
)
"""Arguments of transformers' generate that are not supported; left out, None, False and [] are the same."""

_SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p")


class _Beside(NamedTuple):
    """What is no option of a GenerationConfig and no input of the model."""

    streamer: BaseStreamer | None
    tokenizer: Gemma3Tokenizer | None
    generator: torch.Generator | None
    seed: int | None
    past_key_values: KVCache | None


class GenerationMixin:
    """`generate` of the model classes, after transformers."""

    generation_config: GenerationConfig

    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        streamer: BaseStreamer | None = None,
        tokenizer: Gemma3Tokenizer | None = None,
        past_key_values: KVCache | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        **options: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Prompt and new ids [B, T + new]; behind a row's end stands the pad id.

        `inputs` (or input_ids=) [B, T], padded on the left, with attention_mask, and with pictures token_type_ids
        and pixel_values; or inputs_embeds [B, T, E], then without input_ids only new ids are returned.
        Options are those of GenerationConfig, by name or as `generation_config`; left open they come from
        model.generation_config, and 20 new tokens are written where nothing is said. `past_key_values` go on from
        an earlier call (return_dict_in_generate=True returns them): only tokens that they lack are read.
        `generator` or `seed` draw the tokens; without either torch's own random numbers do, so that
        torch.manual_seed works. A `streamer` gets ids as they come; `stop_strings` need `tokenizer`.
        `prefill_chunk_size`: tokens that one pass over the prompt reads. cache_implementation: "dynamic" and "static"
        are one and the same cache here. use_cache=False reads everything again for every token.

        Raises PromptError, ContextLengthError, SamplingError, and UnsupportedOptionError for every other option.
        """
        if inputs is not None and options.get("input_ids") is not None:
            raise PromptError("The prompt is given twice: as inputs and as input_ids. Give one of them.")
        config, given = _merged(self.generation_config, generation_config, options)
        beside = _Beside(streamer, tokenizer, generator, seed, past_key_values)
        if inputs is not None:
            given["input_ids"] = inputs
        _check_combination(config, beside)
        prompt = prepare_inputs(self, given, config, past_key_values)
        plan = _plan(self, config, beside, prompt)
        decoder, cache = _decoder(self, config, beside, prompt, plan)
        numbers = _random_numbers(self, beside, plan)
        steps = generate_steps(decoder, plan, numbers, prompt.ids, prompt.mask)
        result = _collected(steps, config, prompt.ids, streamer)
        result.past_key_values = cache
        # Ids go back to where they came from; transformers reads them on the model's device too.
        asked = given.get("input_ids")
        result.sequences = result.sequences.to(result.sequences.device if asked is None else asked.device)
        return result if config.return_dict_in_generate else result.sequences


def _merged(
    own: GenerationConfig, given: GenerationConfig | None, options: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The config that counts, options by name first, and what are no options: the model's inputs."""
    if not isinstance(given, GenerationConfig | None):
        raise UnsupportedOptionError(
            f"generation_config must be a gemma3_core GenerationConfig, got {type(given).__name__}."
        )
    config = (given or GenerationConfig()).over(own)
    if config.cache_implementation == "hybrid":
        config.cache_implementation = None  # published files ask for the cache that is the default by now
    inputs = config.update(**options)
    refused = [name for name in _REFUSED if not _says_nothing(inputs.pop(name, None))]
    if refused:
        raise UnsupportedOptionError(f"generate does not support {', '.join(refused)}. Leave it out.")
    config.require_supported()
    if not config.do_sample and (idle := [name for name in _SAMPLING_ONLY if options.get(name) is not None]):
        logger.warning("%s has no effect without do_sample=True: generation is greedy.", ", ".join(idle))
    return config, inputs


def _says_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, bool | list) and not value)


def _check_combination(config: GenerationConfig, beside: _Beside) -> None:
    """Raises UnsupportedOptionError for options that contradict one another or have nothing to act on."""
    cache = beside.past_key_values
    if not isinstance(cache, KVCache | None):
        raise UnsupportedOptionError(
            f"past_key_values must be a KVCache, as generate and forward return it, got {type(cache).__name__}."
        )
    if beside.streamer is not None and not all(callable(getattr(beside.streamer, n, None)) for n in ("put", "end")):
        raise UnsupportedOptionError(
            f"streamer must have put() and end(), as TextStreamer has, got {type(beside.streamer).__name__}."
        )
    if not isinstance(config.max_cache_len, int | None) or (config.max_cache_len or 1) < 1:
        raise UnsupportedOptionError(f"max_cache_len must be a whole number, 1 or more, got {config.max_cache_len!r}.")
    if config.cache_implementation not in (None, *CACHES):
        raise UnsupportedOptionError(
            f"cache_implementation={config.cache_implementation!r} is not supported; use 'dynamic' or 'static' "
            "(one and the same cache here), or leave it out."
        )
    without = config.use_cache is False
    complaints = {
        "past_key_values can't be used with use_cache=False": without and cache is not None,
        "cache_implementation has no effect with use_cache=False": without and config.cache_implementation is not None,
        "prefill_chunk_size has no effect with use_cache=False": without and config.prefill_chunk_size is not None,
        "past_key_values are a cache already; leave cache_implementation out": cache is not None
        and config.cache_implementation is not None,
        "max_cache_len is for cache_implementation='static'": config.max_cache_len is not None
        and config.cache_implementation != "static",
        "Give a generator or a seed, not both": beside.generator is not None and beside.seed is not None,
        "output_scores and output_logits need return_dict_in_generate=True": not config.return_dict_in_generate
        and bool(config.output_scores or config.output_logits),
        "stop_strings need tokenizer=, the one that the answer is decoded with": config.stop_strings is not None
        and beside.tokenizer is None,
    }
    if wrong := [text for text, is_so in complaints.items() if is_so]:
        raise UnsupportedOptionError(f"{wrong[0]}.")


def _plan(model: Any, config: GenerationConfig, beside: _Beside, prompt: GenerationInputs) -> Plan:
    new_tokens = _new_tokens(model, config, prompt)
    least = config.min_new_tokens
    if least is None:
        least = max(0, (config.min_length or 0) - prompt.length)
    for name, value in (("min_length", config.min_length or 0), ("min_new_tokens", least)):
        if not isinstance(value, int) or value < 0:
            raise UnsupportedOptionError(f"{name} must be a whole number, 0 or more, got {value!r}.")
    strings = config.stop_strings
    assert strings is None or beside.tokenizer is not None
    stops = config.stop_ids
    if not all(type(token) is int and token >= 0 for token in stops):
        raise UnsupportedOptionError(f"eos_token_id must be an id or a list of ids, got {config.eos_token_id!r}.")
    return Plan(
        sampling=config.sampling_params(beside.seed),
        max_new_tokens=new_tokens,
        stop_ids=stops,
        min_new_tokens=least,
        stop_strings=None if strings is None else StopStrings(strings, beside.tokenizer),  # type: ignore[arg-type]
        # As in transformers, rows are filled up only where stop ids are given, be it an empty list.
        pad_id=None if config.eos_token_id is None else config.pad_id,
        with_scores=bool(config.output_scores),
    )


def _new_tokens(model: Any, config: GenerationConfig, prompt: GenerationInputs) -> int:
    """The most tokens to write: max_new_tokens, else what max_length leaves, else 20 or what the context has left."""
    for name in ("max_new_tokens", "max_length"):
        value = getattr(config, name)
        if value is not None and (type(value) is not int or value < 1):
            raise UnsupportedOptionError(f"{name} must be a whole number, 1 or more, got {value!r}.")
    longest = model.text_config.max_position_embeddings
    read = prompt.past + prompt.unread
    if config.max_new_tokens is not None:
        new_tokens = config.max_new_tokens
        if config.max_length is not None:
            logger.warning("max_new_tokens=%s and max_length=%s: max_new_tokens counts.", new_tokens, config.max_length)
    elif config.max_length is not None:
        new_tokens = config.max_length - prompt.length
        if new_tokens < 1:
            raise PromptError(
                f"The prompt has {prompt.length} tokens, max_length={config.max_length} leaves no room for an answer. "
                "Give max_new_tokens instead, or a larger max_length."
            )
    else:
        new_tokens = max(1, min(DEFAULT_NEW_TOKENS, longest - read))
    check_length(model.text_config, read, new_tokens)
    return new_tokens


def _decoder(
    model: Any, config: GenerationConfig, beside: _Beside, prompt: GenerationInputs, plan: Plan
) -> tuple[AnyDecoder, KVCache | None]:
    """The decoder that reads the tokens, and its KV cache."""
    if config.use_cache is False:
        if "inputs_embeds" in prompt.fields:
            raise UnsupportedOptionError("inputs_embeds need the cache: new tokens have ids only. Leave use_cache out.")
        return UncachedDecoder(model, prompt.fields), None
    cache = beside.past_key_values if beside.past_key_values is not None else KVCache(model.text_config)
    cache.reserve(max(prompt.past + prompt.unread + plan.max_new_tokens, config.max_cache_len or 0))
    chunk = PREFILL_CHUNK_SIZE if config.prefill_chunk_size is None else config.prefill_chunk_size
    return Decoder(model, cache, prompt.fields, chunk), cache


def _random_numbers(model: Any, beside: _Beside, plan: Plan) -> torch.Generator | None:
    """The given generator, or one of the seed; None is torch's own."""
    if beside.generator is None:
        return None if beside.seed is None else plan.sampling.generator(model.device)
    if not isinstance(beside.generator, torch.Generator) or beside.generator.device.type != model.device.type:
        got = getattr(beside.generator, "device", type(beside.generator).__name__)
        raise UnsupportedOptionError(f"generator must be a torch.Generator on {model.device.type}, got {got}.")
    return beside.generator


def _collected(
    steps: Iterator[Step | PrefillProgress], config: GenerationConfig, ids: torch.Tensor, streamer: BaseStreamer | None
) -> GenerateOutput:
    """Runs to the end; prompt and new ids [B, T + new], and what else was asked for."""
    if streamer is not None:
        streamer.put(ids.cpu())
    tokens, scores, logits = [], [], []
    for step in steps:
        if isinstance(step, PrefillProgress):
            continue
        tokens.append(step.tokens)
        # Copies: the model made inference tensors, and greedy scores may be the logits themselves.
        if step.scores is not None:
            scores.append(step.scores.float().clone())
        if config.output_logits:
            logits.append(step.logits.float().clone())
        if streamer is not None:
            streamer.put(step.tokens.cpu())
    if streamer is not None:
        streamer.end()
    return GenerateOutput(
        sequences=torch.cat([ids.long(), torch.stack(tokens, dim=1)], dim=1),
        scores=tuple(scores) if config.output_scores else None,
        logits=tuple(logits) if config.output_logits else None,
    )
