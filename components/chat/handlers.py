"""From a click to the streamed answer: what the page's controls do."""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import gradio as gr

from components.bridge import Ask, Call, Calls, Look, window_of
from components.chat import composer
from components.chat import panel as chat
from components.chat.closer_look import (
    Region,
    closer_question,
    question_about,
    reason_to_look_closer,
    region_of,
    word_to_look_for,
)
from components.chat.conversation import NOTHING, Conversation, Exchange, captioned, joined
from components.chat.previews import Previews
from components.chat.running import Pace, RunningAnswers
from components.examples import Example
from components.settings import Choices, chosen_example, with_brought
from components.shown.regions import drawn_box
from components.shown.stats import PICTURE_CHANGED_NOTHING
from gemma3_core.engine import (
    Answered,
    DoneEvent,
    Event,
    Gemma3Error,
    ModelRegistry,
    Request,
    StageEvent,
    StoppedError,
    TokenChoice,
    TokenChoices,
    TokenEvent,
    Turn,
    ask_in_fields,
    read_fields,
)

logger = logging.getLogger(__name__)

NO_QUESTION = "There is no question yet. Write one, or choose an example."
ONLY_PICTURE = "Ask something about the picture."
SENDING = "Sending the question"
LOOKING = "Looking for what the answer rests on"
UNEXPECTED = "Something went wrong while answering. Try again; if it happens again, the server's log says why."
STOPPED_EARLY = "Stopped before the first word."
NOTHING_SAID = "The model ended its answer before the first word. Rephrase your question."
QUESTION_BACK = "The question is back below."
ANSWER_STAYS = "The earlier answer stays."
FORGOTTEN = "The server had forgotten this conversation. Send the question once it is back, or in a new chat."
STILL_ANSWERING = "Another answer is still being written. Your question is back below."
EDITING = "You are editing a question. What you asked about the region comes back below when the edit ends."
ANSWER_GONE = "The answer with this picture is gone. Your question is back below."
NEW_CHAT = "This is a new chat."
TAKEN_BACK = "The answer is taken back."
BESIDE = "The next question reads the new answer."
REPLACED = "The earlier answer is replaced."
REPLACED_ALL = "The earlier answer and what came after it are replaced."

_SHORT_CONVERSATION = 2000
"""Characters. All words of a conversation are read again to see whether a picture mattered."""
_MOST_LOOKS = 4
"""Closer looks that find out at the same time where to look; others wait for a thread."""
_CLOSER = "closer"  # the kind of these calls

Update = tuple[Any, Any, Any, Any]  # for the chat, the composer, the conversation's state and the notice


@dataclass
class _Draft:
    """What has arrived of an answer so far."""

    pieces: list[str] = field(default_factory=list)
    choices: list[TokenChoice] = field(default_factory=list)
    stage: str = SENDING
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


@dataclass
class _Found:
    """Where to look closer, or nowhere in particular; `ended` where nothing is asked, and why stands on the page."""

    region: Region | None = None
    ended: bool = False


