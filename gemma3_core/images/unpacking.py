"""The pictures in files that are no single picture: PDF pages, video frames, the pages of a TIFF or GIF.

This is a program of its own, which `documents.py` starts for each file: a stranger's file is read by C code that bounds
neither memory nor time, so the process bounds itself before it opens anything.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from gemma3_core.errors import ImageError
from gemma3_core.images.limits import DEFAULT_LIMITS, check_header, check_pixels, open_header
from gemma3_core.images.pan_and_scan import enough_pixels

MAX_MEMORY_BYTES = 1_500_000_000
"""Address space, libraries included; what is really used is less."""
MAX_CPU_S = 30
MAX_RESULT_BYTES = 20_000_000
"""For one picture, as for an upload."""
MAX_LISTED = 1000
"""Pages that can be chosen from."""
MAX_THUMBNAILS = 24
OUT_OF_MEMORY = 77
"""The status with which the process ends where its memory does not suffice."""

_THUMBNAIL = 160
_MAX_SIDE, _MAX_PIXELS = 8192, 16_000_000  # of a page that is drawn
_MAX_PNG_BYTES = 4_000_000
_DECODED_PER_FRAME = 400  # frames decoded from a key frame on, until one is taken wherever it is
_PDF_PASSWORD = 4  # FPDF_ERR_PASSWORD
_VIDEOS = (("matroska", b"\x1aE\xdf\xa3", 0), ("avi", b"AVI ", 8))  # marks, and where they stand
_PICTURE_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1", b"avif", b"avis")
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free")
_JPEG_2000 = (b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")
_NOTHING_OUTSIDE = {"protocol_whitelist": "none"}  # a playlist could name other files and servers

Draw = Callable[[int], tuple[Image.Image, float | None]]


@dataclass(frozen=True)
class Opened:
    """An open file: how many pictures it holds, the size of each that can be chosen, and what draws one by its number.

    For a video, the number is a share of its length in thousandths, and `seconds` is its length. `sketch` draws a page
    small, which is faster for some.
    """

    kind: str
    count: int
    sizes: list[tuple[int, int]]
    draw: Draw
    seconds: float | None = None
    is_photo: bool = False
    sketch: Draw | None = None


def opened(path: Path) -> Opened:
    """Opens a document. Raises ImageError."""
    form = _form(path)
    if form == "pdf":
        return _pdf(path)
    if form == "jpeg 2000":
        return _jpeg_2000(path)
    return _video(path, form) if form else _pages(path)


def _form(path: Path) -> str:
    """ "pdf", "jpeg 2000", or a video's container as ffmpeg names it; empty for pictures and whatever else there is."""
    with path.open("rb") as file:
        beginning = file.read(16)
    if beginning.startswith(b"%PDF-"):
        return "pdf"
    if beginning.startswith(_JPEG_2000):
        return "jpeg 2000"
    if beginning[4:8] == b"ftyp" and beginning[8:12] in _PICTURE_BRANDS:
        return ""
    if beginning[4:8] in _MOV_BOXES:
        return "mov"
    return next((form for form, mark, place in _VIDEOS if beginning[place : place + len(mark)] == mark), "")


def check_document(path: Path) -> None:
    """Raises ImageError unless the first bytes are those of a document or a picture."""
    if not _form(path):
        with path.open("rb") as file:
            open_header(file)


def _pdf(path: Path) -> Opened:
    require("pypdfium2", "The pages of a PDF are", "save the page as a picture")
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if error.err_code == _PDF_PASSWORD:
            raise ImageError("This PDF is locked with a password. Save it without one, and add that.") from None
        raise ImageError("This PDF is damaged or cut off. Save it again, or take a screenshot of the page.") from None
    if not len(document):
        raise ImageError("This PDF has no pages. Save it again, and add that.")

    def draw(number: int, longest: int = _MAX_SIDE) -> tuple[Image.Image, None]:
        try:
            page = document[number]
            scale = min(_drawn_at(*page.get_size()), longest / max(page.get_size()))
            bitmap = page.render(scale=scale, may_draw_forms=False, limit_image_cache=True)
        except pypdfium2.PdfiumError:
            raise ImageError(f"Page {number + 1} of this PDF is damaged. Choose others.") from None
        check_pixels(bitmap.width, bitmap.height, DEFAULT_LIMITS)
        return bitmap.to_pil().convert("RGB"), None

    points = [document.get_page_size(number) for number in range(min(MAX_LISTED, len(document)))]
    sizes = [(math.ceil(width * scale), math.ceil(height * scale))
             for width, height in points for scale in [_drawn_at(width, height)]]  # fmt: skip
    return Opened("PDF", len(document), sizes, draw, sketch=lambda number: draw(number, _THUMBNAIL))


