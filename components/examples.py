"""The example cards: pictures with questions about them, from assets/examples/examples.json."""

import json
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image

from gemma3_core.engine import Turn

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "examples"


_CARD = 600  # pixels of the longer side: twice a card's width, for fine screens


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


@cache
def card_picture(path: Path) -> bytes:
    """A picture as its card shows it: a small WebP, a quarter of the file's size."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_CARD, _CARD))
    data = BytesIO()
    small.save(data, "WEBP", quality=80, method=6)
    return data.getvalue()
