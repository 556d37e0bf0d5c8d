"""Texts -> rows of ids: truncation, padding, and which values come with the ids.

The `tokenizers` library can truncate and pad whole batches, but keeps these settings in the tokenizer, which several
threads share. So each row is truncated and padded here.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer

from gemma3_core.errors import PromptError, UnsupportedOptionError
from gemma3_core.model_inputs import ModelInputs

NO_LIMIT = int(1e30)
"""model_max_length of a tokenizer that names none, as in transformers."""
_LARGEST_LIMIT = int(1e20)  # a model_max_length above it means that there is no limit
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "padding": (True, False, "longest", "max_length", "do_not_pad"),
    "truncation": (True, False, None, "longest_first", "only_first", "do_not_truncate"),
    "padding_side": ("left", "right", None),
    "truncation_side": ("left", "right", None),
}
_SMALLEST = {"max_length": 1, "pad_to_multiple_of": 1, "stride": 0}  # tokens


@dataclass(frozen=True)
class TextOptions:
    """Options of the tokenizer's call, with transformers' names; lengths in tokens. Raises UnsupportedOptionError."""

    add_special_tokens: bool = True
    padding: bool | str = False
    truncation: bool | str | None = None
    max_length: int | None = None
    stride: int = 0
    is_split_into_words: bool = False
    pad_to_multiple_of: int | None = None
    padding_side: str | None = None
    truncation_side: str | None = None
    return_tensors: str | None = None
    return_token_type_ids: bool | None = None
    return_attention_mask: bool | None = None
    return_overflowing_tokens: bool = False
    return_special_tokens_mask: bool = False
    return_offsets_mapping: bool = False
    return_length: bool = False
    verbose: bool = True

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            value = getattr(value, "value", value)  # transformers' enums hold the strings
            object.__setattr__(self, name, value)
            if not any(type(value) is type(known) and value == known for known in allowed):  # 1 is not True
                raise UnsupportedOptionError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
        for name, least in _SMALLEST.items():
            value = getattr(self, name)
            is_whole = isinstance(value, int) and not isinstance(value, bool)
            if value != getattr(TextOptions, name) and not (is_whole and value >= least):
                raise UnsupportedOptionError(f"{name} is {value!r}; it must be a number of tokens, {least} or more.")

    def width_limit(self, model_max_length: int) -> int | None:
        """How many tokens a row may have; None is no limit. A `max_length` alone truncates, as in the reference."""
        if self.truncation is None:
            wanted = self.max_length is not None and self.padding is False
        else:
            wanted = self.truncation not in (False, "do_not_truncate")
        return self._length(model_max_length) if wanted else None

    def padded_width(self, longest: int, model_max_length: int) -> int | None:
        """The width that shorter rows are padded to; None is no padding."""
        if self.padding in (False, "do_not_pad"):
            return None
        width = self._length(model_max_length) if self.padding == "max_length" else longest
        if width is None:
            return None
        multiple = self.pad_to_multiple_of or 1
        return -(-width // multiple) * multiple

    def warn(self) -> None:
        """Warns where max_length has no effect, as the reference does."""
        if self.verbose and self.max_length is not None and self.padding is True and not self.truncation:
            warnings.warn(
                'max_length does nothing with padding=True and no truncation; padding="max_length" fills up to it.',
                stacklevel=3,
            )

    def _length(self, model_max_length: int) -> int | None:
        if self.max_length is not None:
            return self.max_length
        return model_max_length if model_max_length <= _LARGEST_LIMIT else None


def encode_texts(
    backend: Tokenizer, texts: Sequence[Any], options: TextOptions, model_max_length: int, truncation_side: str
) -> list[Encoding]:
    """One Encoding per text, truncated but not padded; its `overflowing` has the rest."""
    limit = options.width_limit(model_max_length)
    special, words = options.add_special_tokens, options.is_split_into_words
    if limit is None:
        return backend.encode_batch(texts, is_pretokenized=words, add_special_tokens=special)
    room = limit - (backend.num_special_tokens_to_add(False) if special else 0)
    if room < 0 or options.stride >= max(room, 1):
        raise UnsupportedOptionError(
            f"max_length={limit} leaves {max(room, 0)} tokens for the text, and stride={options.stride} of them would "
            "be repeated; give a larger max_length or a smaller stride."
        )
    encodings = backend.encode_batch(texts, is_pretokenized=words, add_special_tokens=False)
    for encoding in encodings:
        encoding.truncate(room, options.stride, options.truncation_side or truncation_side)
    return [backend.post_process(encoding, None, special) for encoding in encodings]


def collect(encodings: Sequence[Encoding], options: TextOptions) -> ModelInputs:
    """The rows of each value that was asked for, as lists [B][T], and the encodings themselves."""
    inputs = ModelInputs({"input_ids": [e.ids for e in encodings]}, encodings=list(encodings))
    if options.return_token_type_ids:
        inputs["token_type_ids"] = [e.type_ids for e in encodings]
    if options.return_attention_mask is not False:
        inputs["attention_mask"] = [e.attention_mask for e in encodings]
    if options.return_special_tokens_mask:
        inputs["special_tokens_mask"] = [e.special_tokens_mask for e in encodings]
    if options.return_offsets_mapping:
        inputs["offset_mapping"] = [e.offsets for e in encodings]
    if options.return_length:
        inputs["length"] = [len(e.ids) for e in encodings]
    return inputs


def pad_rows(
    encoded: Any, options: TextOptions, fills: Mapping[str, int], model_max_length: int, side: str
) -> ModelInputs:
    """Pads rows of ids, and the values beside them that `fills` gives a number for.

    `encoded` is a dict of rows (or of one row), a list of such dicts, or rows of ids. An attention mask
    is added where `fills` names one. Tensors stay tensors.
    """
    columns, is_batch, kind = _columns(encoded)
    if "attention_mask" in fills and "attention_mask" not in columns:
        columns["attention_mask"] = [[1] * len(row) for row in columns["input_ids"]]
    width = options.padded_width(max(map(len, columns["input_ids"]), default=0), model_max_length)
    if width is not None:
        for name, fill in fills.items():
            if name in columns:
                columns[name] = [_filled(row, width, fill, side) for row in columns[name]]
    inputs = ModelInputs(columns)
    return (inputs if is_batch else first_row(inputs)).convert_to_tensors(options.return_tensors or kind)


def first_row(inputs: ModelInputs) -> ModelInputs:
    values = {name: rows[0] if isinstance(rows[0], list) else rows for name, rows in inputs.items()}
    return ModelInputs(values, encodings=inputs.encodings)


def check_texts(text: Any, is_split_into_words: bool) -> tuple[list[Any], bool]:
    """-> the texts, and whether they came as a batch. Raises PromptError for other types."""
    if isinstance(text, str) and not is_split_into_words:
        return [text], False
    if not is_split_into_words:
        _check_strings(text, "give a string, or a list of strings for a batch")
        return list(text), True
    is_batch = isinstance(text, list | tuple) and bool(text) and isinstance(text[0], list | tuple)
    rows = list(text) if is_batch else [text]
    for row in rows:
        _check_strings(row, "with is_split_into_words=True give a list of words, or a list of such lists")
    return rows, is_batch


def _columns(encoded: Any) -> tuple[dict[str, list[Any]], bool, str | None]:
    """-> rows by name, whether they came as a batch, and the kind of tensors they came in."""
    if isinstance(encoded, list | tuple) and encoded and isinstance(encoded[0], Mapping):
        encoded = {name: [row[name] for row in encoded] for name in encoded[0]}
    elif not isinstance(encoded, Mapping):
        encoded = {"input_ids": encoded}
    if "input_ids" not in encoded:
        raise PromptError(f"There are no input_ids to pad, only {', '.join(encoded)}; pass what the tokenizer gave.")
    sample = encoded["input_ids"]
    if isinstance(sample, list | tuple) and len(sample):
        sample = sample[0]
    kind = "pt" if isinstance(sample, torch.Tensor) else "np" if isinstance(sample, np.ndarray) else None
    plain = {name: _plain_rows(value) for name, value in encoded.items()}
    ids = plain["input_ids"]
    is_batch = not ids or isinstance(ids[0], list)
    return plain if is_batch else {name: [row] for name, row in plain.items()}, is_batch, kind


def _plain_rows(value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor | np.ndarray):
        return list(value.tolist())
    rows = [row.tolist() if isinstance(row, torch.Tensor | np.ndarray) else row for row in value]
    return [list(row) if isinstance(row, tuple) else row for row in rows]


def _filled(row: list[int], width: int, fill: int, side: str) -> list[int]:
    pads = [fill] * (width - len(row))
    return [*pads, *row] if side == "left" else [*row, *pads]


def _check_strings(items: Any, advice: str) -> None:
    if not isinstance(items, list | tuple):
        raise PromptError(f"The text is a {type(items).__name__}; {advice}.")
    for place, item in enumerate(items):
        if not isinstance(item, str):
            raise PromptError(f"Text number {place + 1} of {len(items)} is a {type(item).__name__}; {advice}.")
