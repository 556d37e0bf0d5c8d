"""The conversation: questions, answers, and what stands in an answer's place while it is being worked on."""

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, cast

import gradio as gr
from gradio.processing_utils import move_files_to_cache

from components.chat.conversation import Conversation, Exchange
from components.examples import Example, card_address
from components.shown.fields_view import fields_html
from components.shown.markdown import literal, of_model
from components.shown.stats import count, figures_line, short_line
from gemma3_core.engine import UNGATED_NAME, ModelInfo, Turn


class Message(dict[str, Any]):
    """A message as gr.Chatbot takes it; it is never changed, so that it needs to be prepared only once."""

    prepared: list[dict[str, Any]] | None = None
    """The message as the browser gets it, once it has been shown (see `prepare`)."""


_NOT_IN_BROWSERS = (".tif", ".tiff")  # the strip still shows them

_DEMO = "A small demo model answers: shapes, signs, bar charts, price boards."
_DEMO_LIMITS = (
    "It knows flat shapes in eleven colors, signs, bar charts, and boards of words and prices, which need pan & scan. "
    "About nineteen in twenty of its answers about them are right; it names the tallest bar in about two thirds "
    "of the charts. Asked about anything else, it says that it doesn't know. {}"
)
_ONWARD = "For photographs and everything else, {}"
_CHOOSE_PUBLISHED = f"choose {UNGATED_NAME} under Model in the settings."
_START_PUBLISHED = "start Gemma 3 4B: `python app.py --model google/gemma-3-4b-it`"
_DUPLICATE = "duplicate this Space, on a GPU, and set its variable GEMMA_MODEL to google/gemma-3-4b-it."
_BORROWED = (
    "\n\nA GPU is lent for each answer and counts as your ZeroGPU time. Nothing is kept between two answers, so each "
    "question of a conversation reads the whole of it again."
)
_KNOWS_NOTHING = ("I only know", "I can only tell you")
"""How the demo model begins to say that a picture or a question is none of its world (see its model card)."""


def build_chat(info: ModelInfo, examples: Sequence[Example], models: Sequence[str] = ()) -> gr.Chatbot:
    """The conversation. Before the first question it shows what the model can do; `models` are those to choose from."""
    return gr.Chatbot(
        elem_id="chat",
        show_label=False,
        container=False,
        layout="bubble",
        height="auto",
        placeholder=first_sight(info, models),
        examples=[
            {"text": example.text(), "files": [_card(picture, example.alt) for picture in example.pictures]}
            for example in examples
        ],
        buttons=[],
        feedback_options=None,
        latex_delimiters=[],
        allow_tags=False,
        sanitize_html=True,
        render_markdown=True,
        allow_file_downloads=False,
    )


def _card(picture: Path, alt: str) -> Any:
    """A card's picture at the address where the gate serves it; screen readers read `alt`."""
    name = picture.name
    return {
        "path": name, "url": card_address(picture), "orig_name": alt, "mime_type": "image/svg+xml",
        "meta": {"_type": "gradio.FileData"},
    }  # fmt: skip


def first_sight(info: ModelInfo, models: Sequence[str] = ()) -> str:
    """Markdown of the page's first lines: what this is and what the model can do; `models` are those to choose from."""
    if info.continues_text:
        pictures = "" if info.multimodal else " It reads text only."
        return (
            f"## Begin a text, and watch it go on\n\n{literal(info.name)} continues what you write. It is a base "
            f"model, not trained to answer questions.{pictures}{_BORROWED if info.borrowed else ''}"
        )
    if not info.multimodal:
        return (
            f"## Ask a question, and watch the answer come in\n\n{literal(info.name)} answers. "
            f"It reads text only. For pictures, {_start()}{_BORROWED if info.borrowed else ''}"
        )
    said = f"{literal(info.name)} answers. It can be wrong about what it sees."
    if info.is_demo:
        limits = of_model(_DEMO_LIMITS.format(onward(models)))
        said = f"{_DEMO}\n\n<details><summary>What it can't do</summary>\n\n{limits}\n\n</details>"
    return f"## Ask about a picture, and see what the model saw\n\n{said}{_BORROWED if info.borrowed else ''}"


def onward(models: Sequence[str]) -> str:
    """Which model reads what the demo model can't; `models` are those to choose from."""
    return _ONWARD.format(_CHOOSE_PUBLISHED if UNGATED_NAME in models else _start())


def _start() -> str:
    """How to get a larger model; a Space's visitors have no command line."""
    return _DUPLICATE if "SPACE_ID" in os.environ else _START_PUBLISHED


def messages(
    conversation: Conversation, controls: bool = True, advice: str = "", looks_closer: bool = False
) -> list[Message]:
    """The finished exchanges.

    With `controls` each question has a button to edit it, each answer Retry, and the last one Undo and, if it was cut,
    Continue. While a question is being edited there are none. `advice` stands under the last answer, with a button for
    a closer look if it `looks_closer`.
    """
    shown: list[Message] = []
    controls = controls and conversation.changing is None
    for number, exchange in enumerate(conversation.exchanges):
        last = number == len(conversation.exchanges) - 1
        shown += [
            *asked(exchange.question, number if controls else None),
            _answered(exchange, number, controls, last, advice if last else "", looks_closer),
        ]
    return shown


