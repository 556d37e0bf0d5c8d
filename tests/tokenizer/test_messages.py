"""Chats as other programs write them read like the same chat in transformers' spelling."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from gemma3_core.errors import ChatTemplateError, ImageError
from gemma3_core.tokenizer.messages import normalized_chat

TENSORS = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}


def user(*parts):
    return {"role": "user", "content": list(parts)}


@pytest.fixture(scope="module")
def data():
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize("chat", [
    [{"role": "user", "content": "Hi"},
     {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
     {"role": "user", "content": "And?", "name": None}],
    [{"role": "user", "content": "Hi"}, {"role": "assistant", "tool_calls": []}],
    [user({"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}})],
    [user({"type": "image_url", "image_url": "data:image/png;base64,AAAA"}, {"type": "text", "text": "What is it?"})],
])  # fmt: skip
def test_what_the_reference_reads_gives_its_prompt(processor, reference_processor, chat):
    assert processor.apply_chat_template(chat) == reference_processor.apply_chat_template(chat)


@pytest.mark.parametrize(
    "spelling",
    [
        lambda data: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        lambda data: {"type": "image_url", "image_url": f"data:image/png;base64,{data}"},
        lambda data: {"type": "input_image", "image_url": f"data:image/png;base64,{data}", "detail": "auto"},
        lambda data: {"image_url": {"url": f"data:image/png;base64,{data}"}},
        lambda data: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        lambda data: {"type": "image", "source": {"type": "url", "url": f"data:image/png;base64,{data}"}},
        lambda data: {"image": f"data:image/png;base64,{data}"},
        lambda data: {"type": "image", "image": base64.b64decode(data), "url": None},
    ],
)
def test_every_spelling_of_a_picture_gives_the_same_inputs(small_processor, data, spelling):
    chat = [user({"type": "image", "base64": data}, {"type": "text", "text": "What is it?"})]
    expected = small_processor.apply_chat_template(chat, **TENSORS)
    ours = small_processor.apply_chat_template(
        [user(spelling(data), {"type": "input_text", "text": "What is it?"})], **TENSORS
    )
    assert expected["pixel_values"].shape[0] == 1
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


@pytest.mark.parametrize("content", [
    ["One ", "two"],
    [{"type": "text", "text": ["One ", "two"]}],
    [{"type": "input_text", "text": "One "}, {"type": "output_text", "text": "two"}],
    [{"text": "One "}, {"type": "refusal", "refusal": "two"}],
])  # fmt: skip
def test_every_spelling_of_texts_gives_the_same_prompt(small_processor, content):
    parts = [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]
    expected = small_processor.apply_chat_template([user(*parts)])
    assert small_processor.apply_chat_template([{"role": "user", "content": content}]) == expected


def test_one_part_and_a_developer_message(small_processor):
    chat = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": {"type": "text", "text": "Hi"}}]
    plain = [{"role": "system", "content": "Be brief."}, user({"type": "text", "text": "Hi"})]
    assert small_processor.apply_chat_template(chat) == small_processor.apply_chat_template(plain)


@pytest.mark.parametrize("content", [["<end_of_turn>"], {"text": "<end_of_turn>"}, [{"type": "input_text",
                                      "text": ["<end_of_turn>"]}]])  # fmt: skip
def test_no_spelling_slips_a_special_token_through(small_processor, content):
    escaped = small_processor.escape_messages([{"role": "user", "content": content}])
    ids = small_processor.apply_chat_template(escaped, tokenize=True)[0]
    turn_end = small_processor.tokenizer.token_id("<end_of_turn>")
    assert ids.count(turn_end) == 1  # the template's own


@pytest.mark.parametrize(("message", "reason"), [
    ("hello", "Message 2 is not a dict"),
    ({"content": "Hi"}, "Message 2 is not a dict with the keys role"),
    ({"role": "user"}, r"Message 2 \(user\): the content is missing"),
    ({"role": "user", "content": 3}, r"Message 2 \(user\): the content is of type int"),
    (user({"type": "text", "text": "a"}, 3), r"Message 2 \(user\), part 2 is of type int"),
    (user({"type": "text"}), r"part 1 has no text"),
    (user({"type": "text", "text": ["a", 1]}), r"part 1 has no text"),
    (user({"type": "input_audio", "input_audio": {}}), r"part 1 is of type 'input_audio'"),
    (user({"words": "a"}), r"part 1 is without a type"),
    (user({"type": "input_image", "file_id": "f1"}), r"part 1 names a file of another service"),
    (user({"type": "image_url", "image_url": {}}), r"part 1 has no picture"),
    (user({"type": "image", "source": {}}), r"part 1 has no picture"),
])  # fmt: skip
def test_what_can_not_be_read_is_named(small_processor, message, reason):
    with pytest.raises(ChatTemplateError, match=reason):
        small_processor.apply_chat_template([{"role": "user", "content": "Hi"}, message])


def test_in_a_batch_the_conversation_is_named_too(small_processor):
    with pytest.raises(ChatTemplateError, match=r"Conversation 2, message 1 \(user\): the content is missing"):
        small_processor.apply_chat_template([[{"role": "user", "content": "Hi"}], [{"role": "user"}]])


@pytest.mark.parametrize("part", [
    {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
    {"type": "image_url", "image_url": "ftp://example.com/a.png"},
    {"type": "input_image", "image_url": {"url": "http://127.0.0.1/a.png"}},
    {"type": "image", "base64": "?"},
    {"type": "image", "url": 5},
])  # fmt: skip
def test_a_picture_that_can_not_be_read_is_named(small_processor, part):
    with pytest.raises(ImageError, match=r"^Message 2 \(user\): "):
        small_processor.apply_chat_template([{"role": "system", "content": "Hi"}, user(part)], **TENSORS)


def test_normalizing_twice_changes_nothing():
    chat = [user("a", {"type": "image_url", "image_url": "x"}), {"role": "assistant", "content": None}]
    once = normalized_chat(chat)
    assert normalized_chat(once) == once
