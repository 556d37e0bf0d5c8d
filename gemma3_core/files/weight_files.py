"""The weight files of a checkpoint folder: one safetensors file, shards with an index, or GGUF files."""

import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gemma3_core.errors import CheckpointError, UnsupportedOptionError
from gemma3_core.files.hub import read_json
from gemma3_core.files.saving import not_written, write_json
from gemma3_core.gguf.checkpoint import weights_of
from gemma3_core.gguf.header import is_gguf
from gemma3_core.gguf.tensors import GgufTensor, hub_tensors

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_SHARD_SIZE = "50GB"
"""The default size limit of a file of save_pretrained, as in transformers."""
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(TB|GB|MB|KB)", re.IGNORECASE)
_UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3}  # bytes


def weight_files(folder: Path) -> list[Path]:
    """The single safetensors file of a checkpoint folder, else the shards that its index names, as in transformers.

    A folder that stands for a GGUF file gives that file and those that belong to it. Raises CheckpointError.
    """
    if (gguf := weights_of(folder)) is not None:
        return gguf
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).exists():
        shards = sorted(set(_weight_map(folder).values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if missing:
            raise CheckpointError(f"Missing from the checkpoint folder: {', '.join(missing)}. Download them again.")
        return [folder / name for name in shards]
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        raise CheckpointError("Pickled weights (.bin, .pt) can run code and are not read. Use the safetensors files.")
    raise CheckpointError(f"{SINGLE_FILE} is missing from the checkpoint folder. Download it again.")


def _weight_map(folder: Path) -> Mapping[str, str]:
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE} has no weight_map. Download it again.")
    for name in weight_map.values():
        if Path(str(name)).name != name:
            raise CheckpointError(f"{INDEX_FILE} names a file outside its folder: {name!r}.")
    return weight_map


def read_tensors(path: Path) -> Iterable[tuple[str, torch.Tensor | GgufTensor]]:
    """Names and tensors of one file, memory-mapped. Raises CheckpointError for a damaged file."""
    if is_gguf(path):
        yield from hub_tensors(path)
        return
    with _opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (safe_open is no mapping)
            yield name, file.get_tensor(name)


def tensor_names(path: Path) -> list[str]:
    """The names of one file's tensors, from its header alone. Raises CheckpointError for a damaged file."""
    if is_gguf(path):
        return [name for name, _ in hub_tensors(path)]
    with _opened(path) as file:
        return list(file.keys())


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path.name} is damaged or cut off ({kind}). Download it again.") from None


def shard_bytes(max_shard_size: int | str) -> int:
    """A size in bytes, or such as "5GB" or "500MB" -> bytes. Raises UnsupportedOptionError for anything else."""
    if isinstance(max_shard_size, int) and not isinstance(max_shard_size, bool) and max_shard_size > 0:
        return max_shard_size
    match = _SIZE.fullmatch(max_shard_size.strip()) if isinstance(max_shard_size, str) else None
    size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    if not size:
        raise UnsupportedOptionError(
            f'max_shard_size={max_shard_size!r} is not a file size: give bytes, or a size such as "500MB" or "5GB".'
        )
    return size


def write_tensors(
    tensors: Mapping[str, torch.Tensor], folder: Path, total_parameters: int, max_shard_size: int | str = MAX_SHARD_SIZE
) -> None:
    """Writes model.safetensors, or shards with an index if it would be larger than `max_shard_size`.

    All files are complete before the first is renamed: a full disk leaves an earlier checkpoint intact, and the tensors
    may be mapped from the files that are replaced. Other weight files of an earlier save are removed, since a single
    file would win over shards beside it. Raises CheckpointError, UnsupportedOptionError.
    """
    from huggingface_hub import save_torch_state_dict
    from safetensors import SafetensorError

    most, target = shard_bytes(max_shard_size), folder / SINGLE_FILE
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".part") as unfinished:
            save_torch_state_dict(dict(tensors), unfinished, max_shard_size=most)
            if (index := Path(unfinished) / INDEX_FILE).exists():
                data = read_json(index)
                write_json(index, {**data, "metadata": {**data["metadata"], "total_parameters": total_parameters}})
            written = sorted(Path(unfinished).iterdir())  # the index last
            for path in written:
                target = folder / path.name
                path.replace(target)
    except (OSError, SafetensorError) as error:
        raise not_written(target, error) from None
    kept = {path.name for path in written}
    for path in folder.iterdir():
        is_weights = path.name in (SINGLE_FILE, INDEX_FILE) or _SHARD.fullmatch(path.name)
        if is_weights and path.name not in kept and path.is_file():
            path.unlink()
