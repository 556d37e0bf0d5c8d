"""The 1B shape with random weights: our prefill and decode next to transformers', on the same weights.

Both models share the same tensors, so memory and cache effects are alike; the two take turns.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.limits import Limits, bytes_of, measure
from benchmarks.table import SPEED, by_program, speeds, table_row
from benchmarks.timing import times_in_turns
from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.generation.loop import DecodePass, decode_together, prefill
from gemma3_core.generation.row_sampler import SamplingRow
from gemma3_core.generation.sampling import SamplingParams
from gemma3_core.int4.quantize import TorchAoConfig, quantized
from gemma3_core.kernels.huge_pages import in_huge_pages
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.models.weights import build_on_meta
from gemma3_core.nn.cache import KVCache

SHAPE = {
    "vocab_size": 262_144,
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 512,
    "max_position_embeddings": 32_768,
}
ONE_BILLION = Gemma3TextConfig.from_dict(SHAPE)

GREEDY = SamplingParams(temperature=0.0)
PUBLISHED = SamplingParams(temperature=1.0, top_k=64, top_p=0.95, seed=0)
"""As in the published generation_config.json."""
ROWS = (1, 8, 32)
"""Answers that are decoded together."""
START_TOKENS = 64
"""Of a prompt whose answer is decoded."""


def random_model(config: Gemma3TextConfig, dtype: torch.dtype, seed: int = 0) -> Gemma3ForCausalLM:
    """Our model with small random weights (the values do not affect speed), in large pages, as Linux maps a file."""
    model = build_on_meta(lambda: Gemma3ForCausalLM(config))
    assert isinstance(model, Gemma3ForCausalLM)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: in_huge_pages(torch.empty(p.shape, dtype=dtype).normal_(std=0.02, generator=generator))
        for name, p in model.named_parameters()
    }
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    return model


def reference_model(ours: Gemma3ForCausalLM) -> Any:
    """transformers' model around the same tensors."""
    from transformers import Gemma3ForCausalLM as Reference
    from transformers import Gemma3TextConfig as ReferenceConfig

    config = ReferenceConfig(**ours.config.to_dict())
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = Reference(config)
    # Their rotary tables and embedding scale are buffers; this makes them again outside the meta device.
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5)
    model.load_state_dict(dict(ours.named_parameters(remove_duplicate=False)), strict=True, assign=True)
    model.tie_weights()
    return model.eval()


