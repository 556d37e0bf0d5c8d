"""The strip under the composer: each tile that the image encoder gets, and the crops marked on the original."""

import base64
from collections.abc import Iterable
from html import escape
from io import BytesIO

import gradio as gr
from PIL.Image import Image

from components.shown.stats import count
from gemma3_core.engine import PicturePreview

_SIDE = 176  # pixels, twice what the page shows, for dense screens


def build_image_strip() -> gr.HTML:
    """Empty until the composer or the conversation holds a picture."""
    return gr.HTML(elem_id="strip", visible=True)


def build_token_count() -> gr.HTML:
    """The line with the token count of the whole prompt; it unfolds to the tokens themselves."""
    return gr.HTML(elem_id="token-count")


def strip_html(
    previews: Iterable[PicturePreview], num_pictures: int, pan_and_scan: bool, answered: bool = False
) -> str:
    """HTML of what the model will see of these pictures, or (`answered`) saw for the last answer; empty without any.

    With `pan_and_scan` on, a note for each picture says why it is cut or not.
    """
    if not num_pictures:
        return ""
    tokens = tiles = 0
    pictures = []
    for number, preview in enumerate(previews, 1):  # one at a time, because each holds its picture in memory
        tokens += preview.tokens
        tiles += len(preview.tiles)
        pictures.append(_picture(number, preview, pan_and_scan, several=num_pictures > 1))
    title = f"What the model {'saw' if answered else 'will see'}"
    summary = f"{title}: {count(tiles, 'tile')}, {count(tokens, 'token')}"
    mark = " data-answered" if answered else ""
    return f'<details class="strip"{mark} open><summary>{summary}</summary>{"".join(pictures)}</details>'


def unloaded_html(model: str) -> str:
    """HTML for pictures while their model is not loaded yet."""
    text = f"Once {model} is loaded, this shows what it sees of each picture."
    return f'<div class="strip"><p class="note">{escape(text)}</p></div>'


def problem_html(reason: str) -> str:
    """HTML of why a picture can't be used."""
    return f'<div class="strip"><p class="failure" role="alert">{escape(reason)}</p></div>'


def _picture(number: int, preview: PicturePreview, explained: bool, several: bool) -> str:
    """HTML of one picture's tiles; with `several` pictures its captions say which one it is."""
    tokens = preview.tokens // len(preview.tiles)
    which = f"picture {number}, " if several else ""
    figures = [_original(number, preview, which)] if preview.boxes else []
    for index, tile in enumerate(preview.tiles):
        name = f"crop {index}" if index else "whole picture"
        image = _image(tile, f"Picture {number}, {name}, as the model gets it")
        figures.append(_figure(image, f"picture {number}" if several and not index else which + name, tokens))
    note = f'<p class="note">{escape(preview.note)}</p>' if explained and preview.note else ""
    return f'<div class="tiles">{"".join(figures)}</div>{note}'


def _original(number: int, preview: PicturePreview, which: str) -> str:
    boxes = "".join(_box(index, preview) for index in range(1, len(preview.boxes) + 1))
    image = _image(preview.original, f"Picture {number} with its crops marked")
    size = f"{preview.width:,} × {preview.height:,}"
    caption = f"<figcaption>{which}original<br>{size}</figcaption>"
    return f'<figure class="original"><div>{image}{boxes}</div>{caption}</figure>'


def _box(index: int, preview: PicturePreview) -> str:
    box = preview.boxes[index - 1]
    left, top = 100 * box.left / preview.width, 100 * box.top / preview.height
    width, height = 100 * (box.right - box.left) / preview.width, 100 * (box.bottom - box.top) / preview.height
    style = f"left:{left:.2f}%;top:{top:.2f}%;width:{width:.2f}%;height:{height:.2f}%"
    return f'<span class="box" style="{style}">{index}</span>'


def _figure(image: str, name: str, tokens: int) -> str:
    return f"<figure>{image}<figcaption>{name}<br>{count(tokens, 'token')}</figcaption></figure>"


def _image(picture: Image, alt: str) -> str:
    small = picture.copy()
    small.thumbnail((2 * _SIDE, _SIDE))
    return picture_html(small, alt)


def picture_html(picture: Image, alt: str, longest: int | None = None) -> str:
    """An <img> that holds the picture itself, with its longer side at most `longest` pixels."""
    small = picture.copy()
    if longest is not None:
        small.thumbnail((longest, longest))
    data = BytesIO()
    small.convert("RGB").save(data, "JPEG", quality=85)
    source = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{source}" alt="{escape(alt)}">'
