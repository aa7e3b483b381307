"""The demo: simulate, train, reconstruct an unseen head, evaluate, draw."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

from matplotlib.figure import Figure

from mri_example.data.files import whole_file
from mri_example.data.simulate import Simulation
from mri_example.experiment import Contender, picture, run, say, step_memory, table
from mri_example.figures import learning_curve, memory_against_depth, save
from mri_example.models import IRIM2D
from mri_example.models.irim import Memory
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask

ZERO_FILLED = Contender("zero-filled")
TRAINED = Contender(
    "i-RIM",
    partial(IRIM2D, 32, 6, hidden=(32, 32, 64, 64, 32), strides=(1, 2, 4, 4, 2)),
    {"learning_rate": 4e-3, "loss": "l1"},
    batch_size=1,
    trainer={
        "max_epochs": 15,
        "limit_train_batches": 75,
        "max_time": timedelta(minutes=5.5),
        "accelerator": "cpu",
    },
)
COUPLINGS = (20, 60, 120, 200)


def demo(output: Path = Path("runs/demo")) -> None:
    """Train a small i-RIM on real heads and reconstruct one that it has never seen.

    Everything happens in one folder. What is there already is kept, and a run that was
    interrupted goes on. The k-space is simulated from real magnitude images, so the
    scores do not compare with those of the fastMRI leaderboard.

    Args:
        output: Folder for data, checkpoints, reconstructions, results and pictures.
    """
    start = time.monotonic()
    say("k-space is SIMULATED from real heads: scores do not compare with leaderboards")
    rows = [
        row
        for method in (ZERO_FILLED, TRAINED)
        for row in run(output, method, Simulation())
    ]
    with whole_file(output / "results.json") as written:
        written.write_text(json.dumps(rows, indent=2) + "\n")
    say(table(rows))
    say(verdict(rows))
    for name, draw in PICTURES.items():
        save(draw(output), output / name)
        say(f"picture: {output / name}")
    say(f"results: {output}/results.json, {time.monotonic() - start:.0f} s in all")


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say whether the i-RIM is better than zero-filled, and by how much."""
    gains, worse = [], []
    half = len(rows) // 2
    for before, after in zip(rows[:half], rows[half:], strict=True):
        at = f"at {after['acceleration']}x"
        gains.append(f"{after['psnr'] - before['psnr']:+.2f} dB {at}")
        better = {
            "NMSE": after["nmse"] < before["nmse"],
            "PSNR": after["psnr"] > before["psnr"],
            "SSIM": after["ssim"] > before["ssim"],
        }
        worse += [f"{name} {at}" for name, is_better in better.items() if not is_better]
    if worse:
        return (
            f"i-RIM is NOT better than zero-filled in {', '.join(worse)} "
            f"({', '.join(gains)}): training ends by the clock, and this machine was "
            f"too busy or too slow for it"
        )
    return f"i-RIM is better than zero-filled in all of them: {', '.join(gains)}"


def _comparison(acceleration: int, output: Path) -> Figure:
    return picture(output, acceleration, (ZERO_FILLED.name, TRAINED.name), "")


def _learning(output: Path) -> Figure:
    return learning_curve(output / TRAINED.name / "log")


def _memory(output: Path) -> Figure:
    """Measure the step of deeper and deeper i-RIMs, and draw the peaks."""
    data = SliceData(output / "data", batch_size=1, crop=(64, 64))
    peaks: dict[str, list[int]] = {memory: [] for memory in get_args(Memory)}
    for couplings in COUPLINGS:
        say(f"memory of a training step through {couplings} couplings")
        for memory, values in peaks.items():
            fan = ((16,) * 5, (1, 2, 4, 2, 1))
            model = IRIM2D(16, couplings // 5, *fan, memory=memory)  # type: ignore[arg-type]
            values.append(step_memory(ReconstructionTask(model, fraction=1.0), data))
    return memory_against_depth(COUPLINGS, peaks, "i-RIM, 64 × 64, 16 channels")


PICTURES: dict[str, Callable[[Path], Figure]] = {
    "reconstruction_4x.png": partial(_comparison, 4),
    "reconstruction_8x.png": partial(_comparison, 8),
    "learning_curve.png": _learning,
    "memory_against_depth.png": _memory,
}
