"""Log lines as JSON, for programs that collect them: what happened, without what was asked, and without addresses."""

import json
import logging
import sys
import threading
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from components.watch.record import Record

QUESTIONS = "questions"
"""The logger that writes a line for each question."""
MOST_QUESTIONS = 1000
"""Lines of questions in a minute. Refused ones cost whoever sends them nothing."""
_FIGURES = "figures"


class JsonLines(logging.Formatter):
    """A record as one line of JSON.

    Of a message only the first line's form is kept ("%s %s failed"), and of an error its kind and where it was raised:
    what they are filled with may be a visitor's.
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        line["message"] = str(record.msg).partition("\n")[0]
        line |= getattr(record, _FIGURES, {})
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["where"] = [f"{part.name} {part.lineno}" for part in traceback.extract_tb(record.exc_info[2])]
        return json.dumps(line, ensure_ascii=False)


def log_as_json() -> None:
    """Makes all loggers, warnings and uncaught errors of this process write JSON to stderr; call it again after a
    library has set up handlers of its own."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        if logger.handlers:
            logger.handlers, logger.propagate = [], True
    warnings.showwarning = _log_warning
    sys.excepthook = lambda kind, error, trace: logging.critical("uncaught", exc_info=(kind, error, trace))
    threading.excepthook = lambda args: logging.critical(
        "uncaught in a thread", exc_info=(args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback)
    )


def _log_warning(
    message: Any,  # noqa: ARG001  as Python calls it
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    logging.warning(
        "warning", extra={_FIGURES: {"error": category.__name__, "where": [f"{Path(filename).name} {lineno}"]}}
    )


class QuestionLog:
    """A watcher that writes a line for each question, except those that `limit` keeps out."""

    def __init__(self, limit: logging.Filter | None = None) -> None:
        self._logger = logging.getLogger(QUESTIONS)
        if limit is not None:
            self._logger.addFilter(limit)
        self._logger.setLevel(logging.INFO)

    def __call__(self, record: Record) -> None:
        stages: dict[str, float] = {}
        for stage in record.stages:
            stages[stage.name] = round(stages.get(stage.name, 0.0) + stage.ended - stage.began, 3)
        figures: dict[str, Any] = {
            "door": record.door,
            "model": record.model,
            "outcome": record.outcome,
            "reason": record.reason,
            "pictures": record.pictures,
            "seconds": round(record.ended - record.began, 3),
            "stages": stages,
        }
        if (stats := record.stats) is not None:
            names = ("prompt_tokens", "reused_tokens", "new_tokens", "queue_s", "time_to_first_token_s", "tokens_per_s")
            figures |= {name: getattr(stats, name) for name in names}
        self._logger.info("question", extra={_FIGURES: figures})
