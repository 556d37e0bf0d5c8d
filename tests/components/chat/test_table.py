"""One question about many pictures: how a table begins, its rows, and what holds them up."""

import asyncio
import json
from dataclasses import replace

import pytest
from running_app import ScriptedEngine
from window import DEMO, STATS, Window, choice

from components.chat import table
from components.chat.table import MOST_ROWS, TableRows
from components.serving.desk import FrontDesk, Operation
from components.serving.ledger import HOUR_S, Allowance, MemoryLedger
from components.shown.table_form import table_form
from gemma3_core.engine import DoneEvent, ImageError, ModelRegistry, StageEvent, TokenEvent

QUESTION, FIELDS = "What color is it?", "color: red, blue; note: text"
VALUES = (False, "", 1.0, 64, 0.95, "", 8, None, None, DEMO.name, None)


class Asked:
    """Answers as an engine does, piece by piece; keeps the requests."""

    def __init__(self, *pieces, error=None, waits=False):
        self.pieces, self.error, self.waits, self.requests = pieces, error, waits, []

    async def __call__(self, _asker, _model, request, stop):
        self.requests.append(request)
        yield StageEvent("encoding", "Encoding 1 picture")
        if self.error is not None:
            raise self.error
        for number, (text, probability) in enumerate(self.pieces):
            yield TokenEvent(text, choice(number, text, probability))
        while self.waits and not stop.is_set():
            await asyncio.sleep(0.01)
        text = "".join(text for text, _ in self.pieces)
        yield DoneEvent(text, replace(STATS, stop_reason="cancelled") if self.waits else STATS)


def rows_of(ask, models=None):
    return TableRows(models or ModelRegistry(ScriptedEngine(DEMO)), "/up/one.png".__eq__, ask)


def asked(**more):
    given = {"turn": 7, "question": QUESTION, "fields": "", "name": "one.png", "path": "/up/one.png"}
    return json.dumps({**given, **more})


def heard(rows, text, window="one"):
    """All that the browser hears of a row."""

    async def collected():
        return [json.loads(said) async for said in rows.row(text, Window(window), *VALUES)]

    return asyncio.run(collected())


def begun(given, values=VALUES, info=DEMO):
    rows = rows_of(None, ModelRegistry(ScriptedEngine(info)))
    return json.loads(rows.begin(given if isinstance(given, str) else json.dumps(given), *values))


def test_a_table_begins_with_its_columns_and_a_row_for_each_picture():
    names = ["one.png", "=two.png"]
    told = begun({"turn": 3, "question": QUESTION, "names": names}, (*VALUES, FIELDS))
    assert told["header"] == [
        "picture", "color", "color sureness", "note", "note sureness", "sureness", "error", "model", "question"
    ]  # fmt: skip
    assert (told["turn"], told["shown"], told["fields"]) == (3, ["color", "note"], FIELDS)
    assert told["rows"][1] == ["'=two.png", *[""] * 6, DEMO.name, QUESTION]
    assert begun({"question": QUESTION, "names": names})["shown"] == ["Answer"]


@pytest.mark.parametrize(
    ("given", "fields", "said"),
    [
        ({"question": " ", "names": ["one.png"]}, "", "no question yet"),
        ({"question": QUESTION, "names": []}, "", "no pictures yet"),
        ({"question": QUESTION, "names": ["one.png"] * (MOST_ROWS + 1)}, "", "at most 200 pictures"),
        ({"question": QUESTION, "names": ["one.png"]}, "color: red", "needs a name"),
        ({"question": QUESTION, "names": ["one.png"]}, "error: text", "the column error twice"),
        ({"question": 5, "names": {}, "turn": "x"}, "", "no pictures yet"),
        ("[[[", "", "no pictures yet"),
    ],
)
def test_what_can_not_be_asked_is_said_before_the_first_row(given, fields, said):
    assert said in begun(given, (*VALUES, fields))["refused"]


def test_a_model_that_reads_text_only_says_so():
    told = begun({"question": QUESTION, "names": ["one.png"]}, info=replace(DEMO, multimodal=False))
    assert told["refused"] == "demo model reads text only. Choose a model that reads pictures."


