"""Additive coupling: one part of the state shifts the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import check_conditioner, check_count, check_returned
from invtorch.couplings.conditioning import in_its_precision, split_state
from invtorch.grid import check_exact, check_spacing, snap
from invtorch.module import VolumePreserving
from invtorch.replay import ShiftGraph, start_of


class AdditiveCoupling(VolumePreserving):
    r"""Shift one part of the channels by a function of the others.

    $$ y_1 = x_1, \qquad y_2 = x_2 + G(x_1; c) $$

    The inverse subtracts the same shift, $x_2 = y_2 - G(y_1; c)$, so $G$ can be any
    network. It is evaluated once in each direction.

    Args:
        conditioner: The network $G$. It takes $x_1$ and the context, and returns a
            tensor of the shape of $x_2$.
        split: Number of channels in $x_1$; half of them, rounded down, by default.
        dim: The axis that is split.
        grid: Spacing of a fixed-point grid, a power of two. The shift is rounded to the
            grid, and a state on the grid (`invtorch.grid.snap`) is rebuilt exactly, bit
            for bit, at any depth. Every call checks that the state is on the grid and
            in its range. The check synchronizes with the device.

    Shape:
        Any tensor with at least two entries along `dim`; the output has the same shape.

    Raises:
        TypeError: If the conditioner is not an `nn.Module`, or the state has an integer
            dtype and the shift does not.
        ValueError: If `split` leaves one part empty, or the shift does not have
            the shape of $x_2$, or `grid` is not a power of two.
        RuntimeError: If `grid` is given, and the state is not on it or is out of range.

    Examples:
        >>> from torch import nn
        >>> layer = AdditiveCoupling(nn.Conv2d(2, 2, 3, padding=1))
        >>> x = torch.randn(1, 4, 8, 8)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True

    References:
        Dinh et al., *NICE: Non-linear independent components estimation*, 2014.
        arXiv:1410.8516
    """

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        split: int | None = None,
        dim: int = 1,
        grid: float | None = None,
    ) -> None:
        super().__init__()
        if split is not None:
            check_count("split", split)
        check_conditioner(conditioner, split if dim == 1 else None, None)
        self.conditioner = conditioner
        self.split = split
        self.dim = dim
        self.grid = None if grid is None else check_spacing(grid)

    def forward(self, x: Tensor, *context: Any) -> Tensor:
        """Add the shift."""
        x1, x2 = self._parts(x)
        return self._joined(x1, x2 + self._shift(x1, x2, context))

    def inverse(self, y: Tensor, *context: Any) -> Tensor:
        """Subtract the shift."""
        y1, y2 = self._parts(y)
        return self._joined(y1, y2 - self._shift(y1, y2, context))

    def replay(self, y: Tensor, *context: Any) -> ShiftGraph:
        """Rebuild `x` and return the graph of the shift, in one evaluation of $G$."""
        return self._replay(y, context, sign=1)

    def replay_inverse(self, x: Tensor, *context: Any) -> ShiftGraph:
        """Rebuild `y` and return the graph of the shift, in one evaluation of $G$."""
        return self._replay(x, context, sign=-1)

    def extra_repr(self) -> str:
        """Show where the state is split, and the grid."""
        grid = f", grid={self.grid}" if self.grid else ""
        return f"split={self.split or 'half'}, dim={self.dim}{grid}"

    def _replay(
        self, output: Tensor, context: tuple[Any, ...], sign: int
    ) -> ShiftGraph:
        state = output.detach().clone()
        _, moved = split_state(state, self.split, self.dim)
        # `data` has its own version counter: a change of `moved` is not one of `kept`
        kept, _ = split_state(state.data, self.split, self.dim)
        shift = self._shift(start_of(kept.requires_grad_()), moved, context)
        moved.sub_(shift.detach(), alpha=sign)
        return ShiftGraph.of(shift, state, kept, self.dim, sign)

    def _shift(self, kept: Tensor, moved: Tensor, context: tuple[Any, ...]) -> Tensor:
        if self.grid:
            kept = kept.contiguous()  # results must not depend on the memory layout
        shift: Tensor = in_its_precision(self.conditioner, kept, context)
        name = type(self.conditioner).__name__
        check_returned(name, shift, tuple(moved.shape), moved)
        shift = shift.to(moved.dtype)
        return snap(shift, self.grid) if self.grid else shift

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        if self.grid:
            check_exact(state, self.grid)
        return split_state(state, self.split, self.dim)

    def _joined(self, kept: Tensor, moved: Tensor) -> Tensor:
        if self.grid:
            check_exact(moved, self.grid)
        return torch.cat([kept, moved], self.dim)
