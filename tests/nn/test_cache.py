"""The key-value cache: whatever the chunks, each query finds the keys it may see, with the right positions."""

import copy
import json
import random

import pytest
import torch
from reference import image_prompt

from gemma3_core.config.gemma3 import GLOBAL, LOCAL, Gemma3Config, Gemma3TextConfig
from gemma3_core.nn.cache import KVCache, RowCaches, cache_bytes
from gemma3_core.nn.masks import NO_BLOCK, PADDING, attention_mask, image_blocks

WINDOW = 6
KINDS = (LOCAL, GLOBAL, LOCAL)
KV_HEADS, HEAD_DIM = 2, 4


@pytest.fixture
def config() -> Gemma3TextConfig:
    return Gemma3TextConfig(
        num_hidden_layers=len(KINDS),
        layer_types=KINDS,
        sliding_window=WINDOW,
        num_attention_heads=KV_HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD_DIM,
    )


def keys_of(layer: int, first: int, count: int, rows: int = 1) -> torch.Tensor:
    """Keys [B, KV heads, T, D] that tell their layer, row and column."""
    columns = torch.arange(first, first + count, dtype=torch.float32)
    row_marks = torch.arange(rows, dtype=torch.float32)[:, None] * 100_000
    marks = columns[None] + row_marks + layer * 1_000_000
    return marks[:, None, :, None].expand(rows, KV_HEADS, count, HEAD_DIM).contiguous()


def read(cache: KVCache, positions: torch.Tensor, blocks: torch.Tensor | None = None) -> dict[int, torch.Tensor]:
    """One pass over new tokens; the keys [B, S] that each layer got back."""
    rows, count = positions.shape
    blocks = torch.full_like(positions, NO_BLOCK) if blocks is None else blocks
    cache.begin(positions, blocks, may_have_padding=True)
    got = {}
    for layer in range(len(KINDS)):
        new = keys_of(layer, cache.length, count, rows)
        keys, values = cache.update(layer, new, -new)
        assert torch.equal(keys, -values)
        assert keys.shape[1:2] + keys.shape[3:] == (KV_HEADS, HEAD_DIM)
        got[layer] = keys[:, 0, :, 0].clone()
    cache.advance()
    return got


def columns(first: int, count: int) -> torch.Tensor:
    return torch.arange(first, first + count)[None]


def check_chunks(config: Gemma3TextConfig, positions: torch.Tensor, blocks: torch.Tensor, chunks: list[int]) -> None:
    """Reading in chunks gives each query exactly the keys that reading at once gives it."""
    rows, total = positions.shape
    assert sum(chunks) == total
    cache, first = KVCache(config), 0
    for count in chunks:
        new = slice(first, first + count)
        got = read(cache, positions[:, new], blocks[:, new])
        for layer, kind in enumerate(KINDS):
            window = config.window(kind)
            key_positions, key_blocks = cache.seen(kind)
            marks = keys_of(layer, 0, total, rows)[:, 0, :, 0]
            for row in range(rows):
                held = [int(mark) for mark in (got[layer][row] - marks[row, 0])]
                assert key_positions[row].tolist() == positions[row, held].tolist(), "positions belong to other keys"
                assert key_blocks[row].tolist() == blocks[row, held].tolist(), "blocks belong to other keys"
                assert len(set(held)) == len(held)
                mask = attention_mask(positions[:, new], key_positions, blocks[:, new], key_blocks, window)[row]
                at_once = attention_mask(positions, positions, blocks, blocks, window)[row, new]
                for query in range(count):
                    may_see = {held[i] for i in mask[query].nonzero()[:, 0].tolist()}
                    # Keys of chunks still to come can't be there: only blocks that are cut apart would miss them.
                    expected = set(at_once[query].nonzero()[:, 0].tolist())
                    assert may_see == expected, (layer, first + query)
        first += count
    assert cache.length == cache.get_seq_length() == total


@pytest.mark.parametrize(
    "chunks",
    [
        [1] * (4 * WINDOW),
        [WINDOW] * 4,
        [WINDOW - 1, 1, 1, WINDOW - 1, WINDOW + 1],
        [WINDOW + 1, 1, 1, 1],
        [5 * WINDOW + 2, *[1] * (2 * WINDOW)],
        [1, 3 * WINDOW, 2, 2 * WINDOW - 1, 1, 1],
        [2, 3, 5, 7, 11, 13, 1, 1],
    ],
    ids=str,
)
def test_chunks_of_any_size_find_the_keys_of_one_pass(config, chunks):
    total = sum(chunks)
    check_chunks(config, columns(0, total), torch.full((1, total), NO_BLOCK), chunks)


