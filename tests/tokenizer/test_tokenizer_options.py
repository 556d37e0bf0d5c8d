"""The tokenizer alone, with every option of its call: ours against the reference, on the real vocabulary."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from gemma3_core.errors import ChatTemplateError, CheckpointError, PromptError, UnsupportedOptionError
from gemma3_core.tokenizer.encoding import NO_LIMIT
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

ONE = "one two three four five six seven"
BATCH = [ONE, "seven <start_of_image> é", "", "naïve 東京"]
CHAT = [{"role": "user", "content": [{"type": "text", "text": "Hi "}]}]
TALK = [*CHAT, {"role": "assistant", "content": "Hello. "}, {"role": "user", "content": "And?"}]


@pytest.fixture(scope="module")
def ours(real_tokenizer_folder):
    return Gemma3Tokenizer.from_pretrained(real_tokenizer_folder)


@pytest.fixture(scope="module")
def theirs(reference_processor):
    return copy.copy(reference_processor.tokenizer)


@pytest.fixture(scope="module")
def small(small_tokenizer_folder):
    return Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)


def plain(value: Any) -> Any:
    """Tensors and arrays as (kind, type of numbers, lists), to compare them with =="""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, value.tolist())
    if isinstance(value, np.ndarray):
        return ("array", value.dtype, [row.tolist() if isinstance(row, np.ndarray) else row for row in value])
    return value


def assert_same(ours: Any, theirs: Any) -> None:
    assert {name: plain(value) for name, value in ours.items()} == {n: plain(v) for n, v in theirs.items()}


CALLS: list[dict[str, Any]] = [
    {},
    {"add_special_tokens": False},
    {"max_length": 3},
    {"max_length": 1},
    {"max_length": 3, "add_special_tokens": False},
    {"max_length": 3, "truncation": True},
    {"max_length": 3, "truncation": "only_first"},
    {"max_length": 3, "truncation": False},
    {"max_length": 3, "truncation": "do_not_truncate"},
    {"truncation": True},
    {"padding": True},
    {"padding": "longest", "padding_side": "right"},
    {"padding": "do_not_pad"},
    {"padding": "max_length", "max_length": 10},
    {"padding": "max_length", "max_length": 5},
    {"padding": "max_length", "max_length": 5, "truncation": True},
    {"padding": True, "max_length": 5, "truncation": True, "padding_side": "right"},
    {"padding": True, "pad_to_multiple_of": 8},
    {"padding": "max_length", "max_length": 5, "pad_to_multiple_of": 4},
    {"return_token_type_ids": True, "padding": True},
    {"return_attention_mask": False},
    {"return_special_tokens_mask": True, "return_offsets_mapping": True, "return_length": True, "padding": True},
    {"max_length": 4, "truncation": True, "stride": 1, "return_overflowing_tokens": True},
    {"max_length": 4, "truncation": True, "return_overflowing_tokens": True, "padding": True},
    {"padding": True, "return_tensors": "pt"},
    {"padding": True, "return_tensors": "np"},
    {"padding": True, "return_tensors": "pt", "return_offsets_mapping": True, "return_length": True},
    {"return_tensors": "np"},
]


@pytest.mark.parametrize("options", CALLS, ids=str)
def test_calls_equal_the_reference(ours, theirs, options):
    if options != {"return_tensors": "np"}:
        assert_same(ours(ONE, **options), theirs(ONE, **options))
        assert_same(ours([ONE], **options), theirs([ONE], **options))
    assert_same(ours(BATCH, **options), theirs(BATCH, **options))
    assert_same(ours(tuple(BATCH), **options), theirs(tuple(BATCH), **options))


@pytest.mark.parametrize("truncation_side", ["left", "right"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_sides_of_the_instance_equal_the_reference(small_tokenizer_folder, truncation_side, padding_side):
    from transformers import GemmaTokenizer

    sides = {"truncation_side": truncation_side, "padding_side": padding_side}
    ours = Gemma3Tokenizer.from_pretrained(small_tokenizer_folder, **sides)
    theirs = GemmaTokenizer.from_pretrained(small_tokenizer_folder, **sides)
    options = {"padding": True, "max_length": 4, "truncation": True}
    assert_same(ours(BATCH, **options), theirs(BATCH, **options))
    assert_same(ours(BATCH, truncation_side="left", **options), _left(theirs)(BATCH, **options))


def _left(tokenizer: Any) -> Any:
    tokenizer.truncation_side = "left"
    return tokenizer


def test_words_equal_the_reference(ours, theirs):
    for words in (["a", "few words"], [["a", "few"], ["words"]]):
        options = {"is_split_into_words": True}
        assert_same(ours(words, **options), theirs(words, **options))


def test_unequal_rows_are_no_tensor(ours):
    with pytest.raises(PromptError, match=r"different lengths \(1 to 8 tokens.*padding=True"):
        ours(BATCH, return_tensors="pt")


def test_encodings_lead_from_tokens_to_text(ours, theirs):
    mine, other = ours(BATCH, padding=True), theirs(BATCH, padding=True)
    for row in range(len(BATCH)):
        assert mine.tokens(row) == other.tokens(row)
        assert mine.sequence_ids(row) == other.sequence_ids(row)
        assert mine.word_ids(row) == other.word_ids(row)
        assert mine[row].ids == other[row].ids == mine.input_ids[row]
    assert [mine.char_to_token(1, i) for i in range(8)] == [other.char_to_token(1, i) for i in range(8)]
    assert mine.token_to_chars(0, 3) == tuple(other.token_to_chars(0, 3))
    assert [row.tokens for row in mine[1:3]] == [row.tokens for row in other[1:3]]


def test_vocabulary_and_special_tokens_equal_the_reference(ours, theirs):
    for name in (
        "vocab_size", "all_special_tokens", "all_special_ids", "special_tokens_map", "model_max_length",
        "padding_side", "truncation_side", "model_input_names", "is_fast", "bos_token", "bos_token_id", "eos_token",
        "eos_token_id", "pad_token", "pad_token_id", "unk_token", "unk_token_id", "mask_token", "mask_token_id",
        "boi_token", "boi_token_id", "eoi_token", "eoi_token_id", "image_token", "image_token_id", "sep_token",
        "cls_token_id", "name_or_path",
    ):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name
    assert len(ours) == len(theirs)
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.num_special_tokens_to_add() == theirs.num_special_tokens_to_add()
    for tokens in ("a", "<bos>", "nosuchtoken", ["a", "▁two", "nosuchtoken"]):
        assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    for ids in (5, 300_000, [1, 2, 236746, 300_000], torch.tensor([2, 500]), np.array([2, 500])):
        assert ours.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    assert ours.convert_ids_to_tokens([2, 500], True) == theirs.convert_ids_to_tokens([2, 500], True)
    assert ours.tokenize("hi  there\n\n\né<bos>") == theirs.tokenize("hi  there\n\n\né<bos>")
    assert ours.tokenize("hi", add_special_tokens=True) == theirs.tokenize("hi", add_special_tokens=True)
    assert ours.convert_tokens_to_string(["hi", "▁there"]) == theirs.convert_tokens_to_string(["hi", "▁there"])


def test_encode_and_decode_take_what_the_reference_takes(ours, theirs):
    assert ours.encode(BATCH) == theirs.encode(BATCH)
    assert torch.equal(ours.encode(ONE, return_tensors="pt"), theirs.encode(ONE, return_tensors="pt"))
    assert ours.encode(ONE, max_length=3, truncation=True) == theirs.encode(ONE, max_length=3, truncation=True)
    row = ours.encode("a <end_of_turn> é")
    for ids in (
        row, [row, row[:3]], torch.tensor(row), torch.tensor([row, row]), np.array(row), np.array([row]), 500, [],
        [torch.tensor(i) for i in row], [torch.tensor(row), torch.tensor(row[:2])], torch.tensor(500), tuple(row),
    ):  # fmt: skip
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(ids, skip_special_tokens=skip)
            ours_batch = ours.batch_decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert ours_batch == theirs.batch_decode(ids, skip_special_tokens=skip)
    assert ours.decode(ours(ONE)) == theirs.decode(dict(theirs(ONE)))


PADDINGS: list[dict[str, Any]] = [
    {}, {"padding": "max_length", "max_length": 6}, {"padding_side": "right"}, {"pad_to_multiple_of": 4},
    {"return_tensors": "pt"}, {"return_tensors": "np"}, {"return_attention_mask": False}, {"padding": False},
]  # fmt: skip


@pytest.mark.parametrize("options", PADDINGS, ids=str)
def test_pad_equals_the_reference(ours, theirs, options):
    rows = {"input_ids": [[2, 5, 6], [2]], "token_type_ids": [[0, 1, 1], [0]], "special_tokens_mask": [[1, 0, 0], [1]]}
    if options != {"padding": False}:
        assert_same(ours.pad(rows, **options), theirs.pad(copy.deepcopy(rows), **options))
        single = [{"input_ids": [2, 5]}, {"input_ids": [2]}]
        assert_same(ours.pad(single, **options), theirs.pad(copy.deepcopy(single), **options))
        tensors = [{"input_ids": torch.tensor([2, 5])}, {"input_ids": torch.tensor([2])}]
        assert_same(ours.pad(tensors, **options), theirs.pad(copy.deepcopy(tensors), **options))
    assert_same(ours.pad({"input_ids": [2, 5]}, **options), theirs.pad({"input_ids": [2, 5]}, **options))
    assert ours.pad([[2, 5], [2]]).input_ids == [[2, 5], [0, 2]]
    assert rows["input_ids"] == [[2, 5, 6], [2]]


TEMPLATES: list[dict[str, Any]] = [
    {},
    {"tokenize": False},
    {"return_dict": False},
    {"add_generation_prompt": True},
    {"return_tensors": "pt"},
    {"return_tensors": "pt", "return_dict": False, "add_generation_prompt": True},
    {"max_length": 4},
    {"max_length": 4, "truncation": True},
    {"tokenizer_kwargs": {"return_token_type_ids": True}},
]


@pytest.mark.parametrize("options", TEMPLATES, ids=str)
def test_chat_templates_equal_the_reference(ours, theirs, options):
    for chat in (CHAT, TALK):
        mine, other = ours.apply_chat_template(chat, **options), theirs.apply_chat_template(chat, **options)
        if hasattr(mine, "items"):
            assert_same(mine, other)
        else:
            assert plain(mine) == plain(other)
    options = {**options, "padding": True} if options.get("tokenize", True) else options
    mine, other = (side.apply_chat_template([CHAT, TALK], **options) for side in (ours, theirs))
    if hasattr(mine, "items"):
        assert_same(mine, other)
    else:
        assert plain(mine) == plain(other)


def test_continued_messages_and_other_templates_equal_the_reference(ours, theirs):
    chat = [*CHAT, {"role": "assistant", "content": [{"type": "text", "text": "I think "}]}]
    for options in (
        {"continue_final_message": True},
        {"continue_final_message": "content"},
        {"chat_template": "{{ messages[0].role }}{{ greeting }}{{ tools | tojson }}{{ eos_token }}", "greeting": "yes"},
        {"chat_template": "{{ tools | tojson }}", "tools": [{"name": "f"}]},
    ):
        mine = ours.apply_chat_template(chat, tokenize=False, **options)
        assert mine == theirs.apply_chat_template(chat, tokenize=False, **options)


def test_another_pad_token_can_be_named(small_tokenizer_folder):
    tokenizer = Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer(["ab", "a"], padding=True).input_ids[1][0] == tokenizer.eos_token_id == tokenizer.pad_token_id
    tokenizer.pad_token_id = tokenizer.token_id("a")
    assert tokenizer.pad_token == "a"
    with pytest.raises(CheckpointError, match="nowhere"):
        tokenizer.pad_token = "<nowhere>"


def test_a_tokenizer_without_limit_neither_cuts_nor_fills(small):
    assert small.model_max_length == NO_LIMIT
    for options in ({"truncation": True}, {"padding": "max_length"}):
        assert small("abc", **options).input_ids == small("abc").input_ids


def test_settings_of_the_instance_are_saved(small_tokenizer_folder, tmp_path):
    options = {"padding_side": "right", "truncation_side": "left", "model_max_length": 5, "chat_template": "{{ 1 }}"}
    tokenizer = Gemma3Tokenizer.from_pretrained(small_tokenizer_folder, use_fast=True, **options)
    written = tokenizer.save_pretrained(tmp_path)
    assert sorted(path.rsplit("/", 1)[1] for path in written) == sorted(path.name for path in tmp_path.iterdir())
    again = Gemma3Tokenizer.from_pretrained(tmp_path)
    assert {name: getattr(again, name) for name in options} == options
    assert again("abcdefgh", truncation=True).input_ids == tokenizer("abcdefgh", truncation=True).input_ids
    assert len(again("abcdefgh", truncation=True).input_ids) == 5


def test_several_threads_share_a_tokenizer(small):
    """Lengths are said per call: none may leak into another thread's."""
    from concurrent.futures import ThreadPoolExecutor

    def widths(length: int) -> set[int]:
        options = {"padding": "max_length", "max_length": length, "truncation": True}
        return {len(row) for _ in range(50) for row in small(["abcdefghijkl", "a"], **options).input_ids}

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(widths, [3, 5, 7, 9])) == [{3}, {5}, {7}, {9}]


