"""A small i-RIM that is trained on real heads, and tested on an unseen one."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from matplotlib.figure import Figure

from invtorch.planning import measure_memory
from mri_example import report
from mri_example.data.files import KSpaceFile, read_reconstruction, whole_file
from mri_example.data.simulate import Simulation, simulate_demo
from mri_example.evaluate import evaluate
from mri_example.masks import Masks
from mri_example.models import IRIM2D, Reconstructor
from mri_example.models.irim import Memory
from mri_example.progress import say
from mri_example.reconstruct import Method, reconstruct, zero_filled
from mri_example.training.checkpoints import load, load_checkpoint
from mri_example.training.data import SliceData
from mri_example.training.fit import fit
from mri_example.training.module import ReconstructionTask

TESTED = {4: Masks("random", (0.08,), (4,)), 8: Masks("random", (0.04,), (8,))}
SHOWN_SLICE = 30
COUPLINGS = (20, 60, 120, 200)
UNTRAINED = {"parameters": 0, "steps": 0, "peak": 0}
MODEL = partial(IRIM2D, 32, 6, hidden=(32, 32, 64, 64, 32), strides=(1, 2, 4, 4, 2))
TRAINER: dict[str, Any] = {
    "max_epochs": 15,
    "limit_train_batches": 75,
    "max_time": timedelta(minutes=5.5),
    "accelerator": "cpu",
}


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
    data = output / "data"
    simulate_demo(data, Simulation())
    rows = rows_of("zero-filled", zero_filled, UNTRAINED, data, output)
    torch.manual_seed(0)
    task = ReconstructionTask(MODEL(), learning_rate=4e-3, loss="l1")
    slices = SliceData(data, batch_size=1)
    trained = train(task, slices, output / "i-RIM", **TRAINER)
    rows += rows_of("i-RIM", *trained, data, output)
    with whole_file(output / "results.json") as written:
        written.write_text(json.dumps(rows, indent=2) + "\n")
    say(table(rows))
    say(length(rows[-1]["steps"]))
    say(verdict(rows))
    for name, figure in pictures(output):
        say(f"picture: {report.save(figure, output / name)}")
    say(f"results: {output}/results.json, {time.monotonic() - start:.0f} s in all")


def train(
    task: ReconstructionTask, data: SliceData, folder: Path, **trainer: Any
) -> tuple[Reconstructor, dict[str, int]]:
    """Train, and return the model with its parameters, its steps and their peak.

    A training that was interrupted goes on, one that is over is kept.
    """
    say(f"training: {folder}")
    last = fit(task, data, folder, **trainer)
    costs = {
        "parameters": sum(p.numel() for p in task.model.parameters()),
        "steps": int(load_checkpoint(last)["global_step"]),
        "peak": step_memory(task, data),
    }
    say(f"trained: {folder}, {costs['steps']} steps")
    return load(last, model=type(task.model)), costs


def rows_of(
    name: str, method: Method, costs: Mapping[str, int], data: Path, output: Path
) -> list[dict[str, Any]]:
    """Reconstruct the unseen head, and return a row of scores for each acceleration."""
    rows = []
    for acceleration, masks in TESTED.items():
        made = _reconstructions(output, name, acceleration)
        reconstruct(method, data / "singlecoil_test", made, masks)
        scores = asdict(evaluate(data / "singlecoil_test", made).summary.mean)
        named = {"method": name, "acceleration": acceleration}
        rows.append(named | dict(costs) | scores)
    return rows


def step_memory(task: ReconstructionTask, data: SliceData) -> int:
    """Measure the peak of a training step on top of data, parameters and gradients."""
    dataset = data.training_slices(task.model)
    samples = [dataset[i] for i in range(data.batch_size)]
    batch = torch.utils.data.default_collate(samples)
    for parameter in task.model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        torch.autograd.backward(task.loss(task.model, batch))

    peak = measure_memory(step).peak
    task.zero_grad()
    return peak


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as text."""
    head = "method       acceleration  parameters  steps  peak MB"
    lines = [
        f"{row['method']:11}  {row['acceleration']:11}x  {row['parameters']:10,}"
        f"  {row['steps']:5}  {row['peak'] / 1e6:7.0f}"
        f"  {row['nmse']:6.4f}  {row['psnr']:5.2f}  {row['ssim']:6.4f}"
        for row in rows
    ]
    return "\n".join([f"{head}    NMSE   PSNR    SSIM", *lines])


def length(steps: int) -> str:
    """Say how much of the training was done before its time was over."""
    planned = TRAINER["max_epochs"] * TRAINER["limit_train_batches"]
    if steps >= planned:
        return f"training had all of its {planned} steps"
    text = f"training had {steps} of {planned} steps, then its time was over: a machine"
    return f"{text} that is faster, or less busy, gets further"


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say whether the i-RIM is better than zero-filled, and by how much."""
    gains, worse = [], []
    half = len(rows) // 2
    for before, after in zip(rows[:half], rows[half:], strict=True):
        at = f"at {after['acceleration']}x"
        gains.append(f"{after['psnr'] - before['psnr']:+.2f} dB {at}")
        for metric, sign in (("nmse", -1), ("psnr", 1), ("ssim", 1)):
            if sign * (after[metric] - before[metric]) <= 0:
                worse.append(f"{metric.upper()} {at}")
    if worse:
        text = f"i-RIM is NOT better than zero-filled in {', '.join(worse)} "
        text += f"({', '.join(gains)}): training ends by the clock, and this machine "
        return f"{text}was too busy or too slow for it"
    return f"i-RIM is better than zero-filled in all of them: {', '.join(gains)}"


def pictures(output: Path) -> Iterator[tuple[str, Figure]]:
    """Draw the unseen head, the learning curve, and memory against depth."""
    test = output / "data/singlecoil_test"
    for acceleration in TESTED:
        made = {
            method: _reconstructions(output, method, acceleration)
            for method in ("zero-filled", "i-RIM")
        }
        title = f"unseen head, {acceleration}x acceleration (simulated k-space)"
        shown = slice_of(test, made, SHOWN_SLICE, title)
        yield f"reconstruction_{acceleration}x.png", report.compare(shown)
    yield "learning_curve.png", report.learning_curve(output / "i-RIM/log")
    yield "memory_against_depth.png", _memory(output)


def slice_of(
    targets: Path, reconstructions: Mapping[str, Path], index: int, title: str
) -> report.Slice:
    """Return a slice of the only volume, as methods show it."""
    (path,) = targets.glob("*.h5")
    images = {
        name: read_reconstruction(folder / path.name)[index]
        for name, folder in reconstructions.items()
    }
    return report.Slice(title, images, KSpaceFile.inspect(path).target_volume(index))


def _reconstructions(output: Path, method: str, acceleration: int) -> Path:
    """Return the folder with what a method made of the test data."""
    return output / "reconstructions" / f"{method}_{acceleration}x"


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
    title = "i-RIM, 64 × 64, 16 channels"
    return report.memory_against_depth(COUPLINGS, peaks, title)
