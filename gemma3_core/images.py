"""A path, URL, bytes, base64, PIL picture, array or tensor -> an upright RGB picture.

What strangers send is bounded before it is decoded: the size in bytes, then the size in pixels as
the file's header gives it. Only formats that people take and share pictures in are decoded at all.
"""

import asyncio
import base64
import binascii
import contextlib
import math
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import numpy as np
import torch
from PIL import Image, ImageFile

from gemma3_core.errors import ImageError

ImageSource = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor

# Pillow knows some forty formats, some of them through programs of the system (EPS runs
# Ghostscript). JPEG includes the MPO of cameras that store a second view.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
_EXIF_ORIENTATION = 0x0112
_TURNS = {  # EXIF 2.32, tag Orientation: how to set the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)  # of these, width and height change places
_BAND_ROWS = 1024  # transparency is flattened in bands, so that large pictures need no third copy
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):")


@dataclass(frozen=True)
class ImageLimits:
    """What is accepted; `timeout` is for a whole download, in seconds."""

    max_pixels: int = 64_000_000
    max_bytes: int = 20_000_000
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
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), limits)
    if isinstance(source, Path):
        return _decode(_read_file(source, limits), limits)
    if isinstance(source, str):
        return _decode(_read_string(source, limits), limits)
    raise ImageError(f"A picture can't be read from {type(source).__name__}; give a path, URL, bytes or a picture.")


def picture_size(source: ImageSource, limits: ImageLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Width and height of what `load_image` would give; of a path or bytes only what Pillow needs to read
    for its size and orientation. Raises ImageError as `load_image` does, but for damage behind the header.
    """
    if isinstance(source, Path):
        source = _read_file(source, limits)
    if not isinstance(source, bytes | bytearray | memoryview):
        return load_image(source, limits).size
    data = bytes(source)
    if not data:
        return load_image(data, limits).size
    _check_bytes(len(data), limits)
    with _open_header(data) as picture:
        width, height = picture.size
        check_pixels(width, height, limits)
        # Of a TIFF Pillow gives the upright size before it is read.
        sideways = picture.format != "TIFF" and _orientation(picture) in _SIDEWAYS
        return (height, width) if sideways else (width, height)


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


def _read_string(text: str, limits: ImageLimits) -> bytes:
    if text.startswith("data:"):
        header, comma, body = text.partition(",")
        if not comma or not header.endswith(";base64"):
            raise ImageError("This data URL holds no base64 picture; it begins with data:image/…;base64, as a rule.")
        return decode_base64(body, limits)
    if text.startswith(("http://", "https://")):
        return fetch_image(text, limits)
    if os.path.isfile(text):
        return _read_file(Path(text), limits)
    scheme = _SCHEME.match(text)
    if scheme:
        raise ImageError(f"Addresses that begin with {scheme.group(1)}: are not read; use http, https or a file.")
    if not text.strip():
        raise ImageError("No picture was given: the text is empty.")
    if Path(text[-64:]).suffix:
        raise ImageError(f"There is no picture file named {Path(text).name[-64:]}; check the name and try again.")
    return decode_base64(text, limits)


def _read_file(path: Path, limits: ImageLimits) -> bytes:
    name = path.name[-64:]
    if not path.is_file():  # neither a folder nor a pipe, which might never end
        raise ImageError(f"There is no picture file named {name}; check the name and try again.")
    try:
        _check_bytes(path.stat().st_size, limits)
        return path.read_bytes()
    except OSError:
        raise ImageError(f"The file {name} can't be read; check its permissions and try again.") from None


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


def _decode(data: bytes, limits: ImageLimits) -> Image.Image:
    if not data:
        raise ImageError("The picture is empty: 0 bytes. Choose the file again.")
    _check_bytes(len(data), limits)
    picture = _open_header(data)
    with picture:
        check_pixels(*picture.size, limits)
        try:
            picture.load()
        except Exception as error:  # decoders raise anything on damaged bytes
            raise ImageError(
                f"The {picture.format} picture is damaged or cut off: it ends before all of its "
                f"{picture.width} x {picture.height} pixels are there. Save or download it again."
            ) from error
        return _finish(picture, limits)


def _open_header(data: bytes) -> ImageFile.ImageFile:
    """What `PIL.Image.open` does, without its own two limits: those warn on stderr, or raise with
    no width and height, where ours must say both."""
    Image.init()
    for name in _FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is not None and accepts(data[:16]) is not True:
            continue
        with contextlib.suppress(Exception):  # decoders raise anything on damaged bytes
            return factory(BytesIO(data), "")
    raise ImageError(
        f"These {len(data):,} bytes are not a picture that can be read. Use JPEG, PNG, WebP, AVIF, GIF, BMP or TIFF."
    )


def _finish(picture: Image.Image, limits: ImageLimits) -> Image.Image:
    """Any PIL picture -> a new RGB one without metadata (so that it isn't turned a second time)."""
    check_pixels(*picture.size, limits)
    try:
        rgb = _upright(_to_rgb(picture), _orientation(picture))
    except ImageError:
        raise
    except Exception as error:  # a PIL picture whose file is closed or damaged
        raise ImageError(f"The picture (mode {picture.mode}) can't be read as colors: {error}.") from error
    rgb.info = {}
    return rgb


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  a camera's broken metadata is no reason to refuse its picture
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    turn = _TURNS.get(orientation)
    return picture if turn is None else picture.transpose(turn)


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _picture_of_array(_deep_array(picture)).convert("RGB")
    if picture.mode in ("RGBa", "La"):  # premultiplied
        picture = picture.convert(picture.mode.upper())
    if "A" in picture.getbands() or picture.info.get("transparency") is not None:
        return _on_white(picture)
    return picture.convert("RGB") if picture.mode != "RGB" else picture.copy()


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
    for top in range(0, picture.height, _BAND_ROWS):
        box = (0, top, picture.width, min(top + _BAND_ROWS, picture.height))
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
