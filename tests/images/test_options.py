"""Every option of the image processors, per call and per instance: ours against the reference's Pillow back end."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gemma3_core.errors import ConfigError, ImageError, PromptError, UnsupportedOptionError
from gemma3_core.images.options import ImageSize
from gemma3_core.images.processor import Gemma3ImageProcessor, Gemma3ImageProcessorPil

BACK_ENDS = [Gemma3ImageProcessor, Gemma3ImageProcessorPil]
SMALL = {"height": 24, "width": 24}
CROPS = {
    "do_pan_and_scan": True,
    "pan_and_scan_min_crop_size": 20,
    "pan_and_scan_max_num_crops": 3,
    "pan_and_scan_min_ratio_to_activate": 1.5,
}
PT: dict[str, Any] = {"return_tensors": "pt"}


@pytest.fixture(scope="module")
def reference():
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as Reference

    return Reference(size=SMALL)


@pytest.fixture(scope="module")
def levels() -> np.ndarray:
    """[40, 90, 3], 8 bits: neither side could be the channels."""
    return np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)


def sources(levels: np.ndarray) -> dict[str, Any]:
    """One picture in every form that both sides take."""
    first = np.ascontiguousarray(levels.transpose(2, 0, 1))
    return {
        "PIL": Image.fromarray(levels),
        "array, last": levels,
        "array, first": first,
        "tensor, first": torch.from_numpy(first),
        "tensor, last": torch.from_numpy(levels),
        "whole floats": levels.astype(np.float32),
        "64-bit numbers": first.astype(np.int64),
        "a batch": np.stack([first, first[:, ::-1]]),
        "a batch of tensors": torch.from_numpy(np.stack([first, first[:, ::-1]])),
        "a list": [levels, first],
        "lists": [[levels], [Image.fromarray(levels), levels]],
        "gray": first[:1],
        "RGBA, last": np.concatenate([levels, levels[..., :1]], axis=-1),
        "RGBA, first": np.concatenate([first, first[:1]]),
    }


FORMS = list(sources(np.zeros((2, 2, 3), np.uint8)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, CROPS], ids=["whole", "crops"])
def test_every_form_of_a_picture_equals_the_reference(reference, levels, form, options):
    source = sources(levels)[form]
    theirs = reference(source, **PT, **options)
    ours = Gemma3ImageProcessorPil(size=SMALL)(source, **PT, **options)
    assert torch.equal(ours.pixel_values, theirs["pixel_values"])
    assert torch.equal(ours.num_crops, theirs["num_crops"])
    assert ours.num_crops.sum() == (2 * len(ours.num_crops) if options else 0)
    tensors = Gemma3ImageProcessor(size=SMALL)(source, **PT, **options)
    assert (tensors.pixel_values - theirs["pixel_values"]).abs().max() <= 1.001 / 127.5
    assert torch.equal(tensors.num_crops, theirs["num_crops"])


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("options", [{}, CROPS], ids=["whole", "crops"])
def test_colors_from_0_to_1_without_rescaling_equal_the_reference(reference, channels, options):
    picture = np.random.default_rng(1).random((channels, 40, 90))
    for source in (picture, picture.astype(np.float32), torch.from_numpy(picture), np.moveaxis(picture, 0, -1)):
        theirs = reference(source, do_rescale=False, **PT, **options)["pixel_values"]
        ours = Gemma3ImageProcessorPil(size=SMALL)(source, do_rescale=False, **PT, **options).pixel_values
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
        tensors = Gemma3ImageProcessor(size=SMALL)(source, do_rescale=False, **PT, **options).pixel_values
        assert (tensors - theirs).abs().max() <= 2.001 / 127.5  # a step is cut off there, and one is rounding


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_colors_from_0_to_1_are_not_rescaled_to_black(levels, kind):
    """There they are: the reference rescales what is scaled already."""
    processor = kind(size=SMALL)
    expected = processor(levels, **PT).pixel_values
    for source in (levels / 255, torch.from_numpy(levels / 255), torch.from_numpy(levels).bfloat16() / 255):
        bound = 4.0 if getattr(source, "dtype", None) == torch.bfloat16 else 1.001
        assert (processor(source, **PT).pixel_values - expected).abs().max() <= bound / 127.5


CALLS: list[dict[str, Any]] = [
    {"do_resize": False},
    {"do_resize": False, "do_rescale": False, "do_normalize": False},
    {"do_normalize": False},
    {"do_rescale": False},
    {"do_rescale": False, "do_normalize": False},
    {"rescale_factor": 1 / 127.5},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": (0.5, 0.6, 0.7)},
    {"image_mean": 0.4, "image_std": 0.3},
    {"resample": 0}, {"resample": 1}, {"resample": 3}, {"resample": 4}, {"resample": 5},
    {"size": {"height": 10, "width": 30}},
    {"size": {"shortest_edge": 20}},
    {"size": {"shortest_edge": 20, "longest_edge": 30}},
    {"size": {"max_height": 50, "max_width": 31}},
    {"size": 17}, {"size": (9, 18)},
    {"size": 15, "default_to_square": False},
    {"input_data_format": "channels_last"},
    {"data_format": "channels_first"},
    {"disable_grouping": True}, {"disable_grouping": False},
    {**CROPS, "pan_and_scan_max_num_crops": 2},
    {**CROPS, "pan_and_scan_min_crop_size": 45},
    {**CROPS, "pan_and_scan_min_ratio_to_activate": 3.0},
]  # fmt: skip


@pytest.mark.parametrize("options", CALLS, ids=str)
def test_options_of_a_call_and_of_an_instance_equal_the_reference(reference, levels, options):
    theirs = reference(levels, **PT, **options)["pixel_values"]
    call = Gemma3ImageProcessorPil(size=SMALL)(levels, **PT, **options).pixel_values
    instance = Gemma3ImageProcessorPil(**{"size": SMALL, **options})(levels, **PT).pixel_values
    attributes = Gemma3ImageProcessorPil(size=SMALL)
    for name, value in options.items():
        setattr(attributes, name, value)
    if options != {"size": 15, "default_to_square": False}:  # there the order in which they are set counts
        assert torch.equal(attributes(levels, **PT).pixel_values, theirs)
    assert call.dtype == theirs.dtype
    assert torch.equal(call, theirs)
    assert torch.equal(instance, theirs)


@pytest.mark.parametrize("options", [o for o in CALLS if o.get("resample", 2) not in (1, 4, 5)], ids=str)
def test_the_tensor_back_end_does_the_same(reference, levels, options):
    theirs = reference(levels, **PT, **options)["pixel_values"].double()
    ours = Gemma3ImageProcessor(size=SMALL)(levels, **PT, **options).pixel_values.double()
    assert ours.shape == theirs.shape
    step = 1.0 if options.get("do_rescale") is False else options.get("rescale_factor", 1 / 255)
    std = options.get("image_std", 0.5)
    step /= 1.0 if options.get("do_normalize") is False else min(std) if isinstance(std, tuple) else std
    steps = 2 if options.get("resample") == 3 else 1  # bicubic overshoots, and each cuts off elsewhere
    assert (ours - theirs).abs().max() <= 1.001 * steps * step


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_results_come_as_lists_arrays_or_tensors(reference, levels, kind):
    processor = kind(size=SMALL)
    theirs = reference([levels, levels])
    ours = processor([levels, levels])
    assert list(ours) == list(theirs) == ["pixel_values", "num_crops"]
    assert ours.num_crops == theirs["num_crops"] == [0, 0]
    assert type(ours.pixel_values) is list
    assert isinstance(ours.pixel_values[0], torch.Tensor if kind is Gemma3ImageProcessor else np.ndarray)
    arrays = processor([levels, levels], return_tensors="np").pixel_values
    assert isinstance(arrays, np.ndarray)
    assert arrays.shape == (2, 3, 24, 24)
    assert np.array_equal(np.stack([np.asarray(value) for value in ours.pixel_values]), arrays)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_channels_last_is_what_comes_out_where_it_is_asked_for(levels, kind):
    processor = kind(size=(10, 20))
    first = processor(levels, **PT).pixel_values
    last = processor(levels, data_format="channels_last", **PT).pixel_values
    assert last.shape == (1, 10, 20, 3)
    assert torch.equal(last.permute(0, 3, 1, 2), first)
    assert processor(levels, data_format="channels_last").pixel_values[0].shape == (10, 20, 3)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_where_both_ends_could_be_channels_the_option_decides(kind):
    picture = np.random.default_rng(2).integers(0, 256, (3, 8, 3), dtype=np.uint8)
    processor = kind(size=8)
    first = processor(picture, **PT).pixel_values
    last = processor(picture, input_data_format="channels_last", **PT).pixel_values
    assert torch.equal(first, processor(picture, input_data_format="channels_first", **PT).pixel_values)
    assert torch.equal(last, processor(Image.fromarray(picture), **PT).pixel_values)
    assert not torch.equal(first, last)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_colors_are_left_alone_without_do_convert_rgb(levels, kind):
    processor = kind(size=SMALL, do_convert_rgb=False, do_normalize=False)
    assert processor(Image.fromarray(levels).convert("L"), **PT).pixel_values.shape == (1, 1, 24, 24)
    assert processor(Image.fromarray(levels).convert("RGBA"), **PT).pixel_values.shape == (1, 4, 24, 24)
    assert processor(levels, **PT).pixel_values.shape == (1, 3, 24, 24)
    with pytest.raises(ImageError, match="4 channels and image_mean has 3"):
        processor(Image.fromarray(levels).convert("RGBA"), do_normalize=True, **PT)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_pictures_of_different_sizes_are_no_batch(levels, kind):
    processor = kind(size=SMALL, do_resize=False)
    pictures = [levels, levels[:30]]
    assert [value.shape[-2] for value in processor(pictures).pixel_values] == [40, 30]
    with pytest.raises(PromptError, match=r"different shapes .*do_resize=True"):
        processor(pictures, **PT)


@pytest.mark.parametrize("kind", BACK_ENDS)
def test_settings_are_attributes_and_are_saved(kind, tmp_path):
    processor = kind()
    assert (processor.size["height"], dict(processor.size)) == (224, {"height": 224, "width": 224})  # the reference's
    processor.do_pan_and_scan, processor.size, processor.image_mean = True, {"height": 56, "width": 70}, 0.25
    processor.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert again.config == processor.config
    assert (again.do_pan_and_scan, again.image_mean) == (True, (0.25,) * 3)
    assert kind.from_pretrained(tmp_path, do_pan_and_scan=False, size=8).config.size == ImageSize(height=8, width=8)
    assert (processor.backend, processor.model_input_names) == (kind.backend, ["pixel_values", "num_crops"])
    with pytest.raises(ConfigError, match="do_resize"):
        processor.do_resize = "yes"


def test_saved_settings_load_in_the_reference(tmp_path):
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as Reference

    options: dict[str, Any] = {"size": {"shortest_edge": 30}, "do_rescale": False, "resample": 3, **CROPS}
    Gemma3ImageProcessorPil(**options).save_pretrained(tmp_path)
    theirs = Reference.from_pretrained(tmp_path)
    assert (theirs.size["shortest_edge"], theirs.do_rescale, theirs.resample) == (30, False, 3)
    assert {name: getattr(theirs, name) for name in CROPS} == CROPS
    theirs.save_pretrained(tmp_path / "again")
    assert (
        Gemma3ImageProcessorPil.from_pretrained(tmp_path / "again").to_dict()
        == Gemma3ImageProcessorPil(**options).to_dict()
    )


def test_equal_shapes_are_resized_together_where_that_is_asked_for(levels):
    pictures = [levels, levels[:, ::-1].copy(), levels[:30], levels[::-1].copy()]
    processor = Gemma3ImageProcessor(size=SMALL)
    together = processor(pictures, disable_grouping=False, **CROPS, **PT)
    apart = processor(pictures, disable_grouping=True, **CROPS, **PT)
    assert torch.equal(together.num_crops, apart.num_crops)
    assert torch.equal(together.pixel_values, apart.pixel_values)


def test_sizes_that_keep_the_shape_are_rounded_as_in_the_reference():
    from transformers.image_transforms import get_resize_output_image_size, get_size_with_aspect_ratio
    from transformers.image_utils import get_image_size_for_max_height_width

    for height in (1, 17, 100, 333, 640, 853):
        for width in (3, 17, 99, 480, 1001):
            for edge in (17, 40, 224):
                empty = np.broadcast_to(np.zeros(1, np.uint8), (3, height, width))
                theirs = get_resize_output_image_size(empty, edge, False, input_data_format="channels_first")
                assert ImageSize(shortest_edge=edge).for_picture(height, width) == theirs
                theirs = get_size_with_aspect_ratio((height, width), edge, 300)
                assert ImageSize(shortest_edge=edge, longest_edge=300).for_picture(height, width) == theirs
                theirs = get_image_size_for_max_height_width((height, width), edge, 100)
                ours = ImageSize(max_height=edge, max_width=100).for_picture(height, width)
                assert ours == tuple(max(1, side) for side in theirs)


@pytest.mark.parametrize("kind", BACK_ENDS)
@pytest.mark.parametrize("options", [
    {"do_center_crop": True}, {"crop_size": 3}, {"do_pad": True}, {"shiny": 1}, {"image_seq_length": 5},
    {"return_tensors": "tf"},
], ids=str)  # fmt: skip
def test_options_that_nobody_has_are_errors_that_name_them(levels, kind, options):
    for use in (lambda: kind(size=SMALL)(levels, **options), lambda: kind(size=SMALL).with_options(**options)):
        with pytest.raises(UnsupportedOptionError, match=next(iter(options))):
            use()


@pytest.mark.parametrize("kind", BACK_ENDS)
@pytest.mark.parametrize("picture", [
    np.zeros((5, 5, 7), np.uint8), np.zeros((2, 3, 4, 4, 3)), np.full((3, 4, 4), np.nan), np.full((3, 4, 4), -3),
    np.full((3, 4, 4), 300), np.zeros((0, 4, 3), np.uint8), np.array([["a"]]), np.full((4, 5, 5), 900.0), None, 3.5,
    {"image": 1},
], ids=lambda picture: str(getattr(picture, "shape", picture)))  # fmt: skip
def test_what_is_no_picture_is_a_typed_error(kind, picture):
    with pytest.raises(ImageError):
        kind(size=8)(picture)


def test_values_that_pillow_has_no_levels_for_are_errors():
    with pytest.raises(ImageError, match=r"-0\.5 to 2; .*tensor back end"):
        Gemma3ImageProcessorPil(size=8)(np.array([[[-0.5, 2.0]]] * 3), do_rescale=False)
    with pytest.raises(ImageError, match="read channels last, has 9 channels"):
        Gemma3ImageProcessorPil(size=8)(np.zeros((3, 8, 9), np.uint8), input_data_format="channels_last")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_tensors_stay_on_their_device(levels, device):
    picture = torch.from_numpy(levels).permute(2, 0, 1)
    expected = Gemma3ImageProcessor(size=SMALL)(picture, **CROPS, **PT)
    for processor, source in [(Gemma3ImageProcessor(size=SMALL), picture.to(device)),
                              (Gemma3ImageProcessor(size=SMALL, device=device), picture)]:  # fmt: skip
        inputs = processor([source, source], **CROPS, **PT)
        assert inputs.pixel_values.device.type == device
        first = inputs.pixel_values[: len(expected.pixel_values)].cpu()
        assert (first - expected.pixel_values).abs().max() <= 1.001 / 127.5


def test_tensors_are_worked_on_where_the_device_says(levels):
    """`meta` stands for any other device: it computes shapes alone."""
    picture = torch.from_numpy(levels).permute(2, 0, 1)
    here = Gemma3ImageProcessor(size=SMALL)
    assert here(picture.to("meta"), **PT).pixel_values.device.type == "meta"
    assert here(picture, device="meta", **PT, **CROPS).pixel_values.shape == (3, 3, 24, 24)
    assert here.to("meta").device == torch.device("meta")
    with pytest.raises(UnsupportedOptionError, match="meta"):
        Gemma3ImageProcessorPil(size=SMALL)(picture, device="meta")
