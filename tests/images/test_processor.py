"""Crops, tiles and pixels: ours against the reference's PIL back end, bit for bit."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.images import processor as image_processor
from gemma3_core.images.processor import (
    Box,
    Gemma3ImageProcessor,
    Gemma3ImageProcessorPil,
    ImageProcessorConfig,
    explain_pan_and_scan,
    pan_and_scan_boxes,
)

BACK_ENDS = [Gemma3ImageProcessor, Gemma3ImageProcessorPil]

PAN_AND_SCAN: dict[str, Any] = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 256,
    "pan_and_scan_max_num_crops": 4,
    "pan_and_scan_min_ratio_to_activate": 1.2,
}
SIDES = [1, 7, 100, 255, 256, 257, 300, 307, 308, 383, 384, 511, 512, 513, 640, 700, 768, 853, 1000, 1024, 1300, 2560]
SETTINGS = [(256, 4, 1.2), (100, 8, 1.0), (224, 3, 2.0), (300, 1, 1.5), (56, 2, 1.2)]


def reference(size: int = 896):
    from transformers.models.gemma3 import image_processing_pil_gemma3

    return image_processing_pil_gemma3.Gemma3ImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


@pytest.mark.parametrize("settings", SETTINGS)
def test_crops_equal_the_reference_over_a_grid_of_sizes(settings):
    theirs = reference()
    for width in SIDES:
        for height in SIDES:
            picture = np.broadcast_to(np.zeros((1, 1, 1), np.uint8), (3, height, width))
            positions = np.empty((2, height, width), np.int32)
            positions[0], positions[1] = np.arange(width)[None], np.arange(height)[:, None]
            crops = theirs.pan_and_scan(np.concatenate([positions, picture[:1]]), *settings)
            expected = [Box(*(int(v) for v in (*c[:2, 0, 0], *(c[:2, -1, -1] + 1)))) for c in crops]
            assert pan_and_scan_boxes(width, height, *settings) == expected, (width, height)


def test_boxes_as_a_picture():
    """1000 x 300, min crop 256:  +------+------+------+   three crops of 334 x 300,
    |      |      |      |   the last of them 332 wide
    +------+------+------+
    """
    assert pan_and_scan_boxes(1000, 300) == [Box(0, 0, 334, 300), Box(334, 0, 668, 300), Box(668, 0, 1000, 300)]
    assert pan_and_scan_boxes(300, 1000)[2] == Box(0, 668, 300, 1000)
    assert pan_and_scan_boxes(4000, 4000) == []


@pytest.mark.parametrize(("size", "sentence"), [
    ((836, 900), "836 x 900 is nearly square: crops begin when one side is 1.2 times the other."),
    ((640, 640), "640 x 640 is square: crops begin when one side is 1.2 times the other."),
    ((400, 200), "400 x 200 is too small for crops: each would be 200 x 200 pixels, "
                 "and the shorter side must be at least 256."),
    ((1000, 300), "1000 x 300 is wide: 3 crops beside the whole picture."),
    ((600, 900), "600 x 900 is tall: 2 crops beside the whole picture."),
])  # fmt: skip
def test_the_sentence_says_why(size, sentence):
    assert explain_pan_and_scan(*size) == sentence


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_sentence_and_the_boxes_agree(settings):
    for width in SIDES:
        for height in SIDES:
            count = len(pan_and_scan_boxes(width, height, *settings))
            sentence = explain_pan_and_scan(width, height, *settings)
            assert (f": {count} crop" in sentence) == (count > 0)


@pytest.mark.parametrize("size", [896, 224])
@pytest.mark.parametrize("crops", [True, False])
def test_pixels_of_photographs_equal_the_reference_bit_for_bit(photos, size, crops):
    options = {**PAN_AND_SCAN, "do_pan_and_scan": crops}
    pictures = [*photos, photos[0].resize((1500, 400)), photos[1].crop((0, 0, 300, 853))]
    theirs = reference(size)(pictures, return_tensors="pt", **options)
    ours = Gemma3ImageProcessorPil.from_dict({"size": size})(pictures, return_tensors="pt", **options)
    assert torch.equal(ours.num_crops, theirs["num_crops"])
    assert sum(ours.num_crops) == (11 if crops else 0)
    assert ours.pixel_values.dtype == torch.float32
    assert torch.equal(ours.pixel_values, theirs["pixel_values"])


def test_pixels_of_odd_sizes_and_modes_equal_the_reference():
    draw = np.random.default_rng(1)
    ours, theirs = Gemma3ImageProcessorPil.from_dict({"size": {"height": 56, "width": 56}}), reference(56)
    for mode, bands in [("RGB", 3), ("L", 1), ("RGBA", 4), ("LA", 2), ("CMYK", 4)]:
        for width, height in [(1, 1), (1, 500), (56, 56), (57, 55), (701, 297), (300, 1300)]:
            picture = Image.frombytes(mode, (width, height), draw.bytes(width * height * bands))
            expected = theirs([picture], return_tensors="pt", **PAN_AND_SCAN)["pixel_values"]
            got = ours(picture, return_tensors="pt", **PAN_AND_SCAN)["pixel_values"]
            assert torch.equal(got, expected), (mode, width, height)


@pytest.mark.parametrize("options", [
    {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"resample": 3},
])  # fmt: skip
def test_other_settings_equal_the_reference(gradient_picture, options):
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as Reference

    config = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **options}
    expected = Reference(**config)(gradient_picture, return_tensors="pt")["pixel_values"]
    ours = Gemma3ImageProcessorPil.from_dict(config)(gradient_picture, return_tensors="pt").pixel_values
    assert ours.dtype == expected.dtype
    assert torch.equal(ours, expected)


def noise(width: int, height: int, levels: int = 256) -> Image.Image:
    """Random colors of `levels` levels from 0 to 255: nothing is harder to resize alike."""
    draw = np.random.default_rng(width * 10_000 + height)
    values = draw.integers(0, levels, (height, width, 3)) * (255 // (levels - 1))
    return Image.fromarray(values.astype(np.uint8))


def pixels(processor: Any, images: Any) -> torch.Tensor:
    """[N, 3, S, S] in floats: 8-bit numbers would wrap around where they are subtracted."""
    return processor(images, return_tensors="pt").pixel_values.float()


def eight_bit(processor: Any, picture: Image.Image) -> np.ndarray:
    """[N, S, S, 3]: the tiles of a picture, as whole numbers."""
    return np.stack([np.asarray(tile) for tile in processor.tile_pictures(picture)]).astype(int)


def filtered(picture: np.ndarray, side: int) -> np.ndarray:
    """[H, W, 3] -> [side, side, 3] in float64: each new pixel is the mean of the old ones under a triangle as wide
    as two new pixels, or as two old ones where these are wider (antialiased bilinear resizing)."""

    def weights(old: int) -> np.ndarray:  # [side, old]
        scale = max(old / side, 1.0)
        centers = (np.arange(side)[:, None] + 0.5) * (old / side)
        triangle = np.clip(1 - np.abs((np.arange(old)[None] + 0.5 - centers) / scale), 0, None)
        return triangle / triangle.sum(1, keepdims=True)

    rows, columns = weights(picture.shape[0]), weights(picture.shape[1])
    return np.einsum("ih,jw,hwc->ijc", rows, columns, picture.astype(np.float64), optimize=True)


SIZES = [(1, 1), (1, 500), (56, 56), (57, 55), (701, 297), (300, 1300), (20, 30), (1, 5000)]


@pytest.mark.parametrize("levels", [256, 2])
@pytest.mark.parametrize("through_float", [False, True], ids=["8 bit", "float"])
def test_tensor_squares_are_within_one_step_of_the_exact_ones_and_of_pillows(monkeypatch, levels, through_float):
    """Through float32 is how a GPU does it; here on the CPU, so that it is tested everywhere."""
    if through_float:
        monkeypatch.setattr(image_processor, "_resize", image_processor._resize_through_float)
    tensors, pillow = (kind.from_dict({"size": 56, **PAN_AND_SCAN}) for kind in BACK_ENDS)
    for width, height in SIZES:
        picture = noise(width, height, levels)
        got = eight_bit(tensors, picture)
        parts = [(0, 0, width, height), *((b.left, b.top, b.right, b.bottom) for b in tensors.boxes(width, height))]
        assert tensors.boxes(width, height) == pillow.boxes(width, height)
        exact = np.stack([filtered(np.asarray(picture.crop(part)), 56) for part in parts])
        assert np.abs(got - exact).max() <= 1, (width, height)
        assert np.abs(got - eight_bit(pillow, picture)).max() <= 1, (width, height)


@pytest.mark.parametrize("crops", [True, False])
def test_tensor_pixels_of_photographs_are_within_one_step_of_the_references(photos, crops):
    options = {**PAN_AND_SCAN, "do_pan_and_scan": crops}
    pictures = [*photos, photos[0].resize((1500, 400)), photos[1].crop((0, 0, 300, 853))]
    theirs = reference(224)(pictures, return_tensors="pt", **options)
    ours = Gemma3ImageProcessor.from_dict({"size": 224})(pictures, return_tensors="pt", **options)
    assert torch.equal(ours.num_crops, theirs["num_crops"])
    assert ours.pixel_values.dtype == torch.float32
    assert (ours.pixel_values - theirs["pixel_values"]).abs().max() <= 1.001 / 127.5
    assert (ours.pixel_values - theirs["pixel_values"]).abs().mean() < 0.1 / 127.5, "most are the very same"


@pytest.mark.parametrize("options", [
    {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}, {"resample": 3},
    {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5},
    {"do_rescale": False, "do_normalize": False},
])  # fmt: skip
def test_tensor_settings_do_what_pillows_do(gradient_picture, options):
    """At the picture's own size nothing is resized: only how the levels are scaled is left, equal but for rounding."""
    square = gradient_picture.crop((0, 0, 100, 100))
    same, smaller = ({"size": size, **options} for size in (100, 32))
    ours, theirs = (pixels(kind.from_dict(same), square) for kind in BACK_ENDS)
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    ours, theirs = (pixels(kind.from_dict(smaller), gradient_picture) for kind in BACK_ENDS)
    levels = torch.tensor([0.0, 1.0])  # what one 8-bit step is under these settings
    config = ImageProcessorConfig.from_dict(smaller)
    step = levels.diff() * (config.rescale_factor if config.do_rescale else 1)
    step = step / min(config.image_std) if config.do_normalize else step
    steps = 2 if config.resample == Image.Resampling.BICUBIC else 1
    assert (ours - theirs).abs().max() <= 1.001 * steps * step


