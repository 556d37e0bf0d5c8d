"""Which map of an answer is faithful: ours beside the published methods.

    python -m benchmarks.faithfulness
    python -m benchmarks.faithfulness --pictures 30 --seconds 2700
    python -m benchmarks.faithfulness --model FOLDER --folder PICTURES --question "What is in this picture?"

The pictures are held-out ones of the demo model's worlds, asked for the color of one object; the world with the fewest
pictures so far comes next. Wrong answers are left out, and words that do not need the picture: there is nothing to
explain. Nearly all time goes into the curves, so the floor, the slow methods and those that are never near the best are
scored for a part of the pictures only; the others are shown for the same part too.

Runs in parts: each picture's record is added to benchmarks/results/faithfulness.jsonl (or `--records`), and a new start
goes on behind it; `--seconds` ends a part, and several processes can share the work by `--worlds`. With a `--model` or
`--folder` of one's own the file is named for it, and records of another checkpoint, folder, question or seed do not
count. Then writes the means with confidence intervals to a .json file beside it (or `--json`), and prints the tables.
The seconds are medians. OMP_NUM_THREADS=1 helps on a machine that is busy.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faithfulness.cases import SEED, WORLDS_WITH_OBJECTS, Case, cases_of_folder, drawn_cases
from benchmarks.faithfulness.methods import EVERY_PICTURE, METHODS
from benchmarks.faithfulness.records import about_of, add_record, machines_of, records_about, usual_file
from benchmarks.faithfulness.report import AT_ONCE, summary, tables
from benchmarks.faithfulness.sanity import correlations
from benchmarks.faithfulness.scores import reached_at_once, scores_of
from benchmarks.faithfulness.subject import Subject, asked, loaded
from benchmarks.timing import machine
from gemma3_core.engine import Engine
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.processor import Gemma3Processor

LEAST_FALL = 0.3
"""How much of the word's probability must be lost with the picture hidden."""

_DRAWN_FOR_ONE = 20
"""Most pictures that are drawn for each that is wanted."""


def record(
    engine: Engine,
    model: Gemma3ForConditionalGeneration,
    processor: Gemma3Processor,
    case: Case,
    sanity: bool,
    names: Collection[str] = tuple(METHODS),
) -> dict[str, Any]:
    """Scores and seconds of the methods `names` for one case, or why it is left out."""
    answered, texts = asked(engine, case)
    subject = Subject(model, processor, case, answered.done.token_ids)
    fall = subject.choose(texts)
    made: dict[str, Any] = {
        "case": case.name,
        "world": case.world,
        "answer": answered.done.text,
        "fall": round(fall, 4),
    }
    if case.word is not None and case.word not in answered.done.text:
        return made | {"left_out": "wrong answer"}
    if fall < LEAST_FALL:
        return made | {"left_out": "the word does not need the picture"}
    at_once = {key: round(value, 4) for key, value in reached_at_once(subject).items()}
    methods = {AT_ONCE: at_once}
    for name in names:
        method = METHODS[name]
        start = time.perf_counter()
        heat = method(subject)
        seconds = time.perf_counter() - start
        methods[name] = {key: round(value, 4) for key, value in scores_of(subject, np.asarray(heat)).items()}
        methods[name]["seconds"] = round(seconds, 4)
    made["methods"] = methods
    if sanity:
        made["sanity"] = {name: [round(value, 3) for value in values] for name, values in correlations(subject).items()}
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100, help="of each world, left out ones not counted")
    parser.add_argument("--model", type=Path, help="a checkpoint folder; the demo model if none is given")
    parser.add_argument("--folder", type=Path, help="a folder of pictures, instead of the demo model's worlds")
    parser.add_argument("--question", default="What is in this picture?", help="asked of each picture of the folder")
    parser.add_argument("--worlds", nargs="+", choices=WORLDS_WITH_OBJECTS, default=WORLDS_WITH_OBJECTS)
    parser.add_argument("--seed", type=int, default=SEED, help="of the demo model's worlds")
    parser.add_argument("--all-methods", type=int, default=5, metavar="N", help="for every N-th picture of a world")
    parser.add_argument("--sanity", type=int, default=3, help="pictures of the sanity check")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="ends after this time; start again to go on"
    )
    parser.add_argument("--records", type=Path, help="a file to go on with")
    parser.add_argument("--json", type=Path, help="the file of the means")
    arguments = parser.parse_args()
    start = time.monotonic()
    about = about_of(arguments.model, arguments.folder, arguments.question, arguments.seed)
    records = arguments.records or usual_file(arguments.model, arguments.folder, arguments.seed)
    done = records_about(records, about)
    known, checked = {one["case"] for one in done}, sum("sanity" in one for one in done)
    engine, model, processor = loaded(arguments.model)
    worlds, kept = _worlds(arguments), Counter(one["world"] for one in done if "methods" in one)
    while worlds and time.monotonic() - start < arguments.seconds:
        world = min(worlds, key=lambda name: kept[name])
        case = next(worlds[world], None) if kept[world] < arguments.pictures else None
        if case is None:
            del worlds[world]
            continue
        if case.name in known:
            continue
        every = kept[world] % arguments.all_methods == 0
        names = METHODS if every else EVERY_PICTURE
        made = record(engine, model, processor, case, every and checked < arguments.sanity, names)
        checked += "sanity" in made
        kept[world] += "methods" in made
        add_record(records, {**made, "about": about, "machine": machine()})
    done = records_about(records, about)  # with those of other processes
    figures = {"about": about, "machines": machines_of(done), **summary(done)}
    means = arguments.json or records.with_suffix(".json")
    means.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(tables(figures))


def _worlds(arguments: argparse.Namespace) -> dict[str, Iterator[Case]]:
    """The cases of each world in their order, more than will be kept; or those of the folder."""
    if arguments.folder is not None:
        return {"pictures": cases_of_folder(arguments.folder, arguments.question)}
    drawn = _DRAWN_FOR_ONE * arguments.pictures
    return {world: drawn_cases(world, drawn, arguments.seed) for world in arguments.worlds}


if __name__ == "__main__":
    main()
