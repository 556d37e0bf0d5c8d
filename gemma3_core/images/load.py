"""A path, URL, bytes, base64, PIL picture, array or tensor -> an upright RGB picture.

What strangers send is bounded before it is decoded: the size in bytes, then, as the file's header gives
them, the size in pixels and the memory that decoding takes. Only formats that people take and share
pictures in are decoded at all.
"""

import asyncio
import base64
import binascii
import contextlib
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from PIL.PngImagePlugin import PngImageFile

from gemma3_core.errors import ImageError

_File = BufferedReader | BytesIO

ImageSource = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor

# Pillow knows some forty formats, some of them through programs of the system (EPS runs
# Ghostscript). JPEG includes the MPO of cameras that store a second view.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)  # EXIF 2.32, tag Orientation: width and height change places
_BAND_PIXELS = 500_000  # transparency is flattened in bands, so that large pictures need no third copy
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")

# Bytes of memory per pixel, measured with Pillow 12: what a loaded picture takes, and what some decoders take.
_RGB_BYTES = 4.5
_LOADED_BYTES = {"1": 1.0, "L": 1.0, "P": 1.0, "LA": 4.0, "PA": 4.0}
_DEEP_BYTES = 16.0  # of more than 8 bits a color, which become 8 by way of wider numbers
_DECODER_BYTES = {"WEBP": 17.0, "AVIF": 13.0}
_COEFFICIENT_BYTES = 2  # a progressive JPEG is held as coefficients until its last scan
_SCAN_MARKER = b"\xff\xda"
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class ImageLimits:
    """What is accepted of one picture; `timeout` is for a whole download, in seconds.

    `max_bytes` is the file's size, `max_decoding_bytes` the memory that decoding may take. `max_scans` of a
    progressive JPEG: each is a pass over the whole picture, and common files have about ten.
    """

    max_pixels: int = 64_000_000
    max_bytes: int = 20_000_000
    max_decoding_bytes: int = 600_000_000
    max_scans: int = 200
    timeout: float = 20.0
    max_redirects: int = 3


DEFAULT_LIMITS = ImageLimits()


