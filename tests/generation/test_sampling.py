"""Choosing the next token: the distributions of transformers' logits processors, seeds, validation."""

import math

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gemma3_core.errors import SamplingError
from gemma3_core.generation.sampling import (
    GREEDY_BELOW,
    SamplingParams,
    SamplingSettings,
    largest,
    process_logits,
    sample,
    seen_tokens,
)

CPU = torch.device("cpu")
VOCABULARY = 97


def random_logits(rows: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 4


def our_distribution(monkeypatch, logits: torch.Tensor, settings: SamplingParams) -> torch.Tensor:
    """The probabilities [B, vocabulary] that tokens are drawn with, whatever the sampler draws from.

    Each place of what it draws from is drawn once, and the token that comes of it noted.
    """
    found = torch.zeros(logits.shape)
    place, places = 0, 1

    def draw(probabilities, count, **_):
        nonlocal places
        assert count == 1
        places = probabilities.shape[-1]
        drawn.append(probabilities[:, place])
        return torch.full((len(probabilities), 1), place)

    while place < places:
        drawn: list[torch.Tensor] = []
        with monkeypatch.context() as patched:
            patched.setattr(torch, "multinomial", draw)
            tokens = sample(logits, settings, settings.generator(CPU))
        assert drawn[0].dtype == torch.float32
        found[torch.arange(len(logits)), tokens] += drawn[0]
        place += 1
    return found


def reference_distribution(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    steps = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        steps.append(TopPLogitsWarper(top_p))
    return steps(torch.zeros(len(logits), 1, dtype=torch.long), logits.float()).softmax(-1)


@pytest.mark.parametrize("temperature", [0.05, 0.7, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 5, 64, VOCABULARY, 10_000])
@pytest.mark.parametrize("top_p", [1e-6, 0.3, 0.95, 1.0])
def test_distribution_is_that_of_transformers(monkeypatch, temperature, top_k, top_p):
    logits = random_logits()
    mine = our_distribution(monkeypatch, logits, SamplingSettings(temperature, top_k, top_p, seed=1))
    expected = reference_distribution(logits, temperature, top_k, top_p)
    assert torch.equal(mine > 0, expected > 0)
    torch.testing.assert_close(mine, expected)


def test_distribution_with_ties_is_that_of_transformers(monkeypatch):
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, -1.0], [0.0] * 6])
    for top_k, top_p in [(2, 1.0), (0, 0.5), (2, 0.6), (1, 0.01)]:
        mine = our_distribution(monkeypatch, logits, SamplingSettings(1.0, top_k, top_p, seed=1))
        torch.testing.assert_close(mine, reference_distribution(logits, 1.0, top_k, top_p))


def test_bfloat16_logits_are_sampled_in_float32(monkeypatch):
    logits = random_logits().bfloat16()
    mine = our_distribution(monkeypatch, logits, SamplingSettings(0.7, 20, 0.9, seed=1))
    assert process_logits(logits, SamplingSettings(0.7, 20, 0.9)).dtype == torch.float32
    torch.testing.assert_close(mine, reference_distribution(logits, 0.7, 20, 0.9))


def test_tokens_are_drawn_as_often_as_their_probabilities_say():
    settings = SamplingSettings(0.8, 10, 0.9, seed=3)
    logits = random_logits(rows=1)
    drawn = sample(logits.expand(40_000, -1), settings, settings.generator(CPU))
    frequencies = torch.bincount(drawn, minlength=VOCABULARY) / 40_000
    expected = reference_distribution(logits, 0.8, 10, 0.9)[0]
    assert (frequencies[expected == 0] == 0).all()
    assert (frequencies - expected).abs().max() < 5 * math.sqrt(0.25 / 40_000)


PUBLISHED = SamplingSettings(temperature=1.0, top_k=64, top_p=0.95, seed=0)
PUBLISHED_VOCABULARY = 262_208


def published_logits(seed: int, kind: torch.dtype = torch.float32) -> torch.Tensor:
    """Three rows: flat; as sharp as usual; and whole numbers, of which over a hundred tie for the 64th place."""
    logits = torch.randn(3, PUBLISHED_VOCABULARY, generator=torch.Generator().manual_seed(seed))
    logits *= torch.tensor([[1.0], [4.0], [2.0]])
    logits[2].round_()
    return logits.to(kind)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("top_p", [0.95, 0.5, 1.0])
