"""Mask functions: a fully sampled center and a pattern around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from mri_example.errors import InputError
from mri_example.sampling.patterns import PATTERNS

Seed: TypeAlias = int | Sequence[int] | None


class MaskFunction:
    """Draw masks along the columns (phase encoding) of k-space.

    Args:
        pattern: How columns outside of the center are chosen; a key of `PATTERNS`.
        center_fractions: Shares of the columns that are measured in the center.
        accelerations: One acceleration for each of them; a mask draws one of the pairs.

    Raises:
        InputError: If the pattern is unknown, the two sequences differ in length, a
            fraction is not in (0, 1], or an acceleration is below 1 or finds no columns
            left outside of the center.

    Example:
        >>> mask_function = MaskFunction("equispaced", [0.08], [4])
        >>> mask, low = mask_function((1, 640, 368), seed=1)
        >>> mask.shape, low
        (torch.Size([1, 1, 368]), 29)
    """

    def __init__(
        self,
        pattern: str,
        center_fractions: Sequence[float],
        accelerations: Sequence[float],
    ) -> None:
        if pattern not in PATTERNS:
            raise InputError(
                f"the mask pattern is {pattern!r}, but can only be one of "
                f"{', '.join(PATTERNS)}"
            )
        if not center_fractions or len(center_fractions) != len(accelerations):
            raise InputError(
                f"center_fractions has {len(center_fractions)} entries and accelerations "
                f"{len(accelerations)}: give one acceleration for each fraction"
            )
        for fraction, acceleration in zip(center_fractions, accelerations, strict=True):
            _check(fraction, acceleration)
        self.pattern = pattern
        self.center_fractions = tuple(center_fractions)
        self.accelerations = tuple(accelerations)

    def __call__(
        self, shape: Sequence[int], offset: int | None = None, seed: Seed = None
    ) -> tuple[Tensor, int]:
        """Draw a mask.

        Args:
            shape: Shape of the k-space, `(..., rows, cols)`.
            offset: First column of a regular pattern; drawn if `None`.
            seed: What the mask follows from; `None` draws a fresh one. NumPy's global
                random state is not touched.

        Returns:
            The mask, float32 `(1, ..., 1, cols)`, and the number of central columns.

        Raises:
            InputError: If the shape has no columns, or too few for the acceleration.
        """
        cols = shape[-1] if len(shape) > 1 else 0
        if cols < 1:
            raise InputError(f"a mask for shape {tuple(shape)} would have no columns")
        rng = np.random.RandomState(
            seed if seed is None or isinstance(seed, int) else list(seed)
        )
        choice = rng.randint(len(self.center_fractions))
        acceleration = self.accelerations[choice]
        low = round(cols * self.center_fractions[choice])
        self._check_columns(cols, low, acceleration)
        columns = PATTERNS[self.pattern](rng, cols, low, acceleration, offset)
        pad = (cols - low + 1) // 2
        columns[pad : pad + low] = True
        mask = torch.from_numpy(columns.astype(np.float32))
        return mask.view(*(1,) * (len(shape) - 1), cols), low

    def _check_columns(self, cols: int, low: int, acceleration: float) -> None:
        if acceleration > cols or (
            self.pattern == "equispaced_fraction" and low * acceleration >= cols
        ):
            raise InputError(
                f"an acceleration of {acceleration} leaves no columns outside of the "
                f"center for {cols} columns with {low} in the center: choose a lower "
                f"acceleration or a smaller center fraction"
            )


def volume_seed(name: str) -> tuple[int, ...]:
    """Return the seed of a volume, from its file name, for example `"file1.h5"`."""
    return tuple(map(ord, name))


def undersample(kspace: Tensor, mask: Tensor) -> Tensor:
    """Keep the measured columns of k-space; the others are +0.0.

    Args:
        kspace: Complex, `(..., rows, cols)`.
        mask: 1 where measured, 0 elsewhere; it broadcasts against `kspace`.
    """
    return torch.where(mask.bool(), kspace, torch.zeros((), dtype=kspace.dtype))


def _check(fraction: float, acceleration: float) -> None:
    if not 0 < fraction <= 1:
        raise InputError(f"a center fraction is {fraction}, but must be in (0, 1]")
    if acceleration < 1:
        raise InputError(f"an acceleration is {acceleration}, but must be at least 1")
    if fraction * acceleration > 1 and acceleration > 1:
        raise InputError(
            f"a center fraction of {fraction} alone measures more than an acceleration of "
            f"{acceleration} allows: it must be at most {1 / acceleration:.3g}"
        )
