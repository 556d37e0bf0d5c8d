"""What the tests of training share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _subnormal_numbers_afterwards():
    """The trainer has the processor flush them to zero, which would stay for whatever runs in this process next."""
    yield
    torch.set_flush_denormal(False)
