"""The version of the code that runs, whatever else is installed under its name."""

import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

UNKNOWN = "0+unknown"


def version_of(package: Path) -> str:
    """Return the version of the package in a folder.

    It is that of the installed distribution if the folder belongs to it, and else that
    of the checkout around the folder. A distribution of the same name may be of another
    project.
    """
    try:
        installed = distribution(package.name)
    except PackageNotFoundError:
        return _of_checkout(package)
    at = Path(str(installed.locate_file(package.name)))
    return installed.version if at == package else _of_checkout(package)


def _of_checkout(package: Path) -> str:
    try:
        text = (package.parent / "pyproject.toml").read_text(encoding="utf-8")
    except OSError:
        return UNKNOWN
    project = tomllib.loads(text).get("project", {})
    return str(project["version"]) if project.get("name") == package.name else UNKNOWN


__version__ = version_of(Path(__file__).parent)
