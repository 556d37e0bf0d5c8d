"""The desk that every question passes, by whichever door it comes: may it be asked now, and how did it end."""

import asyncio
import logging
import math
import threading
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import blake2b
from typing import Any

from components.serving.callers import Caller, Callers
from components.serving.ledger import DAY_S, Allowance, Ledger, MemoryLedger, Refusal
from components.watch.metrics import Metrics
from components.watch.record import Account, Watcher, about_tokens
from gemma3_core.engine import Answered, Event, Gemma3Error, ModelRegistry, Request, Usage, usage_of

logger = logging.getLogger(__name__)

DRAINING = "The server is about to restart. Ask again in a minute."
_STREAMS = "Answers in progress for your address: {}, the maximum. Wait until one is complete."
_USED = {
    "questions": "You have asked as many questions",
    "pictures": "You have sent as many pictures",
    "tokens": "You have used as many tokens",
}
_TOO_MANY_PICTURES = "These are too many pictures: {} of {} in {} are left. Ask with fewer, or come back at {}."
_BUDGETS = {
    "questions": "This public link has answered as many questions as it may:",
    "pictures": "This public link has taken as many pictures as it may:",
    "tokens": "This public link has used as many tokens as it may:",
}
_NEW_LINK = "Ask whoever gave it to you for a new one."
_DRAINED_S, _SOON_S = 30, 5
"""After how many seconds programs try again, where the server restarts and where own answers are being written."""
_MOST_BEGINNING = 16
"""Questions that wait at the same time for a ledger on another machine."""


MOST_PICTURES = 100_000
"""Pictures remembered as asked about on the page, over all visitors; a forgotten one counts again."""


class NotNowError(Gemma3Error):
    """A question that may not be asked now.

    `reason` says why in a word, and `retry_s` after how many seconds it may be asked; None is never.
    """

    def __init__(self, message: str, reason: str, retry_s: int | None):
        super().__init__(message)
        self.reason, self.retry_s = reason, retry_s


@dataclass(frozen=True)
class Operation:
    """How a server is operated: how much visitors may ask, and who watches.

    `ledger` keeps what they have used; with `knows_addresses` a visitor is an address (see `Callers`). `metrics` are
    served to this machine, or to whoever sends the `metrics_token`; `behind_proxy` says that strangers come from this
    machine too. Of `trusted_proxies`, addresses or networks, the headers tell who asks.
    """

    ledger: Ledger = field(default_factory=MemoryLedger)
    knows_addresses: bool = False
    watchers: Sequence[Watcher] = ()
    metrics: Metrics | None = None
    metrics_token: str = ""
    behind_proxy: bool = False
    trusted_proxies: Sequence[str] = ()


