"""What a question will cost, before it is sent: the strip of its tiles, and the count of the whole prompt's tokens."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr

from components.bridge import window_of
from components.chat.conversation import NOTHING, Conversation, captioned
from components.chat.running import RunningAnswers
from components.settings import Choices
from components.shown import image_strip as strip
from components.shown.token_view import token_count_html
from gemma3_core.engine import ContextLengthError, Gemma3Error, ModelRegistry, Request, Turn


class Previews:
    """The handlers of the strip and of the token count. While an answer runs, both stay as they are."""

    def __init__(
        self, models: ModelRegistry, running: RunningAnswers, caption: Callable[[str], str] = lambda _path: ""
    ):
        self._models, self._running, self._caption = models, running, caption
        self._numbers = itertools.count()
        self._newest: dict[str, int] = {}
        """The newest preview of each window, while it is being made."""

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
        window = window_of(request)
        if window in self._running:
            return gr.skip()
        number = self._newest[window] = next(self._numbers)
        try:
            html = self._preview_html(conversation.draft(message), pan_and_scan, conversation, model)
        finally:
            is_newest = self._newest.get(window) == number
            if is_newest:
                del self._newest[window]
        return html if is_newest else gr.skip()

    def _preview_html(self, question: Turn, pan_and_scan: bool, conversation: Conversation, model: str | None) -> str:
        answered = not question.pictures and bool(conversation.exchanges)
        if answered:
            last = conversation.exchanges[-1]
            question, pan_and_scan, model = last.question, last.pan_and_scan, last.stats.model
            if model not in self._models.names:
                return ""
        try:
            with self._models.held(model) as engine:
                if engine is None:
                    return strip.unloaded_html(model or "") if question.pictures and not answered else ""
                previews = engine.preview(question.pictures, pan_and_scan, question.crops)
                return strip.strip_html(previews, len(question.pictures), pan_and_scan, answered)
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
        question = captioned(conversation.draft(message), self._caption)
        choices = Choices(*chosen)
        if window_of(request) in self._running or question == NOTHING:
            return ""
        kept = conversation if conversation.changing is None else conversation.up_to(conversation.changing)
        asked = Request(kept.turns(question), choices.system_prompt or "", bool(choices.pan_and_scan))
        try:
            with self._models.held(choices.model) as engine:
                if engine is None:
                    return ""
                asked = replace(asked, continue_text=choices.continues(engine.info))
                room = engine.info.context_length - int(choices.max_new_tokens)
                return token_count_html(engine.inspect(asked), room, bool(opened))
        except ContextLengthError as error:
            return strip.problem_html(str(error))
        except Gemma3Error:
            return ""
