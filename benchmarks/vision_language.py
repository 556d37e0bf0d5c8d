"""A model that sees, with random weights: picture to first token, a second turn, prefill and decode, next to
transformers.

On a GPU it has the 4B shape, in bfloat16 and int4 with torchao's CUDA packing, and transformers runs with its defaults
and with a static cache, for which it compiles the decode step (on a CPU it doesn't). "In slots" is how the engine
decodes: 1, 8 and 32 answers at once. Without a GPU it has the demo model's shape, in float32. All share the same
tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import torch

from benchmarks.language_model import GREEDY, PUBLISHED, decode_of, prefill_of, quantize_reference
from benchmarks.limits import Limits, bytes_of
from benchmarks.table import SECONDS, SPEED, by_program, speeds, table_row
from benchmarks.timing import times_in_turns
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
    config: Gemma3Config,
    device: str,
    limits: Limits,
    prompts: Sequence[int] = (512, 4096),
    new_tokens: int = 64,
    rounds: int = 5,
) -> dict[str, Any]:
    """For each precision the rows of its parts; see `table_row`."""
    where = torch.device(device)
    on_gpu = where.type == "cuda"
    ours = random_model(config, where, dtype=torch.bfloat16 if on_gpu else torch.float32)
    theirs = reference_model(ours)
    operations = 2 * sum(parameter.numel() for parameter in ours.decoder.layers.parameters())
    report: dict[str, Any] = {}
    for precision in ("bfloat16", "int4") if on_gpu else ("float32",):
        if precision == "int4":
            ours = quantized(ours, TorchAoConfig(128))
            quantize_reference(theirs)
        report[precision] = rows = _rows(ours, theirs, prompts, new_tokens, rounds, on_gpu)
        for length in prompts:
            part = rows[prefill_of(length)]
            part["share"] = round(limits.share_of_operations(operations * part["ours"], 1.0), 3)
        read = decoded_bytes(ours)
        for name, part in rows.items():
            if name.startswith("decode") and part["ours"]:
                part["share"] = round(limits.share_of_bytes(read * part["ours"], 1.0), 3)
        for count in IN_SLOTS if why_not_fused(ours) is None else ():
            actions = {
                f"{decode_of(count, sampling)} in slots/ours": _in_slots(
                    ours, prompts[0], new_tokens, count, sampling, rounds
                )
                for sampling in (GREEDY, PUBLISHED)
            }
            for name, times in times_in_turns(actions, rounds).items():
                share = limits.share_of_bytes(read * new_tokens, median(times))
                rows[name.partition("/")[0]] = table_row(SPEED, speeds(count * new_tokens, {"ours": times}), share)
    return report


def random_model(
    config: Gemma3Config, device: torch.device, seed: int = 0, dtype: torch.dtype = torch.bfloat16
) -> Gemma3ForConditionalGeneration:
    """Our model with small random weights (the values do not affect speed)."""
    model = build_on_meta(lambda: Gemma3ForConditionalGeneration(config))
    assert isinstance(model, Gemma3ForConditionalGeneration)
    model.to_empty(device=device).to(dtype).tie_weights()
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


def decoded_bytes(model: Gemma3ForConditionalGeneration) -> int:
    """Bytes of weights read for each new token: the decoder's and the head's."""
    layers = [*model.decoder.layers.parameters(), *model.decoder.layers.buffers()]
    return bytes_of([*layers, *model.lm_head.parameters(), *model.lm_head.buffers()])


def _rows(
    ours: Gemma3ForConditionalGeneration,
    theirs: Any,
    prompts: Sequence[int],
    new_tokens: int,
    rounds: int,
    on_gpu: bool,
) -> dict[str, Any]:
    pictures = {"picture to first token": 1, "picture with 4 crops to first token": 5}
    asked = {prefill_of(length): _text_prompt(ours, length) for length in prompts}
    asked |= {name: _picture_prompt(ours, tiles) for name, tiles in pictures.items()}
    ways = ("transformers", "static") if on_gpu else ("transformers",)
    actions: dict[str, Callable[[], Any]] = {}
    for name, prompt in asked.items():
        actions[f"{name}/ours"] = _ours(ours, prompt, 1)
        actions |= {f"{name}/{way}": _theirs(theirs, prompt, 1, way) for way in ways}
    first = prefill_of(prompts[0])
    actions["all/ours"] = _ours(ours, asked[first], new_tokens)
    actions |= {f"all/{way}": _theirs(theirs, asked[first], new_tokens, way) for way in ways}
    # The second question behind a picture: ours has kept what it read.
    again = _further_prompt(ours, _picture_prompt(ours))
    actions["second turn/ours"] = _our_second_turn(ours, _picture_prompt(ours), again)
    actions |= {f"second turn/{way}": _theirs(theirs, again, 1, way) for way in ways}
    times = times_in_turns(actions, rounds)
    rows: dict[str, Any] = {}
    for length in prompts:
        rows[prefill_of(length)] = table_row(SPEED, speeds(length, by_program(times, prefill_of(length))))
    if rates := _decode_rates(by_program(times, "all"), by_program(times, first), new_tokens):
        rows["decode"] = table_row(SPEED, rates)
    for name in (*pictures, "second turn"):
        rows[name] = table_row(SECONDS, by_program(times, name))
    return rows


def _decode_rates(
    whole: dict[str, Sequence[float]], first: dict[str, Sequence[float]], new_tokens: int
) -> dict[str, list[float]]:
    """Tokens a second behind the first one, in each round in which noise leaves a time for them; none without ours."""
    behind = {who: [a - b for a, b in zip(some, first[who], strict=True) if a > b] for who, some in whole.items()}
    rates = {who: [(new_tokens - 1) / seconds for seconds in some] for who, some in behind.items() if some}
    return rates if "ours" in rates else {}


def _text_prompt(model: Gemma3ForConditionalGeneration, tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    most = min(model.text_config.vocab_size, model.config.image_token_index, model.config.boi_token_index)
    ids = torch.randint(3, most, (1, tokens), generator=generator).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def _picture_prompt(model: Gemma3ForConditionalGeneration, tiles: int = 1) -> dict[str, torch.Tensor]:
    """A picture, as so many tiles, followed by a question of 16 tokens."""
    config = model.config
    tile = [config.boi_token_index, *[config.image_token_index] * config.mm_tokens_per_image, config.eoi_token_index]
    question = _text_prompt(model, 16)["input_ids"].tolist()[0]
    ids = torch.tensor([[2, *tile * tiles, *question]], device=model.device)
    side = config.vision_config.image_size
    pixels = torch.rand(tiles, 3, side, side, device=model.device, dtype=model.dtype) * 2 - 1
    types = (ids == config.image_token_index).long()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types, "pixel_values": pixels}


def _further_prompt(model: Gemma3ForConditionalGeneration, prompt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The prompt with an answer of 16 tokens and a further question of 16."""
    more = _text_prompt(model, 32)
    both = {name: torch.cat((prompt[name], more[name]), dim=1) for name in more}
    return {**both, "pixel_values": prompt["pixel_values"]}