class FrontDesk:
    """Takes the questions of all doors, and tells the watchers of each how it ended."""

    def __init__(self, models: ModelRegistry, operation: Operation):
        self._models, self._ledger, self._watchers = models, operation.ledger, [*operation.watchers]
        self.callers, self.behind_proxy = Callers(operation.knows_addresses), operation.behind_proxy
        # Not the event loop's own few threads: whatever else takes long there would keep every question out.
        self._beginning = ThreadPoolExecutor(_MOST_BEGINNING, "ledger")
        self._changed = threading.Condition()
        self._asked_about: OrderedDict[bytes, None] = OrderedDict()
        self._running = 0
        self.is_draining = False
        if operation.metrics is not None:
            self._watchers.append(operation.metrics)
            operation.metrics.follow(self._usage, lambda: self.is_ready)

    @property
    def is_ready(self) -> bool:
        """Whether a question that comes now will be answered: the desk is open, and somebody is there to answer."""
        return not self.is_draining and self._models.is_ready

    def _usage(self) -> Usage:
        return usage_of(self._models)

    def on_page(
        self, asker: Any, model: str | None, request: Request, stop: threading.Event | None = None
    ) -> AsyncGenerator[Event]:
        """As `astream`, for a question on the page, whose event `asker` is (a gr.Request)."""
        return self.astream(self.callers.of_page(asker), model, request, stop)

    async def astream(
        self, caller: Caller, model: str | None, request: Request, stop: threading.Event | None = None
    ) -> AsyncGenerator[Event]:
        """As `ModelRegistry.astream`. Leaving before the answer's end sets `stop`, which an engine notices also while
        it waits for another machine that says nothing. Raises NotNowError for a question that the caller may not ask
        now."""
        stop = threading.Event() if stop is None else stop
        of_page = caller.door == "page" and bool(request.turns)
        asked_about = len(request.turns[-1].pictures) if of_page else request.num_images
        account = Account(caller.door, self._named(model), asked_about, request.stop_strings)
        number: int | None = None
        with self._changed:
            self._running += 1
        try:
            number = await self._begun(caller.visitor, 1, asked_about + self._brought(caller, request))
            self._remember_pictures(caller, request)
            async with aclosing(self._models.astream(model, request, stop)) as events:
                async for event in events:
                    account.take(event)
                    yield event
        except NotNowError as error:
            account.refuse(error.reason)
            raise
        except Exception as error:
            account.fail(error)
            raise
        finally:
            if account.stats is None:
                stop.set()
            self._end(account, number, account.tokens(request, self._tokens_per_picture(model)))

    @asynccontextmanager
    async def looking(self, asker: Any, answered: Answered) -> AsyncIterator[Account]:
        """For the time of a look inside an answer, which the model reads again; one that fails, or whose account says
        so, takes no tokens.

        The figures of an answer may be a browser's, so its tokens are counted roughly. Raises NotNowError for a look
        that the visitor may not have now.
        """
        model = answered.done.stats.model
        account = Account("inside", self._named(model), 0)
        number: int | None = None
        with self._changed:
            self._running += 1
        try:
            number = await self._begun(self.callers.of_page(asker).visitor, 0, 0)
            yield account
            account.outcome = "stop" if account.outcome == "left" else account.outcome
        except NotNowError as error:
            account.refuse(error.reason)
            raise
        except Exception:
            account.outcome = "failed"
            raise
        finally:
            self._end(account, number, 0 if account.outcome == "failed" else self._tokens_again(answered))

    def _tokens_again(self, answered: Answered) -> int:
        info = self._models.info(answered.done.stats.model)
        if info is None:
            return 0
        tokens = about_tokens(answered.request, info.tokens_per_picture) + len(answered.done.token_ids)
        return min(tokens, info.context_length)

    def _brought(self, caller: Caller, request: Request) -> int:
        """The pictures of earlier turns that the visitor has not asked about here: a browser may have brought the
        conversation back. A program's are all new."""
        if caller.door != "page":
            return 0
        earlier = {_picture_key(caller, one) for turn in request.turns[:-1] for one in turn.pictures}
        return len(earlier - self._asked_about.keys())

    def _remember_pictures(self, caller: Caller, request: Request) -> None:
        if caller.door != "page":
            return
        for turn in request.turns:
            for picture in turn.pictures:
                self._asked_about[_picture_key(caller, picture)] = None
        while len(self._asked_about) > MOST_PICTURES:
            self._asked_about.popitem(last=False)

    def _end(self, account: Account, number: int | None, tokens: int) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()
        if number is not None:
            self._ledger.end(number, tokens, account.counts)
        record = account.record()
        for watcher in self._watchers:
            try:
                watcher(record)
            except Exception:
                logger.exception("a watcher failed")

    async def _begun(self, visitor: str, questions: int, pictures: int) -> int:
        """The question's number in the ledger. Raises NotNowError."""
        if self.is_draining:
            raise NotNowError(DRAINING, "draining", _DRAINED_S)
        begin = partial(self._ledger.begin, visitor, questions, pictures)
        beginning = asyncio.get_running_loop().run_in_executor(self._beginning, begin)
        try:
            begun = await asyncio.shield(beginning)
        except asyncio.CancelledError:  # the visitor left
            beginning.add_done_callback(self._give_back)
            raise
        if isinstance(begun, Refusal):
            raise told(begun, datetime.now(UTC))
        return begun

    def _give_back(self, beginning: asyncio.Future[int | Refusal]) -> None:
        if isinstance(number := beginning.result(), int):
            self._ledger.end(number, 0, counts=False)

    def _named(self, model: str | None) -> str:
        """The model's name, which is one of few, whatever was asked for."""
        name = self._models.first.info.name if model is None else model
        return name if name in self._models.names else "unknown"

    def _tokens_per_picture(self, model: str | None) -> int:
        info = self._models.info(model)
        return 0 if info is None else info.tokens_per_picture

    def drain(self) -> None:
        """Refuses new questions from now on. Running answers go on."""
        self.is_draining = True

    def wait(self, seconds: float) -> bool:
        """Waits until no answer runs, at most so long; whether none does."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    @property
    def running(self) -> int:
        """The questions that are waiting or being answered."""
        return self._running


def _picture_key(caller: Caller, picture: Any) -> bytes:
    return blake2b(f"{caller.visitor}\0{picture}".encode(), digest_size=16).digest()


def told(refusal: Refusal, now: datetime) -> NotNowError:
    """A refusal in words. Times are given in UTC, within the next 24 hours; the page shows them by the visitor's
    clock."""
    allowance, most = refusal.allowance, f"{refusal.allowance.most:,}"
    if allowance.what == "streams":
        return NotNowError(_STREAMS.format(most), "streams", _SOON_S)
    if refusal.back_at is None:
        return NotNowError(f"{_BUDGETS[allowance.what]} {most}. {_NEW_LINK}", "budget", None)
    back, retry_s = _clock(refusal.back_at), max(1, math.ceil(refusal.back_at - now.timestamp()))
    period = "a day" if allowance.period_s == DAY_S else "an hour"
    if allowance.what == "pictures" and refusal.used < allowance.most:
        sentence = _TOO_MANY_PICTURES.format(f"{allowance.most - refusal.used:,}", most, period, back)
    else:
        sentence = f"{_USED[allowance.what]} as a visitor may in {period}: {most}. Come back at {back}."
    return NotNowError(sentence, _reason(allowance), retry_s)


def _reason(allowance: Allowance) -> str:
    return f"{allowance.what}_per_{'day' if allowance.period_s == DAY_S else 'hour'}"


def _clock(seconds: float) -> str:
    """The first full minute from then on."""
    return f"{datetime.fromtimestamp(math.ceil(seconds / 60) * 60, UTC):%H:%M} UTC"
