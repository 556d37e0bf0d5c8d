"""The 1B shape with random weights: our prefill and decode next to transformers', on the same weights.

Both models share the same tensors, so memory and cache effects are alike; the two take turns.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import in_turns
from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.generation.loop import DecodePass, decode_step, decode_together, prefill
from gemma3_core.generation.sampling import SamplingSettings, sample
from gemma3_core.int4.quantize import TorchAoConfig, quantized
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.models.weights import build_on_meta
from gemma3_core.nn.cache import KVCache

ONE_BILLION = Gemma3TextConfig.from_dict(
    {
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
)

GREEDY = SamplingSettings(temperature=0.0)
PUBLISHED = SamplingSettings(temperature=1.0, top_k=64, top_p=0.95, seed=0)
"""As in the published generation_config.json."""
TOGETHER = 8
"""Answers that are decoded together."""


def random_model(config: Gemma3TextConfig, dtype: torch.dtype, seed: int = 0) -> Gemma3ForCausalLM:
    """Our model with small random weights (the values do not affect speed)."""
    model = build_on_meta(lambda: Gemma3ForCausalLM(config))
    assert isinstance(model, Gemma3ForCausalLM)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.empty(p.shape, dtype=dtype).normal_(std=0.02, generator=generator)
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


def compare(dtype: torch.dtype, prompt_tokens: int, new_tokens: int, rounds: int, int4: bool = False) -> dict[str, Any]:
    """Tokens a second of both, and the ratio ours / theirs: prefill, greedy decode, and decode sampled as published;
    and those of eight of our answers together, as a multiple of one's.

    With `int4`, both have int4 weights with group size 128, also in the head; `dtype` is then the activations'.
    """
    ours = random_model(ONE_BILLION, dtype)
    theirs = reference_model(ours)
    if int4:
        quantize_reference(theirs)
        ours = quantized(ours, TorchAoConfig(128))
    prompt = torch.randint(5, 250_000, (1, prompt_tokens), generator=torch.Generator().manual_seed(1))
    actions: dict[str, Callable[[], Any]] = {
        "prefill/ours": lambda: prefill(ours, KVCache(ONE_BILLION, prompt_tokens), input_ids=prompt),
        "prefill/transformers": lambda: _their_prefill(theirs, prompt),
        "decode/ours": _our_decoding(ours, prompt[:, :64], new_tokens, GREEDY),
        "together/ours": _our_decoding_together(ours, prompt[:, :64], new_tokens),
        "decode/transformers": _their_decoding(theirs, prompt[:, :64], new_tokens, GREEDY),
        "sampled decode/ours": _our_decoding(ours, prompt[:, :64], new_tokens, PUBLISHED),
        "sampled decode/transformers": _their_decoding(theirs, prompt[:, :64], new_tokens, PUBLISHED),
    }
    with torch.inference_mode():
        difference = _relative_difference(ours, theirs, prompt[:, :64])
        seconds = in_turns(actions, rounds)
    tokens = {"prefill": prompt_tokens, "decode": new_tokens, "sampled decode": new_tokens}
    name = str(dtype).removeprefix("torch.")
    report: dict[str, Any] = {"dtype": f"int4, {name}" if int4 else name, "logits_differ_by": difference}
    for part, count in tokens.items():
        mine, reference = (count / seconds[f"{part}/{who}"] for who in ("ours", "transformers"))
        report[part] = {
            "ours": round(mine, 2),
            "transformers": round(reference, 2),
            "ratio": round(mine / reference, 3),
        }
    together = TOGETHER * new_tokens / seconds["together/ours"]
    report["together"] = {
        "answers": TOGETHER,
        "ours": round(together, 2),
        "times_one": round(together * seconds["decode/ours"] / new_tokens, 3),
    }
    return report


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


def _our_decoding(
    model: Gemma3ForCausalLM, prompt: torch.Tensor, new_tokens: int, sampling: SamplingSettings
) -> Callable[[], None]:
    generator, cache = sampling.generator(model.device), KVCache(model.config, 8192)
    prefill(model, cache, input_ids=prompt)

    def run() -> None:
        token = prompt[:, -1]
        for _ in range(new_tokens):
            position = torch.tensor([cache.length])
            token = sample(decode_step(model, cache, token, position), sampling, generator)

    return run


def _our_decoding_together(model: Gemma3ForCausalLM, prompt: torch.Tensor, new_tokens: int) -> Callable[[], None]:
    """As the engine decodes several answers, greedily."""
    caches = [KVCache(model.config, 8192) for _ in range(TOGETHER)]
    for cache in caches:
        prefill(model, cache, input_ids=prompt)

    def run() -> None:
        tokens = [prompt[:, -1]] * TOGETHER
        for _ in range(new_tokens):
            steps = [DecodePass(model, cache, token) for cache, token in zip(caches, tokens, strict=True)]
            decode_together(steps)
            tokens = [sample(step.logits, GREEDY, None) for step in steps if step.logits is not None]

    return run


def _their_prefill(model: Any, prompt: torch.Tensor) -> Any:
    with torch.inference_mode():
        return model(input_ids=prompt, use_cache=True, logits_to_keep=1)


def _their_decoding(
    model: Any, prompt: torch.Tensor, new_tokens: int, sampling: SamplingSettings
) -> Callable[[], None]:
    """Decodes as its generate does: float32 logits, then the likeliest token, or its logits processors and a draw."""
    from transformers import LogitsProcessorList, TopKLogitsWarper, TopPLogitsWarper

    processors: Any = LogitsProcessorList([TopKLogitsWarper(sampling.top_k), TopPLogitsWarper(sampling.top_p)])
    cache = _their_prefill(model, prompt).past_key_values

    def run() -> None:
        token = prompt[:, -1:]
        with torch.inference_mode():
            for _ in range(new_tokens):
                out = model(input_ids=token, past_key_values=cache, use_cache=True)
                logits = out.logits[:, -1].float()
                if sampling.greedy:
                    token = logits.argmax(-1, keepdim=True)
                else:
                    token = torch.multinomial(processors(token, logits).softmax(-1), 1)

    return run


def _relative_difference(ours: Gemma3ForCausalLM, theirs: Any, prompt: torch.Tensor) -> float:
    a, b = (model(input_ids=prompt, use_cache=False).logits.float() for model in (ours, theirs))
    return float((a - b).abs().max() / b.abs().max())
