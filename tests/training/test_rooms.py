"""The rooms of training: imports go downward, and of the model only public names are used."""

import ast
from collections.abc import Iterator
from pathlib import Path

from places import REPOSITORY

import gemma3_core

TRAINING = REPOSITORY / "training"
ROOMS = ("drawing", "language", "worlds", "learning", "evaluation")  # each may import from those before it
PICTURE_ARITHMETIC = {"Box", "even_crops", "pan_and_scan_boxes"}  # of gemma3_core's images: where crops lie


def imports() -> Iterator[tuple[Path, str, list[str]]]:
    """Of each file: module and names of every import from training or gemma3_core."""
    for path in sorted(TRAINING.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("training", "gemma3_core")):
                yield path.relative_to(TRAINING), node.module or "", [alias.name for alias in node.names]


def test_a_room_imports_only_from_those_before_it() -> None:
    seen = 0
    for path, module, names in imports():
        if path.parts[0] in ROOMS and module.startswith("training"):
            room = module.split(".")[1] if "." in module else names[0]
            assert ROOMS.index(room) <= ROOMS.index(path.parts[0]), (path, module)
            seen += 1
    assert seen > 100


def test_every_folder_says_what_belongs_in_it() -> None:
    folders = {path.parent for path in TRAINING.rglob("*.py")}
    assert {TRAINING / room for room in ROOMS} <= folders
    for folder in folders:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))), folder


def test_training_knows_public_names_of_the_model_only() -> None:
    for path, module, names in imports():
        if module.startswith("gemma3_core"):
            public = set(gemma3_core.__all__) if module == "gemma3_core" else PICTURE_ARITHMETIC
            assert set(names) <= public, (path, module, names)