def compare(
    dtype: torch.dtype,
    prompts: Sequence[int],
    new_tokens: int,
    rounds: int,
    int4: bool = False,
    config: Gemma3TextConfig = ONE_BILLION,
    rows: Sequence[int] = ROWS,
    backend: str | None = "inductor",
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Tokens a second of both, as `table_row` gives them: prefill of so many `prompts` tokens, and decode of so many
    `rows` together, greedily and sampled as published.

    transformers decodes with its defaults and, unless `backend` is None, with a static cache and its step compiled by
    that backend of torch.compile. With `int4`, both have int4 weights with group size 128, also in the head; `dtype` is
    then the activations'.
    """
    limits = measure(torch.device("cpu")) if limits is None else limits
    ours = random_model(config, dtype)
    operations = 2 * sum(parameter.numel() for parameter in ours.decoder.layers.parameters())
    theirs = reference_model(ours)
    if int4:
        quantize_reference(theirs)
        ours = quantized(ours, TorchAoConfig(128))
    ids = torch.randint(5, config.vocab_size, (1, max(prompts)), generator=torch.Generator().manual_seed(1))
    start = ids[:, :START_TOKENS]
    actions: dict[str, Callable[[], Any]] = {}
    tokens: dict[str, int] = {}
    for length in prompts:
        part = prefill_of(length)
        tokens[part] = length
        actions[f"{part}/ours"] = partial(_our_prefill, ours, ids[:, :length])
        actions[f"{part}/transformers"] = partial(_their_prefill, theirs, ids[:, :length])
    room = START_TOKENS + (rounds + 1) * new_tokens
    for count, sampling in product(rows, (GREEDY, PUBLISHED)):
        part = decode_of(count, sampling)
        tokens[part] = count * new_tokens
        several = start.expand(count, -1)
        actions[f"{part}/ours"] = our_decoding(ours, several, new_tokens, sampling)
        actions[f"{part}/transformers"] = _their_decoding(theirs, several, new_tokens, sampling)
        if backend is not None:
            actions[f"{part}/static"] = _their_decoding(theirs, several, new_tokens, sampling, backend, room)
    with torch.inference_mode():
        difference = _relative_difference(ours, theirs, start)
    times = times_in_turns(actions, rounds)
    name = str(dtype).removeprefix("torch.")
    report: dict[str, Any] = {"dtype": f"int4, {name}" if int4 else name, "logits_differ_by": difference}
    read = bytes_of([*weights_of(ours.decoder.layers), *weights_of(ours.lm_head)])
    for part, count in tokens.items():
        seconds = by_program(times, part)
        mine = median(seconds["ours"])
        if part.startswith("prefill"):
            share = limits.share_of_operations(operations * count, mine)
        else:
            share = limits.share_of_bytes(read * new_tokens, mine)
        report[part] = table_row(SPEED, speeds(count, seconds), share)
    return report


def prefill_of(tokens: int) -> str:
    return "prefill" if tokens == 512 else f"prefill of {tokens:,}"


def decode_of(rows: int, sampling: SamplingParams) -> str:
    kind = "decode" if sampling.greedy else "sampled decode"
    return kind if rows == 1 else f"{kind}, {rows} rows"


def quantize_reference(model: Any) -> None:
    """Quantizes transformers' decoder and head to int4 with torchao, group size 128, in the device's packing."""
    from torch import nn
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int4WeightOnlyConfig, quantize_

    if model.device.type == "cpu":
        config = PrototypeInt4WeightOnlyConfig(group_size=128)
    else:
        config = Int4WeightOnlyConfig(group_size=128, int4_packing_format="tile_packed_to_4d")
    # Otherwise the embedding, which shares its weight, would be quantized with the head.
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)

    def chosen(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and "vision_tower" not in name

    quantize_(model, config, filter_fn=chosen)


def _our_prefill(model: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    prefill(model, KVCache(model.config, ids.shape[1]), input_ids=ids)


def our_decoding(
    model: Gemma3ForCausalLM, prompt: torch.Tensor, new_tokens: int, sampling: SamplingParams
) -> Callable[[], None]:
    """As the engine decodes the answers to prompt [rows, T]."""
    rows, answers = prompt.shape[0], []
    vocabulary = model.config.vocab_size
    for number in range(rows):
        cache = KVCache(model.config, 8192)
        prefill(model, cache, input_ids=prompt[number : number + 1])
        params = replace(sampling, seed=number)
        answers.append((cache, SamplingRow.of(params, prompt[:1], vocabulary, with_alternatives=False)))

    def run() -> None:
        tokens = [prompt[:1, -1]] * rows
        for _ in range(new_tokens):
            steps = [DecodePass(model, cache, token, row) for (cache, row), token in zip(answers, tokens, strict=True)]
            decode_together(steps)
            tokens = [step.sampled.token for step in steps if step.sampled is not None]
            for (_, row), token in zip(answers, tokens, strict=True):
                row.push(token)

    return run


def _their_prefill(model: Any, prompt: torch.Tensor) -> Any:
    with torch.inference_mode():
        return model(input_ids=prompt, use_cache=True, logits_to_keep=1)


def _their_decoding(
    model: Any,
    prompt: torch.Tensor,
    new_tokens: int,
    sampling: SamplingParams,
    backend: str | None = None,
    room: int = 0,
) -> Callable[[], None]:
    """Decodes as its generate does: float32 logits, then the likeliest token, or its logits processors and a draw.

    With `backend`, in a static cache for `room` tokens, with a step that torch.compile makes.
    """
    from transformers import LogitsProcessorList, StaticCache, TopKLogitsWarper, TopPLogitsWarper

    processors: Any = LogitsProcessorList([TopKLogitsWarper(sampling.top_k), TopPLogitsWarper(sampling.top_p)])
    step: Any = model
    with torch.no_grad():  # compiled steps need ordinary tensors
        if backend is None:
            cache = model(input_ids=prompt, use_cache=True, logits_to_keep=1).past_key_values
        else:
            cache = StaticCache(config=model.config, max_cache_len=room)
            model(input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
            step = torch.compile(model, backend=backend)

    def run() -> None:
        token = prompt[:, -1:]
        # Past its limit torch would no longer compile the step, silently.
        limits: Any = torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True)
        with limits, torch.inference_mode() if backend is None else torch.no_grad():
            for _ in range(new_tokens):
                logits = step(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1].float()
                if sampling.greedy:
                    token = logits.argmax(-1, keepdim=True)
                else:
                    token = torch.multinomial(processors(token, logits).softmax(-1), 1)

    return run


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _relative_difference(ours: Gemma3ForCausalLM, theirs: Any, prompt: torch.Tensor) -> float:
    a, b = (model(input_ids=prompt, use_cache=False).logits.float() for model in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())
