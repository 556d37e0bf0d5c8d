"""Our own CPU kernels, RMSNorm and products: as exact as they say, and torch's where they can't be had."""

import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import warm
from places import ASSETS, REPOSITORY
from reference import assert_equal
from torch._subclasses import FakeTensorMode

from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.int4 import linear as int4_linear
from gemma3_core.int4.linear import Int4Linear, Int4Weight, quantize_weight
from gemma3_core.int4.quantize import TorchAoConfig
from gemma3_core.kernels import cpu as cpu_kernels
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.nn.layers import MANY_ROWS, Linear, RMSNorm, attend
from gemma3_core.processor import Gemma3Processor

DEMO_MODEL = ASSETS / "demo_model"
DTYPES = (torch.float32, torch.bfloat16)
EXACT = 3e-4
"""Of the largest result: 16-bit integers are off by 1 in 65,000 of a group's largest, here 50 times the others."""
ROUNDED = 4e-3  # the result in bfloat16
LOGITS_BOUND = 1e-3  # of the largest logit, grown through the demo model's layers

needs_kernels = pytest.mark.cpu_kernels


@pytest.fixture
def without_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that can't have them."""
    monkeypatch.setattr(cpu_kernels, "library", lambda: None)


@pytest.fixture
def anew() -> Iterator[None]:
    """The kernels are built anew, and once more for those that come after."""
    forget()
    yield
    forget()


def forget() -> None:
    cpu_kernels.library.cache_clear()
    cpu_kernels._library.cache_clear()


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def asked() -> Any:
    """A question about a picture, as the demo model reads it."""
    processor = Gemma3Processor.from_pretrained(DEMO_MODEL)
    content = [{"type": "image", "url": str(ASSETS / "examples" / "night.png")}, {"type": "text", "text": "Describe."}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True,
        return_tensors="pt",
    )  # fmt: skip


def layer_of(outputs: int, inputs: int, group_size: int = 128) -> Int4Linear:
    return Int4Linear.from_weight(quantize_weight(noise(outputs, inputs), group_size), None)


def multiplied(layer: Int4Linear, x: torch.Tensor) -> torch.Tensor:
    """By our kernel, whatever the layer would choose."""
    kernels = cpu_kernels.library()
    assert kernels is not None
    assert layer.qdata is not None
    assert layer.scale_and_zero is not None
    given = (layer.qdata, layer.scale_and_zero, layer.group_size, int4_linear._plain_block(), layer.symmetric)
    return cpu_kernels.multiply(kernels, x, *given)


def by_torch(layer: Int4Linear, x: torch.Tensor) -> torch.Tensor:
    arguments = (x.bfloat16(), layer.qdata, layer.group_size, layer.scale_and_zero)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(*arguments).to(x.dtype)


def error(out: torch.Tensor, x: torch.Tensor, layer: Int4Linear) -> float:
    """The largest difference from the product with the dequantised weights in float64, of its largest number."""
    exact = x.double() @ layer.int4_weight().dequantize().double().T
    return float((out.double() - exact).abs().max() / exact.abs().max())


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 5, 64, 131])
@pytest.mark.parametrize(("outputs", "inputs", "group_size"), [(64, 32, 32), (192, 448, 64), (1024, 1152, 128)])
def test_it_multiplies_by_the_dequantised_weights(dtype, rows, outputs, inputs, group_size):
    layer = layer_of(outputs, inputs, group_size)
    x = noise(rows, inputs, seed=1)
    x[:, 7] *= 50  # as in real activations, a few stand out
    x = x.to(dtype)
    out = multiplied(layer, x)
    assert out.dtype == dtype
    assert error(out, x, layer) <= (EXACT if dtype == torch.float32 else ROUNDED)


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_q4_0_is_multiplied_by_its_own_scales(dtype):
    """float16, of which bfloat16 would lose three bits; by a few rows and by more than are kept at once."""
    packed = quantize_weight(noise(192, 320), 32).packed
    scale = noise(192, 10, seed=2).abs().half() / 100
    layer = Int4Linear.from_weight(Int4Weight.symmetric(packed, scale), None)
    assert (scale.bfloat16() != scale).any()
    for rows in (*range(1, cpu_kernels.FEW_ROWS + 1), 70):
        x = noise(rows, 320, seed=1).to(dtype)
        assert torch.equal(layer(x), multiplied(layer, x))
        assert error(layer(x), x, layer) <= (EXACT if dtype == torch.float32 else ROUNDED)


