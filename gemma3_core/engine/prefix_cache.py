"""KV caches kept after an answer, so that the conversation's next question prefills only what is new.

A cache serves only the visitor whose answer filled it, and only from one of two places: its end, where the conversation
continues, or the start of its last question, if that is asked again or edited. Asking again therefore runs the same
passes as the first time, so the same seed gives the same answer in every precision
(as long as its tokens are not decoded beside others', where that is rounded otherwise).

Most visitors ask once. A cache whose visitor has not come back gets little room and is evicted first.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from gemma3_core.engine.memory import free_bytes, free_bytes_of_machine, is_out_of_memory
from gemma3_core.nn.cache import KVCache

MOST_BYTES = 512 * 1024**2
"""Minimum budget for all kept caches; the least recently used one is evicted first."""
MOST_BYTES_OF_NEWCOMERS = 32 * 1024**2
"""Minimum budget for visitors who have asked only once; the latest of their caches is always kept."""
SHARE_OF_FREE = 0.25
"""The share of the memory free after loading the model that all kept caches may use."""
NEWCOMERS_SHARE = 0.125
"""The part of that for visitors who have asked only once, on a GPU. A CPU's memory is needed for other things too."""
KEPT_S = 600.0
"""A cache that has been idle for this many seconds is evicted."""

TokenKey = int | bytes
"""Identifies a token of the prompt: its id, or for a soft token the digest of its tile."""


@dataclass(frozen=True)
class Kept:
    """A cache and one key for each token it holds. The first `began` tokens precede its last question, the first
    `prompted` its answer."""

    cache: KVCache
    keys: tuple[TokenKey, ...]
    began: int
    prompted: int


