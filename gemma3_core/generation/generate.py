"""`generate` of the model classes, after transformers: options in, a plan, tokens out."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.generation.config import CACHES, DEFAULT_NEW_TOKENS, GenerationConfig
from gemma3_core.generation.inputs import GenerationInputs, inputs_of_next_pass, prepare_inputs
from gemma3_core.generation.loop import (
    PREFILL_CHUNK_SIZE,
    AnyDecoder,
    BatchSampler,
    DecodePass,
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

_REFUSED = """
    logits_processor stopping_criteria prefix_allowed_tokens_fn synced_gpus assistant_model assistant_tokenizer
    negative_prompt_ids negative_prompt_attention_mask custom_generate trust_remote_code logits_to_keep labels
    cache_position
"""
"""Arguments of transformers' generate that are not supported; None, False and [] mean that they are left out."""

_RESERVED_AHEAD = 1024
"""Tokens that the cache has room for at first, if only the answer's total length is bounded; it grows beyond them."""

SAMPLING_ONLY = ("temperature", "top_k", "top_p", "min_p")
"""Options that have no effect on a greedy answer."""


class _Beside(NamedTuple):
    """What is neither an option of a GenerationConfig nor an input of the model."""

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
        """Prompt and new ids [B, T + new]; a row that ended early is filled with the pad id.

        `inputs` (or input_ids=) are [B, T], padded on the left, with attention_mask; prompts with pictures need
        token_type_ids and pixel_values. With inputs_embeds [B, T, E] and no input_ids only new ids are returned.
        Options are those of GenerationConfig, by name or as `generation_config`; the others come from
        model.generation_config. The default is 20 new tokens. `past_key_values` continue an earlier call
        (return_dict_in_generate=True returns them): only tokens that they lack are read. `generator` or `seed` draws
        the tokens, else torch's global generator (torch.manual_seed). A `streamer` gets ids as they come;
        `stop_strings` need `tokenizer`. `prefill_chunk_size` is how many prompt tokens one pass reads.
        cache_implementation "dynamic" and "static" mean the same cache. use_cache=False reads the whole row again for
        every token.

        Raises PromptError, ContextLengthError, SamplingError, and UnsupportedOptionError for every other option.
        """
        if getattr(self.prepare_inputs_for_generation, "__func__", None) is not _PREPARE:
            raise UnsupportedOptionError(
                "generate can't use another prepare_inputs_for_generation, as prompt tuning needs it. Adapters that "
                "change layers, such as LoRA, work."
            )
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
        sampler = BatchSampler(plan, numbers, prompt.ids, prompt.mask)
        steps = generate_steps(decoder, sampler, plan.max_new_tokens)
        result = _collected(steps, config, prompt.ids, streamer)
        result.past_key_values = cache
        # Ids return to the device they came from.
        asked = given.get("input_ids")
        result.sequences = result.sequences.to(result.sequences.device if asked is None else asked.device)
        return result if config.return_dict_in_generate else result.sequences

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **given: Any,
    ) -> dict[str, Any]:
        """The inputs of the next `forward`, for programs that write tokens in a loop of their own.

        `input_ids` [B, past + T] are all tokens so far, of which `past_key_values` hold the first; T may be given as
        `next_sequence_length`. `generate` has its own loop and does not call this. See `inputs_of_next_pass`.
        """
        del is_first_iteration  # the cache tells
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if next_sequence_length is not None:
            past = input_ids.shape[1] - next_sequence_length
        fields = inputs_of_next_pass(input_ids, past, inputs_embeds, given)
        return {**fields, "past_key_values": past_key_values}


_PREPARE = GenerationMixin.prepare_inputs_for_generation


