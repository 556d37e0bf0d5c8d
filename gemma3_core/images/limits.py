"""The limits of one picture, and reading a file's header to check them before decoding."""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from io import BufferedReader, BytesIO
from itertools import islice
from typing import Any

from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile

from gemma3_core.errors import ImageError

ImageFileObject = BufferedReader | BytesIO

# Pillow knows some forty formats, some of them through programs of the system (EPS runs
# Ghostscript). JPEG includes the MPO of cameras that store a second view.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
_SNIFFED = 4096  # bytes; an SVG may begin with comments
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # ISO 23008-12, annex B
_VIDEO_BRANDS = (b"iso", b"mp4", b"M4V", b"qt", b"3g", b"MSNV", b"avc1")  # ISO 14496-12
_HEIC = (
    "HEIC pictures are read only where the package pillow-heif is installed: install it, or save it as JPEG (on an "
    "iPhone, choose “Most Compatible”), and add that."
)
_DAMAGED_HEIC = "This HEIC picture is damaged or cut off: save it as JPEG, and add that."
_VIDEO = "Videos are not read: add a picture of it, such as a screenshot."
# Not decoded here: 1.5 kB of JPEG 2000 can take 97 bytes of memory for each pixel, which its header doesn't show.
_JPEG_2000 = "JPEG 2000 pictures are not read: save it as JPEG or PNG, and add that."
_JPEG_XL = "JPEG XL pictures are not read: save it as JPEG or PNG, and add that."
_OTHER_FORMATS = {
    b"%PDF-": "PDF files are not read: save the page as a picture, or take a screenshot, and add that.",
    b"\x00\x00\x00\x0cjP  ": _JPEG_2000,
    b"\xff\x4f\xff\x51": _JPEG_2000,
    b"\x00\x00\x00\x0cJXL ": _JPEG_XL,
    b"\xff\x0a": _JPEG_XL,
    b"8BPS": "Photoshop files are not read: export it as JPEG or PNG, and add that.",
    b"\x1aE\xdf\xa3": _VIDEO,
}
"""The first bytes of files that are no pictures here, and what to do."""
_EXIF_ORIENTATION = 0x0112
_BITS, _SAMPLES, _TILE_WIDTH, _TILE_LENGTH = 258, 277, 322, 323  # TIFF 6.0
# ITU-T T.81, table B.1: the markers of scans, of the picture's end, and those without a length (TEM, RSTn, SOI).
_SCAN, _END, _BARE = 0xDA, 0xD9, (0x01, *range(0xD0, 0xD9))
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # behind a scan's data, which may hold FF 00 and restarts
_MAX_SEGMENTS = 20_000  # of a JPEG; profiles and previews of a photograph take hundreds

# Bytes of memory per pixel, measured with Pillow 12.
RGB_BYTES = 4.5
_LOADED_BYTES = {"1": 1.0, "L": 1.0, "P": 1.0, "LA": 4.0, "PA": 4.0}
_DEEP_BYTES = 16.0  # more than 8 bits a color: these are scaled down in wider numbers
_DECODER_BYTES = {"WEBP": 17.0, "AVIF": 13.0, "HEIF": 10.5}
_DEEP_HEIF_BYTES = 16.5
_COEFFICIENT_BYTES = 2  # a JPEG of several scans is held as coefficients until its last one


@dataclass(frozen=True)
class ImageLimits:
    """Limits of one picture; `timeout` is for a whole download, in seconds.

    `max_bytes` is the file's size, `max_decoding_bytes` the memory that decoding may take. `max_scans` is for
    JPEGs: each scan is a pass over the whole picture, and common files have one to ten. `max_side` is the largest width
    or height: resizing holds a list of weights for each pixel along a side.
    """

    max_pixels: int = 64_000_000
    max_bytes: int = 20_000_000
    max_decoding_bytes: int = 600_000_000
    max_scans: int = 200
    timeout: float = 20.0
    max_redirects: int = 3
    max_side: int = 65_535


