"""How much visitors may ask: what each has used, and what is left."""

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

What = Literal["questions", "pictures", "tokens", "streams"]

HOUR_S, DAY_S = 3600.0, 86400.0
MOST_VISITORS = 50_000
"""Visitors whose use is remembered; the one who has asked least recently is forgotten first."""
LONGEST_STREAM_S = 3600.0
"""A stream that is older counts no longer as one: the program that would end it may be gone."""
LONGEST_ANSWER_S = DAY_S
"""After so long a question is forgotten; until then what its answer took is counted."""


@dataclass(frozen=True)
class Allowance:
    """At most `most` of something for each visitor, or for all of them `together`.

    The count begins with the first question, and again `period_s` seconds later; with None it never resets. "streams"
    are the answers that are being written, which have no period. Tokens are known only afterwards: an answer that has
    begun is written to its end.
    """

    what: What
    most: int
    period_s: float | None = None
    together: bool = False

    @property
    def counted(self) -> "Counted":
        """What is counted for it, however much is allowed."""
        return self.what, self.period_s, self.together


Counted = tuple[What, float | None, bool]


@dataclass(frozen=True)
class Refusal:
    """What a question would exceed: `used` is the amount used so far, until `back_at` (Unix seconds; None is open)."""

    allowance: Allowance
    used: int
    back_at: float | None = None


class Ledger(Protocol):
    """What visitors have used, on this machine or in one place for several. Values in and out are plain and small."""

    def begin(self, visitor: str, questions: int, pictures: int) -> int | Refusal:
        """Counts a question, or says why it may not be asked; a number to `end` it with. May wait for a network.

        A look inside an answer is no question (0), and takes tokens alone.
        """
        ...

    def end(self, number: int, tokens: int, counts: bool) -> None:
        """The question's end, with the tokens that it took; unless it `counts`, it is not charged. Does not wait."""
        ...


@dataclass
class _Use:
    """What has been used of one allowance since `began`."""

    began: float
    used: int = 0


@dataclass
class _Account:
    """What a visitor has used; `streams` are the questions that are being answered, with when they began."""

    uses: dict[Counted, _Use] = field(default_factory=dict)
    streams: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Asked:
    visitor: str
    questions: int
    pictures: int
    began: float

    def amount(self, what: What) -> int:
        """What it takes at its beginning; of tokens at least one."""
        return {"questions": self.questions, "streams": self.questions, "pictures": self.pictures, "tokens": 1}[what]


class MemoryLedger:
    """A ledger in this process's memory; safe to use from many threads."""

    def __init__(
        self,
        allowances: Sequence[Allowance] = (),
        now: Callable[[], float] = time.time,
        most_visitors: int = MOST_VISITORS,
    ):
        self._allowances, self._now, self._most_visitors = tuple(allowances), now, most_visitors
        self._lock = threading.Lock()
        self._numbers = itertools.count(time.time_ns())
        """A ledger that was lost gave smaller ones, whose ends may still come."""
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._together = _Account()
        self._running: dict[int, _Asked] = {}

    def __len__(self) -> int:
        """The visitors who are remembered."""
        return len(self._accounts)

    def adopt(self, allowances: Sequence[Allowance]) -> None:
        """Allows other amounts from now on; what visitors have used stays used."""
        with self._lock:
            self._allowances = tuple(allowances)

    def begin(self, visitor: str, questions: int, pictures: int) -> int | Refusal:
        now = self._now()
        asked = _Asked(visitor, questions, pictures, now)
        with self._lock:
            self._forget_lost(now)
            accounts = self._accounts_of(visitor)
            refusals = [
                refusal
                for allowance in self._allowances
                if (refusal := _refusal(allowance, accounts[allowance.together], asked, now)) is not None
            ]
            if refusals:  # the one that lasts longest
                return max(refusals, key=_end)
            number = next(self._numbers)
            self._running[number] = asked
            for account in accounts.values() if questions else ():
                account.streams[number] = now
            self._count(asked, {"questions": questions, "pictures": pictures}, now)
            return number

    def end(self, number: int, tokens: int, counts: bool) -> None:
        with self._lock:
            asked = self._running.pop(number, None)
            if asked is None:  # so long ago that it was forgotten
                return
            for account in (self._together, self._accounts.get(asked.visitor)):
                if account is not None:
                    account.streams.pop(number, None)
            change = {"tokens": tokens} if counts else {"questions": -asked.questions, "pictures": -asked.pictures}
            self._count(asked, change, self._now())

    def _accounts_of(self, visitor: str) -> dict[bool, _Account]:
        """The visitor's own account, and that of all together; makes room for a new one."""
        account = self._accounts.setdefault(visitor, _Account())
        self._accounts.move_to_end(visitor)
        if len(self._accounts) > self._most_visitors:
            # There are far fewer answers at a time than visitors, so this looks at few.
            del self._accounts[next(name for name, other in self._accounts.items() if not other.streams)]
        return {False: account, True: self._together}

    def _count(self, asked: _Asked, amounts: dict[str, int], now: float) -> None:
        for allowance in self._allowances:
            account = self._together if allowance.together else self._accounts.get(asked.visitor)
            amount = amounts.get(allowance.what, 0)
            if account is not None and amount:
                use = _use(allowance, account, now)
                use.used = max(0, use.used + amount)

    def _forget_lost(self, now: float) -> None:
        """Forgets what began too long ago, or, where the clock was set back, as far ahead."""
        old = itertools.takewhile(lambda one: abs(now - one[1]) > LONGEST_STREAM_S, self._together.streams.items())
        for number in [number for number, _ in old]:  # the oldest come first
            del self._together.streams[number]
            if (account := self._accounts.get(self._running[number].visitor)) is not None:
                account.streams.pop(number, None)
        lost = itertools.takewhile(lambda one: abs(now - one[1].began) > LONGEST_ANSWER_S, self._running.items())
        for number in [number for number, _ in lost]:
            del self._running[number]


def _use(allowance: Allowance, account: _Account, now: float) -> _Use:
    """What the account has used of an allowance in its period, which begins now if the last one is over."""
    use = account.uses.get(allowance.counted)
    if use is None or (allowance.period_s is not None and now >= use.began + allowance.period_s):
        use = account.uses[allowance.counted] = _Use(now)
    use.began = min(use.began, now)  # a clock that was set back prolongs no period by its step
    return use


def _refusal(allowance: Allowance, account: _Account, asked: _Asked, now: float) -> Refusal | None:
    wanted = asked.amount(allowance.what)
    if allowance.what == "streams":
        used, back_at = len(account.streams), None
    else:
        use = _use(allowance, account, now)
        used, back_at = use.used, None if allowance.period_s is None else use.began + allowance.period_s
    return Refusal(allowance, used, back_at) if wanted and used + wanted > allowance.most else None


def _end(refusal: Refusal) -> float:
    if refusal.allowance.what == "streams":
        return 0.0
    return float("inf") if refusal.back_at is None else refusal.back_at
