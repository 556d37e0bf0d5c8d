"""The picker above the composer: which pages of a document, or how many frames of a video, become pictures."""

import base64
import json
from collections.abc import Sequence
from html import escape

import gradio as gr

from components.shown.stats import count
from gemma3_core.engine import MAX_TAKEN, Document, Taken, enough_pixels


def build_picker() -> gr.HTML:
    """Empty until a file with several pictures is added; also says why one can't be read."""
    return gr.HTML(elem_id="picker")


def picker_html(document: Document, name: str, costs: Sequence[int], suggested: int, problem: str = "") -> str:
    """HTML of the choice. `costs` are the tokens of each page, or of each frame of a video; `suggested` is how many
    pictures are chosen at first."""
    is_video = document.seconds is not None
    told = f"{clock(document.seconds or 0)} long" if is_video else count(document.count, "page")
    field = _frames(suggested) if is_video else _pages(document, suggested)
    wrong = f'<p class="failure" role="alert">{escape(problem)}</p>' if problem else ""
    what = "frames" if is_video else "pages"
    return (
        f'<div class="picker" role="group" aria-label="Choose {what}" data-costs="{json.dumps(list(costs))}" '
        f'data-most="{MAX_TAKEN}"><p><b>{escape(name)}</b>: {document.kind}, {told}</p>{wrong}{field}'
        f"{_thumbnails(document)}"
        f'<p class="row"><button type="button" class="primary" data-pick="take">Add {what}</button> '
        '<button type="button" data-pick="nothing">Cancel</button> '
        '<span class="cost" role="status"></span></p></div>'
    )


def failure_html(reason: str) -> str:
    """HTML of why a file gives no picture."""
    return f'<p class="failure" role="alert">{escape(reason)}</p>'


def smaller_html(picture: Taken, name: str) -> str:
    """HTML that says that a photograph has been made smaller; empty where it has not."""
    width, height = enough_pixels(picture.width, picture.height)
    if (width, height) == (picture.width, picture.height):
        return ""
    sizes = f"{width:,} × {height:,} instead of {picture.width:,} × {picture.height:,} pixels"
    return f'<p class="note">{escape(name)} is used at {sizes}: the model sees hardly any difference.</p>'


def clock(seconds: float) -> str:
    """A time in a video: "0:12", "1:02:03"."""
    minutes, second = divmod(int(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def _pages(document: Document, suggested: int) -> str:
    first = f"1-{suggested}" if suggested > 1 else "1"
    listed = "" if document.count <= len(document.sizes) else f"; the first {len(document.sizes):,} can be chosen"
    return (
        f'<label>Pages <input type="text" class="numbers" value="{first}" autocomplete="off"></label>'
        f'<span class="note">such as 1-3, 7; at most {MAX_TAKEN}{listed}</span>'
    )


def _frames(suggested: int) -> str:
    return (
        f'<label>Frames <input type="number" class="numbers" min="1" max="{MAX_TAKEN}" value="{suggested}"></label>'
        '<span class="note">evenly spaced, each with its time in the prompt</span>'
    )


def _thumbnails(document: Document) -> str:
    buttons = "".join(
        f'<button type="button" class="page" data-page="{number + 1}" aria-pressed="false" '
        f'aria-label="Page {number + 1}"><img alt="" src="data:image/jpeg;base64,'
        f'{base64.b64encode(data).decode("ascii")}">{number + 1}</button>'
        for number, data in document.thumbnails
    )
    return f'<div class="pages">{buttons}</div>' if buttons else ""