def _drawn_at(width: float, height: float) -> float:
    """The pixels for each point of a page: as many as the model can see, within bounds.

    Less detail than a photograph needs, which is scaled twice.
    """
    if not (math.isfinite(width * height) and width > 0 and height > 0):
        raise ImageError("This PDF has a page without a size. Save it again, and add that.")
    large = 10_000 / min(width, height)
    enough = enough_pixels(max(1, round(width * large)), max(1, round(height * large)), detail=1.5)[0] / width
    return min(enough, _MAX_SIDE / max(width, height), math.sqrt(_MAX_PIXELS / (width * height)))


def _video(path: Path, form: str) -> Opened:
    require("av", "The frames of a video are", "take a screenshot")
    import av

    try:
        container = av.open(path.open("rb"), format=form, container_options=_NOTHING_OUTSIDE, metadata_errors="ignore")
    except (av.FFmpegError, ValueError):
        raise ImageError("This video is damaged or cut off. Save it again as MP4, or take a screenshot.") from None
    assert isinstance(container, av.container.InputContainer)
    stream = next(iter(container.streams.video), None)
    if stream is None:
        raise ImageError("This file has sound but no moving picture. Add a video, or a screenshot.")
    if stream.codec_context is None:
        raise ImageError("This video's format is not known here. Save it as MP4, or take a screenshot.")
    stream.codec_context.thread_count = 1
    size = stream.codec_context.width, stream.codec_context.height
    check_pixels(*size, DEFAULT_LIMITS)
    seconds = 0.0
    if stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / 1e6
    begin = float((stream.start_time or 0) * (stream.time_base or 0))

    def draw(thousandths: int) -> tuple[Image.Image, float]:
        try:
            frame = _frame_at(container, stream, begin + seconds * thousandths / 1000)
        except (av.FFmpegError, ValueError):
            frame = None
        if frame is None:
            raise ImageError("This video is damaged or cut off. Save it again as MP4, or take a screenshot.")
        check_pixels(frame.width, frame.height, DEFAULT_LIMITS)
        width, height = enough_pixels(frame.width, frame.height)
        picture = frame.to_image(width=width, height=height)
        upright = picture.rotate(frame.rotation, expand=True) if frame.rotation else picture
        return upright, max(0.0, (frame.time or 0.0) - begin)

    return Opened("video", 1 if seconds <= 0 else 1000, [size], draw, max(0.0, seconds), is_photo=True)


def _frame_at(container: Any, stream: Any, second: float) -> Any:
    """The frame shown at this time, or the last one decoded towards it."""
    container.seek(int(second / stream.time_base), stream=stream)
    latest = None
    for number, frame in enumerate(container.decode(stream)):
        if latest is not None and (frame.time or 0.0) > second:
            return latest
        latest = frame
        if number >= _DECODED_PER_FRAME:
            return latest
    return latest


def _jpeg_2000(path: Path) -> Opened:
    try:
        picture = Image.open(path, formats=("JPEG2000",))
    except Exception:  # noqa: BLE001  decoders raise anything on damaged bytes
        raise ImageError("This JPEG 2000 picture is damaged or cut off. Save it as JPEG, and add that.") from None
    check_pixels(*picture.size, DEFAULT_LIMITS)
    return Opened("JPEG 2000", 1, [picture.size], lambda _number: (_decoded(picture), None), is_photo=True)


def _pages(path: Path) -> Opened:
    """TIFF, GIF, and every picture that Pillow reads here."""
    file = path.open("rb")
    picture: Any = open_header(file)
    check_header(picture, file, DEFAULT_LIMITS)
    kind = {"HEIF": "HEIC"}.get(picture.format, picture.format)
    if kind not in ("TIFF", "GIF"):
        return Opened(kind, 1, [picture.size], lambda _number: (_decoded(picture), None), is_photo=True)
    try:
        count = int(picture.n_frames)
    except Exception:  # noqa: BLE001  decoders raise anything on damaged bytes
        count = 1

    def draw(number: int) -> tuple[Image.Image, None]:
        try:
            picture.seek(number)
        except Exception:  # noqa: BLE001
            raise ImageError(f"Page {number + 1} of this {kind} is damaged. Choose others.") from None
        check_header(picture, file, DEFAULT_LIMITS)
        return _decoded(picture), None

    return Opened(kind, count, [picture.size] * min(count, MAX_LISTED), draw)


