"""Multiplication of the channels with an orthogonal or unitary matrix."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from invtorch.linalg import known_product, mix_channels, rebuilt
from invtorch.module import VolumePreserving


class UnitaryMixing(VolumePreserving):
    """Mix the channels at every position with one matrix whose inverse is its adjoint.

    A subclass defines `_matrix` and sets `dim`, the axis of the channels.
    """

    dim: int

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Multiply with the matrix at every position."""
        return mix_channels(self._matrix(x), x, self.dim)

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Multiply with the adjoint matrix at every position."""
        return mix_channels(self._matrix(y).mH, y, self.dim)

    def replay(self, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x`, and return it with `y` as a function of it."""
        matrix = self._matrix(y)
        x = rebuilt(matrix.mH, y, self.dim)
        return x, known_product(y, matrix, x, self.dim)

    def replay_inverse(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `y`, and return it with `x` as a function of it."""
        matrix = self._matrix(x)
        y = rebuilt(matrix, x, self.dim)
        return y, known_product(x, matrix.mH, y, self.dim)

    def _matrix(self, state: Tensor) -> Tensor:
        """Return the matrix that multiplies the channels of a state."""
        raise NotImplementedError
