"""From a click to the streamed answer: what the page's controls do."""

import itertools
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from components.chat import composer
from components.chat import panel as chat
from components.chat.conversation import NOTHING, Conversation, Exchange, joined, question_of
from components.chat.running import Pace, RunningAnswers
from components.examples import Example
from components.settings import Choices, chosen_example, with_brought
from components.shown import image_strip as strip
from components.shown.token_view import token_count_html
from gemma3_core.engine import (
    Answered,
    ContextLengthError,
    DoneEvent,
    Event,
    Gemma3Error,
    ModelInfo,
    ModelRegistry,
    Request,
    StageEvent,
    TokenChoice,
    TokenChoices,
    TokenEvent,
    Turn,
)

logger = logging.getLogger(__name__)

NO_QUESTION = "There is no question yet. Write one, or choose an example."
ONLY_PICTURE = "Ask something about the picture."
UNEXPECTED = "Something went wrong while answering. Try again; if it happens again, the server's log says why."
STOPPED_EARLY = "Stopped before the first word."
NOTHING_SAID = "The model ended its answer before the first word. Rephrase your question."
QUESTION_BACK = "The question is back below."
ANSWER_STAYS = "The earlier answer stays."

Update = tuple[Any, Any, Any, Any]  # for the chat, the composer, the conversation's state and the notice


@dataclass
class _Draft:
    """What has arrived of an answer so far."""

    stage: str = "Sending the question"
    pieces: list[str] = field(default_factory=list)
    choices: list[TokenChoice] = field(default_factory=list)
    done: DoneEvent | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, StageEvent):
            self.stage = event.text
        elif isinstance(event, TokenEvent):
            self.pieces.append(event.text)
            self.choices += [event.choice] if event.choice is not None else []
        else:
            self.pieces, self.done = [event.text], event

    def message(self) -> chat.Message:
        text = "".join(self.pieces)
        return chat.answering(text) if text.strip() else chat.working(self.stage)


