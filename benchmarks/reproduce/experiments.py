"""What makes the i-RIM learn faster: one factor at a time, scored in validation.

    python -m benchmarks.reproduce.experiments [--output FOLDER] [--steps STEPS]
        [--epoch STEPS] [--seed SEED] [NAME ...]

All experiments make the same number of steps of the same slices, with the same seed, on
one coil. The test subject is not looked at. A row is written as soon as it exists, and
experiments that have one are left out; each number of steps has an output and a record
of its own.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from benchmarks import record
from benchmarks.reproduce.contrast import ContrastData
from benchmarks.reproduce.rim import RIM
from benchmarks.reproduce.unet import UNet
from invtorch import GatedResidualBlock
from mri_example.data.dataset import Sample
from mri_example.data.simulate import Simulation, simulate_demo
from mri_example.evaluate import evaluate
from mri_example.losses import dissimilarity, normalized_l1
from mri_example.masks import Masks
from mri_example.models import IRIM2D, IRIM3D, Reconstructor
from mri_example.reconstruct import reconstruct
from mri_example.training.checkpoints import load_checkpoint
from mri_example.training.data import SliceData
from mri_example.training.fit import fit
from mri_example.training.module import ReconstructionTask

SIZE, STEPS, EPOCH, SLICES = 64, 300, 60, 2
HIDDEN, STRIDES = (16, 64, 64, 64), (1, 4, 8, 4)
TESTED = {4: Masks("random", (0.08,), (4,)), 8: Masks("random", (0.04,), (8,))}
Row = dict[str, Any]
# plain autograd: the same gradients in half of the time, where memory is no matter
IRIM = partial(IRIM2D, 16, 4, HIDDEN, STRIDES, memory="store")
ALL_STEPS = partial(IRIM2D, 16, 8, HIDDEN, STRIDES, memory="store", all_steps=True)
SLABS = partial(IRIM3D, 16, 4, HIDDEN, STRIDES, memory="store", slab=2)


def fan(
    steps: int, hidden: tuple[int, ...] = (32, 64), strides: tuple[int, ...] = (1, 4)
) -> IRIM2D:
    """Return an i-RIM of other steps."""
    return IRIM2D(16, steps, hidden, strides, memory="store")


@dataclass(frozen=True)
class Experiment:
    """A network, and what is changed of how it is trained.

    `change` is given the task before training. With `average`, the rate at which the
    weights are averaged, there is a second row, of the averaged weights.
    """

    factor: str
    model: Callable[[], Reconstructor]
    learning_rate: float = 4e-3
    loss: Any = "l1"
    masks: Masks = Masks()
    slices: int = SLICES
    data: type[SliceData] = SliceData
    average: float | None = None
    change: Callable[[ReconstructionTask], None] = field(default=lambda _: None)


def share(task: ReconstructionTask) -> None:
    """Let all steps have the weights of the first."""
    members = task.model.irim.steps  # type: ignore[union-attr]
    for i in range(3, len(members), 2):
        members[i] = members[1]


def scale_gates(task: ReconstructionTask, factor: float) -> None:
    """Start from updates of another size."""
    for block in task.model.modules():
        if isinstance(block, GatedResidualBlock):
            with torch.no_grad():
                block.spread.parametrizations.weight.original0.mul_(factor)  # type: ignore[union-attr]


def mixed(task: ReconstructionTask, share_of_ssim: float) -> None:
    """Minimize the absolute error and the dissimilarity together."""

    def loss(model: Reconstructor, batch: Sample) -> Tensor:
        estimate = model(*batch.inputs)
        peaks = torch.as_tensor(batch.maximum)
        ssim = dissimilarity(estimate, batch.image, peaks)
        l1 = normalized_l1(estimate, batch.image)
        return (1 - share_of_ssim) * l1 + share_of_ssim * ssim

    task.loss = loss


def constant_rate(task: ReconstructionTask) -> None:
    """Leave the learning rate as it is, without warm-up and cosine."""
    task.configure_optimizers = lambda: torch.optim.Adam(  # type: ignore[method-assign]
        task.parameters(), lr=task.learning_rate
    )


EXPERIMENTS: dict[str, Experiment] = {
    "i-RIM 2D": Experiment("as in the last comparison", IRIM),
    "U-Net": Experiment("as in the last comparison", partial(UNet, 16, 3), 2e-3),
    "rate 1e-3": Experiment("learning rate", IRIM, 1e-3),
    "rate 2e-3": Experiment("learning rate", IRIM, 2e-3),
    "rate 8e-3": Experiment("learning rate", IRIM, 8e-3),
    "shared weights": Experiment("weights", IRIM, change=share),
    "loss ssim": Experiment("loss", IRIM, loss="ssim"),
    "loss l1 + ssim": Experiment(
        "loss", IRIM, change=partial(mixed, share_of_ssim=0.5)
    ),
    "loss nmse": Experiment("loss", IRIM, loss="nmse"),
    "loss of all steps": Experiment("loss", partial(IRIM, all_steps=True)),
    "gates x 0.3": Experiment(
        "initialization", IRIM, change=partial(scale_gates, factor=0.3)
    ),
    "gates x 0.1": Experiment(
        "initialization", IRIM, change=partial(scale_gates, factor=0.1)
    ),
    "8x only": Experiment("masks", IRIM, masks=TESTED[8]),
    "constant rate": Experiment("schedule", IRIM, 2e-3, change=constant_rate),
    "8 steps of 2": Experiment(
        "steps", partial(IRIM2D, 16, 8, (32, 64), (1, 4), memory="store")
    ),
    "6 couplings a step": Experiment(
        "couplings",
        partial(
            IRIM2D, 16, 4, (16, 32, 64, 64, 32, 16), (1, 2, 4, 8, 4, 1), memory="store"
        ),
    ),
    "32 channels": Experiment(
        "channels", partial(IRIM2D, 32, 4, HIDDEN, STRIDES, memory="store")
    ),
    "fine strides": Experiment(
        "strides",
        partial(IRIM2D, 16, 4, (32, 64, 64, 32), (1, 2, 4, 1), memory="store"),
    ),
    "final update, parametric": Experiment(
        "read-out", partial(IRIM, final_update=True, read_out="parametric")
    ),
    "4 steps of 2": Experiment("steps", partial(fan, 4, (32, 64), (1, 4))),
    "8 steps of 4": Experiment("steps", partial(fan, 8, HIDDEN, STRIDES)),
    "8 steps of 3": Experiment("steps", partial(fan, 8, (32, 32, 64), (1, 2, 8))),
    "12 steps of 2": Experiment("steps", partial(fan, 12, (32, 64), (1, 4))),
    "8 steps of 2, l1 + ssim": Experiment(
        "loss", partial(fan, 8), change=partial(mixed, share_of_ssim=0.5)
    ),
    "8 steps of 2, rate 8e-3": Experiment("learning rate", partial(fan, 8), 8e-3),
    "8 steps of 4, l1 + ssim": Experiment(
        "loss",
        partial(fan, 8, HIDDEN, STRIDES),
        change=partial(mixed, share_of_ssim=0.5),
    ),
    "8 steps of 4, rate 8e-3": Experiment(
        "learning rate", partial(fan, 8, HIDDEN, STRIDES), 8e-3
    ),
    "8 steps of 4, rate 2e-3": Experiment(
        "learning rate", partial(fan, 8, HIDDEN, STRIDES), 2e-3
    ),
    "8 steps of 4, shared": Experiment(
        "weights", partial(fan, 8, HIDDEN, STRIDES), change=share
    ),
    "8 steps of 4, 32 channels": Experiment(
        "channels", partial(IRIM2D, 32, 8, HIDDEN, STRIDES, memory="store")
    ),
    "12 steps of 4": Experiment("steps", partial(fan, 12, HIDDEN, STRIDES)),
    "8 steps of 4, all steps": Experiment("loss", ALL_STEPS),
    "8 steps of 4, all steps, contrast": Experiment(
        "data", ALL_STEPS, data=ContrastData, average=0.99
    ),
    "8 steps of 4, strides 1 2 4 1": Experiment(
        "strides", partial(fan, 8, (32, 64, 64, 32), (1, 2, 4, 1))
    ),
    "8 steps of 4, averaged": Experiment(
        "weights", partial(fan, 8, HIDDEN, STRIDES), average=0.99
    ),
    "8 steps of 4, contrast": Experiment(
        "data", partial(fan, 8, HIDDEN, STRIDES), data=ContrastData, average=0.99
    ),
    "8 steps of 4, strides 1 2 4 2": Experiment(
        "strides", partial(fan, 8, (16, 32, 64, 32), (1, 2, 4, 2))
    ),
    "8 steps of 4, all steps, shared": Experiment("weights", ALL_STEPS, change=share),
    "8 steps of 4, all steps, 32 channels": Experiment(
        "channels",
        partial(IRIM2D, 32, 8, HIDDEN, STRIDES, memory="store", all_steps=True),
    ),
    "RIM, contrast": Experiment("data", partial(RIM, 32, 8), data=ContrastData),
    "i-RIM 3D, 8 steps of 4": Experiment(
        "steps",
        partial(IRIM3D, 16, 8, HIDDEN, STRIDES, memory="store", slab=2),
        slices=1,
    ),
    "U-Net, l1 + ssim": Experiment(
        "loss", partial(UNet, 16, 3), 2e-3, change=partial(mixed, share_of_ssim=0.5)
    ),
    "U-Net, rate 4e-3": Experiment("learning rate", partial(UNet, 16, 3), 4e-3),
    "RIM, rate 4e-3": Experiment("learning rate", partial(RIM, 32, 8), 4e-3),
    "8 steps of 2, shared": Experiment("weights", partial(fan, 8), change=share),
    "i-RIM 3D, 8 steps of 2": Experiment(
        "steps",
        partial(IRIM3D, 16, 8, (32, 64), (1, 4), memory="store", slab=2),
        slices=1,
    ),
    "RIM": Experiment("as in the last comparison", partial(RIM, 32, 8), 2e-3),
    "i-RIM 3D": Experiment("as in the last comparison", SLABS, slices=1),
}


def train(name: str, output: Path, steps: int, epoch: int, seed: int) -> list[Row]:
    """Train, and score the validation volume at each acceleration."""
    one = EXPERIMENTS[name]
    torch.manual_seed(seed)
    task = ReconstructionTask(
        one.model(), learning_rate=one.learning_rate, loss=one.loss, fraction=1.0
    )
    one.change(task)
    data = one.data(output / "data", one.masks, batch_size=one.slices, seed=seed)
    trainer: dict[str, Any] = {"max_epochs": steps // epoch}
    trainer["limit_train_batches"] = epoch
    if one.average is not None:
        trainer["callbacks"] = EMAWeightAveraging(decay=one.average)
    last = fit(task, data, output / name, accelerator="cpu", **trainer)
    states = {name: "state_dict"}
    if one.average is not None:
        states = {name: "current_model_state", f"{name}, averaged": "state_dict"}
    rows = []
    for row_name, key in states.items():
        task.load_state_dict(load_checkpoint(last)[key])
        known = {"experiment": row_name, "factor": one.factor}
        rows.append(known | scores(task.model, output, row_name))
    return rows


def scores(model: Reconstructor, output: Path, name: str) -> Row:
    """Return the scores of the validation volume, and the number of parameters."""
    model.eval()
    row: Row = {"parameters": sum(p.numel() for p in model.parameters())}
    for acceleration, masks in TESTED.items():
        out = output / name / f"validation_{acceleration}x"
        reconstruct(model, output / "data/singlecoil_val", out, masks)
        found = asdict(evaluate(output / "data/singlecoil_val", out).summary.mean)
        row |= {f"{metric}_{acceleration}x": v for metric, v in found.items()}
    return row


def main() -> None:
    """Run the experiments that are named, or all that have no row yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*EXPERIMENTS])
    parser.add_argument("--output", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--epoch", type=int, default=EPOCH)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    numbers = {name: getattr(options, name) for name in ("steps", "epoch", "seed")}
    simulate_demo(options.output / "data", Simulation(size=SIZE))
    kept = options.output / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    record_of = "reproduce_experiments"
    record_of += "" if options.steps == STEPS else f"_{options.steps}"
    for name in options.names:
        if name in {row["experiment"] for row in rows}:
            continue
        for row in train(name, options.output, **numbers):
            rows.append(row)
            print(
                f"{row['experiment']:30} 4x {row['nmse_4x']:.4f} "
                f"{row['psnr_4x']:.2f} {row['ssim_4x']:.4f}  8x {row['nmse_8x']:.4f} "
                f"{row['psnr_8x']:.2f} {row['ssim_8x']:.4f}",
                flush=True,
            )
        kept.write_text(json.dumps(rows, indent=1))
        settings = {"slices": SLICES, "size": SIZE, "coils": 1} | numbers
        record.write(record_of, settings, rows)


if __name__ == "__main__":
    main()
