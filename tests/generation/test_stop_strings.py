"""Stop strings: the token that ends a row is the one that ends it in transformers."""

import pytest
import torch
from transformers import Gemma3ForConditionalGeneration as ReferenceModel
from transformers import GemmaTokenizer as ReferenceTokenizer
from transformers.generation.stopping_criteria import StopStringCriteria

from gemma3_core.generation.stop_strings import StopStrings
from gemma3_core.models.multimodal import Gemma3ForConditionalGeneration
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

NEVER = 9_999
"""A stop that never comes: it lies beyond the small models' vocabulary."""


@pytest.fixture(scope="module")
def tokenizer(small_tokenizer_folder) -> Gemma3Tokenizer:
    return Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)


@pytest.fixture(scope="module")
def their_tokenizer(small_tokenizer_folder):
    return ReferenceTokenizer.from_pretrained(small_tokenizer_folder)


STRINGS = ["stop", "aa", "Ω", "\n\n", "<end_of_turn>", "a b", ["zz", "op s"], "é", "x"]


@pytest.mark.parametrize("strings", STRINGS, ids=repr)
def test_stop_strings_end_where_those_of_transformers_do(tokenizer, their_tokenizer, strings):
    texts = [
        "stop",
        "nonstop",
        "stop s",
        "sto",
        "a stoppable",
        "caab",
        "aΩ",
        "Ωa",
        "Ω",
        "a\n\n\n\n",
        "a\n\nb",
        "é",
        "pop s",
    ]
    texts += ["x<end_of_turn>", "a<end_of_turn>x", "a b", "a  b", "ab", "zz", "zzz", "azza", "xx"]
    rows = [[2, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
    rows += [row[:-1] for row in rows] + [[10_000, *rows[0][1:]]]
    mine = StopStrings(strings, tokenizer)
    reference = StopStringCriteria(their_tokenizer, strings)
    got = [bool(mine.ended(torch.tensor([row]))) for row in rows if row]
    assert got == [bool(reference(torch.tensor([row]), None)) for row in rows if row]
    assert 0 < sum(got) < len(got)


@pytest.mark.parametrize("stops", [None, [], [NEVER]], ids=str)
def test_an_answer_ends_with_the_token_that_completes_a_stop_string(chat_folder, tokenizer, their_tokenizer, stops):
    """Each row at its own place; rows that ended are filled up only where there are stop ids, as in transformers."""
    model = Gemma3ForConditionalGeneration.from_pretrained(chat_folder)
    prompt = dict(tokenizer(["abc", "a longer one"], padding=True, return_tensors="pt"))
    start = prompt["input_ids"].shape[1]
    free = [tokenizer.decode(row[start:]) for row in model.generate(**prompt, max_new_tokens=25, eos_token_id=stops)]
    strings = [next(letter for letter in text[3:] if letter.isascii() and letter.isprintable()) for text in free]
    given = {**prompt, "max_new_tokens": 25, "stop_strings": [*strings, "never said"], "eos_token_id": stops}
    cut = model.generate(**given, tokenizer=tokenizer, pad_token_id=0)

    def is_said(ids: torch.Tensor) -> bool:
        return any(string in tokenizer.decode(ids) for string in strings)

    ends = [next(n for n in range(1, 26) if is_said(row[start : start + n])) for row in cut]
    assert ends[0] != ends[1]
    assert cut.shape[1] == start + max(ends)
    reference = ReferenceModel.from_pretrained(chat_folder).eval()
    assert torch.equal(cut, reference.generate(**given, tokenizer=their_tokenizer, pad_token_id=0))
