"""Print what a bug report needs: `python -m invtorch.collect_env`."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch

import invtorch

OPTIONAL = (
    *("numpy", "einops", "hypothesis", "matplotlib", "lightning", "jsonargparse"),
    *("h5py", "scipy", "scikit-image", "nibabel", "ismrmrd", "safetensors"),
)


def devices() -> str:
    """Return the names of the accelerators, and what PyTorch was built for."""
    cuda, hip = torch.version.cuda, torch.version.hip
    built = f"CUDA {cuda}" if cuda else f"ROCm {hip}" if hip else "no GPU"
    if not torch.cuda.is_available():
        return f"CPU only (PyTorch is built for {built})"
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    return f"{', '.join(names)} (PyTorch is built for {built})"


def version_of(package: str) -> str:
    """Return the installed version of a package."""
    try:
        return distribution(package).version
    except PackageNotFoundError:
        return "not installed"


def installed() -> str:
    """Return what is installed as `invtorch`, and whether it is what was imported."""
    found = version_of("invtorch")
    if found in ("not installed", invtorch.__version__):
        return found
    return f"{found}: this is not what was imported"


def facts() -> dict[str, str]:
    """Return the lines of the report by name."""
    return {
        "invtorch": invtorch.__version__,
        "imported from": str(Path(invtorch.__file__).parent),
        "installed as invtorch": installed(),
        "Python": f"{platform.python_version()} ({sys.executable})",
        "platform": platform.platform(),
        "PyTorch": torch.__version__,
        "devices": devices(),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        **{package: version_of(package) for package in OPTIONAL},
    }


def report() -> str:
    """Return the report, one line for each fact."""
    lines = facts()
    width = max(map(len, lines)) + 2
    return "".join(f"{name + ':':{width}}{fact}\n" for name, fact in lines.items())


if __name__ == "__main__":
    sys.stdout.write(report())
