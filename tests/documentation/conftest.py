"""Every network that the documentation shows changes all entries of its state."""

import warnings

import pytest


@pytest.fixture(autouse=True)
def _unchanged_entries_are_errors():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* pass through all .* layers unchanged")
        yield
