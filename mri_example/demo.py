"""Methods that are trained, and tested on an unseen head: `demo` and `compare`."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from matplotlib.figure import Figure

from invtorch.planning import measure_memory
from mri_example import figures
from mri_example.data.dataset import Magnitudes
from mri_example.data.files import KSpaceFile, read_reconstruction, whole_file
from mri_example.data.simulate import Simulation, simulate_demo
from mri_example.errors import InputError
from mri_example.evaluate import evaluate
from mri_example.masks import Masks
from mri_example.models import IRIM2D, IRIM3D, RIM, Reconstructor, UNet
from mri_example.models.irim import Memory
from mri_example.pages import comparison_page
from mri_example.reconstruct import Method, reconstruct, zero_filled
from mri_example.report import Slice
from mri_example.training.checkpoints import load, load_checkpoint
from mri_example.training.data import SliceData
from mri_example.training.fit import fit
from mri_example.training.module import ReconstructionTask

TESTED = {4: Masks("random", (0.08,), (4,)), 8: Masks("random", (0.04,), (8,))}
SHOWN_SLICE = 30
COUPLINGS = (20, 60, 120, 200)
HIDDEN, STRIDES = (16, 64, 64, 64), (1, 4, 8, 4)
LONG = 1000  # epochs: the clock ends a training
EPOCH = 200  # steps: validation takes a small part of the time
METHODS = ("zero-filled", "U-Net", "RIM", "i-RIM 2D", "i-RIM 3D")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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
        options = {"challenge": challenge, "workers": workers}
        return task, SliceData(data, batch_size=self.batch_size, **options)


ZERO_FILLED = Contender("zero-filled")
TRAINED = Contender(
    "i-RIM",
    partial(IRIM2D, 32, 6, hidden=(32, 32, 64, 64, 32), strides=(1, 2, 4, 4, 2)),
    {"learning_rate": 4e-3, "loss": "l1"},
    trainer={
        "max_epochs": 15,
        "limit_train_batches": 75,
        "max_time": timedelta(minutes=5.5),
        "accelerator": "cpu",
    },
)


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
        ZERO_FILLED,
        Contender("U-Net", partial(UNet, 16, 4), combined, 4, trainer),
        Contender("RIM", partial(RIM, 32, 8), slower, 1, trainer),
        Contender("i-RIM 2D", irim_2d, own, 1, trainer),
        Contender("i-RIM 3D", irim_3d, own, 1, trainer),
    ]
    return [contender for contender in every if contender.name in methods]


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
    methods = (ZERO_FILLED, TRAINED)
    rows = [row for one in methods for row in run(output, one, Simulation())]
    with whole_file(output / "results.json") as written:
        written.write_text(json.dumps(rows, indent=2) + "\n")
    say(table(rows))
    say(verdict(rows))
    for name, draw in PICTURES.items():
        figures.save(draw(output), output / name)
        say(f"picture: {output / name}")
    say(f"results: {output}/results.json, {time.monotonic() - start:.0f} s in all")


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
    """
    if not methods or not {*methods} <= {*METHODS}:
        raise InputError(f"methods is {[*methods]}, but can only have {[*METHODS]}")
    if not 0 < minutes < 1e6:
        raise InputError(f"minutes is {minutes}, but must be positive and finite")
    results = output / "results.json"
    earlier = json.loads(results.read_text())["rows"] if results.exists() else []
    rows = [r for r in earlier if r["coils"] not in coils or r["method"] not in methods]
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
    page = _page(output, coils, methods, json.loads(results.read_text()))
    say(f"results: {results}, report: {page}")


def _page(
    output: Path, coils: Sequence[int], methods: Sequence[str], found: dict[str, Any]
) -> Path:
    """Write the page of a comparison."""
    slices, curves = [], {}
    for count in coils:
        folder, name = output / f"{count}_coils", f"coils: {count}"
        for acceleration in TESTED:
            target, images = slice_of(folder, acceleration, methods)
            title = f"{name}, acceleration: {acceleration}x, slice {SHOWN_SLICE}"
            slices.append(Slice(title, images, target))
        for method in methods:
            if (log := folder / method / "log").is_dir():
                curves[f"{method}, {name}"] = figures.learning_curve(log)
    settings = {"machine": found["machine"], "device": found["device"]}
    settings |= found["settings"]
    path = output / "report.html"
    return comparison_page(found["rows"], slices, curves, settings, path)


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
        out = _reconstructions(folder, contender.name, acceleration)
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


def picture(
    folder: Path, acceleration: int, methods: Sequence[str], title: str = ""
) -> Figure:
    """Show a slice of the unseen head as each method reconstructs it."""
    title = f"unseen head, {title}{acceleration}x acceleration (simulated k-space)"
    return figures.compare(*slice_of(folder, acceleration, methods), title)


def slice_of(
    folder: Path, acceleration: int, methods: Sequence[str]
) -> tuple[Magnitudes, dict[str, Magnitudes]]:
    """Return the target of a slice, and what each method made of it."""
    (path,) = (folder / "data").glob("*_test/*.h5")
    images = {}
    for name in methods:
        out = _reconstructions(folder, name, acceleration)
        images[name] = read_reconstruction(out / path.name)[SHOWN_SLICE]
    return KSpaceFile.inspect(path).target_volume(SHOWN_SLICE), images


def _reconstructions(folder: Path, method: str, acceleration: int) -> Path:
    """Return the folder with what a method made of the test data."""
    return folder / "reconstructions" / f"{method}_{acceleration}x"


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
    return figures.memory_against_depth(COUPLINGS, peaks, title)


PICTURES: dict[str, Callable[[Path], Figure]] = {
    "reconstruction_4x.png": lambda out: picture(out, 4, ("zero-filled", "i-RIM")),
    "reconstruction_8x.png": lambda out: picture(out, 8, ("zero-filled", "i-RIM")),
    "learning_curve.png": lambda out: figures.learning_curve(out / "i-RIM" / "log"),
    "memory_against_depth.png": _memory,
}


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
