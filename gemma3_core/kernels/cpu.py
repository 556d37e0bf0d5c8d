"""Builds and calls cpu.c: RMSNorm in one pass, a few rows times weights, and rows times int4 weights. `cpu_layer` calls
it for a whole layer.

torch's RMSNorm on a CPU is a dozen operations, whose launch takes longer than their work for one token. Its product of
one row with weights reads them at about half the speed of the memory, and for two to eight rows at less; ours reads
them as fast as they come, once for all rows.

torch's int4 kernel widens each weight to a float, which takes longer than reading it; ours multiplies integers, with
activations that are rounded to 16 bits within each group. There is one for AVX2, and one for AVX-512 with VNNI and
VBMI, whose results are the same to the bit. The rounding error is at most a 65,000th of a group's largest activation:
less than that of torch's kernel for float32, which rounds to bfloat16, and about that of a result in bfloat16.

The machine's C compiler builds the kernels while a model loads, in about a second. Without a compiler, on another
processor or system, or if GEMMA_CPU_KERNELS is not 1, torch's operations are used and the log says why.
"""

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

import torch

SOURCE = Path(__file__).with_name("cpu.c")
COMPILERS = ("cc", "gcc", "clang")
"""The first one found builds the kernels."""
_PROCESSOR = Path("/proc/cpuinfo")
_BUILDING_SECONDS = 120
_THREAD_POOL = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")  # of torch's OpenMP library
_POINTER, _SIZE, _FLAG = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
_MULTIPLY_ARGUMENTS: list[Any] = [*[_POINTER] * 4, *[_SIZE] * 5, *[_FLAG] * 3]
_NORM_ARGUMENTS: list[Any] = [*[_POINTER] * 3, *[_SIZE] * 2, ctypes.c_float, _FLAG, _FLAG]
_DENSE_ARGUMENTS: list[Any] = [*[_POINTER] * 4, *[_SIZE] * 3, _FLAG, _FLAG]
_LAYER_ARGUMENTS: list[Any] = [*[_POINTER] * 6, _SIZE, _FLAG]
_ROWS_AT_A_TIME = 2048  # limits the memory for activations as integers in int4_multiply
_LANES = 16  # numbers in the widest vector register
_WIDEST_GROUP = 128  # int4_multiply has room for no wider one
_NEEDED = frozenset(("avx2", "fma"))  # as /proc/cpuinfo names them
_WHOLE = 2  # choose_level: all that the processor has
_OFF = "GEMMA_CPU_KERNELS"

BLOCKS = (64, 32)
"""int4_multiply takes blocks of so many rows of weights."""
FEW_ROWS = 8
"""dense_multiply takes so many; with more, torch's product is faster."""
DTYPES = (torch.float32, torch.bfloat16)
"""Types of activations."""

PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Types of tensors whose memory is what they say."""

log = logging.getLogger(__name__)
_building = threading.Lock()
if hasattr(os, "register_at_fork"):  # not on Windows; a process has no thread of the one that it is forked from
    os.register_at_fork(before=_building.acquire, after_in_parent=_building.release, after_in_child=_building.release)


class _CompilerError(Exception):
    """The processor fits, but no compiler builds the kernels."""


@cache
def library() -> ctypes.CDLL | None:
    """The kernels, built and loaded; None if that fails, which the log explains."""
    with _building:  # whoever comes meanwhile waits for the one build
        return _library()


@cache
def _library() -> ctypes.CDLL | None:
    torchs = "the CPU runs torch's operations, not the faster kernels"
    try:
        _check_machine()
        return _built()
    except NotImplementedError as error:
        log.info("%s: %s", torchs, error)
    except (_CompilerError, OSError, subprocess.SubprocessError) as error:
        if threading.main_thread().is_alive():  # else the program ends, and has removed the folder built in
            log.warning("%s: %s", torchs, error)
    return None


def prepare() -> None:
    """Builds the kernels in another thread, so that the first answer need not wait."""
    threading.Thread(target=library, name="cpu_kernels", daemon=True).start()


def _check_machine() -> None:
    """Raises NotImplementedError if the kernels don't fit this machine or are switched off."""
    if (asked := os.environ.get(_OFF, "1")) != "1":
        raise NotImplementedError(f"{_OFF} is {asked}")
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise NotImplementedError(f"they are for Linux on x86-64, this is {platform.system()} on {platform.machine()}")
    if not set(_PROCESSOR.read_text(encoding="utf-8").split()) >= _NEEDED:
        raise NotImplementedError("this processor lacks AVX2 or FMA")
    process = ctypes.CDLL(None)
    if missing := [name for name in _THREAD_POOL if not hasattr(process, name)]:
        raise NotImplementedError(f"this torch has no OpenMP library with {', '.join(missing)}")


def _built() -> ctypes.CDLL:
    """Raises _CompilerError, OSError or SubprocessError."""
    compiler = next((found for name in COMPILERS if (found := shutil.which(name))), None)
    if compiler is None:
        raise _CompilerError(f"there is no C compiler ({', '.join(COMPILERS)}); install one to answer faster")
    # Deleted once loaded, so that no stale or foreign file is ever used.
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "cpu.so"
        command = [compiler, "-O3", "-shared", "-fPIC", "-o", str(built), str(SOURCE)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILDING_SECONDS,
            check=False,
            start_new_session=True,  # Ctrl-C is for the program
        )
        if done.returncode != 0:
            raise _CompilerError(f"{compiler} could not build them: {done.stderr.strip()[:500]}")
        kernels = ctypes.CDLL(str(built))
    if not kernels.choose_level(_WHOLE):
        raise _CompilerError("the processor refuses what /proc/cpuinfo promises")
    kernels.int4_multiply.argtypes = _MULTIPLY_ARGUMENTS
    kernels.rms_norm.argtypes, kernels.rms_norm.restype = _NORM_ARGUMENTS, None
    kernels.dense_multiply.argtypes, kernels.dense_multiply.restype = _DENSE_ARGUMENTS, None
    kernels.decoder_layer.argtypes = _LAYER_ARGUMENTS
    return kernels


