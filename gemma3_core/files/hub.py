"""A folder or a Hub id -> a folder with the checkpoint's files on disk; its JSON files."""

import json
from pathlib import Path
from typing import Any

from gemma3_core.errors import CheckpointError

# No pickled weights: they can run code when read. Only what this program reads is fetched.
_SMALL = ["*.json", "*.jinja"]
_WEIGHTS = ["*.safetensors"]
_NOT_ALLOWED = (401, 403)  # HTTP status


def resolve_folder(
    source: str | Path,
    revision: str | None = None,
    token: str | bool | None = None,
    *,
    weights: bool = True,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """An existing folder wins over a Hub id; a Hub id is downloaded (or found in the cache).

    Without `weights` only the small files are fetched: configs, tokenizer, chat template. `cache_dir` is where
    downloads are kept, `local_files_only` fetches nothing, `force_download` fetches again. Raises CheckpointError
    where there is neither folder nor id, with what to do.
    """
    if not isinstance(source, str | Path) or not str(source).strip():
        raise CheckpointError(f"A checkpoint is a folder or a Hub id such as google/gemma-3-4b-it, got {source!r}.")
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{source} is a file; give the folder that holds config.json and the safetensors files.")
    how = {"cache_dir": cache_dir, "local_files_only": local_files_only, "force_download": force_download}
    wanted = [*_SMALL, *(_WEIGHTS if weights else [])]
    return _download(str(source), revision, token, wanted, {name: value for name, value in how.items() if value})


def _download(
    repo_id: str, revision: str | None, token: str | bool | None, wanted: list[str], how: dict[str, Any]
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=wanted, **how))
    except HFValidationError:
        raise CheckpointError(
            f"{repo_id} is neither a folder on this machine nor a Hub id of the form owner/name."
        ) from None
    except GatedRepoError:
        raise CheckpointError(
            f"{repo_id} asks for a licence: accept it on the model's page of the Hub, then set HF_TOKEN to your token."
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"{repo_id} is not on this machine and could not be downloaded. "
            "Check the network and local_files_only, or give a folder."
        ) from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{repo_id} has no revision {revision!r} on the Hub.") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"There is no folder and no public Hub repository named {repo_id}. Check the spelling, or set HF_TOKEN."
        ) from None
    except Exception as error:  # noqa: BLE001  network errors belong to the HTTP library that the Hub's client picks
        if isinstance(error, HfHubHTTPError) and getattr(error.response, "status_code", None) in _NOT_ALLOWED:
            raise CheckpointError(
                f"The Hub does not let you read {repo_id} ({error.response.status_code}): the token is wrong, has "
                "expired, or lacks the right. Set HF_TOKEN to one that may read it, or take it away for public models."
            ) from None
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
        raise CheckpointError(
            f"{path.name} is missing from the checkpoint folder. Download it again, or give the folder that holds it."
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} can't be read ({type(error).__name__}). Download it again.") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object, got {type(data).__name__}. Download it again.")
    return data
