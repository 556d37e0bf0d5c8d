"""torch's Muon with all matrices of a shape in one product.

torch goes through the matrices one by one. The demo model's are many and small, so that a GPU takes longer to begin
each of some 2,000 operations a step than to carry it out.
"""

import math
from collections.abc import Callable
from typing import Any

import torch


class Muon(torch.optim.Muon):
    """As torch.optim.Muon, whose results it gives but for rounding in bfloat16; its options are its own.

    Only `adjust_lr_fn="match_rms_adamw"` and Nesterov's momentum are known: raises ValueError for others.
    """

    def __init__(self, params: Any, **options: Any):
        super().__init__(params, **options)
        for group in self.param_groups:
            if group["adjust_lr_fn"] != "match_rms_adamw" or not group["nesterov"]:
                raise ValueError('expected adjust_lr_fn="match_rms_adamw" and nesterov=True')

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; what the closure gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices: list[torch.Tensor] = []
            gradients: list[torch.Tensor] = []
            momenta: list[torch.Tensor] = []
            self._init_group(group, matrices, gradients, momenta)
            if matrices:
                _update(group, matrices, gradients, momenta)
        return loss


def _update(
    group: dict[str, Any], matrices: list[torch.Tensor], gradients: list[torch.Tensor], momenta: list[torch.Tensor]
) -> None:
    torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
    directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
    torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
    by_shape: dict[torch.Size, list[int]] = {}
    for number, matrix in enumerate(matrices):
        by_shape.setdefault(matrix.shape, []).append(number)
    for shape, numbers in by_shape.items():
        stacked = torch.stack([directions[n] for n in numbers])
        steps = orthogonalised(stacked, group["ns_coefficients"], group["ns_steps"], group["eps"])
        rate = 0.2 * math.sqrt(max(shape)) * group["lr"]
        torch._foreach_add_([matrices[n] for n in numbers], list(steps.to(stacked.dtype).unbind()), alpha=-rate)


def orthogonalised(
    matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> torch.Tensor:
    """Each of the matrices [M, R, C] with singular values near 1, bfloat16: Newton and Schulz's iteration.

    Source: Keller Jordan's Muon, as in torch.optim.Muon.
    """
    a, b, c = coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    wide = (matrices.mT if tall else matrices).bfloat16()
    wide = wide / wide.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if tall else wide
