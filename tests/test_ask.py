"""One question about each picture of a folder: rows as they come, going on, sorting, and broken pictures."""

import csv
import shutil
import threading

import pytest
from places import EXAMPLES
from running_app import require_demo_model

from gemma3_core import ask
from gemma3_core.ask import Question, Row, Table, answers, main, pictures_in
from gemma3_core.engine import DoneEvent, Engine, Gemma3Error, Request, SchemaError, Turn

STAR = "What color is the star?"
COLORS = "color: red, yellow, blue, green"


@pytest.fixture(scope="module")
def engine() -> Engine:
    require_demo_model()
    return Engine.load(device="cpu")


@pytest.fixture
def folder(tmp_path, engine, monkeypatch):
    """Two pictures with a star, one of them in a folder of its own, a broken one, and a text."""
    monkeypatch.setattr(ask.Engine, "load", lambda *_, **__: engine)
    pictures = tmp_path / "pictures"
    (pictures / "more").mkdir(parents=True)
    shutil.copy(EXAMPLES / "night.png", pictures / "night.png")
    shutil.copy(EXAMPLES / "hearts.png", pictures / "more" / "Hearts.PNG")
    (pictures / "broken.jpg").write_bytes(b"no picture")
    (pictures / "notes.txt").write_text("no picture either")
    return pictures


def rows_of(path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_each_picture_has_a_row_the_doubtful_first_and_a_broken_one_says_so(folder, tmp_path, capsys):
    table = tmp_path / "out.csv"
    assert main([str(folder), "--question", STAR, "--csv", str(table)]) == 0
    broken, *rows = rows_of(table)
    assert (broken["picture"], broken["answer"], broken["sureness"]) == ("broken.jpg", "", "")
    assert "no readable picture" in broken["error"] or "picture" in broken["error"]
    assert {row["picture"]: row["answer"] for row in rows} == {
        "more/Hearts.PNG": "The star is yellow.",
        "night.png": "The star is yellow.",
    }
    sureness = [float(row["sureness"]) for row in rows]
    assert sureness == sorted(sureness)
    assert all(0.5 < one <= 1 for one in sureness)
    assert {row["question"] for row in rows} == {STAR}
    printed = capsys.readouterr()
    assert "3/3" in printed.out
    assert "1 of 3 pictures have no answer" in printed.err


def test_fields_are_columns_each_with_its_sureness_and_the_table_goes_on(folder, tmp_path, capsys, monkeypatch):
    table, asked = tmp_path / "out.csv", []
    arguments = [str(folder), "--question", STAR, "--csv", str(table), "--fields", COLORS, "--sort", "name"]
    assert main(arguments) == 0
    first = rows_of(table)
    assert list(first[0]) == ["picture", "color", "color sureness", "sureness", "error", "model", "question"]
    assert [row["picture"] for row in first] == ["broken.jpg", "more/Hearts.PNG", "night.png"]
    assert first[2]["color"] == "yellow"
    assert first[2]["color sureness"] == first[2]["sureness"]
    # As it is after a kill: a row is missing, another one is half there.
    whole = table.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    table.write_text("".join([*lines[:2], lines[3], lines[2][:12]]), encoding="utf-8", newline="")
    monkeypatch.setattr(
        ask, "_row", lambda _, __, picture, *rest, row=ask._row: asked.append(picture) or row(_, __, picture, *rest)
    )
    capsys.readouterr()
    assert main(arguments) == 0
    assert sorted(asked) == ["broken.jpg", "more/Hearts.PNG"]
    assert "1 of 3 pictures have an answer already" in capsys.readouterr().out
    assert rows_of(table) == first


def test_a_table_of_another_question_is_left_alone(folder, tmp_path, capsys):
    table = tmp_path / "out.csv"
    assert main([str(folder), "--question", STAR, "--csv", str(table)]) == 0
    before = table.read_bytes()
    assert main([str(folder), "--question", "How many?", "--csv", str(table)]) == 1
    assert "another question" in capsys.readouterr().err
    assert main([str(folder), "--question", STAR, "--csv", str(table), "--fields", COLORS]) == 1
    assert "other columns" in capsys.readouterr().err
    assert table.read_bytes() == before


def test_what_can_not_be_asked_is_said_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(ask.Engine, "load")
    (tmp_path / "one.png").write_bytes(b"")
    csv_file = str(tmp_path / "out.csv")
    for folder, more, said in (
        (tmp_path / "none", [], "is no folder"),
        (tmp_path / "one.png", [], "is no folder"),
        (tmp_path, ["--fields", "color: red"], "needs a name"),
        (tmp_path, ["--fields", "color: red, blue; error: text"], "the column error twice"),
        (tmp_path, ["--fields", "a; a sureness: text"], "the column a sureness twice"),
    ):
        assert main([str(folder), "--question", "x", "--csv", csv_file, *more]) == 1
        assert said in capsys.readouterr().err
    (tmp_path / "one.png").unlink()
    with pytest.raises(Gemma3Error, match="no picture in"):
        pictures_in(tmp_path)


def test_what_is_wrong_with_every_picture_ends_the_run(folder, engine, monkeypatch):
    def refused(_, __):
        raise SchemaError("This can't be answered.")

    monkeypatch.setattr(engine, "stream", refused)
    with pytest.raises(SchemaError):
        list(answers(engine, folder, pictures_in(folder), Question(STAR, COLORS)))


def test_closing_ends_the_answers_in_progress(folder, engine, monkeypatch):
    begun, stopped = threading.Event(), []
    stats = next(event.stats for event in engine.stream(Request((Turn("user", "Hi"),), max_new_tokens=1))
                 if isinstance(event, DoneEvent))  # fmt: skip

    def stream(request, stop):
        if request.visitor == "night.png":
            assert begun.wait(30)
        else:
            begun.set()
            stopped.append(stop.wait(30))
        yield DoneEvent("", stats)

    monkeypatch.setattr(engine, "stream", stream)
    rows = answers(engine, folder, ["night.png", "broken.jpg"], Question(STAR), at_once=2)
    row = next(rows)
    assert (row.picture, row.told, row.sureness) == ("night.png", {"answer": ""}, None)  # without a token none is sure
    rows.close()
    assert stopped == [True]


def test_a_spreadsheet_computes_nothing_of_what_a_picture_says(tmp_path):
    table = Table(tmp_path / "out.csv", Question("=1", "text; n: number"), "model")
    table.add(Row("=one.png", {"text": "=HYPERLINK(1)", "text sureness": 0.5, "n": -3}, 0.5))
    (row,) = rows_of(tmp_path / "out.csv")
    assert (row["text"], row["n"], row["question"]) == ("'=HYPERLINK(1)", "-3", "'=1")
    assert row["picture"] == "'=one.png"
    again = Table(tmp_path / "out.csv", Question("=1", "text; n: number"), "model")
    assert "=one.png" in again
    assert "one.png" not in again
