"""Fixtures of all tests of the benchmarks."""

import math

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_lines_of_progress():
    """Print none, however long a test takes."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("mri_example.progress.INTERVAL", math.inf)
        yield
