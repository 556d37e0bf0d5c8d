"""JSON schemas that an answer must fit: which tokens may come next, as llguidance finds them (requirements/fields.txt).

A schema is a stranger's program. Its size is bounded here; the work and memory of compiling it and of each token are
bounded by llguidance's limits.
"""

import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gemma3_core.errors import SchemaError, UnsupportedOptionError
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer

MAX_SCHEMA_CHARACTERS = 64_000
MAX_SCHEMA_DEPTH = 64
ANY_OBJECT = '{"type": "object"}'
"""The schema of OpenAI's `json_object`."""
_LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 50_000,
    "verbose_errors": False,
}
"""By llguidance's own figures, tokens take at most 8 ms and 40 MB on a fast machine."""
_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""One way to write a value, as Python does, so that no answer is spent on spaces."""
_SHOWN = 200
_MISSING = (
    "Answers in JSON need the package llguidance, which is not installed here. "
    "Install it with `pip install -r requirements/fields.txt`."
)


def check_schema(schema: str) -> Any:
    """The schema as JSON. Raises SchemaError if it is too large or no schema at all."""
    if len(schema) > MAX_SCHEMA_CHARACTERS:
        raise SchemaError(
            f"The JSON schema has {len(schema):,} characters, and at most {MAX_SCHEMA_CHARACTERS:,} are taken. "
            "Ask for fewer fields."
        )
    try:
        content = json.loads(schema)
    except (ValueError, RecursionError):
        raise SchemaError("The JSON schema is not valid JSON. Check its brackets and quotes.") from None
    if content is True:
        return {}
    if not isinstance(content, dict):
        raise SchemaError('A JSON schema is an object such as {"type": "object", "properties": …}. Send one.')
    if "x-guidance" in content:
        raise SchemaError("The JSON schema has x-guidance, which is not supported here. Leave it out.")
    if _depth(content) > MAX_SCHEMA_DEPTH:
        raise SchemaError(f"The JSON schema is nested deeper than {MAX_SCHEMA_DEPTH} levels. Make it flatter.")
    return content


def _depth(content: Any) -> int:
    level, depth = [content], 0
    while level := [
        inner
        for one in level
        for inner in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
    ]:
        depth += 1
    return depth


class Grammars:
    """Compiles schemas for one tokenizer, one at a time; safe to use from many threads."""

    def __init__(self, tokenizer: Gemma3Tokenizer, vocabulary: int, stop_ids: Sequence[int]):
        """`vocabulary` counts the model's logits; an answer that fits ends with one of `stop_ids`."""
        self._tokenizer, self._vocabulary, self._stop_ids = tokenizer, vocabulary, tuple(stop_ids)
        self._lock = threading.Lock()
        self._words: Any = None

    @property
    def is_ready(self) -> bool:
        """Whether the vocabulary has been read, which takes seconds for a published one."""
        return self._words is not None

    def compile(self, schema: str) -> "Grammar":
        """Raises SchemaError for a schema that no answer fits, or that is too much; UnsupportedOptionError without
        llguidance."""
        content = check_schema(schema)
        try:
            import llguidance
        except ImportError:
            raise UnsupportedOptionError(_MISSING) from None
        with self._lock:
            if self._words is None:
                backend = self._tokenizer.backend
                # A text model has no logit for the soft token that its tokenizer knows.
                tokens = max(self._vocabulary, backend.get_vocab_size())
                stops = list(self._stop_ids)
                self._words = llguidance.LLTokenizer(backend.to_str(), n_vocab=tokens, eos_token=stops)
            try:
                source = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(content), overrides=_OPTIONS)
            except ValueError as error:
                raise _refused(str(error)) from None
            limits = llguidance.LLParserLimits(**_LIMITS)
            grammar = Grammar(llguidance.LLMatcher(self._words, source, log_level=0, limits=limits), self._stop_ids)
            grammar.begin()  # finds what the first token shows
        return grammar


class Grammar:
    """A compiled schema."""

    def __init__(self, matcher: Any, stop_ids: Sequence[int]):
        if matcher.is_error():
            raise _refused(matcher.get_error())
        self._matcher, self._stop_ids = matcher, tuple(stop_ids)

    def begin(self, token_ids: Sequence[int] = ()) -> "Constraint":
        """An answer's constraint, after its tokens so far. Raises SchemaError if these do not fit."""
        return Constraint(self._matcher.deep_copy(), self._stop_ids, token_ids)


def allowed_before(
    grammar: Grammar | None, token_ids: Sequence[int], word: range, vocabulary: int
) -> torch.Tensor | None:
    """bool [N, vocabulary], on the CPU: the tokens that an answer of `token_ids` might have had at each place of
    `word`; None without a grammar. Raises SchemaError if the answer does not fit."""
    if grammar is None:
        return None
    constraint = grammar.begin(token_ids[: word.start])
    rows = []
    for place in word:
        rows.append(constraint.allowed(vocabulary))
        constraint.push(token_ids[place])
    return torch.stack(rows)


class Constraint:
    """What one answer may go on with; in one thread at a time."""

    def __init__(self, matcher: Any, stop_ids: Sequence[int], token_ids: Sequence[int] = ()):
        """After the answer's tokens so far; `matcher` becomes the constraint's own. Raises SchemaError if they do not
        fit."""
        self._matcher, self._stop_ids = matcher, frozenset(stop_ids)
        self._bits = b""
        # Consuming tokens takes little time; finding what may follow takes the whole vocabulary.
        self._matcher.consume_tokens([token_id for token_id in token_ids if token_id not in self._stop_ids])
        self._look()

    def push(self, token_id: int) -> None:
        """Moves on by a token. Raises SchemaError where the answer can't go on within the limits."""
        if token_id not in self._stop_ids:
            self._matcher.consume_token(token_id)
            self._look()

    def allowed(self, vocabulary: int) -> torch.Tensor:
        """bool [vocabulary], on the CPU: the tokens that may come next."""
        bits = np.unpackbits(np.frombuffer(self._bits, np.uint8), bitorder="little")[:vocabulary]
        return torch.from_numpy(bits.view(np.bool_))

    def _look(self) -> None:
        if not self._matcher.is_error():
            self._bits = self._matcher.compute_bitmask()  # once it has ended, the stop tokens
        if self._matcher.is_error():
            raise _refused(self._matcher.get_error())
        if not any(self._bits):
            raise _refused("no token fits")


def _refused(reason: str) -> SchemaError:
    lines = reason.replace("<non-verbose/>", "").strip().splitlines() or ["no reason is known"]
    found = lines[-1] if lines[0].startswith("regex parse error") else lines[0]
    return SchemaError(f"The JSON schema can't be answered: {found[:_SHOWN].rstrip('.')}. Change the schema.")
