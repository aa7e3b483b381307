"""The workflows and forms of `.github` are valid, and call targets that exist."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(
    p for p in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if p.stem != "config"
)
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = {*re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(GITHUB.rglob("*.md")),
]


def commands(path: Path) -> list[str]:
    """Return the lines that are run, or that a page tells to run."""
    text = path.read_text()
    if path.suffix == ".yml":
        return [
            line for step in steps(path) for line in step.get("run", "").split("\n")
        ]
    fenced = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n".join(fenced), *re.findall(r"`([^`\n]+)`", text)]


def made(path: Path) -> set[str]:
    """Return the targets of all `make` commands of a file."""
    text = re.sub(r"\$\{\{.*?\}\}", "VALUE", "\n".join(commands(path)))
    calls = re.findall(r"^make ([^#\n]*)", text, re.MULTILINE)
    return {word for call in calls for word in call.split() if "=" not in word}


def steps(path: Path) -> list[dict[str, object]]:
    jobs = yaml.safe_load(path.read_text())["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_is_made_of_steps_that_exist(path) -> None:
    contents = yaml.safe_load(path.read_text())
    assert {"name", "jobs", "permissions", True} <= contents.keys()  # `on` is True
    assert made(path) <= TARGETS
    assert made(path)
    for job in contents["jobs"].values():
        assert job["runs-on"]
        assert not set(job.get("needs", "").split()) - contents["jobs"].keys()
    for step in steps(path):
        assert ("uses" in step) != ("run" in step), step
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])


def test_the_workflows_run_every_check() -> None:
    called = set().union(*(made(path) for path in WORKFLOWS))
    assert {"check", "test", "oldest", "docs", "package"} <= called


def test_oldest_and_newest_python_are_run() -> None:
    text = (GITHUB / "workflows/tests.yml").read_text()
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert f'"{named[0]}"' in text
    assert f'"{named[-1]}"' in text
    newest = re.search(r"^TORCH \?= torch==(\S+)", MAKEFILE, re.MULTILINE)[1]
    assert f'torch: "{newest}"' in text


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_a_form_asks_for_the_environment(path) -> None:
    form = yaml.safe_load(path.read_text())
    assert {"name", "description", "body"} <= form.keys()
    fields = {field["id"]: field for field in form["body"]}
    assert len(fields) == len(form["body"])
    assert all(field["attributes"]["label"] for field in fields.values())
    command = "python -m invtorch.collect_env"
    assert command in fields["environment"]["attributes"]["label"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_pages_name_targets_that_exist(path) -> None:
    assert made(path) <= TARGETS


def test_each_target_is_phony_and_listed() -> None:
    (phony,) = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert {*phony.split()} == TARGETS
    helped = re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE)
    assert {*helped} >= TARGETS - {"help"}


def test_the_wheel_is_tried_before_it_is_attached() -> None:
    runs = [step.get("run", "") for step in steps(GITHUB / "workflows/release.yml")]
    assert runs.index("make package") < next(
        i for i, run in enumerate(runs) if "gh release" in run
    )


def test_what_is_not_a_form_is_there() -> None:
    for name in ("SECURITY.md", "CODE_OF_CONDUCT.md", "docs/development/releasing.md"):
        assert (ROOT / name).stat().st_size > 500, name
