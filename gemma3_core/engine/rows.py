"""Answers as the rows of a table: a row for each picture, and a column for the text or for each field."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gemma3_core.engine.fields import read_fields, values_of
from gemma3_core.errors import SchemaError
from gemma3_core.inspection.confidence import TokenChoice

SURE = " sureness"
"""Stands behind a field's name in the name of the column that says how sure the model was of it."""
_DIGITS = 4
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Row:
    """The answer about one picture; `told` are values by column, and `error` says why there is none.

    `sureness`, 0 to 1, is the least sure field's, or the geometric mean over an answer's tokens; None without any.
    """

    picture: str
    told: dict[str, Any]
    sureness: float | None = None
    error: str = ""


def columns_of(fields: str) -> tuple[str, ...]:
    """The names of a table's columns; `fields` as `read_fields` reads them, empty for answers in text.

    Raises SchemaError, also for fields that are called like other columns.
    """
    names = [field.name for field in read_fields(fields)]
    told = [column for name in names for column in (name, name + SURE)] if names else ["answer"]
    columns = ("picture", *told, "sureness", "error", "model", "question")
    if twice := [column for column, count in Counter(columns).items() if count > 1]:
        raise SchemaError(f"The table would have the column {twice[0]} twice. Give that field another name.")
    return columns


def row_of(picture: str, text: str, choices: Sequence[TokenChoice], fields: str) -> Row:
    """The row of a complete answer; `choices` are all of its tokens, or none where nothing is known of them."""
    asked = read_fields(fields)
    if not asked:
        if not choices:
            return Row(picture, {"answer": text})
        doubt = sum(math.log(max(choice.probability, 1e-9)) for choice in choices) / len(choices)
        return Row(picture, {"answer": text}, math.exp(doubt))
    values = values_of(text, choices)
    told = {value.name: value.value for value in values} | {v.name + SURE: v.probability for v in values}
    if len(values) < len(asked):
        return Row(picture, told, error="The answer was cut. Allow more tokens.")
    return Row(picture, told, min(value.probability for value in values))


def cells_of(row: Row, columns: Sequence[str], model: str, question: str) -> dict[str, str]:
    """The row as the text of its cells, by column; none of them is computed by a spreadsheet."""
    sure = "" if row.sureness is None else row.sureness
    told = {**row.told, "picture": row.picture, "sureness": sure, "error": row.error}
    told |= {"model": model, "question": question}
    return {column: cell(told.get(column, "")) for column in columns}


def cell(value: Any) -> str:
    """A value as a cell; a text that a spreadsheet would compute gets an apostrophe before it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.startswith(_FORMULA) else text
