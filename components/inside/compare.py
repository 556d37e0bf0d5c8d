"""Compare: the same question answered twice with the same seed, under two settings or by two models."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate, zip_longest
from typing import Literal

from components.chat.conversation import Exchange
from components.chat.running import Pace
from components.shown.stats import figures_line
from components.shown.token_view import alternatives_html, visible
from gemma3_core.engine import (
    DoneEvent,
    Event,
    Gemma3Error,
    ModelInfo,
    ModelRegistry,
    Request,
    SamplingSettings,
    StageEvent,
    Stats,
    TokenChoice,
    TokenEvent,
)

Setting = Literal["pan_and_scan", "int4", "model"]
Asks = Callable[[str | None, Request], AsyncGenerator[Event]]
"""Asks a model, by its name."""

NAMES = {
    "pan_and_scan": ("Pan & scan off", "Pan & scan on"),
    "crops": ("Without the crops", "With the crops"),
    "int4": ("Full precision", "int4"),
}
_SEED = 0
_STOP = '<button type="button" data-act="compare-stop">Stop</button>'


@dataclass
class _Side:
    """One of the two answers so far."""

    name: str
    stage: str = "Waiting"
    text: str = ""
    tokens: tuple[TokenChoice, ...] = ()
    stats: Stats | None = None
    weights_bytes: int | None = None
    vocabulary: str = ""

    def end(self, done: DoneEvent, info: ModelInfo) -> None:
        """Takes the complete answer; `info` describes its model."""
        self.text, self.stats, self.vocabulary = done.text, done.stats, info.vocabulary
        if info.int4 is not None:
            int4 = done.stats.quantization == "int4"
            self.weights_bytes = info.int4.int4_bytes if int4 else info.int4.full_bytes


def both_requests(request: Request, setting: Setting, default: SamplingSettings) -> tuple[Request, Request]:
    """The request without and with the setting; `default` is the sampling where the request leaves it open.

    A question with crops of its own is asked without them, and as it was: pan & scan would replace them, so neither
    answer would be the one that is compared. Without a seed of its own, both get the same one. Neither reuses a KV
    cache, so that their times are comparable.
    """
    sampling = request.settings(default)
    if sampling.seed is None:
        sampling = replace(sampling, seed=_SEED)
    one = replace(request, sampling=sampling, confidence=True, reuse=False)
    if setting == "model":
        one = replace(one, int4_or_default=True)
        return one, one
    if setting == "int4":
        return replace(one, int4=False), replace(one, int4=True)
    # Earlier turns keep the setting they were asked with.
    *earlier, last = one.turns
    off, on = (
        replace(one, turns=(*earlier, replace(last, pan_and_scan=value, crops=())), pan_and_scan=value)
        for value in (False, True)
    )
    return off, one if _has_crops(one) else on


def _has_crops(request: Request) -> bool:
    """Whether the question has crops that somebody chose."""
    return any(request.turns[-1].crops)


async def compared(
    models: ModelRegistry,
    model: str,
    request: Request,
    setting: Setting,
    other: str | None = None,
    ask: Asks | None = None,
) -> AsyncGenerator[str, None]:
    """Yields HTML of both answers, which run one after the other; `model` gave the answer that is compared.

    With two settings, `model` answers both; otherwise the second answer is by `other`. `ask` takes the questions;
    without, the models do. Raises Gemma3Error as the engine
    does.
    """
    info = _known(models, model)
    if setting == "model" and other in (None, model):
        raise Gemma3Error("Choose another model to compare with.")
    asked = (model, other if setting == "model" else model)
    named = "crops" if setting == "pan_and_scan" and _has_crops(request) else setting
    sides = [_Side(name or "") for name in NAMES.get(named, asked)]
    for name, side, wanted in zip(asked, sides, both_requests(request, setting, info.sampling), strict=True):
        async with aclosing(_answering(models, name, wanted, side, ask)) as drawings:
            async for _ in drawings:
                yield comparison_html(sides)


async def replayed(models: ModelRegistry, exchange: Exchange, ask: Asks | None = None) -> AsyncGenerator[str, None]:
    """Yields HTML of a kept answer and of a new one to the same request with the same seed. Takes `ask` and raises
    Gemma3Error as `compared` does."""
    stats, request = exchange.stats, exchange.answered.request
    info = _known(models, stats.model)
    sampling = request.settings(info.sampling)
    if stats.seed is not None:
        sampling = replace(sampling, seed=stats.seed)
    int4 = stats.quantization == "int4"
    asked = replace(request, sampling=sampling, int4=int4, int4_or_default=False, confidence=True, reuse=False)
    kept, again = _Side("This answer", tokens=tuple(exchange.choices)), _Side("Replayed")
    kept.end(exchange.answered.done, info)
    changed = bool(stats.revision) and stats.revision != info.revision
    note = '<p class="note">The checkpoint is another one than that of this answer.</p>' if changed else ""
    async with aclosing(_answering(models, stats.model, asked, again, ask)) as drawings:
        async for _ in drawings:
            yield comparison_html((kept, again)) + note


def _known(models: ModelRegistry, name: str) -> ModelInfo:
    """The model that gave an answer. Raises Gemma3Error where it isn't offered or has never been loaded."""
    info = models.info(name)
    if info is None:
        raise Gemma3Error(f"{name}, which gave this answer, is not loaded here. Ask it first, or ask another model.")
    return info


