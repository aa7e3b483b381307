"""Methods that are trained and tested on the embedded heads, for demo and benchmark."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from invtorch.planning import measure_memory
from mri_example import figures
from mri_example.data.files import KSpaceFile, read_reconstruction
from mri_example.data.simulate import Simulation, simulate_demo
from mri_example.evaluate import evaluate
from mri_example.masks import Masks
from mri_example.models import Reconstructor
from mri_example.reconstruct import Method, reconstruct, zero_filled
from mri_example.training.checkpoints import load, load_checkpoint
from mri_example.training.data import SliceData
from mri_example.training.fit import fit
from mri_example.training.module import ReconstructionTask

TESTED = {
    4: Masks("random", (0.08,), (4,)),
    8: Masks("random", (0.04,), (8,)),
}
SHOWN_SLICE = 30


@dataclass(frozen=True)
class Contender:
    """A method and how it is trained; without a model the zero-filled images.

    `task` are options of `ReconstructionTask`, `trainer` those of `lightning.Trainer`.
    """

    name: str
    model: Callable[[], Reconstructor] | None = None
    task: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 1
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def setting(
        self, data: Path, challenge: Any = "singlecoil", workers: int = 0
    ) -> tuple[ReconstructionTask, SliceData]:
        """Return the untrained network with its task, and its data."""
        assert self.model is not None
        torch.manual_seed(0)
        task = ReconstructionTask(self.model(), **self.task)
        return task, SliceData(
            data, challenge=challenge, batch_size=self.batch_size, workers=workers
        )


def run(
    folder: Path,
    contender: Contender,
    simulation: Simulation,
    device: str = "cpu",
    workers: int = 0,
) -> list[dict[str, Any]]:
    """Train a method, test it on the unseen head, and return a row for each mask.

    The folder holds `data/`, a folder for the training of each method, and
    `reconstructions/`. What is there already is kept, and a training that was
    interrupted goes on.
    """
    data = folder / "data"
    method: Method = zero_filled
    costs = {"parameters": 0, "steps": 0, "peak": 0}
    simulate_demo(data, simulation)
    if contender.model is not None:
        say(f"{contender.name}: training ({folder / contender.name})")
        task, slices = contender.setting(data, simulation.challenge, workers)
        last = fit(task, slices, folder / contender.name, **contender.trainer)
        method = load(last)
        costs["parameters"] = sum(p.numel() for p in task.model.parameters())
        costs["steps"] = int(load_checkpoint(last)["global_step"])
        costs["peak"] = step_memory(task, slices)
        say(f"{contender.name}: {costs['steps']} steps ({last})")
    test = data / f"{simulation.challenge}_test"
    rows = []
    for acceleration, masks in TESTED.items():
        out = reconstructions(folder, contender.name, acceleration)
        reconstruct(method, test, out, masks, device=device)
        scores = asdict(evaluate(test, out).summary.mean)
        named = {"method": contender.name, "acceleration": acceleration}
        rows.append(named | costs | scores)
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


def picture(
    folder: Path, acceleration: int, methods: Sequence[str], title: str
) -> Figure:
    """Show a slice of the unseen head as each method reconstructs it."""
    (path,) = (folder / "data").glob("*_test/*.h5")
    volumes = {
        name: read_reconstruction(
            reconstructions(folder, name, acceleration) / path.name
        )
        for name in methods
    }
    return figures.compare(
        KSpaceFile.inspect(path).target_volume()[SHOWN_SLICE],
        {name: volume[SHOWN_SLICE] for name, volume in volumes.items()},
        f"unseen head, {title}{acceleration}x acceleration (simulated k-space)",
    )


def reconstructions(folder: Path, method: str, acceleration: int) -> Path:
    """Return the folder with what a method made of the test data."""
    return folder / "reconstructions" / f"{method}_{acceleration}x"


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
