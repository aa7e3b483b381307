"""`import invtorch` loads no more of PyTorch than `import torch` does."""

import subprocess
import sys

COMMAND = (
    "import sys, {name}; print(sum(m.startswith('torch._dynamo') for m in sys.modules))"
)


def dynamo_modules(name: str) -> int:
    command = [sys.executable, "-c", COMMAND.format(name=name)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


def test_dynamo_is_not_imported() -> None:
    """It takes seconds."""
    assert dynamo_modules("invtorch") == dynamo_modules("torch")
