"""What was measured so far: a record for each picture, in a file to which several runs and processes add.

Each record names what it is `about` and the machine, so that figures of one checkpoint, or of one folder of pictures,
never pass for those of another.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.faithfulness.cases import SEED
from gemma3_core.engine import DEMO_MODEL
from gemma3_core.files.hub import revision_of

RESULTS = Path(__file__).resolve().parents[1] / "results"


def about_of(model: Path | None, folder: Path | None, question: str, seed: int) -> dict[str, Any]:
    """What records have in common that are summed up together: the checkpoint (None is the demo model), and where the
    pictures and questions come from."""
    checkpoint = {"model": revision_of(model or DEMO_MODEL)}
    if folder is None:
        return {**checkpoint, "seed": seed}
    return {**checkpoint, "folder": str(folder.resolve()), "question": question}


def usual_file(model: Path | None, folder: Path | None, seed: int) -> Path:
    """The records' file where none is named; only the demo model's own worlds are in the repository's."""
    named = [path.resolve().name for path in (model, folder) if path is not None]
    named += [f"seed_{seed}"] if folder is None and seed != SEED else []
    return RESULTS / f"{'_'.join(['faithfulness', *named])}.jsonl"


def records_about(path: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of a file that are about this; there may be none, and no file."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if record["about"] == about]


def add_record(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def machines_of(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The machines that the records were made on, each with the number of its records."""
    counts = Counter(json.dumps(record["machine"]) for record in records)
    return [{**json.loads(one), "records": count} for one, count in counts.items()]