DEFAULT_LIMITS = ImageLimits()


def check_bytes(size: int, limits: ImageLimits) -> None:
    if size > limits.max_bytes:
        raise ImageError(
            f"The picture is {size / 1e6:.1f} MB; at most {limits.max_bytes / 1e6:g} MB are accepted. "
            "Make it smaller and try again."
        )


def check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"The picture is {width} x {height} pixels: there is nothing to see. Add another one.")
    if width * height > limits.max_pixels:
        megapixels = math.ceil(width * height / 1e5) / 10  # rounded up: never below the limit it exceeds
        raise ImageError(
            f"The picture is {width} x {height} pixels ({megapixels:,g} megapixels); "
            f"at most {limits.max_pixels / 1e6:g} are accepted. Make it smaller and try again."
        )
    if max(width, height) > limits.max_side:
        raise ImageError(
            f"The picture is {width} x {height} pixels; at most {limits.max_side:,} are accepted along one side. "
            "Cut it into pieces and try again."
        )


def open_header(file: ImageFileObject) -> ImageFile.ImageFile:
    """Like `PIL.Image.open`, but without Pillow's own limits on pixels: their messages give no width and height."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        raise ImageError("The picture is empty: 0 bytes. Choose the file again.")
    Image.init()
    for name in _FORMATS:
        factory, accepts = _opener(name)
        file.seek(0)
        if accepts is not None and accepts(file.read(16)) is not True:
            continue
        file.seek(0)
        if name == "JPEG":  # Pillow keeps each segment before the first scan
            next(_jpeg_scans(file.read()), None)
            file.seek(0)
        with contextlib.suppress(Exception):  # decoders raise anything on damaged bytes
            return factory(file, "")
    file.seek(0)
    if told := _other_format(file.read(_SNIFFED)):
        raise ImageError(told)
    formats = "JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF"
    raise ImageError(f"These {size:,} bytes are not a picture that can be read. Use {formats}.")


def _opener(name: str) -> tuple[Any, Any]:
    """What opens a format, and what tells from its first bytes whether it may."""
    if name != "HEIF":
        return Image.OPEN[name]
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        return None, lambda _beginning: False
    return HeifImageFile, _is_heif


def _is_heif(beginning: bytes) -> bool:
    return beginning[4:8] == b"ftyp" and beginning[8:12] in _HEIF_BRANDS


def _other_format(beginning: bytes) -> str | None:
    """What to do with a file of a known format that is not read, by its first bytes."""
    box, brand = beginning[4:8], beginning[8:12]
    if _is_heif(beginning):
        return _DAMAGED_HEIC if find_spec("pillow_heif") else _HEIC
    if box == b"ftyp" and brand.startswith(_VIDEO_BRANDS):
        return _VIDEO
    for mark, told in _OTHER_FORMATS.items():
        if beginning.startswith(mark):
            return told
    if beginning.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"<" and b"<svg" in beginning:
        return "SVG drawings are not read: export it as PNG, and add that."
    return None


def check_header(picture: ImageFile.ImageFile, file: ImageFileObject, limits: ImageLimits) -> int:
    """Checks an opened picture and returns the memory that decoding takes, in bytes. Raises ImageError."""
    check_pixels(*picture.size, limits)
    held_whole = _is_held_whole(picture, file, limits)
    needed = int(_bytes_per_pixel(picture, held_whole) * picture.width * picture.height) + file.seek(0, os.SEEK_END)
    needed += _tile_bytes(picture)
    if needed > limits.max_decoding_bytes:
        raise ImageError(
            f"A {picture.format} picture of {picture.width} x {picture.height} pixels needs {needed / 1e6:,.0f} MB of "
            f"memory to decode; at most {limits.max_decoding_bytes / 1e6:,.0f} MB are allowed. Make it smaller, or "
            "save it as PNG."
        )
    return needed


def _is_held_whole(picture: ImageFile.ImageFile, file: ImageFileObject, limits: ImageLimits) -> bool:
    """Whether decoding holds all coefficients, as of a JPEG whose first scan leaves something to later ones.

    Raises ImageError for more than `max_scans`. Of a multi-picture file only the first is decoded, and counts.
    """
    if picture.format not in ("JPEG", "MPO"):
        return False
    file.seek(0)
    components = list(islice(_jpeg_scans(file.read()), limits.max_scans + 1))
    if len(components) > limits.max_scans:
        raise ImageError(f"This JPEG has more than {limits.max_scans} scans. Save it again.")
    num_layers = len(picture.layer)  # type: ignore[attr-defined]  # one for each color
    return bool(picture.info.get("progressive")) or any(first < num_layers for first in components[:1])


def _jpeg_scans(data: bytes) -> Iterator[int]:
    """How many colors each scan holds, walking from segment to segment: previews in the EXIF data have scans too.

    Raises ImageError for a file of very many segments.
    """
    place = 2
    for _ in range(_MAX_SEGMENTS):
        found = _NEXT_MARKER.search(data, place)
        if found is None or data[found.end() - 1] == _END:
            return
        place = found.end()
        marker = data[place - 1]
        if marker == _SCAN:
            yield from data[place + 2 : place + 3]
        if marker not in _BARE:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
    raise ImageError(f"This JPEG is made of more than {_MAX_SEGMENTS:,} segments. Save it again.")


def orientation(picture: Image.Image) -> int:
    """The orientation in the EXIF data, 1 where there is none. Does not decode the picture."""
    try:
        if isinstance(picture, PngImageFile) and "exif" not in picture.info and picture.fp is not None:
            exif = _late_png_exif(picture.fp) or Image.Image.getexif(picture)
        else:
            exif = picture.getexif()
        return int(exif.get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  a camera's broken metadata is no reason to refuse its picture
        return 1


def _bytes_per_pixel(picture: ImageFile.ImageFile, held_whole: bool) -> float:
    """The peak memory of decoding a picture, turning it upright and converting it to RGB."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return _DEEP_BYTES
    loaded = _LOADED_BYTES.get(picture.mode, RGB_BYTES)
    loading = _DECODER_BYTES.get(picture.format or "", loaded)
    if picture.format == "HEIF" and picture.info.get("bit_depth", 8) > 8:
        loading = _DEEP_HEIF_BYTES
    if held_whole:
        layers = picture.layer  # type: ignore[attr-defined]  # (id, horizontal, vertical, …) of each color
        most = max(across for _, across, *_ in layers) * max(down for _, _, down, *_ in layers)
        loading += _COEFFICIENT_BYTES * sum(across * down for _, across, down, *_ in layers) / most
    turning = 2 * loaded if orientation(picture) != 1 else loaded
    converting = loaded if picture.mode == "RGB" else loaded + RGB_BYTES
    return max(loading, turning, converting)


def _tile_bytes(picture: ImageFile.ImageFile) -> int:
    """What decoding a tile of a TIFF takes, which may be larger than the picture: as it is stored, and as RGBA."""
    tags = getattr(picture, "tag_v2", {})
    width, height, samples, bits = (tags.get(tag) for tag in (_TILE_WIDTH, _TILE_LENGTH, _SAMPLES, _BITS))
    if not (isinstance(width, int) and isinstance(height, int)):
        return 0
    depths = [bits] if isinstance(bits, int) else list(bits or [8])
    deepest = max((depth for depth in depths if isinstance(depth, int)), default=8)
    stored = (samples if isinstance(samples, int) else len(depths)) * deepest / 8
    return int(width * height * (stored + 4))


def _late_png_exif(file: Any) -> Image.Exif | None:
    """EXIF data that follow a PNG's pixels; Pillow finds them only after decoding."""
    place = file.tell()
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"eXIf":
                exif = Image.Exif()
                exif.load(file.read(length))
                return exif
            file.seek(length + 4, os.SEEK_CUR)
        return None
    finally:
        file.seek(place)