class ChatHandlers:
    """The page's handlers for a server's models. Of a visitor, they keep only the running answer."""

    def __init__(
        self,
        models: ModelRegistry,
        examples: Sequence[Example],
        caption: Callable[[str], str] = lambda _path: "",
        ask: Ask | None = None,
        look: Look | None = None,
    ):
        """`caption` says what stands before a picture in the prompt, by its path. `ask` takes the questions, and `look`
        lets looks begin; without, the models do."""
        self._models, self._examples, self._caption = models, tuple(examples), caption
        self._answers = (lambda _asker, *asked: models.astream(*asked)) if ask is None else ask
        self.running = RunningAnswers()
        self.previews = Previews(models, self.running, caption)
        self._look = (lambda *_: nullcontext()) if look is None else look
        self._looks = Calls(ThreadPoolExecutor(_MOST_LOOKS, "closer-look"))

    async def send(
        self,
        message: dict[str, Any] | None,
        conversation: Conversation,
        request: gr.Request,
        standing: float | None,
        *values: Any,
    ) -> AsyncGenerator[Update, None]:
        """Asks the composer's question, either as a new one or in place of the one being edited.

        `message` is None after Enter in a composer that shows Stop or waits for a picture. Where answers are `standing`
        on the page of which the server knows nothing any longer, the question returns: it would be asked without them.
        """
        if message is None:
            yield page_update()
            return
        known = conversation.exchanges or conversation.before or conversation.id
        if standing and not known:
            returned = replace(conversation, returned=conversation.draft(message))
            yield page_update(None, composer.waiting(), returned, composer.missing(FORGOTTEN))
            return
        kept = conversation if conversation.changing is None else conversation.up_to(conversation.changing)
        question = captioned(conversation.draft(message), self._caption)
        if window_of(request) in self.running:  # sent before the browser knew
            yield page_update(conversation=replace(conversation, returned=question))
            return
        async with aclosing(self._ask(question, conversation, kept, Choices(*values), request)) as updates:
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
            yield page_update()
            return
        choices = with_brought(Choices(*values), example)
        for question in example.turns():
            asked = conversation
            async with aclosing(self._ask(question, asked, asked, choices, request)) as updates:
                async for update in updates:
                    conversation = update[2] if isinstance(update[2], Conversation) else conversation
                    yield update
            if not _answered_to_the_end(conversation, asked):
                return

    async def retry(
        self, number: float | None, conversation: Conversation, request: gr.Request, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Asks the question with this index again, with the current settings.

        Only a new answer replaces the earlier one and what came after it.
        """
        index = _index(number, conversation)
        if index is None or conversation.changing is not None:
            yield page_update()
            return
        exchange, kept = conversation.exchanges[index], conversation.up_to(index)
        question, first = exchange.question, exchange.first
        async with aclosing(
            self._ask(question, conversation, kept, Choices(*values), request, again=True, first=first)
        ) as updates:
            async for update in updates:
                yield update

    async def look_closer(
        self,
        number: float | None,
        region: str,
        text: str,
        conversation: Conversation,
        request: gr.Request,
        *values: Any,
    ) -> AsyncGenerator[Update, None]:
        """Asks the question with this index again with a crop: the `region` that the visitor has drawn (see
        `drawn_box`), or what the least sure word of an unsure answer rests on (see `word_to_look_for`). Without either,
        it is asked with an even tiling of its pictures.

        Both answers stay in sight. The question after it reads the new answer. What came after the earlier one is
        replaced. With a `text`, that is asked about the region instead, after all other questions.
        """
        index, window = _index(number, conversation), window_of(request)
        if index is None or conversation.changing is not None or window in self.running:
            yield self._not_asked(text, conversation, window)
            return
        exchange, kept = conversation.exchanges[index], conversation.up_to(index)
        if text:
            async with aclosing(self._ask_about(exchange, region, text, conversation, request, *values)) as updates:
                async for update in updates:
                    yield update
            return
        if not exchange.answered.request.num_images:
            yield page_update()
            return
        choices, first = replace(Choices(*values), model=exchange.stats.model), exchange.first or exchange
        steps, found = None, _Found()
        if region:
            steps = self._drawn_on(exchange, region, window)
        elif word := word_to_look_for(exchange, self._models.info(exchange.stats.model)):
            steps = self._mapped(exchange, word, request)
        if steps is not None:
            shown = [*chat.messages(kept, controls=False), *chat.asked(exchange.question), *chat.at_first(first)]
            async with aclosing(self._find(steps, shown, conversation, window, found)) as updates:
                async for update in updates:
                    yield update
        if found.ended:
            return
        question = closer_question(exchange, found.region)
        async with aclosing(
            self._ask(question, conversation, kept, choices, request, again=True, first=first)
        ) as updates:
            async for update in updates:
                yield update

    async def _ask_about(
        self, exchange: Exchange, region: str, text: str, conversation: Conversation, asker: gr.Request, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Asks a new question about a picture of this exchange's prompt, with the region as a crop of it."""
        window, found, asked = window_of(asker), _Found(), Turn("user", text)
        shown = [*self.messages(conversation), *chat.asked(asked)]
        steps = self._drawn_on(exchange, region, window)
        async with aclosing(self._find(steps, shown, conversation, window, found, asked)) as updates:
            async for update in updates:
                yield update
        if found.ended or found.region is None:
            return
        if window in self.running:  # since the box was read
            yield self._not_asked(text, conversation, window)
            return
        question = captioned(question_about(exchange, found.region, text), self._caption)
        async with aclosing(self._ask(question, conversation, conversation, Choices(*values), asker)) as updates:
            async for update in updates:
                yield update

    def _not_asked(self, text: str, conversation: Conversation, window: str) -> Update:
        """Returns a text about a region that can't be asked now to the composer: once an edit there has ended. A second
        click changes nothing."""
        question = Turn("user", text)
        if not text or self.running.question(window).text == text:
            return page_update()
        if conversation.changing is not None:
            returned = replace(conversation, aside=joined(question, conversation.aside))
            return page_update(None, None, returned, composer.missing(EDITING) + composer.notice(conversation))
        reason = STILL_ANSWERING if window in self.running else ANSWER_GONE
        returned = replace(conversation, returned=question)
        return page_update(None, None, returned, composer.missing(reason) + composer.notice(conversation))

    async def go_on(
        self, conversation: Conversation, request: gr.Request, *values: Any
    ) -> AsyncGenerator[Update, None]:
        """Continues the last answer where it was cut at its longest length, with the settings that it had."""
        last = conversation.exchanges[-1] if conversation.exchanges else None
        if last is None or last.stats.stop_reason != "length" or conversation.changing is not None:
            yield page_update()
            return
        async with aclosing(
            self._ask(
                last.question,
                conversation,
                conversation.up_to(-1),
                replace(Choices(*values), model=last.stats.model),
                request,
                cut=last,
            )
        ) as updates:
            async for update in updates:
                yield update

    async def _find(
        self,
        steps: AsyncGenerator[str | Region | None],
        shown: Sequence[chat.Message],
        conversation: Conversation,
        window: str,
        found: _Found,
        question: Turn = NOTHING,
    ) -> AsyncGenerator[Update, None]:
        """Shows the steps behind the messages that are `shown`, until there is a region or none; Stop ends them. Where
        nothing is asked then, a new `question` returns to the composer."""
        found.ended, again = True, question == NOTHING
        try:
            with self.running.entry(window, question) as running:
                async with aclosing(running.events(steps)) as told:
                    async for step in told:
                        if isinstance(step, str):
                            yield page_update([*shown, chat.working(step)], composer.waiting(), notice="")
                        else:
                            found.region = step
        except Gemma3Error as error:
            notice = composer.missing(str(error)) + composer.notice(conversation)
            returned = None if again else replace(conversation, returned=question)
            yield page_update(self.messages(conversation), composer.waiting(), returned, notice)
        except Exception:
            logger.exception("finding out where to look closer failed")
            yield self._without_answer(question, conversation, chat.failed(UNEXPECTED), again, UNEXPECTED)
        else:
            if running.discarded:
                yield page_update(box=composer.waiting())
            elif running.stop.is_set():
                stopped = chat.remark(f"{STOPPED_EARLY} {ANSWER_STAYS if again else QUESTION_BACK}")
                yield self._without_answer(question, conversation, stopped, again)
            else:
                found.ended = False

    async def _mapped(
        self, exchange: Exchange, word: range, asker: gr.Request
    ) -> AsyncGenerator[str | Region | None, None]:
        """What is waited for, in words, and then the region that a word of an answer rests on, if its map says one.

        Where there is no map, because memory runs out, a picture or the model is gone, or the visitor may not look now,
        an even tiling needs none: whatever keeps the question itself from being asked, that will say.
        """
        yield LOOKING
        try:
            async with self._look(asker, exchange.answered):
                rests_on = partial(self._rests_on, exchange, word)
                waiting = self._looks.results(window_of(asker), _CLOSER, rests_on, _looking)
                async with aclosing(waiting) as steps:
                    async for step in steps:
                        yield step
        except StoppedError:
            raise
        except Gemma3Error as error:
            logger.info("without a map, a closer look tiles its pictures evenly: %s", error)

    def _rests_on(self, exchange: Exchange, word: range, call: Call) -> Region | None:
        """Where the object of an answer's word is, from its map. Raises Gemma3Error."""
        answered = exchange.answered
        with self._models.that_answered(exchange.stats.model) as engine:
            report = engine.why(answered, word, stop=call.stop, tell=call.tell)
            return region_of(report, engine.inspect(answered.request).picture_sizes)

    def _drawn_on(self, exchange: Exchange, region: str, window: str) -> AsyncGenerator[str | Region | None]:
        """The number of a picture of the conversation, and the box on it. Raises Gemma3Error."""

        def drawn(_call: Call) -> Region:
            with self._models.that_answered(exchange.stats.model) as engine:
                return drawn_box(region, engine.inspect(exchange.answered.request).picture_sizes)

        return self._looks.results(window, _CLOSER, drawn, lambda _told: SENDING)

    def restore(self, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request) -> Update:
        """Brings back what the last action replaced."""
        before = conversation.before
        if before is None or conversation.changing is not None or window_of(request) in self.running:
            return page_update()
        draft = joined(before.returned, conversation.draft(message))
        return page_update(self.messages(before), composer.holding(draft), before.composing(draft), "")

    def undo(
        self, number: float | None, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request
    ) -> Update:
        """Moves the last question back into the composer, before the text there; the answer can be brought back.

        Another `number` than the question's index is that of a second click, and does nothing.
        """
        index = _index(number, conversation)
        is_last = index is not None and index == len(conversation.exchanges) - 1
        if window_of(request) in self.running or not is_last or conversation.changing is not None:
            return page_update()
        draft = joined(conversation.exchanges[-1].question, conversation.draft(message))
        kept = conversation.up_to(-1).replacing(conversation, TAKEN_BACK).composing(draft)
        return page_update(self.messages(kept), composer.holding(draft), kept, composer.notice(kept))

    def edit(
        self, number: float | None, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request
    ) -> Update:
        """Puts the question with this index into the composer; nothing else changes until it is sent."""
        if window_of(request) in self.running or conversation.changing is not None:
            return page_update()
        index = _index(number, conversation)
        if index is None:
            return page_update()
        question, aside = conversation.exchanges[index].question, conversation.draft(message)
        changing = replace(conversation.composing(question), changing=index, aside=aside, failure="")
        return page_update(self.messages(changing), composer.holding(question), changing, composer.notice(changing))

    def keep(self, conversation: Conversation, request: gr.Request) -> Update:
        """Ends editing and restores what the composer held before."""
        if window_of(request) in self.running or conversation.changing is None:
            return page_update()
        kept = replace(conversation.composing(conversation.aside), changing=None, aside=NOTHING)
        return page_update(self.messages(kept), composer.holding(conversation.aside), kept, composer.notice(kept))

    def hand_back(self, conversation: Conversation, request: gr.Request) -> tuple[Any, Any, Any]:
        """Updates the composer, which shows Send or Stop, the state, and the returned question, which the browser puts
        before what is in the composer: here, it would take the place of what is typed meanwhile."""
        buttons = composer.waiting() if window_of(request) in self.running else composer.ready()
        if conversation.returned == NOTHING:
            return buttons, gr.skip(), gr.skip()
        return (
            buttons,
            conversation.composing(conversation.returned, beside=True),
            composer.holding(conversation.returned),
        )

    def forget(self, window: str) -> None:
        """Evicts what the models keep for the window's next question."""
        self._models.forget(window)

    async def stop(self, request: gr.Request) -> dict[str, Any]:
        """Stops the window's answer; the text so far stays. If nothing runs, Send comes back at once."""
        window = window_of(request)
        self.running.stop(window)
        return gr.skip() if window in self.running else composer.ready()

    async def leave(self, request: gr.Request) -> None:
        """Stops the answer of a closed window and forgets the visitor."""
        window = window_of(request)
        self.running.stop(window)
        self._models.forget(window)

    async def clear(self, message: dict[str, Any] | None, conversation: Conversation, request: gr.Request) -> Update:
        """Returns the page to its initial state; the conversation and the draft can be brought back."""
        window = window_of(request)
        asked = await self.running.discard(window)
        self._models.forget(window)
        draft = joined(asked, joined(conversation.aside, conversation.draft(message)))
        if conversation.exchanges or conversation.before is None:
            new = Conversation().replacing(conversation, NEW_CHAT, draft)
        else:  # a second click; what the first one replaced can still be brought back
            before = conversation.before
            whole = draft if draft == before.returned else joined(before.returned, draft)
            new = Conversation().replacing(before, NEW_CHAT, whole)
        return page_update([], composer.emptied(), new, composer.notice(new))

    async def _ask(
        self,
        question: Turn,
        conversation: Conversation,
        kept: Conversation,
        choices: Choices,
        asker: gr.Request,
        again: bool = False,
        cut: Exchange | None = None,
        first: Exchange | None = None,
    ) -> AsyncGenerator[Update, None]:
        """Answers `question` after `kept`, the part of the conversation that stays; only an answer replaces the rest.

        The answer goes on from `cut` where one is given, and stands beside that of `first`. Without an answer the
        conversation stays whole, and the question returns to the composer, or with `again` or `cut` stays where it is.
        `hand_back` restores Send, once the event has ended.
        """
        window = window_of(asker)
        if window in self.running:  # a second click
            yield page_update()
            return
        if not question.text:
            reason = ONLY_PICTURE if question.pictures else NO_QUESTION
            notice = composer.missing(reason) + composer.notice(conversation)
            yield page_update(None, composer.waiting(), replace(conversation, returned=question), notice)
            return
        first = cut.first if cut is not None else first
        shown = [*chat.messages(kept, controls=False), *chat.asked(question), *chat.at_first(first)]
        draft = _Draft() if cut is None else _Draft([cut.answer], list(cut.choices))
        again = again or cut is not None
        try:
            asked, fields = request_for(self._models, question, kept, choices, window), choices.fields or ""
            if cut is not None:
                so_far, longest, fields = cut.answered.done.token_ids, asked.max_new_tokens, cut.fields
                asked = replace(cut.answered.request, answer_so_far=so_far, max_new_tokens=longest, visitor=window)
            with self.running.entry(window, NOTHING if again else question) as running:
                yield page_update([*shown, draft.message()], composer.waiting(), notice="")
                answer = running.events(self._answers(asker, choices.model, asked, running.stop))
                async with aclosing(_drawn(answer, draft)) as drawings:
                    async for message in drawings:
                        yield page_update([*shown, message] if message else None, composer.waiting())
            if running.discarded:
                yield page_update(box=composer.waiting())
                return
            done = draft.done
            where = ANSWER_STAYS if again else QUESTION_BACK
            if done is None or (not done.text.strip() and done.stats.stop_reason == "cancelled"):
                yield self._without_answer(question, conversation, chat.remark(f"{STOPPED_EARLY} {where}"), again)
                return
            if not done.text.strip():
                raise Gemma3Error(f"{NOTHING_SAID} {where}")
        except Gemma3Error as error:
            yield self._without_answer(question, conversation, chat.failed(str(error)), again, str(error))
        except Exception:
            logger.exception("answering failed")
            yield self._without_answer(question, conversation, chat.failed(UNEXPECTED), again, UNEXPECTED)
        else:
            whole = asked.max_new_tokens
            if whole is not None:  # of the answer and not only of its last part, so that a replay is as long
                whole += len(asked.answer_so_far)
            complete = Answered(replace(asked, answer_so_far=(), max_new_tokens=whole), done)
            choices_told = TokenChoices(draft.choices)
            exchange = Exchange(question, asked.pan_and_scan, complete, choices_told, first, fields)
            answered = replace(kept.add(exchange), returned=conversation.aside)
            if cut is None and len(kept.exchanges) < len(conversation.exchanges):
                dropped = len(conversation.exchanges) - len(kept.exchanges)
                stands_beside = first is not None and first is conversation.exchanges[-1]
                replaced = BESIDE if stands_beside else REPLACED if dropped == 1 else REPLACED_ALL
                answered = answered.replacing(conversation, replaced)
            yield page_update(self.messages(answered), composer.waiting(), answered, composer.notice(answered))

    def messages(self, conversation: Conversation) -> list[chat.Message]:
        """The conversation, with advice under a last answer that may be wrong, that its picture didn't change, or by
        which the demo model says that it knows nothing."""
        last = conversation.exchanges[-1] if conversation.exchanges else None
        if last is None:
            return []
        info = self._models.info(last.stats.model)
        if info is not None and info.is_demo and chat.knows_nothing(last.answer):
            return chat.messages(conversation, advice=chat.onward(self._models.names))
        reason = reason_to_look_closer(last, info)
        advice = PICTURE_CHANGED_NOTHING if last.pictures_changed_nothing else reason
        return chat.messages(conversation, advice=advice, looks_closer=bool(reason))

    def _without_answer(
        self, question: Turn, conversation: Conversation, said: chat.Message, again: bool, failure: str = ""
    ) -> Update:
        """Restores the conversation and shows why there is no answer."""
        shown = [*self.messages(conversation), *([] if again else chat.asked(question)), said]
        returned = NOTHING if again else question
        conversation = replace(conversation, returned=returned, failure=failure)
        return page_update(shown, composer.waiting(), conversation, composer.notice(conversation))


def _answered_to_the_end(conversation: Conversation, before: Conversation) -> bool:
    """Whether there is a new answer that nobody stopped."""
    more = len(conversation.exchanges) > len(before.exchanges)
    return more and conversation.exchanges[-1].stats.stop_reason != "cancelled"


def page_update(
    shown: Any = None, box: Any = None, conversation: Conversation | None = None, notice: Any = None
) -> Update:
    """None leaves a part of the page unchanged. (Yielding nothing would empty it.)"""
    parts = [gr.skip() if part is None else part for part in (shown, box, conversation, notice)]
    return parts[0], parts[1], parts[2], parts[3]


def _looking(told: str) -> str:
    """That a map is being made, and what it waits for or did last."""
    return f"{LOOKING} · {told}" if told else LOOKING


def _index(number: float | None, conversation: Conversation) -> int | None:
    """The index of an exchange, from a browser's number."""
    index = -1 if number is None else int(number)
    return index if 0 <= index < len(conversation.exchanges) else None


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


def request_for(
    models: ModelRegistry, question: Turn, conversation: Conversation, choices: Choices, window: str
) -> Request:
    """The engine's request for the question, with the visitor's settings. Raises Gemma3Error for impossible ones.

    Whether the question's own pictures mattered is checked only while nobody else asks anything.
    """
    shown, info = models.info(choices.shown), models.info(choices.model)
    turns = conversation.turns(question)
    is_short = sum(len(turn.text) for turn in turns) <= _SHORT_CONVERSATION
    request = Request(
        turns=turns,
        system_prompt=choices.system_prompt or "",
        pan_and_scan=bool(choices.pan_and_scan),
        int4=choices.own_int4(shown),
        int4_or_default=True,
        max_new_tokens=int(choices.max_new_tokens),
        sampling=choices.own_sampling(shown),
        visitor=window,
        confidence=True,
        continue_text=choices.continues(info),
        check_pictures=bool(question.pictures) and is_short and models.is_idle,
    )
    return ask_in_fields(request, read_fields(choices.fields or ""), named=info is None or not info.is_demo)
