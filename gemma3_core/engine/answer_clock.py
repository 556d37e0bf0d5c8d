"""Times of one answer."""

import time


class AnswerClock:
    """Times of one answer, from leaving the queue; decoding speed leaves the first token out."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._first: float | None = None
        self.tokens = 0

    def tick(self) -> None:
        self.tokens += 1
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last

    @property
    def first_token_s(self) -> float | None:
        return None if self._first is None else round(self._first - self._start, 4)

    @property
    def tokens_per_s(self) -> float | None:
        if self._first is None or self.tokens < 2 or self._last <= self._first:
            return None
        return round((self.tokens - 1) / (self._last - self._first), 2)