def _merged(
    own: GenerationConfig, given: GenerationConfig | None, options: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """The options in effect (those by name first), and the model's inputs among `options`."""
    if not isinstance(given, GenerationConfig | None):
        raise UnsupportedOptionError(
            f"generation_config must be a gemma3_core GenerationConfig, got {type(given).__name__}."
        )
    config = (given or GenerationConfig()).over(own)
    if config.cache_implementation == "hybrid":
        config.cache_implementation = None  # published files name it; it is the default by now
    inputs = config.update(**options)
    values = {name: inputs.pop(name, None) for name in _REFUSED.split()}
    refused = [name for name, value in values.items() if not isinstance(value, bool | list | None) or value]
    if refused:
        raise UnsupportedOptionError(f"generate does not support {', '.join(refused)}. Leave it out.")
    config.require_supported()
    if not config.do_sample and (idle := [name for name in SAMPLING_ONLY if options.get(name) is not None]):
        logger.warning("%s has no effect without do_sample=True: generation is greedy.", ", ".join(idle))
    return config, inputs


def _check_combination(config: GenerationConfig, beside: _Beside) -> None:
    """Raises UnsupportedOptionError for options that contradict one another or have nothing to act on."""
    cache, streamer, kind = beside.past_key_values, beside.streamer, config.cache_implementation
    if not isinstance(cache, KVCache | None):
        raise UnsupportedOptionError(
            f"past_key_values must be a KVCache, as generate and forward return it, got {type(cache).__name__}."
        )
    if streamer is not None and not all(callable(getattr(streamer, name, None)) for name in ("put", "end")):
        raise UnsupportedOptionError(
            f"streamer must have put() and end(), as TextStreamer has, got {type(streamer).__name__}."
        )
    if not isinstance(config.max_cache_len, int | None) or (config.max_cache_len or 1) < 1:
        raise UnsupportedOptionError(f"max_cache_len must be a whole number, 1 or more, got {config.max_cache_len!r}.")
    if kind not in (None, *CACHES):
        raise UnsupportedOptionError(
            f"cache_implementation={kind!r} is not supported. Use 'dynamic' or 'static' (the same cache here), or "
            "leave it out."
        )
    uncached, cached, named = config.use_cache is False, cache is not None, kind is not None
    with_logits = bool(config.output_scores or config.output_logits)
    seeded_twice = beside.generator is not None and beside.seed is not None
    blind_stops = config.stop_strings is not None and beside.tokenizer is None
    for wrong, complaint in (
        (uncached and cached, "past_key_values can't be used with use_cache=False"),
        (uncached and named, "cache_implementation has no effect with use_cache=False"),
        (uncached and config.prefill_chunk_size is not None, "prefill_chunk_size has no effect with use_cache=False"),
        (cached and named, "past_key_values are a cache already; leave cache_implementation out"),
        (config.max_cache_len is not None and kind != "static", "max_cache_len needs cache_implementation='static'"),
        (seeded_twice, "Give a generator or a seed, not both"),
        (
            with_logits and not config.return_dict_in_generate,
            "output_scores and output_logits need return_dict_in_generate=True",
        ),
        (blind_stops, "stop_strings need tokenizer=, the one that decodes the answer"),
    ):
        if wrong:
            raise UnsupportedOptionError(f"{complaint}.")


def _plan(model: Any, config: GenerationConfig, beside: _Beside, prompt: GenerationInputs) -> Plan:
    new_tokens = _new_tokens(model, config, prompt)
    least = config.min_new_tokens
    if least is None:
        least = max(0, (config.min_length or 0) - prompt.length)
    for name, value in (("min_length", config.min_length or 0), ("min_new_tokens", least)):
        if not isinstance(value, int) or value < 0:
            raise UnsupportedOptionError(f"{name} must be a whole number, 0 or more, got {value!r}.")
    strings = config.stop_strings
    return Plan(
        sampling=config.sampling_params(beside.seed),
        max_new_tokens=new_tokens,
        stop_ids=_stop_ids(config),
        min_new_tokens=least,
        stop_strings=None if strings is None else StopStrings(strings, beside.tokenizer),  # type: ignore[arg-type]
        # As in transformers, rows are filled only if stop ids are given; an empty list counts.
        pad_id=None if config.eos_token_id is None else config.pad_id,
        with_scores=bool(config.output_scores),
    )


def _stop_ids(config: GenerationConfig) -> tuple[int, ...]:
    """The ids that end an answer. A negative one ends none, as the log says in transformers' words."""
    ids = config.stop_ids
    if not all(type(token) is int for token in ids):
        raise UnsupportedOptionError(f"eos_token_id must be an id or a list of ids, got {config.eos_token_id!r}.")
    if any(token < 0 for token in ids):
        logger.warning(
            "`eos_token_id` should consist of positive integers, but is %s. Your generation will not stop until the "
            "maximum length is reached. Depending on other flags, it may even crash.",
            torch.tensor(ids),
        )
    return tuple(token for token in ids if token >= 0)


def _new_tokens(model: Any, config: GenerationConfig, prompt: GenerationInputs) -> int:
    """max_new_tokens, else the room that max_length leaves, else 20 or what is left of the context."""
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
    # An explicit max_new_tokens is reserved up front; a limit from a file may be the whole context.
    ahead = plan.max_new_tokens if config.max_new_tokens is not None else min(plan.max_new_tokens, _RESERVED_AHEAD)
    cache.reserve(max(prompt.past + prompt.unread + ahead, config.max_cache_len or 0))
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
    steps: Iterator[Step | PrefillProgress | DecodePass],
    config: GenerationConfig,
    ids: torch.Tensor,
    streamer: BaseStreamer | None,
) -> GenerateOutput:
    """Runs all steps: prompt and new ids [B, T + new], and the scores and logits that `config` asks for."""
    if streamer is not None:
        streamer.put(ids.cpu())
    tokens, scores, logits = [], [], []
    for step in steps:
        if not isinstance(step, Step):
            continue
        tokens.append(step.tokens)
        # Copies: the model made inference tensors, and greedy scores may be the logits themselves.
        if step.scores is not None:
            scores.append(step.scores.float().clone())
        if config.output_logits:
            assert step.logits is not None
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
