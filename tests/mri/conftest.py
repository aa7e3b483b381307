"""Fixtures of all tests of the example."""

import math

import pytest


@pytest.fixture(autouse=True)
def _no_lines_of_progress(monkeypatch) -> None:
    """Print none, however long a test takes; the tests of the lines set this again."""
    monkeypatch.setattr("mri_example.progress.INTERVAL", math.inf)