class ChatHandlers:
    """The page's handlers for a server's models. Of a visitor, they keep only the running answer."""

    def __init__(self, models: ModelRegistry, examples: Sequence[Example]):
        self._models, self._examples = models, tuple(examples)
        self._running = RunningAnswers()
        self._previews = itertools.count()
        self._newest_preview: dict[str, int] = {}  # by window

    async def send(
        self, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Asks the composer's question, either as a new one or in place of the one being edited.

        `message` is None after Enter in a composer that shows Stop.
        """
        if message is None:
            yield _update()
            return
        kept = conversation if conversation.changing is None else conversation.up_to(conversation.changing)
        question = _held(message)
        async with aclosing(self._ask(question, conversation, kept, Choices(*values), _window(request))) as updates:
            async for update in updates:
                yield update

    async def ask_example(
        self, conversation: Conversation, request: gr.Request, choice: gr.SelectData, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Asks an example card's questions one after the other, until one is not answered to the end.

        Of the browser's data, only the card's number is used.
        """
        example = chosen_example(self._examples, choice)
        if example is None:
            yield _update()
            return
        choices = with_brought(Choices(*values), example)
        for question in example.turns():
            asked = conversation
            async with aclosing(self._ask(question, asked, asked, choices, _window(request))) as updates:
                async for update in updates:
                    conversation = update[2] if isinstance(update[2], Conversation) else conversation
                    yield update
            if not _answered_to_the_end(conversation, asked):
                return

    async def retry(
        self, conversation: Conversation, request: gr.Request, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Asks the last question again with the current settings; its answer stays if no new one comes."""
        if not conversation.exchanges or conversation.changing is not None:
            yield _update()
            return
        question, kept = conversation.exchanges[-1].question, conversation.up_to(-1)
        async with aclosing(
            self._ask(question, conversation, kept, Choices(*values), _window(request), again=True)
        ) as updates:
            async for update in updates:
                yield update

    def undo(self, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request) -> Update:
        """Moves the last question back into the composer, before the text there."""
        if _window(request) in self._running or not conversation.exchanges or conversation.changing is not None:
            return _update()
        question, kept = conversation.exchanges[-1].question, conversation.up_to(-1)
        return _update(chat.messages(kept), composer.holding(joined(question, _held(message))), kept, "")

    def edit(
        self, number: float | None, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request
    ) -> Update:
        """Puts the question with this index into the composer; nothing else changes until it is sent."""
        if _window(request) in self._running or conversation.changing is not None:
            return _update()
        index = int(number) if number is not None else -1
        if not 0 <= index < len(conversation.exchanges):
            return _update()
        changing = Conversation(conversation.exchanges, index, aside=_held(message))
        question = conversation.exchanges[index].question
        return _update(chat.messages(changing), composer.holding(question), changing, composer.notice(index))

    def keep(self, conversation: Conversation, request: gr.Request) -> Update:
        """Ends editing and restores what the composer held before."""
        if _window(request) in self._running or conversation.changing is None:
            return _update()
        kept = Conversation(conversation.exchanges)
        return _update(chat.messages(kept), composer.holding(conversation.aside), kept, "")

    def hand_back(
        self, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request
    ) -> tuple[Any, Any]:
        """Updates the composer and the state: Send or Stop, and a returned question before text typed meanwhile."""
        buttons = composer.waiting() if _window(request) in self._running else composer.ready()
        if conversation.returned == NOTHING:
            return buttons, gr.skip()
        whole = joined(conversation.returned, _held(message))
        return {**buttons, **composer.holding(whole)}, replace(conversation, returned=NOTHING)

    async def stop(self, request: gr.Request) -> dict[str, Any]:
        """Stops the window's answer; the text so far stays. If nothing runs, Send comes back at once."""
        window = _window(request)
        self._running.stop(window)
        return gr.skip() if window in self._running else composer.ready()

    async def leave(self, request: gr.Request) -> None:
        """Stops the answer of a closed window and forgets the visitor."""
        window = _window(request)
        self._running.stop(window)
        self._newest_preview.pop(window, None)
        self._models.forget(window)

    async def clear(self, request: gr.Request) -> Update:
        """Returns the page to its initial state."""
        window = _window(request)
        await self._running.discard(window)
        self._models.forget(window)
        return _update([], composer.emptied(), Conversation(), "")

    def preview(
        self,
        message: dict[str, Any] | None,
        pan_and_scan: bool,
        conversation: Conversation,
        request: gr.Request,
        model: str | None = None,
    ) -> str | dict[str, Any]:
        """HTML of the tiles of the composer's pictures; if there are none, the tiles of the last answer.

        For a broken picture it is the reason, unless the chat already shows it. Two previews may run at once: a newer
        one of the same window supersedes the older one.
        """
        window = _window(request)
        if window in self._running:
            return gr.skip()
        number = self._newest_preview[window] = next(self._previews)
        html = self._preview_html(_held(message).pictures, pan_and_scan, conversation, model)
        return html if self._newest_preview.get(window) == number else gr.skip()

    def _preview_html(
        self, pictures: tuple[Any, ...], pan_and_scan: bool, conversation: Conversation, model: str | None
    ) -> str:
        answered = not pictures and bool(conversation.exchanges)
        if answered:
            last = conversation.exchanges[-1]
            pictures, pan_and_scan, model = last.question.pictures, last.pan_and_scan, last.stats.model
        try:
            with self._models.held(model) as engine:
                if engine is None:
                    return strip.unloaded_html(model or "") if pictures and not answered else ""
                return strip.strip_html(engine.preview(pictures, pan_and_scan), len(pictures), pan_and_scan, answered)
        except Gemma3Error as error:
            return "" if str(error) == conversation.failure else strip.problem_html(str(error))

    def token_count(
        self, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request, *values: Any
    ) -> str:
        """HTML of the token count of the prompt with the composer's question; empty without a question.

        The last of `values` says whether the tokens themselves are shown; the others are the settings. This never waits
        for the model. Errors about pictures are left to the strip above.
        """
        *chosen, opened = values
        question, choices = _held(message), Choices(*chosen)
        if _window(request) in self._running or question == NOTHING:
            return ""
        kept = conversation if conversation.changing is None else conversation.up_to(conversation.changing)
        asked = Request(kept.turns(question), choices.system_prompt or "", bool(choices.pan_and_scan))
        try:
            with self._models.held(choices.model) as engine:
                if engine is None:
                    return ""
                room = engine.info.context_length - int(choices.max_new_tokens)
                return token_count_html(engine.inspect(asked), room, bool(opened))
        except ContextLengthError as error:
            return strip.problem_html(str(error))
        except Gemma3Error:
            return ""

    async def _ask(
        self,
        question: Turn,
        conversation: Conversation,
        kept: Conversation,
        choices: Choices,
        window: str,
        again: bool = False,
    ) -> AsyncGenerator[Update, None]:
        """Answers `question` after `kept`, the part of the conversation that stays; only an answer replaces the rest.

        Without an answer the conversation stays whole, and the question returns to the composer, or with `again` stays
        where it is. `hand_back` restores Send, because Gradio repeats a generator's last update when it ends: that
        would take Stop from a question sent in between, and a slow browser sees only the latest of several updates.
        """
        if window in self._running:  # sent while an answer is running
            yield _update(conversation=replace(conversation, returned=question))
            return
        shown = [*chat.messages(kept, controls=False), *chat.asked(question)]
        draft = _Draft()
        try:
            if not question.text:
                raise Gemma3Error(ONLY_PICTURE if question.pictures else NO_QUESTION)
            asked = _request(question, kept, choices, self._models.info(choices.shown), window)
            with self._running.entry(window) as running:
                yield _update([*shown, draft.message()], composer.waiting(), notice="")
                answer = running.events(self._models.astream(choices.model, asked, running.stop))
                async with aclosing(_drawn(answer, draft)) as drawings:
                    async for message in drawings:
                        yield _update([*shown, message] if message else None, composer.waiting())
            if running.discarded:
                yield _update(box=composer.waiting())
                return
            done = draft.done
            if done is None or not done.text.strip():
                stopped = done is None or done.stats.stop_reason == "cancelled"
                reason = STOPPED_EARLY if stopped else NOTHING_SAID
                raise Gemma3Error(f"{reason} {ANSWER_STAYS if again else QUESTION_BACK}")
        except Gemma3Error as error:
            yield _without_answer(question, conversation, str(error), again)
        except Exception:
            logger.exception("answering failed")
            yield _without_answer(question, conversation, UNEXPECTED, again)
        else:
            exchange = Exchange(question, choices.pan_and_scan, Answered(asked, done), TokenChoices(draft.choices))
            answered = replace(kept.add(exchange), returned=conversation.aside)
            yield _update(chat.messages(answered), composer.waiting(), answered, "")


def _answered_to_the_end(conversation: Conversation, before: Conversation) -> bool:
    """Whether there is a new answer that nobody stopped."""
    more = len(conversation.exchanges) > len(before.exchanges)
    return more and conversation.exchanges[-1].stats.stop_reason != "cancelled"


def _update(shown: Any = None, box: Any = None, conversation: Conversation | None = None, notice: Any = None) -> Update:
    """None leaves a part of the page unchanged. (Yielding nothing would empty it.)"""
    parts = [gr.skip() if part is None else part for part in (shown, box, conversation, notice)]
    return parts[0], parts[1], parts[2], parts[3]


def _without_answer(question: Turn, conversation: Conversation, reason: str, again: bool) -> Update:
    """Restores the conversation and shows why there is no answer."""
    shown = [*chat.messages(conversation), *([] if again else chat.asked(question)), chat.failed(reason)]
    returned = NOTHING if again else question
    conversation = replace(conversation, returned=returned, failure=reason)
    return _update(shown, composer.waiting(), conversation, composer.notice(conversation.changing))


def _held(message: dict[str, Any] | None) -> Turn:
    """The composer's content as a question."""
    message = message or {}
    return question_of(message.get("text") or "", message.get("files") or ())


async def _drawn(answer: AsyncGenerator[Event], draft: _Draft) -> AsyncGenerator[chat.Message | None, None]:
    """Yields the answer's message each time it changes, limited by `Pace`; None if nothing is new."""
    pace, stage = Pace(), draft.stage
    async with aclosing(answer) as events:
        async for event in events:
            draft.take(event)
            if isinstance(event, StageEvent):
                yield draft.message() if event.text != stage else None
                stage = event.text
            elif pace.due():
                yield draft.message()


def _request(
    question: Turn, conversation: Conversation, choices: Choices, shown: ModelInfo | None, window: str
) -> Request:
    """The engine's request for the question; `shown` is the model whose defaults the settings started with."""
    return Request(
        turns=conversation.turns(question),
        system_prompt=choices.system_prompt or "",
        pan_and_scan=bool(choices.pan_and_scan),
        int4=choices.own_int4(shown),
        int4_or_default=True,
        max_new_tokens=int(choices.max_new_tokens),
        sampling=choices.own_sampling(shown),
        visitor=window,
        confidence=True,
    )


def _window(request: gr.Request) -> str:
    """Identifies a browser window (or client session)."""
    return request.session_hash or ""
