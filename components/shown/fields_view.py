"""An answer in fields: each value, and how sure the model was of it."""

import json
from collections.abc import Sequence
from html import escape
from typing import Any

from components.shown.token_view import percent
from gemma3_core.engine import FieldValue

UNSURE = 0.7
"""Values less probable than this are marked."""


def fields_html(values: Sequence[FieldValue], answer: str, number: int) -> str:
    """HTML of a table of an answer's values; a click on one opens Inside for it. `number` is the answer's, from 0;
    `answer` is its JSON, which the Copy button takes."""
    rows = "".join(_row(value, number) for value in values)
    return (
        f'<table class="fields" translate="no"><tbody>{rows}</tbody></table>'
        f'<pre class="fields-json" hidden>{escape(answer)}</pre>'
    )


def _row(value: FieldValue, number: int) -> str:
    unsure, text = " unsure" if value.probability < UNSURE else "", escape(told(value.value))
    return (
        f'<tr><th scope="row">{escape(value.name)}</th>'
        f'<td><button type="button" data-act="inside-open" data-number="{number}" data-token="{value.tokens.start}" '
        f'aria-label="What {escape(value.name)} rests on: {text}">{text}'
        f'</button></td><td class="sure{unsure}"><span class="bar" style="width:{100 * value.probability:.1f}%"></span>'
        f"</td><td>{percent(value.probability)}</td></tr>"
    )


def told(value: Any) -> str:
    """A field's value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