def _our_second_turn(
    model: Gemma3ForConditionalGeneration, prompt: dict[str, torch.Tensor], again: dict[str, torch.Tensor]
) -> Callable[[], Any]:
    """Reads what is new, as the engine does."""
    cache = KVCache(model.text_config, reserve=again["input_ids"].shape[1])
    known = prompt["input_ids"].shape[1] + 16
    read = {name: values[:, :known] for name, values in again.items() if name != "pixel_values"}
    prefill(model, cache, **read, pixel_values=prompt["pixel_values"])
    new = {name: again[name][:, known:] for name in ("input_ids", "token_type_ids")}

    def run() -> None:
        prefill(model, cache, **new).argmax(dim=-1)  # each round is one turn further

    return run


def _ours(model: Any, prompt: dict[str, torch.Tensor], tokens: int) -> Callable[[], Any]:
    return lambda: model.generate(**prompt, max_new_tokens=tokens, do_sample=False, eos_token_id=[])


def _theirs(model: Any, prompt: dict[str, torch.Tensor], tokens: int, way: str) -> Callable[[], Any]:
    options = {"cache_implementation": "static"} if way == "static" else {}

    def run() -> None:
        with torch.inference_mode(way != "static"):  # compiled steps need ordinary tensors
            model.generate(**prompt, max_new_tokens=tokens, do_sample=False, **options)

    return run


def _in_slots(
    model: Any, prompt_tokens: int, new_tokens: int, rows: int, sampling: SamplingParams, rounds: int
) -> Callable[[], Any]:
    """Decodes `new_tokens` of each of some answers, as the engine does on CUDA; so many `rounds` and one."""
    runner = SlotRunner(model, rows, 2**62, captures=model.device.type == "cuda")
    ids = _text_prompt(model, prompt_tokens)["input_ids"]
    room, samplers = prompt_tokens + (rounds + 2) * new_tokens, []
    caches = [KVCache(model.text_config, reserve=room) for _ in range(rows)]
    for number, cache in enumerate(caches):
        prefill(model, cache, input_ids=ids)
        row = SamplingRow.of(replace(sampling, seed=number), ids, model.text_config.vocab_size, with_alternatives=False)
        samplers.append(row)

    def run() -> None:
        tokens = [ids[:, -1]] * rows
        for _ in range(new_tokens):
            passes = [DecodePass(model, *given) for given in zip(caches, tokens, samplers, strict=True)]
            runner.decode(passes)
            tokens = [one.sampled.token for one in passes if one.sampled is not None]
            for row, token in zip(samplers, tokens, strict=True):
                row.push(token)

    return run
