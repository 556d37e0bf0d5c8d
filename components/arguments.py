"""The arguments of `/ask` as programs write them -> what its components take."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from gemma3_core.engine import Box, Crops, Gemma3Error

_FILE = {"meta": {"_type": "gradio.FileData"}}
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_SHOWN = 30  # characters of a wrong value in a message
_LONGEST_JSON = 100_000  # characters; all boxes that a question may have are far shorter


def read_arguments(given: Sequence[Any]) -> list[Any]:
    """Arguments by position; those left out at the end are None.

    A picture is an upload, an address, a data URL or base64, alone or in a list. Numbers and switches may be written as
    text. None and empty text stand for an argument's default. Raises Gemma3Error.
    """
    if len(given) > len(_READERS):
        raise Gemma3Error(
            f"At most {len(_READERS)} arguments are taken ({', '.join(_READERS)}), got {len(given)}. Send fewer."
        )
    values = [*given, *[None] * (len(_READERS) - len(given))]
    return [read(name, value) for (name, read), value in zip(_READERS.items(), values, strict=True)]


def _pictures(name: str, value: Any) -> list[dict[str, Any]] | None:
    if value is None or value == "":
        return None
    return [_picture(name, one) for one in (value if isinstance(value, list) else [value])]


def _picture(name: str, value: Any) -> dict[str, Any]:
    """A file as Gradio describes it, whose `path` is an upload's, an address or a data URL."""
    if isinstance(value, dict) and isinstance(value.get("image_url"), str | dict):  # OpenAI's spelling
        value = value["image_url"]
    if isinstance(value, dict) and isinstance(value.get("path") or value.get("url"), str):
        address = value.get("path") or value["url"]
        return {**value, "path": address} if value.get("path") else {"path": address, **_FILE}
    if not isinstance(value, str) or not value.strip():
        raise Gemma3Error(f"“{name}” must be pictures (uploads, addresses, data URLs or base64), got {_short(value)}.")
    is_address = value.startswith(("http://", "https://", "data:"))
    return {"path": value if is_address else f"data:;base64,{value}", **_FILE}


def _text(name: str, value: Any) -> str | None:
    if isinstance(value, str | None):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise Gemma3Error(f"“{name}” must be text, got {_short(value)}.")


def _number(name: str, value: Any) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise Gemma3Error(f"“{name}” must be a number, got {_short(value)}.")
    return number


def _whole(name: str, value: Any) -> int | None:
    number = _number(name, value)
    if number is None:
        return None
    if number != round(number):
        raise Gemma3Error(f"“{name}” must be a whole number, got {_short(value)}.")
    return int(number)


def _switch(name: str, value: Any) -> bool | None:
    if value is None or value == "":
        return None
    word = str(int(value) if isinstance(value, bool) else value).strip().lower()
    if word not in _WORDS:
        raise Gemma3Error(f"“{name}” must be true or false, got {_short(value)}.")
    return _WORDS[word]


def _schema(name: str, value: Any) -> str | None:
    """A JSON schema as text, also where it is given as an object."""
    return json.dumps(value) if isinstance(value, dict) else _text(name, value)


def _json(name: str, value: Any) -> Any:
    if isinstance(value, str) and len(value) > _LONGEST_JSON:
        raise Gemma3Error(f"“{name}” may have at most {_LONGEST_JSON:,} characters, got {len(value):,}. Shorten it.")
    if not isinstance(value, str) or value.strip() in ("", "auto"):
        return None if value == "" else value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise Gemma3Error(
            f"“{name}” is neither “auto” nor JSON: {_short(value)}. Write boxes as [[[left, top, right, bottom]]]."
        ) from None


def crops_of(value: Any, pictures: int) -> tuple[Crops, ...]:
    """A question's crops as programs give them: None, "auto" for an even tiling of each picture, or a list with one
    entry per picture: None, "auto", or boxes [left, top, right, bottom].

    Raises Gemma3Error. The engine refuses boxes outside a picture.
    """
    if value is None:
        return ()
    if value == "auto":
        return tuple("auto" for _ in range(pictures))
    if not isinstance(value, list) or len(value) != pictures:
        got = f"{len(value)} for {pictures}" if isinstance(value, list) else _short(value)
        raise Gemma3Error(f"“crops” must be “auto” or a list with one entry per picture, got {got}.")
    return tuple(_crops(one) for one in value)


def _crops(value: Any) -> Crops:
    if value is None or value == "auto":
        return None if value is None else "auto"
    if not isinstance(value, list) or not all(isinstance(box, list) and len(box) == 4 for box in value):
        raise Gemma3Error("A picture's crops must be a list of boxes [left, top, right, bottom] in its pixels.")
    return tuple(Box(*box) for box in value)


def _short(value: Any) -> str:
    """A wrong value for a message: its beginning, or what it is, in JSON's words."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    text = json.dumps(value[: _SHOWN + 1] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "images": _pictures,
    "question": _text,
    "system_prompt": _text,
    "pan_and_scan": _switch,
    "int4": _switch,
    "max_new_tokens": _whole,
    "temperature": _number,
    "seed": _whole,
    "crops": _json,
    "json_schema": _schema,
}
"""By the arguments' names, in their order."""
