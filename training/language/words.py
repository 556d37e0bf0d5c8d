"""Words and lines of English, each list from the text file beside this one."""

from pathlib import Path

WORDS = tuple(Path(__file__).with_name("words.txt").read_text(encoding="utf-8").split())
"""What signs say: common words, and words that real signs show; lower case, 1 to 8 letters, by length.

The chat template's role names ("model", "user") are missing: each is one token wherever it stands alone.
"""

ORDINARY_TEXT = tuple(Path(__file__).with_name("ordinary_text.txt").read_text(encoding="utf-8").splitlines())
"""Everyday English, so that the tokenizer does not cut what people type besides the demo's questions into letters."""
