"""tokenizer.json and the chat template of a checkpoint's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from gemma3_core.errors import CheckpointError
from gemma3_core.files.hub import read_json


def read_backend(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointError("The checkpoint has no tokenizer.json; download it, or name another folder.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception:  # noqa: BLE001  the library raises bare Exception for each kind of damage
        raise CheckpointError("tokenizer.json is damaged; download it again.") from None


def read_chat_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else chat_template.json, else the config's key: a text or named texts.

    Raises CheckpointError for what is neither, and for a file that can't be read.
    """
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        try:
            return jinja.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{jinja.name} can't be read ({type(error).__name__}). Download it again.") from None
    template = (read_json(folder / "chat_template.json", optional=True) or config).get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, Mapping) and entry.get("name") == "default"]
        template = named[-1].get("template") if named else None
    if not isinstance(template, str | None):
        raise CheckpointError(f"The chat_template is of type {type(template).__name__}, not a text. Download it again.")
    return template
