"""A path, URL, bytes, base64, PIL picture, array or tensor -> an upright RGB picture.

Visitors' files are checked before they are decoded: the size of the file, then the size in pixels and the memory for
decoding, both from the header. Only common picture formats are decoded.
"""

import base64
import hashlib
import os
import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from gemma3_core.errors import ImageError
from gemma3_core.images.arrays import as_8_bit, channels_first
from gemma3_core.images.fetch import fetch_image
from gemma3_core.images.limits import (
    DEFAULT_LIMITS,
    RGB_BYTES,
    ImageFileObject,
    ImageLimits,
    check_bytes,
    check_header,
    check_pixels,
    open_header,
    orientation,
)

ImageSource = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor

_SIDEWAYS = (5, 6, 7, 8)  # EXIF 2.32, tag Orientation: width and height change places
_BAND_PIXELS = 500_000  # transparency is flattened in bands, so that large pictures need no third copy
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")


@dataclass(frozen=True)
class PictureHeader:
    """A picture that is not decoded yet: upright `width` and `height` in pixels, the bytes of memory for decoding, and
    a digest that is equal for equal files. `load_image(source)` decodes it."""

    source: ImageSource
    width: int
    height: int
    decoding_bytes: int
    digest: bytes


def load_image(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """A new RGB picture: upright (EXIF), transparency on white, 8 bits a color (`as_8_bit`), the first frame.

    A string is tried as a data URL, an http(s) URL, the path of a file, and base64, in this order: never pass
    a visitor's text here. Arrays are [H, W], [H, W, C] or [C, H, W]; C is 1, 3 or 4. Raises ImageError, whose message
    holds no path.
    """
    if isinstance(source, Image.Image):
        return _finish(source, limits)
    if isinstance(source, torch.Tensor):
        source = (source.detach().float() if source.is_floating_point() else source).cpu().numpy()
    if isinstance(source, np.ndarray):
        return _finish(_picture_of_array(source), limits)
    file = _opened(source, limits)
    with file, open_header(file) as picture:
        check_header(picture, file, limits)
        try:
            picture.load()
        except Exception as error:  # decoders raise anything on damaged bytes
            raise ImageError(f"The {picture.format} picture is damaged or cut off. Save it again.") from error
        return _finish(picture, limits, ours=True)


def read_header(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> PictureHeader:
    """Reads a picture's size from its header, without decoding; the digest reads the whole file once.

    A URL is fetched, and its bytes become the new `source`. Raises ImageError where `load_image` does, except for
    damage behind the header.
    """
    if isinstance(source, str):
        source = _string_source(source, limits)
    if isinstance(source, Image.Image | np.ndarray | torch.Tensor):
        picture = load_image(source, limits)
        digest = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=16).digest()
        copying = int(2 * RGB_BYTES * picture.width * picture.height)
        return PictureHeader(picture, *picture.size, copying, digest)
    with _opened(source, limits) as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        with open_header(file) as picture:
            width, height = picture.size
            decoding_bytes = check_header(picture, file, limits)
            # Pillow gives the upright size of a TIFF before it is decoded.
            if picture.format != "TIFF" and orientation(picture) in _SIDEWAYS:
                width, height = height, width
            return PictureHeader(source, width, height, decoding_bytes, digest)


def decode_base64(text: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of base64 text. Raises ImageError where it is none, or too long."""
    check_bytes(len(text) * 3 // 4, limits)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise ImageError("This text is neither base64, nor a URL, nor the path of a picture. Check it.") from None


def read_data_url(address: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a data URL with base64. Raises ImageError."""
    header, comma, body = address.partition(",")
    if not comma or not header.endswith(";base64"):
        raise ImageError("This data URL holds no base64 picture. It usually begins with data:image/…;base64,")
    return decode_base64(body, limits)


def _string_source(text: str, limits: ImageLimits) -> Path | bytes:
    if text.startswith("data:"):
        return read_data_url(text, limits)
    if text.startswith(("http://", "https://")):
        return fetch_image(text, limits)
    if os.path.isfile(text):
        return Path(text)
    if scheme := _SCHEME.match(text):
        raise ImageError(f"Addresses that begin with {scheme.group(1)}: are not read; use http, https or a file.")
    if not text.strip():
        raise ImageError("No picture was given: the text is empty. Give a path, a URL or base64.")
    if Path(text[-64:]).suffix:
        raise _no_file(Path(text))
    return decode_base64(text, limits)


def _opened(source: ImageSource, limits: ImageLimits) -> ImageFileObject:
    """A file, or bytes in memory, of a checked size."""
    if isinstance(source, str):
        source = _string_source(source, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        check_bytes(len(source), limits)
        return BytesIO(source)
    if not isinstance(source, Path):
        raise ImageError(f"A picture can't be read from {type(source).__name__}; give a path, URL, bytes or a picture.")
    if not source.is_file():  # neither a folder nor a pipe, which might never end
        raise _no_file(source)
    try:
        check_bytes(source.stat().st_size, limits)
        return source.open("rb")
    except OSError:
        raise ImageError(f"The file {source.name[-64:]} can't be read; check its permissions and try again.") from None


def _no_file(path: Path) -> ImageError:
    return ImageError(f"There is no picture file named {path.name[-64:]}; check the name and try again.")


def _finish(picture: Image.Image, limits: ImageLimits, ours: bool = False) -> Image.Image:
    """Any PIL picture -> an RGB one without metadata (so that it isn't turned a second time). The result is a new
    picture unless the given one is `ours` to change."""
    check_pixels(*picture.size, limits)
    try:
        rgb = _to_rgb(_upright(picture, ours))
    except ImageError:
        raise
    except Exception as error:  # a PIL picture whose file is closed or damaged
        raise ImageError(f"The picture (mode {picture.mode}) can't be read as colors: {error}.") from error
    rgb.info = {}
    return rgb


def _upright(picture: Image.Image, ours: bool) -> Image.Image:
    """Turned as its EXIF data say; a copy unless it is `ours`, which saves the memory of one."""
    if orientation(picture) == 1:
        return picture if ours else picture.copy()
    if not ours:
        return ImageOps.exif_transpose(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return Image.fromarray(as_8_bit(np.asarray(picture))).convert("RGB")
    if picture.mode in ("RGBa", "La"):  # premultiplied
        picture = picture.convert(picture.mode.upper())
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        return _on_white(picture)
    return picture.convert("RGB") if picture.mode != "RGB" else picture


def _on_white(picture: Image.Image) -> Image.Image:
    result = Image.new("RGB", picture.size)
    rows = max(1, _BAND_PIXELS // picture.width)
    for top in range(0, picture.height, rows):
        box = (0, top, picture.width, min(top + rows, picture.height))
        band = picture.crop(box).convert("RGBA")
        white = Image.new("RGBA", band.size, (255, 255, 255, 255))
        result.paste(Image.alpha_composite(white, band).convert("RGB"), box[:2])
    return result


def _picture_of_array(array: np.ndarray) -> Image.Image:
    pixels = as_8_bit(channels_first(array))
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
