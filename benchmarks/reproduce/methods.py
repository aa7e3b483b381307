"""The methods that are compared, and how each of them is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.reproduce.rim import RIM
from benchmarks.reproduce.unet import UNet
from benchmarks.reproduce.wavelet import CENTER
from mri_example.demo import train
from mri_example.masks import Masks
from mri_example.models import IRIM2D, IRIM3D, Reconstructor
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask

METHODS = (
    *("zero-filled", "l1-wavelet", "ESPIRiT + l1-wavelet", "U-Net", "RIM"),
    *("i-RIM 2D", "i-RIM 2D, SENSE", "i-RIM 3D"),
)
CLASSICAL = METHODS[:3]
OF_ONE_COIL, OF_SEVERAL = {"l1-wavelet"}, {"ESPIRiT + l1-wavelet", "i-RIM 2D, SENSE"}
ACCELERATIONS = {4: 0.08, 8: 0.04}  # with the share of the columns in the center
SIZES = (16, 8, (16, 64, 64, 64), (1, 4, 8, 4))  # channels, steps, hidden, strides
EPOCH = 200  # steps: validation takes a small part of the time
LONG = 1000  # epochs: the clock ends a training


def methods_of(coils: int) -> tuple[str, ...]:
    """Return the methods for data of so many coils."""
    others = OF_SEVERAL if coils == 1 else OF_ONE_COIL
    return tuple(name for name in METHODS if name not in others)


def masks_of(coils: int, size: int, accelerations: tuple[int, ...] = (4, 8)) -> Masks:
    """Return masks; of several coils with the columns that maps are calibrated on."""
    least = 0.0 if coils == 1 else CENTER / size
    shares = tuple(max(ACCELERATIONS[a], least) for a in accelerations)
    return Masks("random", shares, accelerations)


@dataclass(frozen=True)
class Protocol:
    """What all trainings have in common.

    Args:
        steps: Steps of the optimizer.
        slices: Slices of a step.
        size: Rows and columns of the images.
        minutes: Time of a training, which ends it instead of the steps; 0 for none.
        all_steps: Average the loss of i-RIMs over all of their steps, as that of the
            RIM; else it is that of the last.
    """

    steps: int = 1200
    slices: int = 2
    size: int = 64
    minutes: float = 0.0
    all_steps: bool = True

    def trainer(self, batches: int) -> dict[str, Any]:
        """Return options of the trainer for data of so many batches.

        Epochs are the longest of at most 200 steps that the steps are a multiple of.
        """
        if self.minutes:
            time = timedelta(minutes=self.minutes)
            limits = {"max_epochs": LONG, "limit_train_batches": EPOCH}
            return {**limits, "max_time": time, "accelerator": "auto"}
        most = min(EPOCH, batches, self.steps)
        epoch = next(n for n in range(most, 0, -1) if self.steps % n == 0)
        limits = {"max_epochs": self.steps // epoch, "limit_train_batches": epoch}
        return {**limits, "accelerator": "auto"}


@dataclass(frozen=True)
class Training:
    """A model and how it is trained, with its data.

    `task` are options of `ReconstructionTask`, `data` of `SliceData`, `trainer` of
    `lightning.Trainer`. Everything random follows from the seed.
    """

    model: Callable[[], Reconstructor]
    task: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def setting(self, root: Path) -> tuple[ReconstructionTask, SliceData]:
        """Return the untrained network with its task, and its data."""
        torch.manual_seed(self.seed)
        task = ReconstructionTask(self.model(), **self.task)
        return task, SliceData(root, seed=self.seed, **self.data)

    def run(self, root: Path, folder: Path) -> tuple[Reconstructor, dict[str, int]]:
        """Train, or go on, and return the model and what it cost."""
        return train(*self.setting(root), folder, **self.trainer)


@dataclass(frozen=True)
class Network:
    """A network and its own options of training.

    Args:
        model: Makes it for data of so many coils.
        learning_rate: The highest of Adam.
        combined: Whether it takes all coils of a slice at once.
        slabs: Whether the slices of a step are one slab.
    """

    model: Callable[[int, Protocol], Reconstructor]
    learning_rate: float
    combined: bool = False
    slabs: bool = False

    def training(
        self, coils: int, protocol: Protocol, seed: int, batches: int = EPOCH
    ) -> Training:
        """Return its training; networks of single coils learn from one in a step."""
        per_step = None if coils == 1 or self.combined else 1
        task = {
            **{"learning_rate": self.learning_rate, "loss": "l1"},
            "coils_per_step": per_step,
        }
        data = {
            "masks": masks_of(coils, protocol.size),
            "challenge": "singlecoil" if coils == 1 else "multicoil",
            "batch_size": 1 if self.slabs else protocol.slices,
        }
        model = partial(self.model, coils, protocol)
        return Training(model, task, data, protocol.trainer(batches), seed)


def irim(coils: int, protocol: Protocol) -> Reconstructor:
    """Return the small i-RIM 2D; several coils are reconstructed each by itself."""
    each = 1 if coils == 1 else None
    return IRIM2D(*SIZES, coils=each, all_steps=protocol.all_steps)


def irim_3d(coils: int, protocol: Protocol) -> Reconstructor:
    """Return the same of slabs."""
    each = 1 if coils == 1 else None
    options = {"coils": each, "all_steps": protocol.all_steps}
    return IRIM3D(*SIZES, slab=protocol.slices, **options)


def irim_sense(coils: int, protocol: Protocol) -> Reconstructor:
    """Return the same with one image of all coils, through sensitivity maps."""
    del coils
    options = {"sensitivity": "calibration", "all_steps": protocol.all_steps}
    return IRIM2D(*SIZES, **options)


NETWORKS = {
    "U-Net": Network(lambda *_: UNet(16, 4), 2e-3, combined=True),
    "RIM": Network(lambda *_: RIM(32, 8), 4e-3),
    "i-RIM 2D": Network(irim, 4e-3),
    "i-RIM 2D, SENSE": Network(irim_sense, 4e-3, combined=True),
    "i-RIM 3D": Network(irim_3d, 4e-3, slabs=True),
}
