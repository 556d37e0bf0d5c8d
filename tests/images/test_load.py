"""Anything that holds a picture becomes an upright RGB picture, or an error that says what to do."""

import asyncio
import base64
import io
import os
import re
import socket
import struct
import sys
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
import safehttpx
import torch
from PIL import Image
from png import png_header
from warm import ran

from gemma3_core.errors import ImageError
from gemma3_core.images import fetch
from gemma3_core.images.fetch import fetch_image
from gemma3_core.images.limits import ImageLimits
from gemma3_core.images.load import decode_base64, load_image, read_header


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def same(a: Image.Image, b: Image.Image) -> bool:
    return (a.mode, a.size, a.tobytes()) == (b.mode, b.size, b.tobytes())


def test_every_kind_of_source_gives_the_same_picture(gradient_picture, tmp_path):
    data = encoded(gradient_picture)
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    text = base64.b64encode(data).decode()
    array = np.asarray(gradient_picture)
    sources = [
        gradient_picture,
        data,
        bytearray(data),
        path,
        str(path),
        text,
        f"data:image/png;base64,{text}",
        "\n".join([text[:76], text[76:]]),
        array,
        array.transpose(2, 0, 1),
        torch.tensor(array),
        torch.tensor(array).permute(2, 0, 1).float() / 255,
        array.astype(np.float64) / 255,
        array.astype(np.uint16) * 257,
        array.astype(np.int64),
    ]
    for source in sources:
        assert same(load_image(source), gradient_picture), type(source)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_accepted_formats(gradient_picture, form):
    data = encoded(gradient_picture, form)
    assert same(load_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("form", ["PPM", "ICO", "TGA", "PCX", "EPS"])
def test_other_formats_are_refused(gradient_picture, form):
    with pytest.raises(ImageError, match="Use JPEG, PNG"):
        load_image(encoded(gradient_picture, form))


OTHER_FORMATS = {
    "HEIC": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    "HEIC as mif1": b"\x00\x00\x00\x18ftypmif1\x00\x00\x00\x00mif1heic",
    "Video": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00isomiso2",
    "Video as WebM": b"\x1aE\xdf\xa3\x01\x00\x00\x00",
    "PDF": b"%PDF-1.7\n%\xe2\xe3",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "SVG with a head": b'\xef\xbb\xbf\n<?xml version="1.0"?>\n<!-- made by hand -->\n<svg viewBox="0 0 1 1"></svg>',
    "JPEG 2000": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    "JPEG 2000 as a code stream": b"\xff\x4f\xff\x51\x00\x2f",
    "JPEG XL": b"\xff\x0a\x00\x10",
    "JPEG XL in a box": b"\x00\x00\x00\x0cJXL \r\n\x87\n",
    "Photoshop": b"8BPS\x00\x01",
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
def test_other_formats_are_named_with_what_to_do(name):
    word = re.split(" (?:as|with|in) ", name)[0]
    with pytest.raises(ImageError, match=rf"{word}.*[Aa]dd") as error:
        load_image(OTHER_FORMATS[name] + bytes(5000))
    assert ". " not in str(error.value)


def test_heic_is_read_upright_and_bounded(gradient_picture):
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    exif = Image.Exif()
    exif[0x0112] = 6  # libheif turns it on its own, and nothing turns it again
    file = io.BytesIO()
    pillow_heif.from_pillow(gradient_picture).save(file, quality=-1, exif=exif.tobytes())
    data = file.getvalue()
    expected = pillow_heif.open_heif(data).to_pillow()
    picture = load_image(data)
    assert same(picture, expected.convert("RGB"))
    assert picture.size == (read_header(data).width, read_header(data).height)
    with pytest.raises(ImageError, match="megapixels"):
        read_header(data, ImageLimits(max_pixels=100))
    with pytest.raises(ImageError, match="MB of memory"):
        read_header(data, ImageLimits(max_decoding_bytes=1000))
    with pytest.raises(ImageError, match=r"(damaged|cut off)"):
        load_image(data[: len(data) // 2])


def test_without_its_package_a_heic_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    monkeypatch.setattr("gemma3_core.images.limits.find_spec", lambda _name: None)
    with pytest.raises(ImageError, match="the package pillow-heif") as error:
        load_image(OTHER_FORMATS["HEIC"])
    assert ". " not in str(error.value)


def test_avif_is_no_heic(gradient_picture):
    assert load_image(encoded(gradient_picture, "AVIF")).size == gradient_picture.size


def test_multi_picture_jpeg_gives_the_first(gradient_picture):
    data = encoded(gradient_picture, "MPO", save_all=True, append_images=[Image.new("RGB", (240, 100), "red")])
    assert same(load_image(data), Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "AVIF", "TIFF"])
def test_animations_give_their_first_frame(form):
    frames = [Image.new("RGB", (40, 30), color) for color in ("red", "green", "blue")]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:])
    red, green, blue = load_image(data).getpixel((20, 15))  # type: ignore[misc]
    assert red > 245
    assert green < 10
    assert blue < 10


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(gradient_picture, orientation, form):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient_picture, form, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    once = load_image(data)
    assert same(once, upright)
    assert same(load_image(once), upright)
    assert same(load_image(Image.open(io.BytesIO(data))), upright)
    assert not once.info


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_size_is_that_of_the_upright_picture(gradient_picture, tmp_path, orientation, form):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture"
    gradient_picture.save(path, form, exif=exif)
    for source in (path, path.read_bytes(), Image.open(path)):
        header = read_header(source)
        assert (header.width, header.height) == load_image(path).size
    assert read_header(path).digest == read_header(path.read_bytes()).digest


def test_pictures_of_the_same_bytes_and_another_shape_have_digests_of_their_own():
    wide, tall = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (10, 20), "red")
    assert wide.tobytes() == tall.tobytes()
    assert read_header(wide).digest != read_header(tall).digest
    assert read_header(wide).digest == read_header(wide.copy()).digest


