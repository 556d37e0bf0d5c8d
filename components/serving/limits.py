"""Limits of the process itself: open files, what connections speak, those that are silent, freed memory, log lines."""

import ctypes
import logging
import sys
import time
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS, WS_PROTOCOLS

SILENT_S = 60.0
"""How long a connection may stay open without a complete request, before its first one and after each answer."""

_MAX_LOG_RECORDS = 100
_LOG_PERIOD_S = 60.0


def speak_http_alone() -> None:
    """Has uvicorn read requests with h11, and no web sockets, which this app doesn't use.

    h11 gives up at 16 KB of a head that doesn't end. By itself uvicorn takes httptools where it is installed, as Ray
    does, and that keeps as many headers as come. Gradio starts uvicorn and passes neither choice on.
    """
    HTTP_PROTOCOLS["auto"] = HTTP_PROTOCOLS["h11"]
    WS_PROTOCOLS["auto"] = WS_PROTOCOLS["none"]


def close_silent(connections: Iterable[Any], silent: MutableMapping[Any, float]) -> None:
    """Closes uvicorn's connections that stay too long without a request.

    `silent` holds since when each is silent: by the connection before its first request, then by the last one's cycle.
    uvicorn's own time limit after an answer ends with the first byte that comes, as if that were a request.
    """
    for connection in list(connections):
        cycle = connection.cycle
        if cycle is not None and not cycle.response_complete:
            continue
        last = connection if cycle is None else cycle
        if time.monotonic() - silent.setdefault(last, time.monotonic()) > SILENT_S:
            connection.transport.close()


def allow_open_files(wanted: int) -> None:
    """Raises the process's limit of open files and connections, where the system allows it."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft != resource.RLIM_INFINITY and soft < most:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def return_freed_memory() -> None:
    """Gives freed memory back to the system, where the C library is glibc.

    By itself it keeps what lies below something that is still used, in an arena for each of several threads, so that a
    server grows with what its answers take for a moment.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


class LogLimit(logging.Filter):
    """Lets at most `most` records through in each period, so that strangers can't fill the disk with log lines."""

    def __init__(
        self,
        most: int = _MAX_LOG_RECORDS,
        period_s: float = _LOG_PERIOD_S,
        now: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self._most, self._period_s, self._now = most, period_s, now
        self._began, self._count = now(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        if self._now() - self._began > self._period_s:
            self._began, self._count = self._now(), 0
        self._count += 1
        if self._count == self._most:
            # Only its form: a log of JSON lines leaves out what fills it.
            record.msg = f"{record.msg} (further messages are dropped for a minute)"
        return self._count <= self._most


_LOG_LIMIT = LogLimit()


def limit_logs(*names: str) -> None:
    """Bounds the number of lines that these loggers write together."""
    for name in names:
        logging.getLogger(name).addFilter(_LOG_LIMIT)
