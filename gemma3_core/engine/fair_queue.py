"""The order in which questions are answered: bounded, and fair among visitors.

Several questions run at once, but only one of each visitor. Visitors take turns, one question each per round, in the
order of their arrival; a visitor who asks again joins the end of the round. Questions that arrive as a1 a2 a3 b1 b2 c1
and run one at a time are answered in the order a1 b1 c1 a2 b2 a3.
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
    """Tickets that wait for their turn; safe to use from many threads.

    At most `max_running` run at once, and together they need at most `budget` bytes; one may always run.
    """

    def __init__(
        self, max_waiting: int = 64, max_per_visitor: int = 4, max_running: int = 1, budget: int | None = None
    ):
        self._max_waiting, self._max_per_visitor = max_waiting, max_per_visitor
        self.max_running, self._budget = max_running, budget
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._waiting: list[Ticket] = []
        # Visitors in the order of their turns: each with a waiting question once, except those being served.
        self._turns: list[str] = []
        self._unready: set[Ticket] = set()
        self._num_bytes: dict[Ticket, int] = {}
        self._running: list[Ticket] = []
        self.mean_turn_s: float | None = None
        """A moving average of a turn's duration in seconds; None before the first."""
        self.closed = False
        """Whether no further ticket is taken."""

    @property
    def waiting(self) -> int:
        """How many tickets wait."""
        return len(self._waiting)

    def resize(self, max_running: int, max_waiting: int) -> None:
        """Lets another number run and wait from now on; those that run go on."""
        with self._changed:
            self.max_running, self._max_waiting = max_running, max_waiting
            self._start_next()

    def close(self) -> None:
        """Takes no further ticket; those that are there keep their turns."""
        with self._changed:
            self.closed = True

    def wait_until_empty(self, seconds: float) -> bool:
        """Waits until no ticket waits or runs; False if some are left after `seconds`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._running, timeout=seconds)

    def counts(self) -> tuple[int, int]:
        """How many run, and how many wait."""
        with self._changed:
            return len(self._running), len(self._waiting)

    def remember(self, seconds: float) -> None:
        """Updates the mean with a turn's duration."""
        mean = self.mean_turn_s
        self.mean_turn_s = seconds if mean is None else 0.8 * mean + 0.2 * seconds

    def enter(self, visitor: str, ready: bool = True) -> Ticket:
        """Adds a ticket at the end of the queue; unless `ready`, the queue skips it until `make_ready`.

        Raises QueueFullError if too many are waiting.
        """
        with self._changed:
            if self.closed:
                raise QueueFullError(
                    "This server is about to end and takes no further question. Ask again in a minute."
                )
            if len(self._waiting) >= self._max_waiting:
                raise QueueFullError(f"{len(self._waiting)} questions are waiting already. Try again in a minute.")
            own = sum(ticket.visitor == visitor for ticket in self._waiting)
            if own >= self._max_per_visitor:
                raise QueueFullError(f"{own} of your questions are waiting already. Wait for one of their answers.")
            ticket = Ticket(next(self._numbers), visitor)
            self._waiting.append(ticket)
            if not ready:
                self._unready.add(ticket)
            self._line_up(visitor)
            self._start_next()
            return ticket

    def make_ready(self, ticket: Ticket, num_bytes: int = 0) -> None:
        """Stops skipping the ticket; it needs so much memory while it runs."""
        with self._changed:
            self._unready.discard(ticket)
            self._num_bytes[ticket] = num_bytes
            self._start_next()

    def wait(self, ticket: Ticket, known_place: int | None, seconds: float) -> int:
        """The ticket's place; 0 when it is its turn. Returns when that differs from `known_place`, or after
        `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: self._place(ticket) != known_place, timeout=seconds)
            return self._place(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Removes a waiting or running ticket; leaving twice is harmless."""
        with self._changed:
            for tickets in (self._running, self._waiting):
                if ticket in tickets:
                    tickets.remove(ticket)
            self._unready.discard(ticket)
            self._num_bytes.pop(ticket, None)
            self._line_up(ticket.visitor)
            self._start_next()

    def _line_up(self, visitor: str) -> None:
        """Adds a visitor with waiting tickets to the end of the round; removes one without."""
        is_served = visitor in self._served()
        waits = any(ticket.visitor == visitor for ticket in self._waiting)
        if waits and not is_served and visitor not in self._turns:
            self._turns.append(visitor)
        elif not waits and visitor in self._turns:
            self._turns.remove(visitor)

    def _served(self) -> list[str]:
        return [ticket.visitor for ticket in self._running]

    def _start_next(self) -> None:
        while len(self._running) < self.max_running:
            served = self._served()
            able = (one for one in self._ordered() if one not in self._unready and one.visitor not in served)
            ticket = next(able, None)
            if ticket is None or not self._has_room(ticket):
                break
            self._running.append(ticket)
            self._waiting.remove(ticket)
            self._turns.remove(ticket.visitor)
        self._changed.notify_all()

    def _has_room(self, ticket: Ticket) -> bool:
        """Whether the budget allows it now. Nobody overtakes a ticket that needs much."""
        if self._budget is None or not self._running:
            return True
        return sum(self._num_bytes.get(one, 0) for one in (ticket, *self._running)) <= self._budget

    def _place(self, ticket: Ticket) -> int:
        return 0 if ticket in self._running else 1 + self._ordered().index(ticket)

    def _ordered(self) -> list[Ticket]:
        """Waiting tickets in the order in which they will run if nobody else comes: round by round."""
        served = self._served()
        place_in_round = {visitor: place for place, visitor in enumerate([*served, *self._turns])}
        rounds = dict.fromkeys(served, 1)
        keys = {}
        for ticket in self._waiting:
            keys[ticket] = (rounds.get(ticket.visitor, 0), place_in_round[ticket.visitor])
            rounds[ticket.visitor] = keys[ticket][0] + 1
        return sorted(self._waiting, key=keys.__getitem__)
