"""Random signs: one word or number on a background; lengths are in pixels.

Sizes are cap heights, the height of a capital letter or digit, as a share of the picture's shorter side. A sign has at
least LEAST_CAP_HEIGHT. Some programs set the em to that size, which makes capitals smaller: training goes down to
LEAST_TRAINED.
"""

import math
import random
import string
import zlib
from dataclasses import dataclass

import numpy as np

from training.drawing.backgrounds import Background, contrasting_shade, grounds_of, random_background
from training.drawing.colors import COLORS, RGB, UNNAMED, Lab, mix, to_lab
from training.drawing.fonts import Font, edges, metrics
from training.drawing.sizes import log_uniform, random_size
from training.language.words import WORDS

LEAST_CAP_HEIGHT, LARGEST_CAP_HEIGHT = 0.09, 0.5
LEAST_TRAINED = 0.065  # the cap height of letters whose em is 9 %
MOST_CHARACTERS = 8
SMALLER_SHARE = 0.12  # of training signs lie between LEAST_TRAINED and LEAST_CAP_HEIGHT
MARGIN = 0.015  # of the shorter side, between the ink and the picture's border
MOST_TURNED = 8.0  # degrees
_HELDOUT_OF = 5  # one text in so many is held out
_TEXTS = {"train": (34, 16, 18, 32), "heldout": (60, 10, 22, 8)}  # shares of words, pseudo-words, numbers, strings
_ONSETS = ("", "b", "br", "c", "ch", "cl", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pl",
           "qu", "r", "s", "sh", "sk", "st", "str", "t", "th", "tr", "v", "w", "x", "y", "z")  # fmt: skip
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oo", "ou", "y")
_CODAS = ("", "", "b", "ck", "d", "f", "g", "l", "ll", "m", "n", "ng", "nt", "p", "r", "rk", "s", "ss", "st", "t", "x")


@dataclass(frozen=True)
class Plate:
    """A rectangle behind the text, rotated with it; lengths are in cap heights."""

    fill: RGB | None  # None: only a frame
    frame: RGB | None
    frame_width: float
    beside: float  # from the text's ends to the plate's
    above: float  # from the tallest and the deepest ink
    roundness: float  # radius of the corners


