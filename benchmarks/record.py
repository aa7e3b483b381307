"""What a result is recorded with: machine, versions, commit and settings."""

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def write(name: str, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the rows of a benchmark with all that is needed to repeat it.

    What was measured on a GPU has a file of its own, its name ending in `_cuda`.
    """
    record = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": read_commit(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "device": torch.cuda.get_device_name()
            if torch.cuda.is_available()
            else "cpu",
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": settings,
        "rows": rows,
    }
    on_gpu = "_cuda" if torch.cuda.is_available() else ""
    path = RESULTS / f"{name}{on_gpu}.json"
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)
    print(f"written: {path}")


def read(name: str) -> dict[str, Any]:
    """Read the record of a benchmark."""
    record: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return record


def read_commit() -> str:
    """Name the commit, and whether anything but results was changed since."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", ":/", f":(exclude){RESULTS}")
    return (commit or "unknown") + ("-dirty" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor()
    lines = information.read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.machine()
