"""What the next question reuses: the same answers as without, in fewer passes, and never another visitor's."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from places import EXAMPLES
from running_app import require_demo_model

from gemma3_core.config.gemma3 import Gemma3TextConfig
from gemma3_core.engine import (
    DoneEvent,
    Engine,
    Request,
    SamplingSettings,
    StageEvent,
    TokenEvent,
    Turn,
    memory,
    prefix_cache,
)
from gemma3_core.engine.prefix_cache import (
    MOST_BYTES,
    MOST_BYTES_OF_NEWCOMERS,
    Kept,
    PrefixCache,
    cache_budget,
    prompt_keys,
)
from gemma3_core.nn.cache import KVCache

PICTURES = [Image.open(EXAMPLES / name) for name in ("night.png", "wide.png")]


@pytest.fixture(scope="module")
def loaded() -> Engine:
    require_demo_model()
    return Engine.load(device="cpu")


@pytest.fixture
def engine(loaded):
    """The demo model with nothing kept."""
    loaded._writer.kept.clear()
    return loaded


def first(*pictures, question="How many shapes are there?", **options):
    options = {"visitor": "one", "confidence": True, "max_new_tokens": 24, **options}
    return Request((Turn("user", question, pictures),), **options)


def follow(request, done, question, *pictures):
    """The request of a visitor who asks on."""
    asked = Turn("user", question, pictures)
    return replace(request, turns=(*request.turns, Turn("assistant", done.text), asked))


def ask(engine, request):
    """The answer, and the probabilities of its tokens."""
    events = list(engine.stream(request))
    shares = [e.choice.probability for e in events if isinstance(e, TokenEvent) and e.choice is not None]
    assert isinstance(events[-1], DoneEvent)
    return events[-1], torch.tensor(shares)


def both(engine, request):
    """Answers with reuse and without; equal in all but what was read again."""
    again, shares = ask(engine, request)
    fresh, expected = ask(engine, replace(request, reuse=False))
    assert fresh.stats.reused_tokens == 0
    assert (again.text, again.token_ids) == (fresh.text, fresh.token_ids)
    assert (shares - expected).abs().max() <= 1e-5
    assert again.stats.prompt_tokens == fresh.stats.prompt_tokens
    return again


def encoded(engine, monkeypatch):
    """Counts the tiles that are encoded."""
    tiles, features = [], type(engine._model).get_image_features
    monkeypatch.setattr(
        type(engine._model),
        "get_image_features",
        lambda self, pixels: tiles.append(len(pixels)) or features(self, pixels),
    )
    return tiles


def test_the_next_question_reads_only_what_is_new(engine, monkeypatch):
    tiles = encoded(engine, monkeypatch)
    request = first(PICTURES[0])
    done, _ = ask(engine, request)
    assert (sum(tiles), done.stats.reused_tokens) == (1, 0)
    further = follow(request, done, "And how many hearts?")
    again, _ = ask(engine, further)
    assert sum(tiles) == 1  # the picture was not encoded again
    # All but the answer's last token, which is read with what follows it: the end of the turn was never read.
    assert again.stats.reused_tokens == done.stats.prompt_tokens + len(done.token_ids)
    texts = [e.text for e in engine.stream(follow(further, again, "And stars?")) if isinstance(e, StageEvent)]
    assert any(text.startswith("Reading") and int(text.split()[1]) < 30 for text in texts)


def test_answers_are_the_same_with_and_without(engine):
    request = first(PICTURES[0])
    done = both(engine, request)
    for question, pictures in (("Where is the moon?", ()), ("And on this one?", PICTURES[1:]), ("What color?", ())):
        request = follow(request, done, question, *pictures)
        before, done = done, both(engine, request)
        assert done.stats.reused_tokens > before.stats.prompt_tokens


def test_room_for_a_longer_answer_is_not_kept(engine):
    """A cache is as large as what was read, however long the answer might have become."""
    request, kept = first(PICTURES[0]), []
    for longest in (24, 3000):
        done, _ = ask(engine, replace(request, max_new_tokens=longest, visitor=str(longest)))
        assert done.stats.stop_reason == "stop"
        kept.append(engine._writer.kept.num_bytes)
    assert kept[1] <= 2.0 * kept[0]
    further = replace(follow(request, done, "And how many hearts?"), visitor="3000")
    assert both(engine, further).stats.reused_tokens > done.stats.prompt_tokens


def test_beyond_the_window_too(engine):
    """Local layers keep a ring: what it has lost is not needed to go on."""
    request = first(*[PICTURES[0]] * 5, *[PICTURES[1]] * 3, question="What do the pictures show?")
    done = both(engine, request)
    assert done.stats.prompt_tokens > 512
    request = follow(request, done, "How many hearts are on the first picture?")
    again = both(engine, request)
    assert again.stats.reused_tokens > 512
    assert both(engine, follow(request, again, "And circles?")).stats.reused_tokens > again.stats.prompt_tokens
    # To ask the last question again would take a ring that has moved on: everything is read anew.
    assert both(engine, request).stats.reused_tokens == 0


def test_asking_again_goes_back_to_where_the_question_began(engine):
    """So it computes the same in the same passes, and a seed gives the same answer."""
    request = first(PICTURES[0], sampling=SamplingSettings(1.5, 0, 1.0, seed=11))
    done, shares = ask(engine, request)
    again, same = ask(engine, request)
    assert (again.stats.reused_tokens, again.token_ids) == (0, done.token_ids)
    assert torch.equal(shares, same)
    further = follow(request, done, "And how many hearts?")
    second, shares = ask(engine, further)
    for asked in (further, follow(request, done, "Where is the moon?"), further):
        retried, same = ask(engine, asked)
        assert retried.stats.reused_tokens == second.stats.reused_tokens > 0
    assert retried.token_ids == second.token_ids
    assert torch.equal(shares, same)


@pytest.mark.parametrize(
    "change",
    [
        {"visitor": "two"},
        {"int4": True},
        {"system_prompt": "Answer in one word."},
        {"pan_and_scan": True},
        {"picture": 1},
        {"text": "Six of them."},
    ],
    ids=lambda change: next(iter(change)),
)
def test_only_the_same_visitors_same_prompt_is_reused(engine, change):
    request = first(PICTURES[1])
    done, _ = ask(engine, request)
    picture = PICTURES[0] if "picture" in change else PICTURES[1]
    turns = (replace(request.turns[0], pictures=(picture,)), Turn("assistant", change.get("text", done.text)))
    other = replace(request, turns=(*turns, Turn("user", "And stars?")))
    other = replace(other, **{name: value for name, value in change.items() if name not in ("picture", "text")})
    assert both(engine, other).stats.reused_tokens == 0


def test_a_picture_of_the_same_size_is_another_picture(engine):
    one, other = (Image.new("RGB", (300, 300), color) for color in ("red", "blue"))
    request = first(one)
    done, _ = ask(engine, request)
    changed = replace(request, turns=(replace(request.turns[0], pictures=(other,)),))
    assert both(engine, follow(changed, done, "And now?")).stats.reused_tokens == 0


def test_a_stopped_answer_is_gone_on_from(engine):
    request = first(PICTURES[0], question="Describe the picture.")
    whole, _ = ask(engine, request)
    engine._writer.kept.clear()
    stream, pieces = engine.stream(request), []
    for event in stream:
        pieces += [event.text] if isinstance(event, TokenEvent) else []
        if len(pieces) == 4:
            stream.close()
    assert len(engine._writer.kept) == 1
    done = replace(whole, text="".join(pieces))
    assert both(engine, follow(request, done, "How many hearts?")).stats.reused_tokens >= whole.stats.prompt_tokens


def test_an_answer_of_which_less_was_seen_is_gone_on_from(engine):
    """The model may be a few tokens ahead when its visitor stops it."""
    request = first(PICTURES[0], question="Describe the picture.")
    whole, _ = ask(engine, request)
    seen = replace(whole, text=" ".join(whole.text.split()[:3]))
    found = both(engine, follow(request, seen, "How many hearts?")).stats.reused_tokens
    assert whole.stats.prompt_tokens < found < whole.stats.prompt_tokens + len(whole.token_ids)


def test_what_failed_is_not_kept(engine, monkeypatch):
    request = first(PICTURES[0])
    done, _ = ask(engine, request)
    further = follow(request, done, "And how many hearts?")
    with monkeypatch.context() as patch:
        patch.setattr(type(engine._model), "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.stream(further))
    assert len(engine._writer.kept) == 0
    assert both(engine, further).stats.reused_tokens == 0


def test_a_visitor_who_has_left_is_forgotten(engine):
    request = first(PICTURES[0])
    done, _ = ask(engine, request)
    engine.forget("another")
    assert len(engine._writer.kept) == 1
    engine.forget("one")
    assert len(engine._writer.kept) == 0
    for event in engine.stream(request):  # and one who leaves while being answered
        if isinstance(event, TokenEvent):
            engine.forget("one")
    assert len(engine._writer.kept) == 0
    assert both(engine, follow(request, done, "And stars?")).stats.reused_tokens == 0
    assert ask(engine, request)[0].text == done.text  # who is answered next is kept again
    assert len(engine._writer.kept) == 1


def filled(tokens):
    """A cache of a small model that has read so many tokens."""
    config = Gemma3TextConfig(hidden_size=32, num_hidden_layers=6, num_key_value_heads=1, head_dim=8, sliding_window=16)
    cache = KVCache(config, reserve=tokens)
    cache.begin(torch.arange(tokens)[None], torch.full((1, tokens), -1), may_have_padding=False)
    for layer in range(6):
        cache.update(layer, torch.zeros(1, 1, tokens, 8), torch.zeros(1, 1, tokens, 8))
    cache.advance()
    return cache


def put(kept, visitor, tokens, began=0):
    with kept.acquire(visitor, False, ()) as lent:
        lent.back = Kept(filled(tokens), tuple(range(tokens)), began, tokens)


def test_memory_is_bounded_and_the_oldest_goes_first():
    kept = PrefixCache(most_bytes=3 * filled(40).num_bytes)
    for visitor in ("a", "b", "c"):
        put(kept, visitor, 40)
    with kept.acquire("a", False, range(50)) as lent:
        assert lent.cache is not None
        lent.back = Kept(lent.cache, tuple(range(40)), 0, 40)
    put(kept, "d", 40)
    found = []
    for visitor in ("a", "b", "c", "d"):
        with kept.acquire(visitor, False, range(50)) as lent:
            found += [visitor] * (lent.cache is not None)
    assert found == ["a", "c", "d"]
    put(kept, "e", 400)  # larger than all that may be kept
    assert len(kept) == 0


def test_caches_of_several_engines_fit_into_one_budget_and_serve_their_own():
    one = filled(40).num_bytes
    first = PrefixCache(most_bytes=9 * one)
    put(first, "a", 40)
    put(first, "b", 40)
    second = PrefixCache(most_bytes=2 * one, beside=first)
    put(second, "b", 40)
    assert (len(first), len(second)) == (1, 1)
    assert who_is_kept(second, "a", "b") == ["b"]
    assert who_is_kept(first, "a", "b") == ["b"]
    second.forget("b")
    assert (len(first), second.num_bytes) == (1, 0)
    put(second, "c", 40)
    first.clear()
    assert len(second) == 1
    put(first, "a", 40)
    first.clear(all_owners=True)
    assert (len(first), len(second)) == (0, 0)


def who_is_kept(kept, *visitors):
    found = []
    for visitor in visitors:
        with kept.acquire(visitor, False, range(50)) as lent:
            found += [visitor] * (lent.cache is not None)
            lent.back = None if lent.cache is None else Kept(lent.cache, tuple(range(40)), 0, 40)
    return found


def test_those_who_have_not_come_back_take_little_room_and_go_first():
    one = filled(40).num_bytes
    kept = PrefixCache(most_bytes=5 * one, most_bytes_of_newcomers=2 * one)
    put(kept, "returned", 40)
    assert who_is_kept(kept, "returned") == ["returned"]
    for visitor in "abcdef":
        put(kept, visitor, 40)
    assert len(kept) == 4  # two newcomers, the latest, and who has come back
    assert set(kept._kept) == {(kept, visitor, False) for visitor in ("returned", *"def")}
    assert who_is_kept(kept, "returned", *"abcdef") == ["returned", "d", "e", "f"]
    put(kept, "g", 40)
    put(kept, "h", 40)  # all others have come back by now: the newcomer before goes, though it is not the oldest
    assert who_is_kept(kept, "returned", *"defgh") == ["returned", "d", "e", "f", "h"]
    put(kept, "i", 40)  # and now the oldest of them
    assert who_is_kept(kept, "returned", *"defgh", "i") == ["d", "e", "f", "h", "i"]


def test_the_latest_newcomer_is_kept_however_large():
    kept = PrefixCache(most_bytes=10 * filled(40).num_bytes, most_bytes_of_newcomers=1)
    put(kept, "a", 40)
    assert who_is_kept(kept, "a") == ["a"]


def test_what_nobody_asks_for_goes_with_time():
    now = [0.0]
    kept = PrefixCache(now=lambda: now[0])
    put(kept, "a", 40)
    now[0] = 500.0
    put(kept, "b", 40)
    kept.evict(600.0)
    assert len(kept) == 2
    now[0] = 600.0
    kept.evict(600.0)
    assert who_is_kept(kept, "a", "b") == ["b"]


@pytest.mark.parametrize(
    ("prompt", "length"),
    [
        (range(20), 12),  # goes on
        ([*range(12), 99, 98], 12),
        ([*range(9), 99, 98, 97, 96, 95], 8),  # parts within the last question or its answer
        (range(9), 8),
        (range(8), None),  # nothing of it would be read anew
        ([*range(7), 99, 98, 97], None),  # parts before
        ([], None),
    ],
)
def test_a_cache_goes_back_to_two_places_only(prompt, length):
    kept = PrefixCache()
    put(kept, "a", 12, began=8)
    with kept.acquire("a", False, tuple(prompt)) as lent:
        assert (None if lent.cache is None else lent.cache.length) == length
    assert len(kept) == 0  # not given back


def refused(said):
    def trim(_cache):
        raise RuntimeError(said)

    return trim


def test_a_cache_that_cannot_be_copied_for_lack_of_memory_is_kept_as_it_is():
    kept = PrefixCache(trim=refused("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    put(kept, "a", 12)
    assert kept.num_bytes == filled(12).num_bytes


def test_after_any_other_failure_of_the_copy_it_is_not_kept_and_the_visitor_can_be_forgotten():
    kept = PrefixCache(trim=refused("an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal"):
        put(kept, "a", 12)
    assert len(kept) == 0
    kept.forget("a")
    kept._trim = KVCache.trim
    put(kept, "a", 12)
    assert len(kept) == 1


def test_a_ring_that_has_lost_columns_does_not_truncate():
    cache = filled(17)
    assert cache.can_truncate(17)
    assert not cache.can_truncate(16)
    assert not cache.can_truncate(18)
    with pytest.raises(ValueError, match="17"):
        cache.truncate(9)
    assert filled(16).can_truncate(5)


def test_marks_tell_tiles_apart():
    ids, soft = torch.tensor([[5, 9, 9, 6, 9, 9]]), torch.tensor([[0, 1, 1, 0, 1, 1]])
    keys = prompt_keys(ids, soft, [b"one", b"other"], tokens_per_tile=2)
    assert keys == (5, b"one", b"one", 6, b"other", b"other")
    assert prompt_keys(ids, torch.zeros_like(ids), [], 2) == tuple(ids[0].tolist())


def test_kept_caches_may_take_a_share_of_what_is_free_and_never_less_than_before(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for free, most in ((None, MOST_BYTES), (10**9, MOST_BYTES), (10**10, 10**10 // 4)):
        monkeypatch.setattr(prefix_cache, "free_bytes", lambda _device, free=free: free)
        monkeypatch.setattr(prefix_cache, "free_bytes_of_machine", lambda free=free: free)
        assert cache_budget(cpu) == (most, MOST_BYTES_OF_NEWCOMERS)
        assert cache_budget(gpu) == (most, max(MOST_BYTES_OF_NEWCOMERS, most // 8))


@pytest.mark.parametrize(("limit", "used", "free"), [("max", 0, 2_048_000), ("1500000", 600_000, 900_000), ("5", 9, 0)])
def test_what_is_free_is_bounded_by_the_container(monkeypatch, tmp_path, limit, used, free):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    2000 kB\nHugePages_Total: 0\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used}\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.free_bytes_of_machine() == free
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "not Linux")
    assert memory.free_bytes_of_machine() is None
