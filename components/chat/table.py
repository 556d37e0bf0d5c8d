"""One question about many pictures: the browser asks for a row of the table at a time, and keeps them all.

The server holds nothing between two rows, so that a table can be stopped and gone on with at any row. Each row is a
question of its visitor like any other.
"""

import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from components.bridge import Ask, window_of
from components.chat.conversation import Conversation
from components.chat.handlers import UNEXPECTED, request_for
from components.chat.returning import object_of
from components.chat.running import Pace, RunningAnswers
from components.settings import Choices
from components.shown.fields_view import UNSURE, told
from components.shown.token_view import percent
from gemma3_core.engine import (
    SURE,
    ContextLengthError,
    DoneEvent,
    Gemma3Error,
    ImageError,
    ModelRegistry,
    Row,
    SamplingSettings,
    StageEvent,
    TokenChoice,
    TokenEvent,
    Turn,
    cell,
    cells_of,
    columns_of,
    read_fields,
    row_of,
)

logger = logging.getLogger(__name__)

MOST_ROWS = 200
_MAX_NAME = 300

NO_QUESTION = "There is no question yet. Write one that fits every picture."
NO_PICTURES = "There are no pictures yet. Choose some, or a folder."
TOO_MANY = f"A table has at most {MOST_ROWS} pictures. Choose fewer."
TEXT_ONLY = "{} reads text only. Choose a model that reads pictures."
GONE = "This picture is no longer on the server. Go on to send it again."
BUSY = "Another row of this page is being asked. Wait a moment, then go on."


class TableRows:
    """The handlers behind the table. `is_upload` says whether a path is one of the visitors' pictures; `ask` takes the
    questions; without, the models do."""

    def __init__(self, models: ModelRegistry, is_upload: Callable[[str], bool], ask: Ask | None = None):
        self._models, self._is_upload = models, is_upload
        self._answers = (lambda _asker, *asked: models.astream(*asked)) if ask is None else ask
        self._running = RunningAnswers()

    def begin(self, asked: str, *values: Any) -> str:
        """What the browser needs for its table, as JSON: the `header` of the CSV file, the `shown` columns, the
        `fields`, and for each picture the cells of a row without an answer. Or why there is none, as `refused`.

        `asked` is JSON with the `question` and the pictures' `names`.
        """
        given, choices = object_of(asked), Choices(*values)
        turn = _turn(given)
        question, names = _text(given.get("question")), given.get("names")
        names = [_text(name)[:_MAX_NAME] for name in names] if isinstance(names, list) else []
        fields, info = choices.fields or "", self._models.info(choices.model)
        problem = NO_PICTURES if not names else NO_QUESTION if not question else ""
        if len(names) > MOST_ROWS:
            problem = TOO_MANY
        elif info is not None and not info.multimodal:
            problem = TEXT_ONLY.format(info.name)
        try:
            if problem:
                raise Gemma3Error(problem)
            columns = columns_of(fields)
        except Gemma3Error as error:
            return json.dumps({"turn": turn, "refused": str(error)}, ensure_ascii=False)
        model = choices.model or self._models.first.info.name
        rows = [list(cells_of(Row(name, {}), columns, model, question).values()) for name in names]
        header, shown = [cell(name) for name in columns], _shown(fields)
        begun = {"turn": turn, "header": header, "shown": shown, "fields": fields, "rows": rows}
        return json.dumps(begun, ensure_ascii=False)

    async def row(self, asked: str, request: gr.Request, *values: Any) -> AsyncGenerator[str, None]:
        """Asks about one picture; yields what the browser should know as JSON, with the `turn` by which it asked:

        the `stage` of the work, then the row (`cells` for the CSV file, `told` for the page), or the reason to `halt`,
        or that it was `stopped`. A row that says in `failed` what is wrong with its picture holds up no other.

        `asked` is JSON with the `question`, the `fields`, the picture's `name` and its `path` on the server.
        """
        given, window = object_of(asked), window_of(request)
        turn = _turn(given)
        name, path = _text(given.get("name"))[:_MAX_NAME], _text(given.get("path"))
        try:
            if window in self._running:
                raise Gemma3Error(BUSY)
            if not self._is_upload(path):
                raise Gemma3Error(GONE)
            choices = replace(Choices(*values), fields=_text(given.get("fields")))
            question = Turn("user", _text(given.get("question")), (Path(path),))
            async with aclosing(self._asked(name, question, choices, request)) as answer:
                async for said in answer:
                    yield json.dumps({"turn": turn, **said}, ensure_ascii=False)
        except Gemma3Error as error:
            yield json.dumps({"turn": turn, "halt": str(error)}, ensure_ascii=False)
        except Exception:
            logger.exception("a row failed")
            yield json.dumps({"turn": turn, "halt": UNEXPECTED})

    async def _asked(
        self, name: str, question: Turn, choices: Choices, asker: gr.Request
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Raises Gemma3Error for what concerns more than this picture."""
        fields, columns = choices.fields or "", columns_of(choices.fields or "")
        window, model, pace = window_of(asker), choices.model or self._models.first.info.name, Pace()
        asked = request_for(self._models, question, Conversation(), choices, window)
        asked = replace(asked, sampling=SamplingSettings(temperature=0.0), reuse=False)
        text, stage, done, tokens = "", "", None, list[TokenChoice]()
        try:
            with self._running.entry(window) as running:
                events = running.events(self._answers(asker, choices.model, asked, running.stop))
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, DoneEvent):
                            done = event
                            continue
                        if isinstance(event, TokenEvent):
                            text += event.text
                            tokens += [event.choice] if event.choice is not None else []
                        elif isinstance(event, StageEvent):
                            stage = event.text
                        if isinstance(event, StageEvent) or pace.due():
                            yield {"stage": stage} if fields or not text.strip() else {"text": text}
        except (ImageError, ContextLengthError) as error:
            row = Row(name, {}, error=str(error))
        else:
            if done is None or done.stats.stop_reason == "cancelled":
                yield {"stopped": True}
                return
            row, model = row_of(name, done.text, tokens, fields), done.stats.model
        cells = list(cells_of(row, columns, model, question.text).values())
        yield {"cells": cells, "told": _told(row, fields), "sure": _sure(row.sureness), "failed": row.error}

    def stop(self, request: gr.Request) -> None:
        """Stops the window's row, which then counts as not asked."""
        self._running.stop(window_of(request))

    async def leave(self, request: gr.Request) -> None:
        """Stops the row of a closed window."""
        self.stop(request)


def _shown(fields: str) -> list[str]:
    """The columns that the page shows beside the sureness."""
    return [field.name for field in read_fields(fields)] or ["Answer"]


def _told(row: Row, fields: str) -> list[dict[str, Any]]:
    """What stands in these columns, each field with its sureness."""
    if not fields:
        return [{"text": row.told.get("answer", "")}]
    shown = [(row.told.get(name, ""), row.told.get(name + SURE)) for name in _shown(fields)]
    return [{"text": told(value), **_sure(share)} for value, share in shown]


def _sure(share: float | None) -> dict[str, Any]:
    return {} if share is None else {"percent": percent(share), "share": share, "unsure": share < UNSURE}


def _turn(given: dict[str, Any]) -> int:
    turn = given.get("turn")
    return turn if isinstance(turn, int) else 0


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""
