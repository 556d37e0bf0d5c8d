"""The README's tree and commands against the disk; the links of the README and of docs/*.md."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
COMMANDS = (f"{SET_UP} && .venv/bin/python app.py", f"{SET_UP} -r tests/requirements.txt && .venv/bin/pytest")


def tree() -> Iterator[str]:
    """Paths named in the README's annotated tree, folders with a slash at the end.

    A line names one path or several, up to the first two spaces in a row; two spaces before it put it in a folder.
    """
    block = re.search(r"```\n(app\.py.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    folders: list[str] = []
    for line in block[1].splitlines():
        del folders[(len(line) - len(line.lstrip())) // 2 :]
        names = re.split(r"\s{2,}", line.strip())[0].split()
        yield from ("".join([*folders, name]) for name in names)
        if names[-1].endswith("/"):
            folders.append(names[-1])


def test_everything_the_tree_names_exists() -> None:
    missing = [
        path for path in tree() if not ((ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file())
    ]
    assert missing == []


def test_the_tree_stops_one_level_below_the_top() -> None:
    assert [path for path in tree() if path.rstrip("/").count("/") > 1] == []


def test_every_package_and_every_module_beside_them_is_in_the_tree() -> None:
    packages = {
        f"{folder}/{path.parent.name}/"
        for folder in ("gemma3_core", "components", "training")
        for path in (ROOT / folder).glob("*/__init__.py")
    }
    modules = {
        f"{folder}/{path.name}"
        for folder in ("gemma3_core", "components")
        for path in (ROOT / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    assert (packages | modules) - set(tree()) == set()


def test_the_two_commands_stand_in_the_readme_and_ci_runs_the_second() -> None:
    text = README.read_text(encoding="utf-8")
    for command in COMMANDS:
        assert command in text
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" -q ", " ")
    assert COMMANDS[1] in ci


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if not link.startswith("https://"):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_the_readme_leads_to_every_document() -> None:
    links = re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8"))
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(links)