@pytest.mark.parametrize("resample", [1, 4, 5])
def test_what_tensors_are_not_resized_with_is_refused_with_what_to_do(resample):
    with pytest.raises(UnsupportedOptionError, match=rf'resample={resample}.*backend="pil"'):
        Gemma3ImageProcessor.from_dict({"resample": resample})
    assert Gemma3ImageProcessorPil.from_dict({"resample": resample}).config.resample == resample


def test_no_picture_is_no_pixels():
    for kind in BACK_ENDS:
        assert pixels(kind.from_dict({"size": 8}), []).shape == (0, 3, 8, 8)


def test_the_pictures_of_a_call_do_not_touch_each_other(gradient_picture):
    processor = Gemma3ImageProcessor.from_dict({"size": 16})
    before = gradient_picture.tobytes()
    together = pixels(processor, [gradient_picture, noise(40, 40), gradient_picture])
    assert torch.equal(together[0], together[2])
    assert torch.equal(together[1:2], pixels(processor, noise(40, 40)))
    assert gradient_picture.tobytes() == before


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_squares_are_what_the_encoder_sees(gradient_picture, kind):
    config = {"size": 32, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 100}
    processor = kind.from_dict(config)
    tiles = processor.tile_pictures(gradient_picture)
    assert [(s.mode, s.size) for s in tiles] == [("RGB", (32, 32))] * 3
    assert len(processor.boxes(*gradient_picture.size)) == 2
    assert processor.explain(*gradient_picture.size) == "240 x 100 is wide: 2 crops beside the whole picture."
    assert torch.equal(processor.pixel_values(tiles), pixels(processor, gradient_picture))
    seen = torch.from_numpy(np.stack([np.asarray(s) for s in tiles])).permute(0, 3, 1, 2)
    assert torch.equal(((processor.pixel_values(tiles) + 1) * 127.5).round().to(torch.uint8), seen)


