"""The ledger of several pages that ask one Ray cluster: a visitor's questions count together, whichever page takes
them."""

import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from components.serving.ledger import Allowance, MemoryLedger, Refusal

logger = logging.getLogger(__name__)

NAME, NAMESPACE = "ledger", "gemma3"
"""The actor by which Ray knows the place where all pages count."""
ANSWERS_WITHIN_S = 2.0
_AGAIN_S = 5.0
"""So long a page counts by itself before it asks for that place again."""


class SharedLedger:
    """A ledger in an actor of the cluster that this process has joined; safe to use from many threads.

    The first page starts it, and it outlives the pages. The limits of the page that started last hold for all. If it
    is gone or does not answer, the page counts by itself until it is there again, so that visitors are still answered
    and still limited; what was counted elsewhere is then forgotten.
    """

    def __init__(self, allowances: Sequence[Allowance]):
        """Raises nothing: a cluster without room for the actor is one that does not answer."""
        self._allowances = tuple(allowances)
        self._own = MemoryLedger(allowances)
        self._lock = threading.Lock()
        self._actor: Any = None
        self._is_there = self._is_looking = self._has_warned = False
        self._own_until = 0.0

    def begin(self, visitor: str, questions: int, pictures: int) -> int | Refusal:
        from ray import get
        from ray.exceptions import RayError

        if (actor := self._found()) is not None:
            asked = actor.begin.remote(visitor, questions, pictures)
            try:
                begun: int | Refusal = get(asked, timeout=ANSWERS_WITHIN_S)
                return begun
            except (RayError, TimeoutError) as error:
                self._lose(error)
                # It may be counted there all the same.
                asked.future().add_done_callback(self._give_back)
        begun = self._own.begin(visitor, questions, pictures)
        return -begun if isinstance(begun, int) else begun

    def end(self, number: int, tokens: int, counts: bool) -> None:
        from ray.exceptions import RayError

        if number < 0:
            self._own.end(-number, tokens, counts)
            return
        try:
            self._actor.end.remote(number, tokens, counts)
        except RayError as error:
            self._lose(error)

    def _give_back(self, begun: "Future[int | Refusal]") -> None:
        if begun.exception() is None and isinstance(number := begun.result(), int):
            self.end(number, 0, counts=False)

    def _found(self) -> Any:
        """The actor; None while this page counts by itself."""
        from ray import get
        from ray.exceptions import RayError

        with self._lock:
            if self._is_there:
                return self._actor
            if self._is_looking or time.monotonic() < self._own_until:
                return None
            self._is_looking = True
        try:
            actor = _actor(self._allowances)
            get(actor.adopt.remote(self._allowances), timeout=ANSWERS_WITHIN_S)
            with self._lock:
                self._actor, self._is_there, self._has_warned = actor, True, False
            return actor
        except (RayError, TimeoutError, ValueError) as error:
            self._lose(error)
            return None
        finally:
            self._is_looking = False

    def _lose(self, error: Exception) -> None:
        with self._lock:
            self._is_there, self._own_until = False, time.monotonic() + _AGAIN_S
            if not self._has_warned:
                reason = type(error).__name__
                logger.warning("the ledger of all pages does not answer (%s); this page counts by itself", reason)
            self._has_warned = True


def _actor(allowances: Sequence[Allowance]) -> Any:
    """The actor of that name, which is started if there is none. Raises RayError, or ValueError while it ends."""
    import ray

    options = {"name": NAME, "namespace": NAMESPACE, "get_if_exists": True, "lifetime": "detached"}
    return ray.remote(MemoryLedger).options(**options, num_cpus=0).remote(allowances)
