"""From a click to the streamed answer: what the page's controls do."""

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from components import chat, composer, strip
from components.answering import Answer, RunningAnswers
from components.conversation import Conversation, Exchange, question_of
from components.examples import Example
from components.settings import Choices
from gemma3_core.engine import DoneEvent, Engine, Gemma3Error, Request, StageEvent, Stats, TokenEvent, Turn

logger = logging.getLogger(__name__)

NO_QUESTION = "There is no question yet. Write one, or choose an example."
ONLY_PICTURE = "Ask something about the picture."
UNEXPECTED = "Something went wrong while answering. Try again; if it stays, the server's log says what it was."
STOPPED_EARLY = "Stopped before the first word. The question is back below."
NOTHING_SAID = "The model ended its answer before the first word. Ask in other words; the question is back below."

_REDRAW_S = 0.05

Update = tuple[Any, Any, Any]  # for the chat, the composer and the conversation's state


@dataclass
class _Draft:
    """What has come of an answer so far."""

    stage: str = "Sending the question"
    pieces: list[str] = field(default_factory=list)
    stats: Stats | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def take(self, event: StageEvent | TokenEvent | DoneEvent) -> None:
        if isinstance(event, StageEvent):
            self.stage = event.text
        elif isinstance(event, TokenEvent):
            self.pieces.append(event.text)
        else:
            self.pieces, self.stats = [event.text], event.stats

    def message(self) -> chat.Message:
        return chat.answering(self.text) if self.text.strip() else chat.working(self.stage)


class Asking:
    """The page's handlers for one engine. Of a visitor nothing stays here but the running answer."""

    def __init__(self, engine: Engine, examples: Sequence[Example]):
        self._engine, self._examples = engine, tuple(examples)
        self._running = RunningAnswers()

    async def send(
        self, message: dict[str, Any], conversation: Conversation, request: gr.Request, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Asks what the composer holds."""
        question = question_of(message.get("text") or "", message.get("files") or ())
        async with aclosing(self._ask(question, conversation, Choices(*values), _window(request))) as updates:
            async for update in updates:
                yield update

    async def ask_example(
        self, conversation: Conversation, request: gr.Request, choice: gr.SelectData, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Asks the question of an example card; what the browser says of it is not used but its number."""
        number = choice.index
        if not isinstance(number, int) or not 0 <= number < len(self._examples):
            yield _nothing_new()
            return
        question = self._examples[number].turn()
        async with aclosing(self._ask(question, conversation, Choices(*values), _window(request))) as updates:
            async for update in updates:
                yield update

    async def retry(
        self, conversation: Conversation, request: gr.Request, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Asks the last question again, with the settings of now."""
        if not conversation.exchanges:
            yield _nothing_new()
            return
        question = conversation.exchanges[-1].question
        earlier = conversation.without_last()
        async with aclosing(self._ask(question, earlier, Choices(*values), _window(request))) as updates:
            async for update in updates:
                yield update

    async def stop(self, request: gr.Request) -> None:
        """Stops the window's answer; what is written stays."""
        self._running.stop(_window(request))

    async def clear(self, request: gr.Request) -> Update:
        """Back to the first sight."""
        await self._running.discard(_window(request))
        return [], composer.emptied(), Conversation()

    def preview(
        self, message: dict[str, Any], pan_and_scan: bool, conversation: Conversation, request: gr.Request
    ) -> str | dict[str, Any]:
        """HTML of the squares that the composer's pictures will become; without any, those of the last answer."""
        if _window(request) in self._running:
            return gr.skip()
        pictures = question_of("", message["files"]).pictures
        answered = not pictures and bool(conversation.exchanges)
        if answered:
            last = conversation.exchanges[-1]
            pictures, pan_and_scan = last.question.pictures, last.pan_and_scan
        try:
            return strip.strip_html(self._engine.preview(pictures, pan_and_scan), pan_and_scan, answered)
        except Gemma3Error as error:
            return strip.problem_html(str(error))

    async def _ask(
        self, question: Turn, conversation: Conversation, choices: Choices, window: str
    ) -> AsyncGenerator[Update, None]:
        if window in self._running:  # a second click while the first is on its way
            yield _nothing_new()
            return
        shown = [*chat.messages(conversation, retry=False), *chat.asked(question)]
        draft = _Draft()
        try:
            if not question.text:
                raise Gemma3Error(ONLY_PICTURE if question.pictures else NO_QUESTION)
            request = _request(question, conversation, choices, window)
            yield [*shown, draft.message()], composer.busy(), gr.skip()
            with Answer(self._engine.stream(request)) as answer, self._running.entry(window, answer):
                async with aclosing(_drawn(answer, draft)) as drawings:
                    async for message in drawings:
                        yield [*shown, message] if message else gr.skip(), composer.waiting(), gr.skip()
            if answer.discarded:
                return
            if not draft.text.strip():
                raise Gemma3Error(STOPPED_EARLY if answer.stopped else NOTHING_SAID)
        except Gemma3Error as error:
            yield [*shown, chat.failed(str(error))], composer.given_back(question), conversation
        except Exception:
            logger.exception("answering failed")
            yield [*shown, chat.failed(UNEXPECTED)], composer.given_back(question), conversation
        else:
            conversation = conversation.add(Exchange(question, choices.pan_and_scan, draft.text, draft.stats))
            yield chat.messages(conversation), composer.ready(), conversation


def _nothing_new() -> Update:
    """The page as it is. (To yield nothing at all would empty it.)"""
    return gr.skip(), gr.skip(), gr.skip()


async def _drawn(answer: Answer, draft: _Draft) -> AsyncGenerator[chat.Message | None, None]:
    """The answer's message each time it has grown, at most every _REDRAW_S; None where nothing is new."""
    last = 0.0
    async for event in answer:
        if event is None:
            yield None
            continue
        draft.take(event)
        if not isinstance(event, TokenEvent) or time.monotonic() - last >= _REDRAW_S:
            last = time.monotonic()
            yield draft.message()


def _request(question: Turn, conversation: Conversation, choices: Choices, window: str) -> Request:
    return Request(
        turns=conversation.turns(question),
        system_prompt=choices.system_prompt or "",
        pan_and_scan=bool(choices.pan_and_scan),
        max_new_tokens=int(choices.max_new_tokens),
        sampling=choices.sampling(),
        visitor=window,
    )


def _window(request: gr.Request) -> str:
    """One browser window (or client session)."""
    return request.session_hash or ""
