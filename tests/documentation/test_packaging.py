"""What the package says of itself, without building it: `make package` does."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())
README = (ROOT / "README.md").read_text()
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
TARGET = re.compile(r"\]\(([^)\s]+)\)")


def rendered() -> str:
    """Return the README as the package index shows it."""
    hook = PYPROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
    text = README
    for rule in hook["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    return text.replace("$HFPR_VERSION", PROJECT["version"])


def test_links_and_pictures_of_the_readme_are_absolute_outside_of_the_checkout():
    address = PROJECT["urls"]["Source"]
    said = TARGET.findall(FENCED.sub("", rendered()))
    local = [t for t in TARGET.findall(FENCED.sub("", README)) if "://" not in t]
    assert len([t for t in said if t.startswith(address)]) >= len(local) > 5
    assert all("://" in target for target in said)
    pictures = [t for t in said if t.endswith(".png")]
    assert pictures
    assert all(t.startswith(f"{address}/raw/") for t in pictures)
    for target in local:
        assert (ROOT / target.split("#")[0]).exists(), target


def test_code_of_the_readme_is_left_as_it_is() -> None:
    assert FENCED.findall(rendered()) == FENCED.findall(README)


def test_no_page_tells_to_install_what_belongs_to_somebody_else() -> None:
    """The package index has another library of this name."""
    named = 0
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for paragraph in re.split(r"\n\s*\n", page.read_text()):
            if re.search(r"pip install (-\S+ )*[\"']?invtorch(?![-\w])", paragraph):
                assert re.search("another|somebody else", paragraph), paragraph
                named += 1
    assert named >= 3  # README, installation, FAQ


def test_one_version_and_one_address() -> None:
    address = PROJECT["urls"]["Source"]
    assert CITATION["version"] == PROJECT["version"]
    assert CITATION["repository-code"] == address
    assert all(url.startswith(address) for url in PROJECT["urls"].values())
    text = (ROOT / "pyproject.toml").read_text()
    assert {m[0] for m in re.findall(r"(https://[^/\"]+/[\w-]+)(/|')", text)} <= {
        address
    }


def test_the_changelog_has_the_version() -> None:
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading[1].rstrip(",") == PROJECT["version"]


def test_supported_versions_are_named_and_allowed() -> None:
    lowest = PROJECT["requires-python"].removeprefix(">=")
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert named == sorted(named)
    assert named[0] == lowest
    makefile = (ROOT / "Makefile").read_text()
    oldest = re.search(r"^OLDEST \?= torch==(\d+\.\d+)", makefile, re.MULTILINE)[1]
    assert f"torch>={oldest}" in PROJECT["dependencies"]
