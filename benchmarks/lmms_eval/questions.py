"""What lmms-eval asks of this task: the pictures of a question, and whether an answer is right."""

import re
from pathlib import Path
from typing import Any

from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "assets" / "examples"


def pictures(doc: dict[str, Any]) -> list[Image.Image]:
    with Image.open(EXAMPLES / f"{doc['picture']}.png") as picture:
        return [picture.convert("RGB")]


def judged(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Right if the answer has the expected word."""
    return {"right": float(bool(re.search(rf"\b{re.escape(doc['answer'])}\b", results[0], re.IGNORECASE)))}
