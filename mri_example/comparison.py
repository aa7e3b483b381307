"""The benchmark: methods trained for equal times, tested on an unseen head."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mri_example import figures
from mri_example.data.files import whole_file
from mri_example.data.simulate import Simulation
from mri_example.errors import InputError
from mri_example.experiment import TESTED, Contender, picture, run, say, table
from mri_example.models import IRIM2D, IRIM3D, RIM, UNet

HIDDEN, STRIDES = (16, 64, 64, 64), (1, 4, 8, 4)
LONG = 1000  # epochs: the clock ends a training
EPOCH = 200  # steps: validation takes a small part of the time
METHODS = ("zero-filled", "U-Net", "RIM", "i-RIM 2D", "i-RIM 3D")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def contenders(
    coils: int, minutes: float, methods: Sequence[str] = METHODS
) -> list[Contender]:
    """Return the methods for data of so many coils, small enough for a CPU.

    RIM and i-RIMs reconstruct each coil by itself, and learn from one of them in a
    step; the U-Net sees all of them combined.
    """
    each, per_step = (1, None) if coils == 1 else (None, 1)
    trainer = {
        "max_epochs": LONG,
        "limit_train_batches": EPOCH,
        "max_time": timedelta(minutes=minutes),
    }
    own = {"learning_rate": 4e-3, "loss": "l1", "coils_per_step": per_step}
    slower = own | {"learning_rate": 2e-3}
    combined = slower | {"coils_per_step": None}
    irim_2d = partial(IRIM2D, 16, 4, HIDDEN, STRIDES, coils=each)
    irim_3d = partial(IRIM3D, 16, 4, HIDDEN, STRIDES, coils=each, slab=4)
    every = [
        Contender("zero-filled"),
        Contender("U-Net", partial(UNet, 16, 4), combined, 4, trainer),
        Contender("RIM", partial(RIM, 32, 8), slower, 1, trainer),
        Contender("i-RIM 2D", irim_2d, own, 1, trainer),
        Contender("i-RIM 3D", irim_3d, own, 1, trainer),
    ]
    return [contender for contender in every if contender.name in methods]


def compare(
    output: Path = Path("runs/compare"),
    minutes: float = 10.0,
    coils: tuple[int, ...] = (1, 8),
    methods: tuple[str, ...] = METHODS,
    workers: int = 0,
) -> None:
    """Train methods for equal times on the embedded heads; print a table, draw.

    Zero-filled, U-Net, RIM, i-RIM 2D and i-RIM 3D at 4x and 8x acceleration, on the
    split of the demo. What is there already is kept, and a comparison that was
    interrupted goes on. The k-space is simulated from real magnitude images, so the
    scores do not compare with those of the fastMRI leaderboard.

    Args:
        output: Folder for data, checkpoints, reconstructions, results.json and
            pictures.
        minutes: Training time of each method.
        coils: The numbers of coils to compare with; 1 is single-coil data.
        methods: Which of the methods to compare, by the names in the table.
        workers: Processes that load the training data of a method.

    Raises:
        InputError: If there is no such method, or no such time.
    """
    _check(methods, minutes)
    results = output / "results.json"
    rows = _earlier(results, coils, methods)
    for count in coils:
        folder = output / f"{count}_coils"
        for contender in contenders(count, minutes, methods):
            named = {"coils": count, "minutes": minutes if contender.model else 0.0}
            found = run(folder, contender, Simulation(coils=count), DEVICE, workers)
            rows += [named | row for row in found]
            rows.sort(key=lambda r: (r["coils"], METHODS.index(r["method"])))
            _write(results, rows, minutes)
        say(f"{count} coils\n{table([r for r in rows if r['coils'] == count])}")
        for acceleration in TESTED:
            path = output / f"{count}_coils_{acceleration}x.png"
            title = f"{count} coil{'s' if count > 1 else ''}, "
            figures.save(picture(folder, acceleration, methods, title), path)
            say(f"picture: {path}")
    say(f"results: {results}")


def _check(methods: Sequence[str], minutes: float) -> None:
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"methods is {[*methods]}, but can only have {[*METHODS]}")
    if not 0 < minutes < 1e6:
        raise InputError(f"minutes is {minutes}, but must be positive and finite")


def _earlier(
    results: Path, coils: tuple[int, ...], methods: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the rows of earlier runs that this one does not measure."""
    if not results.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(results.read_text())["rows"]
    return [r for r in rows if r["coils"] not in coils or r["method"] not in methods]


def _write(path: Path, rows: list[dict[str, Any]], minutes: float) -> None:
    content = {
        "benchmark": "quality after equal training time, simulated k-space",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "settings": {
            "minutes": minutes,
            "split": "by subject, as in the demo",
            "threads": torch.get_num_threads(),
            "malloc": {k: v for k, v in os.environ.items() if k.startswith("MALLOC_")},
        },
        "rows": rows,
    }
    with whole_file(path) as written:
        written.write_text(json.dumps(content, indent=2) + "\n")
