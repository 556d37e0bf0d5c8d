"""Weights in pages of 2 MB: the same numbers, in memory of their own that is given back."""

import gc
import mmap
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.int4.linear import Int4Linear, quantize_weight
from gemma3_core.int4.quantize import TorchAoConfig, quantized
from gemma3_core.kernels import huge_pages
from gemma3_core.kernels.huge_pages import in_huge_pages
from gemma3_core.models.text import Gemma3ForCausalLM

PAGE = 2**21


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system that gives such pages; a mapping that does not get them is as good for all but speed."""
    monkeypatch.setattr(huge_pages, "_are_given", lambda: True)
    monkeypatch.setattr(huge_pages, "_slab", huge_pages._Slab())


def asks_for_huge_pages(tensor: torch.Tensor) -> bool:
    """Whether the mapping that holds the tensor asks for them, as Linux tells."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= tensor.data_ptr() < end
        elif inside and first == "VmFlags:":
            return "hg" in rest.split()
    raise AssertionError("no mapping holds the tensor")


@pytest.fixture
def own_mappings(monkeypatch: pytest.MonkeyPatch) -> list[range]:
    """The addresses of the mappings made during the test. The smallest tensors go to them too.

    Other libraries ask for huge pages as well, NumPy for its large arrays. What malloc hands out later in the same
    place has them, so that the system's flags do not tell that a tensor was left alone.
    """
    mappings: list[range] = []
    unwatched = huge_pages._mapped

    def watched(count: int) -> tuple[mmap.mmap, int]:
        mapping, start = unwatched(count)
        first = torch.frombuffer(mapping, dtype=torch.uint8).data_ptr()
        mappings.append(range(first, first + len(mapping)))
        return mapping, start

    monkeypatch.setattr(huge_pages, "_mapped", watched)
    monkeypatch.setattr(huge_pages, "_slab", huge_pages._Slab())
    monkeypatch.setattr(huge_pages, "_LEAST", 0)
    return mappings


def lies_in(mappings: list[range], tensor: torch.Tensor) -> bool:
    return any(tensor.data_ptr() in mapping for mapping in mappings)


@pytest.mark.usefixtures("given")
@pytest.mark.parametrize("shape", [(128, 256), (1000, 1111), (3, 2**22)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_a_copy_holds_the_same_numbers_in_a_storage_of_its_own(shape, dtype):
    tensor = torch.randint(0, 255, shape, dtype=torch.uint8).to(dtype)
    copy = in_huge_pages(tensor)
    assert copy.dtype == dtype
    assert torch.equal(copy, tensor)
    assert copy.data_ptr() != tensor.data_ptr()
    assert copy.data_ptr() % 64 == 0
    assert copy.untyped_storage().nbytes() == tensor.nbytes  # so that files hold no more than it
    if tensor.nbytes > huge_pages._SLAB // 2:
        assert copy.data_ptr() % PAGE == 0
    copy.add_(1)  # it is no view of the first one
    assert not torch.equal(copy, tensor)


@pytest.mark.usefixtures("given")
def test_many_share_a_mapping_which_goes_with_the_last_of_them():
    with ThreadPoolExecutor(8) as threads:
        copies = list(threads.map(lambda n: in_huge_pages(torch.full((64, 1024), float(n))), range(400)))
    assert all(bool((copy == n).all()) for n, copy in enumerate(copies))
    places = sorted(copy.data_ptr() for copy in copies)
    assert min(later - place for place, later in pairwise(places)) >= 64 * 1024 * 4
    assert huge_pages._slab._mapping is not None
    mapping = weakref.ref(huge_pages._slab._mapping())
    kept = copies[-1]
    copies.clear()
    gc.collect()
    assert mapping() is not None
    assert bool((kept == 399).all())
    del kept
    gc.collect()
    assert mapping() is None
    assert bool((in_huge_pages(torch.full((64, 1024), 7.0)) == 7).all())


def test_small_ones_and_systems_without_such_pages_are_left_alone(monkeypatch):
    monkeypatch.setattr(huge_pages, "_are_given", lambda: True)
    small, large = torch.ones(100), torch.ones(2**20)
    assert in_huge_pages(small) is small
    elsewhere = torch.ones(2**20, device="meta")
    assert in_huge_pages(elsewhere) is elsewhere

    def refuses(*_args, **_named):
        raise OSError("Cannot allocate memory")

    with monkeypatch.context() as patched:
        patched.setattr(huge_pages.mmap, "mmap", refuses)
        patched.setattr(huge_pages, "_slab", huge_pages._Slab())
        assert in_huge_pages(large) is large
    monkeypatch.setattr(huge_pages, "_are_given", lambda: False)
    assert in_huge_pages(large) is large


def test_what_loading_packs_or_converts_is_in_them(own_mappings, weights):
    linear = Int4Linear.from_weight(quantize_weight(torch.randn(64, 64), 32), None)
    mapped = Gemma3ForCausalLM.from_pretrained(weights.text)
    converted = Gemma3ForCausalLM.from_pretrained(weights.text, dtype="bfloat16")
    gate, as_stored = (model.model.layers[0].mlp.gate_proj.weight for model in (converted, mapped))
    for tensor in (linear.qdata, linear.scale_and_zero, gate):
        assert lies_in(own_mappings, tensor) == huge_pages._are_given()
        assert not huge_pages._are_given() or asks_for_huge_pages(tensor)
    assert not lies_in(own_mappings, as_stored)


def test_an_embedding_beside_a_head_of_its_own_stays_where_it_is(own_mappings, tmp_path):
    """A token reads one row of it."""
    config = Gemma3TextConfig(
        vocab_size=192, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config)
    model.save_pretrained(tmp_path / "tied")
    quantized(model, TorchAoConfig(32)).save_pretrained(tmp_path / "int4")
    tied, int4 = (
        Gemma3ForCausalLM.from_pretrained(tmp_path / name, dtype="bfloat16").model for name in ("tied", "int4")
    )
    for tensor in (tied.embed_tokens.weight, int4.norm.weight):
        assert lies_in(own_mappings, tensor) == huge_pages._are_given()
    assert not lies_in(own_mappings, int4.embed_tokens.weight)
