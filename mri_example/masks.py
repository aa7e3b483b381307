"""Which columns of k-space are measured, in 3-D acquisitions which slices as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from mri_example.errors import InputError
from mri_example.paths import check_file

Seed: TypeAlias = int | Sequence[int] | None
Columns: TypeAlias = NDArray[np.bool_]


class Masks(Protocol):
    """A function of the shape of k-space and a seed that returns a mask."""

    @property
    def encodes_slices(self) -> bool:
        """Whether masks differ from slice to slice, as those of 3-D acquisitions do."""
        ...

    def __call__(self, shape: Sequence[int], seed: Seed = None) -> tuple[Tensor, int]:
        """Return a mask.

        Args:
            shape: Shape of the k-space, `(..., rows, cols)`; for masks of slices and
                columns `(..., coils, slices, rows, cols)`.
            seed: What a random mask follows from; `None` draws a fresh one. NumPy's
                global random state is not touched.

        Returns:
            The mask, float32, which broadcasts against k-space: `(1, ..., 1, cols)`, or
            `(1, ..., slices, 1, cols)` where slices are phase-encoded too; and the
            number of columns in its fully sampled center.

        Raises:
            InputError: If there is no such mask for that shape.
        """
        ...


def volume_seed(name: str) -> tuple[int, ...]:
    """Return the seed of a volume, which follows from its file name.

    Examples:
        >>> volume_seed("a.h5")
        (97, 46, 104, 53)
    """
    return tuple(map(ord, name))


def undersample(kspace: Tensor, mask: Tensor) -> Tensor:
    """Keep the measured part of k-space; the rest is +0.0.

    A product with the mask would leave -0.0, and NaN where unmeasured values are not
    finite.

    Examples:
        >>> undersample(torch.tensor([-1.0, -2.0]), mask=torch.tensor([0.0, 1.0]))
        tensor([ 0., -2.])
    """
    return torch.where(mask.bool(), kspace, 0)


def encoded_axes(mask: Tensor) -> int:
    """Return over how many axes the k-space of a mask is transformed.

    A mask that differs from slice to slice belongs to a 3-D acquisition, so the slices
    are transformed too. Otherwise rows and columns are enough: the third transform and
    its inverse cancel where the mask is the same for all slices.

    Examples:
        >>> encoded_axes(torch.ones(1, 1, 1, 40)), encoded_axes(torch.ones(1, 9, 1, 40))
        (2, 3)
    """
    return 3 if mask.ndim >= 4 and mask.shape[-3] > 1 else 2


@dataclass(frozen=True)
class MaskFunction:
    """Draw masks along the columns (phase encoding) of k-space.

    Args:
        pattern: How columns around the center are chosen; a key of `PATTERNS`.
        center_fractions: Shares of the columns that are measured in the center.
        accelerations: One acceleration for each of them; every mask draws a pair.

    Examples:
        >>> mask_function = MaskFunction("equispaced", [0.08], [4])
        >>> mask, low = mask_function((1, 640, 368), seed=1)
        >>> mask.shape, low
        (torch.Size([1, 1, 368]), 29)
    """

    pattern: str
    center_fractions: Sequence[float]
    accelerations: Sequence[float]
    encodes_slices: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise InputError(
                f"the mask pattern is {self.pattern!r}, but can only be one of "
                f"{', '.join(PATTERNS)}"
            )
        _check_pairs(self.center_fractions, self.accelerations)
        if self.pattern in ("random", "equispaced_fraction"):
            pairs = zip(self.center_fractions, self.accelerations, strict=True)
            for fraction, acceleration in pairs:
                if fraction * acceleration > 1:
                    raise InputError(
                        f"a center fraction is {fraction}, but alone it must not "
                        f"measure more than an acceleration of {acceleration} allows: "
                        f"at most {1 / acceleration:.3g}"
                    )

    def __call__(self, shape: Sequence[int], seed: Seed = None) -> tuple[Tensor, int]:
        """Draw a mask; see `Masks`."""
        if len(shape) < 2 or shape[-1] < 1:
            raise InputError(
                f"shape is {tuple(shape)}, but must be (..., rows, cols) with at least "
                f"one column"
            )
        cols, highest = shape[-1], max(self.accelerations)
        if highest > cols:
            raise InputError(
                f"an acceleration is {highest}, but {cols} columns allow at most "
                f"{cols}: choose a lower one, or leave out such narrow files"
            )
        rng = RandomState(seed)
        choice = rng.randint(len(self.center_fractions))
        acceleration = self.accelerations[choice]
        low = max(1, round(cols * self.center_fractions[choice]))  # never an empty mask
        if self.pattern == "magic_fraction":  # alone in bounding its center
            low = max(1, min(low, round(cols / acceleration)))
        columns = PATTERNS[self.pattern](Draw(rng, cols, low, acceleration))
        pad = (cols - low + 1) // 2
        columns[pad : pad + low] = True
        mask = torch.from_numpy(columns).float()
        return mask.view(*(1,) * (len(shape) - 1), cols), low


@dataclass(frozen=True)
class PoissonMaskFunction:
    """Draw variable-density Poisson-disc masks of slices and columns, with sigpy.

    Args:
        center_fractions: Shares of the slices, and of the columns, that are measured in
            the center; at least one sample of each.
        accelerations: One acceleration for each of them; every mask draws a pair.
            sigpy meets it to 0.1, or raises.

    References:
        Vasanawala et al., *Practical parallel imaging compressed sensing MRI*, 2011.
    """

    center_fractions: Sequence[float]
    accelerations: Sequence[float]
    encodes_slices: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_pairs(self.center_fractions, self.accelerations)
        if find_spec("sigpy") is None:
            raise InputError(
                "the mask pattern is 'poisson', which is drawn with sigpy, but sigpy "
                "is not installed: `pip install sigpy`, or give `masks.file`"
            )

    def __call__(self, shape: Sequence[int], seed: Seed = None) -> tuple[Tensor, int]:
        """Draw a mask; see `Masks`."""
        sizes = _slices_and_columns(shape)
        rng = RandomState(seed)
        choice = rng.randint(len(self.center_fractions))
        fraction, a = self.center_fractions[choice], self.accelerations[choice]
        low = [max(1, round(size * fraction)) for size in sizes]
        if low[0] * low[1] * a > sizes[0] * sizes[1]:
            raise InputError(
                f"the center of {low[0] * low[1]} of {sizes[0]} x {sizes[1]} samples "
                f"is more than an acceleration of {a} allows: it must be at most "
                f"{sizes[0] * sizes[1] / (low[0] * low[1]):.3g}, or the center "
                f"fraction smaller"
            )
        mask = np.ones(sizes, np.float32)
        if a > 1:  # sigpy draws none with all samples
            mask = _sigpy_poisson(sizes, a, low, rng.randint(2**31))
        ones = (1,) * (len(shape) - 3)
        return torch.from_numpy(mask).view(*ones, sizes[0], 1, sizes[1]), low[1]


def _sigpy_poisson(
    sizes: tuple[int, int], acceleration: float, low: Sequence[int], seed: int
) -> NDArray[np.float32]:
    options = {"calib": low, "dtype": np.float32, "crop_corner": False, "seed": seed}
    before = np.random.get_state()  # noqa: NPY002 (sigpy seeds the global state)
    try:
        mask = import_module("sigpy.mri").poisson(sizes, acceleration, **options)
    except ValueError as error:
        raise InputError(
            f"sigpy draws no Poisson-disc mask of {sizes[0]} slices and {sizes[1]} "
            f"columns at an acceleration of {acceleration} ({error}): choose another"
        ) from error
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return np.ascontiguousarray(mask, dtype=np.float32)


@dataclass(frozen=True)
class MaskFile:
    """Use the same mask, read from a .npy file, for all k-space.

    Args:
        path: The file. It holds 1 where k-space is measured and 0 elsewhere, `(cols,)`,
            or for 3-D acquisitions `(slices, cols)`. Axes of length one do not count.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mask.npy"
        ...     np.save(path, [1, 0, 0, 1, 1, 1, 0, 0])
        ...     mask_function = MaskFile(path)
        >>> mask_function((1, 320, 8))
        (tensor([[[1., 0., 0., 1., 1., 1., 0., 0.]]]), 3)
    """

    path: Path
    measured: Columns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_file(self.path)
        try:
            with self.path.open("rb") as file:
                values = np.atleast_1d(npy.read_array(file).squeeze())
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.path} cannot be read as .npy ({error}): write the mask with "
                f"`numpy.save`"
            ) from error
        numbers = values.dtype.kind in "biuf"
        if not numbers or values.ndim > 2 or not np.isin(values, (0, 1)).all():
            raise InputError(
                f"{self.path} holds {values.dtype} of shape {values.shape}, but a mask "
                f"is 0 or 1 along (cols,), or (slices, cols) for 3-D acquisitions"
            )
        if not values.any():
            raise InputError(
                f"{self.path} holds a mask that measures nothing: it must be 1 where "
                f"k-space is measured"
            )
        object.__setattr__(self, "measured", values.astype(bool))  # once, here

    @property
    def encodes_slices(self) -> bool:
        """Whether the mask is one of slices and columns."""
        return self.measured.ndim == 2

    def __call__(self, shape: Sequence[int], seed: Seed = None) -> tuple[Tensor, int]:
        """Return the mask; see `Masks`."""
        del seed
        sizes = shape[-1:] if self.measured.ndim == 1 else _slices_and_columns(shape)
        if tuple(sizes) != self.measured.shape:
            raise InputError(
                f"{self.path} holds a mask of {_named(self.measured.shape)}, but the "
                f"k-space of shape {tuple(shape)} has {_named(sizes)}: give a mask of "
                f"that size, or leave out such files; slabs that a model is trained "
                f"on need a mask of as many slices"
            )
        mask = torch.from_numpy(self.measured).float().unsqueeze(-2)
        ones = (1,) * (len(shape) - mask.ndim)
        return mask.view(*ones, *mask.shape), _center_width(self.measured)


class Draw(NamedTuple):
    """What the columns of one mask follow from."""

    rng: RandomState
    cols: int
    low: int
    acceleration: float


def random(draw: Draw) -> Columns:
    """Draw every column with the chance that gives the acceleration on average."""
    outside = max(draw.cols - draw.low, 1)
    chance = (draw.cols / draw.acceleration - draw.low) / outside
    return draw.rng.uniform(size=draw.cols) < chance


def equispaced(draw: Draw) -> Columns:
    """Take every n-th column, n being the acceleration; the center comes on top."""
    step = round(draw.acceleration)
    return _every(draw.cols, step, draw.rng.randint(0, step))


def equispaced_fraction(draw: Draw) -> Columns:
    """Space the columns so that they and the center give the acceleration together."""
    unspent = draw.cols - draw.low * draw.acceleration
    if unspent <= 0:
        raise InputError(
            f"{draw.low} central columns of {draw.cols} leave none to space at an "
            f"acceleration of {draw.acceleration}: it must be below "
            f"{draw.cols / draw.low:.3g}, or the center fraction smaller"
        )
    step = draw.acceleration * (draw.cols - draw.low) / unspent
    places = np.arange(draw.rng.randint(0, round(step)), draw.cols - 1, step)
    chosen = np.zeros(draw.cols, dtype=bool)
    chosen[np.around(places).astype(int)] = True
    return chosen


def magic(draw: Draw) -> Columns:
    """Take every n-th column, such that mirror images fall between those measured."""
    return _mirrored(draw, round(draw.acceleration))


def magic_fraction(draw: Draw) -> Columns:
    """Do as `magic`, spaced so that the center counts towards the acceleration."""
    outside = round(draw.cols / draw.acceleration) - draw.low
    if outside < 1:
        return np.zeros(draw.cols, dtype=bool)
    return _mirrored(draw, round(draw.cols / outside))


PATTERNS: dict[str, Callable[[Draw], Columns]] = {  # bit by bit those of fastMRI
    pattern.__name__: pattern
    for pattern in (random, equispaced, equispaced_fraction, magic, magic_fraction)
}


def _every(cols: int, step: int, first: int) -> Columns:
    chosen = np.zeros(cols, dtype=bool)
    chosen[first::step] = True
    return chosen


def _mirrored(draw: Draw, step: int) -> Columns:
    offset = draw.rng.randint(0, step)
    positive, negative = (1, 2) if offset % 2 == 0 else (2, -1)
    half = (draw.cols + 1) // 2
    above = _every(half, step, offset + positive)
    below = _every(draw.cols - half, step, offset + negative)
    return np.fft.fftshift(np.concatenate([above, below[::-1]]))


def _check_pairs(fractions: Sequence[float], accelerations: Sequence[float]) -> None:
    if not 0 < len(fractions) == len(accelerations):
        raise InputError(
            f"center_fractions has {len(fractions)} entries and accelerations "
            f"{len(accelerations)}: give one acceleration for each fraction"
        )
    for fraction in fractions:
        if not 0 < fraction <= 1:
            raise InputError(
                f"a center fraction is {fraction}, but must be above 0 and at most 1"
            )
    for acceleration in accelerations:
        if not 1 <= acceleration < math.inf:
            raise InputError(
                f"an acceleration is {acceleration}, but must be finite and at least 1"
            )


def _slices_and_columns(shape: Sequence[int]) -> tuple[int, int]:
    """Return the sizes of the two phase-encoding axes of a 3-D acquisition.

    The axis of the coils must be there: without it three axes may just as well be the
    coils of a single slice.
    """
    if len(shape) < 4 or min(shape[-3], shape[-1]) < 1:
        raise InputError(
            f"shape is {tuple(shape)}, but a mask of slices and columns is for the "
            f"volumes of 3-D acquisitions, (coils, slices, rows, cols): use slabs of "
            f"slices, or a mask of columns alone"
        )
    return shape[-3], shape[-1]


def _named(sizes: Sequence[int]) -> str:
    names = ("columns",) if len(sizes) == 1 else ("slices", "columns")
    return " and ".join(f"{n} {name}" for n, name in zip(sizes, names, strict=True))


def _center_width(measured: Columns) -> int:
    """Count the columns around the middle one up to the first gap on each side."""
    columns = measured if measured.ndim == 1 else measured[len(measured) // 2]
    middle = len(columns) // 2
    gaps = np.flatnonzero(~columns)
    if middle in gaps:
        return 0
    above, below = gaps[gaps > middle], gaps[gaps < middle]
    return int(min(above, default=len(columns)) - max(below, default=-1) - 1)