def prompt_keys(
    input_ids: torch.Tensor, soft: torch.Tensor, digests: Sequence[bytes], tokens_per_tile: int
) -> tuple[TokenKey, ...]:
    """The keys of a prompt [1, T]; `soft` [1, T] is 1 at soft tokens, `digests` identify their tiles."""
    keys: list[TokenKey] = input_ids[0].tolist()
    for number, place in enumerate(soft[0].nonzero()[:, 0].tolist()):
        keys[place] = digests[number // tokens_per_tile]
    return tuple(keys)


def cache_budget(device: torch.device) -> tuple[int, int]:
    """Bytes for all kept caches on a device, and bytes for those of newcomers; call it after loading the model."""
    on_gpu = device.type == "cuda"
    free = (free_bytes(device) if on_gpu else free_bytes_of_machine()) or 0
    most = max(MOST_BYTES, int(SHARE_OF_FREE * free))
    return most, max(MOST_BYTES_OF_NEWCOMERS, int(NEWCOMERS_SHARE * most) if on_gpu else 0)


@dataclass(frozen=True)
class _Entry:
    """A kept cache; `came_back` if it was used before, `since` is when it was kept, in seconds of `now`."""

    kept: Kept
    came_back: bool
    since: float
    num_bytes: int


@dataclass
class Lent:
    """A cache in use, or None if no cache fits the prompt; whatever is assigned to `back` is kept."""

    cache: KVCache | None = None
    back: Kept | None = None


_Key = tuple["PrefixCache", str, bool]
"""Whose it is, the visitor, and whether it is of the int4 model."""


@dataclass
class _Store:
    """All caches within one budget."""

    most_bytes: int = 0
    most_bytes_of_newcomers: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    entries: OrderedDict[_Key, _Entry] = field(default_factory=OrderedDict)


class PrefixCache:
    """At most one cache for each visitor and precision; safe to use from many threads."""

    def __init__(
        self,
        most_bytes: int = MOST_BYTES,
        most_bytes_of_newcomers: int = MOST_BYTES_OF_NEWCOMERS,
        now: Callable[[], float] = time.monotonic,
        beside: "PrefixCache | None" = None,
        trim: Callable[[KVCache], None] = KVCache.trim,
    ):
        """Neither serves what the other has kept, but `beside` shares its budget from now on: that of the latest.
        `trim` gives back the room of a cache that is kept."""
        self._store: _Store = _Store() if beside is None else beside._store
        self._store.most_bytes, self._store.most_bytes_of_newcomers = most_bytes, most_bytes_of_newcomers
        self._lock, self._kept, self._now, self._trim = self._store.lock, self._store.entries, now, trim
        self._using: set[str] = set()  # visitors whose answer is running
        self._gone: set[str] = set()  # those of them who have left

    def __len__(self) -> int:
        with self._lock:
            return len(self._own())

    @property
    def num_bytes(self) -> int:
        """Of the caches that are not in use."""
        with self._lock:
            return sum(self._kept[key].num_bytes for key in self._own())

    def _own(self) -> list[_Key]:
        """The caller holds the lock."""
        return [key for key in self._kept if key[0] is self]

    @contextmanager
    def acquire(self, visitor: str, int4: bool, keys: Sequence[TokenKey]) -> Iterator[Lent]:
        """Takes the visitor's cache for one answer, truncated to the tokens that this prompt shares with it.

        Evicts a cache that does not fit. Keeps `Lent.back` at the end, unless the visitor has left meanwhile, without
        the room that was reserved for a longer answer.
        """
        with self._lock:
            entry = self._kept.pop((self, visitor, int4), None)
            self._using.add(visitor)
        lent = Lent(None if entry is None else _fitting(entry.kept, keys))
        try:
            yield lent
        finally:
            try:
                if lent.back is not None:
                    self._trim(lent.back.cache)
            except Exception as error:
                if not is_out_of_memory(error):
                    lent.back = None
                    raise  # otherwise it is kept as it is, without the copy
            finally:
                with self._lock:
                    self._using.discard(visitor)
                    if lent.back is not None and visitor not in self._gone:
                        num_bytes = lent.back.cache.num_bytes
                        self._keep((self, visitor, int4), _Entry(lent.back, entry is not None, self._now(), num_bytes))
                    self._gone.discard(visitor)

    def _keep(self, key: _Key, entry: _Entry) -> None:
        """Adds the entry as the newest and evicts others until all fit, newcomers' first; the caller holds the lock."""
        store = self._store
        self._kept[key] = entry
        newcomers = [other for other, kept in self._kept.items() if not kept.came_back]
        too_many = sum(kept.num_bytes for kept in self._kept.values()) - store.most_bytes
        of_newcomers = sum(self._kept[other].num_bytes for other in newcomers[:-1]) - store.most_bytes_of_newcomers
        for other in newcomers:
            if other != key and max(of_newcomers, too_many) > 0:
                freed = self._kept.pop(other).num_bytes
                of_newcomers, too_many = of_newcomers - freed, too_many - freed
        while too_many > 0:
            too_many -= self._kept.popitem(last=False)[1].num_bytes

    def evict(self, kept_s: float = KEPT_S) -> None:
        """Evicts caches that have been idle for `kept_s` seconds, whoever kept them."""
        with self._lock:
            old = self._now() - kept_s
            for key in [key for key, entry in self._kept.items() if entry.since <= old]:
                del self._kept[key]

    def forget(self, visitor: str) -> None:
        """Evicts everything kept for a visitor; a cache in use goes when its answer ends."""
        with self._lock:
            for int4 in (False, True):
                self._kept.pop((self, visitor, int4), None)
            if visitor in self._using:
                self._gone.add(visitor)

    def clear(self, all_owners: bool = False) -> None:
        """Evicts every cache that is not in use, with `all_owners` also those of others within the same budget."""
        with self._lock:
            for key in list(self._kept) if all_owners else self._own():
                del self._kept[key]


def _fitting(kept: Kept, keys: Sequence[TokenKey]) -> KVCache | None:
    """The cache, truncated to a place up to which it matches the prompt; None if there is no such place.

    The place lies in the answer, of which the model may have written more than its visitor saw, or before the question:
    a question that is asked again is read in the same passes, so that a seed gives the same answer.
    """
    # At least one token is read again: the answer's first token is sampled from its logits.
    most = min(len(keys) - 1, len(kept.keys))
    shared = next((place for place in range(most) if keys[place] != kept.keys[place]), most)
    in_answer = shared > kept.prompted or shared == len(kept.keys)
    for place in (shared, kept.began) if in_answer else (kept.began,):
        if 0 < place <= shared and kept.cache.can_truncate(place):
            kept.cache.truncate(place)
            return kept.cache
    return None
