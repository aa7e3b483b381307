"""Hypothesis profiles and what every test starts from."""

import os

import pytest
import torch
from hypothesis import HealthCheck, settings

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


@pytest.fixture(autouse=True)
def _fresh_seed() -> None:
    torch.manual_seed(0)
