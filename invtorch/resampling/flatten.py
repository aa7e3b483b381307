"""Flatten the axes of a state into one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from invtorch._checks import check_count
from invtorch.module import VolumePreserving, rearranged


class Flatten(VolumePreserving):
    """Flatten all axes but that of the batch into one.

    The inverse gives the axes back, so their sizes are an argument. Both directions are
    views where the memory layout permits it.

    Args:
        shape: The shape of one sample; or the size of its only axis.

    Shape:
        `(batch, *shape)`; the output is `(batch, entries)`.

    Raises:
        TypeError: If a size is not an integer.
        ValueError: If a size is less than 1, or the state has another shape.

    Examples:
        >>> flatten = Flatten((4, 8, 8))
        >>> y = flatten(torch.randn(2, 4, 8, 8))
        >>> y.shape, flatten.inverse(y).shape
        (torch.Size([2, 256]), torch.Size([2, 4, 8, 8]))
    """

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.shape = tuple(shape) if isinstance(shape, Sequence) else (shape,)
        for size in self.shape:
            check_count("shape", size)

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Return the state with one axis for all entries of a sample."""
        self._check(x, self.shape)
        return x.reshape(len(x), math.prod(self.shape))

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Return the state with its axes."""
        self._check(y, (math.prod(self.shape),))
        return y.reshape(len(y), *self.shape)

    unchanged = rearranged

    def extra_repr(self) -> str:
        """Show the shape of a sample."""
        return f"shape={self.shape}"

    def _check(self, state: Tensor, expected: tuple[int, ...]) -> None:
        if state.shape[1:] != expected:
            raise ValueError(
                f"a state of shape {tuple(state.shape)} has no samples of shape "
                f"{expected}, as Flatten({self.shape}) needs: give it the right shape"
            )
