"""What the tests of the CPU kernels share."""

from collections.abc import Iterator

import pytest

from gemma3_core.kernels import cpu as cpu_kernels

ALL_THERE_IS = 2


@pytest.fixture(params=[pytest.param(2, id="avx512", marks=pytest.mark.vnni), pytest.param(1, id="avx2")])
def level(request: pytest.FixtureRequest) -> Iterator[int]:
    """The kernels for AVX-512, where the processor has it, and those for AVX2."""
    kernels = cpu_kernels.library()
    assert kernels is not None
    assert kernels.choose_level(request.param) == request.param
    yield request.param
    kernels.choose_level(ALL_THERE_IS)
