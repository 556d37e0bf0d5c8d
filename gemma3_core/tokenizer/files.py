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
    """chat_template.jinja, else chat_template.json, else the config's key: a text or named texts."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    template = (read_json(folder / "chat_template.json", optional=True) or config).get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
