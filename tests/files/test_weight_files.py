"""Checkpoints in one file and in shards: what is written where, what an earlier save leaves, what can't be written."""

import json
import os

import pytest
import torch
import transformers
from reference import image_prompt, save_reference
from safetensors.torch import load_file

import gemma3_core
from gemma3_core import TorchAoConfig
from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.files.weight_files import INDEX_FILE, SINGLE_FILE, shard_bytes, weight_files
from gemma3_core.models.text import Gemma3ForCausalLM


def weights_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("model"))


def stored(folder):
    """All tensors of a folder, by the names in its files."""
    return {name: tensor for path in weight_files(folder) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize(
    ("size", "expected"),
    [("5MB", 5_000_000), ("5 GB", 5 * 10**9), ("0.5kb", 500), ("50GB", 50 * 10**9), ("1TB", 10**12), (4096, 4096)],
)
def test_sizes_are_those_of_the_reference(size, expected):
    from huggingface_hub.serialization._base import parse_size_to_int

    assert shard_bytes(size) == expected == (size if isinstance(size, int) else parse_size_to_int(size))


@pytest.mark.parametrize("size", ["5", "5GiB", "", "GB", "-1MB", "0MB", "0.1", 0, -5, 2.5, True, None, [5]], ids=repr)
def test_a_size_that_is_none_is_told_before_anything_is_written(our_text, size, tmp_path):
    with pytest.raises(UnsupportedOptionError, match="max_shard_size"):
        our_text.save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


CLASSES = [
    ("Gemma3ForConditionalGeneration", "both"),
    ("Gemma3Model", "both"),
    ("Gemma3ForCausalLM", "text"),
    ("Gemma3TextModel", "text"),
]


@pytest.mark.parametrize(("name", "kind"), CLASSES)
def test_shards_of_ours_load_in_the_reference_and_the_other_way_round(weights, name, kind, tmp_path):
    own, other = getattr(gemma3_core, name), getattr(transformers, name)
    mine = own.from_pretrained(getattr(weights, kind))
    mine.save_pretrained(tmp_path / "ours", max_shard_size="60KB")
    names = weights_in(tmp_path / "ours")
    count = len(names) - 1
    assert count > 3
    assert names == [*(f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)), INDEX_FILE]
    index = json.loads((tmp_path / "ours" / INDEX_FILE).read_text())
    tensors = stored(tmp_path / "ours")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"]["total_parameters"] == mine.num_parameters()
    assert index["weight_map"].keys() == tensors.keys()
    for file in set(index["weight_map"].values()):
        inside = load_file(tmp_path / "ours" / file)
        assert {tensor for tensor, place in index["weight_map"].items() if place == file} == inside.keys()
        assert len(inside) == 1 or sum(tensor.nbytes for tensor in inside.values()) <= 60_000

    theirs, told = other.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    assert len(weights_in(tmp_path / "theirs")) > 4
    for again in (own.from_pretrained(tmp_path / "ours"), own.from_pretrained(tmp_path / "theirs")):
        state = dict(again.named_parameters())
        assert all(torch.equal(parameter, state[name]) for name, parameter in mine.named_parameters())


def test_the_index_says_what_the_references_says(weights, tmp_path):
    """But for the order of a layer's tensors, and so which of them share a file."""
    Gemma3ForCausalLM.from_pretrained(weights.text).save_pretrained(tmp_path / "ours", max_shard_size="60KB")
    theirs = transformers.Gemma3ForCausalLM.from_pretrained(weights.text)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="60KB")
    ours, theirs = (json.loads((tmp_path / side / INDEX_FILE).read_text()) for side in ("ours", "theirs"))
    assert ours["metadata"] == theirs["metadata"]
    assert ours["weight_map"].keys() == theirs["weight_map"].keys()


