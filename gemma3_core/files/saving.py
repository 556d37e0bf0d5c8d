"""Writing checkpoints: the options of save_pretrained, the folder, text and JSON files."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gemma3_core.errors import CheckpointError, UnsupportedOptionError

SAVING: Mapping[str, tuple[Any, ...]] = {
    "push_to_hub": (False,),
    "safe_serialization": (True,),
    "is_main_process": (True,),
    "save_peft_format": (True,),
    "save_original_format": (True,),
    "distributed_checkpoint": (False,),
    "legacy_format": (False,),
    "save_jinja_files": (True,),
}
"""Options of transformers' save_pretrained, with the values that change nothing and so are accepted."""


def refuse_options(
    where: str, options: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
) -> None:
    """Raises UnsupportedOptionError that names every option with a value other than None and its `neutral` ones."""
    asked = [
        name
        for name, value in options.items()
        if value is not None and not (isinstance(value, bool | str) and value in neutral.get(name, ()))
    ]
    if asked:
        raise UnsupportedOptionError(f"{where} does not support {', '.join(sorted(asked))}. Leave it out.")


def folder_to_save_in(save_directory: str | Path, options: Mapping[str, Any]) -> Path:
    """Creates the folder where it is missing. Raises CheckpointError, UnsupportedOptionError."""
    if options.get("push_to_hub"):
        raise UnsupportedOptionError("push_to_hub is not supported: save, and upload the folder with huggingface_hub.")
    refuse_options("save_pretrained", options, SAVING)
    if not isinstance(save_directory, str | Path) or not str(save_directory).strip():
        raise CheckpointError(f"save_pretrained needs a folder to write to, got {save_directory!r}.")
    folder = Path(save_directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise CheckpointError(f"{folder.name} is a file; give a folder to write to.") from None
    except (OSError, ValueError) as error:
        raise not_written(folder, error) from None
    return folder


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON object, sorted by key so that equal content gives equal files. Raises CheckpointError."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes text in UTF-8. Raises CheckpointError."""
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: Exception) -> CheckpointError:
    """The error for a file or folder that could not be written; it gives the name without the path."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    advice = "Check the folder's name and permissions, and the free disk space."
    return CheckpointError(f"{path.name} could not be written ({reason}). {advice}")
