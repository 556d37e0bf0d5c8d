"""Messages to prompt text: ours against the reference's renderer, and templates that mean harm."""

import time
from typing import Any

import pytest

from gemma3_core.errors import ChatTemplateError
from gemma3_core.tokenizer import chat_template as module
from gemma3_core.tokenizer.chat_template import render_chat

USER: dict[str, Any] = {
    "role": "user",
    "content": [{"type": "image", "url": "x.png"}, {"type": "text", "text": " What is it?\n"}],
}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "A cow. "}]}
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi "}],
    [USER],
    [{"role": "system", "content": "Be brief."}, USER, ANSWER, {"role": "user", "content": "Sure?"}],
    [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER, ANSWER],
    [{"role": "user", "content": [{"type": "image"}, {"type": "image"}]}, {"role": "assistant", "content": "Two. "}],
    [{"role": "user", "content": ""}],
]


@pytest.fixture(scope="module")
def template(reference_processor):
    return reference_processor.chat_template


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("generation", [True, False])
def test_prompts_equal_the_reference(template, reference_processor, chat, generation):
    theirs = reference_processor.apply_chat_template(chat, add_generation_prompt=generation)
    assert render_chat(template, chat, bos_token="<bos>", add_generation_prompt=generation) == theirs


@pytest.mark.parametrize("chat", [CHATS[2][:3], CHATS[3], CHATS[4], CHATS[0]])
def test_continued_messages_equal_the_reference(template, reference_processor, chat):
    theirs = reference_processor.apply_chat_template(chat, continue_final_message=True)
    ours = render_chat(template, chat, bos_token="<bos>", continue_final_message=True)
    assert ours == theirs
    assert not ours.endswith("\n")


def test_language_features_equal_the_reference():
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{%- for m in messages %}\n  {%- if loop.index > 2 %}{% break %}{% endif %}\n"
        "  {% generation %}{{ m | tojson }}{% endgeneration %}\n{%- endfor %}\n"
        "{{ 'a' ~ 1 ~ none }}{{ 2 + 3 }}{{ 'b' * 3 }}{{ '%05d' % 7 }}{{ 2 ** 9 }}{{ tools is none }}\n"
        "{% set n = namespace(x='') %}{% for i in range(3) %}{% set n.x = n.x ~ i %}{% endfor %}{{ n.x + '<é>' }}\n"
        "{% macro f(x) %}({{ x ~ '!' }}){% endmacro %}{{ f('y') }}{{ [1, 2] + [3] }}"
        "{{ messages | map(attribute='role') | join(',') }}"
    )
    theirs, _ = render_jinja_template([CHATS[2]], chat_template=source, bos_token="<bos>")  # type: ignore[str-unpack]
    assert render_chat(source, CHATS[2], bos_token="<bos>") == theirs[0]


def test_messages_are_not_changed(template):
    chat = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    render_chat(template, chat, continue_final_message=True)
    assert chat == [{"role": "user", "content": [{"type": "text", "text": "a"}]}]


def test_roles_that_do_not_alternate_are_refused_in_the_templates_words(template):
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        render_chat(template, [USER, USER])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "user"}],
        ["hello"],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "video", "url": "x"}]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [3]}],
    ],
)
def test_malformed_messages_are_errors(template, messages):
    with pytest.raises(ChatTemplateError):
        render_chat(template, messages)


def test_generation_prompt_and_continuation_exclude_each_other(template):
    with pytest.raises(ChatTemplateError, match="choose one"):
        render_chat(template, CHATS[3], add_generation_prompt=True, continue_final_message=True)


def test_a_final_message_that_the_template_drops_cannot_be_continued():
    with pytest.raises(ChatTemplateError, match="can't be continued"):
        render_chat("{{ messages[0].role }}", CHATS[0], continue_final_message=True)


@pytest.mark.parametrize(
    "source", ["{% if %}", "{{ a.b.c }}", "{{ 1 + 'a' }}", "{{ messages[9].role }}", "{{ 1 / 0 }}"]
)
def test_broken_templates_are_errors(source):
    with pytest.raises(ChatTemplateError):
        render_chat(source, CHATS[0])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ raise_exception.__globals__.keys() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_the_sandbox_holds(source):
    with pytest.raises(ChatTemplateError):
        render_chat(source, CHATS[0])


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
        "{% set s = 'a' * 9999 %}{% for i in s %}{% for j in s %}{% for k in s if false %}"
        "{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set tick = 1 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ],
)
def test_endless_templates_are_stopped(source, monkeypatch):
    monkeypatch.setattr(module, "_MAX_SECONDS", 0.2)
    start = time.thread_time()
    with pytest.raises(ChatTemplateError, match=r"0\.2 seconds"):
        render_chat(source, CHATS[0])
    assert time.thread_time() - start < 2


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10 ** 12 }}",
        "{{ 10 ** 1000000000 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set s = 'a' * 99999 %}{% for i in range(99999) %}{{ s }}{% endfor %}",
        "{{ [[1] * 99999] * 10 ** 9 }}",
    ],
)
def test_greedy_templates_are_stopped(source):
    start = time.thread_time()
    with pytest.raises(ChatTemplateError, match="4,000,000"):
        render_chat(source, CHATS[0])
    assert time.thread_time() - start < 1


def test_templates_see_no_objects_with_methods():
    from PIL import Image

    picture = Image.new("RGB", (2, 2))
    chat = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    assert render_chat("{{ messages[0].content[0].image }}", chat) == "<Image>"
