"""Which Gemma 3 models are on this machine, and what memory each takes: from their headers, before one is loaded."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gemma3_core.config.gemma3 import AnyConfig, Gemma3Config, Gemma3TextConfig, config_from
from gemma3_core.engine.memory import free_bytes, free_bytes_of_machine
from gemma3_core.engine.precisions import model_class, usual_dtype
from gemma3_core.errors import CheckpointError, Gemma3Error, UnsupportedOptionError
from gemma3_core.files.download import size_of
from gemma3_core.files.hub import read_json
from gemma3_core.files.weight_files import INDEX_FILE, weight_files
from gemma3_core.gguf.checkpoint import ARCHITECTURE, config_of, find_checkpoint, is_later_part
from gemma3_core.gguf.header import is_gguf, read_architecture
from gemma3_core.int4.linear import int4_obstacle
from gemma3_core.int4.quantize import DEFAULT_GROUP_SIZE, TorchAoConfig, count_weights, int4_layer_bytes, plan_int4
from gemma3_core.int4.quantize import weight_bytes as bytes_in
from gemma3_core.models.device_map import pick_device
from gemma3_core.models.weights import build_on_meta, check_layers, parse_dtype
from gemma3_core.nn.cache import cache_bytes

logger = logging.getLogger(__name__)

CONVERSATION_TOKENS = 4096
"""The conversation that memory is counted with, besides the weights."""
HUB_CACHE, LLAMA_CPP, LM_STUDIO, NAMED = "the Hub's cache", "llama.cpp", "LM Studio", "a folder that was named"
INT4 = "int4"
_KINDS = (Gemma3Config.model_type, Gemma3TextConfig.model_type)
_DEEPEST, _MOST_FOLDERS = 5, 5_000
"""Limits of a search: levels below the folder, and folders in all."""
_FOUR_BITS = ("Q4_0", "Q4_1", "Q4_K")


@dataclass(frozen=True)
class FoundModel:
    """A model on this machine. `source` is what `--model` takes; like `place`, it must not be shown to strangers.

    `needs` are bytes of memory by precision ("bfloat16", "float32", "int4"), with a conversation of
    `CONVERSATION_TOKENS` tokens; the first of `ways` is the precision that suits the file and the device. `problem`
    says why it can't run; `note` why it reads no pictures. `repo_id` names the repository of one in the Hub's cache.
    """

    name: str
    source: str
    place: str
    kind: str = ""
    num_bytes: int = 0
    reads_pictures: bool = False
    note: str = ""
    needs: Mapping[str, int] = field(default_factory=dict)
    ways: tuple[str, ...] = ()
    problem: str = ""
    repo_id: str = ""


def find_models(
    folders: Sequence[str | Path] = (), everywhere: bool = False, device: str = "auto", dtype: str = "auto"
) -> list[FoundModel]:
    """The Gemma 3 models in the Hub's cache and in these folders and files; `everywhere` looks where llama.cpp and
    LM Studio put theirs, too.

    Only headers are read. A file that is damaged is listed with its problem. Raises UnsupportedOptionError for an
    unknown device.
    """
    picked, found = pick_device(device), {}
    for place, name, path in _candidates(folders, everywhere):
        key = os.path.realpath(path)
        if key not in found and (model := _look_at(place, name, path, picked, dtype)) is not None:
            found[key] = model
    return list(found.values())


def listing(found: Sequence[FoundModel], free: int | None) -> str:
    """The models as lines of text, with the memory that each needs against what is free."""
    told = "" if free is None else f" {size_of(free)} of memory are free."
    lines = [f"Gemma 3 models on this machine: {len(found)}.{told}"]
    for model in found:
        lines.append(f"\n{model.name} ({model.kind}, {size_of(model.num_bytes)}, in {model.place})\n  {model.source}")
        if model.problem:
            lines.append(f"  {model.problem}")
            continue
        reads = "text and pictures" if model.reads_pictures else "text only"
        needs = ", ".join(f"{size_of(model.needs[way])} in {way}" for way in model.ways)
        lines.append(f"  Reads {reads}. Needs {needs}. {model.note}".rstrip())
        if free is not None and min(model.needs[way] for way in model.ways) > free:
            lines.append("  That is more than is free.")
    return "\n".join(lines)


def free_memory(device: str = "auto") -> int | None:
    """Bytes that are free for a model on this device; None where the system does not say."""
    picked = pick_device(device)
    return free_bytes(picked) if picked.type == "cuda" else free_bytes_of_machine()


def usual_places(environment: Mapping[str, str] = os.environ, system: str = sys.platform) -> list[tuple[str, Path]]:
    """Where llama.cpp and LM Studio keep the models that they download. Source: fs_get_cache_directory in llama.cpp's
    common.cpp; LM Studio's documentation."""
    home = Path.home()
    caches = Path(environment.get("XDG_CACHE_HOME") or home / ".cache")
    if system == "darwin":
        caches = home / "Library" / "Caches"
    elif system == "win32":
        caches = Path(environment.get("LOCALAPPDATA") or home / "AppData" / "Local")
    own = environment.get("LLAMA_CACHE")
    return [
        (LLAMA_CPP, Path(own) if own else caches / "llama.cpp"),
        (LM_STUDIO, home / ".lmstudio" / "models"),
        (LM_STUDIO, home / ".cache" / "lm-studio" / "models"),
    ]


