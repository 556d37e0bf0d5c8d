"""Rows sampled together: each with the distribution, the seed and the numbers that it has alone."""

import math

import pytest
import torch

from gemma3_core.generation import row_sampler
from gemma3_core.generation.row_sampler import ALTERNATIVES, Sampled, SamplingRow, sample_rows
from gemma3_core.generation.sampling import SamplingParams, process_logits, sample

VOCABULARY = 400
DRAWS = 20_000
PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
EVERY_KIND = [
    SamplingParams(),
    SamplingParams(repetition_penalty=1.5),
    SamplingParams(1.0, 64, 0.95, seed=1),
    SamplingParams(0.7, 5, 1.0, seed=2),
    SamplingParams(2.0, 64, 0.5, seed=3, min_p=0.1),
    SamplingParams(1.3, 1, 1.0, seed=4),
    SamplingParams(1.0, 20, 0.9, seed=5, repetition_penalty=1.3),
    SamplingParams(1.0, 0, 0.9, seed=6),
    SamplingParams(1.0, 100, 1.0, seed=7),
]


def logits_of(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def row(params: SamplingParams, vocabulary: int = VOCABULARY) -> SamplingRow:
    return SamplingRow.of(params, PROMPT, vocabulary)


def answers(rows: list[SamplingRow], steps: int, dtype: torch.dtype = torch.float32) -> list[list[Sampled]]:
    """What each row samples from logits that depend on the step and the row's place among all kinds."""
    found: list[list[Sampled]] = [[] for _ in rows]
    for step in range(steps):
        logits = torch.cat([logits_of(1, 100 * step + EVERY_KIND.index(one.params)) for one in rows]).to(dtype)
        for tokens, one, sampled in zip(found, rows, sample_rows(logits, rows).read(), strict=True):
            one.push(sampled.token)
            tokens.append(sampled)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_samples_the_same_whatever_is_sampled_beside_it(dtype):
    together = answers([row(params) for params in EVERY_KIND], 12, dtype)
    for params, beside_others in zip(EVERY_KIND, together, strict=True):
        (alone,) = answers([row(params)], 12, dtype)
        assert [one.token_id for one in alone] == [one.token_id for one in beside_others]
        # Of equally likely ones, others may be named.
        assert [[p for _, p in one.likeliest] for one in alone] == [
            [p for _, p in one.likeliest] for one in beside_others
        ]
        assert [int(one.token) for one in alone] == [one.token_id for one in alone]
    (again,) = answers([row(EVERY_KIND[2])], 12, dtype)
    assert [one.token_id for one in again] == [one.token_id for one in together[2]]
    assert len({one.token_id for one in again}) > 3


def test_what_takes_the_best_takes_what_generate_takes():
    """The first of equals, also in bfloat16; a repetition penalty counts prompt and answer."""
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 2.9, 0.0]]).bfloat16()
    assert sample_rows(logits, [row(SamplingParams(), 7)]).read()[0].token_id == 1
    penalised = row(SamplingParams(repetition_penalty=1.5))
    for step in range(6):
        logits = logits_of(1, step)
        expected = sample(logits, penalised.params, None, penalised.seen)
        (found,) = sample_rows(logits, [penalised]).read()
        assert found.token_id == int(expected)
        penalised.push(found.token)
        assert bool(penalised.seen[0, found.token_id])


@pytest.mark.parametrize("params", EVERY_KIND[2:], ids=str)
def test_tokens_come_as_often_as_their_probability_says(params):
    logits, one = logits_of(1), row(params)
    expected = process_logits(logits, params, one.seen).softmax(dim=-1)[0]
    copies = [SamplingRow(params, SamplingParams(1.0, seed=n).generator(torch.device("cpu"))) for n in range(100)]
    for each in copies:
        each.seen = one.seen
    count = torch.zeros(VOCABULARY)
    rounds = DRAWS // len(copies) if one.joins_others else 10
    for _ in range(rounds):
        for each, found in zip(copies, sample_rows(logits.expand(len(copies), -1), copies).read(), strict=True):
            count[found.token_id] += 1
            each.count += 1
    assert not count[expected == 0].any(), "a token that is excluded was drawn"
    share = count / count.sum()
    # Four standard deviations of each share.
    assert bool(((share - expected).abs() <= 4 * (expected * (1 - expected) / count.sum()).sqrt() + 1e-3).all())


