"""Muon by shapes: torch's results, in far fewer operations."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from training.learning.muon import Muon, orthogonalised

OPTIONS = {"lr": 0.004, "weight_decay": 0.02, "momentum": 0.95, "adjust_lr_fn": "match_rms_adamw"}
SHAPES = [(64, 32)] * 24 + [(32, 64)] * 12 + [(48, 48)] * 12


class Counting(TorchDispatchMode):
    """Counts the operations that run."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def after_steps(kind: type[torch.optim.Muon], steps: int) -> tuple[list[torch.Tensor], int]:
    """Matrices after so many steps along the same gradients, one without any; and the operations of the last one."""
    matrices = [noise(*shape, seed=number).requires_grad_() for number, shape in enumerate(SHAPES)]
    untouched = noise(64, 32, seed=99).requires_grad_()
    half = len(matrices) // 2
    optimiser = kind([{"params": [*matrices[:half], untouched]}, {"params": matrices[half:]}], **OPTIONS)
    counting = Counting()
    for step in range(steps):
        for number, matrix in enumerate(matrices):
            matrix.grad = noise(*matrix.shape, seed=1000 * step + number)
        counting = Counting()
        with counting:
            optimiser.step()
    assert torch.equal(untouched, noise(64, 32, seed=99))
    return [matrix.detach() for matrix in matrices], counting.count


def test_it_goes_where_torchs_goes_in_far_fewer_operations() -> None:
    ours, few = after_steps(Muon, 4)
    theirs, many = after_steps(torch.optim.Muon, 4)
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        gone = (other - noise(*other.shape, seed=number)).abs().max()
        assert (one - other).abs().max() <= 0.02 * gone
    assert few < many / 4


def test_a_matrix_does_not_depend_on_those_beside_it() -> None:
    stacked = torch.stack([noise(40, 24, seed=n) * 10.0**n for n in range(3)])
    coefficients, steps, eps = (3.4445, -4.7750, 2.0315), 5, 1e-7
    together = orthogonalised(stacked, coefficients, steps, eps)
    alone = torch.cat([orthogonalised(one[None], coefficients, steps, eps) for one in stacked])
    assert (together.float() - alone.float()).abs().max() <= 0.02
    values = torch.linalg.svdvals(together.float())
    assert values.min() > 0.3
    assert values.max() < 1.7


def test_it_calls_its_closure_and_refuses_what_it_does_not_know() -> None:
    matrix = noise(8, 8, seed=0).requires_grad_()
    matrix.grad = noise(8, 8, seed=1)
    assert Muon([matrix], **OPTIONS).step(lambda: 3.0) == 3.0
    for wrong in ({"adjust_lr_fn": "original"}, {"nesterov": False}):
        with pytest.raises(ValueError, match="match_rms_adamw"):
            Muon([matrix], **{**OPTIONS, **wrong})
