"""Caches that are kept behind an answer, so that the next question of the conversation reads only what is new.

A cache is used again only by the visitor whose answer filled it, and only at one of two places: behind all that
it holds, where the conversation goes on, or where its last question began, where that is asked again or changed.
So asking again computes what the first time computed, in the same passes: the same seed gives the same answer in
every precision.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gemma3_core.cache import KVCache

MOST_BYTES = 512 * 1024**2
"""Memory that all kept caches may take together; the one that was used longest ago goes first."""

Mark = int | bytes
"""A token of the prompt: its id, or of a soft token the digest of its tile."""


@dataclass(frozen=True)
class Kept:
    """A cache and what it holds: a mark for each token read. `began` of them were there before its last question."""

    cache: KVCache
    marks: tuple[Mark, ...]
    began: int


def prompt_marks(
    input_ids: torch.Tensor, soft: torch.Tensor, digests: Sequence[bytes], tokens_per_tile: int
) -> tuple[Mark, ...]:
    """Marks of a prompt [1, T]; `soft` [1, T] is 1 at soft tokens, `digests` are what their tiles are known by."""
    marks: list[Mark] = input_ids[0].tolist()
    for number, place in enumerate(soft[0].nonzero()[:, 0].tolist()):
        marks[place] = digests[number // tokens_per_tile]
    return tuple(marks)


@dataclass
class Lent:
    """A cache in use, or None where there is none to go on from; what is put into `back` is kept."""

    cache: KVCache | None = None
    back: Kept | None = None


class KeptCaches:
    """At most one cache for each visitor and precision; safe to use from many threads."""

    def __init__(self, most_bytes: int = MOST_BYTES):
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, bool], Kept] = OrderedDict()
        self._using: set[str] = set()  # visitors who are being answered
        self._gone: set[str] = set()  # those of them who have left

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    @contextmanager
    def lend(self, visitor: str, int4: bool, marks: Sequence[Mark]) -> Iterator[Lent]:
        """For one answer: the visitor's cache, gone back to as much of this prompt as it may be used for.

        What can't be used is let go. `Lent.back` is kept at the end, unless the visitor has left meanwhile.
        """
        with self._lock:
            kept = self._kept.pop((visitor, int4), None)
            self._using.add(visitor)
        lent = Lent(None if kept is None else _fitting(kept, marks))
        try:
            yield lent
        finally:
            with self._lock:
                self._using.discard(visitor)
                if lent.back is not None and visitor not in self._gone:
                    self._keep((visitor, int4), lent.back)
                self._gone.discard(visitor)

    def _keep(self, key: tuple[str, bool], kept: Kept) -> None:
        self._kept[key] = kept
        while self._kept and sum(one.cache.num_bytes for one in self._kept.values()) > self._most_bytes:
            self._kept.popitem(last=False)

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


def _fitting(kept: Kept, marks: Sequence[Mark]) -> KVCache | None:
    """The cache, gone back to a place up to which the prompt is what it holds; None where there is no such place."""
    for place in (len(kept.marks), kept.began):
        # One token at least is read anew: its logits are what the answer begins with.
        begins_alike = 0 < place < len(marks) and tuple(marks[:place]) == kept.marks[:place]
        if begins_alike and kept.cache.holds_first(place):
            kept.cache.go_back(place)
            return kept.cache
    return None
