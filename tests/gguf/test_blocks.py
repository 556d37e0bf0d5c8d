"""Blocks of each type give the very weights that ggml-org's own package gives."""

import gguf
import numpy as np
import pytest
import torch

from gemma3_core.gguf import blocks
from gemma3_core.gguf.blocks import BLOCK_TYPES, BlockType, dequantize, q4_0_steps, type_name

KINDS = {kind.name: kind for kind in BLOCK_TYPES.values()}
QUANTIZED = [kind for kind in BLOCK_TYPES.values() if kind.elements > 1]
SCALES = {"Q4_1": (0, 2), "Q5_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
"""Where a block has float16 numbers; the other types have one in front."""
SHAPES = [(1, 1), (1, 5), (3, 1), (7, 4), (40, 3)]
"""Rows, and blocks a row."""


def random_blocks(kind: BlockType, rows: int, count: int, seed: int = 0) -> torch.Tensor:
    """Any bytes, with scales of both signs between 2**-14 and 1, and a zero."""
    chance = np.random.default_rng(seed)
    data = chance.integers(0, 256, (rows * count, kind.num_bytes), dtype=np.uint8)
    for place in SCALES.get(kind.name, (0,)):
        scales = chance.choice([-1, 1], rows * count) * 2.0 ** chance.uniform(-14, 0, rows * count)
        scales[-1:] *= chance.integers(0, 2)
        data[:, place : place + 2] = scales.astype(np.float16)[:, None].view(np.uint8)
    return torch.from_numpy(data.reshape(rows, -1))


def oracle(data: torch.Tensor, kind: BlockType) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType[kind.name]))


def check(data: torch.Tensor, kind: BlockType) -> None:
    expected = oracle(data, kind)
    got = dequantize(data, kind)
    assert got.dtype == torch.float32
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), "not bit for bit"
    for dtype in (torch.bfloat16, torch.float16):
        rounded = dequantize(data, kind, dtype)
        assert rounded.dtype == dtype
        assert torch.equal(rounded, expected.to(dtype))


@pytest.mark.parametrize("part", [2**22, 1024, 256, 1])
@pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)
def test_random_blocks_give_the_oracles_weights(kind, part, monkeypatch):
    monkeypatch.setattr(blocks, "PART", part)
    for seed, shape in enumerate(SHAPES):
        check(random_blocks(kind, *shape, seed), kind)


@pytest.mark.parametrize(
    "kind", [kind for kind in QUANTIZED if not kind.name.endswith("K")], ids=lambda kind: kind.name
)
def test_quantized_weights_give_the_oracles_weights(kind):
    weights = np.random.default_rng(1).standard_normal((9, 256)).astype(np.float32)
    data = torch.from_numpy(gguf.quants.quantize(weights, gguf.GGMLQuantizationType[kind.name]))
    check(data, kind)
    assert (dequantize(data, kind) - torch.from_numpy(weights)).abs().max() < 0.5


def test_parts_of_the_usual_size_are_put_together():
    kind = KINDS["Q4_0"]
    data = random_blocks(kind, 520, blocks.PART // 512 // kind.elements)
    assert data.numel() // kind.num_bytes * kind.elements > blocks.PART
    assert torch.equal(dequantize(data, kind), oracle(data, kind))


def test_mapped_files_are_read_in_place(tmp_path):
    kind, path = KINDS["Q6_K"], tmp_path / "weights"
    data = random_blocks(kind, 4, 3)
    path.write_bytes(bytes(32) + data.numpy().tobytes())
    mapped = torch.from_numpy(np.memmap(path, np.uint8, "c", 32, tuple(data.shape)))
    assert torch.equal(dequantize(mapped, kind), oracle(data, kind))


@pytest.mark.parametrize(("name", "dtype"), [("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_plain_numbers_are_a_view(name, dtype):
    numbers = torch.randn(3, 40).to(dtype)
    data = numbers.view(torch.uint8)
    same = dequantize(data, KINDS[name], dtype)
    assert torch.equal(same, numbers)
    assert same.data_ptr() == data.data_ptr()
    assert torch.equal(dequantize(data, KINDS[name]), oracle(data, KINDS[name]))
    assert torch.equal(dequantize(data, KINDS[name], torch.bfloat16), numbers.bfloat16())


@pytest.mark.parametrize("part", [2**22, 64])
def test_steps_of_q4_0_are_its_weights(part, monkeypatch):
    monkeypatch.setattr(blocks, "PART", part)
    for rows, count in SHAPES:
        data = random_blocks(KINDS["Q4_0"], rows, count)
        packed, scale = q4_0_steps(data)
        assert (packed.dtype, scale.dtype) == (torch.uint8, torch.float16)
        assert (packed.shape, scale.shape) == ((rows, count * 16), (rows, count))
        q = torch.stack([packed >> 4, packed & 15], dim=-1).view(rows, count, 32)
        weights = (q.float() - 8) * scale.float()[..., None]
        assert torch.equal(weights.flatten(1), oracle(data, KINDS["Q4_0"]))


def test_sizes_and_names_are_ggmls():
    for number, kind in BLOCK_TYPES.items():
        assert (kind.elements, kind.num_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(number)]
    for known in gguf.GGMLQuantizationType:
        if known.value <= 42:  # later releases of the package may know more
            assert type_name(known.value) == known.name
    assert type_name(99) == "unknown type 99"
