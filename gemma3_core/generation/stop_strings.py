"""Stop strings: texts that end an answer."""

from collections.abc import Sequence

import torch

from gemma3_core.errors import UnsupportedOptionError
from gemma3_core.tokenizer.tokenizer import BYTE_TOKEN, Gemma3Tokenizer

# Decoders treat the first token of a text differently, so this goes before the token to decode.
_FRONT = "a"


class StopStrings:
    """Tells whether the last token of a row completes one of some strings.

    The string may begin in earlier tokens, the prompt's too, and end within the last token: with "stop", the tokens
    `las` `topper` stop, while `stop` `at` do not stop at `at`. Bytes are compared, because characters outside the
    vocabulary are several tokens of one byte.
    """

    def __init__(self, strings: str | Sequence[str], tokenizer: Gemma3Tokenizer):
        """Raises UnsupportedOptionError for empty or other strings, or another class of tokenizer."""
        if not isinstance(tokenizer, Gemma3Tokenizer):
            raise UnsupportedOptionError(
                f"stop_strings need tokenizer= a Gemma3Tokenizer (a processor has one as processor.tokenizer), "
                f"got {type(tokenizer).__name__}."
            )
        if not isinstance(strings, str | Sequence):
            raise UnsupportedOptionError(f"stop_strings must be a string or several, got {strings!r}.")
        texts = [strings] if isinstance(strings, str) else list(strings)
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise UnsupportedOptionError(f"stop_strings must be a string or several, none of them empty, got {texts}.")
        self._strings = [text.encode() for text in texts]
        self.longest = max(map(len, self._strings))
        """Bytes of the longest string, and so the most tokens that can matter."""
        self._backend = tokenizer.backend
        self._bytes: dict[int, bytes] = {}

    def ended(self, ids: torch.Tensor) -> torch.Tensor:
        """True [B] for rows of ids [B, T] whose last token completes a string."""
        rows = ids[:, -self.longest :].tolist()
        return torch.tensor([self._row_ended(row) for row in rows], dtype=torch.bool, device=ids.device)

    def _row_ended(self, row: list[int]) -> bool:
        last = self._bytes_of(row[-1]) if row else None
        if not last:
            return False
        before = b""
        for token in reversed(row[:-1]):
            piece = self._bytes_of(token)
            if piece is None or len(before) >= self.longest:
                break
            before = piece + before
        text = before + last
        # The match must end within the last token.
        return any(text.find(string, max(0, len(before) + 1 - len(string))) >= 0 for string in self._strings)

    def _bytes_of(self, token_id: int) -> bytes | None:
        """The bytes that a token adds to the text; None for an unknown id."""
        token = self._backend.id_to_token(token_id)
        if token is None:
            return None
        if BYTE_TOKEN.fullmatch(token):
            return bytes([int(token[3:5], 16)])
        if token_id not in self._bytes:
            decoder = self._backend.decoder
            text = token if decoder is None else decoder.decode([_FRONT, token])[len(_FRONT) :]
            self._bytes[token_id] = text.encode()
        return self._bytes[token_id]
