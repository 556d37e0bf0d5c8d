"""From a click in Inside to what it shows: the handlers that ask the engine what the model saw."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from html import escape
from itertools import islice
from typing import Any

import gradio as gr

from components.bridge import Call, Calls
from components.chat.conversation import Conversation, Exchange
from components.inside.attention_view import maps_html, occlusion_html
from components.inside.compare import Setting, compared
from components.inside.mask_view import mask_html
from components.inside.panel import CHOOSE_WORD, HIDING, MEAN_HEADS, fitted
from components.shown.image_strip import strip_html
from components.shown.token_view import alternatives_html, answer_html, prompt_html
from gemma3_core.engine import Answered, Box, Engine, Gemma3Error, ModelRegistry, PicturePreview, StoppedError

logger = logging.getLogger(__name__)

UNEXPECTED = "Something went wrong while looking. Try again; if it stays, the server's log says what it was."
NO_WORD = "Choose a word of the answer first."

# More than the engine's queue holds, so that who waits there is told so, and beside them some that only draw.
_MOST_THREADS = 96

_LOOK, _HIDE, _COMPARE = "look", "hide", "compare"
_WAITING = {_LOOK: "Looking at the answer again", _HIDE: "Hiding the region and asking again"}


@dataclass(frozen=True)
class Selected:
    """The turn that Inside shows, and the token of its answer that was clicked."""

    exchange: Exchange
    token: int | None = None


class InsideHandlers:
    """Inside's handlers; what they show belongs to the visitor's own turns, and comes from the model that answered."""

    def __init__(self, models: ModelRegistry):
        self._models = models
        # Not the event loop's own few threads: calls that wait in the engine's queue would hold them from everyone.
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="inside")
        self._calls = Calls(self._threads)

    async def open(self, number: float | None, conversation: Conversation, request: gr.Request) -> tuple[Any, ...]:
        """For panel, title, inputs, words, maps, effect, mask, comparison and the selected turn."""
        index = int(number) if number is not None else -1
        if not 0 <= index < len(conversation.exchanges):
            return tuple(gr.skip() for _ in range(9))
        self._calls.give_up(_window(request))
        exchange = conversation.exchanges[index]
        title = f"<h2>Inside answer {index + 1}</h2>"
        inputs = await self._html(exchange, lambda engine: _inputs(engine, exchange))
        words = answer_html(exchange.choices)
        return gr.update(visible=True), title, inputs, words, CHOOSE_WORD, HIDING, "", "", Selected(exchange)

    def fit(self, selected: Selected | None) -> tuple[Any, ...]:
        """For what depends on the model that gave the answer (see inside.fitting)."""
        info = None if selected is None else self._models.info(selected.exchange.stats.model)
        return tuple(gr.skip() for _ in range(7)) if info is None else fitted(info, self._models.names)

    async def close(self, request: gr.Request) -> tuple[Any, None]:
        """For the panel and the selected turn. What was being worked out for it is given up."""
        self._calls.give_up(_window(request))
        return gr.update(visible=False), None

    async def leave(self, request: gr.Request) -> None:
        """Gives up what a window was waiting for that has been closed."""
        self._calls.give_up(_window(request))

    async def stop_looking(self, request: gr.Request) -> str:
        """For the maps."""
        self._calls.give_up(_window(request), _LOOK)
        return CHOOSE_WORD

    async def stop_hiding(self, request: gr.Request) -> str:
        """For the effect."""
        self._calls.give_up(_window(request), _HIDE)
        return HIDING

    async def look(
        self, number: float | None, selected: Selected | None, layer: str, head: int, request: gr.Request
    ) -> AsyncGenerator[tuple[Any, Any, Any, Any], None]:
        """For words, maps, effect and the selected turn: where the model looked for the token of this number.

        Gives up what this window is still waiting for about another word.
        """
        nothing = gr.skip(), gr.skip(), gr.skip(), gr.skip()
        token = int(number) if number is not None else -1
        if selected is None or not 0 <= token < len(selected.exchange.choices):
            yield nothing
            return
        chosen = Selected(selected.exchange, token)
        self._calls.give_up(_window(request), _LOOK, _HIDE)
        yield answer_html(chosen.exchange.choices, token), gr.skip(), HIDING, chosen
        async with aclosing(self._maps(chosen, layer, head, _window(request))) as drawings:
            async for maps in drawings:
                yield gr.skip(), maps, gr.skip(), gr.skip()

    async def look_again(
        self, selected: Selected | None, layer: str, head: int, request: gr.Request
    ) -> AsyncGenerator[Any, None]:
        """The maps of the same token, from another layer or head."""
        if selected is None or selected.token is None:
            yield gr.skip()
            return
        async with aclosing(self._maps(selected, layer, head, _window(request))) as drawings:
            async for maps in drawings:
                yield maps

    async def hide(self, selected: Selected | None, request: gr.Request, region: str = "") -> AsyncGenerator[Any, None]:
        """What becomes of the token's probability, and of the answer, without a region.

        `region` is what page.js says of a box drawn on a picture; empty is the hottest region.
        """
        if selected is None or selected.token is None:
            yield _problem(NO_WORD)
            return
        answered, token = selected.exchange.answered, selected.token

        def draw(engine: Engine, call: Call) -> str:
            sizes = [
                (tile.box.right, tile.box.bottom)
                for tile in engine.inspect(answered.request).tiles
                if tile.crop is None
            ]
            picture, box = drawn_box(region, sizes) if region else (None, None)
            report = engine.occlude(answered, token, picture, box, stop=call.stop, tell=call.tell)
            preview = next(islice(_previews(engine, answered), report.picture, None))
            return occlusion_html(report, preview)

        async with aclosing(self._called(_window(request), _HIDE, selected.exchange, draw)) as drawings:
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
        """The question answered without and with pan & scan, in full precision and in int4, or by an `other` model."""
        if selected is None:
            yield gr.skip()
            return
        try:
            model, asked = selected.exchange.stats.model, selected.exchange.answered.request
            with self._calls.entry(_window(request), _COMPARE) as call:
                async with aclosing(compared(self._models, model, asked, setting, other)) as drawings:
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

    async def _maps(self, selected: Selected, layer: str, head: int, window: str) -> AsyncGenerator[Any, None]:
        answered, token = selected.exchange.answered, selected.token
        assert token is not None
        choice = alternatives_html(selected.exchange.choices[token])

        def draw(engine: Engine, call: Call) -> str:
            chosen_head = None if head == MEAN_HEADS else int(head)
            chosen_layer: Any = int(layer) if layer.isdecimal() else layer
            attention = engine.attention(answered, [token], chosen_layer, chosen_head, stop=call.stop, tell=call.tell)
            weights = {word.token.column: word.weight for word in attention.tokens if word.token.kind == "text"}
            words = prompt_html(engine.inspect(answered.request), weights)
            return f"{maps_html(attention, _previews(engine, answered))}<h3>On the words of the prompt</h3>{words}"

        async with aclosing(self._called(window, _LOOK, selected.exchange, draw)) as drawings:
            async for html in drawings:
                yield choice + html if isinstance(html, str) else html

    async def _called(
        self, window: str, kind: str, exchange: Exchange, draw: Callable[[Engine, Call], str]
    ) -> AsyncGenerator[Any, None]:
        """HTML of what is waited for, then of what `draw` gives or why it can't be had. Given up, it changes
        nothing more: Gradio repeats a generator's last update when it ends, so that one is to leave all as it is."""

        def waiting(told: str) -> str:
            return (
                f'<p class="note" role="status">{escape(told or _WAITING[kind])} '
                f'<button type="button" data-act="{kind}-stop">Stop</button></p>'
            )

        async with aclosing(
            self._calls.results(window, kind, partial(self._shown, exchange, draw), waiting)
        ) as drawings:
            async for html in drawings:
                yield gr.skip() if html is None else html

    async def _html(self, exchange: Exchange, draw: Callable[[Engine], str]) -> str:
        """What `draw` makes of the engine that gave the answer, in a thread; where it can't be had, why."""
        shown = partial(self._shown, exchange, lambda engine, _call: draw(engine), Call())
        return await asyncio.get_running_loop().run_in_executor(self._threads, shown) or ""

    def _shown(self, exchange: Exchange, draw: Callable[[Engine, Call], str], call: Call) -> str | None:
        """What `draw` makes; where it can't be had, why; nothing where nobody wants it any more."""
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


