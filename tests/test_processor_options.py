"""The processor's options, batches and typed errors: ours against the reference with the real tokenizer."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gemma3_core.errors import ChatTemplateError, Gemma3Error, ImageError, PromptError, UnsupportedOptionError
from gemma3_core.images.processor import Gemma3ImageProcessor, Gemma3ImageProcessorPil
from gemma3_core.processor import Gemma3Processor
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

SOFT = 16  # tokens a picture: prompts stay short
BOI = "<start_of_image>"
PT: dict[str, Any] = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
CROPS = {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 30}


@pytest.fixture(scope="module")
def theirs(reference_processor):
    from transformers import Gemma3Processor as Reference
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil as Images

    tokenizer = reference_processor.tokenizer
    return Reference(Images(size=SIZE), tokenizer, tokenizer.chat_template, image_seq_length=SOFT)


SIZE = {"height": 28, "width": 28}


@pytest.fixture(scope="module")
def ours(real_tokenizer_folder):
    return Gemma3Processor.from_pretrained(real_tokenizer_folder, use_fast=False, size=SIZE, image_seq_length=SOFT)


@pytest.fixture(scope="module")
def small(small_tokenizer_folder):
    return Gemma3Processor.from_pretrained(small_tokenizer_folder, size=16, image_seq_length=4)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Wide, square, tall; small."""
    draw = np.random.default_rng(3)
    return [Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8))
            for shape in ((40, 120, 3), (50, 50, 3), (100, 40, 3))]  # fmt: skip


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def shown(picture: Any, key: str = "image") -> dict[str, Any]:
    return {"type": "image", key: picture}


def assert_same(mine: Any, other: Any) -> None:
    assert set(mine) == set(other)
    for name, value in mine.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name
        elif name == "pixel_values":
            assert np.array_equal(np.stack(value), np.stack(other[name]))
        else:
            assert np.array_equal(value, other[name]) if isinstance(value, np.ndarray) else value == other[name], name


def batch_of(pictures: list[Image.Image]) -> list[list[dict[str, Any]]]:
    wide, square, tall = pictures
    return [
        [user("Only words, and more of them than elsewhere: one two three four five")],
        [{"role": "system", "content": "Be brief."}, user(shown(wide), "What?", shown(tall))],
        [user("a\n\n", shown(square)), {"role": "assistant", "content": "b"}, user("c")],
    ]


OPTIONS: list[dict[str, Any]] = [
    {"padding": True},
    {"padding": True, "add_generation_prompt": True, **CROPS},
    {"padding": True, "padding_side": "right", **CROPS, "pan_and_scan_max_num_crops": 2},
    {"padding": "max_length", "max_length": 120},
    {"padding": True, "do_rescale": False, "do_normalize": False},
    {"padding": True, "image_mean": [0.1, 0.2, 0.3], "size": {"height": 14, "width": 14}, "resample": 3},
    {"padding": True, "return_token_type_ids": True, "return_special_tokens_mask": True},
    {"padding": True, "return_mm_token_type_ids": False},
    {"text_kwargs": {"padding": True}, "images_kwargs": CROPS},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_batches_with_and_without_pictures_equal_the_reference(ours, theirs, pictures, options):
    options = dict(options)
    opened = options.pop("add_generation_prompt", False)
    batch = batch_of(pictures)
    other = theirs.apply_chat_template(batch, add_generation_prompt=opened, processor_kwargs=dict(options), **PT)
    assert_same(ours.apply_chat_template(batch, add_generation_prompt=opened, processor_kwargs=options, **PT), other)
    assert_same(ours.apply_chat_template(batch, add_generation_prompt=opened, **options, **PT), other)


@pytest.mark.parametrize("options", [
    {}, {"return_dict": True}, {"return_dict": True, "return_tensors": "np"}, {"return_tensors": "pt"},
    {"return_tensors": None}, {"return_tensors": None, "return_dict": True},
], ids=str)  # fmt: skip
def test_what_comes_back_equals_the_reference(ours, theirs, pictures, options):
    """Ids or a dict, lists or tensors; always with the dimension of the batch."""
    for chat in (batch_of(pictures)[1], [batch_of(pictures)[1]], batch_of(pictures)[0]):
        mine = ours.apply_chat_template(chat, tokenize=True, **options)
        other = theirs.apply_chat_template(chat, tokenize=True, **options)
        if hasattr(other, "items"):
            assert_same(mine, other)
        else:
            assert np.array_equal(np.asarray(mine), np.asarray(other))
            assert type(mine) is type(other)
        assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)


