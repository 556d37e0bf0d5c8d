"""The conversation: what was asked, what was answered, and what stands there meanwhile."""

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from components.conversation import Conversation, Exchange
from components.examples import Example
from components.markdown import literal, of_model
from components.stats import count, figures_line
from gemma3_core.engine import ModelInfo, Turn

Message = dict[str, Any]

_DEMO_LIMITS = (
    "The demo model that answers knows one small world: pictures of 1 to 6 flat shapes (circle, square, triangle, "
    "star, heart, rectangle) in eleven colors. It says how many there are, what color, what shape, whether one is "
    "there, and where. For pictures of any kind, start Gemma 3 4B: `python app.py --model google/gemma-3-4b-it`"
)


def build_chat(info: ModelInfo, examples: Sequence[Example]) -> gr.Chatbot:
    """The conversation, with the first sight where nothing has been asked yet."""
    chat = gr.Chatbot(
        elem_id="chat",
        show_label=False,
        container=False,
        layout="bubble",
        height="auto",
        placeholder=first_sight(info),
        examples=[{"text": example.question, "files": [str(example.picture)]} for example in examples],
        buttons=[],
        feedback_options=None,
        latex_delimiters=[],
        allow_tags=False,
        sanitize_html=True,
        render_markdown=True,
        allow_file_downloads=False,
    )
    cards: list[Any] = chat.examples or []
    for example, card in zip(examples, cards, strict=True):
        card["files"][0]["orig_name"] = example.alt  # what a screen reader says of the picture
    return chat


def first_sight(info: ModelInfo) -> str:
    """Markdown of the first lines on the page: what this is, and what the model can do."""
    if not info.multimodal:
        return (
            f"## Ask a question, and watch the answer come in\n\n{literal(info.name)} answers. "
            "It reads text only; start Gemma 3 4B or larger for pictures."
        )
    limits = _DEMO_LIMITS if info.is_demo else f"{literal(info.name)} answers. It can be wrong about what it sees."
    return f"## Ask about a picture, and see what the model saw\n\n{limits}"


def messages(conversation: Conversation, retry: bool = True) -> list[Message]:
    """The finished part of the conversation; `retry` lets its last answer be asked for again."""
    shown: list[Message] = []
    for exchange in conversation.exchanges:
        last = exchange is conversation.exchanges[-1]
        shown += [*asked(exchange.question), _answered(exchange, retry=retry and last)]
    return shown


def asked(question: Turn) -> list[Message]:
    """A question with its pictures; nothing where it is empty."""
    content: list[Message] = [{"path": str(picture)} for picture in question.pictures]
    if question.text:
        content.append(_text(literal(question.text)))
    return [{"role": "user", "content": content}] if content else []


def answering(text: str) -> Message:
    """An answer that is being written."""
    return {"role": "assistant", "content": [_text(of_model(text))]}


def working(stage: str) -> Message:
    """What is being done, in words, where the answer will stand."""
    return _line(f'<p class="stage" role="status">{escape(stage)}</p>')


def failed(reason: str) -> Message:
    """Why there is no answer, and what to do, where it would stand."""
    return _line(f'<p class="failure" role="alert">{escape(reason)}</p>')


def _answered(exchange: Exchange, retry: bool) -> Message:
    figures = "Stopped." if exchange.stats is None else figures_line(exchange.stats)
    buttons = '<button type="button" data-act="copy">Copy</button>'
    if retry:
        buttons += '<button type="button" data-act="retry">Retry</button>'
    line = f'<p class="figures"><span>{escape(figures)}</span><span class="acts">{buttons}</span></p>'
    return {"role": "assistant", "content": [_text(of_model(exchange.answer)), gr.HTML(line)]}


def _line(html: str) -> Message:
    return {"role": "assistant", "content": [gr.HTML(html)]}


def _text(text: str) -> Message:
    # As a dict: a bare string would lose its indentation on the way to the page.
    return {"type": "text", "text": text}


def badge(info: ModelInfo) -> str:
    """HTML of the line that names the model, where it runs and how precise it is."""
    precision = info.dtype if info.quantization == "none" else info.quantization
    facts = [info.name, precision, info.device, _size(info.num_parameters)]
    return escape(" · ".join(facts))


def _size(parameters: int) -> str:
    for unit, letter in ((1_000_000_000, "billion"), (1_000_000, "million")):
        if parameters >= unit:
            return f"{parameters / unit:.1f} {letter} weights"
    return count(parameters, "weight")
