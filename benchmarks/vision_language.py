"""The 4B shape with random weights on a GPU: decode, prefill and picture to first token, next to transformers.

Both share the same tensors. transformers runs with its defaults, and with a static cache, for which it compiles the
decode step; both in bfloat16, and in int4 with torchao's CUDA packing. Decode is also given as a share of the memory
bandwidth that a plain copy reaches. "In slots" is how the engine decodes: 1, 8 and 32 answers at once.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.language_model import quantize_reference
from benchmarks.timing import in_turns
from gemma3_core.config.gemma3 import Gemma3Config
from gemma3_core.engine.slot_runner import SlotRunner
from gemma3_core.generation.fused_decoder import why_not_fused
from gemma3_core.generation.loop import DecodePass, prefill
from gemma3_core.generation.row_sampler import SamplingRow
from gemma3_core.generation.sampling import SamplingParams
from gemma3_core.int4.quantize import TorchAoConfig, quantized
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.weights import build_on_meta, module_name
from gemma3_core.nn.cache import KVCache

IN_SLOTS = (1, 8, 32)
"""Answers that are decoded at once."""

FOUR_BILLION = Gemma3Config.from_dict(
    {
        "boi_token_index": 255_999,
        "eoi_token_index": 256_000,
        "image_token_index": 262_144,
        "eos_token_id": [1, 106],
        "mm_tokens_per_image": 256,
        "text_config": {
            "vocab_size": 262_208,
            "hidden_size": 2560,
            "intermediate_size": 10_240,
            "num_hidden_layers": 34,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "query_pre_attn_scalar": 256,
            "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
        "vision_config": {
            "hidden_size": 1152,
            "image_size": 896,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": 27,
            "patch_size": 14,
        },
    }
)


def measure(
    config: Gemma3Config = FOUR_BILLION,
    device: str = "cuda",
    prompt_tokens: int = 1024,
    new_tokens: int = 64,
    rounds: int = 5,
) -> dict[str, Any]:
    """Tokens a second, and seconds from picture to first token, of ours and theirs."""
    where = torch.device(device)
    ours = random_model(config, where)
    theirs = reference_model(ours)
    bandwidth = copy_bandwidth(where)
    report: dict[str, Any] = {"copy_gb_per_s": round(bandwidth / 1e9, 1)}
    for precision in ("bfloat16", "int4"):
        if precision == "int4":
            ours = quantized(ours, TorchAoConfig(128))
            quantize_reference(theirs)
        seconds = _seconds(ours, theirs, prompt_tokens, new_tokens, rounds)
        floor = decoded_bytes(ours) / bandwidth
        report[precision] = _figures(seconds, prompt_tokens, new_tokens, floor)
        for rows in IN_SLOTS if why_not_fused(ours) is None else ():
            once = in_turns({"slots": _in_slots(ours, prompt_tokens, new_tokens, rows)}, rounds)["slots"] / new_tokens
            others = report[precision]["decode"] if rows == 1 else {"default": None, "static": None}
            report[precision][f"decode_in_slots_{rows}"] = {**others, "ours": round(rows / once, 2)}
            report[precision]["share_of_bandwidth"][f"in_slots_{rows}"] = round(floor / once, 3)
    return report


def random_model(config: Gemma3Config, device: torch.device, seed: int = 0) -> Gemma3ForConditionalGeneration:
    """Our model in bfloat16 with small random weights (the values do not affect speed)."""
    model = build_on_meta(lambda: Gemma3ForConditionalGeneration(config))
    assert isinstance(model, Gemma3ForConditionalGeneration)
    model.to_empty(device=device).to(torch.bfloat16).tie_weights()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02, generator=generator)
    return model.requires_grad_(False)


def reference_model(ours: Gemma3ForConditionalGeneration) -> Any:
    """transformers' model around the same tensors."""
    from transformers import Gemma3Config as ReferenceConfig
    from transformers import Gemma3ForConditionalGeneration as Reference

    config = ReferenceConfig(**ours.config.to_dict())
    config._attn_implementation = "sdpa"
    with ours.device:
        model: Any = Reference(config)
    tensors = dict(ours.named_parameters(remove_duplicate=False))
    shared = {name: tensors[module_name(name, multimodal=True)] for name in model.state_dict()}
    model.load_state_dict(shared, strict=True, assign=True)
    model.tie_weights()
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def copy_bandwidth(device: torch.device, size: int = 2**30) -> float:
    """Bytes a second that a plain copy reads and writes; the best of ten."""
    source = torch.empty(size if device.type == "cuda" else size // 16, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * source.numel() / (time.perf_counter() - start))
    return best


def decoded_bytes(model: Gemma3ForConditionalGeneration) -> int:
    """Bytes of weights read for each new token: the decoder's and the head's."""
    layers = [*model.decoder.layers.parameters(), *model.decoder.layers.buffers()]
    head = [*model.lm_head.parameters(), *model.lm_head.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in (*layers, *head))


def _seconds(
    ours: Gemma3ForConditionalGeneration, theirs: Any, prompt_tokens: int, new_tokens: int, rounds: int
) -> dict[str, float]:
    text = _text_prompt(ours, prompt_tokens)
    picture = _picture_prompt(ours)
    actions: dict[str, Callable[[], Any]] = {}
    for kind, prompt, tokens in (("first", text, 1), ("all", text, new_tokens), ("picture", picture, 1)):
        actions[f"{kind}/ours"] = _ours(ours, prompt, tokens)
        for way in ("default", "static"):
            actions[f"{kind}/{way}"] = _theirs(theirs, prompt, tokens, way)
    return in_turns(actions, rounds)


def _text_prompt(model: Gemma3ForConditionalGeneration, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    most = min(model.text_config.vocab_size, model.config.image_token_index, model.config.boi_token_index)
    ids = torch.randint(3, most, (1, tokens), generator=generator).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def _picture_prompt(model: Gemma3ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """One picture followed by a question of 16 tokens."""
    config = model.config
    soft = [config.image_token_index] * config.mm_tokens_per_image
    question = _text_prompt(model, 16)["input_ids"].tolist()[0]
    ids = torch.tensor([[2, config.boi_token_index, *soft, config.eoi_token_index, *question]], device=model.device)
    side = config.vision_config.image_size
    pixels = torch.rand(1, 3, side, side, device=model.device, dtype=model.dtype) * 2 - 1
    types = (ids == config.image_token_index).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types, "pixel_values": pixels}


def _ours(model: Any, prompt: dict[str, torch.Tensor], tokens: int) -> Callable[[], Any]:
    return lambda: model.generate(**prompt, max_new_tokens=tokens, do_sample=False, eos_token_id=[])


def _theirs(model: Any, prompt: dict[str, torch.Tensor], tokens: int, way: str) -> Callable[[], Any]:
    options = {"cache_implementation": "static"} if way == "static" else {}

    def run() -> None:
        with torch.inference_mode(way != "static"):  # compiled steps need ordinary tensors
            model.generate(**prompt, max_new_tokens=tokens, do_sample=False, **options)

    return run


def _in_slots(model: Any, prompt_tokens: int, new_tokens: int, rows: int) -> Callable[[], Any]:
    """Decodes `new_tokens` of each of some answers, greedily, as the engine does on CUDA."""
    runner = SlotRunner(model, rows, 2**62, captures=model.device.type == "cuda")
    ids = _text_prompt(model, prompt_tokens)["input_ids"]
    caches, samplers = [KVCache(model.text_config, reserve=2 * prompt_tokens) for _ in range(rows)], []
    for cache in caches:
        prefill(model, cache, input_ids=ids)
        row = SamplingRow.of(SamplingParams(), ids, model.text_config.vocab_size, with_alternatives=False)
        samplers.append(row)

    def run() -> None:
        tokens = [ids[:, -1]] * rows
        for _ in range(new_tokens):
            passes = [DecodePass(model, *given) for given in zip(caches, tokens, samplers, strict=True)]
            runner.decode(passes)
            tokens = [one.sampled.token for one in passes if one.sampled is not None]
            for row, token in zip(samplers, tokens, strict=True):
                row.push(token)
        for cache in caches:
            cache.length = prompt_tokens  # the slots go on from here

    return run


def _figures(seconds: dict[str, float], prompt_tokens: int, new_tokens: int, floor: float) -> dict[str, Any]:
    """`floor` is the time of one token in seconds if only memory bandwidth counted."""
    figures: dict[str, Any] = {"prefill": {}, "decode": {}, "picture_to_first_token_s": {}}
    for way in ("ours", "default", "static"):
        first, whole, picture = (seconds[f"{kind}/{way}"] for kind in ("first", "all", "picture"))
        rate = (new_tokens - 1) / (whole - first) if whole > first else None
        figures["prefill"][way] = round(prompt_tokens / first, 1)
        figures["decode"][way] = rate and round(rate, 2)
        figures["picture_to_first_token_s"][way] = round(picture, 4)
        figures.setdefault("share_of_bandwidth", {})[way] = rate and round(rate * floor, 3)
    return figures
