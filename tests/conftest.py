"""Hypothesis profiles, the device, and what every test starts from.

`make test DEVICE=cuda` lets the tests make their tensors on a GPU.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests import devices

COMMON = {
    "deadline": None,
    "derandomize": False,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("dev", max_examples=10, **COMMON)
settings.register_profile("ci", max_examples=25, **COMMON)
settings.register_profile("thorough", max_examples=400, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
devices.begin()


@pytest.fixture
def on_the_cpu():
    """Make tensors on the CPU, where bytes are counted one by one."""
    with torch.device("cpu"):
        yield


@pytest.fixture(autouse=True)
def _fresh_seed() -> None:
    torch.manual_seed(0)