def blocks_of(weight: Int4Weight, block: int) -> torch.Tensor:
    """As torch packs, element by element: a byte holds a column of two rows that are half a block apart."""
    steps = weight.steps().view(-1, 2, block // 2, weight.shape[1])
    return (steps[:, 0] | steps[:, 1] << 4).transpose(1, 2).to(torch.uint8).reshape(weight.packed.shape)


@needs_kernels
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_processor_and_every_block_give_the_same_to_the_bit(group_size, dtype):
    """Blocks are torch's choice, so that a processor for one kernel may hold the blocks of another."""
    weight = quantize_weight(noise(192, 384), group_size)
    layer, kernels = Int4Linear.from_weight(weight, None), cpu_kernels.library()
    assert kernels is not None
    levels = {kernels.choose_level(most) for most in (1, 2)}
    try:
        for rows in (1, 2, 3, 4, 5, 8, 65, 70):
            x = noise(rows, 384, seed=rows).to(dtype)
            expected = multiplied(layer, x)
            for level in levels:
                assert kernels.choose_level(level) == level
                for block in cpu_kernels.BLOCKS:
                    given = (blocks_of(weight, block), layer.scale_and_zero, group_size, block)
                    assert torch.equal(cpu_kernels.multiply(kernels, x, *given), expected)
    finally:
        kernels.choose_level(2)


@needs_kernels
def test_weights_are_packed_as_by_torch():
    assert int4_linear._plain_block() in cpu_kernels.BLOCKS
    weight = quantize_weight(noise(192, 96), 32)
    steps = weight.steps()
    assert steps.unique().tolist() == list(range(16))
    layer = Int4Linear.from_weight(weight, None)
    assert torch.equal(layer.qdata, torch.ops.aten._convert_weight_to_int4pack_for_cpu(steps, 1))


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
def test_it_is_closer_than_torchs_in_float32_and_as_close_in_bfloat16():
    layer = layer_of(1024, 1152)
    x = noise(3, 1152, seed=1)
    assert error(multiplied(layer, x), x, layer) < error(by_torch(layer, x), x, layer) / 10
    x = x.bfloat16()
    assert error(multiplied(layer, x), x, layer) <= 1.05 * error(by_torch(layer, x), x, layer)


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
def test_one_activation_a_thousand_times_the_others_costs_little():
    """Row by row, and of what the others give: where a weight takes the large one for nothing, they are all."""
    weight = noise(64, 128)
    weight[:, 5] = 0.0
    layer = Int4Linear.from_weight(quantize_weight(weight, 128), None)
    x = noise(4, 128, seed=1)
    x[:, 5] = 1000.0
    x = x.bfloat16()
    rest = x.clone()
    rest[:, 5] = 0.0
    exact = layer.int4_weight().dequantize().double()
    off = (multiplied(layer, x.float()).double() - x.double() @ exact.T).norm(dim=1)
    assert (off <= 0.02 * (rest.double() @ exact.T).norm(dim=1)).all()


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
def test_the_largest_sums_do_not_overflow():
    """All steps 15, all activations the largest of their group; then the same with the other sign."""
    weight = torch.cat((torch.zeros(64, 1), torch.ones(64, 127)), dim=1)
    layer = Int4Linear.from_weight(quantize_weight(weight, 128), None)
    for value in (1.0, -1.0, 1e30, -1e-30):
        x = torch.full((1, 128), value)
        assert error(multiplied(layer, x), x, layer) <= EXACT


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
def test_a_row_does_not_depend_on_the_others_nor_on_the_number_of_threads(monkeypatch):
    layer = layer_of(320, 256)
    x = noise(9, 256, seed=1)
    together = multiplied(layer, x)
    assert multiplied(layer, x[:0]).shape == (0, 320)
    with monkeypatch.context() as patched:
        patched.setattr(cpu_kernels, "_ROWS_AT_A_TIME", 4)
        assert torch.equal(together, multiplied(layer, x))
    assert torch.equal(together, torch.cat([multiplied(layer, row[None]) for row in x]))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(together, multiplied(layer, x))
        torch.set_num_threads(7)
        assert torch.equal(together, multiplied(layer, x))
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_seen_in_its_row_and_in_no_other(dtype, bad):
    layer = layer_of(64, 256)
    x = noise(3, 256, seed=1).to(dtype)
    whole = multiplied(layer, x)
    x[1, 200] = bad
    out = multiplied(layer, x)
    assert out[1].isnan().all()
    assert torch.equal(out[[0, 2]], whole[[0, 2]])


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
def test_nothing_and_next_to_nothing_give_nothing():
    layer = layer_of(64, 256)
    for value in (0.0, 1e-42):
        assert multiplied(layer, torch.full((2, 256), value)).abs().max() <= 1e-37


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
@torch.inference_mode()
def test_a_layer_uses_it_and_torchs_where_it_does_not_fit(monkeypatch):
    layer, x = layer_of(128, 256), noise(2, 256, seed=1)
    assert torch.equal(layer(x), multiplied(layer, x))
    many = noise(MANY_ROWS, 256, seed=1)
    assert not torch.equal(layer(many), multiplied(layer, many))  # exact in float32
    for tiles in (False, True):
        monkeypatch.setattr(int4_linear, "has_bfloat16_tiles", lambda tiles=tiles: tiles)
        assert torch.equal(layer(many.bfloat16()), multiplied(layer, many.bfloat16())) != tiles
    assert torch.equal(layer(x.T.contiguous().T), multiplied(layer, x))
    uneven = layer_of(80, 256)
    assert torch.equal(uneven(x), by_torch(uneven, x))
    with torch.inference_mode(False), torch.no_grad():
        assert torch.equal(layer(x.clone()), by_torch(layer, x))


@needs_kernels
def test_outside_inference_mode_torchs_is_used_and_a_gradient_is_refused():
    layer, x = layer_of(128, 256), noise(2, 256, seed=1)
    out = layer(x.clone().requires_grad_())
    assert torch.equal(out, by_torch(layer, x))
    with pytest.raises(UnsupportedOptionError, match="can't be trained"):
        out.sum().backward()


def norm_of(width: int, dtype: torch.dtype) -> RMSNorm:
    norm = RMSNorm(width, 1e-6).to(dtype)
    norm.weight.data.copy_(noise(width, seed=2))
    return norm.requires_grad_(False)


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
@pytest.mark.parametrize("shape", [(1, 1, 1152), (1, 1, 4, 256), (3, 70, 1152), (2, 16)])
@torch.inference_mode()
def test_rms_norm_is_torchs(shape, monkeypatch):
    x = noise(*shape, seed=1) * torch.logspace(-3, 3, shape[-2])[:, None]
    for dtype in DTYPES:
        norm = norm_of(shape[-1], dtype)
        assert cpu_kernels.library_for(x.to(dtype), norm.weight) is not None
        ours = norm(x.to(dtype))
        with monkeypatch.context() as patched:
            patched.setattr(cpu_kernels, "library", lambda: None)
            plain = norm(x.to(dtype))
        assert ours.dtype == plain.dtype == dtype
        assert ours.shape == plain.shape
        if dtype == torch.float32:
            assert_equal(ours, plain)
        else:  # one rounding, of what is the same but for its last bit
            assert (ours != plain).float().mean() < 0.01
            assert_equal(ours.float(), plain.float(), 2**-8)


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
def test_rms_norm_of_views_and_of_odd_widths():
    norm, odd, x = norm_of(64, torch.float32), norm_of(30, torch.float32), noise(8, 2, 64, seed=1)
    with torch.inference_mode():
        assert torch.equal(norm(x.transpose(0, 1)), norm(x.transpose(0, 1).contiguous()))
        assert odd(noise(4, 30)).isfinite().all()
        assert norm(x[:0]).shape == (0, 2, 64)
        x[3, 1, 5] = float("nan")
        assert norm(x).isnan().any(dim=-1).nonzero().tolist() == [[3, 1]]


def dense(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    kernels = cpu_kernels.library()
    assert kernels is not None
    return cpu_kernels.dense_multiply(kernels, x, weight, bias)


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 16), (7, 48), (1, 32), (7, 96), (640, 2048), (3001, 640)])
@torch.inference_mode()
def test_a_few_rows_are_multiplied_as_exactly_as_by_torch(dtype, outputs, inputs):
    weight, bias = noise(outputs, inputs).to(dtype), noise(outputs, seed=2).to(dtype)
    if dtype == torch.bfloat16 and inputs % 32:
        assert not cpu_kernels.dense_fits(noise(1, inputs).to(dtype), weight)
        return
    for rows in range(1, cpu_kernels.FEW_ROWS + 1):
        x = noise(rows, inputs, seed=rows).to(dtype)
        for added in (None, bias):
            exact = torch.nn.functional.linear(x.double(), weight.double(), None if added is None else added.double())
            out = dense(x, weight, added)
            assert out.dtype == dtype
            assert_equal(out.double(), exact, 1e-6 if dtype == torch.float32 else 2**-8)
            # Row by row the same, whatever stands beside it.
            assert torch.equal(torch.cat([dense(one, weight, added) for one in x.split(1)]), out)


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
@torch.inference_mode()
def test_threads_views_and_what_is_no_number(monkeypatch):
    weight, x = noise(300, 640), noise(2, 3, 640, seed=1)
    out = dense(x, weight)
    assert out.shape == (2, 3, 300)
    assert torch.equal(dense(x.transpose(0, 1), weight), out.transpose(0, 1))
    for threads in (1, 2, 7, 1000):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(dense(x, weight), out)
    x[1, 2, 5] = float("nan")
    assert dense(x, weight).isnan().all(dim=-1).nonzero().tolist() == [[1, 2]]
    assert dense(x.bfloat16(), weight.bfloat16()).isnan().all(dim=-1).nonzero().tolist() == [[1, 2]]