@pytest.mark.parametrize("seed", range(12))
def test_random_chunks_of_padded_batches_find_the_keys_of_one_pass(config, seed):
    chance = random.Random(seed)
    chunks = [chance.choice([1, 1, 1, 2, 3, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW]) for _ in range(8)]
    total = sum(chunks)
    pads = [0, chance.randrange(total), chance.randrange(chunks[0] + 1)]
    rows = [columns(0, total).masked_fill(columns(0, total) < pad, PADDING) for pad in pads]
    check_chunks(config, torch.cat(rows), torch.full((3, total), NO_BLOCK), chunks)


def test_images_in_later_chunks_find_their_own_block_and_no_other(config):
    parts = [image_prompt(layout)[1] for layout in ("t3 i t2", "i", "t9 i i t1", "t30")]
    chunks = [part.shape[1] for part in parts]
    starts = [sum(chunks[:i]) for i in range(len(chunks))]
    blocks = torch.cat([image_blocks(part, start) for part, start in zip(parts, starts, strict=True)], dim=1)
    check_chunks(config, columns(0, sum(chunks)), blocks, chunks)


def test_one_new_token_may_attend_to_every_key_that_is_returned(config):
    """The decoder leaves the mask out there: nothing outside the window may come back."""
    cache = KVCache(config)
    read(cache, columns(0, 2 * WINDOW + 1))
    for position in range(2 * WINDOW + 1, 6 * WINDOW):
        read(cache, columns(position, 1))
        local, everything = (sorted(cache.seen(kind)[0][0].tolist()) for kind in (LOCAL, GLOBAL))
        assert local == list(range(position - WINDOW + 1, position + 1))
        assert everything == list(range(position + 1))
    assert not cache.has_padding


def test_padding_is_noticed_once_and_stays_noticed(config):
    cache = KVCache(config)
    read(cache, columns(0, 3))
    assert not cache.has_padding
    read(cache, torch.tensor([[PADDING, 4]]))
    assert cache.has_padding
    read(cache, columns(5, 1))
    assert cache.has_padding


def test_the_ring_never_takes_more_than_the_window(config):
    cache = KVCache(config)
    for first in range(0, 40 * WINDOW, 2 * WINDOW):
        read(cache, columns(first, 2 * WINDOW))
    ring, full = cache._keys[0]._buffer, cache._keys[1]._buffer
    assert ring is not None
    assert full is not None
    assert ring.shape[2] == WINDOW
    assert full.shape[2] >= 40 * WINDOW


def test_a_short_conversation_takes_room_for_its_own_tokens_only(config):
    """On every layer, although the window is far longer."""
    config = config.replace(sliding_window=1024)
    cache = KVCache(config, reserve=50)
    for first in range(50):
        read(cache, columns(first, 1))
    a_layer = 2 * KV_HEADS * HEAD_DIM * 50 * 4  # keys and values in float32
    notes = 2 * 2 * 50 * 8  # position and block of each key, once for each kind of layer
    assert cache.num_bytes == len(KINDS) * a_layer + notes
    unannounced = KVCache(config)
    read(unannounced, columns(0, 50))
    assert unannounced.num_bytes == cache.num_bytes // 50 * (50 + 256), "the least growth ahead"


@pytest.mark.parametrize("read_before", [40, 599, 600, 700])
def test_room_that_was_reserved_and_not_used_is_given_back_and_keys_stay(config, read_before):
    """Before and behind the edge of the ring; what is read afterwards finds the keys of a cache that kept its room."""
    config = config.replace(sliding_window=600)
    caches = [KVCache(config, reserve=5000), KVCache(config, reserve=5000)]
    for cache in caches:
        read(cache, columns(0, read_before))
    caches[0].trim()
    assert caches[0].reserved == read_before
    assert room_of(caches[0]) == read_before
    assert caches[0].num_bytes < caches[1].num_bytes / 2
    for first, count in ((read_before, 1), (read_before + 1, 30), (read_before + 31, 300)):
        got, kept = (read(cache, columns(first, count)) for cache in caches)
        for layer in range(len(KINDS)):
            assert got[layer][0].tolist() == kept[layer][0].tolist()


