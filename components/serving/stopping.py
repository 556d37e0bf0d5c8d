"""What SIGTERM does: running answers end, new questions are refused, and then the program ends."""

import signal
import sys
import threading
import time
from typing import Any

from components.serving.desk import FrontDesk

_SENT_S = 0.5
"""So long the end of the last answer takes to reach its visitor."""


class Stopping:
    """A signal handler that ends the program once no answer runs, or after `longest_s` at the latest.

    A second signal ends it at once. Either way it is a normal exit, which also deletes the uploads.
    """

    def __init__(self, desk: FrontDesk, longest_s: float):
        self._desk, self._longest_s = desk, longest_s
        self._began = False

    def __call__(self, number: int, _frame: Any) -> None:
        if self._began or not self._desk.running:
            sys.exit(0)
        self._began = True
        # Not here: a handler runs within whatever the main thread does, which may hold a lock.
        threading.Thread(target=self._wait, args=(number,), name="draining", daemon=True).start()

    def _wait(self, number: int) -> None:
        self._desk.drain()
        if self._desk.wait(self._longest_s):
            time.sleep(_SENT_S)
        signal.raise_signal(number)
