"""What the page asks for at once: its languages, and Gradio's style sheets as one instead of forty."""

from functools import cache
from hashlib import sha256
from pathlib import Path

import gradio

ASSETS = Path(__file__).parents[2] / "assets"
WORDS = ASSETS / "words"
"""A file for each language besides English: the English sentence, and what to show in its place."""
_STYLES = Path(gradio.__file__).parent / "templates" / "frontend" / "assets"
_MOST_BYTES = 20_000
"""Of a style sheet; larger are that of the whole page, which comes first, and those of parts that it doesn't show."""
# Gradio's page takes a style sheet that has a link for one that is there. A browser fetches none that is disabled.
_LINKS = """<script>for (const name of %s) document.head.append(Object.assign(
  document.createElement("link"), { rel: "stylesheet", disabled: true, href: `assets/${name}` }));</script>
"""


@cache
def style_sheets() -> tuple[Path, ...]:
    """Those that are joined: small, and without addresses, which would be relative to another file."""
    small = [file for file in sorted(_STYLES.glob("*.css")) if file.stat().st_size <= _MOST_BYTES]
    return tuple(file for file in small if not _has_addresses(file.read_text(encoding="utf-8")))


def _has_addresses(style: str) -> bool:
    return "@import" in style or "url(" in style.replace("url(data:", "").replace('url("data:', "")


@cache
def joined_styles() -> bytes:
    return b"\n".join(file.read_bytes() for file in style_sheets())


@cache
def head() -> str:
    """HTML for the end of the page's head."""
    languages = sorted(file.stem for file in WORDS.glob("*.json"))
    words = (ASSETS / "words.js").read_text(encoding="utf-8").replace("LANGUAGES = []", f"LANGUAGES = {languages}", 1)
    version = sha256(joined_styles()).hexdigest()[:16]
    links = _LINKS % [file.name for file in style_sheets()]
    return f'<script>{words}</script><link rel="stylesheet" href="styles.css?{version}">{links}'
