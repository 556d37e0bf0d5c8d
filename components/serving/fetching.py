"""Pictures given by address: how many may be fetched, or wait for it, of one visitor and of all."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from components.serving.desk import NotNowError

MOST_OF_ONE, MOST_TOGETHER = 32, 64
"""Pictures that are fetched or wait for it: of one visitor, and of all. Each takes as long as `fetch_image` allows."""
OWN_WAIT = "Pictures of your earlier questions are still being fetched. Wait until they are here, or upload these."
OTHERS_WAIT = "The server has too many pictures to fetch. Try again in a minute, or upload them."
_RETRY_S = 20


class Fetches:
    """Counts the pictures that are fetched, or wait for it."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    @contextmanager
    def counted(self, visitor: str, number: int) -> Iterator[None]:
        """Counts so many of a visitor's. Raises NotNowError if they are too many beside those that are counted."""
        if self._of[visitor] + number > MOST_OF_ONE:
            raise NotNowError(OWN_WAIT, "fetches", _RETRY_S)
        if self._of.total() + number > MOST_TOGETHER:
            raise NotNowError(OTHERS_WAIT, "fetches", _RETRY_S)
        self._of[visitor] += number
        try:
            yield
        finally:
            self._of[visitor] -= number
            if not self._of[visitor]:
                del self._of[visitor]
