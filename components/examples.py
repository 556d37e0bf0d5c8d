"""The example cards: pictures with questions about them, from assets/examples/examples.json."""

import json
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from gemma3_core.engine import ModelInfo, Turn

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "examples"
_WIDTH, _HEIGHT = 536, 335
"""Pixels of a card's picture: twice those of the page, for fine screens."""


@dataclass(frozen=True)
class Example:
    """Pictures, a description of them (`alt`), and questions that one click asks, one after the other.

    `pan_and_scan` and `system_prompt` are settings of the card. Where it has none, the visitor's own stay.
    """

    pictures: tuple[Path, ...]
    alt: str
    questions: tuple[str, ...]
    pan_and_scan: bool = False
    system_prompt: str = ""

    def turns(self) -> tuple[Turn, ...]:
        """The questions as turns; the first one holds the pictures."""
        first, *further = self.questions
        return (Turn("user", first, self.pictures), *(Turn("user", question) for question in further))

    def text(self) -> str:
        """The text on the card."""
        settings = ["pan & scan on"] if self.pan_and_scan else []
        settings += [f"system prompt: {self.system_prompt}"] if self.system_prompt else []
        note = f" ({', '.join(settings)})" if settings else ""
        return " ".join(self.questions) + note


def load_examples(folder: Path = FOLDER) -> tuple[Example, ...]:
    """The cards, in the order in which the page shows them."""
    entries = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return tuple(
        Example(
            tuple(folder / picture for picture in entry["pictures"]),
            entry["alt"],
            tuple(entry["questions"]),
            entry.get("pan_and_scan", False),
            entry.get("system_prompt", ""),
        )
        for entry in entries
    )


TEXT_EXAMPLES = (
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Explain to a child why the sky is blue.",
    "Name three fruits that are not red.",
)
BEGINNINGS = (
    "The capital of France is",
    "Plants create energy through a process known as",
    "Once upon a time, in a village by the sea, there lived",
    "The three primary colors are",
)


def examples_for(info: ModelInfo) -> tuple[Example, ...]:
    """The cards that suit a model: pictures for one that sees, and beginnings of texts for a base model."""
    if info.continues_text:
        return tuple(Example((), "", (beginning,)) for beginning in BEGINNINGS)
    return load_examples() if info.multimodal else tuple(Example((), "", (text,)) for text in TEXT_EXAMPLES)


def card_address(picture: Path) -> str:
    """Where the gate serves a card's picture: all are in one file, each under a name of its own."""
    return f"/cards.svg#{picture.stem}"


@cache
def card_sheet() -> bytes:
    """An SVG with a view of each card's picture, so that a browser makes one request for all of them."""
    pictures = dict.fromkeys(picture for card in load_examples() for picture in card.pictures)
    parts = []
    for number, picture in enumerate(pictures):
        y = number * 2 * _HEIGHT  # room between the pictures keeps each out of its neighbors' views
        data = b64encode(_card_picture(picture)).decode()
        parts.append(
            f'<view id="{picture.stem}" viewBox="0 {y} {_WIDTH} {_HEIGHT}"/>'
            f'<image y="{y}" width="{_WIDTH}" height="{_HEIGHT}" href="data:image/webp;base64,{data}"/>'
        )
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">{"".join(parts)}</svg>'
    return svg.encode()


def _card_picture(path: Path) -> bytes:
    """A picture as its card shows it: a small WebP, a quarter of the file's size."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_WIDTH, _HEIGHT))
    data = BytesIO()
    small.save(data, "WEBP", quality=80, method=6)
    return data.getvalue()
