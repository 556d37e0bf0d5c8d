"""Headers of GGUF files: what llama.cpp's own reader finds, and a sentence for whatever is damaged or hostile."""

import random
import re
import resource
import struct

import gguf
import numpy as np
import pytest

from gemma3_core.errors import CheckpointError, Gemma3Error
from gemma3_core.gguf.header import is_gguf, read_architecture, read_header


@pytest.fixture
def path(tmp_path):
    """A small file with a key of each type and tensors of several."""
    target = tmp_path / "small.gguf"
    writer = gguf.GGUFWriter(target, "gemma3")
    writer.add_uint8("a.uint8", 7)
    writer.add_int16("a.int16", -7)
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.25)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "größer")
    writer.add_array("a.texts", ["<pad>", "▁the", ""])
    writer.add_array("a.numbers", [0.5, -1000.0])
    writer.add_tensor("one.weight", np.arange(96, dtype=np.float32).reshape(3, 32))
    quantised = gguf.quants.quantize(np.ones((5, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("two.weight", quantised, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_it_finds_what_llama_cpps_reader_finds(path):
    header, reader = read_header(path), gguf.GGUFReader(path)
    assert header.architecture == read_architecture(path) == "gemma3"
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            found = header.metadata[name]
            assert (found.tolist() if isinstance(found, np.ndarray) else found) == field.contents(), name
    assert list(header.tensors) == [tensor.name for tensor in reader.tensors]
    for theirs in reader.tensors:
        info = header.tensors[theirs.name]
        assert info.shape == tuple(theirs.shape.tolist()[::-1])
        assert info.kind.name == theirs.tensor_type.name
        assert header.data(info).numpy().tobytes() == theirs.data.tobytes()


def test_lists_of_texts_can_be_skipped(path):
    whole, quick = read_header(path), read_header(path, lists_of_texts=False)
    assert quick.metadata.keys() == whole.metadata.keys()
    assert quick.metadata["a.texts"] == []
    assert quick.tensors == whole.tensors
    with pytest.raises(CheckpointError, match="cut off"):
        read_header(changed(path, place(path, b"a.texts") + 16, "<Q", 2**63), lists_of_texts=False)


def test_other_files_are_told_from_gguf(path, tmp_path):
    other = tmp_path / "model.bin"
    other.write_bytes(b"PK\x03\x04" + bytes(100))
    assert is_gguf(path)
    assert not is_gguf(other)
    assert not is_gguf(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"model\.bin is not a GGUF file\. Give"):
        read_header(other)


def refusal(path) -> str:
    """What is said of the file, which never tells its folder."""
    with pytest.raises(CheckpointError) as error:
        read_header(path)
    assert str(path.parent) not in str(error.value)
    return str(error.value)


def changed(path, at: int, form: str, value: int):
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, at, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("at", "form", "value", "says"),
    [
        (4, "<I", 1, "is of GGUF version 1"),
        (4, "<I", 4, "is of GGUF version 4"),
        (4, ">I", 3, "is written for big-endian machines"),
        (8, "<Q", 2**62, "4,611,686,018,427,387,904 tensors"),
        (16, "<Q", 2**40, "entries of metadata"),
        (24, "<Q", 2**63, "a key of 9,223,372,036,854,775,808 bytes"),
        (24, "<Q", 10_000_000, "a key of 10,000,000 bytes"),
        (52, "<I", 77, "general.architecture is of the unknown type 77"),
        (56, "<Q", 2**50, "general.architecture has a text of"),
    ],
)
def test_hostile_numbers_in_the_beginning(path, at, form, value, says):
    said = refusal(changed(path, at, form, value))
    assert says in said
    assert re.search("damaged|reads versions", said)


def place(path, word: bytes) -> int:
    """Where the bytes after this word begin."""
    return path.read_bytes().index(word) + len(word)


def test_a_list_longer_than_the_file_takes_no_memory(path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for count, says in ((2**60, "entries, where"), (2**21, "cut off")):
        with pytest.raises(CheckpointError, match=says):
            read_header(changed(path, place(path, b"a.numbers") + 8, "<Q", count))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 20_000  # kB


@pytest.mark.parametrize(
    ("offset", "form", "value", "says"),
    [
        (0, "<I", 9, "one.weight has 9 dimensions"),
        (0, "<I", 0, "one.weight has 0 dimensions"),
        (4, "<Q", 0, "one.weight has the shape"),
        (4, "<Q", 2**40, "is cut off: one.weight lies beyond its end"),
        (20, "<I", 10, "is stored as Q2_K, which this program does not read"),
        (20, "<I", 200, "is stored as unknown type 200"),
        (20, "<I", 12, "one.weight has rows of 32 weights, but Q4_K takes 256 a block"),
        (24, "<Q", 3, "one.weight lies between two places"),
        (24, "<Q", 2**63, "is cut off: one.weight"),
    ],
)
def test_hostile_numbers_of_a_tensor(path, offset, form, value, says):
    assert says in refusal(changed(path, place(path, b"one.weight") + offset, form, value))


def test_tensors_that_lie_over_one_another(path):
    two = place(path, b"two.weight")
    with pytest.raises(CheckpointError, match="lies over another tensor"):
        read_header(changed(path, two + 24, "<Q", 0))


def test_a_file_that_was_cut_off_anywhere(path):
    data = path.read_bytes()
    for size in (0, 3, 4, 23, 24, 40, 100, 200, len(data) - 400, len(data) - 200):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"cut off|can't be read|not a GGUF"):
            read_header(path)


def test_no_mutation_raises_anything_but_a_sentence(path):
    """500 files with up to eight changed bytes, blocks moved, or an end cut off."""
    data, draw = path.read_bytes(), random.Random(7)
    refused = 0
    for _ in range(500):
        mutated = bytearray(data)
        for _ in range(draw.randint(1, 8)):
            mutated[draw.randrange(len(mutated))] = draw.choice([0, 1, 127, 128, 255, draw.randrange(256)])
        if draw.random() < 0.2:
            at = draw.randrange(len(mutated))
            mutated[at : at + draw.randrange(64)] = b""
        path.write_bytes(mutated[: draw.randrange(len(mutated))] if draw.random() < 0.1 else mutated)
        try:
            header = read_header(path)
            for info in header.tensors.values():
                header.data(info)
        except Gemma3Error as error:
            refused += "small.gguf" in str(error)
    assert 100 < refused < 500
