"""The operations of a decode step: torch's against the layers that they stand for, Triton's against torch's."""

import os
from pathlib import Path

import pytest
import torch
import warm
from torch.nn import functional as F

from gemma3_core.kernels import decode

HERE = Path(__file__).parent


def printed_by(script: str, folder: Path, **environment: str) -> str:
    """What a script beside this file prints, in a process that has not imported Triton."""
    pytest.importorskip("triton", reason="Triton is for Linux only")
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    status, printed, errors = warm.ran(HERE / script, [], {**without, **environment}, folder)
    assert status == 0, errors[-2000:]
    return printed


def test_the_triton_kernels_compute_what_torch_computes(tmp_path):
    """In Triton's interpreter where there is no CUDA: every kernel, in float32 and bfloat16, in several shapes."""
    interpreted = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    printed = printed_by("decode_on_triton.py", tmp_path, **interpreted)
    for name in ("rms_norm", "add_norms", "gelu_multiply", "queries", "keys", "values", "attend_slots"):
        for dtype in ("float32", "bfloat16"):
            assert printed.count(f"{name} torch.{dtype}") >= 3


def test_the_triton_kernels_compile_for_nvidias_gpus(tmp_path):
    compiled = printed_by("compiled_for_cuda.py", tmp_path, TRITON_CACHE_DIR=str(tmp_path)).split("\n")
    assert len([line for line in compiled if line]) == 9 * 2 * 2


@pytest.mark.parametrize("operation", ["rms_norm", "add_norms", "rotate_and_store", "attend_slots", "gelu_multiply"])
def test_torch_knows_shapes_and_what_is_written(operation):
    """What a compiler needs: shapes without numbers, and which tensors an operation writes to."""
    numbers = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=numbers)

    lengths, store = torch.tensor([0, 9]), (drawn(3, 2, 5, 8), drawn(3, 2, 5, 8))
    given = {
        "rms_norm": (drawn(2, 6), drawn(6), 1e-6),
        "add_norms": (drawn(2, 6), drawn(2, 6), drawn(6), drawn(6), 1e-6),
        "rotate_and_store": (drawn(2, 64), drawn(8), drawn(8), drawn(2, 8), drawn(2, 8), lengths, *store, 1e-6),
        "attend_slots": (drawn(2, 2, 2, 8), *store, lengths, 0.3),
        "gelu_multiply": (drawn(2, 12),),
    }
    torch.library.opcheck(getattr(torch.ops.gemma3, operation).default, given[operation])


def test_a_row_attends_to_what_it_has_stored_and_no_further():
    keys, values = torch.randn(2, 1, 6, 4), torch.randn(2, 1, 6, 4)
    queries, lengths = torch.randn(2, 1, 3, 4), torch.tensor([2, 40])
    out = decode.attend_slots(queries, keys, values, lengths, 0.5)
    for row, columns in ((0, 3), (1, 6)):
        weights = F.softmax(queries[row, 0] @ keys[row, 0, :columns].T * 0.5, dim=-1)
        torch.testing.assert_close(out[row, 0], weights @ values[row, 0, :columns])
