"""Updates the page for the model that the visitor chose: settings, badge, first lines, composer."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from components.chat.composer import hint
from components.chat.panel import badge, first_sight
from components.settings import Choices, Settings, int4_line, model_note, pan_and_scan_line
from gemma3_core.engine import ModelInfo, ModelRegistry


class ModelChoiceHandlers:
    """The handlers of the model choice; `head` makes HTML of the page's top from the badge."""

    def __init__(self, models: ModelRegistry, head: Callable[[str], str]):
        self._models, self._head = models, head

    def outputs(self, settings: Settings, head: gr.HTML, chat: gr.Chatbot, composer: Any) -> list[Any]:
        """The components that `follow` updates, in that order."""
        int4 = [] if settings.int4 is None else [settings.int4]
        return [
            settings.shown, settings.model_note, head,
            settings.pan_and_scan, *settings.sampling[:3], *int4, chat, composer,
        ]  # fmt: skip

    def follow(self, *values: Any) -> tuple[Any, ...]:
        """Updates the page for the chosen model. Before it is loaded, only its note and its name are known.

        Settings that the visitor has changed stay.
        """
        choices = Choices(*values)
        info, shown = self._models.info(choices.model), self._models.info(choices.shown)
        note, head = self._note(choices.model, info), self._head_of(choices.model, info)
        # The page has an int4 switch if the first model does.
        has_int4 = self._models.first.info.int4 is not None
        if info is None or shown is None or info.name == shown.name:
            return gr.skip(), note, head, *(gr.skip() for _ in range(6 + has_int4))
        now = choices.following(info, shown)
        pan_and_scan = gr.update(visible=info.multimodal, info=pan_and_scan_line(info))
        sampling = (now.temperature, now.top_k, now.top_p)
        int4 = [_int4(info, now.int4)] if has_int4 else []
        first = gr.update(placeholder=first_sight(info, self._models.names))  # seen while the chat is empty
        return info.name, note, head, pan_and_scan, *sampling, *int4, first, gr.update(placeholder=hint(info))

    def _head_of(self, model: str | None, info: ModelInfo | None) -> str:
        return self._head(escape(f"{model} · not loaded yet") if info is None else badge(info))

    def _note(self, model: str | None, info: ModelInfo | None) -> str:
        with self._models.held(model) as engine:
            entry = next((entry for entry in self._models.entries if entry.name == model), None)
            return model_note(entry, info, engine is not None)


def _int4(info: ModelInfo, value: bool | None) -> Any:
    if info.int4 is None:
        return gr.update(visible=False)
    chosen = info.int4.default if value is None else value
    return gr.update(visible=True, value=chosen, info=int4_line(info.int4), interactive=not info.int4.obstacle)
