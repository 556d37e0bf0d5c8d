"""Crops, squares and pixels: ours against the reference's PIL back end, bit for bit."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gemma3_core.errors import ConfigError, UnsupportedOptionError
from gemma3_core.image_processor import (
    Box,
    Gemma3ImageProcessorPil,
    ImageProcessorConfig,
    explain_pan_and_scan,
    pan_and_scan_boxes,
)

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
    ours = Gemma3ImageProcessorPil.from_dict({"size": {"height": size, "width": size}})(pictures, **options)
    assert ours.num_crops == tuple(theirs["num_crops"].tolist())
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
            assert torch.equal(ours(picture, **PAN_AND_SCAN).pixel_values, expected), (mode, width, height)


@pytest.mark.parametrize("options", [
    {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
    {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}, {"resample": 3},
])  # fmt: skip
def test_other_settings_equal_the_reference(gradient_picture, options):
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as Reference

    config = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, **options}
    expected = Reference(**config)(gradient_picture, return_tensors="pt")["pixel_values"]
    ours = Gemma3ImageProcessorPil.from_dict(config)(gradient_picture).pixel_values
    assert torch.equal(ours, expected.to(torch.float32))


def test_squares_are_what_the_encoder_sees(gradient_picture):
    config = {"size": 32, "do_pan_and_scan": True, "pan_and_scan_min_crop_size": 100}
    processor = Gemma3ImageProcessorPil.from_dict(config)
    squares = processor.squares(gradient_picture)
    assert [(s.mode, s.size) for s in squares] == [("RGB", (32, 32))] * 3
    assert len(processor.boxes(*gradient_picture.size)) == 2
    assert processor.explain(*gradient_picture.size) == "240 x 100 is wide: 2 crops beside the whole picture."
    assert torch.equal(processor.pixel_values(squares), processor(gradient_picture)["pixel_values"])
    seen = torch.from_numpy(np.stack([np.asarray(s) for s in squares])).permute(0, 3, 1, 2)
    assert torch.equal(((processor.pixel_values(squares) + 1) * 127.5).round().to(torch.uint8), seen)


def test_options_of_a_call_win_over_the_config(gradient_picture):
    processor = Gemma3ImageProcessorPil.from_dict({"size": 16, "do_pan_and_scan": True})
    assert processor(gradient_picture).num_crops == (0,)
    assert processor(gradient_picture, pan_and_scan_min_crop_size=50).num_crops == (2,)
    assert processor(gradient_picture, pan_and_scan_min_crop_size=50, do_pan_and_scan=False).num_crops == (0,)
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


@pytest.mark.parametrize("content", [{"do_center_crop": True}, {"do_resize": False}, {"shiny": 1}])
def test_unsupported_settings_are_named(content):
    with pytest.raises(UnsupportedOptionError, match=next(iter(content))):
        ImageProcessorConfig.from_dict(content)


@pytest.mark.parametrize("content", [
    {"size": {"height": 4, "width": 5}}, {"size": {"shortest_edge": 4}}, {"size": 0}, {"image_std": [1, 0, 1]},
    {"pan_and_scan_max_num_crops": 0}, {"image_mean": [0.5, 0.5]},
])  # fmt: skip
def test_impossible_settings_are_errors(content):
    with pytest.raises(ConfigError):
        ImageProcessorConfig.from_dict(content)