def _decoded(picture: Any) -> Image.Image:
    try:
        picture.load()
        return ImageOps.exif_transpose(picture)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  decoders raise anything on damaged bytes
        raise ImageError(f"The {picture.format} picture is damaged or cut off. Save it again.") from None


def require(package: str, what: str, instead: str) -> None:
    """Raises ImageError where an optional package is missing."""
    if find_spec(package) is None:
        raise ImageError(
            f"{what} read only where the package {package} is installed. Install it (requirements/pictures.txt has "
            f"it), or {instead}, and add that."
        )


def _saved(picture: Image.Image, path: Path, is_photo: bool) -> str:
    """Writes a picture in the smallest size at which the model sees everything; returns the file's name."""
    if picture.mode.startswith("I") or picture.mode == "F":  # deep: `load_image` knows its levels
        picture.save(path.with_suffix(".tiff"))
        return path.with_suffix(".tiff").name
    if "A" in picture.getbands() or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        picture = Image.new("RGB", picture.size, "white")
        picture.paste(layer, mask=layer.getchannel("A"))
    picture = picture.convert("RGB")
    size = enough_pixels(*picture.size)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if not is_photo:
        with contextlib.suppress(OSError):
            picture.save(path.with_suffix(".png"), compress_level=4)
            if path.with_suffix(".png").stat().st_size <= _MAX_PNG_BYTES:
                return path.with_suffix(".png").name
        path.with_suffix(".png").unlink(missing_ok=True)
    picture.save(path.with_suffix(".jpg"), quality=93, subsampling=0)
    return path.with_suffix(".jpg").name


def _look(document: Opened, folder: Path) -> dict[str, Any]:
    """What a document holds, with small pictures of the first pages; the picture itself where it is the only one."""
    told: dict[str, Any] = {
        "kind": document.kind, "count": document.count, "sizes": document.sizes, "seconds": document.seconds,
        "thumbnails": [], "pictures": [],
    }  # fmt: skip
    if document.count == 1:
        told["pictures"] = list(_take(document, folder, [0]))
    elif document.seconds is None:
        for number in range(min(document.count, MAX_THUMBNAILS)):
            with contextlib.suppress(ImageError):  # a damaged page is told of when it is chosen
                small, _ = (document.sketch or document.draw)(number)
                small.thumbnail((_THUMBNAIL, _THUMBNAIL))
                small.convert("RGB").save(folder / f"small-{number}.jpg", quality=80)
                told["thumbnails"].append([number, f"small-{number}.jpg"])
    return told


def _take(document: Opened, folder: Path, numbers: list[int]) -> Iterator[dict[str, Any]]:
    for place, number in enumerate(numbers):
        if not 0 <= number < document.count:
            raise ImageError(f"This {document.kind} has {document.count:,} pages; give numbers from 1 to that.")
        picture, second = document.draw(number)
        width, height = picture.size
        name = _saved(picture, folder / f"{place:03}", document.is_photo)
        yield {"file": name, "number": number, "second": second, "width": width, "height": height}


def _bound_this_process() -> None:
    """Sets the limits that this system has: Linux has all of them, macOS none on memory, Windows none at all."""
    with contextlib.suppress(ImportError, AttributeError):
        import resource

        for limit, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, MAX_CPU_S),
            (resource.RLIMIT_FSIZE, MAX_RESULT_BYTES),
            (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        ):
            hard = resource.getrlimit(limit)[1]
            most = most if hard == resource.RLIM_INFINITY else min(most, hard)
            with contextlib.suppress(*([ValueError, OSError] if sys.platform == "darwin" else [])):
                resource.setrlimit(limit, (most, most))
        os.nice(10)


def main() -> None:
    """`python -m gemma3_core.images.unpacking FILE FOLDER [NUMBER …]`: writes pictures and result.json to FOLDER."""
    _bound_this_process()
    source, folder, numbers = Path(sys.argv[1]), Path(sys.argv[2]), [int(number) for number in sys.argv[3:]]
    try:
        document = opened(source)
        told = {"pictures": list(_take(document, folder, numbers))} if numbers else _look(document, folder)
    except ImageError as error:
        told = {"error": str(error)}
    except MemoryError:
        sys.exit(OUT_OF_MEMORY)
    (folder / "result.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