def test_options_of_a_call_win_over_the_config(gradient_picture):
    processor = Gemma3ImageProcessorPil.from_dict({"size": 16, "do_pan_and_scan": True})
    assert processor(gradient_picture).num_crops == [0]
    assert processor(gradient_picture, pan_and_scan_min_crop_size=50).num_crops == [2]
    assert processor(gradient_picture, pan_and_scan_min_crop_size=50, do_pan_and_scan=False).num_crops == [0]
    assert processor.config.pan_and_scan_min_crop_size == 256


def test_null_and_missing_values_are_the_published_ones(shared_data, tmp_path):
    content = json.loads((shared_data / "configs" / "preprocessor_config.json").read_text())
    assert ImageProcessorConfig.from_dict(content) == ImageProcessorConfig()
    assert Gemma3ImageProcessorPil.from_pretrained(tmp_path).config == ImageProcessorConfig()


def test_saved_settings_load_here_and_in_the_reference(tmp_path):
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as Reference

    processor = Gemma3ImageProcessorPil.from_dict({"size": {"height": 224, "width": 224}, "image_mean": 0.4})
    processor.save_pretrained(tmp_path)
    assert Gemma3ImageProcessorPil.from_pretrained(tmp_path).config == processor.config
    loaded = Reference.from_pretrained(tmp_path)
    assert (loaded.size["height"], tuple(loaded.image_mean), loaded.pan_and_scan_max_num_crops) == (224, (0.4,) * 3, 4)


