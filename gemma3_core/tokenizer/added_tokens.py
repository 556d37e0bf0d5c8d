"""Tokens that a program adds to the vocabulary: what it may give, and where tokenizer_config.json lists them."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken

from gemma3_core.errors import UnsupportedOptionError

NewToken = str | AddedToken
EXTRA = "extra_special_tokens"
OLDER_EXTRA = "additional_special_tokens"


def as_new_tokens(given: Any) -> list[NewToken]:
    """One token or several. Raises UnsupportedOptionError for anything but texts and AddedTokens."""
    tokens = [given] if isinstance(given, NewToken) else given
    if not isinstance(tokens, Sequence) or not all(isinstance(token, NewToken) for token in tokens):
        raise UnsupportedOptionError(
            f"Tokens to add must be strings or AddedTokens, or a list of these; got {given!r}."
        )
    return list(tokens)


def special(token: NewToken) -> AddedToken:
    """A text as a special token: found in the text as it stands, and left out by decoding."""
    return AddedToken(token, normalized=False, special=True) if isinstance(token, str) else token


def text_of(token: Any) -> str:
    """The text of a token in any of its forms: a string, an AddedToken, or its dict in a file."""
    return str(token["content"]) if isinstance(token, Mapping) else str(token)


def listed_extra_tokens(config: Mapping[str, Any]) -> list[str]:
    """The special tokens without a name of their own in tokenizer_config.json, under either of their keys."""
    for key in (EXTRA, OLDER_EXTRA):
        if isinstance(config.get(key), list):
            return [text_of(token) for token in config[key]]
    return []


def check_names(tokens: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises UnsupportedOptionError for a key of `add_special_tokens` that is no special token's name."""
    if unknown := [name for name in tokens if name not in (*known, EXTRA, OLDER_EXTRA)]:
        raise UnsupportedOptionError(
            f"add_special_tokens does not know {', '.join(unknown)}. Give {', '.join(known)}, or tokens without a name "
            f"of their own as {EXTRA}."
        )
    for name in known:
        if name in tokens and not isinstance(tokens[name], NewToken):
            raise UnsupportedOptionError(f"{name} must be a string or an AddedToken, got {tokens[name]!r}.")
