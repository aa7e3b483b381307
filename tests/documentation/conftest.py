"""Every network that the documentation shows changes all entries of its state."""

import runpy
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _unchanged_entries_are_errors():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* pass through all .* layers unchanged")
        yield


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Load a script, which will work in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def load(name: str, *needs: str) -> dict:
        for need in needs:
            pytest.importorskip(need, reason=f"docs/examples/{name}.py needs {need}")
        return runpy.run_path(str(ROOT / f"docs/examples/{name}.py"))

    return load
