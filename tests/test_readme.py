"""The README's tree and commands against the disk."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
COMMANDS = (f"{SET_UP} && .venv/bin/python app.py", f"{SET_UP} -r tests/requirements.txt && .venv/bin/pytest")
PACKAGES = ("gemma3_core", "components", "training", "benchmarks")


def tree() -> set[str]:
    """Paths named in the README's annotated tree, folders with a slash at the end."""
    block = re.search(r"```\n(app\.py.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    paths, folder = set(), ""
    for line in block[1].splitlines():
        name = line.split()[0] if line.strip() else ""
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
            paths.add(name)
        elif folder and len(line) - len(line.lstrip()) == 2:
            paths.add(folder + name)
    return paths - {""}


def test_everything_the_tree_names_exists() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists()]
    assert missing == []


def test_every_module_is_in_the_tree() -> None:
    on_disk = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).glob("*.py")}
    assert on_disk - tree() == set()


def test_the_two_commands_stand_in_the_readme_and_ci_runs_the_second() -> None:
    text = README.read_text(encoding="utf-8")
    for command in COMMANDS:
        assert command in text
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace(" -q ", " ")
    assert COMMANDS[1] in ci
