"""Photographs give the same features from safetensors and from a GGUF file with its mmproj file."""

import pytest
import torch
from checkpoints import write_published_shape
from gguf_files import converted

from gemma3_core import AutoProcessor
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration


@pytest.fixture(scope="module")
def both(small_tokenizer_folder, tmp_path_factory):
    """The smallest model with pictures of the published size; its weights fit in float16, as converters write them."""
    folder = tmp_path_factory.mktemp("both")
    write_published_shape(folder / "plain", small_tokenizer_folder)
    model = Gemma3ForConditionalGeneration.from_pretrained(folder / "plain", dtype="bfloat16")
    model.save_pretrained(folder / "plain")
    AutoProcessor.from_pretrained(folder / "plain").save_pretrained(folder / "plain")
    (folder / "gguf").mkdir()
    return folder / "plain", converted(folder / "plain", folder / "gguf")


@pytest.mark.parametrize("pan_and_scan", [False, True])
def test_photographs_give_the_same_features(both, shared_data, pan_and_scan):
    photos = sorted(path for path in (shared_data / "photos").iterdir() if path.suffix.lower() == ".jpg")
    assert len(photos) >= 3
    pixels, features = [], []
    for source in both:
        processor = AutoProcessor.from_pretrained(source)
        options = {"do_pan_and_scan": pan_and_scan, "pan_and_scan_min_ratio_to_activate": 1.0}
        made = processor.image_processor([str(photo) for photo in photos], return_tensors="pt", **options)
        model = Gemma3ForConditionalGeneration.from_pretrained(source, dtype="float32")
        pixels.append(made["pixel_values"])
        with torch.inference_mode():
            features.append(model.get_image_features(made["pixel_values"]).pooler_output)
    assert (len(pixels[0]) > len(photos)) == pan_and_scan
    assert torch.equal(*pixels)
    assert features[0].shape[1:] == (256, features[0].shape[2])
    assert (features[0] - features[1]).abs().max() <= 1e-5 * features[0].abs().max()
