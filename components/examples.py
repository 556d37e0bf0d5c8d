"""The example cards: pictures with a question each, from assets/examples/examples.json."""

import json
from dataclasses import dataclass
from pathlib import Path

from gemma3_core.engine import Turn

FOLDER = Path(__file__).resolve().parent.parent / "assets" / "examples"


@dataclass(frozen=True)
class Example:
    """A picture, what it shows in words, and a question that is asked with one click."""

    picture: Path
    alt: str
    question: str

    def turn(self) -> Turn:
        return Turn("user", self.question, (self.picture,))


def load_examples(folder: Path = FOLDER) -> tuple[Example, ...]:
    """The cards in their order on the page."""
    entries = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    return tuple(Example(folder / entry["picture"], entry["alt"], entry["question"]) for entry in entries)