@dataclass(frozen=True)
class Sign:
    """A whole picture, `width` by `height` pixels, with one line of text on it.

    (x, y) is the middle of the line: half of its length, half the cap height above the baseline.
    """

    width: int
    height: int
    background: Background
    text: str
    font: Font
    color: str  # of COLORS, or UNNAMED
    rgb: RGB
    x: float
    y: float
    size: float  # pixels of the em
    rotation: float = 0.0  # degrees, clockwise
    plate: Plate | None = None

    @property
    def lines(self) -> tuple["Sign", ...]:
        """Itself; TwoLines has two."""
        return (self,)

    @property
    def plated(self) -> "Sign | None":
        """Itself, if there is a plate behind it."""
        return self if self.plate is not None else None

    @property
    def cap_height(self) -> float:
        """Pixels."""
        return metrics(self.font).cap_height * self.size

    @property
    def line(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the text, in pixels from (x, y), without rotation.

        The height is that of the ink, the length that of the characters; slanted ink may extend beyond it.
        """
        inks = [metrics(self.font).inks[character] for character in self.text]
        middle = metrics(self.font).cap_height / 2
        length = edges(self.font, self.text)[-1]
        top, bottom = middle - max(ink[0] for ink in inks), middle + max(ink[1] for ink in inks)
        return -length / 2 * self.size, top * self.size, length / 2 * self.size, bottom * self.size

    @property
    def outer(self) -> tuple[float, float, float, float]:
        """As `line`, with overhanging ink, or with the plate and its frame."""
        left, top, right, bottom = self.line
        if self.plate is None:
            hanging = metrics(self.font).overhangs
            before, behind = hanging[self.text[0]][0], hanging[self.text[-1]][1]
            return left - before * self.size, top, right + behind * self.size, bottom
        beside = (self.plate.beside + self.plate.frame_width) * self.cap_height
        above = (self.plate.above + self.plate.frame_width) * self.cap_height
        return left - beside, top - above, right + beside, bottom + above

    def turned(self, points: np.ndarray) -> np.ndarray:
        """Points [..., 2] from the line's coordinates to pixels of the picture."""
        angle = math.radians(self.rotation)
        cos, sin = math.cos(angle), math.sin(angle)
        return points @ np.array([[cos, sin], [-sin, cos]]) + (self.x, self.y)

    def along(self, points: np.ndarray) -> np.ndarray:
        """The inverse of `turned`."""
        angle = math.radians(self.rotation)
        cos, sin = math.cos(angle), math.sin(angle)
        return (points - (self.x, self.y)) @ np.array([[cos, -sin], [sin, cos]])


def is_heldout_text(text: str) -> bool:
    """Whether a text is kept out of all training signs, regardless of case: about one in five."""
    return zlib.crc32(f"sign {text.lower()}".encode()) % _HELDOUT_OF == 0


def random_sign(
    rng: random.Random, fonts: tuple[Font, ...], split: str = "train", difficulty: float = 1.0, unnamed: float = 0.0
) -> Sign:
    """A sign of the demo world.

    `split` is "train" (no held-out text) or "heldout" (always one). `difficulty` 0 gives up to four large upright sans
    letters on one color in a square, 1 the whole world. `unnamed` is the share of signs in unnamed colors.
    """
    if split not in _TEXTS:
        raise ValueError(f'split is {split!r}; expected "train" or "heldout"')
    while True:
        easy = rng.random() >= difficulty
        text = random_text(rng, split, 4 if easy else MOST_CHARACTERS)
        font = rng.choice([f for f in fonts if f.kind == "sans" and f.plain] if easy else fonts)
        sign = _laid_out(rng, text, font, split, difficulty, easy, unnamed)
        if sign is not None:
            return sign


def _laid_out(
    rng: random.Random, text: str, font: Font, split: str, difficulty: float, easy: bool, unnamed: float
) -> Sign | None:
    """The finished sign; None if the text does not fit or does not stand out."""
    width, height = random_size(rng, difficulty)
    background = random_background(rng, 0.0 if easy else difficulty)
    color = UNNAMED if rng.random() < unnamed else rng.choice(COLORS)
    turned = rng.uniform(-MOST_TURNED, MOST_TURNED) if rng.random() < 0.3 * difficulty else 0.0
    plate = random_plate(rng, background) if rng.random() < 0.3 * difficulty else None
    shade = contrasting_shade(color, grounds_behind(background, plate), rng, difficulty)
    if shade is None:
        return None
    side = min(width, height)
    unit = Sign(width, height, background, text, font, color, shade.rgb, 0.0, 0.0, 1.0, turned, plate)
    reach = np.abs(_corners(unit)).max(axis=0)  # for an em of one pixel, from the middle
    room = np.array([width, height]) / 2 - MARGIN * side
    most = min(LARGEST_CAP_HEIGHT, float((room / reach).min()) * unit.cap_height / side)
    least = LEAST_CAP_HEIGHT
    if split == "train" and not easy and rng.random() < SMALLER_SHARE:
        least, most = LEAST_TRAINED, min(most, LEAST_CAP_HEIGHT)
    if easy:
        least = 0.6 * most
    if most < max(least, LEAST_TRAINED):
        return None
    size = log_uniform(rng, least, most) * side / unit.cap_height
    x, y = (rng.uniform(r * size + MARGIN * side, n - r * size - MARGIN * side)
            for r, n in zip(reach, (width, height), strict=True))  # fmt: skip
    return Sign(width, height, background, text, font, color, shade.rgb, x, y, size, turned, plate)


def _corners(sign: Sign) -> np.ndarray:
    """The corners of the text's ink with its plate, in pixels, [4, 2]."""
    left, top, right, bottom = sign.outer
    return sign.turned(np.array([[left, top], [right, top], [right, bottom], [left, bottom]]))


def random_plate(rng: random.Random, background: Background) -> Plate:
    fill = None
    if rng.random() < 0.75:
        fill = random_background(rng, 0.0).colors[0]
    base = fill or background.colors[0]
    frame = None
    if fill is None or rng.random() < 0.4:
        dark = sum(base) < 382
        frame = mix(base, (255, 255, 255) if dark else (0, 0, 0), rng.uniform(0.4, 1.0))
    return Plate(
        fill, frame, rng.uniform(0.04, 0.15) if frame else 0.0,
        beside=rng.uniform(0.3, 0.9), above=rng.uniform(0.25, 0.7),
        roundness=rng.choice((0.0, 0.0, rng.uniform(0.1, 0.6))),
    )  # fmt: skip


def grounds_behind(background: Background, plate: Plate | None) -> list[Lab]:
    """The colors that a text must stand out from: the plate's fill, else the background and a frame."""
    if plate is not None and plate.fill is not None:
        return [to_lab(plate.fill)]
    grounds = grounds_of(background)
    return [*grounds, to_lab(plate.frame)] if plate is not None and plate.frame else grounds


def random_text(rng: random.Random, split: str, most: int = MOST_CHARACTERS) -> str:
    """A word, pseudo-word, number or random string of the split, of 1 to `most` characters."""
    sorts = (_word, _pseudo_word, _number, _string)
    while True:
        text = rng.choices(sorts, _TEXTS[split])[0](rng)
        if 1 <= len(text) <= most and is_heldout_text(text) == (split == "heldout"):
            return text


def _word(rng: random.Random) -> str:
    return _in_case(rng, rng.choice(WORDS))


def _pseudo_word(rng: random.Random) -> str:
    """Syllables that sound like a word but rarely are one."""
    syllables = rng.choices((1, 2, 3), (3, 5, 2))[0]
    parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(syllables)]
    return _in_case(rng, "".join(parts))


def _number(rng: random.Random) -> str:
    return "".join(rng.choices(string.digits, k=_length(rng)))


def _string(rng: random.Random) -> str:
    """Random letters, or letters and digits."""
    digits = rng.choice(("", "", string.digits))
    return _in_case(rng, "".join(rng.choices(string.ascii_lowercase + digits, k=_length(rng))))


def _length(rng: random.Random) -> int:
    return rng.choices(range(1, MOST_CHARACTERS + 1), (2, 3, 4, 4, 4, 4, 3, 3))[0]


def _in_case(rng: random.Random, text: str) -> str:
    return rng.choices((text.upper(), text, text.capitalize()), (4, 4, 2))[0]
