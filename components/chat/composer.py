"""The composer, where a visitor writes a question and adds pictures."""

from html import escape
from typing import Any

import gradio as gr

from components.chat.conversation import Conversation
from gemma3_core.engine import ModelInfo, Turn

# What pictures.js reads through the server before the composer gets it, as the file dialog filters it.
DOCUMENTS = ("video", ".pdf", ".heic", ".heif", ".jp2", ".mkv")
SOURCES = (
    '<p><button type="button" data-from="camera">Take a photo</button>'
    '<button type="button" data-from="table">Ask about many pictures</button></p>'
)
# Long pasted text stays text, which Gradio would turn into a file. The engine reports text that is too long.
_MAX_PASTED = 1_000_000


def build_composer(info: ModelInfo, attaches: bool = True) -> gr.MultimodalTextbox:
    """Pictures by button (if it `attaches`), drop and paste; Enter sends, Shift+Enter breaks the line."""
    return gr.MultimodalTextbox(
        elem_id="composer",
        elem_classes=[] if attaches else ["text-only"],
        label="Your question",
        show_label=False,
        container=False,
        placeholder=hint(info),
        file_types=["image", *DOCUMENTS],
        file_count="multiple",
        lines=1,  # with more than one, Enter would break the line
        max_lines=8,
        max_plain_text_length=_MAX_PASTED,
    )


def hint(info: ModelInfo) -> str:
    """The placeholder of an empty composer."""
    if info.continues_text:
        return "Start a text to be continued"
    return "Ask about a picture: add, drop or paste one" if info.multimodal else "Ask a question"


def build_notice() -> gr.HTML:
    """The line above the composer: what is being edited, what can be brought back, or what a question lacks."""
    return gr.HTML(elem_id="changing")


def build_making() -> gr.HTML:
    """The line beside it about an answer card that is being made, so that neither takes the other's place."""
    return gr.HTML(elem_id="making")


def notice(conversation: Conversation) -> str:
    """HTML of the line for as long as a question is being edited, or what an action has replaced can be brought
    back; empty for neither."""
    if conversation.changing is not None:
        return (
            f'<p role="status"><span>Editing question {conversation.changing + 1}. '
            "Sending it replaces its answer and everything after it.</span> "
            '<button type="button" data-act="keep">Cancel editing</button></p>'
        )
    if conversation.before is None:
        return ""
    button = '<button type="button" data-act="restore">Bring it back</button>'
    return f'<p role="status"><span>{escape(conversation.replaced)}</span> {button}</p>'


def missing(text: str) -> str:
    """HTML of the line that says what a question lacks."""
    return f'<p role="status"><span>{escape(text)}</span></p>'


def waiting() -> dict[str, Any]:
    """Shows Stop instead of Send; the text that the visitor has typed stays."""
    return gr.update(submit_btn=False, stop_btn=True)


def ready() -> dict[str, Any]:
    """Shows Send again; the text that the visitor has typed stays."""
    return gr.update(submit_btn=True, stop_btn=False)


def holding(question: Turn) -> dict[str, Any]:
    """Replaces the composer's content with this question and its pictures."""
    return gr.update(value={"text": question.text, "files": [str(picture) for picture in question.pictures]})


def emptied() -> dict[str, Any]:
    """Empties the composer and shows Send."""
    return gr.update(value={"text": "", "files": []}, submit_btn=True, stop_btn=False)
