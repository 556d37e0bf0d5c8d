"""Slots hold what a KVCache holds, and give it back."""

import pytest
import torch
from reference import TEXT, WINDOW, image_prompt, randomise

from gemma3_core import Gemma3ForCausalLM, Gemma3TextConfig
from gemma3_core.generation.fused_decoder import FusedDecoder
from gemma3_core.generation.loop import decode_step, prefill
from gemma3_core.nn.cache import KVCache
from gemma3_core.nn.slots import SlotCache, slot_bytes

LENGTH = 4 * WINDOW
CONFIG = Gemma3TextConfig(**TEXT)


@pytest.fixture(scope="module")
def model() -> Gemma3ForCausalLM:
    made = Gemma3ForCausalLM(CONFIG)
    randomise(made)
    return made.eval()


def read(model: Gemma3ForCausalLM, tokens: int, reserve: int = 0) -> KVCache:
    cache = KVCache(CONFIG, reserve)
    prefill(model, cache, input_ids=image_prompt(f"t{tokens}")[0])
    return cache


def slots(rows: int = 4) -> SlotCache:
    return SlotCache(CONFIG, rows, LENGTH, torch.float32, "cpu")


def assert_alike(one: KVCache, other: KVCache) -> None:
    assert one.length == other.length
    for layer in range(CONFIG.num_hidden_layers):
        for mine, theirs in zip(one.stored(layer), other.stored(layer), strict=True):
            assert mine.shape == theirs.shape
            assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("new", [0, 1, 2, WINDOW - 1, WINDOW, 2 * WINDOW])
@pytest.mark.parametrize("read_before", [1, WINDOW - 1, WINDOW, WINDOW + 3])
@pytest.mark.parametrize("reserve", [0, LENGTH])
def test_a_cache_that_was_in_a_slot_goes_on_as_if_it_had_not_been(model, new, read_before, reserve):
    """Ragged rows beside it; rings before, at and past their length."""
    store, step = slots(), FusedDecoder(model)
    beside = store.admit(read(model, 2 * WINDOW + 1))
    plain, cache = read(model, read_before), read(model, read_before, reserve)
    slot = store.admit(cache)
    assert (beside.row, slot.row) == (0, 1)
    tokens = torch.randint(4, CONFIG.vocab_size, (2, new), generator=torch.Generator().manual_seed(new))
    for token in tokens.unbind(dim=1):
        step(token, torch.tensor([beside.cache.length, cache.length]), store)
        beside.cache.length, cache.length = beside.cache.length + 1, cache.length + 1
        decode_step(model, plain, token[1:], torch.tensor([plain.length]))
    store.release(slot)
    assert_alike(cache, plain)
    # A question that follows: its mask is made of positions and blocks, which must be right too.
    following = image_prompt("t5 i t2", seed=3)[0].clamp(max=CONFIG.vocab_size - 1)
    expected = prefill(model, plain, input_ids=following)
    got = prefill(model, cache, input_ids=following)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert_alike(cache, plain)


def test_a_truncated_cache_can_be_admitted(model):
    store, cache, plain = slots(), read(model, WINDOW - 4), read(model, WINDOW - 4)
    for one in (cache, plain):
        one.truncate(5)
    slot = store.admit(cache)
    token = torch.tensor([7])
    got = FusedDecoder(model)(token, torch.tensor([5]), store)
    cache.length += 1
    expected = decode_step(model, plain, token, torch.tensor([5]))
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    store.release(slot)
    assert_alike(cache, plain)


def test_the_lowest_free_row_is_taken_and_none_when_all_are_in_use(model):
    store = slots(rows=2)
    first, second = store.admit(read(model, 3)), store.admit(read(model, 4))
    assert (first.row, second.row, store.admit(read(model, 5))) == (0, 1, None)
    store.release(first)
    assert store.admit(read(model, 5)).row == 0


def test_the_bytes_are_counted_before_they_are_taken():
    store = slots()
    taken = sum(tensor.nbytes for tensor in (*store.keys, *store.values))
    assert slot_bytes(CONFIG, 4, LENGTH, torch.float32) == taken
    columns = {keys.shape[2] for keys in store.keys}
    assert columns == {WINDOW, LENGTH}
