"""What the terminal says of a public link, and that its QR code holds the link."""

import re
from datetime import datetime

import segno

from components.serving.public_link import public_link_text

LINK = "https://0123456789abcdef01.gradio.live"
BLOCKS = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}  # half blocks: the upper and the lower module


def test_it_says_the_link_when_it_ends_and_shows_the_code():
    text = public_link_text(LINK, datetime(2026, 11, 28, 14, 30))
    link, ends, *code = text.splitlines()
    assert LINK in link
    assert "Saturday, 05 December, at 14:30" in ends
    drawn = [row for line in code for row in zip(*(BLOCKS[mark] for mark in _marks(line)), strict=True)]
    modules = [tuple(row) for row in segno.make(LINK, error="l").matrix_iter(border=2)]
    assert [tuple(1 - bit for bit in row) for row in drawn[: len(modules)]] == modules  # a block is a light module


def _marks(line: str) -> str:
    """The line without the terminal's colors."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line)
