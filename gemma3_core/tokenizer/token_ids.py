"""Token ids in any form that programs pass -> plain ints."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from gemma3_core.errors import PromptError

TokenIds = int | Sequence[int] | np.ndarray | torch.Tensor


def is_rows(ids: Any) -> bool:
    """Whether these are several rows of ids rather than one row or a single id."""
    if isinstance(ids, torch.Tensor | np.ndarray):
        return ids.ndim == 2
    if not isinstance(ids, list | tuple) or not ids:
        return False
    first = ids[0]  # a list of numbers that are tensors is one row
    return isinstance(first, list | tuple) or getattr(first, "ndim", 0) == 1


def plain_ids(ids: Any) -> Any:
    """An id or a row of ids as plain ints. Raises PromptError for anything else."""
    values = ids.tolist() if isinstance(ids, torch.Tensor | np.ndarray | np.generic) else ids
    try:
        return _whole(values) if not isinstance(values, list | tuple) else [_whole(value) for value in values]
    except (TypeError, ValueError):
        raise PromptError(
            f"Token ids are whole numbers, in a list or tensor; got {type(ids).__name__} {str(ids)[:40]}. "
            "Pass the input_ids of a tokenizer, or the ids that generate returned."
        ) from None


def _whole(value: Any) -> int:
    number = value.item() if isinstance(value, torch.Tensor | np.generic) else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(type(value).__name__)
    return number
