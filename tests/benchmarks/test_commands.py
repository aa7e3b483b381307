"""Every benchmark can be imported, and those with options say which they have."""

import contextlib
import importlib
import pkgutil
import runpy
from pathlib import Path

import pytest

import benchmarks

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(benchmarks.__path__, "benchmarks.")
    if not module.ispkg
)
OPTIONS = ("ArgumentParser(", "auto_cli(")
OURS = {"benchmarks", "invtorch", "mri_example"}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def has_options(name: str) -> bool:
    """Return whether a module is a command that reads options."""
    source = Path(benchmarks.__path__[0]).joinpath(*name.split(".")[1:])
    text = source.with_suffix(".py").read_text()
    return any(option in text for option in OPTIONS)


@contextlib.contextmanager
def peers_may_be_missing():
    """Skip where a package is not installed that only some benchmarks need."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OURS:
            raise
        pytest.skip(f"{error.name} is not installed")


def test_all_modules_are_found() -> None:
    folder = Path(benchmarks.__path__[0])
    files = {path for path in folder.rglob("*.py") if path.name != "__init__.py"}
    assert len(MODULES) == len(files) > 30


@pytest.mark.parametrize("name", MODULES)
def test_it_can_be_imported(name) -> None:
    with peers_may_be_missing():
        importlib.import_module(name)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*:RuntimeWarning")
@pytest.mark.parametrize("name", [*filter(has_options, MODULES)])
def test_it_says_its_options(name, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with peers_may_be_missing(), pytest.raises(SystemExit) as ended:
        runpy.run_module(name, run_name="__main__")
    assert ended.value.code == 0
    assert "--help" in capsys.readouterr().out
