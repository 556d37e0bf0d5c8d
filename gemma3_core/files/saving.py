"""Where save_pretrained writes: its options, the folder, texts and JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gemma3_core.errors import CheckpointError, UnsupportedOptionError

SAVING: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "push_to_hub": (False,),
        "safe_serialization": (True,),
        "is_main_process": (True,),
        "save_peft_format": (True,),
        "save_original_format": (True,),
        "distributed_checkpoint": (False,),
        "legacy_format": (False,),
        "save_jinja_files": (True,),
    }
)
"""Options of transformers' save_pretrained, of any class, that are taken at values that change nothing."""


def refuse_options(
    where: str, options: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
) -> None:
    """UnsupportedOptionError that names every option which is neither None nor at a value that changes nothing."""
    asked = [
        name
        for name, value in options.items()
        if value is not None and not (isinstance(value, bool | str) and value in neutral.get(name, ()))
    ]
    if asked:
        raise UnsupportedOptionError(f"{where} does not support {', '.join(sorted(asked))}. Leave it out.")


def folder_to_save_in(save_directory: str | Path, options: Mapping[str, Any]) -> Path:
    """The folder, made where it is missing. CheckpointError where there can be none, UnsupportedOptionError."""
    if options.get("push_to_hub"):
        raise UnsupportedOptionError("push_to_hub is not supported: save, and upload the folder with huggingface_hub.")
    refuse_options("save_pretrained", options, SAVING)
    if not isinstance(save_directory, str | Path) or not str(save_directory).strip():
        raise CheckpointError(f"save_pretrained needs a folder to write to, got {save_directory!r}.")
    folder = Path(save_directory)
    try:
        if folder.exists() and not folder.is_dir():
            raise CheckpointError(f"{folder.name} is a file; give a folder to write to.")
        folder.mkdir(parents=True, exist_ok=True)
    except CheckpointError:
        raise
    except (OSError, ValueError) as error:
        raise not_written(folder, error) from None
    return folder


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON object, keys in order, so that the same content is the same file. Raises CheckpointError."""
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text in UTF-8. CheckpointError where the system does not let it."""
    try:
        path.write_text(text, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: Exception) -> CheckpointError:
    """What to tell of a file or folder that could not be written; its name alone, not where it lies."""
    reason = getattr(error, "strerror", None) or type(error).__name__
    return CheckpointError(
        f"{path.name} could not be written ({reason}). Check the folder's name and permissions, and the space on its "
        "disk."
    )
