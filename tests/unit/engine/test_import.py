"""`import invtorch` loads its own modules, and no more of others than torch does."""

import json
import subprocess
import sys

PROGRAM = """
import json, sys, torch
known = set(sys.modules)
import {name}
print(json.dumps(sorted(set(sys.modules) - known)))
"""


def imported(name: str) -> set[str]:
    """Return the modules that `import name` loads after `import torch`."""
    command = [sys.executable, "-c", PROGRAM.format(name=name)]
    run = subprocess.run(command, check=True, capture_output=True)
    return set(json.loads(run.stdout))


def test_nothing_that_takes_long_is_imported() -> None:
    """Dynamo takes seconds; so do hypothesis, matplotlib and the like together."""
    modules = imported("invtorch, invtorch.nets, invtorch.testing")
    packages = {name.split(".")[0] for name in modules}
    assert packages - sys.stdlib_module_names <= {"invtorch", "torch"}
    assert {name for name in modules if name.startswith("torch.")} <= {
        "torch.utils._device"
    }