def load_image(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """A new RGB picture: upright (EXIF), transparency on white, 16 bits to 8, the first frame.

    A string is a data URL, an http(s) URL, the path of a file, or base64, in this order: never pass
    a visitor's text here. Arrays are [H, W], [H, W, C] or [C, H, W] of 8-bit or 16-bit numbers or
    of floats from 0 to 1; C is 1, 3 or 4. Raises ImageError, whose message holds no path.
    """
    if isinstance(source, Image.Image):
        return _finish(source, limits)
    if isinstance(source, torch.Tensor):
        source = source.detach().cpu().float().numpy() if source.is_floating_point() else source.cpu().numpy()
    if isinstance(source, np.ndarray):
        return _finish(_picture_of_array(source), limits)
    if isinstance(source, str):
        source = _string_source(source, limits)
    if isinstance(source, Path):
        with _opened_file(source, limits) as file:
            return _decode(file, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        _check_bytes(len(source), limits)
        return _decode(BytesIO(source), limits)
    raise ImageError(f"A picture can't be read from {type(source).__name__}; give a path, URL, bytes or a picture.")


@dataclass(frozen=True)
class PictureHeader:
    """What is known of a picture before it is decoded: upright `width` and `height` in pixels, the memory that
    decoding takes in bytes, and a digest that is equal for equal files. `source` is what `load_image` reads."""

    source: ImageSource
    width: int
    height: int
    decoding_bytes: int
    digest: bytes


def read_header(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> PictureHeader:
    """Reads what Pillow needs to know for a picture's size; the digest reads a file once.

    An address is fetched, and its bytes are the new `source`. Raises ImageError as `load_image` does, but for damage
    behind the header.
    """
    if isinstance(source, str):
        source = _string_source(source, limits)
    if isinstance(source, Path):
        with _opened_file(source, limits) as file:
            return _file_header(source, file, limits)
    if isinstance(source, bytes | bytearray | memoryview):
        _check_bytes(len(source), limits)
        return _file_header(source, BytesIO(source), limits)
    picture = load_image(source, limits)
    digest = hashlib.blake2b(repr(picture.size).encode() + picture.tobytes(), digest_size=_DIGEST_BYTES).digest()
    return PictureHeader(picture, *picture.size, int(2 * _RGB_BYTES * picture.width * picture.height), digest)


def _file_header(source: ImageSource, file: _File, limits: ImageLimits) -> PictureHeader:
    digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=_DIGEST_BYTES)).digest()
    with _open_header(file) as picture:
        width, height = picture.size
        decoding_bytes = _check_picture(picture, file, limits)
        # Of a TIFF Pillow gives the upright size before it is read.
        if picture.format != "TIFF" and _orientation(picture) in _SIDEWAYS:
            width, height = height, width
        return PictureHeader(source, width, height, decoding_bytes, digest)


def decode_base64(text: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of base64 text. Raises ImageError where it is none, or too long."""
    _check_bytes(len(text) * 3 // 4, limits)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            "This text is no base64, no URL and not the path of a picture that exists; check it and try again."
        ) from None


def fetch_image(url: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Download a picture's bytes from a public http(s) address; each redirect is checked anew."""
    with ThreadPoolExecutor(1) as pool:  # a thread of its own: the caller may be inside an event loop
        return pool.submit(lambda: asyncio.run(_fetch(url, limits))).result()


def _string_source(text: str, limits: ImageLimits) -> Path | bytes:
    if text.startswith("data:"):
        header, comma, body = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ImageError("This data URL holds no base64 picture; it begins with data:image/…;base64, as a rule.")
        return decode_base64(body, limits)
    if text.startswith(("http://", "https://")):
        return fetch_image(text, limits)
    if os.path.isfile(text):
        return Path(text)
    scheme = _SCHEME.match(text)
    if scheme:
        raise ImageError(f"Addresses that begin with {scheme.group(1)}: are not read; use http, https or a file.")
    if not text.strip():
        raise ImageError("No picture was given: the text is empty.")
    if Path(text[-64:]).suffix:
        raise ImageError(f"There is no picture file named {Path(text).name[-64:]}; check the name and try again.")
    return decode_base64(text, limits)


@contextlib.contextmanager
def _opened_file(path: Path, limits: ImageLimits) -> Iterator[_File]:
    name = path.name[-64:]
    if not path.is_file():  # neither a folder nor a pipe, which might never end
        raise ImageError(f"There is no picture file named {name}; check the name and try again.")
    try:
        file = path.open("rb")
    except OSError:
        raise ImageError(f"The file {name} can't be read; check its permissions and try again.") from None
    with file:
        _check_bytes(os.fstat(file.fileno()).st_size, limits)
        yield file


def _check_bytes(size: int, limits: ImageLimits) -> None:
    if size > limits.max_bytes:
        raise ImageError(
            f"The picture is {size / 1e6:.1f} MB; at most {limits.max_bytes / 1e6:g} MB are accepted. "
            "Make it smaller and try again."
        )


def check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"The picture is {width} x {height} pixels: there is nothing to see.")
    if width * height > limits.max_pixels:
        megapixels = math.ceil(width * height / 1e5) / 10  # rounded up: never below the limit it exceeds
        raise ImageError(
            f"The picture is {width} x {height} pixels ({megapixels:,g} megapixels); "
            f"at most {limits.max_pixels / 1e6:g} are accepted. Make it smaller and try again."
        )


def _check_picture(picture: ImageFile.ImageFile, file: _File, limits: ImageLimits) -> int:
    """The memory that decoding takes, in bytes. Raises ImageError for more than `limits` allow of anything."""
    check_pixels(*picture.size, limits)
    needed = int(_bytes_per_pixel(picture) * picture.width * picture.height) + file.seek(0, os.SEEK_END)
    if needed > limits.max_decoding_bytes:
        raise ImageError(
            f"A {picture.format} picture of {picture.width} x {picture.height} pixels needs {needed / 1e6:,.0f} MB of "
            f"memory to be read; at most {limits.max_decoding_bytes / 1e6:,.0f} MB are spent on one. Make it smaller, "
            "or save it as PNG."
        )
    if _is_progressive(picture):
        file.seek(0)
        scans = file.read().count(_SCAN_MARKER)
        if scans > limits.max_scans:
            raise ImageError(f"This JPEG has {scans:,} scans; at most {limits.max_scans} are read. Save it again.")
    return needed


def _bytes_per_pixel(picture: ImageFile.ImageFile) -> float:
    """Memory that it takes to load a picture, turn it upright and make it RGB, in bytes per pixel."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return _DEEP_BYTES
    loaded = _LOADED_BYTES.get(picture.mode, _RGB_BYTES)
    loading = _DECODER_BYTES.get(picture.format or "", loaded)
    if _is_progressive(picture):
        layers = picture.layer  # type: ignore[attr-defined]  # (id, horizontal, vertical, …) of each color
        most = max(across for _, across, *_ in layers) * max(down for _, _, down, *_ in layers)
        loading += _COEFFICIENT_BYTES * sum(across * down for _, across, down, *_ in layers) / most
    turning = 2 * loaded if _orientation(picture) != 1 else loaded
    converting = loaded if picture.mode == "RGB" else loaded + _RGB_BYTES
    return max(loading, turning, converting)


def _is_progressive(picture: ImageFile.ImageFile) -> bool:
    return picture.format in ("JPEG", "MPO") and bool(picture.info.get("progressive"))


def _decode(file: _File, limits: ImageLimits) -> Image.Image:
    with _open_header(file) as picture:
        _check_picture(picture, file, limits)
        try:
            picture.load()
        except Exception as error:  # decoders raise anything on damaged bytes
            raise ImageError(
                f"The {picture.format} picture is damaged or cut off: it ends before all of its "
                f"{picture.width} x {picture.height} pixels are there. Save or download it again."
            ) from error
        return _finish(picture, limits, ours=True)


def _open_header(file: _File) -> ImageFile.ImageFile:
    """What `PIL.Image.open` does, without its own two limits: those warn on stderr, or raise with
    no width and height, where ours must say both."""
    file.seek(0, os.SEEK_END)
    size = file.tell()
    if not size:
        raise ImageError("The picture is empty: 0 bytes. Choose the file again.")
    Image.init()
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        file.seek(0)
        if accepts is not None and accepts(file.read(16)) is not True:
            continue
        file.seek(0)
        with contextlib.suppress(Exception):  # decoders raise anything on damaged bytes
            return factory(file, "")
    raise ImageError(
        f"These {size:,} bytes are not a picture that can be read. Use JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF."
    )


def _finish(picture: Image.Image, limits: ImageLimits, ours: bool = False) -> Image.Image:
    """Any PIL picture -> an RGB one without metadata (so that it isn't turned a second time); a new one unless the
    given one is `ours` to change."""
    check_pixels(*picture.size, limits)
    try:
        rgb = _to_rgb(_upright(picture, ours))
    except ImageError:
        raise
    except Exception as error:  # a PIL picture whose file is closed or damaged
        raise ImageError(f"The picture (mode {picture.mode}) can't be read as colors: {error}.") from error
    rgb.info = {}
    return rgb


def _orientation(picture: Image.Image) -> int:
    """EXIF's tag, 1 where there is none. What has not been loaded yet is not loaded for it."""
    try:
        if isinstance(picture, PngImageFile) and "exif" not in picture.info and picture.fp is not None:
            exif = _late_png_exif(picture.fp) or Image.Image.getexif(picture)
        else:
            exif = picture.getexif()
        return int(exif.get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  a camera's broken metadata is no reason to refuse its picture
        return 1


def _late_png_exif(file: Any) -> Image.Exif | None:
    """EXIF data that stand behind a PNG's pixels, where Pillow finds them once it has decoded these."""
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


def _upright(picture: Image.Image, ours: bool) -> Image.Image:
    """Turned as its EXIF data say; a copy unless it is `ours`, which needs no second one in memory."""
    if _orientation(picture) == 1:
        return picture if ours else picture.copy()
    if not ours:
        return ImageOps.exif_transpose(picture)
    ImageOps.exif_transpose(picture, in_place=True)
    return picture


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _picture_of_array(_deep_array(picture)).convert("RGB")
    if picture.mode in ("RGBa", "La"):  # premultiplied
        picture = picture.convert(picture.mode.upper())
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        return _on_white(picture)
    return picture.convert("RGB") if picture.mode != "RGB" else picture


def _deep_array(picture: Image.Image) -> np.ndarray:
    """[H, W] of a picture with more than 8 bits: I;16, I;16B, I;16L, I (whole numbers) or F."""
    values = np.asarray(picture)
    if picture.mode == "F":
        return values
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise ImageError(
            f"The picture's gray values go from {low} to {high}; 0 to 65535 is expected. Save it with 8 or 16 bits."
        )
    return values.astype(np.uint16)


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
    pixels = as_8_bit(_channels_last(array))
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels))


def _channels_last(array: np.ndarray) -> np.ndarray:
    """-> [H, W, C]. Where both ends could be channels, the first is, as in the reference."""
    if array.ndim == 2:
        return array[..., None]
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        return np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] in (1, 3, 4):
        return array
    raise ImageError(f"An array of shape {list(array.shape)} is no picture; give [H, W], [H, W, C] or [C, H, W].")


