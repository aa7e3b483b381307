"""Which columns of k-space are measured, in 3-D acquisitions which slices as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.random import RandomState
from numpy.typing import NDArray
from torch import Tensor

from mri_example.errors import InputError
from mri_example.paths import check_file

Seed: TypeAlias = int | Sequence[int] | None
Measured: TypeAlias = NDArray[np.bool_]


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

    Three where the mask differs from slice to slice. Otherwise two are enough: the
    transform along the slices and its inverse cancel.

    Examples:
        >>> encoded_axes(torch.ones(1, 1, 1, 40)), encoded_axes(torch.ones(1, 9, 1, 40))
        (2, 3)
    """
    return 3 if mask.ndim >= 4 and mask.shape[-3] > 1 else 2


@dataclass(frozen=True)
class Masks:
    """Masks along the columns (phase encoding) of k-space, of 3-D also along slices.

    Args:
        pattern: random, equispaced, equispaced_fraction, magic or magic_fraction; for
            3-D acquisitions poisson, variable-density Poisson discs, which need sigpy.
        center_fractions: Shares of the columns that are measured in the center, with
            poisson of the slices too; at least one of them.
        accelerations: One acceleration for each of them; every mask draws a pair.
        file: A mask for all k-space instead of drawn ones, as .npy: 0 or 1 along the
            columns, for 3-D acquisitions along slices and columns.

    Raises:
        InputError: If there are no such masks.

    Examples:
        >>> mask, low = Masks("equispaced", (0.08,), (4,))((1, 640, 368), seed=1)
        >>> mask.shape, low
        (torch.Size([1, 1, 368]), 29)
    """

    pattern: str = "random"
    center_fractions: tuple[float, ...] = (0.08, 0.04)
    accelerations: tuple[float, ...] = (4, 8)
    file: str | None = None

    def __post_init__(self) -> None:
        if self.file is not None:
            _check_values(self.file, self._stored)
            return
        if self.pattern not in (*PATTERNS, "poisson"):
            raise InputError(
                f"the mask pattern is {self.pattern!r}, but can only be one of "
                f"{', '.join(PATTERNS)} and poisson"
            )
        _check_pairs(self.pattern, self.center_fractions, self.accelerations)
        if self.pattern == "poisson" and find_spec("sigpy") is None:
            raise InputError(
                "the mask pattern is 'poisson', which is drawn with sigpy, but sigpy "
                "is not installed: `pip install sigpy`, or give `masks.file`"
            )

    @cached_property
    def _stored(self) -> NDArray[np.generic]:
        path = Path(self.file or "")
        check_file(path)
        try:
            with path.open("rb") as file:
                return np.atleast_1d(npy.read_array(file).squeeze())
        except (OSError, EOFError, ValueError, TypeError) as error:
            raise InputError(
                f"{path} cannot be read as .npy ({error}): write the mask with "
                f"`numpy.save`"
            ) from error

    @property
    def encodes_slices(self) -> bool:
        """Whether masks differ from slice to slice, as those of 3-D acquisitions do."""
        return self.pattern == "poisson" if self.file is None else self._stored.ndim > 1

    def __call__(self, shape: Sequence[int], seed: Seed = None) -> tuple[Tensor, int]:
        """Return a mask, and how many columns are fully sampled in its center.

        Args:
            shape: Shape of the k-space, `(..., rows, cols)`; for masks of slices and
                columns `(..., coils, slices, rows, cols)`.
            seed: What a random mask follows from; `None` draws a fresh one. NumPy's
                global random state is not touched.

        Returns:
            The mask, float32, broadcasts against k-space: `(1, ..., 1, cols)`, or
            `(1, ..., slices, 1, cols)`.

        Raises:
            InputError: If there is no such mask for that shape.
        """
        sizes = _sizes(shape, encodes_slices=self.encodes_slices)
        rng = RandomState(seed)
        if self.file is not None:
            measured, low = self._read(sizes)
        elif self.pattern == "poisson":
            measured, low = self._discs(sizes, rng)
        else:
            measured, low = self._columns(sizes[0], rng)
        mask = torch.from_numpy(measured).float().unsqueeze(-2)
        return mask.view(*(1,) * (len(shape) - mask.ndim), *mask.shape), low

    def pair(self, rng: RandomState) -> tuple[float, float]:
        """Draw a center fraction and its acceleration, the first draw of a mask."""
        choice = rng.randint(len(self.center_fractions))
        return self.center_fractions[choice], self.accelerations[choice]

    def _read(self, sizes: Sequence[int]) -> tuple[Measured, int]:
        measured = self._stored.astype(bool)
        if measured.shape != tuple(sizes):
            raise InputError(
                f"{self.file} holds a mask of {_named(measured.shape)}, but k-space "
                f"has {_named(sizes)}: give a mask of that size, or leave out such "
                f"files; slabs that a model is trained on need a mask of as many slices"
            )
        return measured, center_width(measured)

    def _columns(self, cols: int, rng: RandomState) -> tuple[Measured, int]:
        highest = max(self.accelerations)
        if highest > cols:
            raise InputError(
                f"an acceleration is {highest}, but {cols} columns allow at most "
                f"{cols}: choose a lower one, or leave out such narrow files"
            )
        fraction, acceleration = self.pair(rng)
        low = max(1, round(cols * fraction))  # never an empty mask
        if self.pattern == "magic_fraction":  # alone in bounding its center
            low = max(1, min(low, round(cols / acceleration)))
        measured = PATTERNS[self.pattern](rng, cols, low, acceleration)
        pad = (cols - low + 1) // 2
        measured[pad : pad + low] = True
        return measured, low

    def _discs(self, sizes: Sequence[int], rng: RandomState) -> tuple[Measured, int]:
        fraction, a = self.pair(rng)
        low = [max(1, round(size * fraction)) for size in sizes]
        center, samples = low[0] * low[1], sizes[0] * sizes[1]
        if center * a > samples:
            raise InputError(
                f"the center of {center} of {sizes[0]} x {sizes[1]} samples is more "
                f"than an acceleration of {a} allows: it must be at most "
                f"{samples / center:.3g}, or the center fraction smaller"
            )
        if a == 1:  # sigpy draws none with all samples
            return np.ones(sizes, bool), low[1]
        return _sigpy_poisson(sizes, a, low, rng.randint(2**31)), low[1]


