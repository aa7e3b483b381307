"""`invtorch.__version__` is of the code that was imported."""

import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import invtorch
from invtorch import collect_env
from invtorch._version import UNKNOWN, version_of

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def installed(folder: Path, version: str) -> Path:
    """Write what pip leaves of a package, and return the folder of its code."""
    package = folder / "invtorch"
    package.mkdir(parents=True)
    notes = folder / f"invtorch-{version}.dist-info"
    notes.mkdir()
    (notes / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: invtorch\nVersion: {version}\n"
    )
    return package


@pytest.fixture
def only(monkeypatch):
    """Let nothing be installed but what lies in a folder."""

    def found(folder):
        def distribution(name):
            for one in metadata.distributions(name=name, path=[str(folder)]):
                return one
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr("invtorch._version.distribution", distribution)

    return found


def test_an_installed_package_has_the_version_of_its_metadata(only, tmp_path) -> None:
    package = installed(tmp_path, "1.2.3")
    only(tmp_path)
    assert version_of(package) == "1.2.3"


def test_a_distribution_of_the_same_name_says_nothing(only, tmp_path) -> None:
    """Neither of a checkout, nor of a copy without one."""
    installed(tmp_path / "site-packages", "0.5.0")
    only(tmp_path / "site-packages")
    package = tmp_path / "checkout" / "invtorch"
    package.mkdir(parents=True)
    assert version_of(package) == UNKNOWN
    project = tmp_path / "checkout" / "pyproject.toml"
    project.write_text('[project]\nname = "other"\nversion = "3.0.0"\n')
    assert version_of(package) == UNKNOWN
    project.write_text('[project]\nname = "invtorch"\nversion = "1.4.0"\n')
    assert version_of(package) == "1.4.0"


def test_a_checkout_needs_no_installation(only, tmp_path) -> None:
    only(tmp_path)
    assert version_of(ROOT / "invtorch") == PROJECT["version"]


def test_no_upgrade_replaces_it() -> None:
    """Another project of this name is at 0.5.0."""
    assert int(PROJECT["version"].split(".")[0]) >= 1
    assert int(invtorch.__version__.split(".")[0]) >= 1


def test_the_report_says_what_runs_where(monkeypatch) -> None:
    said = collect_env.report()
    assert f"{invtorch.__version__}\n" in said
    assert str(Path(invtorch.__file__).parent) in said
    monkeypatch.setattr(collect_env, "version_of", lambda _: "0.5.0")
    assert "0.5.0: this is not what was imported" in collect_env.report()
    monkeypatch.setattr(collect_env, "version_of", lambda _: "not installed")
    assert "this is not what was imported" not in collect_env.report()