def test_the_page_writes_it_so(ours, theirs, pictures):
    """Options of the call stand beside those of the template; the result moves to a device and a dtype."""
    chat = batch_of(pictures)[1]
    options = {"add_generation_prompt": True, **PT}
    inputs = ours.apply_chat_template(chat, do_pan_and_scan=True, pan_and_scan_min_crop_size=30, **options)
    other = theirs.apply_chat_template(chat, processor_kwargs=dict(CROPS), **options)  # it writes into that dict
    assert_same(inputs, other)
    moved, other = inputs.to("cpu", dtype=torch.bfloat16), other.to("cpu", dtype=torch.bfloat16)
    assert_same(moved, other)
    text = ours.batch_decode(inputs.input_ids, skip_special_tokens=True)
    assert text == theirs.batch_decode(other["input_ids"], skip_special_tokens=True)
    for ids in (inputs.input_ids, inputs.input_ids[0], inputs.input_ids.tolist()):
        assert ours.post_process_image_text_to_text(ids) == theirs.post_process_image_text_to_text(ids)
        assert ours.decode(ids) == theirs.decode(ids)


def test_images_beside_the_conversation_equal_the_reference(ours, theirs, pictures):
    chat = [user(f"{BOI} by hand, and ", {"type": "image"})]
    options = {**PT, "processor_kwargs": {"images": pictures[:2]}}
    assert_same(ours.apply_chat_template(chat, **options), theirs.apply_chat_template(chat, **options))


def calls(pictures: list[Image.Image]) -> list[tuple[Any, Any]]:
    wide, square, tall = pictures
    array = np.asarray(square).transpose(2, 0, 1)
    return [
        (wide, f"{BOI} what?"),
        ([wide, square], f"a {BOI}\n{BOI}\n\nb"),
        ([[wide, square], [], [tall]], [f"{BOI}{BOI}", "none", f"\n\n{BOI}\n\n"]),
        (((wide,), (tall,)), (f"{BOI}", f"x {BOI}")),
        ([wide, square, tall], None),
        ([[wide], [square, tall]], None),
        (array, BOI),
        (torch.from_numpy(array.copy()), BOI),
        (np.stack([array, array]), BOI * 2),
        ([torch.from_numpy(np.stack([array, array])), torch.from_numpy(array[None].copy())], [BOI * 2, BOI]),
        (None, ["typed <image_soft_token>", "<end_of_image>"]),
    ]


@pytest.mark.parametrize("number", range(11))
def test_calls_with_markers_by_hand_equal_the_reference(ours, theirs, pictures, number):
    images, text = calls(pictures)[number]
    given = list(text) if isinstance(text, tuple) else text  # the reference takes no tuple of texts
    for options in (
        {"return_tensors": "pt", "padding": True},
        {"padding": True},
        {**CROPS},
        {"add_special_tokens": False},
    ):
        assert_same(ours(images=images, text=text, **options), theirs(images=images, text=given, **options))


def test_groups_of_options_equal_the_reference(ours, theirs, pictures):
    for options in (
        {"text_kwargs": {"padding": "max_length", "max_length": 60}, "images_kwargs": {"do_normalize": False}},
        {"common_kwargs": {"return_tensors": "pt"}, "images_kwargs": CROPS},
        {"text_kwargs": {"return_tensors": "pt"}},
    ):
        images, text = pictures[0], f"{BOI} a"
        assert_same(ours(images=images, text=text, **options), theirs(images=images, text=text, **options))


