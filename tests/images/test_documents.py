"""The pages of documents and the frames of videos, and files that were made to hurt."""

import io
import re
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from places import REPOSITORY

from gemma3_core.errors import ImageError
from gemma3_core.images import documents, unpacking
from gemma3_core.images.documents import open_document, take_frames, take_pages
from gemma3_core.images.pan_and_scan import enough_pixels, pan_and_scan_boxes
from gemma3_core.images.processor import Gemma3ImageProcessor

COLORS = ("red", "lime", "blue", "yellow", "black")


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def sheets(size=(200, 300)) -> list[Image.Image]:
    return [Image.new("RGB", size, color) for color in COLORS]


def written(folder: Path, form: str) -> Path:
    path = folder / f"pages.{form.lower()}"
    first, *rest = sheets()
    first.save(path, form, save_all=True, append_images=rest)
    return path


def video(path: Path, seconds: int = 5, rate: Fraction = Fraction(4), size=(64, 48), key_every: int = 12) -> Path:
    """A video that grows lighter from beginning to end."""
    av = pytest.importorskip("av", reason="av is not installed")
    with av.open(str(path), "w", format=None if path.suffix else "mp4") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"sc_threshold": "1000000000"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", key_every
        count = round(seconds * rate)
        for number in range(count):
            shade = np.full((size[1], size[0], 3), 255 * number // count, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode())
    return path


def pdf(*objects: bytes) -> bytes:
    """A PDF of these objects, numbered from 1, the first of which is the catalog."""
    body = b"%PDF-1.7\n"
    for number, content in enumerate(objects, 1):
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    return body + b"trailer <</Root 1 0 R>>\n"


def one_page(box: str, drawn: bytes = b"", resources: bytes = b"", *more: bytes) -> bytes:
    page = b"<</Type /Page /Parent 2 0 R /MediaBox [%s] /Contents 4 0 R /Resources <<%s>>>>" % (box.encode(), resources)
    stream = b"<</Length %d>>\nstream\n%s\nendstream" % (len(drawn), drawn)
    tree = b"<</Type /Pages /Kids [3 0 R] /Count 1>>"
    return pdf(b"<</Type /Catalog /Pages 2 0 R>>", tree, page, stream, *more)


def color_of(data: bytes) -> tuple[int, ...]:
    return Image.open(io.BytesIO(data)).convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[return-value]


@pytest.mark.parametrize("form", ["PDF", "TIFF", "GIF"])
def test_pages_come_in_the_order_that_is_asked_for(folder, form):
    path = written(folder, form)
    document = open_document(path)
    assert (document.kind, document.count, document.seconds, document.only) == (form, 5, None, None)
    assert [number for number, _ in document.thumbnails] == [0, 1, 2, 3, 4]
    taken = take_pages(path, [2, 0])
    assert [one.number for one in taken] == [2, 0]
    for one, wanted in zip(taken, ((0, 0, 255), (255, 0, 0)), strict=True):
        assert np.abs(np.subtract(color_of(one.data), wanted)).max() <= 4
    assert document.sizes[0] == (taken[0].width, taken[0].height)


def test_a_page_has_the_pixels_that_the_model_can_see(folder):
    path = folder / "a.pdf"
    Image.new("RGB", (595, 842)).save(path)
    only = open_document(path).only
    assert (only.width, only.height) == (1901, 2689)  # one and a half times the two crops of a sheet of A4
    for box in ("0 0 14400 14400", "0 0 1 14400", "0 0 99999 99999", "0 0 0.001 0.001"):
        path.write_bytes(one_page(box))
        only = open_document(path).only
        assert max(only.width, only.height) <= 8192, box
        assert only.width * only.height <= 16_100_000, box


@pytest.mark.parametrize("form", ["HEIF", "JPEG2000", "PNG", "TIFF"])
def test_a_file_with_one_picture_brings_it_along(folder, form):
    if form == "HEIF":
        pytest.importorskip("pillow_heif", reason="pillow-heif is not installed").register_heif_opener()
    path = folder / "one"
    picture = Image.new("RGB", (120, 80), "red")
    picture.save(path, form)
    document = open_document(path)
    assert document.only is not None
    assert document.only.suffix in (".jpg", ".png")
    assert np.abs(np.subtract(color_of(document.only.data), (255, 0, 0))).max() <= 4


def test_levels_of_16_bits_and_transparency_stay_what_they_are(folder):
    deep, clear = folder / "deep.tiff", folder / "clear.gif"
    Image.fromarray(np.full((20, 30), 40_000, np.uint16)).save(deep)
    assert np.asarray(Image.open(io.BytesIO(open_document(deep).only.data))).max() == 40_000
    Image.new("RGBA", (20, 30), (0, 0, 0, 0)).save(clear)
    assert color_of(open_document(clear).only.data) == (255, 255, 255)


@pytest.mark.parametrize("ending", ["mp4", "mov", "mkv", "avi"])
def test_frames_are_evenly_spaced_and_know_their_time(folder, ending):
    path = video(folder / f"a.{ending}")
    document = open_document(path)
    assert (document.kind, document.sizes, document.only) == ("video", ((64, 48),), None)
    assert document.seconds == pytest.approx(5.0, abs=0.3)
    taken = take_frames(path, 4)
    assert [one.second for one in taken] == pytest.approx([0.625, 1.875, 3.125, 4.375], abs=0.3)
    shades = [color_of(one.data)[0] for one in taken]
    assert shades == pytest.approx([255 * one.second / 5 for one in taken], abs=12)


def test_a_video_of_hours_costs_what_its_frames_cost(folder):
    path = video(folder / "long.mp4", seconds=3 * 3600, rate=Fraction(1, 60))
    assert open_document(path).seconds == pytest.approx(3 * 3600, rel=0.02)
    assert [one.second for one in take_frames(path, 2)] == pytest.approx([2700, 8100], abs=61)


def test_a_frame_far_from_its_key_frame_is_not_waited_for(folder, monkeypatch):
    monkeypatch.setattr(unpacking, "_DECODED_PER_FRAME", 5)
    _, second = unpacking.opened(video(folder / "a.mp4", key_every=1000)).draw(900)
    assert second < 2.0


def sound_alone(path: Path) -> None:
    av = pytest.importorskip("av", reason="av is not installed")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def locked(path: Path) -> None:
    """A PDF whose handler wants a password that nobody gives."""
    key = b"<" + b"ab" * 32 + b">"
    encrypt = b"<</Filter /Standard /V 2 /R 3 /Length 128 /P -4 /O %s /U %s>>" % (key, key)
    body = one_page("0 0 9 9", b"", b"", encrypt)
    path.write_bytes(body.replace(b"<</Root 1 0 R>>", b"<</Root 1 0 R /Encrypt 5 0 R /ID [<aa> <aa>]>>"))


def cut(path: Path) -> None:
    video(path)
    path.write_bytes(path.read_bytes()[:200])


WRONG = {
    "locked": (locked, "locked with a password"),
    "no PDF": (lambda path: path.write_bytes(b"%PDF-1.7 and nothing else"), "PDF is damaged"),
    "no pages": (lambda path: path.write_bytes(pdf(b"<</Type /Catalog>>")), "PDF"),
    "sound": (sound_alone, "sound but no moving picture"),
    "cut video": (cut, "video is damaged"),
    "no video": (lambda path: path.write_bytes(b"\x1aE\xdf\xa3" + bytes(500)), "video is damaged"),
    "playlist": (lambda path: path.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n"), "not a picture"),
    "no JPEG 2000": (lambda path: path.write_bytes(b"\xff\x4f\xff\x51" + bytes(99)), "JPEG 2000 picture is damaged"),
    "text": (lambda path: path.write_text("hello"), "not a picture"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_plain_words(folder, name):
    make, told = WRONG[name]
    make(folder / "file")
    with pytest.raises(ImageError, match=told) as error:
        open_document(folder / "file")
    assert str(folder) not in str(error.value)


def test_a_video_can_not_reach_other_files(folder):
    """FFmpeg would follow a playlist that a file names, to this server's files and network."""
    for form in ("mov", "matroska", "avi"):
        (folder / "a").write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n")
        with pytest.raises(ImageError, match="damaged"):
            unpacking._video(folder / "a", form)


def test_memory_is_bounded(folder):
    """1.5 kB of JPEG 2000 that would take 3 GB."""
    file = io.BytesIO()
    picture = Image.new("L", (64, 64))
    picture.save(file, "JPEG2000", no_jp2=True, irreversible=False, codeblock_size=(4, 4), precinct_size=(4, 4))
    data, side = bytearray(file.getvalue()), (7900).to_bytes(4, "big")
    for place in (8, 12, 24, 28):  # Xsiz, Ysiz, XTsiz, YTsiz (ISO 15444-1, A.5.1)
        data[place : place + 4] = side
    (folder / "bomb.jp2").write_bytes(data)
    # In a process of its own, since this one has had other children.
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom gemma3_core.errors import ImageError\n"
        "from gemma3_core.images.documents import open_document\n"
        "try:\n    open_document(Path(sys.argv[1]))\nexcept ImageError as error:\n    print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    command = [sys.executable, "-c", script, str(folder / "bomb.jp2")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    said, largest = done.stdout.splitlines()
    assert re.search(r"too much time or memory|damaged", said)
    assert int(largest) < unpacking.MAX_MEMORY_BYTES


def test_a_picture_in_a_pdf_that_unpacks_to_gigabytes(folder):
    packed = zlib.compress(bytes(60_000_000), 9)
    image = b"<</Type /XObject /Subtype /Image /Width 30000 /Height 30000 /BitsPerComponent 8 /ColorSpace /DeviceRGB "
    image += b"/Filter /FlateDecode /Length %d>>\nstream\n%s\nendstream" % (len(packed), packed)
    drawn = b"q 100 0 0 100 0 0 cm /A Do Q"
    (folder / "bomb.pdf").write_bytes(one_page("0 0 100 100", drawn, b"/XObject <</A 5 0 R>>", image))
    only = open_document(folder / "bomb.pdf").only  # the picture is left out, the page is there
    assert only is not None


def test_time_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(documents, "MAX_WALL_S", 0.01)
    with pytest.raises(ImageError, match="too much time or memory"):
        open_document(written(folder, "GIF"))


def test_the_number_of_pages_is_bounded(folder):
    path = written(folder, "GIF")
    for numbers in ([], [0] * 21):
        with pytest.raises(ImageError, match="choose 1 to 20"):
            take_pages(path, numbers)


@pytest.mark.parametrize(("package", "make"), [("pypdfium2", lambda p: p.write_bytes(b"%PDF-1.7")), ("av", cut)])
def test_a_missing_package_is_named(folder, monkeypatch, package, make):
    make(folder / "file")
    monkeypatch.setattr(unpacking, "find_spec", lambda _name: None)
    with pytest.raises(ImageError, match=f"the package {package} is installed"):
        unpacking.opened(folder / "file")


def photograph(width: int, height: int) -> Image.Image:
    """Detail of every size, and writing."""
    random = np.random.default_rng(0)
    sum_of_noise = np.zeros((height, width, 3), np.float32)
    for octave in range(1, 10):
        grid = random.integers(0, 256, (max(1, height * 2**octave // width) + 1, 2**octave, 3), dtype=np.uint8)
        smooth = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        sum_of_noise += np.asarray(smooth, np.float32) * 0.7**octave
    picture = Image.fromarray((sum_of_noise / sum_of_noise.max() * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for number in range(20):
        place = random.integers(0, width * 3 // 4), random.integers(0, height)
        draw.text(place, f"Small print {number}", fill=tuple(random.integers(0, 256, 3)), font_size=height // 50)
    return picture


@pytest.mark.parametrize(("width", "height"), [(4500, 3375), (3000, 3000)])
def test_a_photograph_made_smaller_is_the_same_to_the_model(width, height):
    """In levels from 0 to 255 of the tiles, crops included; saving as JPEG is part of it."""
    images = Gemma3ImageProcessor(do_pan_and_scan=True, size={"height": 896, "width": 896})
    picture, size = photograph(width, height), enough_pixels(width, height)
    assert size[0] < width
    file = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=95)
    whole, less = (np.stack([np.asarray(tile, np.float32) for tile in images.tiles(one)])
                   for one in (picture, Image.open(file).convert("RGB")))  # fmt: skip
    difference = np.abs(whole - less)
    assert difference.mean() < 1.5
    assert np.percentile(difference, 99) < 15


def test_no_size_changes_the_crops():
    random = np.random.default_rng(1)
    for width, height in random.integers(1, 9000, (3000, 2)).tolist():
        smaller = enough_pixels(width, height)
        assert len(pan_and_scan_boxes(*smaller)) == len(pan_and_scan_boxes(width, height))
        assert smaller == (width, height) or min(smaller) >= 1792
    assert enough_pixels(4032, 3024) == (3584, 2688)
    assert enough_pixels(1920, 1080) == (1920, 1080)