def _sigpy_poisson(
    sizes: Sequence[int], acceleration: float, low: Sequence[int], seed: int
) -> Measured:
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
    return np.asarray(mask, dtype=bool)


def random(rng: RandomState, cols: int, low: int, acceleration: float) -> Measured:
    """Draw every column with the chance that gives the acceleration on average."""
    chance = (cols / acceleration - low) / max(cols - low, 1)
    return rng.uniform(size=cols) < chance


def equispaced(rng: RandomState, cols: int, _low: int, acceleration: float) -> Measured:
    """Take every n-th column, n being the acceleration; the center comes on top."""
    step = round(acceleration)
    return _every(cols, step, rng.randint(0, step))


def equispaced_fraction(
    rng: RandomState, cols: int, low: int, acceleration: float
) -> Measured:
    """Space the columns so that they and the center give the acceleration together."""
    unspent = cols - low * acceleration
    if unspent <= 0:
        raise InputError(
            f"{low} central columns of {cols} leave none to space at an acceleration "
            f"of {acceleration}: it must be below {cols / low:.3g}, or the center "
            f"fraction smaller"
        )
    step = acceleration * (cols - low) / unspent
    places = np.arange(rng.randint(0, round(step)), cols - 1, step)
    chosen = np.zeros(cols, dtype=bool)
    chosen[np.around(places).astype(int)] = True
    return chosen


def magic(rng: RandomState, cols: int, _low: int, acceleration: float) -> Measured:
    """Take every n-th column, such that mirror images fall between those measured."""
    return _mirrored(rng, cols, round(acceleration))


def magic_fraction(
    rng: RandomState, cols: int, low: int, acceleration: float
) -> Measured:
    """Do as `magic`, spaced so that the center counts towards the acceleration."""
    outside = round(cols / acceleration) - low
    if outside < 1:
        return np.zeros(cols, dtype=bool)
    return _mirrored(rng, cols, round(cols / outside))


