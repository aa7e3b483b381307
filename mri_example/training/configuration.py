"""What a training run is made of; every field is an option of the command line."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mri_example.errors import InputError
from mri_example.masks import MaskFile, MaskFunction, Masks, PoissonMaskFunction
from mri_example.model import ModelConfig


@dataclass(frozen=True)
class MaskConfig:
    """How k-space is undersampled; see `MaskFunction` and `MaskFile`.

    Args:
        pattern: random, equispaced, equispaced_fraction, magic or magic_fraction; for
            3-D acquisitions poisson, which needs sigpy.
        center_fractions: Shares of the columns that are measured in the center, with
            poisson of the slices too.
        accelerations: One acceleration for each of them; every mask draws a pair.
        file: A mask for all k-space instead of drawn ones, as .npy:
            0 or 1 along the columns, for 3-D acquisitions along slices and columns.
    """

    pattern: str = "random"
    center_fractions: tuple[float, ...] = (0.08, 0.04)
    accelerations: tuple[float, ...] = (4, 8)
    file: str | None = None

    def build(self) -> Masks:
        """Make the mask function.

        Raises:
            InputError: If there is none of that kind.
        """
        if self.file is not None:
            return MaskFile(Path(self.file))
        if self.pattern == "poisson":
            return PoissonMaskFunction(self.center_fractions, self.accelerations)
        return MaskFunction(self.pattern, self.center_fractions, self.accelerations)


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained.

    Args:
        challenge: Which folders of the data root: singlecoil or multicoil.
        epochs: How often the model is validated and a checkpoint written.
        epoch_steps: Steps of an epoch, drawn from all training slices; 0 for one pass
            through them.
        batch_size: Slices in one step.
        learning_rate: Highest learning rate of Adam; it warms up over the first
            twentieth of the run and falls along a cosine.
        clip: Highest norm of the gradient.
        loss: "nmse", normalized squared error of the complex images of the coils
            (eq. 18); "l1" or "ssim" of the magnitudes.
        fraction: Share of the pixels that count in the loss "nmse".
        magnitude: Compare magnitudes instead of complex images in the loss "nmse".
        crop: Rows and columns of the training images; needed if files differ in size.
        coils_per_step: Coils of a slice that a step takes, drawn anew, for models that
            reconstruct each coil by itself; null for all.
        skip_thin: Leave out training volumes with fewer slices than a slab, by name.
        augment: Flip, transpose and turn the phase of training images.
        seed: What all randomness follows from.
        workers: Processes that load data.
        minutes: Stop after so many minutes, 0 for no limit. The learning rate rises and
            falls in time for it.
        accelerator: Where to train, as Lightning names it: auto, cpu, gpu.
        devices: How many devices.
        precision: As Lightning names it, for example 32-true or bf16-mixed.
    """

    challenge: Literal["singlecoil", "multicoil"] = "singlecoil"
    epochs: int = 50
    epoch_steps: int = 0
    batch_size: int = 8
    learning_rate: float = 1e-3
    clip: float = 1.0
    loss: Literal["nmse", "l1", "ssim"] = "nmse"
    fraction: float = 0.01
    magnitude: bool = False
    crop: tuple[int, int] | None = None
    coils_per_step: int | None = None
    skip_thin: bool = False
    augment: bool = True
    seed: int = 0
    workers: int = 0
    minutes: float = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "devices", "learning_rate", "clip"):
            self._check(name, 0 < getattr(self, name) < math.inf, "positive")
        for name in ("minutes", "workers", "epoch_steps"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "0 or more")
        coils = self.coils_per_step
        self._check("coils_per_step", coils is None or coils > 0, "positive")
        together = self.loss == "ssim"
        limit = 'null with the loss "ssim", which is that of all coils combined'
        self._check("coils_per_step", coils is None or not together, limit)
        self._check("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1")
        self._check("fraction", 0 < self.fraction <= 1, "in (0, 1]")
        sizes = self.crop or (1, 1)
        self._check("crop", min(sizes) > 0, "at least one row and column")

    def _check(self, name: str, fits: bool, limit: str) -> None:
        if not fits:
            raise InputError(f"{name} is {getattr(self, name)}, but must be {limit}")


MACHINE = ("workers", "minutes", "accelerator", "devices")


def plain(model: ModelConfig, *configs: MaskConfig | TrainingConfig) -> dict[str, Any]:
    """Return configurations as the plain values a checkpoint holds.

    What only says where to train is left out: it may change when a run goes on.
    """
    merged = model.plain()
    for config in configs:
        for name, value in asdict(config).items():
            if name not in MACHINE:
                merged[name] = list(value) if isinstance(value, tuple) else value
    return merged
