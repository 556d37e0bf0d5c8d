"""AttentionMaskVisualizer: prints and draws the mask that the model uses; no weights, no network."""

import json
import shutil
import socket
import sys

import pytest
import torch
from PIL import Image
from reference import TOKENS_PER_IMAGE

from gemma3_core.errors import CheckpointError, ImageError, PromptError, UnsupportedOptionError
from gemma3_core.inspection.mask_visualizer import AttentionMaskVisualizer
from gemma3_core.processor import Gemma3Processor


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*_args):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def bare_folder(chat_folder, tmp_path):
    """A checkpoint's folder without its weights."""
    for path in chat_folder.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, tmp_path / path.name)
    return tmp_path


@pytest.fixture
def visualizer(bare_folder) -> AttentionMaskVisualizer:
    return AttentionMaskVisualizer(bare_folder)


@pytest.mark.usefixtures("no_network")
def test_the_documented_call_prints_both_masks_without_weights_or_network(bare_folder, capsys):
    result = AttentionMaskVisualizer(str(bare_folder))("<img>What is shown in this image?")
    printed = capsys.readouterr().out
    assert result is None
    assert "global layers" in printed
    assert "local layers, window 24" in printed
    assert f"{bare_folder.name}: {1 + 1 + 1 + TOKENS_PER_IMAGE + 1 + 1 + 28} tokens" in printed
    assert "\033" not in printed, "no colors where it is not a terminal"


def test_the_picture_of_a_small_prompt(visualizer):
    """One image block of 16 folded to its first, its middle and its last token; rows are queries."""
    text = visualizer.text("a<img>b", most=11)
    rows = [line for line in text.splitlines() if "■" in line and "may" not in line]
    drawn = [[sign for sign in line if sign in "■▣·"][:10] for line in rows]
    assert [line.split()[0] for line in rows] == [
        *["<bos>", "a", "\\n\\n", "<start_of_image>", "<image", "<image", "<image", "<end_of_image>", "\\n\\n", "b"]
    ]
    expected = torch.ones(10, 10).tril()
    expected[4:7, 4:7] = 1
    assert drawn == [["■" if allowed else "·" for allowed in row] for row in expected.tolist()]


def test_ids_and_types_are_the_processors(visualizer, bare_folder):
    picture = Image.new("RGB", (700, 300))
    processor = Gemma3Processor.from_pretrained(bare_folder)
    inputs = processor(
        text=["look <start_of_image> and <start_of_image>", "hello"],
        images=[[picture, picture], []],
        padding=True,
        padding_side="left",
        return_tensors="pt",
        do_pan_and_scan=True,
    )
    views = visualizer.views(
        ["look <img> and <start_of_image>", "hello"], images=[[picture, picture], []], do_pan_and_scan=True
    )
    assert inputs["pixel_values"].shape[0] == 6
    for view, ids, mask, types in zip(
        views, inputs["input_ids"], inputs["attention_mask"], inputs["token_type_ids"], strict=True
    ):
        assert [token.token_id for token in view.tokens] == ids.tolist()
        assert [token.kind != "padding" for token in view.tokens] == mask.bool().tolist()
        assert [token.kind == "image" for token in view.tokens] == types.bool().tolist()
    assert len({token.tile for token in views[0].tokens} - {None}) == 6, "crops are blocks of their own"


def test_a_picture_may_be_given_alone_and_is_cut_only_when_asked(visualizer):
    wide = Image.new("RGB", (1024, 256))
    whole, cut = (visualizer.views("<img>", images=wide, do_pan_and_scan=flag)[0] for flag in (False, True))
    assert [len({token.tile for token in view.tokens} - {None}) for view in (whole, cut)] == [1, 5]
    assert visualizer.views("<img>", images=[wide]) == visualizer.views("<img>") == [whole]


def test_any_length_folds_to_what_fits(visualizer):
    text = visualizer.text(" ".join(["<img> what is it"] * 30) + " word" * 300, most=25)
    rows = [line for line in text.splitlines() if any(sign in line for sign in "■▣") and "may" not in line]
    assert len(rows) <= 25 * 2
    assert " images" in text


def test_a_text_only_model(text_chat_folder, capsys):
    visualizer = AttentionMaskVisualizer(text_chat_folder)
    visualizer.visualize_attention_mask("hello there")
    assert "global layers" in capsys.readouterr().out
    with pytest.raises(PromptError, match="reads text only"):
        visualizer("what", images=Image.new("RGB", (9, 9)))


def test_figures_open_no_window_and_touch_no_state(visualizer, tmp_path):
    before = set(sys.modules)
    figure = visualizer.figure("a<img>b")
    assert "matplotlib.pyplot" not in set(sys.modules) - before
    assert [axis.get_title() for axis in figure.axes] == ["global layers", "local layers, window 24"]
    for name in ("mask.png", "mask.svg"):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    shown = figure.axes[0].images[0].get_array()
    [view] = visualizer.views("a<img>b")
    assert shown.shape == (len(view.tokens),) * 2
    assert shown[0].tolist() == [1.0] + [0.0] * (len(view.tokens) - 1)
    with pytest.raises(PromptError, match="one sentence"):
        visualizer.figure(["a", "b"])


@pytest.mark.parametrize(
    ("sentence", "options", "error", "words"),
    [
        ("<img>", {"images": []}, PromptError, ["[1] places", "[0] pictures"]),
        ("what", {"images": Image.new("RGB", (9, 9))}, PromptError, ["[0] places", "[1] pictures"]),
        (["<img>", "b"], {"images": [Image.new("RGB", (9, 9))] * 2}, PromptError, ["[1, 0] places", "[2] pictures"]),
        ("<img>", {"images": b"no picture"}, ImageError, ["picture"]),
        ("<img>", {"images": 5}, ImageError, ["int", "<img> for each"]),
        ("what", {"images": {"a": 1}}, ImageError, ["dict"]),
        ("what", {"most": "x"}, PromptError, ["most='x'"]),
        ("what", {"suffix": "more"}, UnsupportedOptionError, ["suffix", "more"]),
        ("", {}, PromptError, ["nothing to show"]),
        ([], {}, PromptError, ["nothing to show"]),
    ],
)
def test_bad_input_is_refused_with_the_reason(visualizer, sentence, options, error, words):
    with pytest.raises(error) as caught:
        visualizer(sentence, **options)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_folder_without_a_tokenizer_is_refused(bare_folder):
    (bare_folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer"):
        AttentionMaskVisualizer(bare_folder)


def test_an_id_is_fetched_without_its_weights(monkeypatch, bare_folder):
    asked = {}

    def snapshot_download(name, allow_patterns, **_options):
        asked[name] = allow_patterns
        return str(bare_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    visualizer = AttentionMaskVisualizer("google/gemma-3-4b-it")
    assert visualizer.name == "google/gemma-3-4b-it"
    [patterns] = asked.values()
    assert not any("safetensors" in pattern for pattern in patterns)
    assert json.loads((bare_folder / "config.json").read_text())["model_type"] == "gemma3"
