"""A folder or a Hub id -> a folder with the checkpoint's files on disk; its JSON files."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict, Unpack

from gemma3_core.errors import CheckpointError, require_known

# Only files that this program reads. Pickled weights are not among them: unpickling can run code.
_SMALL_FILES = ["*.json", "*.jinja"]
_WEIGHT_FILES = ["*.safetensors"]
_SAMPLE = 64 * 1024  # bytes


class HubOptions(TypedDict, total=False):
    """How every from_pretrained fetches files: the options of huggingface_hub.snapshot_download."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool
    force_download: bool


def pop_hub_options(options: dict[str, Any]) -> HubOptions:
    """Removes the options of the Hub from those of a from_pretrained and returns them; trust_remote_code=False goes
    too, because no code is ever taken from a checkpoint."""
    if not options.get("trust_remote_code"):
        options.pop("trust_remote_code", None)
    hub: Any = {name: options.pop(name) for name in HubOptions.__annotations__ if name in options}
    return hub


def resolve_folder(source: str | Path, *, weights: bool = True, **hub: Unpack[HubOptions]) -> Path:
    """An existing folder wins over a Hub id; a Hub id is downloaded (or found in the cache).

    Without `weights` only the small files are fetched: configs, tokenizer, chat template. Raises CheckpointError
    where there is neither a folder nor a repository, UnsupportedOptionError for options other than the Hub's.
    """
    require_known("The Hub", hub, HubOptions.__annotations__)
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError(f"A checkpoint is a folder or a Hub id such as google/gemma-3-4b-it, got {source!r}.")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{source} is a file; give the folder that holds config.json and the safetensors files.")
    from huggingface_hub import snapshot_download

    given: Any = {"revision": None} | {name: value for name, value in hub.items() if value is not None}
    patterns = [*_SMALL_FILES, *_WEIGHT_FILES] if weights else _SMALL_FILES
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns, **given))
    except Exception as error:  # noqa: BLE001  network errors belong to the HTTP library that the Hub's client picks
        raise CheckpointError(_why_not_downloaded(error, str(source), hub.get("revision"))) from None


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
    for file in sorted(path for pattern in (*_SMALL_FILES, *_WEIGHT_FILES) for path in folder.glob(pattern)):
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
    if isinstance(error, errors.HFValidationError):
        return f"{repo_id} is neither a folder on this machine nor a Hub id of the form owner/name."
    if isinstance(error, errors.GatedRepoError):
        advice = "Accept its licence on the model's page of the Hub, then set HF_TOKEN to your token."
        return f"{repo_id} is gated. {advice}"
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
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} can't be read ({type(error).__name__}). Download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, got {type(data).__name__}. Download it again.")
    return data