def test_a_row_comes_with_its_cells_and_how_sure_the_model_was():
    ask = Asked(("=", 0.5), ("red", 1.0))
    first, *_, last = heard(rows_of(ask), asked(name="+one.png"))
    assert first == {"turn": 7, "stage": "Encoding 1 picture"}
    assert last["cells"] == ["'+one.png", "'=red", "0.7071", "", "demo model", QUESTION]
    assert last["told"] == [{"text": "=red"}]
    assert last["sure"] == {"percent": "71 %", "share": pytest.approx(0.5**0.5), "unsure": False}
    assert last["failed"] == ""
    (request,) = ask.requests
    assert request.sampling.greedy
    assert not request.reuse  # the chat's own cache stays
    assert [str(path) for path in request.turns[0].pictures] == ["/up/one.png"]
    assert len(request.turns) == 1


def test_fields_are_the_tables_own_and_each_has_its_sureness():
    ask = Asked(('{"color": ', 1.0), ('"red"', 0.6), (', "note": ', 1.0), ('"x"', 0.9), ("}", 1.0))
    last = heard(rows_of(ask), asked(fields=FIELDS))[-1]
    assert [one["text"] for one in last["told"]] == ["red", "x"]
    assert [one["unsure"] for one in last["told"]] == [True, False]
    assert last["sure"]["percent"] == "60 %"
    assert '"enum"' in ask.requests[0].json_schema
    cut = heard(rows_of(Asked(('{"color": ', 1.0), ('"red"', 0.6), (",", 1.0))), asked(fields=FIELDS))[-1]
    assert cut["failed"] == "The answer was cut. Allow more tokens."
    assert cut["cells"][1] == "red"


def test_a_broken_picture_has_a_row_that_says_why_and_what_concerns_all_halts(caplog):
    broken = heard(rows_of(Asked(error=ImageError("one.png is broken."))), asked())[-1]
    assert (broken["failed"], broken["cells"][3]) == ("one.png is broken.", "one.png is broken.")
    gone = heard(rows_of(Asked(("yes", 1.0))), asked(path="/etc/passwd"))
    assert gone == [{"turn": 7, "halt": table.GONE}]
    assert "needs a name" in heard(rows_of(Asked(("yes", 1.0))), asked(fields="color: red"))[-1]["halt"]
    assert heard(rows_of(Asked(("yes", 1.0))), "null") == [{"turn": 0, "halt": table.GONE}]
    assert heard(rows_of(Asked(error=RuntimeError("secret"))), asked())[-1]["halt"] == table.UNEXPECTED
    assert "secret" in caplog.text


def test_rows_count_as_the_visitors_questions_and_say_when_to_come_back():
    engine = ScriptedEngine(DEMO)
    engine.let_through(*engine.go_on)
    models = ModelRegistry(engine)
    desk = FrontDesk(models, Operation(ledger=MemoryLedger([Allowance("questions", 1, HOUR_S)])))
    rows = rows_of(desk.on_page, models)
    assert heard(rows, asked())[-1]["told"] == [{"text": engine.answer}]
    assert "Come back at" in heard(rows, asked())[-1]["halt"]
    assert heard(rows, asked(), "another")[-1]["failed"] == ""


def test_one_row_of_a_window_at_a_time_and_stop_leaves_it_unasked():
    rows = rows_of(Asked(("yes", 1.0), waits=True))

    async def stopped():
        said, other = [], []
        async for one in rows.row(asked(), Window(), *VALUES):
            said.append(json.loads(one))
            if len(said) == 1:
                other += [json.loads(two) async for two in rows.row(asked(turn=8), Window(), *VALUES)]
                rows.stop(Window())
        return said, other

    said, other = asyncio.run(stopped())
    assert said[-1] == {"turn": 7, "stopped": True}
    assert other == [{"turn": 8, "halt": table.BUSY}]


def test_the_form_says_what_is_kept():
    assert 'data-most="200"' in table_form(MOST_ROWS, False)
    assert "kept in this browser" in table_form(MOST_ROWS, False)
    assert "kept in this browser" not in table_form(MOST_ROWS, True)
