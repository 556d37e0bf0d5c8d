"""Answers in fields: what is asked for, the JSON schema of it, and how sure the model was of each value."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Literal

from gemma3_core.engine.api import Request
from gemma3_core.errors import SchemaError
from gemma3_core.inspection.confidence import TokenChoice

Kind = Literal["text", "number", "yes/no", "choice"]
MAX_FIELDS = 24
MAX_FIELD_CHOICES = 40
MAX_FIELD_CHARACTERS = 80
"""The longest that a field's name or a choice may be."""
_LONGEST_TEXT = 200
_MOST = 1_000_000_000
_KINDS: tuple[Kind, ...] = ("text", "number", "yes/no")
_HOW = 'Write fields as "color: red, blue; count: number; outdoors: yes/no; note: text".'
_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Field:
    """One value that is asked for; a "choice" is one of its `choices`."""

    name: str
    kind: Kind
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class FieldValue:
    """A value of an answer: its JSON value, its probability, and the numbers of the answer's tokens that write it.

    The probability is the product over these tokens, each among the tokens that its schema allowed; 0 to 1. For a
    number it includes that it ends where it ends.
    """

    name: str
    value: Any
    probability: float
    tokens: range


def read_fields(text: str) -> tuple[Field, ...]:
    """Fields as people write them: `name: kind`, one a line or with semicolons between. A kind is text, number, yes/no,
    or choices with commas between. Raises SchemaError."""
    fields = tuple(_field(line.strip()) for line in re.split("[;\n]", text) if line.strip())
    names = [field.name for field in fields]
    if len(fields) > MAX_FIELDS or len(set(names)) < len(names):
        raise SchemaError(f"At most {MAX_FIELDS} fields are taken, each with a name of its own. {_HOW}")
    return fields


def _field(line: str) -> Field:
    name, _, told = line.partition(":")
    name, kind = name.strip(), told.strip().lower() or "text"
    choices = tuple(dict.fromkeys(one.strip() for one in told.split(",") if one.strip()))
    known = next((one for one in _KINDS if one == kind), None)
    if not name or (known is None and len(choices) < 2) or len(choices) > MAX_FIELD_CHOICES:
        raise SchemaError(
            f"“{line[:MAX_FIELD_CHARACTERS]}” needs a name, and a kind or 2 to {MAX_FIELD_CHOICES} choices. {_HOW}"
        )
    if max(map(len, (name, *choices))) > MAX_FIELD_CHARACTERS:
        raise SchemaError(f"A field's name, and each of its choices, has at most {MAX_FIELD_CHARACTERS} characters.")
    return Field(name, "choice", choices) if known is None else Field(name, known)


def schema_of(fields: Sequence[Field]) -> str:
    """The JSON schema of an object with these fields."""
    kinds: dict[str, dict[str, Any]] = {
        "text": {"type": "string", "maxLength": _LONGEST_TEXT},
        "number": {"type": "number", "minimum": -_MOST, "maximum": _MOST, "multipleOf": 0.01},
        "yes/no": {"type": "boolean"},
    }
    properties = {field.name: kinds.get(field.kind, {"enum": list(field.choices)}) for field in fields}
    return json.dumps(
        {
            "type": "object",
            "properties": properties,
            "required": [field.name for field in fields],
            "additionalProperties": False,
        }
    )


def ask_in_fields(request: Request, fields: Sequence[Field], named: bool = True) -> Request:
    """The request with the schema of the fields, and the fields `named` behind its question; unchanged without fields.

    The demo model, which read no JSON in its training, answers better where they are not named.
    """
    if not fields or not request.turns:
        return request
    if not named:
        return replace(request, json_schema=schema_of(fields), confidence=True)
    told = {"text": "a text", "number": "a number", "yes/no": "true or false"}
    names = ", ".join(f"{one.name} ({told.get(one.kind) or 'one of ' + ', '.join(one.choices)})" for one in fields)
    *before, question = request.turns
    asked = replace(question, text=f"{question.text}\nAnswer as JSON with {names}.")
    return replace(request, turns=(*before, asked), json_schema=schema_of(fields), confidence=True)


def values_of(text: str, choices: Iterable[TokenChoice]) -> tuple[FieldValue, ...]:
    """The values of an answer that is a JSON object, as far as it is whole; `choices` are all of its tokens."""
    choices = list(choices)
    ends, told = [], b""
    for choice in choices:
        byte = _BYTE.fullmatch(choice.text)  # a part of a character
        told += bytes([int(byte[1], 16)]) if byte else choice.text.encode()
        ends.append(len(told))
    values = []
    for name, value, start, end in _members(text):
        first, last = len(text[:start].encode()), len(text[:end].encode())
        inside = [place for place, stop in enumerate(ends) if stop > first and (ends[place - 1] if place else 0) < last]
        if inside:
            tokens = range(inside[0], inside[-1] + 1)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            # The token behind a number says that it has no further digit.
            read = choices[tokens.start : tokens.stop + is_number]
            values.append(FieldValue(name, value, prod(choice.probability for choice in read), tokens))
    return tuple(values)


def fields_told(text: str, choices: Iterable[TokenChoice]) -> dict[str, dict[str, Any]]:
    """`values_of` as plain data: {"color": {"value": "red", "probability": 0.93}}; empty for an answer in text."""
    values = values_of(text, choices)
    return {one.name: {"value": one.value, "probability": round(one.probability, 4)} for one in values}


def _members(text: str) -> Iterable[tuple[str, Any, int, int]]:
    """Name, value and the value's place in the text, for each whole member of a JSON object."""
    decoder, place = json.JSONDecoder(), _after(text, 0, "{")
    while place is not None:
        try:
            name, place = decoder.raw_decode(text, place)
            colon = _after(text, place, ":")
            if colon is None or not isinstance(name, str):
                return
            value, end = decoder.raw_decode(text, colon)
        except (ValueError, RecursionError):
            return
        following = _after(text, end, ",")
        if following is None and _after(text, end, "}") is None:
            return  # it may go on
        yield name, value, colon, end
        place = following


def _after(text: str, place: int, sign: str) -> int | None:
    """The place of what follows a sign, spaces around it left out; None if another sign stands here."""
    found = re.compile(rf"\s*{re.escape(sign)}\s*").match(text, place)
    return None if found is None else found.end()
