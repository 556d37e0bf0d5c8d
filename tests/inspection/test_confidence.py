"""How sure the model was of a token."""

import math
import pickle

import torch

from gemma3_core.generation.row_sampler import SamplingRow, sample_rows
from gemma3_core.generation.sampling import SamplingParams
from gemma3_core.inspection.confidence import Alternative, TokenChoice, TokenChoices, choice_of, token_text
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer


def sampled(logits: torch.Tensor):
    """The greedy token."""
    return sample_rows(logits[None], [SamplingRow(SamplingParams(), None)]).read()[0]


def test_probabilities_are_the_softmax_of_the_logits(small_tokenizer_folder):
    tokenizer = Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(tokenizer) + 3, generator=generator)
    exact = logits.double().softmax(dim=-1)
    order = exact.argsort(descending=True).tolist()
    choice = choice_of(tokenizer, sampled(logits))
    assert (choice.token_id, choice.text) == (order[0], token_text(tokenizer, order[0]))
    assert math.isclose(choice.probability, exact[order[0]].item(), rel_tol=1e-5)
    assert [other.token_id for other in choice.alternatives] == order[:5]
    for other in choice.alternatives:
        assert math.isclose(other.probability, exact[other.token_id].item(), rel_tol=1e-5)
        assert other.text == token_text(tokenizer, other.token_id)
    assert len(choice_of(tokenizer, sampled(logits[:3])).alternatives) == 3


def test_bfloat16_logits_are_read_in_float32():
    assert math.isclose(sampled(torch.zeros(1000, dtype=torch.bfloat16)).probability, 1e-3, rel_tol=1e-5)


def test_the_text_of_a_token_keeps_its_space(small_tokenizer_folder):
    tokenizer = Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)
    assert token_text(tokenizer, tokenizer.token_id("▁")) == " "
    assert token_text(tokenizer, tokenizer.eos_token_id) == "<eos>"
    assert token_text(tokenizer, 10**6) == "<1000000>"


def test_packed_choices_are_the_same_choices():
    words = [f" wörd{number}" for number in range(500)]

    def choices(count):
        for place in range(count):
            others = tuple(Alternative(200_000 + place + n, words[(place + n) % 500], 1 / (n + 3)) for n in range(5))
            yield TokenChoice(100_000 + place, words[place % 500], 0.1 + place / 10_000, others)

    plain, packed = tuple(choices(20)), TokenChoices(choices(20))
    assert tuple(packed) == plain
    assert (packed[3], packed[-1], packed[2:4], len(packed)) == (plain[3], plain[-1], list(plain[2:4]), 20)
    assert packed == TokenChoices(plain) != TokenChoices(plain[1:])
    assert pickle.loads(pickle.dumps(packed)) == packed
    assert list(TokenChoices()) == []