def test_what_an_earlier_save_left_is_replaced(our_text, tmp_path):
    """Nothing of it may be read in place of the new weights, by us or by the reference."""
    (tmp_path / "model-00001-of-00002.bin").write_text("another program's")
    (tmp_path / "modelcard.md").write_text("a text")
    other = Gemma3ForCausalLM(our_text.config)
    token = image_prompt("t5")[0]
    for model, size in [(other, "50GB"), (our_text, "60KB"), (other, "200KB"), (our_text, 50_000), (other, "1GB")]:
        model.save_pretrained(tmp_path, max_shard_size=size)
        files = weights_in(tmp_path)
        assert (SINGLE_FILE in files) is (size in ("50GB", "1GB")) is not (INDEX_FILE in files)
        shards = {path.name for path in weight_files(tmp_path)}
        assert {*files} == shards | ({INDEX_FILE} if INDEX_FILE in files else set()) | {
            "model-00001-of-00002.bin",
            "modelcard.md",
        }
        expected = model.eval()(token).logits
        assert torch.equal(Gemma3ForCausalLM.from_pretrained(tmp_path)(token).logits, expected)
        reference = transformers.Gemma3ForCausalLM.from_pretrained(tmp_path).state_dict()
        assert torch.equal(reference["model.norm.weight"], model.model.norm.weight)
        assert torch.equal(reference["model.embed_tokens.weight"], model.model.embed_tokens.weight)


def test_shards_are_saved_over_the_files_that_the_weights_are_mapped_from(tmp_path):
    save_reference(tmp_path, multimodal=False)
    original = stored(tmp_path)
    for size in ("60KB", "90KB", "60KB", "50GB"):
        Gemma3ForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path, max_shard_size=size)
        written = stored(tmp_path)
        assert written.keys() == original.keys()
        assert all(torch.equal(tensor, original[name]) for name, tensor in written.items())


def test_int4_weights_in_shards(weights, tmp_path):
    model = Gemma3ForCausalLM.from_pretrained(
        weights.text, quantization_config=TorchAoConfig("int4_weight_only", group_size=32)
    )
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert INDEX_FILE in weights_in(tmp_path)
    token = image_prompt("t30")[0]
    assert torch.equal(Gemma3ForCausalLM.from_pretrained(tmp_path)(token).logits, model(token).logits)


def test_a_disk_that_is_full_leaves_the_earlier_checkpoint_as_it_was(our_text, tmp_path, monkeypatch):
    from safetensors import SafetensorError
    from safetensors import torch as files

    our_text.save_pretrained(tmp_path, max_shard_size="60KB")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = []

    def third_fails(tensors, path, metadata):
        written.append(path)
        if len(written) == 3:
            raise SafetensorError("No space left on device")
        save(tensors, path, metadata)

    save = files.save_file
    monkeypatch.setattr(files, "save_file", third_fails)
    with pytest.raises(CheckpointError, match="could not be written"):
        Gemma3ForCausalLM(our_text.config).save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(written) == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def savers(chat_folder):
    from gemma3_core import AutoProcessor, GenerationConfig

    processor = AutoProcessor.from_pretrained(chat_folder)
    config = Gemma3ForCausalLM.config_class()
    return [processor, processor.tokenizer, processor.image_processor, config, GenerationConfig()]


def test_a_place_that_can_not_be_written_to_is_told_by_every_class(our_text, chat_folder, tmp_path):
    (tmp_path / "taken").write_text("x")
    (tmp_path / "holds").mkdir()
    for thing in [our_text, *savers(chat_folder)]:
        name = type(thing).__name__
        for place in (tmp_path / "taken", tmp_path / "taken" / "below", "a\0b", "x" * 300, "", None, 5):
            with pytest.raises(CheckpointError) as error:
                thing.save_pretrained(place)
            assert str(tmp_path) not in str(error.value), name
        with pytest.raises(UnsupportedOptionError, match="push_to_hub"):
            thing.save_pretrained(tmp_path / "pushed", push_to_hub=True)
        with pytest.raises(UnsupportedOptionError, match="variant"):
            thing.save_pretrained(tmp_path / "pushed", variant="fp16")
        assert not (tmp_path / "pushed").exists()
        thing.save_pretrained(save_directory=tmp_path / "holds", push_to_hub=False)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", SINGLE_FILE])
def test_a_file_that_can_not_be_written_is_named(our_text, chat_folder, name, tmp_path):
    """A folder stands where the file should be: the one obstacle that stops root too."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "inside").write_text("x")
    thing = savers(chat_folder)[1] if name.startswith("tok") else our_text
    with pytest.raises(CheckpointError, match=name):
        thing.save_pretrained(tmp_path)
    assert not [path for path in os.listdir(tmp_path) if path.endswith(".part")]
