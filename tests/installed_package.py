"""Use the built package as a stranger does; `make package` runs this.

    python tests/installed_package.py PYTHON DIST

PYTHON has torch and the wheel of the folder DIST, and nothing else. This script itself
needs mypy.
"""

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def in_the_checkout() -> set[str]:
    """Return the files of the repository, but for what runs continuous integration."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name for name in listed.stdout.split() if not name.startswith(".ci/")}


def only(dist: Path, pattern: str) -> Path:
    (file,) = dist.glob(pattern)
    return file


def check_contents(dist: Path) -> str:
    """Check what the files hold, and return the version of the wheel."""
    wheel = only(dist, "invtorch-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names}
    (notes,) = (folder for folder in folders if folder.endswith(".dist-info"))
    assert folders == {"invtorch", notes}, folders
    assert "invtorch/py.typed" in names
    metadata = zipfile.ZipFile(wheel).read(f"{notes}/METADATA").decode()
    relative = re.findall(r"\]\((?!https?:|#)[^)\s]+\)", metadata)
    assert not relative, relative
    with tarfile.open(only(dist, "invtorch-*.tar.gz")) as sdist:
        members = sdist.getnames()
    missing = in_the_checkout() - {name.partition("/")[2] for name in members}
    assert not missing, sorted(missing)
    return wheel.name.split("-")[1]


def run(command: list[str], folder: str) -> str:
    """Run a command away from the checkout, and return what it printed."""
    sys.stdout.write(f"{' '.join(command)[:100]}\n")
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert not result.stderr, result.stderr
    return result.stdout


def main(python: str, dist: str) -> None:
    """Check the files, then the first example, the report, the types, the checkout."""
    python = str(Path(python).absolute())
    version = check_contents(Path(dist))
    example, *_ = BLOCK.findall((ROOT / "README.md").read_text())
    with tempfile.TemporaryDirectory() as folder:
        run([python, "-W", "error", "-c", example], folder)
        report = run([python, "-m", "invtorch.collect_env"], folder)
        assert report.split()[1] == version, report
        script = Path(folder) / "user_script.py"
        script.write_text((ROOT / "tests/typing/user_script.py").read_text())
        mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable"]
        run([*mypy, python, str(script)], folder)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        run([*pip, "install", "--no-deps", "--editable", str(ROOT)], folder)
        assert "reconstruct" in run([python, "-m", "mri_example", "--help"], folder)
    sys.stdout.write(f"invtorch {version} can be published\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
