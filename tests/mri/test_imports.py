"""The i-RIM alone does not load the pipeline."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from mri_example import IRIM
print(sum(name.split(".")[0] == "mri_example" for name in sys.modules))
"""


def test_the_irim_is_imported_without_the_pipeline() -> None:
    command = [sys.executable, "-c", PROGRAM]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 10
