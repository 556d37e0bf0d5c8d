"""The handlers behind Inside: they ask the engine what the model saw."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from html import escape
from itertools import islice
from types import SimpleNamespace
from typing import Any

import gradio as gr

from components.bridge import Ask, Call, Calls, Look, window_of
from components.chat.composer import missing
from components.chat.conversation import Conversation, Exchange
from components.inside.answer_card import make_card
from components.inside.attention_view import maps_html, occlusion_html, rests_html
from components.inside.code_view import address, code_html
from components.inside.compare import Asks, Setting, compared, replayed
from components.inside.mask_view import mask_html
from components.inside.panel import (
    CHOOSE_WORD,
    HIDING,
    LOOKED,
    MEAN_HEADS,
    MEAN_LAYERS,
    OPENED,
    RESTS,
    model_updates,
)
from components.inside.word_view import anyway_html, folds_html
from components.shown.fields_view import told
from components.shown.image_strip import strip_html
from components.shown.regions import drawn_box
from components.shown.token_view import alternatives_html, answer_html, prompt_html, word_at, word_of_content
from gemma3_core.engine import (
    Answered,
    AttentionMap,
    Engine,
    Event,
    Gemma3Error,
    ModelInfo,
    ModelRegistry,
    PicturePreview,
    Request,
    StoppedError,
    told_otherwise,
)

logger = logging.getLogger(__name__)

UNEXPECTED = "Something went wrong while looking inside. Try again; if it happens again, see the server's log."
NO_ANSWER = "There is no answer yet. Ask something, and then make its card."
NO_WORD = "Choose a word of the answer first."

# More than the engine's queue holds: each call that waits there keeps a thread, and some threads must be left to draw.
_MOST_THREADS = 96

_MOST_ELSEWHERE = 10_000_000_000
"""Weights times tokens of a prompt whose map of what a word rests on is made at once, where that isn't on CUDA: about
2 s on a CPU, see docs/inside.md."""

_LOOK, _HIDE, _COMPARE, _CARD = "look", "hide", "compare", "card"
_WAITING = {
    _LOOK: "Looking at the answer again",
    _HIDE: "Hiding the region and asking again",
    _CARD: "Making the answer card",
}


@dataclass(frozen=True)
class Selected:
    """The exchange that Inside shows, and the first token of the chosen word of its answer."""

    exchange: Exchange
    token: int | None = None
    index: int = 0
    """The exchange's place in its conversation."""


def values_in(exchange: Exchange) -> list[range]:
    """The tokens of each value of an answer in fields."""
    return [value.tokens for value in exchange.values]


def _hidden_from(exchange: Exchange, token: int) -> tuple[int, str]:
    """The token whose probability says what hiding a region does, and the value to which it belongs: of a value in
    fields it is the one of which the model was least sure, quotes left out."""
    value = next((value for value in exchange.values if token in value.tokens), None)
    if value is None:
        return token, ""
    choices = list(exchange.choices)
    said = [place for place in value.tokens if any(map(str.isalnum, choices[place].text))] or list(value.tokens)
    return min(said, key=lambda place: choices[place].probability), told(value.value)


def _is_alike(engine: Engine, exchange: Exchange) -> bool:
    """Whether the engine reads an answer as it was written: not one in JSON by another server, whose tokens keep to no
    schema here."""
    return exchange.answered.request.json_schema is None or not engine.info.outside


def _first_looked_at(exchange: Exchange, first: float | None) -> int | None:
    """The token with this number; else that of the first value, or of the word that says most."""
    if first is not None and 0 <= first < len(exchange.choices):
        return int(first)
    if values := values_in(exchange):
        return values[0].start
    return word_of_content(list(exchange.choices), exchange.question.text)