@pytest.mark.parametrize("content", [{"do_center_crop": True}, {"do_pad": True}, {"shiny": 1}])
def test_unsupported_settings_are_named(content):
    with pytest.raises(UnsupportedOptionError, match=next(iter(content))):
        ImageProcessorConfig.from_dict(content)


@pytest.mark.parametrize("content", [
    {"size": {"height": 4}}, {"size": {"longest_edge": 4}}, {"size": 0}, {"size": "4"}, {"size": {"depth": 4}},
    {"image_std": [1, 0, 1]},
    {"pan_and_scan_max_num_crops": 0}, {"image_mean": [0.5, 0.5]}, {"image_mean": "half"}, {"do_resize": 1},
    {"resample": 9}, {"rescale_factor": 0}, {"data_format": "sideways"}, {"input_data_format": "x"}, {"device": 1.5},
    {"pan_and_scan_min_ratio_to_activate": "1"}, {"device": "toaster"}, {"disable_grouping": "no"},
])  # fmt: skip
def test_impossible_settings_are_errors(content):
    with pytest.raises(ConfigError):
        ImageProcessorConfig.from_dict(content)


@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("shape", [(700, 1300), (1300, 40), (37, 900), (512, 512)])
def test_resizing_in_bands_changes_no_bit(monkeypatch, resample, shape):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    processor = Gemma3ImageProcessor(size=224, resample=resample, do_pan_and_scan=True, pan_and_scan_min_crop_size=64)
    monkeypatch.setattr(image_processor, "_BAND_PIXELS", 10_007)
    banded = processor.tiles(picture)
    monkeypatch.setattr(image_processor, "_BANDED", ())
    whole = processor.tiles(picture)
    assert len(banded) == len(whole) == 1 + len(processor.boxes(*picture.size))
    for one, other in zip(banded, whole, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
def test_what_a_device_refuses_to_resize_is_resized_on_the_cpu(monkeypatch, pixels):
    picture = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, 900, 40), dtype=np.uint8)).to(pixels)
    processor = Gemma3ImageProcessor(size=8, do_pan_and_scan=True, pan_and_scan_min_crop_size=20)
    expected = processor(picture, return_tensors="pt").pixel_values
    interpolate, calls = torch.nn.functional.interpolate, []

    def refuse_first(*args, **options):
        """Every other call is the device's."""
        calls.append(args)
        if len(calls) % 2:
            raise RuntimeError(
                "Provided interpolation parameters can not be handled with current algorithm implementation. "
                "Please reduce the scale factor. Too much shared memory required: 61496 vs 49152"
            )
        return interpolate(*args, **options)

    monkeypatch.setattr(image_processor.F, "interpolate", refuse_first)
    assert torch.equal(processor(picture, return_tensors="pt").pixel_values, expected)
    assert len(calls) == 2 * len(expected)
    monkeypatch.setattr(image_processor.F, "interpolate", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("other")))
    with pytest.raises(RuntimeError, match="other"):
        processor(picture)


@pytest.mark.gpu
@pytest.mark.parametrize("pixels", [torch.uint8, torch.float32])
def test_a_scale_that_cuda_refuses_gives_the_pixels_of_the_cpu(pixels):
    picture = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, 8, 60_000), dtype=np.uint8)).to(pixels)
    processor = Gemma3ImageProcessor(size=8)
    expected = processor(picture, return_tensors="pt").pixel_values
    assert torch.equal(processor(picture.cuda(), return_tensors="pt").pixel_values.cpu(), expected)
