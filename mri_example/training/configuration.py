"""What a training run is made of; every field is an option of the command line."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from mri_example.errors import InputError
from mri_example.model import IRIMReconstructor
from mri_example.sampling import MaskFunction


@dataclass(frozen=True)
class ModelConfig:
    """The i-RIM; see `IRIMReconstructor`.

    Args:
        channels: Channels of the machine state.
        steps: Number of steps, each with weights of its own.
        hidden: Hidden channels of the couplings of a step.
        strides: Coarseness of the couplings of a step.
        multiplicity: Copies of the complex estimate in the state.
        read_out: How the image is read from the final state.
        memory: "invert" trains in the memory of one layer, "checkpoint" keeps the state
            between layers, "store" keeps everything.
        anchors: Number of states that are kept exactly while inverting, or "auto".
        guard: What is done if rebuilt states drift: "raise", "warn", "adapt" (keep
            more of them) or null.
    """

    channels: int = 64
    steps: int = 8
    hidden: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 128, 128, 64, 64)
    strides: tuple[int, ...] = (1, 1, 2, 2, 4, 4, 2, 2, 1, 1)
    multiplicity: int = 1
    read_out: Literal["estimate", "parametric"] = "estimate"
    memory: Literal["invert", "checkpoint", "store"] = "invert"
    anchors: int | Literal["auto"] = 8
    guard: Literal["raise", "warn", "adapt"] | None = "raise"

    def build(self) -> IRIMReconstructor:
        """Make the model, with random weights.

        Raises:
            InputError: If the options do not fit together.
        """
        try:
            return IRIMReconstructor(**asdict(self))
        except ValueError as error:
            raise InputError(f"the model cannot be built: {error}") from error


@dataclass(frozen=True)
class MaskConfig:
    """How k-space is undersampled; see `MaskFunction`.

    Args:
        pattern: random, equispaced, equispaced_fraction, magic or magic_fraction.
        center_fractions: Shares of the columns that are measured in the center.
        accelerations: One acceleration for each of them; every mask draws a pair.
    """

    pattern: str = "random"
    center_fractions: tuple[float, ...] = (0.08, 0.04)
    accelerations: tuple[float, ...] = (4, 8)

    def build(self) -> MaskFunction:
        """Make the mask function."""
        return MaskFunction(self.pattern, self.center_fractions, self.accelerations)


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained.

    Args:
        epochs: Passes through the training slices.
        batch_size: Slices in one step.
        learning_rate: Highest learning rate of Adam; it warms up over the first
            twentieth of the run and falls along a cosine.
        clip: Highest norm of the gradient.
        fraction: Share of the pixels that count in the loss (eq. 18).
        magnitude: Compare magnitudes instead of complex images.
        crop: Rows and columns of the training images; needed if files differ in size.
        augment: Flip, transpose and turn the phase of training images.
        seed: What all randomness follows from.
        workers: Processes that load data.
        minutes: Stop after so many minutes, 0 for no limit.
        accelerator: Where to train, as Lightning names it: auto, cpu, gpu.
        devices: How many devices.
        precision: As Lightning names it, for example 32-true or bf16-mixed.
    """

    epochs: int = 50
    batch_size: int = 8
    learning_rate: float = 1e-3
    clip: float = 1.0
    fraction: float = 0.01
    magnitude: bool = False
    crop: tuple[int, int] | None = None
    augment: bool = True
    seed: int = 0
    workers: int = 0
    minutes: float = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "devices", "learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise InputError(
                    f"{name} is {getattr(self, name)}, but must be positive"
                )
        if not 0 < self.fraction <= 1:
            raise InputError(f"fraction is {self.fraction}, but must be in (0, 1]")


MACHINE = ("workers", "minutes", "accelerator", "devices")


def plain(*configs: ModelConfig | MaskConfig | TrainingConfig) -> dict[str, Any]:
    """Return configurations as the plain values a checkpoint holds.

    What only says where to train is left out: it may change when a run goes on.
    """
    merged: dict[str, Any] = {}
    for config in configs:
        for name, value in asdict(config).items():
            if name not in MACHINE:
                merged[name] = list(value) if isinstance(value, tuple) else value
    return merged