@pytest.mark.parametrize(("temperature", "min_p"), [(1.0, None), (0.6, None), (1.0, 0.3)])
def test_the_published_vocabulary_keeps_the_tokens_of_transformers(kind, temperature, top_p, min_p):
    """The very same scores, also where many tokens tie for the 64th place.

    Where equal scores straddle the edge of top-p, the reference's sort, which is not stable, decides which of them
    stay. Their number must be the same, and every token above the edge.
    """
    logits = published_logits(0, kind)
    steps = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopKLogitsWarper(64)])
    steps += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    steps += [] if min_p is None else [MinPLogitsWarper(min_p)]
    expected = steps(torch.zeros(3, 1, dtype=torch.long), logits.float())
    mine = process_logits(logits, SamplingParams(temperature, 64, top_p, min_p=min_p))
    edge = expected.masked_fill(expected.isinf(), torch.inf).amin(-1, keepdim=True)
    assert torch.equal(mine.masked_fill(mine == edge, -torch.inf), expected.masked_fill(expected == edge, -torch.inf))
    assert torch.equal((mine == edge).sum(-1), (expected == edge).sum(-1))
    if kind == torch.float32:
        assert torch.equal(mine[:2], expected[:2])
    if top_p == 1.0 and min_p is None:
        assert torch.equal(mine, expected)
        assert (mine[2] > -torch.inf).sum() > 64


@pytest.mark.parametrize(("flatness", "ties", "top_p"), [(1.0, False, 0.95), (4.0, False, 0.95), (4.0, True, 1.0)])
def test_a_hundred_thousand_draws_have_the_distribution_of_transformers(flatness, ties, top_p):
    """Chi-square of the counts, below its mean plus five standard deviations (exceeded once in 100,000 seeds)."""
    draws, batch = 100_000, 10_000
    logits = torch.randn(1, 1024, generator=torch.Generator().manual_seed(2)) * flatness
    logits = logits.round() if ties else logits
    expected = reference_distribution(logits, 1.0, 64, top_p)[0] * draws
    settings = SamplingSettings(1.0, 64, top_p, seed=0)
    generator = settings.generator(CPU)
    drawn = torch.cat([sample(logits.expand(batch, -1), settings, generator) for _ in range(draws // batch)])
    counts = torch.bincount(drawn, minlength=1024)
    kept = expected > 0
    assert (counts[~kept] == 0).all()
    chi_square = ((counts - expected)[kept].square() / expected[kept]).sum()
    freedom = int(kept.sum()) - 1
    assert freedom > 3
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_torchs_own_random_numbers_draw_from_the_whole_vocabulary_as_in_transformers():
    logits = published_logits(3)[:2]
    expected = reference_distribution(logits, 1.0, 64, 0.95)
    torch.manual_seed(4)
    theirs = [torch.multinomial(expected, 1)[:, 0].tolist() for _ in range(5)]
    torch.manual_seed(4)
    assert [sample(logits, PUBLISHED, None).tolist() for _ in range(5)] == theirs


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-6])
def test_temperature_zero_is_greedy_whatever_else_is_said(temperature):
    logits = random_logits()
    settings = SamplingSettings(temperature, top_k=1, top_p=0.1, seed=5)
    assert settings.greedy
    assert settings.generator(CPU) is None
    assert torch.equal(sample(logits, settings, None), logits.argmax(-1))


def test_the_least_temperature_that_draws_stays_within_float32():
    logits = torch.tensor([[3e4, -3e4, 2.9e4]])
    for top_k in (0, 2):
        settings = SamplingSettings(GREEDY_BELOW, top_k, seed=5)
        assert not settings.greedy
        assert sample(logits, settings, settings.generator(CPU)).tolist() == [0]


def test_greedy_takes_the_first_of_equals_as_transformers_does():
    assert sample(torch.zeros(2, 9), SamplingSettings(), None).tolist() == [0, 0]


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    def draw(seed):
        settings = SamplingSettings(1.0, 0, 1.0, seed)
        generator = settings.generator(CPU)
        return [sample(random_logits(seed=i), settings, generator).tolist() for i in range(8)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_a_seed_leaves_torchs_own_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    settings = SamplingSettings(1.0, seed=9)
    sample(random_logits(), settings, settings.generator(CPU))
    assert torch.equal(torch.rand(3), expected)


def test_without_a_seed_each_answer_draws_anew():
    settings = SamplingSettings(1.0, 0, 1.0, seed=None)
    torch.manual_seed(0)
    first = settings.generator(CPU)
    torch.manual_seed(0)
    second = settings.generator(CPU)
    assert first.initial_seed() != second.initial_seed()


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("min_p", [0.0, 0.05, 0.6, 1.0])
@pytest.mark.parametrize("top_p", [0.0, 0.7, 1.0])
def test_min_p_comes_after_the_others_as_in_transformers(temperature, min_p, top_p):
    logits = random_logits()
    steps = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopKLogitsWarper(40)])
    steps += [TopPLogitsWarper(top_p)] if top_p < 1.0 else []
    expected = steps(torch.zeros(3, 1, dtype=torch.long), logits)
    expected = MinPLogitsWarper(min_p)(None, expected)
    assert torch.equal(process_logits(logits, SamplingParams(temperature, 40, top_p, min_p=min_p)), expected)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_repetition_penalty_and_banned_ids_are_those_of_transformers(penalty, temperature):
    """Tokens of the prompt count, left padding does not, nor do ids beyond the vocabulary."""
    logits, stops = random_logits(), (4, 11)
    ids = torch.tensor([[7, 7, 4, 5, 90], [0, 0, 0, 5, VOCABULARY + 3], [0, 8, 0, 0, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1, 0, 1, 1]])
    padding = (mask != 0).int().argmax(dim=1)
    expected = RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=padding)(ids, logits)
    expected = MinNewTokensLengthLogitsProcessor(5, 3, list(stops))(ids, expected)
    if temperature:
        expected = TemperatureLogitsWarper(temperature)(ids, expected)
    rule = SamplingParams(temperature, 0, 1.0, repetition_penalty=penalty)
    seen = seen_tokens(ids, mask, VOCABULARY)
    assert torch.equal(process_logits(logits, rule, seen, stops), expected)
    everything = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    rule = SamplingParams(0.0, repetition_penalty=penalty)
    assert torch.equal(process_logits(logits, rule, seen_tokens(ids, None, VOCABULARY)), everything)