def _first_view(exchange: Exchange, info: ModelInfo | None) -> str:
    """What the word rests on, which is the more faithful map, where it takes a few seconds at most: it reads the prompt
    up to 64 times. Where the model looked takes one pass."""
    if info is None or info.borrowed or not exchange.answered.request.num_images:
        return LOOKED
    on_gpu = info.device.startswith("cuda")  # what another server wrote is read on this machine, wherever that may be
    is_soon = on_gpu or info.num_parameters * exchange.stats.prompt_tokens <= _MOST_ELSEWHERE
    return RESTS if is_soon else LOOKED


class InsideHandlers:
    """Inside's handlers. They show only the visitor's own exchanges, and ask the model that gave the answer."""

    def __init__(self, models: ModelRegistry, ask: Ask | None = None, look: Look | None = None):
        """`ask` takes the questions of comparisons, and `look` lets looks begin; without, the models do."""
        self._models = models
        self._look = (lambda *_: nullcontext(SimpleNamespace(outcome=""))) if look is None else look
        self._ask = (lambda _asker, *asked: models.astream(*asked)) if ask is None else ask
        # Not the event loop's own few threads: calls that wait in the engine's queue would block them for everyone.
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="inside")
        self._calls = Calls(self._threads)

    async def open(
        self,
        number: float | None,
        conversation: Conversation,
        request: gr.Request,
        first: float | None = None,
        draws_mask: bool = False,
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """Updates of the parts in OPENED and of the selected exchange: first the panel, then the map of the word with
        the token `first`, or of a word of content, in the view of `_first_view`.

        The mask is drawn when its tab is chosen, and with the panel if it `draws_mask`, since that tab may be in sight.
        """
        index = int(number) if number is not None else -1
        if not 0 <= index < len(conversation.exchanges):
            yield _opened()
            return
        self._calls.give_up(window_of(request))
        exchange = conversation.exchanges[index]
        token = _first_looked_at(exchange, first)
        selected = Selected(exchange, token, index)
        info = self._models.info(exchange.stats.model)
        view = _first_view(exchange, info)
        outside = f'<p class="note">{escape(info.outside)}</p>' if info is not None and info.outside else ""
        with self._calls.entry(window_of(request), _LOOK) as call:
            yield _opened(
                title=f"<h2>Inside answer {index + 1}</h2>{outside}",
                inputs=await self._html(exchange, lambda engine: _inputs(engine, exchange)),
                words=answer_html(exchange.choices, token, values_in(exchange)),
                maps=CHOOSE_WORD,
                rest="",
                mask=await self.mask(selected) if draws_mask else "",
                comparison="",
                code=self._code(exchange, request),
                selected=selected,
                # With the panel itself: an update that came later would undo what the visitor has chosen by then.
                **model_updates(
                    info,
                    self._models.names,
                    view,
                    token is not None,
                    bool(exchange.question.pictures),
                    any(exchange.question.crops),
                ),
            )
            if token is None:
                return
            async with aclosing(self._maps(selected, MEAN_LAYERS, MEAN_HEADS, request, view, call)) as drawings:
                async for maps, rest in drawings:
                    yield _opened(maps=maps, rest=rest)

    async def follow(
        self, selected: Selected | None, conversation: Conversation, request: gr.Request
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """The same updates after the conversation has changed: an answer that is gone is never shown. What took its
        place is, or else Inside closes."""
        if selected is None or any(exchange is selected.exchange for exchange in conversation.exchanges):
            yield _opened()
        elif selected.index < len(conversation.exchanges):
            async with aclosing(self.open(selected.index, conversation, request, draws_mask=True)) as updates:
                async for update in updates:
                    yield update
        else:
            title, _ = await self.close(request)
            yield _opened(title=title, selected=None)

    async def close(self, request: gr.Request) -> tuple[str, None]:
        """Updates of the title, without which the panel is closed, and of the selected exchange; cancels the window's
        calls."""
        self._calls.give_up(window_of(request))
        return "", None

    async def leave(self, request: gr.Request) -> None:
        """Cancels the calls of a window that has been closed."""
        self._calls.give_up(window_of(request))

    async def stop_looking(self, request: gr.Request) -> tuple[str, str]:
        """Cancels the window's look; updates of the maps and the rest."""
        self._calls.give_up(window_of(request), _LOOK)
        return CHOOSE_WORD, ""

    async def stop_card(self, request: gr.Request) -> str:
        """Cancels the making of an answer card; updates the line about it."""
        self._calls.give_up(window_of(request), _CARD)
        return ""

    async def stop_comparing(self, request: gr.Request) -> str:
        """Cancels the window's comparison; updates it."""
        self._calls.give_up(window_of(request), _COMPARE)
        return ""

    async def stop_hiding(self, request: gr.Request) -> str:
        """Cancels the hiding of a region; updates the effect."""
        self._calls.give_up(window_of(request), _HIDE)
        return HIDING

    async def look(
        self,
        number: float | None,
        selected: Selected | None,
        layer: str,
        head: int,
        request: gr.Request,
        view: str = LOOKED,
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """Updates of words, maps, rest, effect, the button to hide and the selected exchange: the word with the token
        `number` in this `view`, where the model looked or what the word rests on.

        Cancels what this window still waits for about another word.
        """
        token = int(number) if number is not None else -1
        if selected is None or not 0 <= token < len(selected.exchange.choices):
            yield tuple(gr.skip() for _ in range(6))
            return
        choices = selected.exchange.choices
        values = values_in(selected.exchange)
        chosen = replace(selected, token=word_at(choices, token, values).start)
        self._calls.give_up(window_of(request), _HIDE)
        with self._calls.entry(window_of(request), _LOOK) as call:
            yield answer_html(choices, token, values), gr.skip(), gr.skip(), HIDING, gr.update(interactive=True), chosen
            async with aclosing(self._maps(chosen, layer, head, request, view, call)) as drawings:
                async for maps, rest in drawings:
                    yield gr.skip(), maps, rest, gr.skip(), gr.skip(), gr.skip()

    async def look_again(
        self, selected: Selected | None, layer: str, head: int, request: gr.Request, view: str = LOOKED
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        """Updates of the maps and the rest: the same word in another layer, head or view."""
        if selected is None or selected.token is None:
            yield gr.skip(), gr.skip()
            return
        async with aclosing(self._maps(selected, layer, head, request, view)) as drawings:
            async for maps, rest in drawings:
                yield maps, rest

    async def hide(self, selected: Selected | None, request: gr.Request, region: str = "") -> AsyncGenerator[Any, None]:
        """What happens to the token's probability, and to the answer, when a region is hidden.

        `region` is a box on a picture as page.js reports it; empty means the region with the most attention.
        """
        if selected is None or selected.token is None:
            yield _problem(NO_WORD)
            return
        answered, (token, value) = selected.exchange.answered, _hidden_from(selected.exchange, selected.token)

        def draw(engine: Engine, call: Call) -> str:
            sizes = engine.inspect(answered.request).picture_sizes
            picture, box = drawn_box(region, sizes) if region else (None, None)
            report = engine.occlude(answered, token, picture, box, stop=call.stop, tell=call.tell)
            preview = next(islice(_previews(engine, answered), report.picture, None))
            return occlusion_html(report, preview, value, _is_alike(engine, selected.exchange))

        async with aclosing(self._called(request, _HIDE, selected.exchange, draw)) as drawings:
            async for effect in drawings:
                yield effect

    async def mask(self, selected: Selected | None) -> Any:
        """The masks of the turn's prompt."""
        if selected is None:
            return gr.skip()
        answered = selected.exchange.answered
        return await self._html(
            selected.exchange,
            lambda engine: mask_html(engine.mask(answered.request), engine.inspect(answered.request)),
        )

    async def compare(
        self, selected: Selected | None, setting: Setting, request: gr.Request, other: str | None = None
    ) -> AsyncGenerator[Any, None]:
        """The question answered twice: pan & scan off and on, full precision and int4, or by an `other` model."""
        if selected is None:
            yield gr.skip()
            return
        model, asked = selected.exchange.stats.model, selected.exchange.answered.request
        both = partial(compared, self._models, model, asked, setting, other)
        async with aclosing(self._drawn(both, request)) as drawings:
            async for html in drawings:
                yield html

    async def replay(self, selected: Selected | None, request: gr.Request) -> AsyncGenerator[Any, None]:
        """The kept answer beside a new one with the same settings and the same seed."""
        if selected is None:
            yield gr.skip()
            return
        again = partial(replayed, self._models, selected.exchange)
        async with aclosing(self._drawn(again, request)) as drawings:
            async for html in drawings:
                yield html

    async def _drawn(
        self, compare: Callable[[Asks], AsyncGenerator[str, None]], request: gr.Request
    ) -> AsyncGenerator[Any, None]:
        """The drawings of a comparison, or why it failed; the window's earlier comparison ends."""
        try:
            with self._calls.entry(window_of(request), _COMPARE) as call:

                def asks(model: str | None, asked: Request) -> AsyncGenerator[Event]:
                    return self._ask(request, model, asked, call.stop)

                async with aclosing(compare(asks)) as drawings:
                    async for html in drawings:
                        if call.stop.is_set():
                            yield gr.skip()
                            return
                        yield html
        except Gemma3Error as error:
            yield _problem(str(error))
        except Exception:
            logger.exception("comparing failed")
            yield _problem(UNEXPECTED)

    async def card(
        self, number: float | None, conversation: Conversation, request: gr.Request
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        """Updates of the line that says how far it is, and of the answer card, HTML that the browser saves as a
        file: for the exchange with this index, or the last one."""
        exchanges, card = conversation.exchanges, ""
        if not exchanges:
            yield missing(NO_ANSWER), ""
            return
        exchange = exchanges[int(number) if number is not None and 0 <= number < len(exchanges) else -1]

        def draw(engine: Engine, call: Call) -> str:
            def attention(tokens: Sequence[int]) -> AttentionMap:
                return engine.attention(exchange.answered, tokens, stop=call.stop)

            nonlocal card
            card = make_card(engine, exchange, _previews(engine, exchange.answered), attention, call.tell)
            return ""

        async with aclosing(self._called(request, _CARD, exchange, draw)) as drawings:
            async for notice in drawings:
                yield notice, card

    def _code(self, exchange: Exchange, request: gr.Request) -> str:
        info = self._models.info(exchange.stats.model)
        if info is None:
            return _problem(f"{exchange.stats.model} is not offered here, so there is no program for this answer.")
        where = address(getattr(request, "headers", {}))
        return code_html(exchange, info, replace(where, asks=self._models.names[0]))

    async def _maps(
        self,
        selected: Selected,
        layer: str,
        head: int,
        request: gr.Request,
        view: str,
        call: Call | None = None,
    ) -> AsyncGenerator[tuple[Any, Any], None]:
        """HTML of the word's map, and of the rest: the likeliest tokens, the prompt's words or the reasons.

        Whoever shows something before the map has entered its `call` by then: what the visitor asks for next is newer.
        """
        answered, choices = selected.exchange.answered, list(selected.exchange.choices)
        assert selected.token is not None
        word = word_at(choices, selected.token, values_in(selected.exchange))
        is_value = word in values_in(selected.exchange)  # where the model was least sure says most about it
        least = min(word, key=lambda place: choices[place].probability) if is_value else word.start
        rest = [alternatives_html(choices[least])]

        def draw_rests(engine: Engine, call: Call) -> str:
            report = engine.why(answered, word, stop=call.stop, tell=call.tell)
            # The probabilities of an answer that must fit a schema are among the allowed tokens alone.
            known = choices if answered.request.json_schema is None else []
            anyway = anyway_html(report, known) if _is_alike(engine, selected.exchange) else ""
            rest[:] = [anyway, *rest, folds_html(report)]
            return rests_html(report, _previews(engine, answered), not engine.info.outside)

        def draw_looked(engine: Engine, call: Call) -> str:
            chosen_head = None if head == MEAN_HEADS else int(head)
            chosen_layer: Any = int(layer) if layer.isdecimal() else layer
            attention = engine.attention(answered, word, chosen_layer, chosen_head, stop=call.stop, tell=call.tell)
            weights = {word.token.column: word.weight for word in attention.tokens if word.token.kind == "text"}
            rest.append(f"<h3>On the words of the prompt</h3>{prompt_html(engine.inspect(answered.request), weights)}")
            return maps_html(attention, _previews(engine, answered), not engine.info.outside)

        draw = draw_rests if view == RESTS else draw_looked
        async with aclosing(self._called(request, _LOOK, selected.exchange, draw, call)) as drawings:
            async for html in drawings:
                yield html, "".join(rest) if isinstance(html, str) else gr.skip()

    async def _called(
        self,
        request: gr.Request,
        kind: str,
        exchange: Exchange,
        draw: Callable[[Engine, Call], str],
        entered: Call | None = None,
    ) -> AsyncGenerator[Any, None]:
        """HTML of what the call waits for, then of what `draw` returns or why it failed. It is a new call, unless the
        caller has `entered` one.

        The last update of a cancelled call changes nothing.
        """

        def waiting(told: str) -> str:
            return (
                f'<p class="note" role="status">{escape(told or _WAITING[kind])} '
                f'<button type="button" data-act="{kind}-stop">Stop</button></p>'
            )

        try:
            async with self._look(request, exchange.answered) as account:

                def counted(engine: Engine, call: Call) -> str:
                    try:
                        return draw(engine, call)
                    except StoppedError:
                        raise
                    except Exception:
                        account.outcome = "failed"
                        raise

                work = partial(self._shown, exchange, counted)
                results = self._calls.results(window_of(request), kind, work, waiting, entered)
                async with aclosing(results) as drawn:
                    async for html in drawn:
                        yield gr.skip() if html is None else html
        except Gemma3Error as error:
            yield _problem(str(error))

    async def _html(self, exchange: Exchange, draw: Callable[[Engine], str]) -> str:
        """Runs `draw` in a thread with the engine that gave the answer; returns its HTML, or why it failed."""
        shown = partial(self._shown, exchange, lambda engine, _call: draw(engine), Call())
        return await asyncio.get_running_loop().run_in_executor(self._threads, shown) or ""

    def _shown(self, exchange: Exchange, draw: Callable[[Engine, Call], str], call: Call) -> str | None:
        """The HTML that `draw` makes, or why it failed; None for a cancelled call."""
        try:
            with self._models.that_answered(exchange.stats.model) as engine:
                return draw(engine, call)
        except StoppedError:
            return None
        except Gemma3Error as error:
            return _problem(str(error))
        except Exception:
            logger.exception("looking inside failed")
            return _problem(UNEXPECTED)


def _opened(**updates: Any) -> tuple[Any, ...]:
    """Updates of the parts in OPENED and of the selected exchange, by their names; the others stay."""
    return tuple(updates.get(name, gr.skip()) for name in (*OPENED, "selected"))


def _inputs(engine: Engine, exchange: Exchange) -> str:
    pictures = exchange.question.pictures
    previews = engine.preview(pictures, exchange.pan_and_scan, exchange.question.crops)
    tiles = strip_html(previews, len(pictures), exchange.pan_and_scan, answered=True)
    prompt = engine.inspect(exchange.answered.request)
    otherwise = told_otherwise(exchange.answered, len(prompt.tokens)) if engine.info.outside else ""
    note = f'<p class="note">{escape(otherwise)}</p>' if otherwise else ""
    return f"{tiles}<h3>The prompt: {len(prompt.tokens):,} tokens</h3>{note}{prompt_html(prompt)}"


def _previews(engine: Engine, answered: Answered) -> Iterator[PicturePreview]:
    """The pictures of an answer's prompt, in order, one at a time."""
    paths = [picture for turn in answered.request.turns for picture in turn.pictures]
    return engine.preview(paths, pan_and_scan=False)


def _problem(reason: str) -> str:
    return f'<p class="failure" role="alert">{escape(reason)}</p>'