def _inputs(engine: Engine, exchange: Exchange) -> str:
    pictures = exchange.question.pictures
    previews = engine.preview(pictures, exchange.pan_and_scan)
    tiles = strip_html(previews, len(pictures), exchange.pan_and_scan, answered=True)
    prompt = engine.inspect(exchange.answered.request)
    return f"{tiles}<h3>The prompt: {len(prompt.tokens):,} tokens</h3>{prompt_html(prompt)}"


def _previews(engine: Engine, answered: Answered) -> Iterator[PicturePreview]:
    """The pictures of an answer, in the order of the conversation, one after the other."""
    paths = [picture for turn in answered.request.turns for picture in turn.pictures]
    return engine.preview(paths, pan_and_scan=False)


def _window(request: gr.Request) -> str:
    return request.session_hash or ""


def drawn_box(region: str, sizes: Sequence[tuple[int, int]]) -> tuple[int, Box]:
    """The picture's number and the box in its pixels of "number left top right bottom", the last four in shares of it.

    `sizes` are the pictures' widths and heights. Raises Gemma3Error for anything else: it comes from a browser.
    """
    try:
        number, *shares = region.split()
        left, top, right, bottom = (min(1.0, max(0.0, _finite(share))) for share in shares)
        width, height = dict(enumerate(sizes))[int(number)]
    except (ValueError, KeyError):
        raise Gemma3Error("This is no region of a picture. Draw a box on one of the pictures.") from None
    box = Box(int(left * width), int(top * height), int(right * width), int(bottom * height))
    if box.right - box.left < 2 or box.bottom - box.top < 2:
        raise Gemma3Error("The box is too small. Draw a larger one.")
    return int(number), box


def _finite(text: str) -> float:
    """Raises ValueError for what is no number, nan and inf among it."""
    if not math.isfinite(number := float(text)):
        raise ValueError(text)
    return number


def _problem(reason: str) -> str:
    return f'<p class="failure" role="alert">{escape(reason)}</p>'
