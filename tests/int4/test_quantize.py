"""int4 weights: what is quantised and how exactly, files, sharing, and both precisions behind one engine."""

import json
import logging
import math
import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from places import ASSETS
from reference import assert_equal
from safetensors.torch import load_file, save_file
from torch import nn

from gemma3_core.config.gemma3 import read_config
from gemma3_core.engine import DoneEvent, Engine, Request, StageEvent, TokenEvent, Turn, precisions
from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.int4 import linear as int4_linear
from gemma3_core.int4.linear import Int4Linear, Int4Weight, quantize_weight, require_int4
from gemma3_core.int4.quantize import (
    GROUP_SIZES,
    Int4Converter,
    TorchAoConfig,
    candidate_layers,
    count_weights,
    plan_int4,
    weight_bytes,
)
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.models.text import Gemma3ForCausalLM
from gemma3_core.models.weights import build_on_meta
from gemma3_core.nn.layers import MANY_ROWS
from gemma3_core.processor import Gemma3Processor

DEMO_MODEL = ASSETS / "demo_model"
NIGHT = ASSETS / "examples" / "night.png"
PATIENCE_S = 120
# Where there is a GPU, its kernel is held to the same bounds.
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = (torch.float32, torch.bfloat16)
WIDENED_BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
KERNEL_BOUND = 2e-2  # bfloat16 keeps 8 bits: a product of many terms is off by some parts in 256 of its largest

Demo = Gemma3ForConditionalGeneration


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def full() -> Demo:
    """The demo model in float32. Not to be changed."""
    return Demo.from_pretrained(DEMO_MODEL, dtype="float32")


@pytest.fixture(scope="module")
def int4() -> Demo:
    """The demo model with int4 weights and float32 activations. Not to be changed."""
    return Demo.from_pretrained(DEMO_MODEL, dtype="float32", quantization_config=TorchAoConfig(128))


@pytest.fixture(scope="module")
def count(full) -> int:
    """How many layers int4 quantises in the demo model: seven in each of the decoder's, and the head."""
    return 7 * full.text_config.num_hidden_layers + 1


@pytest.fixture(scope="module")
def prompt() -> dict[str, torch.Tensor]:
    """A question about a picture, and its answer's beginning."""
    parts = [{"type": "image", "image": NIGHT}, {"type": "text", "text": "What color is the star?"}]
    chat = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "The star"}]},
    ]
    processor = Gemma3Processor.from_pretrained(DEMO_MODEL)
    return processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")


# One weight, one layer.


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_each_weight_is_at_most_half_a_step_off(group_size):
    weight = noise(80, 1152)
    quantised = quantize_weight(weight, group_size)
    assert quantised.shape == (80, 1152)
    assert quantised.group_size == group_size
    assert quantised.steps().min() == 0
    assert quantised.steps().max() == 15
    step = quantised.scale.float().repeat_interleave(group_size, dim=1)
    # A little more at the ends of a group, whose scale is rounded to bfloat16.
    assert ((quantised.dequantize() - weight).abs() / step).max() <= 0.55


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_as_close_to_the_weights_as_torchaos_own_int4(group_size):
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import quantize_

    linear = nn.Linear(384, 96, bias=False)
    weight = linear.weight.detach().clone()
    ours = (quantize_weight(weight, group_size).dequantize() - weight).square().mean()
    quantize_(linear, PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False))
    theirs = (linear(torch.eye(384)).T - weight).square().mean()
    assert ours <= 1.02 * theirs


def test_equal_weights_have_no_range_and_stay_what_they_are():
    for value in (0.0, 0.5, -3.0):
        quantised = quantize_weight(torch.full((16, 128), value), 128)
        assert (quantised.dequantize() - value).abs().max() <= 1e-5


def test_nan_and_infinity_are_refused():
    for value in (float("nan"), float("inf")):
        weight = noise(16, 128)
        weight[3, 5] = value
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            quantize_weight(weight, 128)


