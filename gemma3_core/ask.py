"""`python -m gemma3_core.ask FOLDER --question … --csv FILE` asks one question about each picture of a folder.

Each answer is a row of a CSV file, with how sure the model was; with `--fields`, each field is a column. Rows are
written as they come, so the same command goes on where it was stopped. In the end they are sorted, the doubtful ones
first. A picture that can't be read has a row that says why.
"""

import argparse
import csv
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from gemma3_core.engine import (
    SURE,
    DoneEvent,
    Engine,
    Gemma3Error,
    Request,
    Row,
    SamplingSettings,
    SchemaError,
    TokenEvent,
    Turn,
    ask_in_fields,
    cell,
    cells_of,
    columns_of,
    read_fields,
    row_of,
)
from gemma3_core.engine.engine import AT_ONCE
from gemma3_core.errors import UnsupportedOptionError

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif", ".jp2")
)
"""Files of other names are no pictures."""
SORTS = ("sureness", "name", "none")


@dataclass(frozen=True)
class Question:
    """What is asked about each picture; `fields` as `read_fields` reads them, empty for an answer in text."""

    text: str
    fields: str = ""
    system_prompt: str = ""
    pan_and_scan: bool = False
    max_new_tokens: int | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the CSV file's columns. Raises SchemaError for fields that are called like others."""
        return columns_of(self.fields)


def pictures_in(folder: Path) -> list[str]:
    """The pictures of a folder and the folders in it, by their paths from there, in order. Raises Gemma3Error."""
    if not folder.is_dir():
        raise Gemma3Error(f"{folder} is no folder. Name one with pictures in it.")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not found:
        raise Gemma3Error(f"There is no picture in {folder}. Name a folder with pictures in it.")
    return found


def answers(
    engine: Engine, folder: Path, pictures: Sequence[str], question: Question, at_once: int = AT_ONCE
) -> Iterator[Row]:
    """Yields a row for each picture, as they are answered. Closing the iterator ends the answers in progress.

    Raises SchemaError, UnsupportedOptionError for fields that can't be asked; what is wrong with one picture is in its
    row.
    """
    waiting, running, stop = iter(pictures), set[Future[Row]](), threading.Event()
    with ThreadPoolExecutor(at_once, thread_name_prefix="ask") as threads:
        try:
            while True:
                while len(running) < at_once and (picture := next(waiting, None)) is not None:
                    running.add(threads.submit(_row, engine, folder, picture, question, stop))
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for one in done:
                    yield one.result()
        finally:
            stop.set()


def _row(engine: Engine, folder: Path, picture: str, question: Question, stop: threading.Event) -> Row:
    turn = Turn("user", question.text, (folder / picture,))
    request = Request(
        turns=(turn,),
        system_prompt=question.system_prompt,
        pan_and_scan=question.pan_and_scan,
        max_new_tokens=question.max_new_tokens,
        sampling=SamplingSettings(temperature=0.0),
        visitor=picture,
        confidence=True,
        reuse=False,
    )
    fields = read_fields(question.fields)
    choices, text = [], ""
    try:
        for event in engine.stream(ask_in_fields(request, fields, named=not engine.info.is_demo), stop):
            if isinstance(event, TokenEvent) and event.choice is not None:
                choices.append(event.choice)
            elif isinstance(event, DoneEvent):
                text = event.text
    except (SchemaError, UnsupportedOptionError):
        raise
    except Gemma3Error as error:
        return Row(picture, {}, error=str(error))
    return row_of(picture, text, choices, question.fields)


class Table:
    """The CSV file: rows are added as they come, and what stands there already is kept."""

    def __init__(self, path: Path, question: Question, model: str):
        """Raises Gemma3Error if the file holds answers to another question, or by another model."""
        self._path, self._columns, self._model, self._question = path, question.columns, model, question.text
        self._rows: dict[str, dict[str, str]] = {}
        if path.exists() and path.stat().st_size:
            self._read()
            self._write(list(self._rows.values()))  # without errors, and without half a row

    def __contains__(self, picture: str) -> bool:
        """Whether this picture has an answer."""
        return cell(picture) in self._rows

    def add(self, row: Row) -> None:
        cells = self._rows[cell(row.picture)] = cells_of(row, self._columns, self._model, self._question)
        is_new = not self._path.exists() or not self._path.stat().st_size
        with self._path.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            if is_new:
                writer.writeheader()
            writer.writerow(cells)

    def sort(self, by: str) -> None:
        """Sorts the rows: those without an answer and the least sure ones first, or by the pictures' names."""
        rows = sorted(self._rows.values(), key=lambda row: row["picture"])
        if by == "sureness":
            rows.sort(key=lambda row: float(row["sureness"] or -1))
        self._write(rows)

    def _read(self) -> None:
        with self._path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != self._columns:
                raise Gemma3Error(f"{self._path} has other columns. Name another file, or delete this one.")
            constant = {"model": cell(self._model), "question": cell(self._question)}
            for row in reader:
                if None in row or None in row.values():
                    continue  # half a row, written as the program was killed
                if any(row[name] != value for name, value in constant.items()):
                    raise Gemma3Error(
                        f"{self._path} holds answers to another question, or by another model. Name another file, or "
                        "delete this one."
                    )
                if not row["error"]:
                    self._rows[row["picture"]] = row

    def _write(self, rows: Sequence[dict[str, str]]) -> None:
        beside = self._path.with_name(self._path.name + ".part")
        with beside.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, self._path)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gemma3_core.ask", description="Asks one question about each picture of a folder."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--question", required=True)
    parser.add_argument("--csv", type=Path, required=True, help="the table; one that is there is gone on with")
    parser.add_argument("--fields", default="", help='"color: red, blue; count: number; outdoors: yes/no; note: text"')
    parser.add_argument("--model", help="a folder, a GGUF file or a Hub id (default: the demo model)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--int4", action="store_true")
    parser.add_argument("--pan-and-scan", action="store_true")
    parser.add_argument("--system-prompt", default="")
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="pictures that are asked about at once")
    parser.add_argument("--sort", choices=SORTS, default="sureness", help="of the table in the end")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    question = Question(asked.question, asked.fields, asked.system_prompt, asked.pan_and_scan, asked.max_new_tokens)
    failed = 0
    try:
        pictures = pictures_in(asked.folder)
        question.columns  # a wrong field is said before a model is loaded  # noqa: B018
        engine = Engine.load(asked.model, asked.device, asked.dtype, asked.int4, at_once=asked.at_once)
        table = Table(asked.csv, question, engine.info.name)
        left = [picture for picture in pictures if picture not in table]
        if len(left) < len(pictures):
            print(f"{len(pictures) - len(left):,} of {len(pictures):,} pictures have an answer already.", flush=True)
        for number, row in enumerate(answers(engine, asked.folder, left, question, asked.at_once), 1):
            table.add(row)
            failed += bool(row.error)
            told = ", ".join(f"{name} {cell(value)}" for name, value in row.told.items() if not name.endswith(SURE))
            sure = "" if row.sureness is None else f" ({100 * row.sureness:.0f} %)"
            print(f"{number:,}/{len(left):,}  {row.picture}: {row.error or told + sure}", flush=True)
        if asked.sort != "none":
            table.sort(asked.sort)
    except (Gemma3Error, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nStopped. What was answered is in {asked.csv}; the same command goes on.", file=sys.stderr)
        return 130
    if failed:
        print(f"{failed:,} of {len(pictures):,} pictures have no answer; the column “error” says why.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
