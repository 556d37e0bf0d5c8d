"""Streamers show an answer while `generate` runs: on the screen, or in another thread."""

import re
from collections.abc import Iterator
from queue import Queue
from typing import Any, Protocol

import torch

from gemma3_core.errors import UnsupportedOptionError

# CJK ideographs in Unicode: each is shown at once, without waiting for a space.
_CJK_END = re.compile(
    r"[\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF\U00020000-\U0002A6DF\U0002A700-\U0002CEAF\U0002F800-\U0002FA1F]\Z"
)


class _Decodes(Protocol):
    """A tokenizer or processor, as far as a streamer uses it."""

    def decode(self, ids: Any, **options: Any) -> str: ...


class BaseStreamer:
    """`generate` calls `put` with the prompt's ids [B, T] and then each step's [B], and `end` at the end."""

    def put(self, value: torch.Tensor) -> None:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError


class TextStreamer(BaseStreamer):
    """Prints the text of one row, word by word.

    `skip_prompt` leaves the prompt out; other options go to the tokenizer's `decode` (skip_special_tokens=True, …).
    """

    def __init__(self, tokenizer: _Decodes, skip_prompt: bool = False, **decode_kwargs: Any):
        if isinstance(tokenizer, str | bytes) or not callable(getattr(tokenizer, "decode", None)):
            raise UnsupportedOptionError(
                f"{type(self).__name__} needs the tokenizer or processor that decodes the answer, got "
                f"{type(tokenizer).__name__}. Load one with AutoTokenizer or AutoProcessor."
            )
        self.tokenizer = tokenizer
        self.skip_prompt = skip_prompt
        self.decode_kwargs = decode_kwargs
        self.next_tokens_are_prompt = True
        self.token_cache: list[int] = []
        self.print_len = 0

    def put(self, value: torch.Tensor) -> None:
        """Takes ids [1, T] or [T]. Raises UnsupportedOptionError for several rows."""
        if value.ndim > 1:
            if value.shape[0] > 1:
                raise UnsupportedOptionError(
                    f"{type(self).__name__} shows one row, got {value.shape[0]}. Generate one prompt at a time."
                )
            value = value[0]
        skips = self.skip_prompt and self.next_tokens_are_prompt
        self.next_tokens_are_prompt = False
        if skips:
            return
        # The whole line is decoded, because a token's text may depend on its neighbours.
        self.token_cache.extend(value.tolist())
        text = self._text()
        if text.endswith("\n"):
            piece = text[self.print_len :]
            self.token_cache, self.print_len = [], 0
        else:
            finished = len(text) if _CJK_END.search(text) else text.rfind(" ") + 1
            piece = text[self.print_len : finished]
            self.print_len += len(piece)
        self.on_finalized_text(piece)

    def end(self) -> None:
        """Shows the rest of the text; the next `put` is a prompt again."""
        piece = self._text()[self.print_len :] if self.token_cache else ""
        self.token_cache, self.print_len = [], 0
        self.next_tokens_are_prompt = True
        self.on_finalized_text(piece, stream_end=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Receives each finished piece, which may be empty. Override it to do something other than print."""
        print(text, flush=True, end=None if stream_end else "")

    def _text(self) -> str:
        return self.tokenizer.decode(self.token_cache, **self.decode_kwargs)


class TextIteratorStreamer(TextStreamer):
    """Iterates over finished pieces of text while `generate` runs in another thread.

    `timeout` is how many seconds to wait for a piece before raising queue.Empty; None waits for ever, even if
    `generate` failed.
    """

    def __init__(
        self, tokenizer: _Decodes, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ):
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.text_queue: Queue[str | None] = Queue()
        self.stop_signal = None
        self.timeout = timeout

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.text_queue.put(text, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = self.text_queue.get(timeout=self.timeout)
        if piece is None:
            raise StopIteration
        return piece