def test_little_unused_room_is_not_worth_a_copy(config):
    cache = KVCache(config, reserve=240)
    read(cache, columns(0, 10))
    before = cache.stored(1)[0].data_ptr()
    cache.trim()
    assert cache.stored(1)[0].data_ptr() == before


@pytest.mark.parametrize("reserve", [0, 100, 1000])
@pytest.mark.parametrize("chunks", [[1] * 700, [290, 1, 1, 320, 1], [150] * 5, [1, 599, 1, 1], [400, 250, 1]], ids=len)
def test_a_ring_grows_up_to_the_window_and_over_its_edge(config, reserve, chunks):
    """A window of 600 columns, passed one by one and in chunks; a ring in growth gives back what a full one does."""
    config = config.replace(sliding_window=600)
    cache, first = KVCache(config, reserve), 0
    for count in chunks:
        got = read(cache, columns(first, count))
        first += count
        oldest = max(0, first - count - 600 + (count == 1))
        assert sorted(got[0][0].tolist()) == [float(column) for column in range(oldest, first)]
        assert cache.seen(LOCAL)[0][0].tolist() == got[0][0].tolist()
        ring = cache._keys[0]._buffer
        assert ring is not None
        assert ring.shape[2] <= 600
    assert ring.shape[2] == 600


def test_what_is_truncated_in_a_growing_ring_is_written_anew(config):
    config = config.replace(sliding_window=600)
    cache = KVCache(config, reserve=40)
    read(cache, columns(0, 300))
    cache.truncate(30)
    got = read(cache, columns(30, 700))
    assert got[0][0].tolist() == [float(column) for column in range(730)]
    assert not cache.can_truncate(30)


def test_reserved_room_is_never_moved(config):
    total = 20 * WINDOW
    cache = KVCache(config, reserve=total)
    places = set()
    for first in range(total):
        cache.begin(columns(first, 1), torch.full((1, 1), NO_BLOCK), may_have_padding=False)
        for layer in range(len(KINDS)):
            keys, _ = cache.update(layer, keys_of(layer, first, 1), keys_of(layer, first, 1))
            places.add((layer, keys.data_ptr()))
        cache.advance()
    assert len(places) == len(KINDS)


@pytest.mark.parametrize("reserve", [0, 1, 10, 300])
def test_growth_beyond_the_reserve_keeps_every_key(config, reserve):
    cache, first = KVCache(config, reserve), 0
    for count in (7, 1, 290, 1, 1, 700, 1):
        got = read(cache, columns(first, count))
        first += count
        assert got[1][0].tolist() == [float(1_000_000 + column) for column in range(first)]


def test_growth_takes_few_steps(config):
    cache = KVCache(config)
    places = set()
    for first in range(3000):
        cache.begin(columns(first, 1), torch.full((1, 1), NO_BLOCK), may_have_padding=False)
        keys, _ = cache.update(1, keys_of(1, first, 1), keys_of(1, first, 1))
        places.add(keys.data_ptr())
        cache.advance()
    assert len(places) <= 9, "each growth copies everything: they must be rare"


def room_of(cache: KVCache) -> int:
    full = cache._keys[1]._buffer
    assert full is not None
    return full.shape[2]


@pytest.mark.parametrize("reserve", [0, 500, 5000])
def test_growth_beyond_the_reserve_wastes_little(config, reserve):
    cache = KVCache(config, reserve)
    for first in range(0, 12_000, 50):
        read(cache, columns(first, 50))
        end = first + 50
        assert end <= room_of(cache) <= max(reserve, 256 + end, 1.25 * end)


def test_no_room_is_taken_beyond_the_longest_context(config):
    config = config.replace(max_position_embeddings=1000)
    cache = KVCache(config, reserve=10)
    read(cache, columns(0, 900))
    assert room_of(cache) == 1000
    read(cache, columns(900, 150))
    assert room_of(cache) >= 1050, "the model says what it can't read, not the cache"


def test_a_reserve_told_later_is_taken_at_the_next_growth(config):
    cache = KVCache(config, reserve=40)
    read(cache, columns(0, 30))
    cache.reserve(1234)
    cache.reserve(20)
    assert room_of(cache) == 40
    got = read(cache, columns(30, 30))
    assert room_of(cache) == 1234
    assert got[1][0].tolist() == [float(1_000_000 + column) for column in range(60)]


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("tokens", [WINDOW - 2, WINDOW, 50 * WINDOW])
@pytest.mark.parametrize("chunk", [1, 7, 3 * WINDOW])
def test_bytes_foretold_are_the_bytes_of_a_cache_that_was_filled(config, rows, tokens, chunk):
    cache = KVCache(config, reserve=tokens)
    assert cache.num_bytes == 0
    for first in range(0, tokens, chunk):
        read(cache, columns(first, min(chunk, tokens - first)).repeat(rows, 1))
    tensors = [c._buffer for c in (*cache._keys, *cache._values, *cache._positions.values(), *cache._blocks.values())]
    assert cache.num_bytes == sum(t.numel() * t.element_size() for t in tensors)
    assert cache_bytes(config, tokens, torch.float32, rows) == cache.num_bytes


