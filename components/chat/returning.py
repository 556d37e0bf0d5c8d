"""After a reload everything is there again: also the reload by which Gradio ends a lost connection."""

import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from components.chat import composer
from components.chat.conversation import NOTHING, Conversation, joined, question_of
from components.chat.panel import Message
from gemma3_core.engine import Turn

NOT_ARRIVED = "The answer to your last question did not arrive. The question is back below."


class Returning:
    """The handler of a page that opens.

    `left_by` gives the conversation of a window that was closed a short time ago, by its secret name; `is_upload` says
    whether a path is one of the visitors' pictures.
    """

    def __init__(
        self,
        left_by: Callable[[str], Any],
        is_upload: Callable[[str], bool],
        messages: Callable[[Conversation], list[Message]],
    ):
        self._left_by, self._is_upload, self._messages = left_by, is_upload, messages

    def come_back(self, left: str, request: gr.Request) -> tuple[Any, Any, Any, Any, str]:
        """Updates of chat, composer, conversation and notice, and this window's own name, for its next reload.

        `left` is what the browser kept, as JSON (see start.js): the name of the window before, a question that was sent
        without an answer, and what the composer held.
        """
        window = request.session_hash or ""
        kept = _object(left)
        before = self._left_by(str(kept.get("session")))
        found = before if isinstance(before, Conversation) else Conversation()
        sent, draft = self._turn(kept.get("sent")), self._turn(kept.get("draft"))
        if any(sent.text == exchange.question.text for exchange in found.exchanges[-1:]):
            sent = NOTHING  # its answer was complete
        held = joined(sent, joined(found.returned, draft))
        conversation = Conversation(found.exchanges, before=found.before)
        return (
            self._messages(conversation) if conversation.exchanges else gr.skip(),
            gr.skip() if held == NOTHING else composer.holding(held),
            conversation,
            gr.skip() if sent == NOTHING else composer.missing(NOT_ARRIVED),
            window,
        )

    def _turn(self, message: Any) -> Turn:
        """A composer's content. Files that are not, or no longer, uploads are left out."""
        message = message if isinstance(message, dict) else {}
        files = message.get("files")
        paths = [str(file["path"]) for file in files if _has_path(file)] if isinstance(files, list) else []
        text = message.get("text")
        return question_of(text if isinstance(text, str) else "", [path for path in paths if self._is_upload(path)])


def _object(text: str) -> dict[str, Any]:
    """A JSON object; an empty one for anything else, since browsers can send anything."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _has_path(file: Any) -> bool:
    return isinstance(file, dict) and isinstance(file.get("path"), str)
