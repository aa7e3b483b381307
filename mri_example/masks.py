"""Which columns of k-space are measured, in 3-D acquisitions which slices as well."""

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

from mri_example.errors import check_file, require, reworded

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
            self._check_stored(self._stored)
            return
        known, name = ", ".join(PATTERNS), f"the mask pattern is {self.pattern!r}"
        possible = self.pattern in (*PATTERNS, "poisson")
        require(possible, f"{name}, but can only be one of {known} and poisson")
        self._check_pairs()
        drawn = self.pattern != "poisson" or find_spec("sigpy") is not None
        require(drawn, f"{name}, but sigpy is not installed: `pip install sigpy`")

    def _check_stored(self, stored: NDArray[np.generic]) -> None:
        numbers = stored.dtype.kind in "biuf" and stored.ndim <= 2
        text = f"{self.file} holds {stored.dtype} of shape {stored.shape}, but a mask "
        text += "is 0 or 1 along (cols,), or (slices, cols) for 3-D acquisitions"
        require(numbers and np.isin(stored, (0, 1)).all(), text)
        text = "holds a mask that measures nothing: it must be 1 where k-space is"
        require(stored.any(), f"{self.file} {text} measured")
        mask = stored.astype(bool)
        middle, ends = (center_width(m) for m in (mask, np.fft.fftshift(mask)))
        text = f"{self.file} measures {ends} lines at both ends, and {middle} in the"
        centered = ends <= 2 + 2 * middle or mask.mean() > 1 / 2
        require(centered, f"{text} middle: apply numpy.fft.fftshift to it")

    def _check_pairs(self) -> None:
        counts = len(self.center_fractions), len(self.accelerations)
        text = "center_fractions has {} entries and accelerations {}: give pairs"
        require(0 < counts[0] == counts[1], text.format(*counts))
        for low, a in zip(self.center_fractions, self.accelerations, strict=True):
            said = f"a center fraction is {low}, but must be"
            require(0 < low <= 1, f"{said} above 0 and at most 1")
            text = f"an acceleration is {a}, but must be finite and at least 1"
            require(1 <= a < math.inf, text)
            bounded = self.pattern in ("random", "equispaced_fraction")
            text = f"{said} what an acceleration of {a} allows: at most {1 / a:.3g}"
            require(not bounded or low * a <= 1, text)

    @cached_property
    def _stored(self) -> NDArray[np.generic]:
        path = Path(self.file or "")
        check_file(path)
        text = f"{path} cannot be read as .npy ({{}}): write the mask with `numpy.save`"
        damaged = (OSError, EOFError, ValueError, TypeError)
        with reworded(text, *damaged), path.open("rb") as file:
            return np.atleast_1d(npy.read_array(file).squeeze())

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
        sizes, rng = self._sizes(shape), RandomState(seed)
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

    def _sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes of the phase-encoding axes of k-space.

        Of a volume the axis of the coils must be there: without it three axes may just
        as well be the coils of a single slice.
        """
        said = f"shape is {tuple(shape)}, but"
        if self.encodes_slices:
            text = f"{said} a mask of slices and columns is for the volumes of 3-D "
            text += "acquisitions, (coils, slices, rows, cols): use slabs of slices"
            require(len(shape) >= 4 and min(shape[-3], shape[-1]) > 0, text)
            return shape[-3], shape[-1]
        text = f"{said} must be (..., rows, cols) with at least one column"
        require(len(shape) >= 2 and shape[-1] > 0, text)
        return (shape[-1],)

    def _read(self, sizes: Sequence[int]) -> tuple[Measured, int]:
        measured = self._stored.astype(bool)
        text = f"{self.file} holds a mask of {_named(measured.shape)}, but k-space has "
        text += f"{_named(sizes)}: give a mask of that size, also to train on slabs"
        require(measured.shape == tuple(sizes), text)
        return measured, center_width(measured)

    def _columns(self, cols: int, rng: RandomState) -> tuple[Measured, int]:
        highest = max(self.accelerations)
        text = f"an acceleration is {highest}, but {cols} columns allow at most {cols}"
        require(highest <= cols, f"{text}: choose a lower one")
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
        text = f"the center of {center} of {sizes[0]} x {sizes[1]} samples is more than"
        text += f" an acceleration of {a} allows: it must be at most "
        text += f"{samples / center:.3g}, or the center fraction smaller"
        require(center * a <= samples, text)
        if a == 1:  # sigpy draws none with all samples
            return np.ones(sizes, bool), low[1]
        options = {"calib": low, "dtype": np.float32, "crop_corner": False}
        before = np.random.get_state()  # noqa: NPY002 (sigpy seeds the global state)
        text = f"sigpy draws no Poisson-disc mask of {_named(sizes)} at an acceleration"
        try:
            poisson, seed = import_module("sigpy.mri").poisson, rng.randint(2**31)
            with reworded(f"{text} of {a} ({{}}): choose another", ValueError):
                mask = poisson(sizes, a, seed=seed, **options)
        finally:
            np.random.set_state(before)  # noqa: NPY002
        return np.asarray(mask, dtype=bool), low[1]


def random(rng: RandomState, cols: int, low: int, acceleration: float) -> Measured:
    """Draw every column with the chance that gives the acceleration on average."""
    chance = (cols / acceleration - low) / max(cols - low, 1)
    return rng.uniform(size=cols) < chance


def equispaced(rng: RandomState, cols: int, _low: int, acceleration: float) -> Measured:
    """Take every n-th column, n being the acceleration; the center comes on top."""
    step = round(acceleration)
    return _every(cols, step, rng.randint(0, step))


def equispaced_fraction(rng: RandomState, cols: int, low: int, a: float) -> Measured:
    """Space the columns so that they and the center give the acceleration together."""
    unspent = cols - low * a
    text = f"{low} central columns of {cols} leave none to space at an acceleration of "
    require(unspent > 0, f"{text}{a}: it must be below {cols / low:.3g}")
    step = a * (cols - low) / unspent
    places = np.arange(rng.randint(0, round(step)), cols - 1, step)
    chosen = np.zeros(cols, dtype=bool)
    chosen[np.around(places).astype(int)] = True
    return chosen


def magic(rng: RandomState, cols: int, _low: int, acceleration: float) -> Measured:
    """Take every n-th column, such that mirror images fall between those measured."""
    return _mirrored(rng, cols, round(acceleration))


def magic_fraction(rng: RandomState, cols: int, low: int, a: float) -> Measured:
    """Do as `magic`, spaced so that the center counts towards the acceleration."""
    outside = round(cols / a) - low
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


def _named(sizes: Sequence[int]) -> str:
    names = ("slices", "columns")[-len(sizes) :]
    return " and ".join(f"{n} {name}" for n, name in zip(sizes, names, strict=True))


def center_width(measured: Measured) -> int:
    """Count the columns around the middle one up to the first gap on each side."""
    columns = measured if measured.ndim == 1 else measured[len(measured) // 2]
    middle = len(columns) // 2
    sides = (columns[middle:], columns[:middle][::-1])
    widths = [int(np.logical_and.accumulate(side).sum()) for side in sides]
    return sum(widths) if columns[middle] else 0
