"""The order in which questions are answered: bounded, and fair among visitors.

One question is worked on at a time. Whoever has fewer questions ahead of their own goes first; among
equals, who came first.
"""

import itertools
import threading
from dataclasses import dataclass

from gemma3_core.errors import QueueFullError


@dataclass(frozen=True)
class Ticket:
    """A place in the queue."""

    number: int
    visitor: str


class FairQueue:
    """Tickets that wait for their turn; safe to use from many threads."""

    def __init__(self, max_waiting: int = 64, max_per_visitor: int = 4):
        self._max_waiting, self._max_per_visitor = max_waiting, max_per_visitor
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: list[Ticket] = []
        self._running: Ticket | None = None

    def enter(self, visitor: str) -> Ticket:
        """A ticket at the end of the queue. Raises QueueFullError where too many wait already."""
        with self._changed:
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} questions are waiting already. Try again in a minute.")
            own = sum(ticket.visitor == visitor for ticket in self._waiting)
            if own >= self._max_per_visitor:
                raise QueueFullError(f"{own} of your questions are waiting already. Wait for one of their answers.")
            ticket = Ticket(next(self._numbers), visitor)
            self._waiting.append(ticket)
            self._start_next()
            return ticket

    def wait(self, ticket: Ticket, known_place: int | None, seconds: float) -> int:
        """The ticket's place, 0 when it is its turn; returns when that differs from `known_place`, or in time."""
        with self._changed:
            self._changed.wait_for(lambda: self._place(ticket) != known_place, timeout=seconds)
            return self._place(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Gives the place back, whether it was waiting or running; leaving twice does no harm."""
        with self._changed:
            if ticket == self._running:
                self._running = None
            elif ticket in self._waiting:
                self._waiting.remove(ticket)
            self._start_next()

    def _start_next(self) -> None:
        if self._running is None and self._waiting:
            self._running = self._ordered()[0]
            self._waiting.remove(self._running)
        self._changed.notify_all()

    def _place(self, ticket: Ticket) -> int:
        return 0 if ticket == self._running else 1 + self._ordered().index(ticket)

    def _ordered(self) -> list[Ticket]:
        ahead: dict[str, int] = {} if self._running is None else {self._running.visitor: 1}
        ranked = []
        for ticket in self._waiting:
            rank = ahead.get(ticket.visitor, 0)
            ahead[ticket.visitor] = rank + 1
            ranked.append((rank, ticket.number, ticket))
        return [ticket for _, _, ticket in sorted(ranked, key=lambda entry: entry[:2])]
