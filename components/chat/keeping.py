"""Conversations that visitors keep in their own browser: what it is given to keep, and what it brings back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import gradio as gr

from components.bridge import window_of
from components.chat import composer, record
from components.chat.conversation import NOTHING, Conversation, joined
from components.chat.handlers import ChatHandlers, Update, page_update
from components.examples import Example
from gemma3_core.engine import Gemma3Error

STILL_WRITING = "An answer is being written here. Wait for it or stop it, then open the other conversation."
MISSING = (
    "{} of this conversation can't be brought back. Its answers can be read; to ask on about it, add the picture again."
)


class Keeping:
    """The handlers behind the list of conversations; on the server they keep nothing.

    `is_upload` says whether a path is one of the visitors' pictures.
    """

    def __init__(self, chat: ChatHandlers, is_upload: Callable[[str], bool], examples: Sequence[Example]):
        self._chat, self._is_upload = chat, is_upload
        self._examples = {picture.stem: picture for example in examples for picture in example.pictures}

    def given(self, known: str, conversation: Conversation) -> str:
        """The conversation for the browser, as JSON: the `id` of its entry, the `keys` of its exchanges, and the
        documents of those `new` to it. `known` are the keys that it has, as a JSON list."""
        documents = [record.document(exchange, self._example_of) for exchange in conversation.exchanges]
        keys = [record.key_of(document) for document in documents]
        has = _strings(known)
        new = {key: document for key, document in zip(keys, documents, strict=True) if key not in has}
        return json.dumps({"version": record.VERSION, "id": conversation.id, "keys": keys, "new": new})

    def brought(self, text: str, conversation: Conversation, request: gr.Request) -> Update:
        """Opens a document in place of this window's conversation. The composer keeps what it holds, and gets back what
        an edit or a new chat had set aside.

        `text` is empty where the browser could not read it, and has said so.
        """
        window, standing = window_of(request), composer.notice(conversation)
        if not text:
            return page_update()
        if window in self._chat.running:
            return page_update(notice=composer.missing(STILL_WRITING) + standing)
        try:
            opened = record.read(text, self._picture, window)
        except Gemma3Error as error:
            return page_update(notice=composer.missing(str(error)) + standing)
        self._chat.forget(window)
        draft = NOTHING if conversation.before is None else conversation.before.returned
        brought = replace(opened.conversation, returned=joined(draft, conversation.aside))
        count = opened.missing
        lost = MISSING.format("A picture" if count == 1 else f"{count} pictures")
        # What a page that has just opened says stays: the answer to the last question may not have arrived.
        notice = composer.missing(lost) if count else "" if standing or conversation.exchanges else None
        return page_update(self._chat.messages(brought), None, brought, notice)

    def _example_of(self, path: Path) -> str:
        return path.stem if self._examples.get(path.stem) == path else ""

    def _picture(self, kept: record.KeptPicture) -> Path | None:
        if kept.example:
            return self._examples.get(kept.example)
        return Path(kept.path) if self._is_upload(kept.path) else None


def _strings(text: str) -> frozenset[str]:
    """The strings of a JSON list; none for anything else, since browsers can send anything."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return frozenset()
    return frozenset(value for value in values if isinstance(value, str)) if isinstance(values, list) else frozenset()
