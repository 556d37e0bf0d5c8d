"""Dense labels: what lies in each patch and each soft token of a picture."""

from dataclasses import dataclass, fields

import numpy as np

from training.drawing.colors import COLORS, UNNAMED
from training.drawing.fonts import CHARACTERS

PATCHES_PER_SIDE = 16
TOKENS_PER_SIDE = 8
POINTS_PER_PATCH = 2  # with a character label: at a quarter and at three quarters of its width
CHARACTERS_PER_TOKEN = 4
HEIGHTS = 16  # steps of a bar's height (its share of the picture's) and of a shape's size (of the largest)
NO_LABEL = 255  # the loss skips it


@dataclass(frozen=True)
class PictureLabels:
    """The labels of one picture: flat uint8 arrays in reading order; 0 is nothing, the loss skips NO_LABEL.

    Patches have 256 entries, soft tokens 64. `patch_character` has two for each patch (its left and right half),
    `token_characters` four for each soft token: the characters whose middle lies in it, in the order of the text.
    """

    patch_shape: np.ndarray  # 1 + index in SHAPES
    patch_color: np.ndarray  # color_label()
    patch_centre: np.ndarray  # 1 where an object's centre lies
    token_shape: np.ndarray  # of the object whose centre lies there
    token_color: np.ndarray
    patch_character: np.ndarray  # 1 + index in CHARACTERS
    token_characters: np.ndarray
    token_height: np.ndarray  # 1 to HEIGHTS: of the bar behind its middle, or of the shape centred in it


_PATCHES, _TOKENS = PATCHES_PER_SIDE**2, TOKENS_PER_SIDE**2
SIZES = {
    "patch_shape": _PATCHES, "patch_color": _PATCHES, "patch_centre": _PATCHES,
    "token_shape": _TOKENS, "token_color": _TOKENS,
    "patch_character": _PATCHES * POINTS_PER_PATCH, "token_characters": _TOKENS * CHARACTERS_PER_TOKEN,
    "token_height": _TOKENS,
}  # fmt: skip
assert tuple(SIZES) == tuple(field.name for field in fields(PictureLabels))


def nothing() -> dict[str, np.ndarray]:
    """Zeros for each field."""
    return {name: np.zeros(size, np.uint8) for name, size in SIZES.items()}


def unlabelled() -> PictureLabels:
    """Labels of a picture that the dense loss skips."""
    return PictureLabels(**{name: np.full(size, NO_LABEL, np.uint8) for name, size in SIZES.items()})


def color_label(color: str) -> int:
    """1 + index in COLORS; NO_LABEL for UNNAMED."""
    return NO_LABEL if color == UNNAMED else 1 + COLORS.index(color)


def character_label(character: str) -> int:
    """1 + index in CHARACTERS."""
    return 1 + CHARACTERS.index(character)


def add_text(out: dict[str, np.ndarray], text: dict[str, np.ndarray]) -> None:
    """Puts the colors and characters of a text over what is there; the caller adds the characters of soft tokens."""
    for name in ("patch_color", "patch_character", "token_color"):
        out[name] = np.where(text[name] > 0, text[name], out[name])