def test_names_that_other_programs_read(ours, theirs):
    for name in ("image_seq_length", "boi_token", "image_token", "image_token_id", "full_image_sequence"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert sorted(ours.model_input_names) == sorted(theirs.model_input_names)


def test_options_of_loading_win_over_the_files(small_tokenizer_folder, tmp_path):
    """As the page writes it: padding_side at loading, use_fast or backend for the image processor."""
    options = {"padding_side": "right", "do_pan_and_scan": True, "size": 16, "image_seq_length": 4}
    kinds = {True: Gemma3ImageProcessor, False: Gemma3ImageProcessorPil, None: Gemma3ImageProcessor}
    for fast, kind in kinds.items():
        processor = Gemma3Processor.from_pretrained(small_tokenizer_folder, use_fast=fast, **options)
        assert type(processor.image_processor) is kind
        assert (processor.tokenizer.padding_side, processor.image_processor.do_pan_and_scan) == ("right", True)
        assert processor.save_pretrained(tmp_path) == [str(tmp_path / "processor_config.json")]
        again = Gemma3Processor.from_pretrained(tmp_path)
        assert again.image_processor.config == processor.image_processor.config
        assert (again.tokenizer.padding_side, again.image_seq_length) == ("right", 4)
    with pytest.raises(UnsupportedOptionError, match="shiny"):
        Gemma3Processor.from_pretrained(small_tokenizer_folder, shiny=1)


def test_pictures_from_every_source_are_the_same(small, pictures, tmp_path):
    path = tmp_path / "picture.png"
    pictures[1].save(path)
    data = path.read_bytes()
    encoded = base64.b64encode(data).decode()
    array = np.asarray(pictures[1])
    sources = [
        str(path), path, data, bytearray(data), encoded, f"data:image/png;base64,{encoded}", pictures[1],
        Image.open(io.BytesIO(data)), array, array.transpose(2, 0, 1), torch.from_numpy(array.copy()),
    ]  # fmt: skip
    expected = small(images=pictures[1], text=BOI, return_tensors="pt").pixel_values
    for source in sources:
        for key in (
            ("image",) if not isinstance(source, str | Path) else ("image", "url" if source is not path else "path")
        ):
            inputs = small.apply_chat_template([user(shown(source, key))], **PT)
            assert (inputs.pixel_values - expected).abs().max() <= 1e-6, type(source)
        assert (small(images=[source], text=BOI, return_tensors="pt").pixel_values - expected).abs().max() <= 1e-6


def test_a_picture_by_url_comes_through_the_loader(small, pictures, monkeypatch):
    """What it fetches, from where and how much, is test_images' matter."""
    buffer = io.BytesIO()
    pictures[1].save(buffer, "PNG")
    monkeypatch.setattr("gemma3_core.images.load.fetch_image", lambda _url, _limits: buffer.getvalue())
    expected = small(images=pictures[1], text=BOI, return_tensors="pt").pixel_values
    url = "https://example.com/a.png"
    for part in (shown(url, "url"), shown(url), {"type": "image_url", "image_url": {"url": url}}):
        assert torch.equal(small.apply_chat_template([user(part)], **PT).pixel_values, expected)


@pytest.mark.parametrize(("images", "text", "message"), [
    (1, ["a", BOI], "There are 2 texts, and pictures for 1 of them"),
    ([1, 1], BOI, "There are 1 texts, and pictures for 2 of them"),
    ([1, 1, 0], [BOI, BOI], "There are 2 texts, and pictures for 3 of them"),
    ([1, 0], ["a", BOI], r"have \[0, 1\] places .* but \[1, 0\] pictures"),
    ([2], [BOI], "have 1 places .* but 2 pictures"),
    (0, BOI * 2, "have 2 places .* but 0 pictures"),
])  # fmt: skip
def test_counts_that_do_not_match_are_typed_errors(small, pictures, images, text, message):
    given = [[pictures[1]] * n for n in images] if isinstance(images, list) else [pictures[1]] * images
    with pytest.raises(PromptError, match=message):
        small(images=given or None, text=text)


def test_single_pictures_beside_lists_are_a_typed_error(small, pictures):
    with pytest.raises(PromptError, match="beside single pictures"):
        small(images=[pictures[0], [pictures[1]]], text=[BOI, BOI])


@pytest.mark.parametrize("options", [
    {"max_length": 8}, {"max_length": 8, "truncation": True}, {"text_kwargs": {"max_length": 8, "truncation": True}},
    {"max_length": 3, "truncation": True, "truncation_side": "left"},
], ids=str)  # fmt: skip
def test_truncation_that_cuts_a_picture_is_a_typed_error(small, pictures, options):
    assert len(small(images=pictures[1], text=f"abc {BOI}").input_ids[0]) > 8
    with pytest.raises(PromptError, match=r"Truncation cuts pictures: 4 soft tokens .* and \d are left .*max_length"):
        small(images=pictures[1], text=f"abc {BOI}", **options)
    with pytest.raises(PromptError, match="Truncation cuts pictures"):
        small(text="<image_soft_token>" * 20, max_length=8)


def test_truncation_that_spares_the_pictures_equals_the_reference(ours, theirs, pictures):
    options = {"max_length": 25, "truncation": True, "return_tensors": "pt"}
    images, text = pictures[0], f"{BOI} and a good many words that are left out of the prompt here"
    assert_same(ours(images=images, text=text, **options), theirs(images=images, text=text, **options))
    with pytest.raises(ValueError, match="Mismatch"):  # and where it doesn't, it is an error there too
        theirs(images=images, text=text, max_length=10, truncation=True)


def test_pictures_need_a_tokenizer_with_their_tokens(small_tokenizer_folder, pictures, tmp_path):
    content = (small_tokenizer_folder / "tokenizer.json").read_text()
    for token in ("<start_of_image>", "<end_of_image>", "<image_soft_token>"):
        content = content.replace(token, token.replace("image", "words"))
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "tokenizer_config.json").write_bytes((small_tokenizer_folder / "tokenizer_config.json").read_bytes())
    text_only = Gemma3Processor.from_pretrained(tmp_path, size=16, image_seq_length=4)
    assert text_only.tokenizer.image_token_id is None
    assert text_only.apply_chat_template([user("a")], **PT).token_type_ids.sum() == 0
    with pytest.raises(PromptError, match=r"tokenizer knows no <start_of_image> or <image_soft_token>.*4B or larger"):
        text_only(images=pictures[0], text=BOI)
    with pytest.raises(PromptError, match="tokenizer knows no"):
        text_only.apply_chat_template([user(shown(pictures[0]))], **PT)


