"""The fonts of signs: matplotlib's, on every machine, and Latin ones of this machine."""

import os
import string
import sys
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

CHARACTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
POINT = "."
"""In prices; dense labels leave it out."""

# Beginnings of file names, in lower case: the sans, serif and mono faces that a sign may have. Without this list a
# machine's symbol, script and display fonts would come in. Longer names come before shorter ones.
_FAMILIES = {
    "dejavusansmono": "mono", "dejavuserifdisplay": "", "dejavusansdisplay": "", "dejavuserif": "serif",
    "dejavumath": "", "dejavusans": "sans",
    "liberationsans": "sans", "liberationserif": "serif", "liberationmono": "mono",
    "stixgeneral": "serif", "freesans": "sans", "freeserif": "serif", "freemono": "mono",
    "notosansmono": "mono", "notosans-": "sans", "notoserif-": "serif", "roboto-": "sans", "robotomono": "mono",
    "opensans": "sans", "lato-": "sans", "ubuntumono": "mono", "ubuntu-": "sans", "cantarell": "sans",
    "arial": "sans", "helvetica": "sans", "verdana": "sans", "tahoma": "sans", "trebuc": "sans", "calibri": "sans",
    "times": "serif", "georgia": "serif", "cambria": "serif", "cour": "mono", "consola": "mono", "menlo": "mono",
}  # fmt: skip
_FILE_TYPES = (".ttf", ".otf")
_MEASURED_AT = 512  # pixels of the em at which metrics are read
_OPEN_SIZES = 1024  # fonts at a size that are kept open
_ALTERED = ("condensed", "narrow", "bold", "italic", "oblique", "bol", "ita", "light")  # parts of names


@dataclass(frozen=True, order=True)
class Font:
    """One face on disk."""

    name: str  # the file's name without its ending
    path: str
    kind: str  # sans, serif or mono

    @property
    def plain(self) -> bool:
        """Upright, of the usual weight and width."""
        return not any(part in self.name.lower() for part in _ALTERED)


@dataclass(frozen=True)
class Metrics:
    """A font's measures, in shares of the em."""

    cap_height: float
    inks: dict[str, tuple[float, float]]  # of each character: how far its ink reaches above and below the baseline
    overhangs: dict[str, tuple[float, float]]  # and beyond its own width, to the left and to the right


@cache
def bundled_fonts() -> tuple[Font, ...]:
    """The fonts that come with matplotlib: the same on every machine."""
    return _fonts_in(Path(matplotlib.get_data_path()) / "fonts" / "ttf")


@cache
def all_fonts() -> tuple[Font, ...]:
    """The bundled fonts and those in the usual folders of this machine, one of each name."""
    by_name = {font.name: font for folder in _system_folders() for font in _fonts_in(folder)}
    by_name |= {font.name: font for font in bundled_fonts()}
    return tuple(sorted(by_name.values()))


def _system_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        return [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    return [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts", home / ".fonts"]


def _fonts_in(folder: Path) -> tuple[Font, ...]:
    """The usable fonts under a folder, sorted by name; none if there is no such folder."""
    found = []
    for path in folder.rglob("*") if folder.is_dir() else ():
        kind = next((kind for start, kind in _FAMILIES.items() if path.name.lower().startswith(start)), "")
        if kind and path.suffix.lower() in _FILE_TYPES and _has_all_characters(path):
            found.append(Font(path.stem, str(path), kind))
    return tuple(sorted(found))


def _has_all_characters(path: Path) -> bool:
    try:
        known = FT2Font(str(path)).get_charmap()
    except (RuntimeError, OSError):  # not a font, or damaged
        return False
    return all(ord(character) in known for character in CHARACTERS + POINT)


@lru_cache(maxsize=_OPEN_SIZES)
def at_size(font: Font, size: float) -> ImageFont.FreeTypeFont:
    """The font with an em of `size` pixels."""
    return ImageFont.truetype(font.path, size, layout_engine=ImageFont.Layout.BASIC)


@cache
def metrics(font: Font) -> Metrics:
    """Heights of the font's characters."""
    drawn = at_size(font, _MEASURED_AT)
    inks, overhangs = {}, {}
    for character in CHARACTERS + POINT:
        left, top, right, bottom = (side / _MEASURED_AT for side in drawn.getbbox(character, anchor="ls"))
        width = drawn.getlength(character) / _MEASURED_AT
        inks[character] = (-top, bottom)
        overhangs[character] = (max(0.0, -left), max(0.0, right - width))
    return Metrics(cap_height=inks["H"][0], inks=inks, overhangs=overhangs)


@lru_cache(maxsize=16384)
def edges(font: Font, text: str) -> tuple[float, ...]:
    """Start of each character of a line, and the end of the last, in shares of the em."""
    drawn = at_size(font, _MEASURED_AT)
    return tuple(drawn.getlength(text[:count]) / _MEASURED_AT for count in range(len(text) + 1))
