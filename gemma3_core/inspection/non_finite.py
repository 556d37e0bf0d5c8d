"""Finds the module in which a model's numbers turn into NaN or infinity."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def first_not_finite(*models: nn.Module) -> Iterator[list[str]]:
    """Watches all passes of the models inside the `with` block.

    The list gets one entry, the name of the first module whose result holds NaN or infinity: the innermost one, as
    modules end before those that contain them.
    """
    found: list[str] = []
    with ExitStack() as hooks:
        names = {module: name for model in models for name, module in model.named_modules()}
        for module, name in names.items():
            hooks.callback(_watch(module, name or type(module).__name__, found).remove)
        yield found


def _watch(module: nn.Module, name: str, found: list[str]) -> Any:
    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if not found and not all(_is_finite(tensor) for tensor in _tensors(output)):
            found.append(name)

    return module.register_forward_hook(look)


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    for value in output if isinstance(output, tuple | list) else (output,):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            yield value


def _is_finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())