def test_all_that_tie_with_the_last_of_top_k_can_be_drawn():
    """Few ties are among the candidates; with many, the row is sampled from the whole vocabulary."""
    for equal in (10, 300):
        logits = torch.full((1, VOCABULARY), -5.0)
        logits[0, :equal] = 1.0
        params, drawn = SamplingParams(1.0, 4, 1.0, seed=0), set()
        one = row(params)
        for _ in range(12 * equal):
            sampled = sample_rows(logits, [one])
            (found,) = sampled.read()
            assert sampled.needs_host == (equal == 300)
            assert int(found.token) == found.token_id == int(sampled.tokens[0])
            drawn.add(found.token_id)
            one.push(found.token)
        assert drawn == set(range(equal))


def test_probabilities_are_the_softmax_of_the_plain_logits():
    rows = [row(params) for params in EVERY_KIND]
    logits = logits_of(len(rows))
    exact = logits.double().softmax(dim=-1)
    for place, found in enumerate(sample_rows(logits, rows).read()):
        assert math.isclose(found.probability, float(exact[place, found.token_id]), rel_tol=1e-5)
        best = exact[place].argsort(descending=True)[:ALTERNATIVES].tolist()
        assert [token for token, _ in found.likeliest] == best
        for token, probability in found.likeliest:
            assert math.isclose(probability, float(exact[place, token]), rel_tol=1e-5)


def test_without_alternatives_none_are_computed():
    plain = SamplingRow.of(SamplingParams(), PROMPT, VOCABULARY, with_alternatives=False)
    logits = logits_of(1)
    (found,) = sample_rows(logits, [plain]).read()
    assert (found.token_id, found.likeliest) == (int(logits.argmax()), ())


def test_a_device_without_float64_samples_the_same(monkeypatch):
    """As Apple's GPUs. The largest id of a published vocabulary is exact in float32."""
    expected = answers([row(params) for params in EVERY_KIND], 6)
    monkeypatch.setattr(row_sampler, "_widest", lambda _: torch.float32)
    monkeypatch.setattr(torch.Tensor, "double", lambda _: pytest.fail("float64"))
    assert answers([row(params) for params in EVERY_KIND], 6) == expected
    assert row_sampler._widest(torch.device("mps")) == torch.float32
    assert torch.tensor(262_207).float().item() == 262_207


def test_a_small_vocabulary():
    rows = [row(params, 3) for params in EVERY_KIND if not params.penalises]
    for found in sample_rows(logits_of(len(rows), vocabulary=3), rows).read():
        assert 0 <= found.token_id < 3
        assert len(found.likeliest) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_told_for_their_row_alone(bad):
    rows = [row(params) for params in EVERY_KIND]
    for place in range(len(rows)):
        logits = logits_of(len(rows))
        logits[place, 7] = bad
        found = sample_rows(logits, rows).read()
        assert [one.is_finite for one in found] == [number != place for number in range(len(rows))]


def test_a_token_sampled_ahead_is_the_one_that_is_sampled_in_its_turn():
    """Also if it was sampled ahead and thrown away."""
    params = EVERY_KIND[2]
    plain, ahead = row(params), row(params)
    expected = []
    for step in range(6):
        (found,) = sample_rows(logits_of(1, step), [plain]).read()
        plain.push(found.token)
        expected.append(found.token_id)
    got = []
    for step in range(6):
        early = sample_rows(logits_of(1, step + 1), [ahead], ahead=1)
        (found,) = sample_rows(logits_of(1, step), [ahead]).read()
        ahead.push(found.token)
        got.append(found.token_id)
        if step < 5:
            assert early.read()[0].token_id == expected[step + 1]
    assert got == expected