@pytest.mark.parametrize("text", [3, {"a": 1}, ["a", 2], [], b"a", [["a"]]])
def test_what_is_no_text_is_a_typed_error(small, text):
    with pytest.raises(PromptError, match="text is a"):
        small(text=text)


def test_pictures_given_as_text_are_told_from_texts(small, pictures):
    with pytest.raises(PromptError, match="Pictures come first"):
        small(BOI, np.asarray(pictures[0]))


@pytest.mark.parametrize("image", [3, None, {"image": 1}, "no such file.png", b"", object(), np.zeros((2, 2, 2, 2, 2))])
def test_what_is_no_picture_is_a_typed_error(small, image):
    with pytest.raises(ImageError):
        small(images=[image], text=BOI)
    with pytest.raises(Gemma3Error):
        small.apply_chat_template([user(shown(image))], **PT)


@pytest.mark.parametrize("chat", [None, "hello", [], [[]], [[user("a")], "b"], [None], [user({"type": "video"})]])
def test_what_is_no_conversation_is_a_typed_error(small, chat):
    with pytest.raises(ChatTemplateError):
        small.apply_chat_template(chat, **PT)


@pytest.mark.parametrize("options", [
    {"shiny": 1}, {"do_center_crop": True}, {"audio": ["a.wav"]}, {"videos_kwargs": {"fps": 1}},
    {"text_kwargs": {"shiny": 1}}, {"images_kwargs": {"shiny": 1}}, {"common_kwargs": {"shiny": 1}},
    {"return_text_replacement_offsets": True}, {"return_tensors": "tf"}, {"text_pair": "a"},
], ids=str)  # fmt: skip
def test_options_that_do_not_exist_are_errors_that_name_them(small, pictures, options):
    name = "shiny" if "shiny" in str(options) else next(iter(options))
    with pytest.raises(UnsupportedOptionError, match=name):
        small(images=pictures[0], text=BOI, **options)


@pytest.mark.parametrize("options", [{"shiny": 1, "bright": 2}, {"trust_remote_code": True}], ids=str)
def test_options_of_loading_that_do_not_exist_are_the_processors_errors(chat_folder, options):
    with pytest.raises(UnsupportedOptionError, match=f"The processor has no option {', '.join(sorted(options))}\\."):
        Gemma3Processor.from_pretrained(chat_folder, **options)
    Gemma3Processor.from_pretrained(chat_folder, trust_remote_code=False)


@pytest.mark.parametrize("options", [
    {"shiny": 1}, {"return_assistant_tokens_mask": True}, {"sanitize_control_tokens": True}, {"tools": [{}]},
    {"load_audio_from_video": True}, {"continue_final_message": "thoughts"},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("tokenize", [True, False])
def test_options_that_the_template_has_no_use_for_are_errors(small, options, tokenize):
    with pytest.raises(UnsupportedOptionError, match=next(iter(options))):
        small.apply_chat_template([user("a")], tokenize=tokenize, **options)


def test_parts_of_a_processor_in_the_wrong_order_are_an_error(small):
    images, tokenizer = small.image_processor, small.tokenizer
    assert isinstance(tokenizer, Gemma3Tokenizer)
    wrong: list[tuple[Any, ...]] = [(tokenizer, images), (images, "tokenizer"), (images, tokenizer, 256)]
    for arguments in wrong:
        with pytest.raises(UnsupportedOptionError, match="order is image_processor, tokenizer, chat_template"):
            Gemma3Processor(*arguments)
