"""What every mask function is, wherever its masks come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from torch import Tensor

Seed: TypeAlias = int | Sequence[int] | None


class Masks(Protocol):
    """A function of the shape of k-space and a seed that returns a mask.

    `MaskFunction` draws columns, `PoissonMaskFunction` slices and columns, and
    `MaskFile` has one mask for all.
    """

    @property
    def encodes_slices(self) -> bool:
        """Whether masks differ from slice to slice, as those of 3-D acquisitions do."""
        ...

    def __call__(
        self, shape: Sequence[int], offset: int | None = None, seed: Seed = None
    ) -> tuple[Tensor, int]:
        """Return a mask.

        Args:
            shape: Shape of the k-space, `(..., rows, cols)`.
            offset: First column of a regular pattern; others have no use for it.
            seed: What a random mask follows from; `None` draws a fresh one.

        Returns:
            The mask, float32, which broadcasts against k-space: `(1, ..., 1, cols)`, or
            `(1, ..., slices, 1, cols)` where slices are phase-encoded too; and the
            number of columns in its fully sampled center.
        """
        ...


def volume_seed(name: str) -> tuple[int, ...]:
    """Return the seed of a volume, which follows from its file name.

    Examples:
        >>> volume_seed("a.h5")
        (97, 46, 104, 53)
    """
    return tuple(map(ord, name))