def test_the_longest_context_of_4b_takes_less_than_3_gb(shared_data):
    """131,072 tokens in bfloat16: 5 global layers at full length, 29 local ones with a ring of 1,024."""
    content = json.loads((shared_data / "configs" / "gemma-3-4b-it.config.json").read_text())
    text = Gemma3Config.from_dict(content).text_config
    tokens = 131_072
    total = cache_bytes(text, tokens, torch.bfloat16)
    assert total < 3e9
    a_token = 2 * text.num_key_value_heads * text.head_dim * 2  # keys and values of one layer, two bytes a number
    windows = [text.window(text.layer_type(i)) or tokens for i in range(text.num_hidden_layers)]
    assert sorted(set(windows)) == [1024, tokens]
    assert windows.count(tokens) == 5
    notes = 2 * 8 * (tokens + 1024)  # position and block of each kept key, once for each kind of layer
    assert total == a_token * sum(windows) + notes == 2_808_102_912


def test_nothing_moves_on_before_advance(config):
    cache = KVCache(config)
    cache.begin(columns(0, 3), torch.full((1, 3), NO_BLOCK), may_have_padding=False)
    cache.update(0, keys_of(0, 0, 3), keys_of(0, 0, 3))
    assert cache.length == 0
    cache.advance()
    cache.advance()
    assert cache.length == 3


def test_keys_are_kept_in_the_type_they_come_in(config):
    cache = KVCache(config)
    cache.begin(columns(0, 2), torch.full((1, 2), NO_BLOCK), may_have_padding=False)
    new = keys_of(0, 0, 2).bfloat16()
    keys, values = cache.update(0, new, new)
    assert keys.dtype == values.dtype == torch.bfloat16


def test_a_cache_filled_for_inference_is_written_to_afterwards_and_copied(config):
    """As when a conversation goes on with forward, or many begin with one prompt."""
    cache = KVCache(config)
    assert cache.batch_size is None
    with torch.inference_mode():
        read(cache, columns(0, WINDOW + 3).repeat(2, 1))
    assert cache.batch_size == 2
    again = copy.deepcopy(cache)
    for one in (cache, again):
        got = read(one, columns(WINDOW + 3, 2).repeat(2, 1))
        assert torch.equal(got[1], keys_of(1, 0, WINDOW + 5, rows=2)[:, 0, :, 0])
    assert cache.length == again.length == WINDOW + 5


def test_two_caches_share_nothing(config):
    one, other = KVCache(config), KVCache(config)
    read(one, columns(0, 5))
    assert other.length == 0
    got = read(other, columns(0, 2))
    assert got[1].shape[1] == 2


def test_rows_of_their_own_lengths_get_what_each_would_get_alone(config):
    """Some shorter than the window, some longer, some just at it, and rows that come and go."""
    lengths = [1, 3, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW]
    rows, alone = ([KVCache(config) for _ in lengths] for _ in range(2))
    for caches in (rows, alone):
        for cache, length in zip(caches, lengths, strict=True):
            read(cache, columns(0, length))
    for step in range(2 * WINDOW):
        chosen = [number for number in range(len(lengths)) if (number + step) % 3 or step < WINDOW]
        together = RowCaches([rows[number] for number in chosen])
        positions = together.next_columns(1, torch.device("cpu"))
        assert positions[:, 0].tolist() == [alone[number].length for number in chosen]
        together.begin(positions, torch.full_like(positions, NO_BLOCK), may_have_padding=False)
        expected = [read(alone[number], columns(alone[number].length, 1)) for number in chosen]
        for layer in range(len(KINDS)):
            new = torch.cat([keys_of(layer, rows[number].length, 1) for number in chosen])
            for got, own in zip(together.update(layer, new, -new)[0], expected, strict=True):
                assert torch.equal(got[:, 0, :, 0], own[layer])
        together.advance()
    assert [cache.length for cache in rows] == [cache.length for cache in alone]