async def _answering(
    models: ModelRegistry, name: str | None, request: Request, side: _Side, ask: Asks | None
) -> AsyncGenerator[None, None]:
    """Asks for one side's answer; yields when it is to be drawn again."""
    pace = Pace()
    async with aclosing((ask or models.astream)(name, request)) as answer:
        async for event in answer:
            if isinstance(event, StageEvent):
                side.stage = event.text
            elif isinstance(event, TokenEvent):
                side.text += event.text
                side.tokens += (event.choice,) if event.choice is not None else ()
            elif (info := models.info(name)) is not None:
                side.end(event, info)
            if pace.due() or isinstance(event, DoneEvent):
                yield


def comparison_html(sides: Sequence[_Side]) -> str:
    """Both sides. Once both are complete, marks the first token that differs and shows its alternatives.

    For models with different vocabularies, marks the tokens at which the texts diverge.
    """
    one, other = sides
    places: tuple[int | None, int | None] = (None, None)
    verdict = _STOP
    complete = one.stats is not None and other.stats is not None
    if complete and one.vocabulary == other.vocabulary:
        place = first_difference(one.tokens, other.tokens)
        places = (place, place)
        same = "Both answers are the same, token by token."
        verdict = same if place is None else f"The answers part at token {place + 1}."
    elif complete:
        places = parting(one.tokens, other.tokens)
        same = "Both answers are the same text."
        verdict = same if places == (None, None) else "The texts part at the marked words."
        verdict += " The two models have different vocabularies, so their tokens can't be compared one by one."
    columns = "".join(_column(side, place) for side, place in zip(sides, places, strict=True))
    return f'<div class="compared">{columns}</div><p class="note" role="status">{verdict}</p>'


def first_difference(one: Sequence[TokenChoice], other: Sequence[TokenChoice]) -> int | None:
    """The number of the first token in which two answers differ; None if they are equal."""
    pairs = zip_longest((token.token_id for token in one), (token.token_id for token in other))
    return next((number for number, (a, b) in enumerate(pairs) if a != b), None)


def parting(one: Sequence[TokenChoice], other: Sequence[TokenChoice]) -> tuple[int | None, int | None]:
    """The numbers of the tokens at which two answers' texts diverge; None for both if they are equal, and for a text
    that ends there."""
    texts = ["".join(token.text for token in tokens) for tokens in (one, other)]
    if texts[0] == texts[1]:
        return None, None
    pairs = enumerate(zip_longest(*texts))
    place = next(number for number, (a, b) in pairs if a != b)
    return _token_at(one, place), _token_at(other, place)


def _token_at(tokens: Sequence[TokenChoice], place: int) -> int | None:
    """The number of the token that writes character number `place`; None if the text ends before it."""
    ends = accumulate(len(token.text) for token in tokens)
    return next((number for number, end in enumerate(ends) if place < end), None)


def _column(side: _Side, place: int | None) -> str:
    if side.stats is None:
        body = f"<p>{escape(side.text)}</p>" if side.text else f'<p class="note">{escape(side.stage)}</p>'
        return f"<section><h3>{escape(side.name)}</h3>{body}</section>"
    words = "".join(
        f"<mark>{visible(token.text)}</mark>" if number == place else visible(token.text)
        for number, token in enumerate(side.tokens)
    )
    weighed = alternatives_html(side.tokens[place]) if place is not None and place < len(side.tokens) else ""
    memory = "" if side.weights_bytes is None else f" · weights {side.weights_bytes / 1e6:,.1f} MB"
    figures = escape(figures_line(side.stats) + memory)
    return f'<section><h3>{escape(side.name)}</h3><p>{words}</p><p class="note">{figures}</p>{weighed}</section>'
