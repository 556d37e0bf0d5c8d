"""A folder or a Hub id -> a folder with the checkpoint's files on disk; its JSON files."""

import hashlib
import json
import re
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypedDict, Unpack

from gemma3_core.errors import CheckpointError, StoppedError, require_known
from gemma3_core.files.download import NO_SPACE, Watch, fetch
from gemma3_core.gguf.checkpoint import find_checkpoint, folder_of, holds_models, projector_order, weights_of
from gemma3_core.gguf.header import is_gguf

# Only files that this program reads. Pickled weights are not among them: unpickling can run code.
_SMALL_FILES = ["*.json", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors"]
_IN_FOLDERS = ["*/*"]
"""What is left out beside a pattern that a file in any folder fits: steps of a training, as checkpoint-500/…"""
_ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors"]
_SAMPLE = 64 * 1024  # bytes
_GGUF_FILES = "*.gguf"
_PART, _LATER_PART = re.compile(r"-\d{5}-of-\d{5}\."), re.compile(r"-(?!00001)\d{5}-of-\d{5}\.")
UNGATED = "ggml-org/gemma-3-4b-it-GGUF"
"""A copy of Gemma 3 4B that anybody may download, by the makers of llama.cpp. Gemma's terms apply to it too."""
PREFERRED_GGUF = ("Q4_0", "Q4_K_M", "Q8_0", "")
"""Which file of a repository is taken if none is named: Q4_0 is our int4, without any loss."""


class HubOptions(TypedDict, total=False):
    """How every from_pretrained fetches files: the options of huggingface_hub.snapshot_download."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool
    mmproj: str | Path | None
    """The file with a GGUF model's vision tower, if it does not lie beside the model."""


def pop_hub_options(options: dict[str, Any]) -> HubOptions:
    """Removes the options of the Hub from those of a from_pretrained and returns them; trust_remote_code=False goes
    too, because no code is ever taken from a checkpoint."""
    if not options.get("trust_remote_code"):
        options.pop("trust_remote_code", None)
    hub: Any = {name: options.pop(name) for name in HubOptions.__annotations__ if name in options}
    return hub


def resolve_folder(
    source: str | Path, *, weights: bool = True, watch: Watch | None = None, **hub: Unpack[HubOptions]
) -> Path:
    """An existing folder or GGUF file wins over a Hub id; a Hub id is downloaded (or found in the cache).

    A download that broke off continues where it was; `watch` is told how far it is, and can stop it.

    A GGUF file, a folder that holds one, and `OWNER/REPO:FILE` for one on the Hub become a folder as `gguf.checkpoint`
    makes it. Without `weights` only the small files are fetched: configs, tokenizer, chat template. Raises
    CheckpointError where there is neither a folder nor a repository, StoppedError, UnsupportedOptionError for options
    other than the Hub's.
    """
    require_known("The Hub", hub, HubOptions.__annotations__)
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError(f"A checkpoint is a folder or a Hub id such as google/gemma-3-4b-it, got {source!r}.")
    given: Any = {"revision": None} | {name: value for name, value in hub.items() if value is not None}
    mmproj = _existing(given.pop("mmproj", None))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder_of(find_checkpoint(folder, mmproj)) if holds_models(folder) else _without_mmproj(folder, mmproj)
    if folder.exists():
        if is_gguf(folder):
            return folder_of(find_checkpoint(folder, mmproj))
        raise CheckpointError(
            f"{folder.name} is not a GGUF file. Give one, or the folder that holds config.json and the safetensors "
            "files."
        )
    return _from_hub(str(source), given, weights, mmproj, watch)


def resolve_adapter(source: str | Path, **hub: Unpack[HubOptions]) -> Path:
    """As `resolve_folder`, of an adapter: only its config and its weights are downloaded."""
    require_known("The Hub", hub, set(HubOptions.__annotations__) - {"mmproj"})
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError(f"An adapter is a folder or a Hub id such as owner/name, got {source!r}.")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{folder.name} is a file. Give the adapter's folder, which holds {_ADAPTER_FILES[0]}.")
    from huggingface_hub import snapshot_download

    given: Any = {name: value for name, value in hub.items() if value is not None}
    try:
        return Path(snapshot_download(str(source), allow_patterns=_ADAPTER_FILES, **given))
    except Exception as error:  # noqa: BLE001  network errors belong to the HTTP library that the Hub's client picks
        raise CheckpointError(_why_not_downloaded(error, str(source), given.get("revision"))) from None


def _existing(mmproj: str | Path | None) -> Path | None:
    path = None if mmproj is None else Path(mmproj).expanduser()
    if path is not None and not path.is_file():
        raise CheckpointError(f"There is no file {path.name} to read pictures with. Check the mmproj file's place.")
    return path


def _without_mmproj(folder: Path, mmproj: Path | None) -> Path:
    if mmproj is not None:
        raise CheckpointError(f"{mmproj.name} belongs to a GGUF file, but {folder.name} is a checkpoint without one.")
    return folder


def _from_hub(
    source: str, given: dict[str, Any], weights: bool, mmproj: Path | None, watch: Watch | None = None
) -> Path:
    """A repository's snapshot, or the folder that stands for its GGUF file."""

    repo_id, _, asked = source.partition(":") if "/" in source.partition(":")[0] else (source, "", "")
    patterns = [*_SMALL_FILES, *_WEIGHT_FILES] if weights else _SMALL_FILES
    try:
        folder = None if asked else _snapshot(repo_id, patterns, given, watch, _IN_FOLDERS)
        # Some repositories of GGUF files have a config.json too, but no tokenizer.
        whole = _WEIGHT_FILES if weights else [*_WEIGHT_FILES, "tokenizer.json"]
        if folder is not None and any(path for pattern in whole for path in folder.glob(pattern)):
            return _without_mmproj(folder, mmproj)
        partly = folder is not None and not weights and any(folder.glob("*.json"))
        names = _names(repo_id, given, needed=not partly)
        if folder is not None and (not any(map(_is_gguf_name, names)) or any(map(_is_of_checkpoint, names))):
            return folder
        names = sorted(filter(_is_gguf_name, names))
        model = _chosen_gguf(repo_id, names, asked)
        projectors = sorted(filter(_is_mmproj, names), key=lambda name: projector_order(model, name))
        snapshot = _snapshot(repo_id, [*_parts_of(model, names), *projectors[:1]], given, watch)
    except (CheckpointError, StoppedError):
        raise
    except Exception as error:  # noqa: BLE001  network errors belong to the HTTP library that the Hub's client picks
        raise CheckpointError(_why_not_downloaded(error, repo_id, given.get("revision"))) from None
    if mmproj is None and projectors:
        mmproj = snapshot / projectors[0]
    return folder_of(find_checkpoint(snapshot / model, mmproj))


def _snapshot(
    repo_id: str, patterns: list[str], given: dict[str, Any], watch: Watch | None, ignored: Sequence[str] = ()
) -> Path:
    """The repository's folder in the Hub's cache, with the files that fit the patterns, but for those ignored."""
    from huggingface_hub import snapshot_download

    fetch(repo_id, patterns, given, watch, ignored)
    return Path(snapshot_download(repo_id, allow_patterns=patterns, ignore_patterns=list(ignored), **given))


def _is_gguf_name(name: str) -> bool:
    return fnmatch(name, _GGUF_FILES)


def _is_of_checkpoint(name: str) -> bool:
    """Whether a repository with this file is loaded by its safetensors files."""
    return "/" not in name and any(fnmatch(name, pattern) for pattern in _WEIGHT_FILES)


def _names(repo_id: str, given: dict[str, Any], needed: bool) -> list[str]:
    """The files of a repository; without a network, the GGUF files in the Hub's cache, and if there are none and one is
    `needed`, what the Hub's client raises."""
    from huggingface_hub import HfApi, snapshot_download

    access = {name: given[name] for name in ("revision", "token") if name in given}
    try:
        if given.get("local_files_only"):
            raise ConnectionError
        names = HfApi().list_repo_files(repo_id, **access)
    except Exception:
        cached = snapshot_download(repo_id, allow_patterns=[_GGUF_FILES], **given | {"local_files_only": True})
        names = [path.relative_to(cached).as_posix() for path in Path(cached).rglob(_GGUF_FILES)]
        if not names and needed:
            raise
    return names


def _chosen_gguf(repo_id: str, names: Sequence[str], asked: str) -> str:
    """The file that is asked for, by its name or by a part such as Q4_K_M, or else the first of PREFERRED_GGUF."""
    models = [name for name in names if not _is_mmproj(name) and not _LATER_PART.search(name)]
    if asked in models:
        return asked
    for wanted in [asked] if asked else PREFERRED_GGUF:
        if fitting := [name for name in models if wanted.lower() in name.lower()]:
            return fitting[0]
    what = f"file {asked}" if asked else "model file"
    onward = f"Name one of these after a colon: {', '.join(models[:12])}." if models else "Choose another repository."
    raise CheckpointError(f"{repo_id} has no GGUF {what}. {onward}")


def _parts_of(model: str, names: Sequence[str]) -> list[str]:
    """The file and the further parts of a split one."""
    stem, split, _ = model.partition("-00001-of-")
    return [name for name in names if name.startswith(f"{stem}-") and _PART.search(name)] if split else [model]


def _is_mmproj(name: str) -> bool:
    return "mmproj" in name.lower()


def hub_id_of(folder: Path) -> str:
    """The Hub id of a snapshot in the Hub's cache; empty for any other folder."""
    kind, _, name = folder.parent.parent.name.partition("--")
    return name.replace("--", "/", 1) if folder.parent.name == "snapshots" and kind == "models" else ""


def revision_of(folder: Path) -> str:
    """What tells two checkpoints of one name apart: the commit of a snapshot of the Hub, or else 12 hexadecimal digits
    that follow from the names, sizes and contents of the folder's files. Of each file it reads samples, 192 KiB."""
    if folder.parent.name == "snapshots":
        return folder.name
    digest = hashlib.sha256()
    files = sorted(path for pattern in (*_SMALL_FILES, *_WEIGHT_FILES) for path in folder.glob(pattern))
    for file in weights_of(folder) or files:  # the folder of a GGUF file names paths, which say nothing of the weights
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with open(file, "rb") as content:
            for place in (0, size // 2, size - _SAMPLE):
                content.seek(max(0, place))
                digest.update(content.read(_SAMPLE))
    return digest.hexdigest()[:12]


def _why_not_downloaded(error: Exception, repo_id: str, revision: str | None) -> str:
    """Subclasses come before their bases."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return f"The disk is full, so {repo_id} could not be downloaded. Free some space, and start again."
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id} is neither a folder on this machine nor a Hub id of the form owner/name."
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo_id} is gated: accept its license at huggingface.co/{repo_id}, then run `hf auth login` or set "
            f"HF_TOKEN. {UNGATED} is a copy of Gemma 3 4B that needs neither."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        advice = "Check the network and local_files_only, or give a folder."
        return f"{repo_id} is not on this machine and could not be downloaded. {advice}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r} on the Hub."
    if isinstance(error, errors.RepositoryNotFoundError):
        advice = "Check the spelling, or set HF_TOKEN."
        return f"There is no folder and no public Hub repository named {repo_id}. {advice}"
    if status in (401, 403):
        advice = "The token is wrong, has expired or lacks the permission: set HF_TOKEN to one that has it."
        return f"The Hub does not let you read {repo_id} ({status}). {advice}"
    return f"{repo_id} could not be downloaded ({type(error).__name__}). Check the network, or give a folder."


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; empty where an optional file is missing.

    Raises CheckpointError that names the file but not its folder.
    """
    if optional and not path.exists():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        advice = "Download it again, or give the folder that holds it."
        raise CheckpointError(f"{path.name} is missing from the checkpoint folder. {advice}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name} can't be read ({type(error).__name__}). Download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, got {type(data).__name__}. Download it again.")
    return data