PATTERNS: dict[str, Callable[[RandomState, int, int, float], Measured]] = {
    pattern.__name__: pattern  # bit by bit those of fastMRI
    for pattern in (random, equispaced, equispaced_fraction, magic, magic_fraction)
}


def _every(cols: int, step: int, first: int) -> Measured:
    chosen = np.zeros(cols, dtype=bool)
    chosen[first::step] = True
    return chosen


def _mirrored(rng: RandomState, cols: int, step: int) -> Measured:
    offset = rng.randint(0, step)
    positive, negative = (1, 2) if offset % 2 == 0 else (2, -1)
    half = (cols + 1) // 2
    above = _every(half, step, offset + positive)
    below = _every(cols - half, step, offset + negative)
    return np.fft.fftshift(np.concatenate([above, below[::-1]]))


def _check_pairs(
    pattern: str, fractions: Sequence[float], accelerations: Sequence[float]
) -> None:
    if not 0 < len(fractions) == len(accelerations):
        raise InputError(
            f"center_fractions has {len(fractions)} entries and accelerations "
            f"{len(accelerations)}: give one acceleration for each fraction"
        )
    for fraction, acceleration in zip(fractions, accelerations, strict=True):
        if not 0 < fraction <= 1:
            raise InputError(
                f"a center fraction is {fraction}, but must be above 0 and at most 1"
            )
        if not 1 <= acceleration < math.inf:
            raise InputError(
                f"an acceleration is {acceleration}, but must be finite and at least 1"
            )
        bounded = pattern in ("random", "equispaced_fraction")
        if bounded and fraction * acceleration > 1:
            raise InputError(
                f"a center fraction is {fraction}, but alone it must not measure more "
                f"than an acceleration of {acceleration} allows: at most "
                f"{1 / acceleration:.3g}"
            )


def _check_values(file: str, stored: NDArray[np.generic]) -> None:
    numbers = stored.dtype.kind in "biuf"
    if not numbers or stored.ndim > 2 or not np.isin(stored, (0, 1)).all():
        raise InputError(
            f"{file} holds {stored.dtype} of shape {stored.shape}, but a mask is 0 or "
            f"1 along (cols,), or (slices, cols) for 3-D acquisitions"
        )
    if not stored.any():
        raise InputError(
            f"{file} holds a mask that measures nothing: it must be 1 where k-space is "
            f"measured"
        )


def _sizes(shape: Sequence[int], *, encodes_slices: bool) -> tuple[int, ...]:
    """Return the sizes of the phase-encoding axes of k-space.

    Of a volume the axis of the coils must be there: without it three axes may just as
    well be the coils of a single slice.
    """
    if encodes_slices and (len(shape) < 4 or min(shape[-3], shape[-1]) < 1):
        raise InputError(
            f"shape is {tuple(shape)}, but a mask of slices and columns is for the "
            f"volumes of 3-D acquisitions, (coils, slices, rows, cols): use slabs of "
            f"slices, or a mask of columns alone"
        )
    if len(shape) < 2 or shape[-1] < 1:
        raise InputError(
            f"shape is {tuple(shape)}, but must be (..., rows, cols) with at least one "
            f"column"
        )
    return (shape[-3], shape[-1]) if encodes_slices else (shape[-1],)


def _named(sizes: Sequence[int]) -> str:
    names = ("columns",) if len(sizes) == 1 else ("slices", "columns")
    return " and ".join(f"{n} {name}" for n, name in zip(sizes, names, strict=True))


def center_width(measured: Measured) -> int:
    """Count the columns around the middle one up to the first gap on each side."""
    columns = measured if measured.ndim == 1 else measured[len(measured) // 2]
    middle = len(columns) // 2
    gaps = np.flatnonzero(~columns)
    if middle in gaps:
        return 0
    above, below = gaps[gaps > middle], gaps[gaps < middle]
    return int(min(above, default=len(columns)) - max(below, default=-1) - 1)
