"""How sure the model was of a token: its probability and the likeliest alternatives.

Probabilities are the softmax of the logits that the token was sampled from, before temperature, top-k and top-p.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

from gemma3_core.generation.row_sampler import Sampled
from gemma3_core.tokenizer.tokenizer import Gemma3Tokenizer


@dataclass(frozen=True)
class Alternative:
    """A token that could stand here; `text` is what it would write (special tokens by name)."""

    token_id: int
    text: str
    probability: float


@dataclass(frozen=True)
class TokenChoice:
    """A sampled token, its probability from 0 to 1, and the likeliest tokens in its place, likeliest first.

    `alternatives` includes the sampled token if it is one of the likeliest.
    """

    token_id: int
    text: str
    probability: float
    alternatives: tuple[Alternative, ...]


class TokenChoices(Sequence[TokenChoice]):
    """An answer's choices in packed form: a tenth of the objects' memory, for keeping many answers."""

    def __init__(self, choices: Iterable[TokenChoice] = ()):
        self._sizes, self._ids, self._probabilities = array("B"), array("i"), array("d")
        self._lengths, texts = array("H"), bytearray()
        for choice in choices:
            tokens: tuple[TokenChoice | Alternative, ...] = (choice, *choice.alternatives)
            self._sizes.append(len(tokens))
            for token in tokens:
                text = token.text.encode()
                self._ids.append(token.token_id)
                self._probabilities.append(token.probability)
                self._lengths.append(len(text))
                texts += text
        self._texts = bytes(texts)

    def __len__(self) -> int:
        return len(self._sizes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenChoices) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    @overload
    def __getitem__(self, number: int) -> TokenChoice: ...
    @overload
    def __getitem__(self, number: slice) -> list[TokenChoice]: ...
    def __getitem__(self, number: int | slice) -> TokenChoice | list[TokenChoice]:
        return list(self)[number]

    def __iter__(self) -> Iterator[TokenChoice]:
        first = start = 0
        for size in self._sizes:
            tokens = []
            for place in range(first, first + size):
                end = start + self._lengths[place]
                tokens.append(
                    Alternative(self._ids[place], self._texts[start:end].decode(), self._probabilities[place])
                )
                start = end
            first += size
            chosen, *alternatives = tokens
            yield TokenChoice(chosen.token_id, chosen.text, chosen.probability, tuple(alternatives))


def choice_of(tokenizer: Gemma3Tokenizer, sampled: Sampled) -> TokenChoice:
    """The choice of a sampled token, with its alternatives."""
    others = (Alternative(token_id, token_text(tokenizer, token_id), p) for token_id, p in sampled.likeliest)
    return TokenChoice(sampled.token_id, token_text(tokenizer, sampled.token_id), sampled.probability, tuple(others))


def token_text(tokenizer: Gemma3Tokenizer, token_id: int) -> str:
    """One token as text with its leading space; an id beyond the tokenizer's vocabulary as its number."""
    token = tokenizer.backend.id_to_token(token_id)
    return f"<{token_id}>" if token is None else token.replace("▁", " ")


def vocabulary_fingerprint(tokenizer: Gemma3Tokenizer) -> str:
    """Equal for two tokenizers if and only if every id stands for the same token, so that their ids can be compared."""
    numbers = tokenizer.get_vocab()
    tokens = sorted(numbers, key=numbers.__getitem__)
    together = hashlib.sha256(repr(tokens).encode())
    together.update(array("q", sorted(numbers.values())).tobytes())
    return together.hexdigest()
