"""Tokens that a program adds, against transformers: ids, texts, files both ways."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

TEXTS = [
    "go <left> now", "go<left>now", "a<LEFT> <left>  <tool> b", "<tool>x</tool>", "one two", "nine <pin>", "<end> <bos>"
]  # fmt: skip
CALLS: list[tuple[str, Any, dict[str, Any]]] = [
    ("add_tokens", "<left>", {}),
    ("add_tokens", ["<left>", "two", "<left>", "<bos>"], {}),
    ("add_tokens", [AddedToken("<left>", lstrip=True, rstrip=True), AddedToken("ne", single_word=True)], {}),
    ("add_tokens", ["<tool>", "</tool>"], {"special_tokens": True}),
    ("add_tokens", [], {}),
    ("add_special_tokens", {"extra_special_tokens": ["<tool>", AddedToken("<pin>", lstrip=True, special=True)]}, {}),
    ("add_special_tokens", {"additional_special_tokens": ["<tool>", "</tool>"]}, {}),
    ("add_special_tokens", {"pad_token": "<pin>", "eos_token": "<end>", "extra_special_tokens": ["<left>"]}, {}),
    ("add_special_tokens", {"mask_token": "<pad>"}, {}),
    ("add_special_tokens", {}, {}),
]


def loaded(folder: Path) -> tuple[Gemma3Tokenizer, Any]:
    from transformers import GemmaTokenizer

    return Gemma3Tokenizer.from_pretrained(folder), GemmaTokenizer.from_pretrained(folder)


def facts(tokenizer: Any) -> dict[str, Any]:
    """What a program sees of a tokenizer that is ours or theirs."""
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    return {
        "ids": rows,
        "texts": [tokenizer.decode(row) for row in rows],
        "without special tokens": [tokenizer.decode(row, skip_special_tokens=True) for row in rows],
        "length": len(tokenizer),
        "added": {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()},
        "extra": tokenizer.extra_special_tokens,
        "special": set(tokenizer.all_special_tokens) - {"<start_of_image>", "<end_of_image>", "<image_soft_token>"},
        "names": {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token", "mask_token", "bos_token")},
        "batch": tokenizer(["a", "one <left>"], padding=True)["input_ids"],
    }


@pytest.mark.parametrize(("method", "tokens", "options"), CALLS, ids=lambda value: str(value)[:40])
def test_what_is_added_is_read_written_and_stored_as_in_transformers(
    small_tokenizer_folder, tmp_path, method, tokens, options
):
    ours, theirs = loaded(small_tokenizer_folder)
    assert getattr(ours, method)(tokens, **options) == getattr(theirs, method)(tokens, **options)
    expected = facts(theirs)
    assert facts(ours) == expected
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        for again in loaded(tmp_path / folder):
            assert facts(again) == expected, (folder, type(again))


def test_extra_tokens_are_replaced_or_joined(small_tokenizer_folder):
    for tokenizer in (both := loaded(small_tokenizer_folder)):
        tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>", "<pin>"]})
        tokenizer.add_special_tokens({"extra_special_tokens": ["<pin>", "<left>"]}, replace_extra_special_tokens=False)
    assert both[0].extra_special_tokens == ["<tool>", "<pin>", "<left>"]
    assert facts(both[0]) == facts(both[1])
    for tokenizer in both:
        tokenizer.add_special_tokens({"extra_special_tokens": ["<end>"]})
    assert both[0].extra_special_tokens == ["<end>"]
    assert facts(both[0]) == facts(both[1])


def test_a_visitor_can_not_write_a_special_token_that_was_added(small_tokenizer_folder):
    tokenizer, _ = loaded(small_tokenizer_folder)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"]})
    added = tokenizer.convert_tokens_to_ids("<tool>")
    assert added in tokenizer.special_ids
    assert added not in tokenizer(tokenizer.escape_special_tokens("a<tool>b"))["input_ids"]


@pytest.mark.parametrize(
    ("method", "tokens", "words"),
    [
        ("add_tokens", 5, "strings or AddedTokens, or a list of these; got 5"),
        ("add_tokens", ["a", 5], "got .'a', 5."),
        ("add_special_tokens", {"cls_token": "<cls>"}, "does not know cls_token. Give bos_token"),
        ("add_special_tokens", {"pad_token": ["<p>"]}, "pad_token must be a string or an AddedToken"),
        ("add_special_tokens", {"extra_special_tokens": 5}, "got 5"),
    ],
)
def test_what_can_not_be_added_is_named(small_tokenizer_folder, method, tokens, words):
    tokenizer, _ = loaded(small_tokenizer_folder)
    before = len(tokenizer)
    with pytest.raises(UnsupportedOptionError, match=words):
        getattr(tokenizer, method)(tokens)
    assert len(tokenizer) == before
