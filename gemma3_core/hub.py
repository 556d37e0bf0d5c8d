"""A folder or a Hub id -> a folder with the checkpoint's files on disk; its JSON files in and out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma3_core.errors import CheckpointError

# No pickled weights: they can run code when read. Only what this program reads is fetched.
_WANTED = ["*.json", "*.safetensors", "*.jinja"]


def resolve_folder(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """An existing folder wins over a Hub id; a Hub id is downloaded (or found in the cache).

    Raises CheckpointError where there is neither, with what to do.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{source} is a file; give the folder that holds config.json and the safetensors files.")
    return _download(str(source), revision, token)


def _download(repo_id: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=_WANTED))
    except HFValidationError:
        raise CheckpointError(
            f"{repo_id} is neither a folder on this machine nor a Hub id of the form owner/name."
        ) from None
    except GatedRepoError:
        raise CheckpointError(
            f"{repo_id} asks for a licence: accept it on the model's page of the Hub, then set HF_TOKEN to your token."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repo_id} has no revision {revision!r} on the Hub.") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"There is no folder and no public Hub repository named {repo_id}. Check the spelling, or set HF_TOKEN."
        ) from None
    except Exception as error:  # noqa: BLE001  network errors belong to the HTTP library that the Hub's client picks
        raise CheckpointError(
            f"{repo_id} could not be downloaded ({type(error).__name__}). Check the network, or give a folder."
        ) from None


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint; empty where an optional file is missing.

    Raises CheckpointError that names the file, not the folder it lies in.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if optional:
            return {}
        raise CheckpointError(f"{path.name} is missing from the checkpoint folder. Download it again.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} can't be read ({type(error).__name__}). Download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, got {type(data).__name__}. Download it again.")
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON object, keys in order, so that the same content is the same file."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
