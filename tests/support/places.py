"""Folders of the repository."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
ASSETS = REPOSITORY / "assets"
DEMO_MODEL = ASSETS / "demo_model"
EXAMPLES = ASSETS / "examples"
