"""What the Hub reads when this repository is pushed as a Space: the README's front matter, requirements, file sizes."""

import re
import subprocess

import pytest
from huggingface_hub import SpaceCard
from packaging.requirements import Requirement
from packaging.version import Version
from places import REPOSITORY

MOST_BYTES = 9_000_000
"""The Hub refuses files over 10 MiB that are not in its large-file storage."""
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
KNOWN = {
    "title", "emoji", "colorFrom", "colorTo", "sdk", "sdk_version", "python_version", "app_file", "pinned", "license",
    "short_description", "tags", "models", "thumbnail", "preload_from_hub", "suggested_hardware",
    "startup_duration_timeout", "hf_oauth", "disable_embedding",
}  # fmt: skip


@pytest.fixture(scope="module")
def card() -> dict:
    return SpaceCard.load(REPOSITORY / "README.md").data.to_dict()


@pytest.fixture(scope="module")
def required() -> dict[str, Requirement]:
    lines = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in found}


def test_the_front_matter_says_what_a_space_needs(card):
    assert card.keys() <= KNOWN
    assert {"title", "emoji", "license"} <= card.keys()
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py")
    assert (REPOSITORY / card["app_file"]).is_file()
    assert {card["colorFrom"], card["colorTo"]} <= COLORS
    assert len(card["short_description"]) <= 60
    assert re.fullmatch(r"\d+[mh]", card["startup_duration_timeout"])


def test_gradio_is_the_one_that_the_tests_run_on(card, required):
    assert str(required["gradio"].specifier) == f"=={card['sdk_version']}"
    mcp = Requirement((REPOSITORY / "requirements" / "mcp.txt").read_text(encoding="utf-8").splitlines()[-1])
    assert mcp.specifier == required["gradio"].specifier


def test_python_and_torch_are_what_zero_gpu_has(card, required):
    assert card["python_version"] == "3.12"  # text: as a number, 3.10 would become 3.1
    for version in ("2.8.0", "2.9.1", "2.10.0", "2.11.0", "2.13.0"):
        assert Version(version) in required["torch"].specifier, version


def test_no_file_needs_large_file_storage():
    names = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True, text=True).stdout
    files = [REPOSITORY / name for name in names.split("\0") if name]
    assert len(files) > 300
    assert [file.name for file in files if file.is_file() and file.stat().st_size > MOST_BYTES] == []
