"""Masks of 3-D acquisitions, whose slices and columns are both phase-encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from mri_example.errors import InputError
from mri_example.sampling.darts import Grid, spread
from mri_example.sampling.interface import Seed
from mri_example.sampling.pairs import center, check_pairs
from mri_example.sampling.volumes import slices_and_columns


@dataclass(frozen=True)
class PoissonMaskFunction:
    """Draw variable-density Poisson-disc masks of slices and columns.

    No two measured samples outside the center are close, and they are the farther apart
    the farther they are from it; see `darts`. Undersampling then looks like noise, and
    neighbours that coils could tell apart are not measured twice.

    The number of samples is that of the grid divided by the acceleration, rounded: the
    acceleration is met to half a sample.

    The function of the same purpose in sigpy would bring numba along (459 MB with what
    it needs, a matter of seconds to import), takes no seeds of several numbers, meets
    the acceleration to 0.1 or raises, and sets NumPy's global random state.

    Args:
        center_fractions: Shares of the slices, and of the columns, that are measured in
            the center; at least one sample of each.
        accelerations: One acceleration for each of them; every mask draws a pair.

    Raises:
        InputError: If the two sequences differ in length, a fraction is not in (0, 1],
            an acceleration is not finite or below 1, or a center alone exceeds what its
            acceleration allows.

    Examples:
        >>> mask_function = PoissonMaskFunction([0.1], [4])
        >>> mask, low = mask_function((8, 20, 640, 40), seed=1)
        >>> mask.shape, low, int(mask.sum())
        (torch.Size([1, 20, 1, 40]), 4, 200)

    References:
        Vasanawala et al., *Practical parallel imaging compressed sensing MRI*, 2011.
    """

    center_fractions: Sequence[float]
    accelerations: Sequence[float]
    encodes_slices: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pairs(self.center_fractions, self.accelerations)

    def __call__(
        self, shape: Sequence[int], offset: int | None = None, seed: Seed = None
    ) -> tuple[Tensor, int]:
        """Draw a mask.

        Args:
            shape: Shape of the k-space, `(..., coils, slices, rows, cols)`.
            offset: Of no use here.
            seed: What the mask follows from; `None` draws a fresh one. NumPy's global
                random state is not touched.

        Returns:
            The mask, float32 `(1, ..., slices, 1, cols)`, and the number of columns in
            the center.

        Raises:
            InputError: If the shape has no slices, or the center alone is more than the
                acceleration allows.
        """
        del offset
        sizes = slices_and_columns(shape)
        rng = RandomState(seed)
        choice = rng.randint(len(self.center_fractions))
        fraction = self.center_fractions[choice]
        low = [max(1, round(size * fraction)) for size in sizes]
        block = np.zeros(sizes, dtype=bool)
        block[center(sizes[0], low[0]), center(sizes[1], low[1])] = True
        grid, _ = spread(rng, block, _points(block, self.accelerations[choice]))
        ones = (1,) * (len(shape) - 3)
        mask = torch.from_numpy(grid).float()
        return mask.view(*ones, sizes[0], 1, sizes[1]), low[1]


def _points(block: Grid, a: float) -> int:
    """Return how many samples an acceleration stands for."""
    points, central = round(block.size / a), int(block.sum())
    if central > points:
        slices, cols = block.shape
        raise InputError(
            f"the center of {central} of {slices} x {cols} samples is more than an "
            f"acceleration of {a} allows: it must be at most "
            f"{block.size / central:.3g}, or the center fraction smaller"
        )
    return points
