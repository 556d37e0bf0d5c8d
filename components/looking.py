"""From a click in Inside to what it shows: the handlers that ask the engine what the model saw."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from PIL.Image import Image

from components.attention_view import maps_html, occlusion_html
from components.comparing import Setting, compared
from components.conversation import Conversation, Exchange
from components.inside import CHOOSE_WORD, HIDING, MEAN_HEADS
from components.mask_view import mask_html
from components.strip import strip_html
from components.token_view import alternatives_html, answer_html, prompt_html
from gemma3_core.engine import Answered, Box, Engine, Gemma3Error

logger = logging.getLogger(__name__)

UNEXPECTED = "Something went wrong while looking. Try again; if it stays, the server's log says what it was."
STOPPED = "This answer was stopped, so it can't be looked at. Ask again, and let the answer end."
NO_WORD = "Choose a word of the answer first."

_MOST_THREADS = 16


@dataclass(frozen=True)
class Selected:
    """The turn that Inside shows, and the token of its answer that was clicked."""

    exchange: Exchange
    token: int | None = None


class Looking:
    """Inside's handlers for one engine; what they show belongs to the visitor's own turns."""

    def __init__(self, engine: Engine):
        self._engine = engine
        # Not the event loop's own few threads: calls that wait in the engine's queue would hold them from everyone.
        self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="inside")

    async def open(self, number: float | None, conversation: Conversation) -> tuple[Any, ...]:
        """For panel, title, inputs, words, maps, effect, mask, comparison and the selected turn."""
        index = int(number) if number is not None else -1
        if not 0 <= index < len(conversation.exchanges):
            return tuple(gr.skip() for _ in range(9))
        exchange = conversation.exchanges[index]
        title = f"<h2>Inside answer {index + 1}</h2>"
        inputs = await self._html(lambda: self._inputs(exchange))
        words = answer_html(exchange.choices) if exchange.answered else _problem(STOPPED)
        hint = CHOOSE_WORD if exchange.answered else ""
        return gr.update(visible=True), title, inputs, words, hint, HIDING, "", "", Selected(exchange)

    def close(self) -> tuple[Any, None]:
        """For the panel and the selected turn."""
        return gr.update(visible=False), None

    async def look(
        self, number: float | None, selected: Selected | None, layer: str, head: int
    ) -> tuple[Any, Any, Any, Any]:
        """For words, maps, effect and the selected turn: where the model looked for the token of this number."""
        token = int(number) if number is not None else -1
        if selected is None or not 0 <= token < len(selected.exchange.choices):
            return gr.skip(), gr.skip(), gr.skip(), gr.skip()
        chosen = Selected(selected.exchange, token)
        return answer_html(chosen.exchange.choices, token), await self._maps(chosen, layer, head), HIDING, chosen

    async def look_again(self, selected: Selected | None, layer: str, head: int) -> Any:
        """The maps of the same token, from another layer or head."""
        if selected is None or selected.token is None:
            return gr.skip()
        return await self._maps(selected, layer, head)

    async def hide(self, selected: Selected | None, region: str = "") -> str:
        """What becomes of the token's probability, and of the answer, without a region.

        `region` is what page.js says of a box drawn on a picture; empty is the hottest region.
        """
        if selected is None or selected.token is None or selected.exchange.answered is None:
            return _problem(NO_WORD)
        answered, token = selected.exchange.answered, selected.token

        def draw() -> str:
            pictures = self._pictures(answered)
            picture, box = drawn_box(region, pictures) if region else (None, None)
            report = self._engine.occlude(answered, token, picture, box)
            return occlusion_html(report, pictures[report.picture])

        return await self._html(draw)

    async def mask(self, selected: Selected | None) -> Any:
        """The masks of the turn's prompt."""
        if selected is None:
            return gr.skip()
        answered = selected.exchange.answered
        if answered is None:
            return _problem(STOPPED)
        return await self._html(
            lambda: mask_html(self._engine.mask(answered.request), self._engine.inspect(answered.request))
        )

    async def compare(self, selected: Selected | None, setting: Setting) -> AsyncGenerator[str, None]:
        """The question answered without and with pan & scan, or in full precision and in int4."""
        if selected is None or selected.exchange.answered is None:
            yield _problem(STOPPED)
            return
        try:
            async with aclosing(compared(self._engine, selected.exchange.answered.request, setting)) as drawings:
                async for html in drawings:
                    yield html
        except Gemma3Error as error:
            yield _problem(str(error))
        except Exception:
            logger.exception("comparing failed")
            yield _problem(UNEXPECTED)

    async def _maps(self, selected: Selected, layer: str, head: int) -> str:
        answered, token = selected.exchange.answered, selected.token
        if answered is None or token is None:
            return _problem(STOPPED)

        def draw() -> str:
            chosen_head = None if head == MEAN_HEADS else int(head)
            chosen_layer: Any = int(layer) if layer.isdecimal() else layer
            attention = self._engine.attention(answered, [token], chosen_layer, chosen_head)
            weights = {word.token.column: word.weight for word in attention.tokens if word.token.kind == "text"}
            words = prompt_html(self._engine.inspect(answered.request), weights)
            return f"{maps_html(attention, self._pictures(answered))}<h3>On the words of the prompt</h3>{words}"

        return alternatives_html(selected.exchange.choices[token]) + await self._html(draw)

    def _inputs(self, exchange: Exchange) -> str:
        previews = self._engine.preview(exchange.question.pictures, exchange.pan_and_scan)
        squares = strip_html(previews, exchange.pan_and_scan, answered=True)
        if exchange.answered is None:
            return squares
        prompt = self._engine.inspect(exchange.answered.request)
        return f"{squares}<h3>The prompt: {len(prompt.tokens):,} tokens</h3>{prompt_html(prompt)}"

    def _pictures(self, answered: Answered) -> list[Image]:
        """The originals, in the order of the conversation."""
        paths = [picture for turn in answered.request.turns for picture in turn.pictures]
        return [preview.original for preview in self._engine.preview(paths, pan_and_scan=False)]

    async def _html(self, draw: Callable[[], str]) -> str:
        """What `draw` gives, made in a thread; where it can't be had, why."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, draw)
        except Gemma3Error as error:
            return _problem(str(error))
        except Exception:
            logger.exception("looking inside failed")
            return _problem(UNEXPECTED)


def drawn_box(region: str, pictures: Sequence[Image]) -> tuple[int, Box]:
    """The picture's number and the box in its pixels of "number left top right bottom", the last four in shares of it.

    Raises Gemma3Error for anything else: it comes from a browser.
    """
    try:
        number, *shares = region.split()
        left, top, right, bottom = (min(1.0, max(0.0, _finite(share))) for share in shares)
        picture = dict(enumerate(pictures))[int(number)]
    except (ValueError, KeyError):
        raise Gemma3Error("This is no region of a picture. Draw a box on one of the pictures.") from None
    box = Box(
        int(left * picture.width), int(top * picture.height), int(right * picture.width), int(bottom * picture.height)
    )
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
