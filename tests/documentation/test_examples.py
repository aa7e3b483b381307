"""Each script of docs/examples runs in a test; the first one in a few steps here."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


@pytest.mark.parametrize("name", ["own_layer"])
def test_an_example_runs(name, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # what a script writes stays out of the checkout
    runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"](steps=2)
    assert capsys.readouterr().out


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names
    assert [name for name in names if f'"{name}"' not in tests] == []