@pytest.mark.parametrize("options", [
    {"padding": "wide"}, {"padding": None}, {"padding": 1}, {"truncation": "only_second"}, {"padding_side": "top"},
    {"truncation_side": "top"}, {"max_length": 0}, {"max_length": "9"}, {"max_length": True}, {"stride": -1},
    {"pad_to_multiple_of": 0}, {"return_tensors": "tf"}, {"shiny": 1}, {"text_target": "a"}, {"text_pair": "a"},
    {"split_special_tokens": True}, {"max_length": 3, "stride": 2},
], ids=str)  # fmt: skip
def test_options_that_do_not_exist_are_errors_that_name_them(small, options):
    with pytest.raises(UnsupportedOptionError, match=list(options)[-1]):
        small("a b c d", **options)


@pytest.mark.parametrize("options", [{"padding_side": "top"}, {"truncation_side": 1}, {"shiny": 1}])
def test_settings_that_do_not_exist_are_errors(small_tokenizer_folder, options):
    with pytest.raises(UnsupportedOptionError, match=next(iter(options))):
        Gemma3Tokenizer.from_pretrained(small_tokenizer_folder, **options)


def test_a_side_that_was_set_wrong_is_an_error_where_it_is_used(small_tokenizer_folder):
    tokenizer = Gemma3Tokenizer.from_pretrained(small_tokenizer_folder)
    tokenizer.padding_side = "top"
    with pytest.raises(UnsupportedOptionError, match="padding_side is 'top'"):
        tokenizer(["a", "bc"], padding=True)


