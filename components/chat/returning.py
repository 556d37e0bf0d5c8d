"""A page that opens: after a reload everything is there again (also after the one by which Gradio ends a lost
connection), and a shared link brings its question and settings."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from components.chat import composer
from components.chat.conversation import NOTHING, Conversation, joined, question_of
from components.chat.panel import Message
from components.examples import Example
from components.settings import Settings
from gemma3_core.engine import Turn

_LONGEST = 2000  # characters of a text in a link
_SWITCHES = {"1": True, "0": False}

NOT_ARRIVED = "The answer to your last question did not arrive. The question is back below."


class Returning:
    """The handler of a page that opens.

    `left_by` gives the conversation of a window that was closed a short time ago, by its secret name; `is_upload` says
    whether a path is one of the visitors' pictures. Links may name the pictures of `examples`, and the `models` that a
    visitor may choose now.
    """

    def __init__(
        self,
        left_by: Callable[[str], Any],
        is_upload: Callable[[str], bool],
        messages: Callable[[Conversation], list[Message]],
        settings: Settings,
        models: Callable[[gr.Request], Sequence[str]],
        examples: Sequence[Example],
    ):
        self._left_by, self._is_upload, self._messages = left_by, is_upload, messages
        names = ("pan_and_scan", "system_prompt", "int4", "model")
        self.brought = {name: one for name in names if (one := getattr(settings, name)) is not None}
        """The settings that a link may bring."""
        self._models = models
        self._shown_models = None if settings.model is None else [name for name, _ in settings.model.choices]
        self._pictures = {picture.stem: picture for example in examples for picture in example.pictures}

    def open(self, left: str, request: gr.Request) -> tuple[Any, ...]:
        """Updates of chat, composer, conversation and notice, what the browser should know (this window's own name for
        its next reload, whether the one before was `found`, the text that the composer `held`, and whether the link was
        used, which it isn't where something stands already), and of what a link has `brought`.

        `left` is what the browser kept, as JSON (see start.js): the name of the window before, a question that was sent
        without an answer, what the composer held, the model that was chosen, and the parameters of a link that this tab
        has not used yet.
        """
        window = request.session_hash or ""
        kept = object_of(left)
        session = kept.get("session")
        before = self._left_by(session) if isinstance(session, str) else None  # anyone may name a window "None"
        found = before if isinstance(before, Conversation) else Conversation()
        sent, draft = self._turn(kept.get("sent")), self._turn(kept.get("draft"))
        if _is_answered(sent, object_of(kept.get("sent")).get("standing"), found):
            sent = NOTHING
        returned = found.returned
        if returned.text == sent.text:  # stopped before its first word, as the window closed: it came back here as well
            returned = replace(returned, text="")
        held = joined(sent, joined(returned, draft))
        link = object_of(kept.get("link")) if held == NOTHING and not found.exchanges else {}
        if link:
            held = self._asked_by(link)
        # An edit goes on, and what was replaced can still be brought back.
        conversation, models = replace(found.composing(held, beside=True), failure=""), list(self._models(request))
        brought = self._settings_of(link, models)
        if self._shown_models not in (None, models):  # some have come since the program started
            added = kept.get("model")
            added = added if added in models and added not in (self._shown_models or ()) else None
            chosen = brought["model"] or added
            brought["model"] = gr.update(choices=models, **({} if chosen is None else {"value": chosen}))
        notice = ("" if sent == NOTHING else composer.missing(NOT_ARRIVED)) + composer.notice(conversation)
        came = None if held == NOTHING else held.text
        return (
            self._messages(conversation) if conversation.exchanges else gr.skip(),
            gr.skip() if held == NOTHING else composer.holding(held),
            conversation,
            notice or gr.skip(),
            json.dumps({"window": window, "found": bool(found.exchanges), "held": came, "linked": bool(link)}),
            *(gr.skip() if value is None else value for value in map(brought.get, self.brought)),
        )

    def _asked_by(self, link: dict[str, Any]) -> Turn:
        """The question of a link, with the picture of an example. Nothing is asked until the visitor sends it."""
        picture = self._pictures.get(str(link.get("example")))
        return Turn("user", _text(link.get("q")), () if picture is None else (Path(picture),))

    def _settings_of(self, link: dict[str, Any], models: Sequence[str]) -> dict[str, Any]:
        """A link's settings; None for what it leaves out or what does not exist."""
        model = link.get("model")
        return {
            "pan_and_scan": _SWITCHES.get(str(link.get("pan_and_scan"))),
            "system_prompt": _text(link.get("system_prompt")) or None,
            "int4": _SWITCHES.get(str(link.get("int4"))),
            "model": model if isinstance(model, str) and model in models else None,
        }

    def _turn(self, message: Any) -> Turn:
        """A composer's content. Files that are neither uploads (any longer) nor examples are left out."""
        message = message if isinstance(message, dict) else {}
        files = message.get("files")
        paths = [str(file["path"]) for file in files if _has_path(file)] if isinstance(files, list) else []
        known = [path if self._is_upload(path) else self._pictures.get(Path(path).stem) for path in paths]
        text = message.get("text")
        return question_of(text if isinstance(text, str) else "", [str(path) for path in known if path is not None])


def object_of(value: Any) -> dict[str, Any]:
    """A JSON object, or its text; an empty one for anything else, since browsers can send anything."""
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_answered(sent: Turn, standing: Any, found: Conversation) -> bool:
    """Whether the last answer is that of the question that was sent while so many answers were `standing`: the same may
    be asked again, and an example's picture lies in two places."""
    if not found.exchanges or found.changing is not None or standing == len(found.exchanges):
        return False
    last = found.exchanges[-1].question
    return sent.text == last.text and _names(sent) == _names(last)


def _names(question: Turn) -> list[str]:
    return [Path(str(picture)).name for picture in question.pictures]


def _text(value: Any) -> str:
    return value.strip()[:_LONGEST] if isinstance(value, str) else ""


def _has_path(file: Any) -> bool:
    return isinstance(file, dict) and isinstance(file.get("path"), str)
