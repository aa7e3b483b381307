"""The i-RIM and the list of commands do not load the pipeline."""

import subprocess
import sys
from pathlib import Path

from mri_example.summary import SUMMARIES, overview
from tests.mri.test_command_line import OPTIONS

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from mri_example import IRIM
print(sum(name.split(".")[0] == "mri_example" for name in sys.modules))
import torch
known = set(sys.modules)
from mri_example.__main__ import main
main(["--help"])
print(sorted({name.split(".")[0] for name in set(sys.modules) - known}
             - set(sys.stdlib_module_names)))
"""


def test_the_irim_and_the_list_of_commands_are_shown_without_the_pipeline() -> None:
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    count, *shown, imported = run.stdout.splitlines()
    assert int(count) < 10
    assert imported == "['mri_example']"
    assert "\n".join(shown) + "\n" == overview()


def test_each_command_is_in_the_list() -> None:
    assert set(SUMMARIES) == set(OPTIONS) - {""}
    said = " ".join(overview().split())
    assert all(f"{name} {summary}" in said for name, summary in SUMMARIES.items())


WITHOUT = """
import sys
import mri_example.cli, mri_example.data.convert, mri_example.inspection
import mri_example.evaluate, mri_example.reconstruct, mri_example.training.checkpoints
print("lightning" in sys.modules)
"""


def test_what_does_not_train_loads_no_lightning() -> None:
    command = [sys.executable, "-c", WITHOUT]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "False\n"