def test_a_rule_goes_further_than_what_a_visitor_may_set():
    assert SamplingParams(temperature=2.1, top_p=0.0).temperature == 2.1
    with pytest.raises(SamplingError, match=r"2\.1"):
        SamplingSettings(temperature=2.1)
    with pytest.raises(SamplingError, match="top_p"):
        SamplingSettings(top_p=0.0)


@pytest.mark.parametrize(
    "values",
    [
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"min_p": "some"},
        {"repetition_penalty": 0},
        {"repetition_penalty": math.nan},
        {"repetition_penalty": None},
        {"temperature": -0.1},
        {"temperature": 2.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"seed": -1},
        {"seed": 2**63},
        {"temperature": "warm"},
        {"temperature": None},
        {"top_k": 2.5},
        {"top_k": "many"},
        {"top_p": "0.9"},
        {"seed": 1.5},
        {"seed": "one"},
    ],
    ids=str,
)
def test_settings_out_of_range_say_what_was_got(values):
    with pytest.raises(SamplingError) as error:
        SamplingSettings(**values)
    value = next(iter(values.values()))
    assert str(value) in str(error.value)


@pytest.mark.parametrize(
    "values", [{"temperature": 2.0}, {"top_p": 1.0}, {"top_k": 0}, {"seed": 0}, {"seed": 2**63 - 1}]
)
def test_the_ends_of_the_ranges_are_allowed(values):
    settings = SamplingSettings(**{"temperature": 1.0, **values})
    assert 0 <= int(sample(random_logits(rows=1), settings, settings.generator(CPU))) < VOCABULARY


def test_of_equal_logits_greedy_takes_the_first_as_argmax_does():
    logits = torch.zeros(3, 4099, dtype=torch.bfloat16)
    logits[0, [7, 70, 4000]] = 2.0
    logits[1, [4098, 4097]] = 1.0
    assert sample(logits, SamplingSettings(temperature=0.0), None).tolist() == [7, 4097, 0]


@pytest.mark.parametrize("count", [1, 5, 64, 129])
@pytest.mark.parametrize("kind", ["noise", "ties", "forbidden", "one run", "nan"])
def test_the_largest_of_a_large_vocabulary_are_those_that_torch_finds(kind, count):
    scores = torch.randn(3, 262_208, generator=torch.Generator().manual_seed(0))
    if kind == "ties":
        scores = scores.round()
    elif kind == "forbidden":  # all but a few, as by a grammar
        scores[:, torch.randperm(262_208, generator=torch.Generator().manual_seed(1))[3:]] = -torch.inf
    elif kind == "one run":
        scores[:, 640:704] += 100
    elif kind == "nan":
        scores[1, 77_777] = torch.nan
    found, ids = largest(scores, count)
    wanted, places = scores.topk(count)
    assert torch.equal(found.nan_to_num(1e9), wanted.nan_to_num(1e9))
    assert torch.equal(scores.gather(1, ids).nan_to_num(1e9), found.nan_to_num(1e9))
    assert all(len(set(row)) == count for row in ids.tolist())
    if kind in ("noise", "one run"):
        assert torch.equal(ids, places)