@pytest.mark.parametrize("text", [None, 3, b"bytes", {"text": "a"}, ["a", 1], ["a", None], [["a"]], np.array(["a"])])
def test_what_is_no_text_is_a_typed_error_that_says_what_it_got(small, text):
    item = text if not isinstance(text, list) else text[-1]
    with pytest.raises(PromptError, match=f"is a {type(item).__name__}; give a string"):
        small(text)


@pytest.mark.parametrize("ids", ["abc", None, [1.5], [-100, 2], [[2], [None]], 2.0, torch.tensor([1.0]), [True]])
def test_what_are_no_ids_is_a_typed_error(small, ids):
    with pytest.raises(PromptError, match="ids"):
        small.decode(ids)


@pytest.mark.parametrize("chat", [None, "hello", 3, [], [[]], [["words"]], [CHAT, "hello"], {"role": "user"}])
def test_what_is_no_conversation_is_a_typed_error(small, chat):
    with pytest.raises(ChatTemplateError):
        small.apply_chat_template(chat)


@pytest.mark.parametrize("options", [
    {"return_assistant_tokens_mask": True}, {"sanitize_control_tokens": True}, {"tools": [{"name": "f"}]},
    {"documents": [{"title": "t", "text": "x"}]}, {"shiny": 1}, {"continue_final_message": "thoughts"},
], ids=str)  # fmt: skip
def test_what_the_template_has_no_use_for_is_an_error(small, options):
    with pytest.raises(UnsupportedOptionError, match=next(iter(options))):
        small.apply_chat_template(CHAT, **options)


def test_functions_are_no_tools(small):
    with pytest.raises(UnsupportedOptionError, match="tools must be a list of JSON schemas"):
        small.apply_chat_template(CHAT, tools=[print], chat_template="{{ tools }}")


def test_results_can_be_copied_and_sent_to_other_processes(small):
    inputs = small(["a b", "c"], padding=True, return_tensors="pt")
    for again in (copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs))):
        assert torch.equal(again.input_ids, inputs.input_ids)
        assert again.tokens(1) == inputs.tokens(1)


def test_a_length_that_does_nothing_is_warned_of_as_in_the_reference(small):
    with pytest.warns(UserWarning, match="max_length does nothing"):
        small(["a", "bc"], padding=True, max_length=9)
    with pytest.warns(UserWarning, match="clean_up_tokenization_spaces does nothing"):
        small.decode([2], clean_up_tokenization_spaces=True)
