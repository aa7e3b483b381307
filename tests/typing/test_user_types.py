"""Type checkers accept a user's script, and find the mistakes in another one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPT, MISTAKES = HERE / "user_script.py", HERE / "wrong_options.py"
pytestmark = pytest.mark.slow


def marked() -> set[int]:
    """Return the lines of the mistakes."""
    lines = MISTAKES.read_text().splitlines()
    return {i for i, line in enumerate(lines, 1) if line.endswith("# wrong")}


def checked(command: list[str]) -> str:
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert not run.stderr, run.stderr
    return run.stdout


def test_mypy(tmp_path) -> None:
    pytest.importorskip("mypy", reason="mypy is not installed")
    options = ["--strict", "--output=json", f"--cache-dir={tmp_path}"]
    files = ["-m", "tests.typing.user_script", "-m", "tests.typing.wrong_options"]
    said = checked([sys.executable, "-m", "mypy", *options, *files])
    found = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert {(Path(e["file"]).name, e["line"]) for e in found} == {
        (MISTAKES.name, line) for line in marked()
    }, said


def test_pyright() -> None:
    beside = str(Path(sys.executable).parent)  # without activating the environment
    command = shutil.which("pyright", path=beside) or shutil.which("pyright")
    if command is None:
        pytest.skip("pyright is not installed")
    options = ["--outputjson", "--pythonpath", sys.executable]
    said = checked([command, *options, str(SCRIPT), str(MISTAKES)])
    errors = [
        (Path(e["file"]).name, e["range"]["start"]["line"] + 1)
        for e in json.loads(said)["generalDiagnostics"]
        if e["severity"] == "error"
    ]
    assert set(errors) == {(MISTAKES.name, line) for line in marked()}, said