@needs_kernels
def test_a_layer_multiplies_a_few_rows_by_it_and_others_by_torch(monkeypatch):
    calls = []
    multiply = cpu_kernels.dense_multiply
    monkeypatch.setattr(cpu_kernels, "dense_multiply", lambda *given: (calls.append(1), multiply(*given))[1])
    layer, odd, turned, x = Linear(64, 5), Linear(30, 5), Linear(64, 5), noise(2, 4, 64, seed=1)
    turned.weight.data = noise(64, 5).T
    with torch.inference_mode():
        assert_equal(layer(x), torch.nn.functional.linear(x, layer.weight, layer.bias))
        assert len(calls) == 1
        for other, rows in ((layer, noise(3, 3, 64)), (layer, x[:0]), (odd, noise(1, 30)), (turned, x)):
            assert torch.equal(other(rows), torch.nn.functional.linear(rows, other.weight, other.bias))
        with pytest.raises(RuntimeError):
            layer(x.bfloat16())
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    assert len(calls) == 1


@needs_kernels
def test_they_are_used_in_inference_mode_on_plain_tensors_in_memory_only():
    norm, x = norm_of(64, torch.float32), noise(2, 64, seed=1)
    with torch.inference_mode():
        assert cpu_kernels.library_for(x, norm.weight) is not None
        assert cpu_kernels.library_for(x.half()) is None
        assert cpu_kernels.library_for(x, norm.weight.bfloat16()) is None
        assert cpu_kernels.library_for(x.to("meta")) is None
        assert cpu_kernels.library_for(x, norm.weight.to("meta")) is None
        with FakeTensorMode() as fake:
            assert cpu_kernels.library_for(fake.from_tensor(x)) is None
        with pytest.raises(RuntimeError):
            norm.to("meta")(x)
    with torch.no_grad():
        assert cpu_kernels.library_for(x) is None
    norm = norm_of(64, torch.float32).requires_grad_()
    norm(x).sum().backward()
    assert norm.weight.grad is not None
    compiled = torch.compile(norm, backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert_equal(compiled(x), norm(x))


Answer = tuple[torch.Tensor, torch.Tensor]


@torch.inference_mode()
def answer_of(model: Any, inputs: Any) -> Answer:
    """20 greedy tokens, and the prompt's logits."""
    return model.generate(**inputs, max_new_tokens=20, do_sample=False), model(**inputs).logits.float()


@pytest.fixture(scope="module")
def by_operations() -> list[tuple[Any, Any, Answer]]:
    """The demo model in float32 and bfloat16, a question, and the answer by torch's operations."""
    made = []
    for dtype in DTYPES:
        model = Gemma3ForConditionalGeneration.from_pretrained(DEMO_MODEL, dtype=dtype)
        inputs = asked().to("cpu", dtype)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(cpu_kernels, "library", lambda: None)
            made.append((model, inputs, answer_of(model, inputs)))
    return made


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
def test_float32_and_bfloat16_answers_are_those_of_torchs_operations(by_operations):
    """The whole demo model: the same tokens in float32; logits within the bounds."""
    for (model, inputs, (plain, plain_logits)), bound in zip(by_operations, (1e-5, 2e-2), strict=True):
        ours, our_logits = answer_of(model, inputs)
        assert_equal(our_logits, plain_logits, bound)
        assert model.dtype == torch.bfloat16 or torch.equal(ours, plain)


def test_one_query_in_bfloat16_attends_in_float32(monkeypatch):
    queries, keys, values = (
        noise(1, heads, rows, 64, seed=rows).bfloat16() for heads, rows in ((4, 1), (2, 9), (2, 9))
    )
    mask = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    mask[..., 3] = False
    exact, _ = attend(queries.double(), keys.double(), values.double(), mask, 0.125, False)
    out, _ = attend(queries, keys, values, mask, 0.125, False)
    assert out.dtype == torch.bfloat16
    assert_equal(out.double(), exact, 2**-8)
    monkeypatch.setattr("gemma3_core.nn.layers.WIDENED_AT_A_TIME", 100)  # one KV head after the other
    assert torch.equal(attend(queries, keys, values, mask, 0.125, False)[0], out)
    monkeypatch.setattr("gemma3_core.nn.layers._attends_widened", lambda _queries: False)
    fused, _ = attend(queries, keys, values, mask, 0.125, False)
    assert_equal(fused.float(), out.float(), 2e-2)


@pytest.mark.usefixtures("without_kernel")
@torch.inference_mode()
def test_without_it_a_layer_uses_torchs():
    layer, x = layer_of(128, 256), noise(2, 256, seed=1)
    assert torch.equal(layer(x), by_torch(layer, x))


@pytest.fixture(scope="module")
def by_torchs_kernel() -> tuple[Any, Any, Answer, torch.Tensor]:
    """The demo model in int4, a question, the answer by torch's kernel, and logits by widened weights: the plain
    path."""
    model = Gemma3ForConditionalGeneration.from_pretrained(
        DEMO_MODEL, dtype="float32", quantization_config=TorchAoConfig()
    )
    inputs = asked()
    with pytest.MonkeyPatch.context() as patched, torch.inference_mode():
        patched.setattr(cpu_kernels, "library", lambda: None)
        patched.setattr(int4_linear, "MANY_ROWS", 10**9)
        theirs = answer_of(model, inputs)
        patched.setattr(int4_linear, "MANY_ROWS", 1)
        return model, inputs, theirs, model(**inputs).logits


@needs_kernels
@pytest.mark.usefixtures("kernel_level")
def test_the_demo_model_answers_as_with_torchs_kernel(by_torchs_kernel, monkeypatch):
    """Teacher-forced logits beside those of the dequantised weights, and the same tokens wherever these are clear."""
    model, inputs, (tokens, theirs), plain = by_torchs_kernel
    monkeypatch.setattr(int4_linear, "MANY_ROWS", 10**9)
    own_tokens, ours = answer_of(model, inputs)
    off = (ours - plain).abs().max() / plain.abs().max()
    assert off <= LOGITS_BOUND
    assert off < (theirs - plain).abs().max() / plain.abs().max()
    best, second = plain.topk(2, dim=-1).values.unbind(dim=-1)
    clear = best - second > 2 * LOGITS_BOUND * plain.abs().max()
    assert clear.float().mean() > 0.5
    assert torch.equal(ours.argmax(-1)[clear], plain.argmax(-1)[clear])
    assert torch.equal(own_tokens, tokens)


@pytest.mark.usefixtures("anew")
def test_where_it_cannot_be_had_the_log_says_why(monkeypatch, caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="gemma3_core.kernels.cpu")

    def said(level: str) -> str:
        caplog.clear()
        forget()
        assert cpu_kernels.library() is None
        assert cpu_kernels.library() is None
        (record,) = caplog.records  # once, and not for each layer
        assert "torch's operations" in record.message
        assert record.levelname == level
        return record.message

    with monkeypatch.context() as patched:
        patched.setattr(platform, "system", lambda: "Darwin")
        assert "Darwin" in said("INFO")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    processor = tmp_path / "cpuinfo"
    monkeypatch.setattr(cpu_kernels, "_PROCESSOR", processor)
    processor.write_text("flags : sse2 avx fma\n")
    assert "processor lacks" in said("INFO")
    processor.write_text(f"flags : sse2 {' '.join(cpu_kernels._NEEDED)}\n")
    with monkeypatch.context() as patched:
        patched.setenv("GEMMA_CPU_KERNELS", "0")
        assert "GEMMA_CPU_KERNELS is 0" in said("INFO")
    with monkeypatch.context() as patched:
        patched.setattr(cpu_kernels, "_THREAD_POOL", ("no_such_function",))
        assert "no_such_function" in said("INFO")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "which", lambda _name: None)
        assert "no C compiler" in said("WARNING")
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nprintf 'out of \\377 order' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _name: str(broken))
    assert "order" in said("WARNING")
    broken.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(cpu_kernels, "_BUILDING_SECONDS", 0.2)
    assert "timed out" in said("WARNING")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="for x86-64")