def _candidates(folders: Sequence[str | Path], everywhere: bool) -> Iterator[tuple[str, str, Path]]:
    """What may be a model: its place, its name, and a folder or GGUF file. Raises CheckpointError for a folder that is
    not there."""
    for repo_id, snapshot in _snapshots():
        yield from ((HUB_CACHE, repo_id, path) for path in _models_in(snapshot))
    places = [(NAMED, Path(folder).expanduser()) for folder in folders]
    for _, folder in places:
        if not folder.exists():
            raise CheckpointError(f"There is no folder {folder.name} to look for models in. Check its place.")
    for place, folder in [*places, *(usual_places() if everywhere else ())]:
        yield from ((place, "", path) for path in ([folder] if folder.is_file() else _models_in(folder)))


def _snapshots() -> Iterator[tuple[str, Path]]:
    """The newest snapshot of each model in the Hub's cache."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = scan_cache_dir(constants.HF_HUB_CACHE).repos
    except (CacheNotFound, OSError, ValueError):
        return
    for repository in sorted(repositories, key=lambda one: one.repo_id):
        if repository.repo_type == "model" and repository.revisions:
            yield repository.repo_id, max(repository.revisions, key=lambda one: one.last_modified).snapshot_path


def _models_in(folder: Path) -> Iterator[Path]:
    """Checkpoint folders with safetensors files, and GGUF files, at most `_DEEPEST` levels down."""
    for looked, (here, below, files) in enumerate(os.walk(folder), 1):
        depth = len(Path(here).relative_to(folder).parts)
        below[:] = sorted(name for name in below if not name.startswith(".")) if depth < _DEEPEST else []
        if looked >= _MOST_FOLDERS:
            logger.warning("%s holds many folders; only the first %s are looked through", folder.name, _MOST_FOLDERS)
            return
        if "config.json" in files and (INDEX_FILE in files or any(name.endswith(".safetensors") for name in files)):
            yield Path(here)
        yield from (Path(here) / name for name in sorted(files) if name.endswith(".gguf") and not is_later_part(name))


def _look_at(place: str, repo_id: str, path: Path, device: torch.device, dtype: str) -> FoundModel | None:
    """The model at this place; None for a model of another kind, and for an mmproj file."""
    is_file = path.is_file()
    name = path.stem if is_file else repo_id.rpartition("/")[2] or path.name
    try:
        facts = _facts_of_file(path, device, dtype) if is_file else _facts_of_folder(path, device, dtype)
    except Gemma3Error as error:
        size = path.stat().st_size if is_file else sum(file.stat().st_size for file in path.glob("*.safetensors"))
        facts = {"kind": "GGUF" if is_file else "safetensors", "num_bytes": size, "problem": str(error)}
    except OSError as error:
        facts = {"problem": f"{path.name} can't be read ({error.strerror}). Check its permissions."}
    return None if facts is None else FoundModel(name, str(path), place, repo_id=repo_id, **facts)


def _facts_of_file(path: Path, device: torch.device, dtype: str) -> dict[str, Any] | None:
    if not is_gguf(path):
        raise CheckpointError(f"{path.name} is damaged: it does not begin as a GGUF file does. Download it again.")
    if read_architecture(path) != ARCHITECTURE:
        return None
    checkpoint = find_checkpoint(path)
    kinds: Counter[str] = Counter()
    for part in checkpoint.parts:
        for tensor in part.tensors.values():
            kinds[tensor.kind.name] += tensor.num_bytes
    kind = kinds.most_common(1)[0][0]
    text_only = checkpoint.mmproj is None and "gemma3.rope.scaling.factor" in checkpoint.text.metadata
    return {
        "kind": f"GGUF, {kind}",
        "num_bytes": sum(file.stat().st_size for file in checkpoint.paths),
        "reads_pictures": checkpoint.mmproj is not None,
        "note": "Its mmproj file, which reads pictures, is missing beside it." if text_only else "",
        **_memory(config_from(config_of(checkpoint)), device, dtype, kind in _FOUR_BITS),
    }


def _facts_of_folder(folder: Path, device: torch.device, dtype: str) -> dict[str, Any] | None:
    data = read_json(folder / "config.json")
    if data.get("model_type") not in _KINDS:
        return None
    config = config_from(data)
    files = weight_files(folder)
    check_layers(config, folder)
    stored = "int4" if "quantization_config" in data else str(config.dtype or "bfloat16").removeprefix("torch.")
    return {
        "kind": f"safetensors, {stored}",
        "num_bytes": sum(file.stat().st_size for file in files),
        "reads_pictures": isinstance(config, Gemma3Config),
        **_memory(config, device, dtype, four_bits=False),
    }


def _memory(config: AnyConfig, device: torch.device, dtype: str, four_bits: bool) -> dict[str, Any]:
    """`needs` and `ways` of a model; `four_bits` are a file's own, which int4 suits better than full precision."""
    kind = model_class(config)
    model: Any = build_on_meta(lambda: kind(config))
    text = config.text_config if isinstance(config, Gemma3Config) else config
    weights = count_weights(model)
    full = parse_dtype(usual_dtype(dtype, device, lambda: weights), config.dtype) or torch.float32
    needs = {
        str(each).removeprefix("torch."): weights * each.itemsize + cache_bytes(text, CONVERSATION_TOKENS, each)
        for each in (torch.bfloat16, torch.float32)
    }
    name, stored = str(full).removeprefix("torch."), config.extra.get("quantization_config")
    if int4_obstacle(device):
        return {"needs": needs, "ways": (name,)}
    int4 = TorchAoConfig(DEFAULT_GROUP_SIZE) if stored is None else TorchAoConfig.from_dict(stored)
    try:
        plan = plan_int4(model, int4)
    except UnsupportedOptionError:  # a model so small that no layer fits
        return {"needs": needs, "ways": (name,)}
    layers = int4_layer_bytes(model, plan)
    others = (bytes_in(model, plan)[1] - layers) // model.dtype.itemsize
    needs[INT4] = others * full.itemsize + layers + cache_bytes(text, CONVERSATION_TOKENS, full)
    if stored is not None:
        return {"needs": needs, "ways": (INT4,)}
    return {"needs": needs, "ways": (INT4, name) if four_bits else (name, INT4)}
