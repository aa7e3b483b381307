"""Where the tests compute: on the CPU, or where `make test DEVICE=cuda` says."""

import os

import pytest
import torch

DEVICE = os.environ.get("DEVICE") or "cpu"
ON_THE_CPU = pytest.mark.usefixtures("on_the_cpu")


def begin() -> None:
    """Make tensors on the device from now on, with results that repeat themselves."""
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
