"""The page: panels, and what connects them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components.ask_endpoint import build_ask_endpoint
from components.asking import Asking
from components.chat import badge, build_chat
from components.composer import build_composer
from components.conversation import Conversation
from components.examples import Example, load_examples
from components.serving import Page
from components.settings import Settings, build_settings
from components.strip import build_strip
from gemma3_core.engine import Engine

TITLE = "Gemma 3 and pictures"
_HOUR_S, _DAY_S = 3600, 86400

# The browser says which files the composer holds; the strip is drawn anew only when that changes,
# not with each letter of the question. What it says is not used for anything else.
_FILES_JS = "(message) => (message?.files ?? []).map((file) => file.path).join('\\n')"


@dataclass(frozen=True)
class Panels:
    """The parts of the page that act on each other."""

    conversation: gr.State
    settings: Settings
    chat: gr.Chatbot
    composer: gr.MultimodalTextbox
    strip: gr.HTML
    clear: gr.Button


def build_page(engine: Engine, examples: Sequence[Example] | None = None) -> gr.Blocks:
    """The whole app around a loaded engine; `launch` is the caller's."""
    cards = load_examples() if examples is None else tuple(examples)
    with Page(title=TITLE, fill_height=True, analytics_enabled=False, delete_cache=(_HOUR_S, _DAY_S)) as page:
        conversation = gr.State(Conversation())
        settings = build_settings(engine.info)
        with gr.Column(elem_id="main"):
            with gr.Row(elem_id="head"):
                gr.HTML(f'<h1>{TITLE}</h1><p class="badge">{badge(engine.info)}</p>')
                clear = gr.Button("New chat", elem_id="clear", size="sm", scale=0, min_width=96)
            chat = build_chat(engine.info, cards)
            composer = build_composer(engine.info)
            strip = build_strip()
        asking = Asking(engine, cards)
        panels = Panels(conversation, settings, chat, composer, strip, clear)
        answers = _connect_answers(asking, panels)
        _connect_strip(asking, panels, answers)
        page.unload(asking.stop)
        build_ask_endpoint(engine)
    page.queue(default_concurrency_limit=None)
    return page


def _connect_answers(asking: Asking, panels: Panels) -> list[Any]:
    """What leads to an answer, or ends one; the events after which something has been answered."""
    retry = gr.Button("Retry", elem_id="retry", visible="hidden")
    state, composer, values = panels.conversation, panels.composer, panels.settings.inputs
    # No limit here: the engine's own queue says who is answered when.
    common: dict[str, Any] = {
        "outputs": [panels.chat, composer, state],
        "show_progress": "hidden",
        "concurrency_limit": None,
        "api_visibility": "private",
    }
    composer.stop(asking.stop, None, None, queue=False, show_progress="hidden", api_visibility="private")
    return [
        composer.submit(asking.send, [composer, state, *values], **common),
        panels.chat.example_select(asking.ask_example, [state, *values], **common),
        retry.click(asking.retry, [state, *values], **common),
        panels.clear.click(asking.clear, None, **common),
    ]


def _connect_strip(asking: Asking, panels: Panels, answers: Sequence[Any]) -> None:
    composer, switch = panels.composer, panels.settings.pan_and_scan
    files = gr.Textbox(elem_id="composer-files", visible="hidden")
    composer.change(None, composer, files, js=_FILES_JS, api_visibility="private")
    draw: dict[str, Any] = {
        "fn": asking.preview,
        "inputs": [composer, switch, panels.conversation],
        "outputs": panels.strip,
        "show_progress": "hidden",
        "concurrency_limit": 2,  # decoding pictures is work for the processor
        "api_visibility": "private",
    }
    gr.on([files.change, switch.change], trigger_mode="always_last", **draw)
    for answer in answers:
        answer.then(**draw)
