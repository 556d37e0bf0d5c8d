"""Where a question is written and pictures are added."""

from typing import Any

import gradio as gr

from gemma3_core.engine import ModelInfo, Turn

# Long pasted text stays text (Gradio would turn it into a file); the engine says when it is too long.
_MAX_PASTED = 1_000_000


def build_composer(info: ModelInfo) -> gr.MultimodalTextbox:
    """Pictures by button, drop and paste; Enter sends, Shift+Enter breaks the line."""
    return gr.MultimodalTextbox(
        elem_id="composer",
        label="Your question",
        show_label=False,
        container=False,
        placeholder=hint(info),
        file_types=["image"],
        file_count="multiple",
        lines=1,  # with more, Enter would break the line
        max_lines=8,
        max_plain_text_length=_MAX_PASTED,
    )


def hint(info: ModelInfo) -> str:
    """What stands in an empty composer."""
    return "Ask about a picture: add, drop or paste one" if info.multimodal else "Ask a question"


def build_notice() -> gr.HTML:
    """Where it is said that the composer holds an earlier question."""
    return gr.HTML(elem_id="changing")


def notice(number: int | None) -> str:
    """HTML of what sending will replace; empty where `number` (from 0 on) is None."""
    if number is None:
        return ""
    return (
        f'<p role="status"><span>Editing question {number + 1}. '
        "Sending it replaces its answer and what follows.</span> "
        '<button type="button" data-act="keep">Keep it as it was</button></p>'
    )


def waiting() -> dict[str, Any]:
    """Stop in the place of Send; what the visitor types meanwhile stays."""
    return gr.update(submit_btn=False, stop_btn=True)


def ready() -> dict[str, Any]:
    """Send is back; what the visitor has typed meanwhile stays."""
    return gr.update(submit_btn=True, stop_btn=False)


def holding(question: Turn) -> dict[str, Any]:
    """This question and its pictures, and nothing else."""
    return gr.update(value={"text": question.text, "files": [str(picture) for picture in question.pictures]})


def emptied() -> dict[str, Any]:
    """As at the first sight."""
    return gr.update(value={"text": "", "files": []}, submit_btn=True, stop_btn=False)
