"""Mask functions: a fully sampled center and a pattern around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from numpy.random import RandomState
from torch import Tensor

from mri_example.errors import InputError
from mri_example.sampling.interface import Seed
from mri_example.sampling.pairs import center, check_pairs
from mri_example.sampling.patterns import PATTERNS, Draw


@dataclass(frozen=True)
class MaskFunction:
    """Draw masks along the columns (phase encoding) of k-space.

    Args:
        pattern: How columns around the center are chosen; a key of `PATTERNS`.
        center_fractions: Shares of the columns that are measured in the center.
        accelerations: One acceleration for each of them; every mask draws a pair.

    Raises:
        InputError: If the pattern is unknown, the two sequences differ in length, a
            fraction is not in (0, 1], an acceleration is not finite or below 1, or a
            center alone exceeds what its acceleration allows.

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
        fractions, accelerations = self.center_fractions, self.accelerations
        if self.pattern not in PATTERNS:
            raise InputError(
                f"the mask pattern is {self.pattern!r}, but can only be one of "
                f"{', '.join(PATTERNS)}"
            )
        check_pairs(fractions, accelerations)
        for fraction, acceleration in zip(fractions, accelerations, strict=True):
            _check_center(self.pattern, fraction, acceleration)

    def __call__(
        self, shape: Sequence[int], offset: int | None = None, seed: Seed = None
    ) -> tuple[Tensor, int]:
        """Draw a mask.

        Args:
            shape: Shape of the k-space, `(..., rows, cols)`.
            offset: First column of a regular pattern, at least 0; drawn if `None`.
            seed: What the mask follows from; `None` draws a fresh one. NumPy's global
                random state is not touched.

        Returns:
            The mask, float32 `(1, ..., 1, cols)`, and the number of central columns.

        Raises:
            InputError: If the shape has no columns or too few for the accelerations,
                or the offset is negative.
        """
        self._check_call(shape, offset)
        cols = shape[-1]
        rng = RandomState(seed)
        choice = rng.randint(len(self.center_fractions))
        acceleration = self.accelerations[choice]
        low = self._low(cols, self.center_fractions[choice], acceleration)
        columns = PATTERNS[self.pattern](Draw(rng, cols, low, acceleration, offset))
        columns[center(cols, low)] = True
        mask = torch.from_numpy(columns).float()
        return mask.view(*(1,) * (len(shape) - 1), cols), low

    def _low(self, cols: int, fraction: float, acceleration: float) -> int:
        low = round(cols * fraction)
        if self.pattern == "magic_fraction":  # alone in bounding its center
            return max(1, min(low, round(cols / acceleration)))
        return low

    def _check_call(self, shape: Sequence[int], offset: int | None) -> None:
        if len(shape) < 2 or shape[-1] < 1:
            raise InputError(
                f"shape is {tuple(shape)}, but must be (..., rows, cols) with at least "
                f"one column"
            )
        highest = max(self.accelerations)
        if highest > shape[-1]:
            raise InputError(
                f"an acceleration is {highest}, but {shape[-1]} columns allow at most "
                f"{shape[-1]}: choose a lower one, or leave out such narrow files"
            )
        if offset is not None and offset < 0:
            raise InputError(f"offset is {offset}, but must be a column: 0 or more")


def _check_center(pattern: str, fraction: float, acceleration: float) -> None:
    if pattern in ("random", "equispaced_fraction") and fraction * acceleration > 1:
        raise InputError(
            f"a center fraction is {fraction}, but alone it must not measure more than "
            f"an acceleration of {acceleration} allows: at most {1 / acceleration:.3g}"
        )
