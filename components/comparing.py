"""Compare: the same question answered twice, under two settings and with the same seed."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import zip_longest
from typing import Literal

from components.answering import Answer
from components.stats import figures_line
from components.token_view import alternatives_html, visible
from gemma3_core.engine import DoneEvent, Engine, Request, SamplingSettings, StageEvent, Stats, TokenChoice, TokenEvent

Setting = Literal["pan_and_scan", "int4"]

NAMES = {"pan_and_scan": ("Pan & scan off", "Pan & scan on"), "int4": ("Full precision", "int4")}
_SEED = 0


@dataclass
class _Side:
    """One of the two answers, as far as it has come."""

    name: str
    stage: str = "Waiting"
    text: str = ""
    tokens: tuple[TokenChoice, ...] = ()
    stats: Stats | None = None
    weights_bytes: int | None = None


def both_requests(request: Request, setting: Setting, default: SamplingSettings) -> tuple[Request, Request]:
    """The request without and with the setting; `default` is how it is sampled where it leaves that open.

    Without a seed of its own both get the same.
    """
    sampling = request.sampling or default
    if sampling.seed is None:
        sampling = replace(sampling, seed=_SEED)
    one = replace(request, sampling=sampling, confidence=True)
    if setting == "int4":
        return replace(one, int4=False), replace(one, int4=True)
    # Earlier turns keep what they were asked with.
    *earlier, last = one.turns
    off, on = ((*earlier, replace(last, pan_and_scan=value)) for value in (False, True))
    return replace(one, turns=off, pan_and_scan=False), replace(one, turns=on, pan_and_scan=True)


async def compared(engine: Engine, request: Request, setting: Setting) -> AsyncGenerator[str, None]:
    """HTML of both answers as they come, one after the other. Raises Gemma3Error as the engine does."""
    sides = [_Side(name) for name in NAMES[setting]]
    choice = engine.info.int4
    for side, asked in zip(sides, both_requests(request, setting, engine.info.sampling), strict=True):
        if choice is not None:
            int4 = choice.default if asked.int4 is None else asked.int4
            side.weights_bytes = choice.int4_bytes if int4 else choice.full_bytes
        with Answer(engine.stream(asked)) as answer:
            async for event in answer:
                if isinstance(event, StageEvent):
                    side.stage = event.text
                elif isinstance(event, TokenEvent):
                    side.text += event.text
                    side.tokens += (event.choice,) if event.choice is not None else ()
                elif isinstance(event, DoneEvent):
                    side.text, side.stats = event.text, event.stats
                yield comparison_html(sides)


def comparison_html(sides: Sequence[_Side]) -> str:
    """Both sides; once both are complete, the first token in which they differ is marked, with what each weighed."""
    done = all(side.stats is not None for side in sides)
    place = first_difference(sides[0].tokens, sides[1].tokens) if done else None
    columns = "".join(_column(side, place) for side in sides)
    verdict = ""
    if done:
        same = "Both answers are the same, token by token."
        verdict = same if place is None else f"The answers part at token {place + 1}."
    return f'<div class="compared">{columns}</div><p class="note" role="status">{verdict}</p>'


def first_difference(one: Sequence[TokenChoice], other: Sequence[TokenChoice]) -> int | None:
    """The number of the first token in which two answers differ; None where they are the same."""
    pairs = zip_longest((token.token_id for token in one), (token.token_id for token in other))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), None)


def _column(side: _Side, place: int | None) -> str:
    if side.stats is None:
        body = f"<p>{escape(side.text)}</p>" if side.text else f'<p class="note">{escape(side.stage)}</p>'
        return f"<section><h3>{side.name}</h3>{body}</section>"
    words = "".join(
        f"<mark>{visible(token.text)}</mark>" if number == place else visible(token.text)
        for number, token in enumerate(side.tokens)
    )
    weighed = alternatives_html(side.tokens[place]) if place is not None and place < len(side.tokens) else ""
    memory = "" if side.weights_bytes is None else f" · weights {side.weights_bytes / 1e6:,.1f} MB"
    figures = escape(figures_line(side.stats) + memory)
    return f'<section><h3>{side.name}</h3><p>{words}</p><p class="note">{figures}</p>{weighed}</section>'
