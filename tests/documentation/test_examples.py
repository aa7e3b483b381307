"""Each script of docs/examples runs in a test; the first one in a few steps here."""

from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "docs/examples"


def test_an_example_runs(example, capsys, tmp_path) -> None:
    own = example("own_layer", "matplotlib", "skimage")
    own["main"](steps=2, depths=(1, 2))
    assert "bits per pixel" in capsys.readouterr().out
    assert (tmp_path / "own_layer.png").stat().st_size > 1000


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(p.read_text() for p in Path(__file__).parent.glob("test_*.py"))
    names = sorted(path.stem for path in EXAMPLES.glob("*.py"))
    assert names
    assert [name for name in names if f'"{name}"' not in tests] == []
