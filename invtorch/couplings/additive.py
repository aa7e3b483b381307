"""Additive coupling: one part of the state shifts the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from invtorch._checks import check_conditioner
from invtorch.couplings.conditioning import rebuild, shift_of
from invtorch.couplings.partition import (
    Split,
    checked_partition,
    kept_and_moved,
    partition,
    shows_partition,
    unchanged_part,
)
from invtorch.grid import check_exact, check_spacing, snap
from invtorch.keywords import keywords_of
from invtorch.module import VolumePreserving
from invtorch.recording import Context
from invtorch.replay import ShiftGraph


class AdditiveCoupling(VolumePreserving):
    r"""Shift one part of the channels by a function of the others.

    $$ y_1 = x_1, \qquad y_2 = x_2 + G(x_1; c) $$

    The inverse subtracts the same shift, $x_2 = y_2 - G(y_1; c)$, so $G$ can be any
    network. It is evaluated once in each direction.

    Args:
        conditioner: The network $G$. It takes $x_1$ and the context, and returns a
            tensor of the shape of $x_2$.
        split: Which entries $x_1$ has: their number along `dim`, by default half of
            them, rounded down; the sizes of $x_1$ and $x_2$; or a boolean mask. A mask
            with one axis selects entries along `dim`. A mask with more axes, which
            broadcasts to the last axes of the state, and `"checkerboard"` select single
            positions: then $G$ takes the state with zeros in place of $x_2$, and
            returns a tensor of the shape of the state, of which the entries in place of
            $x_1$ are not used.
        dim: The axis of the channels; -1 for sequences and vectors.
        swap: Whether $x_2$ conditions $x_1$ instead.
        grid: Spacing of a fixed-point grid, a power of two. The shift is rounded to the
            grid, and a state on the grid (`invtorch.grid.snap`) is rebuilt exactly, bit
            for bit, at any depth. Every call checks that the state is on the grid and
            in its range. The check synchronizes with the device.

    Shape:
        Any tensor with at least two entries along `dim`; the output has the same shape.

    Raises:
        TypeError: If the conditioner is not an `nn.Module`, or the state has an integer
            dtype and the shift does not.
        ValueError: If `split` leaves one part empty or does not fit the state, the
            shift does not have the shape of $x_2$, or `grid` is not a power of two.
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
        split: Split = None,
        dim: int = 1,
        swap: bool = False,
        grid: float | None = None,
    ) -> None:
        super().__init__()
        self.split, self.dim, self.swap = checked_partition(self, split, dim, swap=swap)
        check_conditioner(
            conditioner, *(kept_and_moved(self) if dim == 1 else (None, None))
        )
        self.conditioner = conditioner
        self.grid = None if grid is None else check_spacing(grid)

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        """Add the shift."""
        return self._shifted(x, Context(context, named), sign=1)

    def inverse(self, y: Tensor, *context: Any, **named: Any) -> Tensor:
        """Subtract the shift."""
        return self._shifted(y, Context(context, named), sign=-1)

    def replay(self, y: Tensor, *context: Any, **named: Any) -> ShiftGraph:
        """Rebuild `x` and return the graph of the shift, in one evaluation of $G$."""
        return self._replay(y, Context(context, named), sign=1)

    def replay_inverse(self, x: Tensor, *context: Any, **named: Any) -> ShiftGraph:
        """Rebuild `y` and return the graph of the shift, in one evaluation of $G$."""
        return self._replay(x, Context(context, named), sign=-1)

    unchanged = unchanged_part

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.conditioner)

    def extra_repr(self) -> str:
        """Show where the state is split, and the grid."""
        grid = f", grid={self.grid}" if self.grid else ""
        return f"{shows_partition(self)}{grid}"

    def _replay(self, output: Tensor, context: Context, sign: int) -> ShiftGraph:
        def shift(kept: Tensor, moved: Tensor) -> Tensor:
            return self._shift(kept, moved, context)

        return rebuild(output, [(shift, partition(self, output))], sign)

    def _shifted(self, state: Tensor, context: Context, sign: int) -> Tensor:
        if self.grid:
            check_exact(state, self.grid)
        parts = partition(self, state)
        kept, moved = parts.kept(state), parts.moved(state)
        # not assigned: the shift is freed before the parts are joined
        moved = torch.add(moved, self._shift(kept, moved, context), alpha=sign)
        if self.grid:
            check_exact(moved, self.grid)
        return parts.joined(kept, moved)

    def _shift(self, kept: Tensor, moved: Tensor, context: Context) -> Tensor:
        if self.grid:
            kept = kept.contiguous()  # results must not depend on the memory layout
        shift = shift_of(self.conditioner, kept, moved, context)
        return snap(shift, self.grid) if self.grid else shift
