"""Messages -> prompt text, by the checkpoint's own Jinja template.

The template comes with the checkpoint, so it is a stranger's code. It runs in Jinja's immutable sandbox, sees only
plain data, and has bounds:

- time: each loop iteration, branch and call checks a deadline;
- the prompt, and each text or list that `+`, `*`, `~`, `%` or `**` builds: 4,000,000 characters or elements;
- `range`: 100,000 numbers, by the sandbox.

A single filter or text method (`replace`, `center`, …) has no bound: it can build a large text, or take long, before
the next check. Whoever picks the checkpoint takes that risk; visitors' messages are never read as a template.
"""

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, partial
from types import CodeType
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from gemma3_core.errors import ChatTemplateError, UnsupportedOptionError
from gemma3_core.tokenizer.messages import Message, normalized_chat

_MAX_SECONDS = 5.0  # a Gemma template takes about a millisecond
_MAX_CHARACTERS = 4_000_000  # above any context: 131,072 tokens of 30 characters
_MAX_DIGITS = 100  # of an integer
_END_MARK = "[[continue from here]] "


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt of one conversation.

    A message is {"role": "system" | "user" | "assistant", "content": text or list of parts}; `normalized_message` says
    which spellings are read. `add_generation_prompt` opens the model's turn; `continue_final_message` leaves the last
    message's turn open instead, so that the model continues it.
    `variables` are further names that the template may use, such as `tools`.
    Raises ChatTemplateError for messages of another form or that the template refuses.
    """
    if isinstance(continue_final_message, str) and continue_final_message != "content":
        given = repr(continue_final_message)
        raise UnsupportedOptionError(f'continue_final_message={given} is not supported; give True or "content".')
    if add_generation_prompt and continue_final_message:
        raise ChatTemplateError("add_generation_prompt and continue_final_message exclude each other: choose one.")
    chat = _plain(normalized_chat(messages))
    if not chat:
        raise ChatTemplateError("There are no messages; give at least one of role user.")
    final_text = _mark_end(chat[-1]) if continue_final_message else None
    names = {
        "tools": None,
        "documents": None,
        "bos_token": bos_token,
        "eos_token": eos_token,
        **_plain(variables or {}),
        "messages": chat,
        "add_generation_prompt": add_generation_prompt,
    }
    prompt = _render(template, names)
    return prompt if final_text is None else _cut_at_mark(prompt, final_text)


@lru_cache(maxsize=8)
def template_variables(template: str) -> frozenset[str]:
    """The variables that a template expects. Raises ChatTemplateError for invalid Jinja."""
    try:
        return frozenset(meta.find_undeclared_variables(_Environment().parse(template)))
    except TemplateError as error:
        raise ChatTemplateError(f"The chat template is not valid Jinja: {error.message}") from error


class _BoundedCode(CodeGenerator):
    """Compiles templates so that each block (of a loop, a branch, a macro) checks the deadline, and `~` is bounded."""

    def blockvisit(self, nodes: Iterable[nodes.Node], frame: Frame) -> None:
        self.writeline("environment.tick()")
        super().blockvisit(nodes, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802  jinja's name
        self.write("environment.concatenate(")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one rendering, with a deadline and bounds on what operators build."""

    code_generator_class = _BoundedCode
    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationBlock])
        self._deadline = time.monotonic() + _MAX_SECONDS
        self.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # Jinja's own escapes for HTML
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        del self.globals["lipsum"]

    def tick(self) -> None:
        """Raises TemplateError once the deadline has passed."""
        if time.monotonic() > self._deadline:
            raise TemplateError(f"it ran for more than {_MAX_SECONDS:g} seconds")

    def call(self, context: Context, function: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        self.tick()
        return super().call(context, function, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_size(_result_size(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def concatenate(self, *parts: Any) -> str:
        """The `~` operator."""
        texts = [str(part) for part in parts]
        _check_size(sum(map(len, texts)))
        return "".join(texts)


class _GenerationBlock(Extension):
    """`{% generation %}` marks the model's words for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012  jinja declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _render(template: str, variables: Mapping[str, Any]) -> str:
    environment = _Environment()
    pieces: list[str] = []
    size = 0
    try:
        compiled = Template.from_code(environment, _compile(template), environment.globals)
        for piece in compiled.generate(variables):
            pieces.append(piece)
            size += len(piece)
            if size > _MAX_CHARACTERS:
                raise TemplateError(f"the prompt exceeds {_MAX_CHARACTERS:,} characters")
    except TemplateError as error:
        raise ChatTemplateError(f"The chat template refused these messages: {error.message}") from error
    except Exception as error:  # a template can raise any error of Python's operators
        raise ChatTemplateError(f"The chat template failed ({type(error).__name__}: {error}).") from error
    return "".join(pieces)


@lru_cache(maxsize=8)
def _compile(template: str) -> CodeType:
    return _Environment().compile(template)


def _result_size(operator: str, left: Any, right: Any) -> int:
    """An upper bound of what an operator builds, in characters or elements. Refused operations count as too large."""
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    too_large = False
    if operator == "**":
        too_large = numbers and len(str(abs(left))) * abs(right) > _MAX_DIGITS
    elif operator == "%":  # the width is in the format ("%50000d") or, with "*", in the arguments
        too_large = isinstance(left, str) and re.search(r"\d{5}|\*", left) is not None
    elif not numbers and operator == "+":
        return _length(left) + _length(right)
    elif not numbers:
        return _length(left) * abs(right) if isinstance(right, int) else _length(right) * abs(left)
    return _MAX_CHARACTERS + 1 if too_large else 0


def _length(value: Any) -> int:
    return len(value) if hasattr(value, "__len__") else 0


def _check_size(size: int) -> None:
    if size > _MAX_CHARACTERS:
        raise TemplateError(f"it builds a text of more than {_MAX_CHARACTERS:,} characters")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _plain(value: Any) -> Any:
    """Only JSON's types reach the template: pictures and tensors have methods that write files."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _mark_end(message: dict[str, Any]) -> str:
    """Appends the mark to the message's last text; returns that text without it."""
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + _END_MARK
        return content
    for part in reversed(content):
        if part["type"] == "text":
            text: str = part["text"]
            part["text"] = text + _END_MARK
            return text
    raise ChatTemplateError("The final message has no text that could be continued.")


def _cut_at_mark(prompt: str, final_text: str) -> str:
    """The prompt up to the mark. A template that trims texts removes the mark's trailing space: then the final text's
    own trailing space goes too, as it would without the mark."""
    place = prompt.rfind(_END_MARK.rstrip())
    if place < 0 or final_text.strip() not in prompt:
        raise ChatTemplateError("The chat template leaves out or rewrites the final message, so it can't be continued.")
    kept = prompt[:place]
    return kept if prompt.startswith(_END_MARK, place) else kept.rstrip()