def test_every_compiler_of_such_a_machine_builds_them_without_a_warning(tmp_path):
    """On any processor: only running them takes a newer one."""
    compiler = next(found for name in cpu_kernels.COMPILERS if (found := shutil.which(name)))
    strict = ["-O3", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run([compiler, *strict, "-o", tmp_path / "built.so", cpu_kernels.SOURCE], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@needs_kernels
@pytest.mark.usefixtures("anew")
def test_nothing_is_left_behind_of_building_it(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cpu_kernels.library() is not None
    assert list(tmp_path.iterdir()) == []


@needs_kernels
@pytest.mark.usefixtures("anew")
def test_whoever_asks_while_they_are_built_waits_for_that_build(monkeypatch):
    built, build = [], cpu_kernels._built

    def counted():
        built.append(threading.current_thread().name)
        time.sleep(0.5)
        return build()

    monkeypatch.setattr(cpu_kernels, "_built", counted)
    cpu_kernels.prepare()
    assert cpu_kernels.library() is not None
    assert len(built) == 1


@pytest.fixture
def slowly(tmp_path) -> dict[str, str]:
    """The environment of programs whose compiler takes two seconds."""
    slow = tmp_path / "cc"
    slow.write_text(f'#!/bin/sh\nsleep 2\nexec {shutil.which("cc")} "$@"\n')
    slow.chmod(0o755)
    return {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


ENDING = """
import atexit, time
atexit.register(time.sleep, 4)  # the last at the end: temporary folders are gone by then, the compiler is done
from gemma3_core.kernels import cpu
cpu.prepare()
time.sleep(1)
"""


@needs_kernels
def test_a_program_that_ends_while_they_are_built_says_nothing(slowly):
    ran = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, cwd=REPOSITORY, env=slowly)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


FORKED = """
import os, time
from gemma3_core.kernels import cpu
cpu.library.cache_clear()  # of the process that this one was itself forked from
cpu._library.cache_clear()
cpu.prepare()
while not cpu._building.locked():
    time.sleep(0.01)
if os.fork() == 0:
    os._exit(0 if cpu.library() is not None else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@needs_kernels
def test_a_process_forked_while_they_are_built_has_them(slowly, tmp_path):
    program = tmp_path / "forked.py"
    program.write_text(FORKED)
    status, _, errors = warm.ran(program, [], slowly, tmp_path)
    assert status == 0, errors
