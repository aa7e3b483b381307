"""The scripts of docs/examples run, in a few steps, and print what they found."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[2] / "docs/examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a script writes stays out of the checkout
    runpy.run_path(str(path))["main"](steps=2)
    assert capsys.readouterr().out


def test_there_is_an_example() -> None:
    assert EXAMPLES
