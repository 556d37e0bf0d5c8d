"""Caches that are kept behind an answer, so that the next question of the conversation reads only what is new.

A cache is used again only by the visitor whose answer filled it, and only at one of two places: behind all that
it holds, where the conversation goes on, or where its last question began, where that is asked again or changed.
So asking again computes what the first time computed, in the same passes: the same seed gives the same answer in
every precision.

Most visitors ask once. What is kept of somebody who has not come back takes little room, and goes first.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gemma3_core.engine.memory import free_bytes, free_bytes_of_machine
from gemma3_core.nn.cache import KVCache

MOST_BYTES = 512 * 1024**2
"""Memory that all kept caches may take together, at least; the least recently used one is evicted first."""
MOST_BYTES_OF_NEWCOMERS = 64 * 1024**2
"""Memory for the caches of visitors who have asked once and not come back, at least; the latest is always kept."""
SHARE_OF_FREE = 0.25
"""All kept caches may take so much of the memory that is free once the model is loaded."""
NEWCOMERS_SHARE = 0.125
"""Of that, on a GPU, for visitors who have asked once. A CPU's memory is needed for other things too."""
KEPT_S = 600.0
"""A cache that nobody has asked for in so many seconds is evicted."""

TokenKey = int | bytes
"""A token of the prompt: its id, or of a soft token the digest of its tile."""


@dataclass(frozen=True)
class Kept:
    """A cache and what it holds: a mark for each token read. `began` of them were there before its last question."""

    cache: KVCache
    keys: tuple[TokenKey, ...]
    began: int


def prompt_keys(
    input_ids: torch.Tensor, soft: torch.Tensor, digests: Sequence[bytes], tokens_per_tile: int
) -> tuple[TokenKey, ...]:
    """Marks of a prompt [1, T]; `soft` [1, T] is 1 at soft tokens, `digests` are what their tiles are known by."""
    keys: list[TokenKey] = input_ids[0].tolist()
    for number, place in enumerate(soft[0].nonzero()[:, 0].tolist()):
        keys[place] = digests[number // tokens_per_tile]
    return tuple(keys)


def cache_budget(device: torch.device) -> tuple[int, int]:
    """Bytes that all kept caches may take on a device, and bytes for those of newcomers; call it after loading."""
    on_gpu = device.type == "cuda"
    share = int(SHARE_OF_FREE * ((free_bytes(device) if on_gpu else free_bytes_of_machine()) or 0))
    newcomers = int(NEWCOMERS_SHARE * share) if on_gpu else 0
    return max(MOST_BYTES, share), max(MOST_BYTES_OF_NEWCOMERS, newcomers)


@dataclass(frozen=True)
class _Entry:
    """A cache that waits for its visitor; `came_back` where it has been lent before, `since` in seconds of `now`."""

    kept: Kept
    came_back: bool
    since: float

    @property
    def num_bytes(self) -> int:
        return self.kept.cache.num_bytes


@dataclass
class Lent:
    """A cache in use, or None where there is none to go on from; what is put into `back` is kept."""

    cache: KVCache | None = None
    back: Kept | None = None


class PrefixCache:
    """At most one cache for each visitor and precision; safe to use from many threads."""

    def __init__(
        self,
        most_bytes: int = MOST_BYTES,
        most_bytes_of_newcomers: int = MOST_BYTES_OF_NEWCOMERS,
        now: Callable[[], float] = time.monotonic,
    ):
        self._most_bytes, self._most_bytes_of_newcomers, self._now = most_bytes, most_bytes_of_newcomers, now
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, bool], _Entry] = OrderedDict()
        self._using: set[str] = set()  # visitors who are being answered
        self._gone: set[str] = set()  # those of them who have left

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    @contextmanager
    def acquire(self, visitor: str, int4: bool, keys: Sequence[TokenKey]) -> Iterator[Lent]:
        """For one answer: the visitor's cache, gone back to as much of this prompt as it may be used for.

        What can't be used is let go. `Lent.back` is kept at the end, unless the visitor has left meanwhile.
        """
        with self._lock:
            entry = self._kept.pop((visitor, int4), None)
            self._using.add(visitor)
        lent = Lent(None if entry is None else _fitting(entry.kept, keys))
        try:
            yield lent
        finally:
            with self._lock:
                self._using.discard(visitor)
                if lent.back is not None and visitor not in self._gone:
                    self._keep((visitor, int4), _Entry(lent.back, entry is not None, self._now()))
                self._gone.discard(visitor)

    def _keep(self, key: tuple[str, bool], entry: _Entry) -> None:
        """Puts it last and lets others go until all fit, those of newcomers first; the lock is held."""
        self._kept[key] = entry
        newcomers = [other for other, kept in self._kept.items() if not kept.came_back]
        excess = sum(self._kept[other].num_bytes for other in newcomers[:-1]) - self._most_bytes_of_newcomers
        for other in newcomers:
            if other != key and max(excess, self._num_bytes() - self._most_bytes) > 0:
                excess -= self._kept.pop(other).num_bytes
        while self._num_bytes() > self._most_bytes:
            self._kept.popitem(last=False)

    def _num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self._kept.values())

    def evict(self, kept_s: float = KEPT_S) -> None:
        """Lets go of what nobody has asked for in so many seconds."""
        with self._lock:
            old = self._now() - kept_s
            for key in [key for key, entry in self._kept.items() if entry.since <= old]:
                del self._kept[key]

    def forget(self, visitor: str) -> None:
        """Lets go of all that is kept of a visitor; of what is in use, once its answer ends."""
        with self._lock:
            for int4 in (False, True):
                self._kept.pop((visitor, int4), None)
            if visitor in self._using:
                self._gone.add(visitor)

    def clear(self) -> None:
        """Lets go of everything that is not in use."""
        with self._lock:
            self._kept.clear()


def _fitting(kept: Kept, keys: Sequence[TokenKey]) -> KVCache | None:
    """The cache, gone back to a place up to which the prompt is what it holds; None where there is no such place."""
    for place in (len(kept.keys), kept.began):
        # One token at least is read anew: its logits are what the answer begins with.
        begins_alike = 0 < place < len(keys) and tuple(keys[:place]) == kept.keys[:place]
        if begins_alike and kept.cache.can_truncate(place):
            kept.cache.truncate(place)
            return kept.cache
    return None
