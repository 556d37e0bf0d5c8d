"""Answers that must fit a JSON schema: what is sampled fits, hostile schemas are refused or bounded."""

import json
import sys
import time

import jsonschema
import pytest
import torch
from running_app import require_demo_model

from gemma3_core.engine import DEMO_MODEL
from gemma3_core.errors import SchemaError, UnsupportedOptionError
from gemma3_core.generation.grammar import ANY_OBJECT, Grammar, Grammars
from gemma3_core.generation.row_sampler import SamplingRow, sample_rows
from gemma3_core.generation.sampling import SamplingParams
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

PROMPT = torch.tensor([[5, 6, 7]])
LONGEST_S = 2.0
"""Of this thread's own time, to compile a schema and for each token: far more than a usual one takes."""
FIELDS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "share": {"type": "number", "minimum": -1, "maximum": 1},
        "color": {"enum": ["red", "dark blue", "“grün”"]},
        "is_here": {"type": "boolean"},
        "list": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    },
    "required": ["name", "count", "share", "color", "is_here", "list"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer() -> Gemma3Tokenizer:
    require_demo_model()
    return Gemma3Tokenizer.from_pretrained(DEMO_MODEL)


@pytest.fixture(scope="module")
def vocabulary(tokenizer) -> int:
    return len(tokenizer)


@pytest.fixture(scope="module")
def stops(tokenizer) -> tuple[int, ...]:
    return 1, tokenizer.convert_tokens_to_ids("<end_of_turn>")


@pytest.fixture(scope="module")
def grammars(tokenizer, vocabulary, stops) -> Grammars:
    return Grammars(tokenizer, vocabulary + 64, stops)  # as published checkpoints have more rows than tokens


def written(rows, stops, vocabulary, steps: int = 150) -> list[list[int]]:
    """What rows sample from random logits, each until it stops."""
    generator, tokens = torch.Generator().manual_seed(0), [[] for _ in rows]
    for _ in range(steps):
        logits = torch.randn(len(rows), vocabulary, generator=generator)
        for one, row, sampled in zip(tokens, rows, sample_rows(logits, rows).read(), strict=True):
            assert sampled.is_finite
            if not one or one[-1] not in stops:
                row.push(sampled.token, sampled.token_id)
                one.append(sampled.token_id)
    return tokens


@pytest.mark.parametrize("top_k", [0, 3, 64, 200])
def test_whatever_is_sampled_from_noise_fits_the_schema_and_others_are_as_if_alone(
    grammars, tokenizer, vocabulary, stops, top_k
):
    vocabulary += 64
    params = SamplingParams(1.0, top_k, 1.0, seed=top_k)

    def rows(*schemas):
        grammar = [schema and grammars.compile(json.dumps(schema)).begin() for schema in schemas]
        return [SamplingRow.of(params, PROMPT, vocabulary, True, one) for one in grammar]

    fitting, free = written(rows(FIELDS, None), stops, vocabulary)
    assert fitting[-1] in stops
    jsonschema.validate(json.loads(tokenizer.decode(fitting[:-1])), FIELDS)
    _, alone = written(rows(None, None), stops, vocabulary)
    assert free == alone


def test_probabilities_are_among_what_is_allowed(grammars, vocabulary):
    row = SamplingRow.of(SamplingParams(), PROMPT, vocabulary, True, grammars.compile('{"type": "boolean"}').begin())
    (found,) = sample_rows(torch.randn(1, vocabulary), [row]).read()
    allowed = row.constraint.allowed(vocabulary)
    assert 2 <= int(allowed.sum()) < 20
    assert all(allowed[token] for token, _ in found.likeliest)
    assert found.probability == pytest.approx(max(p for _, p in found.likeliest))


def test_an_answer_that_was_cut_goes_on_within_its_schema(grammars, tokenizer, vocabulary):
    whole = tokenizer.encode('{"color": "red"}', add_special_tokens=False)
    schema = {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "additionalProperties": False}
    grammar = grammars.compile(json.dumps(schema))
    for cut in range(len(whole)):
        assert grammar.begin(whole[:cut]).allowed(vocabulary)[whole[cut]]
    with pytest.raises(SchemaError):
        grammar.begin(tokenizer.encode("The star", add_special_tokens=False))


class Counted:
    """A matcher that counts how often it goes through the vocabulary."""

    def __init__(self, matcher):
        self.matcher, self.masks = matcher, 0

    def __getattr__(self, name):
        return getattr(self.matcher, name)

    def deep_copy(self):
        self.matcher = self.matcher.deep_copy()
        return self

    def compute_bitmask(self):
        self.masks += 1
        return self.matcher.compute_bitmask()


def test_a_long_answer_goes_on_after_one_look_at_the_vocabulary(grammars, tokenizer, vocabulary, stops):
    text = '{"words": "' + "the red star is dark " * 30
    so_far = tokenizer.encode(text, add_special_tokens=False)
    assert len(so_far) >= 100
    grammar = grammars.compile('{"type": "object", "properties": {"words": {"type": "string"}}}')
    step_by_step = grammar.begin()
    for token in so_far:
        step_by_step.push(token)
    counted = Counted(grammar._matcher)
    going_on = Grammar(counted, stops).begin([*so_far[:50], stops[0], *so_far[50:]])
    assert counted.masks == 1
    assert torch.equal(going_on.allowed(vocabulary), step_by_step.allowed(vocabulary))


def test_nothing_but_the_end_follows_a_whole_value(grammars, tokenizer, vocabulary, stops):
    done = grammars.compile('{"const": 1}').begin(tokenizer.encode("1", add_special_tokens=False))
    assert {*done.allowed(vocabulary).nonzero().flatten().tolist()} == set(stops)
    assert grammars.compile(ANY_OBJECT).begin().allowed(vocabulary).sum() > 0


def test_a_text_model_has_a_logit_less_than_its_tokenizer_has_tokens(tokenizer, vocabulary, stops):
    fewer = Grammars(tokenizer, vocabulary - 1, stops).compile('{"type": "boolean"}').begin()
    allowed = fewer.allowed(vocabulary - 1)
    assert len(allowed) == vocabulary - 1
    assert allowed.any()


def many(number: int) -> dict:
    return {f"p{place}": {"type": "string"} for place in range(number)}


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "{",
        "[]",
        "false",
        '{"enum": ["' + "x" * 10_000_000 + '"]}',
        '{"items":' * 100_000,
        json.dumps({"type": "array", "items": {}} | {"not": {}}),
        '{"items":' * 100 + "{}" + "}" * 100,
        {"type": "banana"},
        {"enum": []},
        {"type": "integer", "minimum": 5, "maximum": 3},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "string", "pattern": "[open"},
        {"type": "string", "pattern": "^(?=.*a).*$"},
        {"type": "string", "format": "banana"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "http://example.org/schema.json"},
        {"x-guidance": {"whitespace_pattern": "(a*)*"}},
        {"allOf": [{"anyOf": [{"properties": {f"{x}{n}": {}}} for x in "ab"]} for n in range(25)]},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_a_schema_that_can_not_be_met_is_refused_in_a_sentence(grammars, schema):
    began = time.thread_time()
    with pytest.raises(SchemaError) as refused:
        grammars.compile(schema if isinstance(schema, str) else json.dumps(schema))
    assert time.thread_time() - began < LONGEST_S
    assert str(refused.value).count(". ") <= 1
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"], "additionalProperties": False},
        {"$defs": {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(1500)} | {"a1500": {}}, "$ref": "#/$defs/a0"},
        {"type": "object", "properties": many(1500)},
        {"type": "string", "pattern": "^(a+)+$"},
        {"type": "string", "pattern": "(((a{1,100}){1,100}){1,100}){1,100}"},
        {"type": "string", "pattern": "(.*a.{18}|.*b.{17}|.*c.{16})"},
        {"type": "string", "minLength": 10_000_000},
        {"type": "array", "minItems": 1_000_000, "items": {"type": "integer"}},
        {"enum": [f"{'x' * 20}{number}" for number in range(1500)]},
    ],
    ids=lambda schema: str(schema)[:40],
)
def test_a_schema_without_end_or_of_great_size_is_refused_or_takes_little_time_for_each_token(
    grammars, vocabulary, stops, schema
):
    said, longest = "", 0.0
    try:
        began = time.thread_time()
        row = SamplingRow.of(SamplingParams(), PROMPT, vocabulary, False, grammars.compile(json.dumps(schema)).begin())
        longest = time.thread_time() - began
        for _ in range(20):
            began = time.thread_time()
            written([row], stops, vocabulary, steps=1)
            longest = max(longest, time.thread_time() - began)
    except SchemaError as refused:
        said = str(refused)
    assert max(longest, time.thread_time() - began) < LONGEST_S
    assert len(said) < 400


def test_the_message_names_the_missing_package(tokenizer, vocabulary, stops, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(UnsupportedOptionError, match=r"requirements/fields\.txt"):
        Grammars(tokenizer, vocabulary, stops).compile(ANY_OBJECT)