SHAPES = [(128, (80, 1152)), (64, (64, 192)), (32, (208, 96))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("group_size", "shape"), SHAPES)
def test_a_layer_multiplies_by_the_dequantised_weights(device, dtype, group_size, shape):
    quantised = quantize_weight(noise(*shape), group_size).to(torch.device(device))
    bias = nn.Parameter(noise(shape[0], seed=1).to(device, dtype))
    layer = Int4Linear.from_weight(quantised, bias)
    for rows in ((1,), (3, 7), (2, 1), (1, MANY_ROWS - 1), (2, MANY_ROWS // 2)):
        x = noise(*rows, shape[1], seed=2).to(device, dtype)
        expected = x.float() @ quantised.dequantize().T + bias.float()
        out = layer(x)
        assert out.dtype == dtype
        widened = device == "cpu" and math.prod(rows) >= MANY_ROWS
        assert_equal(out.float(), expected, WIDENED_BOUND[dtype] if widened else KERNEL_BOUND)


@pytest.mark.parametrize("shape", [(1024, 1152), (64 * 40 + 48, 896), (16, 4096)])
def test_weights_are_widened_in_parts_with_the_same_result(shape):
    quantised = quantize_weight(noise(*shape), 128)
    layer = Int4Linear.from_weight(quantised, None)
    parts = list(int4_linear._parts(layer.qdata, int4_linear._WIDENED_AT_A_TIME))
    assert [part.start for part in parts] == [0, *[part.stop for part in parts[:-1]]]
    assert parts[-1].stop == shape[0]
    assert len(parts) > 1 or shape == (16, 4096)
    widened = torch.cat([part.widened(layer.scale_and_zero[:, part.start : part.stop].float()).T for part in parts])
    assert torch.equal(widened, quantised.dequantize())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("group_size", "shape"), SHAPES)
def test_the_kernels_arrangement_gives_the_stored_weights_back(device, group_size, shape):
    quantised = quantize_weight(noise(*shape), group_size).to(torch.device(device))
    assert_same(Int4Linear.from_weight(quantised, None).int4_weight(), quantised)


def assert_same(one: Int4Weight, other: Int4Weight) -> None:
    for name in ("packed", "scale", "zero"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_large_weights_are_handled_in_parts_with_the_same_result(monkeypatch):
    weight = noise(64 * 5 + 16, 256)
    whole = quantize_weight(weight, 128)
    layer = Int4Linear.from_weight(whole, None)
    monkeypatch.setattr(int4_linear, "_ELEMENTS_AT_A_TIME", 1)
    parts = quantize_weight(weight, 128)
    assert_same(parts, whole)
    in_parts = Int4Linear.from_weight(parts, None)
    assert torch.equal(in_parts.qdata, layer.qdata)
    assert_same(in_parts.int4_weight(), whole)


def test_a_layer_has_no_gradient_and_says_so():
    layer = Int4Linear.from_weight(quantize_weight(noise(16, 128), 128), None)
    out = layer(noise(2, 128).requires_grad_())
    with pytest.raises(UnsupportedOptionError, match="Load the model in full precision"):
        out.sum().backward()


# The configuration.


def test_a_group_size_or_torchaos_object_configures():
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    from torchao.quantization import Int4WeightOnlyConfig

    assert TorchAoConfig().group_size == 128
    assert TorchAoConfig(64) == TorchAoConfig(group_size=64) == TorchAoConfig(Int4WeightOnlyConfig(group_size=64))
    assert TorchAoConfig(PrototypeInt4WeightOnlyConfig(group_size=32)).group_size == 32
    assert TorchAoConfig("int4_weight_only", group_size=64) == TorchAoConfig(64)
    assert TorchAoConfig("int4_weight_only") == TorchAoConfig(128)
    named = TorchAoConfig(64, modules_to_not_convert=["lm_head"])
    assert named == TorchAoConfig("int4_weight_only", ["lm_head"], group_size=64) != TorchAoConfig(64)
    assert TorchAoConfig.from_dict(json.loads(json.dumps(named.to_dict()))) == named


def test_what_is_not_supported_is_refused_with_what_to_write():
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from torchao.quantization.quantize_.workflows import Int4ChooseQParamsAlgorithm

    for given, says in [
        ("int8_weight_only", r"write TorchAoConfig\('int4_weight_only'\)"),
        (256, "one of 128, 64, 32, got 256"),
        (0, "got 0"),
        (Int8WeightOnlyConfig(), "got Int8WeightOnlyConfig"),
        (Int4WeightOnlyConfig(int4_choose_qparams_algorithm=Int4ChooseQParamsAlgorithm.HQQ), "TINYGEMM"),
    ]:
        with pytest.raises(UnsupportedOptionError, match=says):
            TorchAoConfig(given)
    with pytest.raises(UnsupportedOptionError, match="once"):
        TorchAoConfig(64, group_size=64)
    for option in ({"include_input_output_embeddings": True}, {"untie_embedding_weights": True}, {"inner_k_tiles": 8}):
        with pytest.raises(UnsupportedOptionError, match=f"does not support {next(iter(option))}: it knows group_size"):
            TorchAoConfig("int4_weight_only", **option)
    with pytest.raises(UnsupportedOptionError, match="must be a list of names, got 'lm_head'"):
        TorchAoConfig(64, "lm_head")
    with pytest.raises(UnsupportedOptionError, match="must be a TorchAoConfig, got int"):
        Demo.from_pretrained(DEMO_MODEL, quantization_config=128)


def test_a_device_without_a_kernel_is_refused(monkeypatch):
    with pytest.raises(UnsupportedOptionError, match="MPS"):
        require_int4(torch.device("mps"))
    with pytest.raises(UnsupportedOptionError, match="MPS"):
        Demo.from_pretrained(DEMO_MODEL, device_map="mps", quantization_config=TorchAoConfig())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(UnsupportedOptionError, match=r"8\.0 or later, this one has 7\.5"):
        require_int4(torch.device("cuda"))


def test_making_int4_weights_needs_no_torchao(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert quantize_weight(noise(16, 128), 128).shape == (16, 128)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_are_torchaos_to_the_bit(group_size, dtype):
    from torchao.quantization.quant_primitives import (
        MappingType,
        _choose_qparams_affine_tinygemm,
        _quantize_affine_tinygemm,
    )

    weight = noise(48, 384).to(dtype)
    weight[5] = 0.25
    ours, block, steps = quantize_weight(weight, group_size), [1, group_size], (torch.int32, 0, 15)
    scale, zero = _choose_qparams_affine_tinygemm(
        weight.float(), MappingType.ASYMMETRIC, block, *steps, 1e-6, torch.bfloat16, torch.bfloat16
    )
    assert torch.equal(ours.scale, scale)
    assert torch.equal(ours.zero, zero)
    q = _quantize_affine_tinygemm(weight.float(), block, scale.float(), zero.float(), *steps)
    assert torch.equal(ours.steps(), q)


def pack_as_cuda(packed: torch.Tensor, inner_k_tiles: int) -> torch.Tensor:
    """A packing of the shape of CUDA's: each block of 8 rows and 16 * inner_k_tiles columns in an order of its own."""
    steps = torch.stack((packed >> 4, packed & 15), dim=-1).flatten(1)
    blocks = steps.view(len(steps) // 8, 8, -1, 16 * inner_k_tiles).transpose(1, 2).flatten(2)
    order = torch.randperm(blocks.shape[-1], generator=torch.Generator().manual_seed(inner_k_tiles))
    low, high = blocks[..., order].unflatten(-1, (-1, 2)).unbind(dim=-1)
    return (low | high << 4).view(torch.int32).unflatten(-1, (32, -1)).contiguous()


@pytest.mark.parametrize("in_features", [32, 64, 96, 128, 192, 384])
@pytest.mark.parametrize("elements", [1, 2**11, 2**24])
def test_the_order_of_cudas_kernel_is_found_and_undone(monkeypatch, in_features, elements):
    """And many rows are multiplied by the dequantised weights: what CUDA does, carried out on a CPU."""
    monkeypatch.setattr(int4_linear, "_pack_tiles", pack_as_cuda)
    monkeypatch.setattr(int4_linear, "_ELEMENTS_AT_A_TIME", elements)
    int4_linear._tile_order.cache_clear()
    weight = quantize_weight(noise(48, in_features), 32)
    layer = Int4Linear.from_weight(weight, None)
    layer.qdata = pack_as_cuda(weight.packed, int4_linear._inner_k_tiles(in_features))
    parts = list(int4_linear._tile_rows(layer.qdata, in_features, elements))
    assert torch.equal(torch.cat([steps for _, steps in parts]).int(), weight.steps())
    assert [n for rows, _ in parts for n in range(rows.start, rows.stop)] == list(range(48))
    x = noise(200, in_features)
    expected = x.bfloat16().float() @ weight.dequantize().T
    assert (layer._multiply_dequantized(x) - expected).norm() <= 5e-3 * expected.norm()
    int4_linear._tile_order.cache_clear()


# A whole model.


def test_each_linear_of_the_demo_models_decoder_and_its_head_is_quantised(full, int4, count):
    layers = {name for name, module in int4.named_modules() if isinstance(module, Int4Linear)}
    linears = {f"model.language_model.{name}" for name, m in full.decoder.named_modules() if isinstance(m, nn.Linear)}
    assert layers == linears | {"lm_head"}
    assert len(layers) == count
    assert (set(int4.int4_plan.layers), dict(int4.int4_plan.left)) == (layers, {})
    kept = {name for name, m in int4.named_modules() if isinstance(m, nn.Linear)}
    assert all(name.startswith("model.vision_tower.") for name in kept)
    assert len(kept) == 6 * full.config.vision_config.num_hidden_layers
    assert torch.equal(int4.decoder.embed_tokens.weight, full.decoder.embed_tokens.weight)


@pytest.mark.parametrize("size", ["270m", "1b", "4b", "12b", "27b"])
def test_each_layer_of_the_published_shapes_fits(shared_data, tmp_path, size):
    shutil.copy(shared_data / "configs" / f"gemma-3-{size}-it.config.json", tmp_path / "config.json")
    config = read_config(tmp_path)
    kind = Demo if hasattr(config, "text_config") else Gemma3ForCausalLM
    model = build_on_meta(lambda: kind(config))
    for group_size in GROUP_SIZES:
        plan = plan_int4(model, TorchAoConfig(group_size))
        assert plan.left == {}, group_size
        assert len(plan.layers) == 7 * model.text_config.num_hidden_layers + 1
        full_bytes, int4_bytes = weight_bytes(model, plan)
        assert int4_bytes < full_bytes


def test_layers_that_do_not_fit_are_named_with_the_reason(text_chat_folder, caplog):
    with caplog.at_level(logging.WARNING):
        model = Gemma3ForCausalLM.from_pretrained(
            text_chat_folder, quantization_config=TorchAoConfig(32, modules_to_not_convert=["k_proj"])
        )
    vocabulary = model.config.vocab_size
    assert vocabulary % 16
    left = dict(model.int4_plan.left)
    assert left.pop("lm_head") == f"its {vocabulary} outputs are no multiple of 16"
    assert set(left) == {f"model.layers.{i}.self_attn.k_proj" for i in range(7)}
    assert set(left.values()) == {"modules_to_not_convert names it"}
    assert isinstance(model.lm_head, nn.Linear)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.model.layers[0].self_attn.k_proj, nn.Linear)
    assert isinstance(model.model.layers[0].self_attn.q_proj, Int4Linear)
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert f"lm_head stays in full precision: its {vocabulary} outputs are no multiple of 16" in said
    with pytest.raises(UnsupportedOptionError, match="group size 128 fits no layer"):
        Gemma3ForCausalLM.from_pretrained(text_chat_folder, quantization_config=TorchAoConfig(128))
    with pytest.raises(UnsupportedOptionError, match="names q_prj"):
        plan_int4(model, TorchAoConfig(32, modules_to_not_convert=["q_prj"]))


def with_dequantised_weights(model: Demo, dtype: torch.dtype) -> Demo:
    """A plain model in full precision that holds the very numbers int4 weights stand for."""
    plain = Demo.from_pretrained(DEMO_MODEL, dtype=dtype)
    for name, layer in candidate_layers(model).items():
        assert isinstance(layer, Int4Linear)
        weight = nn.Parameter(layer.int4_weight().dequantize().to(dtype))
        assert not torch.equal(weight, plain.get_submodule(name).weight)
        plain.get_submodule(name).weight = weight
    assert not any(isinstance(module, Int4Linear) for module in plain.modules())
    return plain


LOGITS_BOUND = {"float32 widened": 1e-5, "float32": 1e-2, "bfloat16 widened": 1e-2, "bfloat16": 1e-2}
"""Of the largest logit: rounding of one product, grown through the demo model's layers."""


@pytest.mark.parametrize("path", LOGITS_BOUND)
def test_logits_are_those_of_a_plain_model_with_the_dequantised_weights(prompt, path, monkeypatch):
    dtype = torch.float32 if "float32" in path else torch.bfloat16
    monkeypatch.setattr(int4_linear, "MANY_ROWS", 1 if "widened" in path else 10**9)
    monkeypatch.setattr(Int4Linear, "_widens", lambda _self, _x: True)
    model = Demo.from_pretrained(DEMO_MODEL, dtype=dtype, quantization_config=TorchAoConfig())
    plain = with_dequantised_weights(model, dtype)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in prompt.items()}
    with torch.inference_mode():
        ours, theirs = (m(**inputs).logits.float() for m in (model, plain))
    assert_equal(ours, theirs, LOGITS_BOUND[path])
    bound = LOGITS_BOUND[path] * theirs.abs().max()
    best, second = theirs.topk(2, dim=-1).values.unbind(dim=-1)
    clear = best - second > 2 * bound
    assert clear.float().mean() > 0.3
    assert torch.equal(ours.argmax(dim=-1)[clear], theirs.argmax(dim=-1)[clear])


@pytest.mark.parametrize("path", ["float32 widened", "float32"])
def test_greedy_tokens_are_those_of_a_plain_model_with_the_dequantised_weights(int4, prompt, path, monkeypatch):
    monkeypatch.setattr(int4_linear, "MANY_ROWS", 1 if "widened" in path else 10**9)
    monkeypatch.setattr(Int4Linear, "_widens", lambda _self, _x: True)
    plain = with_dequantised_weights(int4, torch.float32)
    start = prompt["input_ids"].shape[1] - 4
    shorter = {n: v if n == "pixel_values" else v[:, :start] for n, v in prompt.items()}
    ours, theirs = (m.generate(**shorter, max_new_tokens=12, do_sample=False) for m in (int4, plain))
    with torch.inference_mode():
        fields = {"pixel_values": prompt["pixel_values"], "token_type_ids": torch.zeros_like(theirs)}
        fields["token_type_ids"][:, :start] = shorter["token_type_ids"]
        logits = plain(input_ids=theirs, **fields).logits[0, start - 1 : -1]
    best, second = logits.topk(2, dim=-1).values.unbind(dim=-1)
    close = (best - second <= 2 * LOGITS_BOUND[path] * logits.abs().max()).tolist()
    first_close = close.index(True) if True in close else len(close)
    assert first_close >= 3
    assert ours[0, : start + first_close].tolist() == theirs[0, : start + first_close].tolist()


@pytest.mark.cpu_kernels
@pytest.mark.usefixtures("kernel_level")
def test_tokens_decoded_by_the_cpu_kernels_are_the_first_of_a_pass_over_the_whole_text(int4, prompt, monkeypatch):
    """One by one with a cache, a layer in one call; beside widened weights without a cache."""
    start = prompt["input_ids"].shape[1]
    tokens = int4.generate(**prompt, max_new_tokens=12, do_sample=False)
    monkeypatch.setattr(int4_linear, "MANY_ROWS", 1)
    monkeypatch.setattr(Int4Linear, "_widens", lambda _self, _x: True)
    fields = {"pixel_values": prompt["pixel_values"], "token_type_ids": torch.zeros_like(tokens)}
    fields["token_type_ids"][:, :start] = prompt["token_type_ids"]
    with torch.inference_mode():
        logits = int4(input_ids=tokens, **fields).logits[0, start - 1 : -1]
    told = logits.gather(-1, tokens[0, start:, None])[:, 0]
    assert len(told) >= 3
    assert (logits.max(dim=-1).values - told <= 2e-3 * logits.abs().max()).all()


def test_both_types_of_activations_have_the_same_int4_weights(int4):
    half = Demo.from_pretrained(DEMO_MODEL, dtype="bfloat16", quantization_config=TorchAoConfig())
    assert half.dtype == torch.bfloat16
    for name in ("lm_head", "model.language_model.layers.3.mlp.down_proj"):
        assert_same(half.get_submodule(name).int4_weight(), int4.get_submodule(name).int4_weight())


def test_a_change_of_type_leaves_the_int4_weights(prompt):
    model = Demo.from_pretrained(DEMO_MODEL, quantization_config=TorchAoConfig())
    before = model.lm_head.int4_weight()
    with torch.inference_mode():
        logits = model.float()(**prompt).logits
    assert logits.dtype == torch.float32
    assert_same(model.lm_head.int4_weight(), before)
    assert model.lm_head.scale_and_zero.dtype == torch.bfloat16
    tiny = quantize_weight(noise(16, 128) * 1e-7, 128)  # scales that float16 has no number for
    assert_same(Int4Linear.from_weight(tiny, None).half().int4_weight(), tiny)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_bytes_told_are_those_that_the_tensors_take(full, group_size):
    model = Demo.from_pretrained(DEMO_MODEL, dtype="float32", quantization_config=TorchAoConfig(group_size))
    tensors = [*model.parameters(), *model.buffers()]
    told = weight_bytes(model, model.int4_plan)
    assert told == weight_bytes(full, plan_int4(full, TorchAoConfig(group_size)))
    assert told[0] == sum(p.nbytes for p in full.parameters())
    assert told[1] == sum(tensor.nbytes for tensor in tensors)
    assert count_weights(model) == count_weights(full) == sum(p.numel() for p in full.parameters())


# Sharing.


def test_the_int4_model_shares_all_other_tensors_and_the_first_model_stays_as_it_was(prompt, count):
    model = Demo.from_pretrained(DEMO_MODEL, dtype="float32")
    with torch.inference_mode():
        before = model(**prompt).logits
    making = Int4Converter(model, TorchAoConfig())
    assert list(making.steps()) == [*range(count), count]
    quantised = making.int4_model()
    ours, theirs = dict(model.named_parameters()), dict(quantised.named_parameters())
    new = {name.rpartition(".")[0] for name in ours.keys() - theirs.keys()}
    assert new | {"lm_head"} == set(quantised.int4_plan.layers)
    assert all(parameter.data_ptr() == ours[name].data_ptr() for name, parameter in theirs.items())
    for part in ("vision_tower", "multi_modal_projector", "language_model.embed_tokens", "language_model.norm"):
        assert any(name.startswith(f"model.{part}") for name in theirs), part
    assert model.int4_plan is None
    assert not any(isinstance(module, Int4Linear) for module in model.modules())
    with torch.inference_mode():
        assert torch.equal(model(**prompt).logits, before)
        assert not torch.equal(quantised(**prompt).logits, before)


def test_several_threads_make_each_layer_once(full, count, monkeypatch):
    made, make = [], Int4Converter._make
    monkeypatch.setattr(Int4Converter, "_make", lambda self, name: (made.append(name), make(self, name))[1])
    making = Int4Converter(full, TorchAoConfig())
    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(lambda: list(making.steps())[-1]).result for _ in range(4)]
        assert [end(timeout=PATIENCE_S) for end in ends] == [count] * 4
    assert made == list(making.plan.layers)


# Files.


@pytest.fixture
def saved(int4, tmp_path) -> Path:
    """A folder with the demo model's int4 weights and the rest of its checkpoint."""
    folder = tmp_path / "int4"
    shutil.copytree(DEMO_MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json", "config.json"))
    int4.save_pretrained(folder)
    return folder


def test_saved_and_loaded_again_it_is_the_same(saved, int4, prompt, monkeypatch):
    config = json.loads((saved / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "int4_tinygemm", "group_size": 128, "modules_to_not_convert": [],
    }  # fmt: skip
    assert not [path for path in saved.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    stored = load_file(saved / "model.safetensors")
    assert stored["language_model.lm_head.weight_packed"].dtype == torch.uint8
    assert stored["language_model.lm_head.weight_packed"].shape == (1024, 128)
    assert stored["language_model.model.layers.0.mlp.down_proj.weight_scale"].shape == (256, 3)
    assert "language_model.lm_head.weight" not in stored
    monkeypatch.setitem(sys.modules, "torchao", None)  # reading needs none
    again = Demo.from_pretrained(saved)
    assert again.int4_plan == int4.int4_plan
    ours, theirs = again.state_dict(), int4.state_dict()  # made anew each time, of all layers
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name
    with torch.inference_mode():
        assert torch.equal(again(**prompt).logits, int4(**prompt).logits)
    assert Demo.from_pretrained(saved, quantization_config=TorchAoConfig(128)).int4_plan == int4.int4_plan
    again.save_pretrained(saved / "twice")
    assert (saved / "twice" / "model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()
    assert Demo.from_pretrained(saved, dtype="bfloat16").lm_head.scale_and_zero.dtype == torch.bfloat16


def test_a_text_model_with_layers_left_comes_back_too(text_chat_folder, tmp_path):
    config = TorchAoConfig(32, modules_to_not_convert=["o_proj"])
    model = Gemma3ForCausalLM.from_pretrained(text_chat_folder, quantization_config=config)
    model.save_pretrained(tmp_path)
    again = Gemma3ForCausalLM.from_pretrained(tmp_path)
    assert again.int4_plan == model.int4_plan
    ids = torch.arange(5, 25)[None]
    with torch.inference_mode():
        assert torch.equal(again(input_ids=ids).logits, model(input_ids=ids).logits)
    with pytest.raises(UnsupportedOptionError, match="Save the whole model"):
        model.model.save_pretrained(tmp_path / "part")


HEAD = "language_model.lm_head"


def change_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        changed = change(tensors.pop(name)) if name in tensors else change(torch.zeros(2))
        if changed is not None:
            tensors[name] = changed
        save_file(tensors, folder / "model.safetensors")

    return damage


def change_config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        noted = config["quantization_config"]
        config["quantization_config"] = {**noted, **changes}
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def forget_the_config(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGES = {
    "missing": (change_tensor(f"{HEAD}.weight_scale", lambda _: None), "missing: lm_head.weight_scale"),
    "left over": (change_tensor(f"{HEAD}.weight_more", lambda t: t), "not part of this model: lm_head.weight_more"),
    "both forms": (change_tensor(f"{HEAD}.bias", lambda t: t), "not part of this model: lm_head.bias"),
    "wrong shape": (change_tensor(f"{HEAD}.weight_packed", lambda t: t[:, :-1].clone()), "wrong shape: lm_head"),
    "wrong type": (change_tensor(f"{HEAD}.weight_packed", lambda t: t.int()), "stored as int32, expected uint8"),
    "float scale": (change_tensor(f"{HEAD}.weight_zero", lambda t: t.float()), "as float32, expected bfloat16"),
    "not finite": (change_tensor(f"{HEAD}.weight_scale", lambda t: t / 0), "weight_scale holds NaN or infinity"),
    "another group size": (change_config(group_size=64), "wrong shape: "),
    "a layer kept": (
        change_config(modules_to_not_convert=["lm_head"]),
        "not part of this model: lm_head.weight_packed",
    ),
    "no such group size": (change_config(group_size=100), "group_size 100"),
    "unknown field": (change_config(act_order=True), "act_order"),
    "another method": (change_config(quant_method="bitsandbytes"), "'bitsandbytes'"),
    "no note": (forget_the_config, "missing: model.language_model.layers.0"),
    "cut off": (cut_off, "damaged or cut off"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_or_mismatching_int4_checkpoints_are_refused_by_name(saved, name):
    damage, says = DAMAGES[name]
    damage(saved)
    with pytest.raises(CheckpointError) as error:
        Demo.from_pretrained(saved)
    assert says in str(error.value)
    assert str(saved) not in str(error.value)


def test_another_quantisation_than_the_stored_one_is_refused(saved):
    with pytest.raises(UnsupportedOptionError, match="holds int4 weights already"):
        Demo.from_pretrained(saved, quantization_config=TorchAoConfig(64))


# Behind the engine.


def ask(int4: bool | None = None, question: str = "What color is the star?", **options) -> Request:
    return Request((Turn("user", question, (NIGHT,)),), int4=int4, **{"max_new_tokens": 12, **options})


def answer(engine: Engine, request: Request) -> DoneEvent:
    *_, last = engine.stream(request)
    assert isinstance(last, DoneEvent)
    return last


def preparing(events) -> list[str]:
    return [event.text for event in events if isinstance(event, StageEvent) and event.stage == "preparing"]


def test_each_request_chooses_and_the_weights_are_made_once(count):
    engine = Engine.load(DEMO_MODEL, device="cpu")
    assert (engine.info.quantization, engine.info.int4.default, engine.info.int4.obstacle) == ("none", False, "")
    assert [answer(engine, ask(int4)).stats.quantization for int4 in (None, False)] == ["none", "none"]
    events = list(engine.stream(ask(True)))
    assert preparing(events) == [f"Making the int4 weights: {n} of {count} layers" for n in range(count + 1)]
    assert events[-1].stats.quantization == "int4"
    again = list(engine.stream(ask(True)))
    assert preparing(again) == []
    assert again[-1].text == events[-1].text
    assert answer(engine, ask()).stats.quantization == "none"
    assert answer(engine, ask()).stats.dtype == events[-1].stats.dtype == "float32"
    int4, full = engine._precisions.model(True), engine._precisions.model(False)
    theirs = dict(full.named_parameters())
    assert all(p.data_ptr() == theirs[name].data_ptr() for name, p in int4.named_parameters())


def test_the_servers_setting_is_int4_and_full_precision_can_be_asked_for(full):
    engine = Engine.load(DEMO_MODEL, device="cpu", int4=True)
    assert (engine.info.quantization, engine.info.int4.default) == ("int4", True)
    assert engine.info.num_parameters == sum(parameter.numel() for parameter in full.parameters())
    events = list(engine.stream(ask()))
    assert (preparing(events), events[-1].stats.quantization) == ([], "int4")
    events = list(engine.stream(ask(False)))
    assert preparing(events) == ["Loading the weights in full precision"]
    assert events[-1].stats.quantization == "none"
    assert events[-1].text == answer(Engine.load(DEMO_MODEL, device="cpu"), ask()).text
    ours = dict(engine._precisions.model(False).named_parameters())
    assert all(p.data_ptr() == ours[name].data_ptr() for name, p in engine._model.named_parameters())


def test_a_checkpoint_of_int4_weights_has_no_full_precision(saved):
    engine = Engine.load(saved, device="cpu")
    assert engine.info.quantization == "int4"
    assert "int4 weights only" in engine.info.int4.obstacle
    assert answer(engine, ask()).stats.quantization == "int4"
    with pytest.raises(UnsupportedOptionError, match="int4 weights only"):
        next(engine.stream(ask(False)))


def test_where_nothing_fits_the_choice_says_why(chat_folder):
    engine = Engine.load(chat_folder, device="cpu")
    assert "fits no layer" in engine.info.int4.obstacle
    with pytest.raises(UnsupportedOptionError, match="fits no layer"):
        next(engine.stream(ask(True)))
    smaller = Engine.load(chat_folder, device="cpu", int4_group_size=32)
    assert smaller.info.int4.left == ("lm_head",)
    assert answer(smaller, ask(True)).stats.quantization == "int4"


@pytest.mark.parametrize("start", [False, True])
def test_no_visitor_can_exhaust_a_gpus_memory(monkeypatch, start):
    engine = Engine.load(DEMO_MODEL, device="cpu", int4=start)
    monkeypatch.setattr(precisions, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(UnsupportedOptionError, match=r"GB more on the GPU, where 0\.0 GB are free"):
        list(engine.stream(ask(not start)))
    assert answer(engine, ask()).stats.quantization == ("int4" if start else "none")


def test_closed_while_the_weights_are_made_what_is_made_is_kept(count):
    engine = Engine.load(DEMO_MODEL, device="cpu")
    events = engine.stream(ask(True))
    for event in events:
        if event.text == f"Making the int4 weights: 20 of {count} layers":
            break
    events.close()
    rest = preparing(engine.stream(ask(True)))
    assert rest[0] == f"Making the int4 weights: 20 of {count} layers"
    assert rest[-1] == f"Making the int4 weights: {count} of {count} layers"


def test_visitors_in_both_precisions_at_once_never_mix():
    engine = Engine.load(DEMO_MODEL, device="cpu")
    question = "How many shapes are there?"
    alone = {int4: answer(Engine.load(DEMO_MODEL, device="cpu", int4=int4), ask(question=question)).text
             for int4 in (True, False)}  # fmt: skip
    requests = [ask(i % 2 == 0, question, visitor=str(i)) for i in range(8)]
    together: list[DoneEvent] = []
    lock = threading.Lock()

    def watched(request: Request) -> None:
        done = answer(engine, request)
        with lock:
            assert done.stats.quantization == ("int4" if request.int4 else "none")
            together.append(done)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(watched, request) for request in requests]:
            future.result(timeout=PATIENCE_S)
    assert len(together) == 8
    assert {(done.stats.quantization == "int4", done.text) for done in together} == set(alone.items())


def test_a_running_answer_finishes_on_the_weights_it_began_with(count):
    engine = Engine.load(DEMO_MODEL, device="cpu")
    alone = answer(engine, ask()).text
    running = engine.stream(ask(visitor="first"))
    said = []
    for event in running:
        if isinstance(event, TokenEvent):
            said.append(event.text)
            if len(said) == 2:
                break
    # What a second visitor's request would do, without waiting for its turn.
    assert list(engine._precisions.prepare(True))[-1].startswith(f"Making the int4 weights: {count} of {count}")
    *_, done = running
    assert done.text == alone
    assert done.stats.quantization == "none"
