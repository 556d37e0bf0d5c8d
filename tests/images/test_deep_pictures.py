"""Gray pictures of more than 8 bits: the same levels from every container, for programs and for files."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from gemma3_core import Gemma3ImageProcessor, Gemma3ImageProcessorPil
from gemma3_core.errors import ImageError
from gemma3_core.images.load import load_image

LEVELS = np.array([[0, 200], [255, 100]])
AFTER_NORMALIZING = torch.tensor(LEVELS) / 127.5 - 1  # a mid-gray of 200 becomes 0.569
NARROW = ("uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "float64")
WIDE = {
    "uint16": LEVELS * 257,
    "int16": LEVELS * 32767 / 255,
    "uint32": LEVELS * 16_843_009,
    "int32": LEVELS * 1_000_000 - 50_000_000,
    "int64": LEVELS * 10**15 + 7,
    "float16": LEVELS * 200.0,
    "float32": LEVELS * 1e30,
    "float64": LEVELS / 1e9 - 3.0,
}
MODES = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}


def wide_array(kind: str) -> np.ndarray:
    return np.rint(WIDE[kind]).astype(kind) if kind[0] != "f" else WIDE[kind].astype(kind)


def picture_of(mode: str, values: np.ndarray) -> Image.Image:
    return Image.frombytes(mode, (2, 2), np.rint(values).astype(MODES[mode]).tobytes())


def encoded(picture: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return buffer.getvalue()


ARRAYS = {
    **{f"levels in {kind}": LEVELS.astype(kind) for kind in NARROW},
    **{f"range of {kind}": wide_array(kind) for kind in WIDE if kind != "float64"},
    **{f"share of white in {kind}": (LEVELS / 255).astype(kind) for kind in ("float16", "float32", "float64")},
}
TENSORS = {
    f"tensor of {name}": torch.from_numpy(array)
    for name, array in ARRAYS.items()
} | {"tensor of bfloat16": torch.from_numpy(LEVELS).bfloat16()}  # fmt: skip
PICTURES = {
    **{f"levels in {mode}": picture_of(mode, LEVELS) for mode in MODES},
    "range of I;16": picture_of("I;16", WIDE["uint16"]),
    "range of I;16B": picture_of("I;16B", WIDE["uint16"]),
    "range of I": picture_of("I", WIDE["int32"]),
    "range of F": picture_of("F", LEVELS * 1000.0 - 20),
}
FILES = {
    **{f"TIFF of {name}": encoded(picture, "TIFF") for name, picture in PICTURES.items() if "I;16B" not in name},
    **{f"PNG of {name}": encoded(PICTURES[name], "PNG") for name in ("levels in I;16", "range of I;16")},
}


@pytest.mark.parametrize("kind", [Gemma3ImageProcessor, Gemma3ImageProcessorPil])
@pytest.mark.parametrize("source", [pytest.param(s, id=n) for n, s in {**ARRAYS, **TENSORS, **PICTURES}.items()])
def test_every_container_gives_the_same_numbers(kind, source):
    pixels = kind(size={"height": 2, "width": 2}, do_resize=False)(source, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 2, 2)
    assert (pixels - AFTER_NORMALIZING).abs().max() < 0.002  # a step of 8 bits is 0.008; float16 rounds shares of white


@pytest.mark.parametrize("source", [
    pytest.param(source, id=name) for name, source in {**ARRAYS, **TENSORS, **PICTURES, **FILES}.items()
])  # fmt: skip
def test_every_container_gives_the_same_picture(source):
    assert np.array_equal(np.asarray(load_image(source)), np.repeat(LEVELS[..., None], 3, axis=2))


def test_floats_below_zero_are_scaled_by_their_own_range():
    assert np.asarray(load_image(wide_array("float64")))[..., 1].tolist() == LEVELS.tolist()
    assert np.asarray(load_image(picture_of("F", LEVELS - 128.0)))[..., 1].tolist() == LEVELS.tolist()


def test_colors_share_one_range():
    array = np.stack([LEVELS, LEVELS // 2, LEVELS // 4], axis=-1).astype(np.uint16) * 257
    assert np.array_equal(np.asarray(load_image(array)), array // 257)


@pytest.mark.parametrize("values", [np.full((2, 2), 1000), np.full((2, 2), -0.5), np.array([[-1e308, 1e308]])])
def test_what_has_no_range_is_refused(values):
    with pytest.raises(ImageError, match=r"All of the array's values are|colors are finite"):
        load_image(values)


def test_large_pictures_are_scaled_in_bands():
    values = np.arange(1300 * 1000, dtype=np.int32).reshape(1300, 1000)
    levels = np.asarray(load_image(values))[..., 0]
    assert np.array_equal(levels, np.rint(values * (255.0 / values.max())).astype(np.uint8))
