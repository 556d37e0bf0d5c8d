"""What tokenizer, image processor and processor return: named inputs of the model, in one dict."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from tokenizers import Encoding

from gemma3_core.errors import PromptError, UnsupportedOptionError


class ModelInputs(dict[str, Any]):
    """Named inputs of the model, as keys and as attributes; `model(**inputs)` takes them.

    Replaces BatchFeature and BatchEncoding of transformers. `encodings` has one `tokenizers.Encoding`
    per row for inputs of the tokenizer alone, and is None for others.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        tensor_type: str | None = None,
        encodings: list[Encoding] | None = None,
        **named: Any,
    ) -> None:
        super().__init__({**(data or {}), **named})
        self.encodings = encodings
        self.convert_to_tensors(tensor_type)

    @property
    def data(self) -> "ModelInputs":
        """The dict itself, under the name that transformers gives it."""
        return self

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} here, only {', '.join(self)}") from None

    def __getitem__(self, key: Any) -> Any:
        """A name gives its value. A number or slice gives the Encodings of these rows; without Encodings, a slice
        gives that part of each value."""
        if isinstance(key, slice) and self.encodings is None:
            return {name: value[key] for name, value in self.items()}
        return self._encoding(key) if isinstance(key, int | slice) else super().__getitem__(key)

    def to(
        self,
        device: torch.device | str | int | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> "ModelInputs":
        """Moves each tensor in place and returns self; `dtype` applies to floating tensors only.

        Raises UnsupportedOptionError for anything but a device and a dtype.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        target = _device(device)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise UnsupportedOptionError(f"dtype is {dtype!r}; give a torch.dtype such as torch.bfloat16.")
        for name, value in self.items():
            self[name] = _moved(value, target, dtype, non_blocking)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> "ModelInputs":
        """Lists of numbers, arrays or tensors -> "pt" tensors or "np" arrays, in place; None changes nothing.

        Raises PromptError for rows of different lengths, UnsupportedOptionError for other kinds.
        """
        kind = tensor_kind(tensor_type)
        for name, value in self.items() if kind else ():
            self[name] = _as_tensor(name, value) if kind == "pt" else _as_array(value)
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, as the vocabulary spells them."""
        return self._encoding(batch_index).tokens

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The number of each token's word, None for special tokens."""
        return self._encoding(batch_index).word_ids

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 for each token of a row's text, None for special tokens."""
        return self._encoding(batch_index).sequence_ids

    def char_to_token(self, batch_or_char_index: int, char_index: int | None = None) -> int | None:
        """The index of the token that holds a character of a row (the first row by default)."""
        row, char = (0, batch_or_char_index) if char_index is None else (batch_or_char_index, char_index)
        return self._encoding(row).char_to_token(char)

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> tuple[int, int] | None:
        """The range of characters of a token of a row (the first row by default)."""
        row, token = (0, batch_or_token_index) if token_index is None else (batch_or_token_index, token_index)
        return self._encoding(row).token_to_chars(token)

    def _encoding(self, row: Any) -> Any:
        if self.encodings is None:
            raise KeyError(f"{row}: these inputs have names ({', '.join(self)}) and no rows of a tokenizer")
        return self.encodings[row]


def tensor_kind(return_tensors: Any) -> str | None:
    """ "pt", "np" or None, also from transformers' enum. Raises UnsupportedOptionError."""
    kind = getattr(return_tensors, "value", return_tensors)
    if kind not in (None, "pt", "np"):
        raise UnsupportedOptionError(f'return_tensors is {kind!r}; use "pt" (torch), "np" (numpy) or None (lists).')
    return kind


def _device(device: Any) -> torch.device | None:
    if device is None:
        return None
    if not isinstance(device, torch.device | str | int):
        kind = type(device).__name__
        raise UnsupportedOptionError(f"device is a {kind}; give a device, its name or number, or a torch.dtype.")
    try:
        return torch.device(device)
    except RuntimeError:
        raise UnsupportedOptionError(f'device is {device!r}; give one such as "cpu", "cuda" or "cuda:1".') from None


def _moved(value: Any, device: torch.device | None, dtype: torch.dtype | None, non_blocking: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype if value.is_floating_point() else None, non_blocking=non_blocking)
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, device, dtype, non_blocking) for item in value)
    return value


def _as_tensor(name: str, value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value)
    _check_equal(name, value)
    if value and isinstance(value[0], torch.Tensor):
        return torch.stack([row.to(value[0].device) for row in value])
    if value and isinstance(value[0], np.ndarray):
        return torch.from_numpy(np.stack(value))
    tensor = torch.tensor(value)
    return tensor.to(torch.int64) if tensor.numel() == 0 else tensor  # torch makes an empty list float


def _as_array(value: Any) -> np.ndarray:
    """Rows of different lengths become an array of arrays, as in the reference."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if value and isinstance(value[0], torch.Tensor):
        value = [row.cpu().numpy() for row in value]
    shapes = {np.shape(row) for row in value}
    if len(shapes) > 1:
        array = np.empty(len(value), dtype=object)
        array[:] = [np.asarray(row) for row in value]
        return array
    array = np.asarray(value)
    return array.astype(np.int64) if array.size == 0 else array


def _check_equal(name: str, rows: Any) -> None:
    """Raises PromptError for rows that can't be one tensor."""
    if not rows or not hasattr(rows[0], "__len__"):
        return
    if name == "pixel_values":
        shapes = sorted({tuple(row.shape) for row in rows})
        if len(shapes) > 1:
            raise PromptError(
                f"The pictures have different shapes ({' and '.join(map(str, map(list, shapes[:2])))}); give a size "
                "with height and width and do_resize=True to make one batch of them, or return_tensors=None."
            )
    elif len(lengths := sorted({len(row) for row in rows})) > 1:
        raise PromptError(
            f"The prompts have different lengths ({lengths[0]} to {lengths[-1]} tokens, {name}); "
            "pass padding=True to make one batch of them."
        )