def test_the_header_of_a_png_is_read_without_its_pixels(gradient_picture, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    early = encoded(gradient_picture, exif=exif)
    start = early.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(early[start : start + 4], "big")
    late = early[:start] + early[end:-12] + early[start:end] + early[-12:]  # behind the pixels, as some programs write
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", lambda _self: pytest.fail("decoded"))
    sizes = []
    for data in (encoded(gradient_picture), early, late):
        header = read_header(data)
        sizes.append((header.width, header.height))
    monkeypatch.undo()
    assert sizes == [(240, 100), (100, 240), (100, 240)]
    assert [load_image(data).size for data in (encoded(gradient_picture), early, late)] == sizes


def test_the_size_of_what_is_no_picture_is_refused_as_the_picture_is(gradient_picture, tmp_path):
    for wrong in (b"", b"no picture", tmp_path / "gone.png", 7):
        with pytest.raises(ImageError):
            read_header(wrong)
    file = io.BytesIO()
    gradient_picture.save(file, "PNG")
    for limits in (ImageLimits(max_pixels=100), ImageLimits(max_bytes=100)):
        with pytest.raises(ImageError, match="at most"):
            read_header(file.getvalue(), limits)


def peak_bytes_per_pixel(path, size):
    """What loading a picture takes at most beside what the process held before, in a process of its own."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from gemma3_core.images.load import load_image, read_header\n"
        f"source = Path({str(path)!r})\n"
        "header = read_header(source)\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"
        "peak = lambda: next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmHWM')) * 1024\n"
        "before = peak()\n"
        "picture = load_image(source)\n"
        "print(peak() - before, header.decoding_bytes)\n"
    )
    (program := path.with_suffix(".py")).write_text(code)
    status, output, errors = ran(program, [], os.environ, path.parent)
    assert status == 0, errors
    taken, told = map(int, output.split())
    return taken / size, told / size


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read off Linux's /proc")
@pytest.mark.parametrize(("form", "options", "mode"), [
    ("PNG", {}, "RGB"), ("PNG", {}, "RGBA"), ("PNG", {}, "L"), ("JPEG", {"exif": 6}, "RGB"),
    ("JPEG", {"progressive": True, "subsampling": 0}, "RGB"), ("JPEG", {}, "CMYK"),
    ("WEBP", {"method": 0}, "RGB"), ("AVIF", {"speed": 10}, "RGBA"), ("TIFF", {"compression": "tiff_lzw"}, "RGB"),
    ("HEIF", {"chroma": 444, "enc_params": {"preset": "ultrafast"}}, "RGB"),
])  # fmt: skip
def test_the_header_tells_at_least_the_memory_that_decoding_takes(tmp_path, form, options, mode):
    size = 3000
    levels = np.add.outer(np.arange(size), np.arange(size)).astype(np.uint8)
    picture = Image.fromarray(np.stack([levels, levels.T, 255 - levels], axis=-1)).convert(mode)
    if "exif" in options:
        exif = Image.Exif()
        exif[0x0112] = options["exif"]
        options = {"exif": exif}
    if form == "HEIF":
        pytest.importorskip("pillow_heif", reason="pillow-heif is not installed").register_heif_opener()
    path = tmp_path / "picture"
    picture.save(path, form, **options)
    taken, told = peak_bytes_per_pixel(path, size * size)
    assert 0.5 * told < taken < 1.1 * told


def tiled_tiff(size: int, tile: int) -> bytes:
    """A TIFF of one deflated tile of zeros that may be larger than its picture."""
    data = zlib.compress(bytes(min(tile, 4096) ** 2 * 3), 9)
    tags = {256: size, 257: size, 258: 8, 259: 8, 262: 2, 277: 3, 322: tile, 323: tile, 325: len(data)}
    tags = dict(sorted({**tags, 324: 10 + 12 * (len(tags) + 1) + 4}.items()))
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + data


def test_a_tile_of_a_tiff_counts_though_its_picture_is_small():
    """The decoder holds all of it: 26,752 x 26,752 pixels are 2 GB."""
    assert load_image(tiled_tiff(16, 256)).size == (16, 16)
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match=r"16 x 16 pixels needs 5,\d{3} MB"):
            read(tiled_tiff(16, 26_752))
    assert read_header(tiled_tiff(16, 4096)).decoding_bytes > 3 * 4096**2


def test_what_takes_too_much_memory_or_too_many_passes_is_refused(gradient_picture):
    with pytest.raises(ImageError, match=r"A WEBP picture of 240 x 100 pixels needs 0 MB"):
        load_image(encoded(gradient_picture, "WEBP"), ImageLimits(max_decoding_bytes=400_000))
    assert load_image(encoded(gradient_picture), ImageLimits(max_decoding_bytes=400_000)).size == (240, 100)
    scans = encoded(gradient_picture, "JPEG", progressive=True)
    assert load_image(scans).size == (240, 100)
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match=r"This JPEG has more than 3 scans"):
            read(scans, ImageLimits(max_scans=3))


def in_scans_of_one_color(picture: Image.Image, times: int = 1) -> bytes:
    """A sequential JPEG (baseline) whose colors come in scans of their own, each `times` times."""
    data, colors = b"\xff\xd8", picture.split()
    single = [encoded(color, "JPEG", quality=100) for color in colors]
    tables = single[0].index(b"\xff\xdb"), single[0].index(b"\xff\xc0")
    data += single[0][slice(*tables)]
    frame = struct.pack(">HBHHB", 8 + 3 * len(colors), 8, picture.height, picture.width, len(colors))
    data += b"\xff\xc0" + frame + b"".join(bytes([number, 0x11, 0]) for number in range(1, len(colors) + 1))
    data += single[0][single[0].index(b"\xff\xc4") : single[0].index(b"\xff\xda")]
    for number, one in enumerate(single, 1):
        scan = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, number, 0, 0, 63, 0)
        data += (scan + one[one.index(b"\xff\xda") + 10 : -2]) * times
    return data + b"\xff\xd9"


@pytest.mark.parametrize("read", [load_image, read_header])
def test_the_scans_of_a_sequential_jpeg_are_counted(gradient_picture, read):
    """Each may bring one color alone, and any number of times: a small file takes seconds."""
    colors = gradient_picture.convert("YCbCr")
    assert len(in_scans_of_one_color(colors)) < 100_000
    assert np.abs(np.asarray(load_image(in_scans_of_one_color(colors)), int) - np.asarray(gradient_picture)).mean() < 3
    read(in_scans_of_one_color(colors, 66))
    with pytest.raises(ImageError, match="more than 200 scans"):
        read(in_scans_of_one_color(colors, 67))
    with pytest.raises(ImageError, match="more than 200 scans"):
        read(in_scans_of_one_color(colors, 67).replace(b"\xff\xda", b"\xff\xff\xff\xda"))  # fill bytes


def test_the_scans_of_previews_are_not_counted(gradient_picture):
    """EXIF data hold a JPEG of their own, and multi-picture files further ones behind the first."""
    preview = encoded(gradient_picture.resize((32, 16)), "JPEG")
    plain = encoded(gradient_picture, "JPEG")
    with_previews = plain[:2] + (b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview) * 300 + plain[2:]
    assert load_image(with_previews + preview * 300).size == (240, 100)


def test_a_jpeg_of_very_many_segments_is_refused_before_they_are_kept(gradient_picture):
    plain = encoded(gradient_picture, "JPEG")
    for read in (load_image, read_header):
        with pytest.raises(ImageError, match="more than 20,000 segments"):
            read(plain[:2] + b"\xff\xfe\0\2" * 4_000_000 + plain[2:])


def test_the_coefficients_of_scans_of_one_color_count_as_memory(gradient_picture):
    """Also where only the first of them is there."""
    whole = in_scans_of_one_color(gradient_picture)
    first = whole[: whole.index(b"\xff\xda", whole.index(b"\xff\xda") + 2)]
    sizes = [read_header(data).decoding_bytes - len(data) for data in (encoded(gradient_picture, "JPEG"), whole, first)]
    assert sizes[1] == sizes[2] == sizes[0] + 6 * 240 * 100


def test_a_side_is_bounded_too():
    """Resizing 8,000,000 x 1 pixels took 160 MB."""
    for size in ((65_536, 1), (1, 8_000_000)):
        with pytest.raises(ImageError, match=r"at most 65,535 are accepted along one side"):
            load_image(png_header(*size))
    assert load_image(encoded(Image.new("L", (65_535, 1)))).size == (65_535, 1)
    with pytest.raises(ImageError, match="65,535"):
        load_image(np.zeros((1, 65_536, 3), np.uint8))


def test_transparency_becomes_white():
    picture = Image.new("RGBA", (3, 3000), (255, 0, 0, 0))
    picture.putpixel((0, 0), (0, 0, 255, 255))
    picture.putpixel((1, 2999), (0, 0, 0, 128))
    rgb = load_image(encoded(picture))
    assert rgb.getpixel((0, 0)) == (0, 0, 255)
    assert rgb.getpixel((2, 1500)) == (255, 255, 255)
    assert rgb.getpixel((1, 2999)) == (127, 127, 127)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_each_8_bit_mode_equals_the_reference(mode):
    from transformers.image_transforms import convert_to_rgb

    draw = np.random.default_rng(0)
    bands = len(Image.new(mode, (1, 1)).getbands())
    if mode == "1":
        picture = Image.fromarray(draw.integers(0, 2, (20, 30)).astype(bool))
    elif mode in ("P", "PA"):
        colors = Image.fromarray(draw.integers(0, 256, (20, 30, 3)).astype(np.uint8))
        picture = colors.convert("P", palette=Image.Palette.ADAPTIVE).convert(mode)
    else:
        picture = Image.frombytes(mode, (30, 20), draw.bytes(20 * 30 * bands))
    assert np.array_equal(np.asarray(load_image(picture)), convert_to_rgb(picture, return_numpy=True))  # type: ignore[arg-type]


def test_a_very_thin_picture_is_read_whole():
    picture = Image.new("RGB", (1, 5000), "red")
    picture.putpixel((0, 4999), (0, 0, 255))
    assert same(load_image(encoded(picture)), picture)


def test_cmyk_jpeg_file(gradient_picture):
    rgb = np.asarray(load_image(encoded(gradient_picture.convert("CMYK"), "JPEG", quality=95)), dtype=int)
    assert np.abs(rgb - np.asarray(gradient_picture, dtype=int)).mean() < 8  # upright colors, not their negative


def test_palette_with_a_transparent_color_is_flattened():
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((0, 0), 0)
    rgb = load_image(encoded(picture, transparency=1))
    assert rgb.getpixel((3, 3)) == (255, 255, 255)
    assert rgb.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_are_rescaled_not_clipped(mode):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    stored = {"I;16": values.astype("<u2"), "I;16B": values.astype(">u2"), "I": values.astype("<i4")}[mode]
    picture = Image.frombytes(mode, (4, 1), stored.tobytes())
    assert np.asarray(load_image(picture))[0, :, 0].tolist() == [0, 1, 128, 255]
    if mode != "I;16B":
        assert np.asarray(load_image(encoded(picture, "TIFF")))[0, :, 2].tolist() == [0, 1, 128, 255]


def test_16_bit_png_file():
    values = np.linspace(0, 65535, 256).astype(np.uint16)[None]
    assert np.asarray(load_image(encoded(Image.fromarray(values))))[0, :, 1].tolist() == list(range(256))


def test_float_pictures_and_masks():
    assert load_image(Image.new("F", (2, 2), 0.5)).getpixel((0, 0)) == (128, 128, 128)
    assert load_image(np.array([[True, False]])).getpixel((0, 0)) == (255, 255, 255)
    assert load_image(torch.full((1, 2, 2), 0.5, dtype=torch.bfloat16)).getpixel((1, 1)) == (128, 128, 128)


@pytest.mark.parametrize("array", [
    np.zeros((2, 3, 4, 4)), np.zeros((5, 5, 7)), np.full((2, 2), np.nan), np.full((2, 2), -1), np.full((2, 2), 300.0),
    np.zeros((0, 4, 3), np.uint8), np.array([["a"]]),
])  # fmt: skip
def test_arrays_that_are_no_picture(array):
    with pytest.raises(ImageError):
        load_image(array)


def test_too_many_pixels_are_refused_before_decoding():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError) as error:
            load_image(png_header(12000, 9000))
        assert str(error.value) == (
            "The picture is 12000 x 9000 pixels (108 megapixels); at most 64 are accepted. "
            "Make it smaller and try again."
        )
        with pytest.raises(ImageError, match=r"60000 x 50000 pixels \(3,000 megapixels"):
            load_image(png_header(60000, 50000))
    with pytest.raises(ImageError, match="10 x 10 pixels"):
        load_image(Image.new("RGB", (10, 10)), ImageLimits(max_pixels=99))


def test_too_many_bytes_are_refused(tmp_path):
    limits = ImageLimits(max_bytes=1000)
    path = tmp_path / "big.png"
    path.write_bytes(b"\0" * 1001)
    for source in (path, path.read_bytes(), "A" * 2000, "data:image/png;base64," + "A" * 2000):
        with pytest.raises(ImageError, match=r"MB; at most 0\.001 MB are accepted"):
            load_image(source, limits)


def test_a_file_over_20_mb_is_refused_unread(tmp_path):
    with open(tmp_path / "big.png", "wb") as file:
        file.truncate(20_000_001)
    with pytest.raises(ImageError, match=r"20\.0 MB; at most 20 MB are accepted"):
        load_image(tmp_path / "big.png")


@pytest.mark.parametrize("name", ["words.png", "words.jpg", "words.avif"])
def test_what_is_no_picture_is_refused_whatever_its_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>not a picture</html>")
    with pytest.raises(ImageError, match="not a picture that can be read"):
        load_image(tmp_path / name)


def test_empty_truncated_and_foreign_bytes(gradient_picture):
    with pytest.raises(ImageError, match="0 bytes"):
        load_image(b"")
    with pytest.raises(ImageError, match="not a picture"):
        load_image(b"PK\x03\x04 nothing to see")
    for form in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"):
        data = encoded(gradient_picture, form)
        with pytest.raises(ImageError, match=r"damaged|not a picture"):
            load_image(data[: len(data) // 2])
    with pytest.raises(ImageError, match="damaged"):
        load_image(png_header(100, 100))


@pytest.mark.parametrize("seed", range(4))
def test_damaged_bytes_never_raise_anything_else(gradient_picture, seed):
    draw = np.random.default_rng(seed)
    for form in ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF"):
        data = np.frombuffer(encoded(gradient_picture, form), np.uint8).copy()
        places = draw.integers(0, min(len(data), 400), 12)
        data[places] = draw.integers(0, 256, 12)
        try:
            assert load_image(data.tobytes()).mode == "RGB"
        except ImageError:
            continue


def test_the_callers_picture_is_left_alone(gradient_picture):
    picture = gradient_picture.copy()
    picture.info["comment"] = "mine"
    result = load_image(picture)
    result.putpixel((0, 0), (1, 2, 3))
    assert picture.getpixel((0, 0)) == (0, 0, 0)
    assert picture.info == {"comment": "mine"}


@pytest.mark.parametrize("source", [
    "file:///etc/hostname", "ftp://host/a.png", "javascript:alert(1)", "", "  ", "no such file.png", "not base64!",
    "data:image/png,rawbytes", "http:///nohost", 3.5, None,
])  # fmt: skip
def test_other_strings_and_types_are_refused(source):
    with pytest.raises(ImageError):
        load_image(source)


def test_messages_hold_no_path(tmp_path):
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "text.png").write_text("no picture")
    for source in (folder, folder / "absent.png", str(folder / "absent.png"), str(folder / "text.png")):
        with pytest.raises(ImageError) as error:
            load_image(source)
        assert str(tmp_path) not in str(error.value)


def test_base64_alone_is_never_a_path(tmp_path):
    with pytest.raises(ImageError, match="base64"):
        decode_base64(str(tmp_path / "a.png"))


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        if name.startswith("redirect"):
            self._answer(302, b"", location=name.removeprefix("redirect-") or self.path)
        elif name == "gzip":
            self._answer(200, b"\x1f\x8b", encoding="gzip")
        elif name.isdecimal():
            self._answer(int(name), b"")
        else:
            self._answer(200, self.server.content)  # type: ignore[attr-defined]

    def _answer(self, status, body, location=None, encoding=None):
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        if encoding:
            self.send_header("Content-Encoding", encoding)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(gradient_picture):
    http = HTTPServer(("127.0.0.1", 0), _Handler)
    http.content = encoded(gradient_picture)  # type: ignore[attr-defined]
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0"])
def test_private_addresses_are_refused(host):
    with pytest.raises(ImageError, match="could not be fetched"):
        load_image(f"http://{host}/a.png", ImageLimits(timeout=5))


@pytest.mark.parametrize("address", ["http://[", "http://[::1", "https://]/a.png", "http://a\uff0fb/", "http://\0/"])
def test_broken_addresses_are_refused(address):
    with pytest.raises(ImageError, match=r"^The picture could not be fetched from .*Check the address"):
        load_image(address, ImageLimits(timeout=5))


def test_private_addresses_are_refused_at_the_same_moment(monkeypatch):
    """Each fetch has an event loop of its own, so it may not wait for what another one has begun."""

    async def slowly(*_, **__):
        await asyncio.sleep(0.5)
        raise httpx.ConnectError("no net")

    def refused(after_s):
        time.sleep(after_s)
        with pytest.raises(ImageError, match="could not be fetched"):
            fetch_image("http://127.0.0.2/a.png", ImageLimits(timeout=5))

    monkeypatch.setattr(httpx.AsyncClient, "get", slowly)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(refused, (0.0, 0.2)))


def test_of_a_hosts_addresses_a_public_one_is_taken_and_nobody_else_is_asked(monkeypatch):
    private = ["127.0.0.1", "10.0.0.1", "100.64.0.1", "224.0.0.1", "240.0.0.1", "::1", "fe80::1", "::ffff:8.8.8.8"]
    asked = []

    async def others(host):
        asked.append(host)
        return ["8.8.8.8"]

    def found(*addresses):
        places = [
            (socket.AF_INET6 if ":" in address else socket.AF_INET, 1, 6, "", (address, 0)) for address in addresses
        ]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: places)
        return asyncio.run(fetch._public_address("pictures.example"))

    monkeypatch.setattr(safehttpx, "async_resolve_hostname_google", others)
    assert found(*private, "8.8.8.8", "10.0.0.2") == "8.8.8.8"
    assert found("2606:4700::1111") == "2606:4700::1111"
    with pytest.raises(ValueError, match="not a public address"):
        found(*private)
    assert asked == []


@pytest.fixture
def _any_address_is_public(monkeypatch):
    """The test's own server is on a private address; only `inner` stays out of reach."""

    async def address(host):
        if host == "inner":
            raise ValueError("private")
        return "127.0.0.1"

    monkeypatch.setattr(fetch, "_public_address", address)


@pytest.mark.usefixtures("_any_address_is_public")
class TestDownload:
    def test_a_picture_arrives_also_through_redirects(self, server, gradient_picture):
        assert same(load_image(f"{server}/a"), gradient_picture)
        assert same(load_image(f"{server}/redirect-picture"), gradient_picture)

    def test_each_hop_is_checked(self, server):
        with pytest.raises(ImageError, match="could not be fetched"):
            load_image(f"{server}/redirect-http://inner/a.png")
        with pytest.raises(ImageError, match="not an http or https address"):
            load_image(f"{server}/redirect-file:///etc/passwd")

    def test_redirects_are_counted(self, server):
        with pytest.raises(ImageError, match="more than 3 redirects"):
            load_image(f"{server}/redirect-{server}/redirect-{server}/redirect-{server}/redirect-{server}/redirect-a")

    def test_a_large_body_is_cut_off(self, server):
        with pytest.raises(ImageError, match="MB are accepted"):
            load_image(f"{server}/a", ImageLimits(max_bytes=500))

    def test_other_answers_are_errors(self, server):
        for status in (404, 300, 302, 304):  # redirects without a place
            with pytest.raises(ImageError, match=f"answered {status} instead of a picture"):
                load_image(f"{server}/{status}")
        with pytest.raises(ImageError, match="not a picture"):
            load_image(f"{server}/gzip")

    def test_it_works_inside_an_event_loop(self, server, gradient_picture):
        async def ask():
            return load_image(f"{server}/a")

        assert same(asyncio.run(ask()), gradient_picture)


@pytest.mark.usefixtures("_any_address_is_public")
def test_a_silent_server_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ImageError, match=r"within 0\.3 s|could not be fetched"):
            load_image(f"http://127.0.0.1:{port}/a", ImageLimits(timeout=0.3))