def library_for(x: torch.Tensor, *weights: torch.Tensor) -> ctypes.CDLL | None:
    """The kernels if they can be used on x and `weights`, else None.

    They have no gradient and can't be traced, so they run only in inference mode, on plain CPU tensors of one type.
    """
    if torch.compiler.is_compiling():  # first, because the rest can't be compiled
        return None
    if not x.is_cpu or torch.jit.is_tracing() or not torch.is_inference_mode_enabled():
        return None
    if x.dtype not in DTYPES or any(weight.dtype != x.dtype for weight in weights):
        return None
    plain = all(type(one) in PLAIN and one.is_cpu for one in (x, *weights))
    return library() if plain else None


def rms_norm(kernels: ctypes.CDLL, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * (1 + weight) along the last axis, computed in float32.

    x [..., N] and weight [N] have one type, float32 or bfloat16; N is a multiple of 16 (`norm_fits`).
    """
    assert x.dtype == weight.dtype
    assert x.device.type == weight.device.type == "cpu"
    assert weight.shape == x.shape[-1:]
    assert norm_fits(x)
    x, weight = x.contiguous(), weight.contiguous()
    out = torch.empty_like(x)
    width = x.shape[-1]
    pointers, sizes = (x.data_ptr(), weight.data_ptr(), out.data_ptr()), (x.numel() // width, width)
    kernels.rms_norm(*pointers, *sizes, eps, int(x.dtype == torch.bfloat16), torch.get_num_threads())
    return out


def norm_fits(x: torch.Tensor) -> bool:
    """Whether rms_norm takes rows of this length."""
    return x.shape[-1] % _LANES == 0 and x.numel() > 0


def dense_multiply(
    kernels: ctypes.CDLL, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """x W^T + b, summed in float32: [..., N] in x's type.

    x [..., K], weight [N, K] and bias [N] have one type, float32 or bfloat16 (`dense_fits`). Rows do not depend on one
    another.
    """
    assert x.dtype == weight.dtype
    assert x.device.type == weight.device.type == "cpu"
    assert dense_fits(x, weight)
    outputs, inputs = weight.shape
    wide, out = x.float(), x.new_empty(*x.shape[:-1], outputs, dtype=torch.float32)
    if weight.dtype == torch.bfloat16:  # two weights are read as one word, whose halves meet these
        wide = wide.unflatten(-1, (-1, 2)).transpose(-1, -2)
    wide = wide.contiguous()
    added = None if bias is None else bias.float().contiguous()
    pointers = (wide.data_ptr(), weight.data_ptr(), None if added is None else added.data_ptr(), out.data_ptr())
    sizes = (wide.numel() // inputs, inputs, outputs)
    kernels.dense_multiply(*pointers, *sizes, int(weight.dtype == torch.bfloat16), torch.get_num_threads())
    return out.to(x.dtype)


def dense_fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether dense_multiply takes these."""
    few = 0 < x.shape[:-1].numel() <= FEW_ROWS
    at_a_time = _LANES * (4 // weight.dtype.itemsize)
    return few and x.shape[-1] == weight.shape[1] and x.shape[-1] % at_a_time == 0 and weight.is_contiguous()


def multiply(
    kernels: ctypes.CDLL,
    x: torch.Tensor,
    qdata: torch.Tensor,
    scale_and_zero: torch.Tensor,
    group_size: int,
    block: int,
    symmetric: bool = False,
) -> torch.Tensor:
    """x [M, K] in float32 or bfloat16 times weights that torch packed for its own kernel: [M, N] in x's type.

    qdata: uint8 [N, K/2] in blocks of `block` rows; scale_and_zero: bfloat16 [K/G, N, 2]; of `symmetric`
    weights it holds two parts of the scale, and zero is 0. Rows do not depend on one another. Raises MemoryError.
    """
    inputs, outputs = x.shape[1], qdata.shape[0]
    assert x.dtype in DTYPES
    assert block in BLOCKS
    assert outputs % block == inputs % group_size == group_size % _LANES == 0
    assert group_size <= _WIDEST_GROUP
    assert qdata.shape == (outputs, inputs // 2)
    assert scale_and_zero.shape == (inputs // group_size, outputs, 2)
    assert all(tensor.device.type == "cpu" for tensor in (x, qdata, scale_and_zero))
    x, qdata, scale_and_zero = x.contiguous(), qdata.contiguous(), scale_and_zero.contiguous()
    out = x.new_empty(len(x), outputs)
    weights = (qdata.data_ptr(), scale_and_zero.data_ptr())
    few = len(x) <= _ROWS_AT_A_TIME  # no slices in a decode step, which calls this a hundred times
    parts = ((x, out),) if few else zip(x.split(_ROWS_AT_A_TIME), out.split(_ROWS_AT_A_TIME), strict=True)
    for some, part in parts:
        sizes = (len(some), inputs, outputs, group_size, block)
        flags = (int(symmetric), int(x.dtype == torch.bfloat16), torch.get_num_threads())
        if kernels.int4_multiply(some.data_ptr(), *weights, part.data_ptr(), *sizes, *flags):
            raise MemoryError("not enough memory to multiply by int4 weights")
    return out