def prepare(chat: gr.Chatbot, shown: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as the browser gets them, exactly as `chat` itself would prepare them.

    Each message is prepared once. A redraw holds the finished messages of the one before, so it prepares only the
    message that is being written. Gradio would prepare the whole conversation each time.
    """
    for message in shown:
        if message.prepared is None:
            data = chat.postprocess([cast(Any, message)]).model_dump()
            message.prepared = move_files_to_cache(data, chat, postprocess=True)
    return [part for message in shown for part in message.prepared or ()]


def asked(question: Turn, number: int | None = None) -> list[Message]:
    """A question with its pictures; no message for an empty one. With its `number` (from 0) it has an edit button."""
    content: list[Any] = [_picture(Path(str(path))) for path in question.pictures]
    if question.text:
        content.append(_text(literal(question.text)))
    if number is not None:
        edit = _button("edit", "Edit", f"Edit question {number + 1}", number)
        content.append(gr.HTML(f'<p class="beneath"><span class="acts">{edit}</span></p>'))
    return [Message(role="user", content=content)] if content else []


def _picture(path: Path) -> Any:
    if path.suffix.lower() in _NOT_IN_BROWSERS:
        return gr.HTML(f'<p class="unshown">{escape(path.name)}: a TIFF, which browsers can\'t show</p>')
    return {"path": str(path), "alt_text": path.name}


def answering(text: str) -> Message:
    """An answer that is being written."""
    return Message(role="assistant", content=[_text(of_model(text))])


def working(stage: str) -> Message:
    """The stage of the work, in words, where the answer will stand."""
    return _line(f'<p class="stage" role="status">{escape(stage)}</p>')


def failed(reason: str) -> Message:
    """Why there is no answer and what to do, where the answer would stand."""
    return _line(f'<p class="failure" role="alert">{escape(reason)}</p>')


def knows_nothing(answer: str) -> bool:
    """Whether the demo model says that a picture or a question is none of its world."""
    return answer.startswith(_KNOWS_NOTHING)


def at_first(exchange: Exchange | None) -> list[Message]:
    """The answer before a closer look, while that is being taken."""
    return [] if exchange is None else [Message(role="assistant", content=_first_look(exchange))]


def _first_look(exchange: Exchange) -> list[Any]:
    return [gr.HTML('<p class="look">At first sight</p>'), _text(of_model(exchange.answer))]


def _closer_look(exchange: Exchange, first: Exchange, said: Any) -> list[Any]:
    """Both answers, one beside the other on a wide page; `said` is the later one."""
    line = f'<p class="look">Looked again, with {count(exchange.stats.num_crops, "crop")}</p>'
    return [*_first_look(first), gr.HTML(line), said]


def _answered(exchange: Exchange, number: int, controls: bool, last: bool, advice: str, looks_closer: bool) -> Message:
    stats, buttons = exchange.stats, []
    if controls and last and stats.stop_reason == "length":
        buttons.append(_button("continue", "Continue", "Continue the answer where it was cut"))
    buttons.append(_button("inside-open", "Look inside", f"Look inside answer {number + 1}", number))
    buttons.append(_button("code", "Code", f"Show answer {number + 1} as a program", number))
    buttons.append(_button("copy", "Copy", f"Copy answer {number + 1}"))
    if controls:
        which = "the last question" if last else f"question {number + 1}"
        buttons.append(_button("retry", "Retry", f"Retry: ask {which} again", number))
    if controls and last:
        buttons.append(_button("undo", "Undo", "Undo: move the last question back into the composer", number))
    rest = figures_line(stats).removeprefix(f"{stats.model} · ")
    figures = f"<details><summary>{escape(short_line(stats))}</summary><span>{escape(rest)}</span></details>"
    line = f'<div class="figures">{figures}<span class="acts">{"".join(buttons)}</span></div>'
    if advice:
        closer = ""
        if looks_closer and controls:
            closer = " " + _button(
                "look-closer", "Look closer", f"Look closer: ask question {number + 1} again", number
            )
        line = f'<p class="advice">{escape(advice.replace("`", ""))}{closer}</p>{line}'
    values = exchange.values
    said: Any = gr.HTML(fields_html(values, exchange.answer, number)) if values else _text(of_model(exchange.answer))
    both = [said] if exchange.first is None else _closer_look(exchange, exchange.first, said)
    return Message(role="assistant", content=[*both, gr.HTML(line)])


def _button(act: str, text: str, name: str, number: int = 0) -> str:
    """A button for which page.js clicks the hidden button with the id `act`; `name` is for screen readers."""
    return f'<button type="button" data-act="{act}" data-number="{number}" aria-label="{name}">{text}</button>'


def remark(text: str) -> Message:
    """What became of a question without an answer, where nothing went wrong."""
    return _line(f'<p class="remark" role="status">{escape(text)}</p>')


def _line(html: str) -> Message:
    return Message(role="assistant", content=[gr.HTML(html)])


def _text(text: str) -> dict[str, str]:
    # A dict, because Gradio removes the indentation of a plain string.
    return {"type": "text", "text": text}


def badge(info: ModelInfo) -> str:
    """HTML of the line with the model's name, size, precision and device.

    Where the visitor chooses the precision it holds a line for each, and style.css shows the one that the int4 switch
    says: a server asked at each switch might answer the first one last.
    """
    if info.outside:
        return f"<span>{escape(info.name)} · <span>on another server</span></span>"
    if info.int4 is None:
        return _badge_line(info, info.quantization == "int4")
    return _badge_line(info, False, ' class="if-full"') + _badge_line(info, True, ' class="if-int4"')


def _badge_line(info: ModelInfo, int4: bool, attribute: str = "") -> str:
    exact = f"{'int4' if int4 else info.dtype} on {info.device}"
    facts = [
        info.name,
        _size(info.num_parameters),
        "4-bit weights" if int4 else "full precision",
        "on ZeroGPU" if info.borrowed else "on the CPU" if info.device == "cpu" else "on a GPU",
    ]
    return f'<span{attribute} title="{escape(exact)}">{escape(" · ".join(facts))}</span>'


def _size(parameters: int) -> str:
    for unit, letter in ((1_000_000_000, "B"), (1_000_000, "M")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{letter} weights"
    return count(parameters, "weight")