def as_8_bit(values: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 over 257, bool to 0 and 255, floats from 0 to 1 times 255."""
    if values.dtype == np.uint8 or values.size == 0:
        return values.astype(np.uint8)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 65535 / 255 = 257
    if values.dtype.kind not in "iuf":
        raise ImageError(f"An array of {values.dtype} is no picture; give 8-bit numbers, or floats from 0 to 1.")
    low, high = float(values.min()), float(values.max())
    limit = 1.0 if values.dtype.kind == "f" and high <= 1.0 else 255.0
    if not (low >= 0.0 and high <= limit):  # also for NaN
        raise ImageError(f"The array's values go from {low:g} to {high:g}; 0 to 1 (floats) or 0 to 255 is expected.")
    return np.rint(values * (255.0 / limit)).astype(np.uint8)


async def _fetch(url: str, limits: ImageLimits) -> bytes:
    import httpx

    host = urlsplit(url).hostname or "the address"
    try:
        return await asyncio.wait_for(_follow(url, limits), limits.timeout)
    except TimeoutError:
        raise ImageError(
            f"{host} did not send the picture within {limits.timeout:g} s. Download it yourself and add it as a file."
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"The picture could not be fetched from {host}. Check the address, or add the picture as a file."
        ) from error


async def _follow(url: str, limits: ImageLimits) -> bytes:
    for _ in range(limits.max_redirects + 1):
        body, url = await _fetch_hop(url, limits)
        if body is not None:
            return body
    raise ImageError(f"The address leads through more than {limits.max_redirects} redirects; give the last one.")


async def _fetch_hop(url: str, limits: ImageLimits) -> tuple[bytes | None, str]:
    """One request: the body, or None and where it is said to be."""
    import httpx
    from safehttpx import AsyncSecureTransport

    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ImageError("The address is not an http or https address; give one, or add the picture as a file.")
    transport = AsyncSecureTransport(await _public_address(parts.hostname))
    headers = {"Accept": "image/*", "Accept-Encoding": "identity"}  # unpacking has no bound of its own
    client = httpx.AsyncClient(transport=transport, trust_env=False, timeout=limits.timeout, headers=headers)
    async with client, client.stream("GET", url) as response:
        if response.is_redirect:
            return None, urljoin(url, response.headers["location"])
        if response.status_code != 200:
            raise ImageError(
                f"{parts.hostname} answered {response.status_code} instead of a picture. Check the address."
            )
        return await _bounded_body(response.aiter_raw, limits), url


async def _bounded_body(chunks: Callable[[], Any], limits: ImageLimits) -> bytes:
    body = bytearray()
    async for chunk in chunks():
        body += chunk
        _check_bytes(len(body), limits)
    return bytes(body)


async def _public_address(host: str) -> str:
    """An IP address of the host that the whole internet can reach. Raises ValueError for others:
    a visitor must not reach the server's own network through a picture's address."""
    import ipaddress

    from safehttpx import async_validate_url

    address = await async_validate_url(host)
    if not ipaddress.ip_address(address).is_global:
        raise ValueError(f"{host} is not a public address")
    return address
