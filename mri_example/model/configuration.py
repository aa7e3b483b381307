"""Models as configurations: every field is an option of the command line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

from jsonargparse import ArgumentError, ArgumentParser

from mri_example.errors import InputError
from mri_example.model.base import Reconstructor
from mri_example.model.reconstructor import IRIMReconstructor
from mri_example.model.rim import RIMReconstructor
from mri_example.model.unet import UNetReconstructor

Memory = Literal["invert", "checkpoint", "store"]
COUNTS = (
    *("channels", "steps", "hidden", "strides", "pools"),
    *("coils", "multiplicity", "slab", "scale_crop"),
)
Guard = Literal["raise", "warn", "adapt"] | None
KNEE_SCANS = tuple(  # in the order of the authors' channels
    f"{acquisition}/{scanner}"
    for scanner in ("Aera", "Biograph_mMR", "Prisma_fit", "Skyra")
    for acquisition in ("CORPDFS_FBK", "CORPD_FBK")
)


class ModelConfig(ABC):
    """Which model, and how large: one of its subclasses."""

    slab: int | None = None  # slices that the model sees at once, None for one
    coils: int | None = None  # of the data, None for any
    metadata: tuple[str, ...] = ()  # kinds of scans that the model knows

    def build(self) -> Reconstructor:
        """Make the model, with random weights.

        Raises:
            InputError: If the options do not fit together.
        """
        for name, value in self.plain().items():
            counts = value if isinstance(value, list) else [value]
            may_be_null = name in ("coils", "scale_crop")
            if name not in COUNTS or (may_be_null and value is None):
                continue
            if not counts or any(count is None or count < 1 for count in counts):
                raise InputError(f"{name} is {value}, but must be at least 1")
        try:
            model = self._model()
        except ValueError as error:
            raise InputError(f"the model cannot be built: {error}") from error
        model.slab = self.slab
        return model

    @abstractmethod
    def _model(self) -> Reconstructor:
        """Make the model."""

    def plain(self) -> dict[str, Any]:
        """Return the name of the class and all fields, in types that JSON knows."""
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)  # type: ignore[arg-type] # all are dataclasses
        }
        lists = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"model": type(self).__name__, **lists}


@dataclass(frozen=True)
class IRIM2D(ModelConfig):
    """The i-RIM of the paper, slice by slice; see `IRIMReconstructor`.

    The fan of strides and widths in a step is not in the paper; this one is ours.

    Args:
        channels: Channels of the machine state.
        steps: Number of steps, each with weights of its own.
        hidden: Hidden channels of the couplings of a step.
        strides: Coarseness of the couplings of a step.
        coils: Number of coils of the data, or null for any, each by itself.
        multiplicity: Copies of the complex estimate in the state.
        read_out: How the image is read from the final state.
        final_update: Write the gradient once more after the last step.
        memory: "invert" trains in the memory of one layer, "checkpoint" keeps the state
            between layers, "store" keeps everything.
        anchors: Number of states that are kept exactly while inverting, or "auto".
        guard: What is done if rebuilt states drift: "raise", "warn", "adapt" (keep
            more of them) or null.
        metadata: Kinds of scans that the model knows, as acquisition/scanner.
        scale_crop: Central rows and columns whose standard deviation images are
            divided by; null for all of them.
    """

    dims: ClassVar[int] = 2

    channels: int = 64
    steps: int = 8
    hidden: tuple[int, ...] = (64, 64, 128, 128, 256, 256, 128, 128, 64, 64)
    strides: tuple[int, ...] = (1, 1, 2, 2, 4, 4, 2, 2, 1, 1)
    coils: int | None = 1
    multiplicity: int = 1
    read_out: Literal["estimate", "parametric"] = "estimate"
    final_update: bool = False
    memory: Memory = "invert"
    anchors: int | Literal["auto"] = 8
    guard: Guard = "raise"
    metadata: tuple[str, ...] = ()
    scale_crop: int | None = None

    def _model(self) -> Reconstructor:
        options = asdict(self)
        options.pop("slab", None)
        return IRIMReconstructor(**options, dims=self.dims)


@dataclass(frozen=True)
class IRIM3D(IRIM2D):
    """The i-RIM of the paper on slabs of slices; slices are not made coarser.

    Volumes are reconstructed from slabs that overlap by half.

    Args:
        channels: Channels of the machine state.
        steps: Number of steps, each with weights of its own.
        hidden: Hidden channels of the couplings of a step.
        strides: Coarseness of the couplings of a step, in rows and columns.
        coils: Number of coils of the data, or null for any, each by itself.
        multiplicity: Copies of the complex estimate in the state.
        read_out: How the image is read from the final state.
        final_update: Write the gradient once more after the last step.
        memory: "invert" trains in the memory of one layer, "checkpoint" keeps the state
            between layers, "store" keeps everything.
        anchors: Number of states that are kept exactly while inverting, or "auto".
        guard: What is done if rebuilt states drift: "raise", "warn", "adapt" (keep
            more of them) or null.
        metadata: Kinds of scans that the model knows, as acquisition/scanner.
        scale_crop: Central rows and columns whose standard deviation images are
            divided by; null for all of them.
        slab: Slices of a slab.
    """

    dims: ClassVar[int] = 3

    slab: int = 32


@dataclass(frozen=True)
class ChallengeIRIM(IRIM2D):
    """The i-RIM of the fastMRI challenge, single coil; see `IRIMReconstructor`.

    12 couplings a step, four copies of the estimate, the kind of the scan in the last
    eight channels of the first state, and an image read from the whole state:
    275,206,144 parameters and 41,408 in the read-out. For several coils the authors
    took 96 channels and one copy of the estimate of each coil.

    Args:
        channels: Channels of the machine state.
        steps: Number of steps, each with weights of its own.
        hidden: Hidden channels of the couplings of a step.
        strides: Coarseness of the couplings of a step.
        coils: Number of coils of the data, or null for any, each by itself.
        multiplicity: Copies of the complex estimate in the state.
        read_out: How the image is read from the final state.
        final_update: Write the gradient once more after the last step.
        memory: "invert" trains in the memory of one layer, "checkpoint" keeps the state
            between layers, "store" keeps everything.
        anchors: Number of states that are kept exactly while inverting, or "auto".
        guard: What is done if rebuilt states drift: "raise", "warn", "adapt" (keep
            more of them) or null.
        metadata: Kinds of scans that the model knows, as acquisition/scanner.
        scale_crop: Central rows and columns whose standard deviation images are
            divided by; null for all of them.

    References:
        Putzky et al., *i-RIM applied to the fastMRI challenge*, 2019. arXiv:1910.08952
    """

    hidden: tuple[int, ...] = (
        *(64, 64, 128, 128, 256, 1024),
        *(1024, 256, 128, 128, 64, 64),
    )
    strides: tuple[int, ...] = (1, 1, 2, 2, 4, 8, 8, 4, 2, 2, 1, 1)
    multiplicity: int = 4
    read_out: Literal["estimate", "parametric"] = "parametric"
    final_update: bool = True
    metadata: tuple[str, ...] = KNEE_SCANS
    scale_crop: int | None = 320


@dataclass(frozen=True)
class RIM(ModelConfig):
    """The recurrent inference machine; see `RIMReconstructor`.

    Args:
        channels: Channels of the hidden states.
        steps: Number of steps, all with the same weights.
    """

    channels: int = 64
    steps: int = 8

    def _model(self) -> Reconstructor:
        return RIMReconstructor(**asdict(self))


@dataclass(frozen=True)
class UNet(ModelConfig):
    """The U-Net of the fastMRI challenge; see `UNetReconstructor`.

    Args:
        channels: Channels of the finest level.
        pools: Number of times the grid is halved.
    """

    channels: int = 32
    pools: int = 4

    def _model(self) -> Reconstructor:
        return UNetReconstructor(**asdict(self))


MODELS: dict[str, type[ModelConfig]] = {
    model.__name__: model for model in (IRIM2D, IRIM3D, ChallengeIRIM, RIM, UNet)
}


def model_config(values: dict[str, Any]) -> ModelConfig:
    """Return the configuration that `ModelConfig.plain` wrote; further keys may stand.

    Raises:
        InputError: If there is no such model, or a value is not of its field's type.
    """
    name = values.get("model")
    if not isinstance(name, str) or name not in MODELS:
        raise InputError(
            f"the model is {name!r}, but can only be one of {', '.join(MODELS)}"
        )
    model = MODELS[name]
    known = {field.name for field in fields(model)}  # type: ignore[arg-type]
    options = {key: value for key, value in values.items() if key in known}
    return _typed(model, options)


def _typed(model: type[ModelConfig], options: dict[str, Any]) -> ModelConfig:
    """Make a configuration of values whose types are checked, as on a command line."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--model", type=ModelConfig)
    path = f"{model.__module__}.{model.__name__}"
    try:
        parsed = parser.parse_object(
            {"model": {"class_path": path, "init_args": options}}
        )
    except ArgumentError as error:
        raise InputError(
            f"{model.__name__} has no such options ({' '.join(str(error).split())}): "
            f"give values of their types"
        ) from error
    return model(**vars(parsed.model.init_args))
