"""The methods side by side: trained for equal times, tested on an unseen head."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from mri_example import figures
from mri_example.data import Simulation, simulate_demo, whole_file
from mri_example.data.files import KSpaceFile, read_reconstruction
from mri_example.errors import InputError
from mri_example.evaluate import evaluate
from mri_example.model import IRIM2D, IRIM3D, RIM, ModelConfig, UNet
from mri_example.reconstruct import reconstruct, zero_filled
from mri_example.training import (
    MaskConfig,
    TrainingConfig,
    fit_once,
    load,
    step_memory,
)

HIDDEN, STRIDES = (16, 64, 64, 64), (1, 4, 8, 4)
MASKS = {4: MaskConfig("random", (0.08,), (4,)), 8: MaskConfig("random", (0.04,), (8,))}
BOTH = MaskConfig("random", (0.08, 0.04), (4, 8))
LONG = 1000  # epochs: the clock ends a training
EPOCH = 200  # steps: validation takes a small part of the time
SHOWN_SLICE = 30
METHODS = ("zero-filled", "U-Net", "RIM", "i-RIM 2D", "i-RIM 3D")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Contender:
    """A method and how it is trained; zero-filled has nothing to train."""

    name: str
    model: ModelConfig | None = None
    training: TrainingConfig = TrainingConfig()


def contenders(coils: int) -> list[Contender]:
    """Return the methods for data of so many coils, small enough for a CPU.

    RIM and i-RIMs reconstruct each coil by itself, and learn from one of them in a
    step; the U-Net sees all of them combined.
    """
    each, per_step = (1, None) if coils == 1 else (None, 1)
    own = TrainingConfig(
        epochs=LONG,
        epoch_steps=EPOCH,
        batch_size=1,
        learning_rate=4e-3,
        loss="l1",
        coils_per_step=per_step,
    )
    slower = replace(own, learning_rate=2e-3)
    combined = replace(slower, coils_per_step=None, batch_size=4)
    return [
        Contender("zero-filled"),
        Contender("U-Net", UNet(16, 4), combined),
        Contender("RIM", RIM(32, 8), slower),
        Contender("i-RIM 2D", IRIM2D(16, 4, HIDDEN, STRIDES, each), own),
        Contender("i-RIM 3D", IRIM3D(16, 4, HIDDEN, STRIDES, each, slab=4), own),
    ]


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
        InputError: If there is no such method.
    """
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise InputError(f"methods is {[*methods]}, but can only have {[*METHODS]}")
    results = output / "results.json"
    rows = _earlier(results, coils, methods)
    for count in coils:
        simulation = Simulation(coils=count)
        folder = output / f"{count}_coils"
        simulate_demo(folder / "data", simulation)
        compared = [c for c in contenders(count) if c.name in methods]
        for contender in compared:
            training = replace(
                contender.training,
                challenge=simulation.challenge,
                minutes=minutes,
                workers=workers,
            )
            rows += _rows(folder, replace(contender, training=training), count)
            rows.sort(key=lambda r: (r["coils"], METHODS.index(r["method"])))
            _write(results, rows, minutes)
        for acceleration in MASKS:
            picture = output / f"{count}_coils_{acceleration}x.png"
            figures.save(_picture(folder, acceleration, count, methods), picture)
            sys.stdout.write(f"picture: {picture}\n")
    sys.stdout.write(f"{table(rows)}\nresults: {results}\n")


def _earlier(
    results: Path, coils: tuple[int, ...], methods: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Return the rows of earlier runs that this one does not measure."""
    if not results.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(results.read_text())["rows"]
    return [r for r in rows if r["coils"] not in coils or r["method"] not in methods]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as text."""
    lines = [
        "coils  method       acceleration  parameters  minutes  steps  peak MB"
        "    NMSE   PSNR    SSIM"
    ]
    lines += [
        f"{row['coils']:5}  {row['method']:11}  {row['acceleration']:11}x"
        f"  {row['parameters']:10,}  {row['minutes']:7.1f}  {row['steps']:5}"
        f"  {row['peak'] / 1e6:7.0f}"
        f"  {row['nmse']:6.4f}  {row['psnr']:5.2f}  {row['ssim']:6.4f}"
        for row in rows
    ]
    return "\n".join(lines)


def _rows(folder: Path, contender: Contender, coils: int) -> list[dict[str, Any]]:
    model = None
    costs: dict[str, Any] = {"parameters": 0, "minutes": 0.0, "steps": 0, "peak": 0}
    if contender.model is not None:
        run = folder / contender.name
        training = contender.training
        last = fit_once(folder / "data", run, contender.model, BOTH, training)
        model = load(last)
        costs = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "minutes": training.minutes,
            "steps": torch.load(last, weights_only=True)["global_step"],
            "peak": step_memory(folder / "data", contender.model, BOTH, training),
        }
    test = folder / "data" / f"{contender.training.challenge}_test"
    rows = []
    for acceleration, masks in MASKS.items():
        out = _reconstructions(folder, contender.name, acceleration)
        method = zero_filled if model is None else model
        reconstruct(method, test, out, masks.build(), device=DEVICE, progress=False)
        scores = asdict(evaluate(test, out).summary.mean)
        named = {"coils": coils, "method": contender.name, "acceleration": acceleration}
        rows.append(named | costs | scores)
    return rows


def _picture(
    folder: Path, acceleration: int, coils: int, methods: tuple[str, ...]
) -> Figure:
    """Show a slice of the unseen head as each method reconstructs it."""
    (path,) = (folder / "data").glob("*_test/*.h5")
    volumes = {
        name: read_reconstruction(
            _reconstructions(folder, name, acceleration) / path.name
        )
        for name in methods
    }
    seen = f"{coils} coil{'s' if coils > 1 else ''}, {acceleration}x acceleration"
    return figures.compare(
        KSpaceFile.inspect(path).target_volume()[SHOWN_SLICE],
        {name: volume[SHOWN_SLICE] for name, volume in volumes.items()},
        f"unseen head, {seen} (simulated k-space)",
    )


def _reconstructions(folder: Path, method: str, acceleration: int) -> Path:
    return folder / "reconstructions" / f"{method}_{acceleration}x"


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
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n")
