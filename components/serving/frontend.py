"""Gradio's frontend: which of its files a first load takes, read from the frontend itself, and two that are changed.

Its bundler (Vite) notes at each import that a script does later which files that import needs. Where another version of
Gradio writes this otherwise, fewer files are found or none, and the browser finds the others as it would without us.
"""

import re
from functools import cache
from pathlib import Path

import gradio

FRONTEND = Path(gradio.__file__).parent / "templates" / "frontend"
ASSETS = FRONTEND / "assets"
_ENTRY = re.compile(r'<(?:script|link)\b[^>]* (?:src|href)="\./assets/([\w.-]+)"')
_PARTS = re.compile(r"(Index|core|Blocks)-[\w-]+\.js")
"""What each page loads besides its components: itself, what all components share, and what puts them together."""
_FILES = re.compile(r"\bm\.f=(\[[^\]]*\])")
_LATER = re.compile(r"import\(`\./([\w.-]+)`\)(?:(?!import\().)*?__vite__mapDeps\(\[([\d,]*)\]\)", re.DOTALL)
_KIND = re.compile(r"\b(\w+):\{([^{}]*)\}")
_COMPONENT = re.compile(r"\bcomponent:[^`]*`\./([\w.-]+)`")
_STREAMS = re.compile(r"hls-[\w-]+\.js")
_STATUS = re.compile(r"statustracker-[\w-]+\.js")
_PENDING = re.compile(r"\b\w+\.status===`pending`(?=\?)")
_NEXT_FRAME = re.compile(r"(?<=/1e3\),)(?=\w+&&\w+\(\)\}\)\})")
_EXPORTS = re.compile(r"\bexport\{([\w$ ,]+)\};?\s*\Z")


@cache
def first_files(kinds: frozenset[str]) -> tuple[str, ...]:
    """The names of the scripts and style sheets that a page with these kinds of components takes, first ones first."""
    names, core = _ENTRY.findall(_text(FRONTEND / "index.html")), ""
    for later, needed in [part for name in names for part in _parts(name)]:
        names += needed
        if later.startswith("core-"):
            core = later
        elif later.startswith("Index-"):
            names += [name for _, more in _parts(later) for name in more]
    if core:
        files = _later(core)
        for kind, body in _KIND.findall(_text(ASSETS / core)):
            if kind in kinds and (found := _COMPONENT.search(body)) is not None:
                names += files.get(found[1], ())
    return tuple(name for name in dict.fromkeys(names) if (ASSETS / name).is_file())


def _parts(name: str) -> list[tuple[str, list[str]]]:
    return [(later, needed) for later, needed in _later(name).items() if _PARTS.fullmatch(later) is not None]


@cache
def _later(name: str) -> dict[str, list[str]]:
    """The scripts that a script imports later, each with all files that it needs, itself included."""
    text = _text(ASSETS / name)
    files = _FILES.search(text)
    known = re.findall(r"([\w.-]+)[\"'`]", files[1]) if files is not None else []
    return {
        later: [later, *(known[int(number)] for number in numbers.split(",") if number and int(number) < len(known))]
        for later, numbers in _LATER.findall(text)
    }


def stand_in(name: str) -> bytes | None:
    """What is sent instead of one of Gradio's scripts; None for those that are sent as they are."""
    if not (ASSETS / name).is_file():
        return None
    if _STREAMS.fullmatch(name) is not None:
        return _without_streams(_text(ASSETS / name))
    return _at_rest(_text(ASSETS / name)) if _STATUS.fullmatch(name) is not None else None


def _without_streams(script: str) -> bytes | None:
    """Gradio's video player imports hls.js, which takes a third as long to load as all the rest. It is for streams, and
    this page plays none. Each function of the stand-in returns nothing, by which the player knows that it can't."""
    exported = _EXPORTS.search(script)
    if exported is None:
        return None
    names = [one.split()[-1] for one in exported[1].split(",")]
    return f"function none() {{}}\nexport {{ {', '.join(f'none as {one}' for one in names)} }};\n".encode()


def _at_rest(script: str) -> bytes | None:
    """A status that leaves the page while something is pending, as that of the page's start does, would count seconds
    in each frame for as long as the page is open. Here it counts while something is pending."""
    pending = _PENDING.search(script)
    if pending is None or len(_NEXT_FRAME.findall(script)) != 1:
        return None
    return _NEXT_FRAME.sub(f"{pending[0]}&&", script).encode()


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""
