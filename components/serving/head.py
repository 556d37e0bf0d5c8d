"""What the page asks for at once: its languages, and what its first load takes of Gradio's frontend."""

import json
import re
from functools import cache
from hashlib import sha256
from pathlib import Path

from components.serving.frontend import ASSETS as GRADIOS
from components.serving.frontend import first_files

ASSETS = Path(__file__).parents[2] / "assets"
WORDS = ASSETS / "words"
"""A file for each language besides English: the English sentence, and what to show in its place."""
_BASE = re.compile(r"<base\b[^>]*>")
_STYLE = re.compile(r'<link (?=rel="stylesheet"[^>]* href="\./assets/([\w.-]+)">)')
_RESIZER = re.compile(r"(iframeResizer\.contentWindow[^<]*?)(document\.head\.appendChild\(script\))")
# Gradio's page takes a style sheet that has a link for one that is there. A browser fetches none that is disabled.
_LINKS = """<script>for (const name of %s) document.head.append(Object.assign(document.createElement("link"),
  { rel: "stylesheet", disabled: true, href: new URL(name, document.baseURI).href }));</script>
"""

# Gradio's page makes a proxy of each part of its config that it reads, to learn of changes, and for each component it
# reads all events. They never change, and it makes none of an array with a class of its own. Twice it also looks
# through all components for the one that an event listens to: an event that follows another one listens to none.
_EVENTS = """<script>if (window.gradio_config?.dependencies) {
  for (const event of gradio_config.dependencies) event.targets = event.targets.filter(([id]) => id !== null);
  Object.setPrototypeOf(gradio_config.dependencies, (class extends Array {}).prototype);
}</script>
"""


def with_head(html: str, kinds: frozenset[str], theme: str, theme_hash: str) -> str:
    """Gradio's page with what it asks for at once, for a page with these kinds of components.

    The scripts come first, so that a browser asks for all of them while the rest of the page still arrives; without
    that it would learn of them step by step.
    """
    begin, end = head(kinds, theme, theme_hash)
    joined = [file.name for file in style_sheets(kinds)]
    html = _STYLE.sub(lambda link: f"{link[0]}disabled " if link[1] in joined else link[0], html)
    html = _BASE.sub(lambda base: base[0] + begin, html, count=1)
    # It tells the site around a frame how tall the page is; outside frames it has nobody to tell.
    html = _RESIZER.sub(r"\1window === window.parent || \2", html, count=1)
    return html.replace("</head>", f"{end}</head>", 1)


@cache
def head(kinds: frozenset[str], theme: str, theme_hash: str) -> tuple[str, str]:
    """HTML for the beginning of the page's head, and for its end."""
    languages = sorted(file.stem for file in WORDS.glob("*.json"))
    words = (ASSETS / "words.js").read_text(encoding="utf-8").replace("LANGUAGES = []", f"LANGUAGES = {languages}", 1)
    address = f"styles.css?{sha256(joined_styles(kinds, theme)).hexdigest()[:16]}"
    scripts = [name for name in first_files(kinds) if name.endswith(".js")]
    begin = f'<link rel="preload" as="style" href="{address}">' + "".join(
        f'<link rel="modulepreload" crossorigin href="assets/{name}">' for name in scripts
    )
    there = [f"assets/{file.name}" for file in style_sheets(kinds)]
    if not _has_addresses(theme):
        there.append(f"theme.css?v={theme_hash}")
    styles = f'<link rel="stylesheet" href="{address}">{_LINKS % json.dumps(there)}'
    return begin, f"<script>{words}</script>{styles}{_EVENTS}"


@cache
def joined_styles(kinds: frozenset[str], theme: str) -> bytes:
    """The theme and the style sheets of these kinds of components as one."""
    theme = "" if _has_addresses(theme) else theme
    return b"\n".join([*(file.read_bytes() for file in style_sheets(kinds)), theme.encode()])


@cache
def style_sheets(kinds: frozenset[str]) -> tuple[Path, ...]:
    """Those that are joined: without addresses, which would be relative to another file."""
    files = [GRADIOS / name for name in first_files(kinds) if name.endswith(".css")]
    return tuple(file for file in files if not _has_addresses(file.read_text(encoding="utf-8")))


def _has_addresses(style: str) -> bool:
    return "@import" in style or re.search(r"url\((?!\"?data:)", style) is not None
