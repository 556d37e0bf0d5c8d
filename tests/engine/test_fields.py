"""Answers in fields: what people write, the schema of it, and how sure each value is."""

import json

import pytest
from places import EXAMPLES
from running_app import require_demo_model

from gemma3_core.engine import (
    Answered,
    Engine,
    Field,
    Request,
    SchemaError,
    TokenChoice,
    TokenEvent,
    Turn,
    ask_in_fields,
    read_fields,
    schema_of,
    values_of,
)

NIGHT = str(EXAMPLES / "night.png")
COLORS = "color: red, yellow, blue, green"


def test_fields_are_read_as_people_write_them():
    assert read_fields("color: red, dark blue ; count: Number\n\nis it day: yes/no; note") == (
        Field("color", "choice", ("red", "dark blue")),
        Field("count", "number"),
        Field("is it day", "yes/no"),
        Field("note", "text"),
    )
    assert read_fields(" \n;") == ()


@pytest.mark.parametrize(
    "text",
    ["color: red", ": number", "a: text; a: number", ";".join(f"f{n}: text" for n in range(25)), "x" * 81,
     "a: " + ", ".join(map(str, range(41))), f"a: {'x' * 81}, y"],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_field_is_refused_with_what_to_write(text):
    with pytest.raises(SchemaError):
        read_fields(text)


def choices_of(*tokens: tuple[str, float]) -> list[TokenChoice]:
    return [TokenChoice(0, text, probability, ()) for text, probability in tokens]


def test_a_values_probability_is_that_of_its_tokens_and_a_numbers_includes_its_end():
    choices = choices_of(
        ('{"', 1.0), ("a", 0.5), ('": ', 1.0), ('"gr', 0.8), ("<0xC3>", 0.5), ("<0xBC>", 1.0), ('n"', 0.5), (", ", 0.9),
        ('"b": ', 1.0), ("1", 0.5), ("2", 0.5), (', "', 0.5), ('c": tr', 0.25), ("ue", 1.0), ("}", 0.1),
    )  # fmt: skip
    found = values_of('{"a": "grün", "b": 12, "c": true}', choices)
    assert [(one.name, one.value) for one in found] == [("a", "grün"), ("b", 12), ("c", True)]
    assert [one.probability for one in found] == pytest.approx([0.2, 0.125, 0.25])
    assert [one.tokens for one in found] == [range(3, 7), range(9, 11), range(12, 14)]


def test_an_answer_that_was_cut_has_the_values_that_are_whole():
    whole = '{"a": 1, "b": [2, {"c": 3}], "d": "x"}'
    choices = [*map(lambda sign: TokenChoice(0, sign, 1.0, ()), whole)]  # noqa: C417
    for cut, names in ((7, []), (8, ["a"]), (27, ["a"]), (28, ["a", "b"]), (37, ["a", "b"]), (38, ["a", "b", "d"])):
        assert [one.name for one in values_of(whole[:cut], choices[:cut])] == names, whole[:cut]
    assert values_of("no JSON", choices) == values_of("[1, 2]", choices) == ()


def test_the_fields_stand_behind_the_question_unless_they_are_not_named():
    request, fields = Request((Turn("user", "What is it?"),)), read_fields("color: red, blue; n: number; x: yes/no; y")
    asked = ask_in_fields(request, fields)
    told = "Answer as JSON with color (one of red, blue), n (a number), x (true or false), y (a text)."
    assert asked.turns[-1].text == f"What is it?\n{told}"
    assert asked.json_schema == schema_of(fields)
    assert ask_in_fields(request, fields, named=False).turns == request.turns
    assert ask_in_fields(request, ()) is request


def test_the_demo_model_answers_in_fields_and_each_has_a_map():
    require_demo_model()
    engine, choices = Engine.load(device="cpu"), []
    request = Request((Turn("user", "What color is the star?", (NIGHT,)),), reuse=False)
    request = ask_in_fields(request, read_fields(COLORS), named=False)
    for event in engine.stream(request):
        choices += [event.choice] if isinstance(event, TokenEvent) and event.choice else []
    assert json.loads(event.text) == {"color": "yellow"}
    (color,) = values_of(event.text, choices)
    assert color.probability > 0.7
    seen = engine.attention(Answered(request, event), color.tokens)
    assert 0 < seen.on_pictures < 1
