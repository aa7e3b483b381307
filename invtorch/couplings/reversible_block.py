"""Reversible block: two parts of the state shift each other."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invtorch._checks import check_conditioner
from invtorch.couplings.conditioning import ShiftFunction, rebuild, shift_of
from invtorch.couplings.partition import (
    Partition,
    Split,
    checked_partition,
    kept_and_moved,
    partition,
    shows_partition,
)
from invtorch.keywords import all_keywords, keywords_of
from invtorch.module import VolumePreserving
from invtorch.recording import Context
from invtorch.replay import ShiftGraph


class ReversibleBlock(VolumePreserving):
    r"""Shift one part of the channels by a function of the other, and then vice versa.

    $$ y_1 = x_1 + f(x_2; c), \qquad y_2 = x_2 + g(y_1; c) $$

    The inverse subtracts the same shifts in reverse order,

    $$ x_2 = y_2 - g(y_1; c), \qquad x_1 = y_1 - f(x_2; c), $$

    so $f$ and $g$ can be any networks. Each is evaluated once in each direction, and
    once in the backward pass. This is the map of two `AdditiveCoupling`s, but a
    container keeps and compares one state instead of two. It is the block of
    reversible residual networks, and with attention as $f$, a feed-forward network as
    $g$ and `dim=-1` that of reversible transformers.

    The inverse evaluates $g$ before $f$. Where both draw random numbers, as dropout
    does, each draws those of the forward pass again. If $f$ and $g$ are one module that
    draws, the guard raises: set `block.memory = "checkpoint"`.

    Args:
        f: The network that shifts $x_1$. It takes $x_2$ and the context, and returns a
            tensor of the shape of $x_1$.
        g: The network that shifts $x_2$. It takes $y_1$ and the context.
        split: Which entries $x_1$ has, as for `AdditiveCoupling`; by default half of
            them.
        dim: The axis of the channels; -1 for sequences and vectors.

    Shape:
        Any tensor with at least two entries along `dim`; the output has the same shape.

    Raises:
        TypeError: If $f$ or $g$ is not an `nn.Module`, or the state has an integer
            dtype and a shift does not.
        ValueError: If `split` leaves one part empty or does not fit the state, or a
            shift has the wrong shape.

    Examples:
        >>> from torch import nn
        >>> layer = ReversibleBlock(nn.Linear(2, 2), nn.Linear(2, 2), dim=-1)
        >>> x = torch.randn(1, 5, 4)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True

    References:
        Gomez et al., *The reversible residual network*, 2017. arXiv:1707.04585
    """

    def __init__(
        self, f: nn.Module, g: nn.Module, *, split: Split = None, dim: int = 1
    ) -> None:
        super().__init__()
        placed = checked_partition(self, split, dim, swap=False)
        self.split, self.dim, self.swap = placed
        first, second = kept_and_moved(self) if dim == 1 else (None, None)
        check_conditioner(f, second, first, name="f")
        check_conditioner(g, first, second, name="g")
        self.f = f
        self.g = g

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        """Add both shifts."""
        parts = partition(self, x)
        x1, x2 = parts.kept(x), parts.moved(x)
        y1 = x1 + self._shift_first(parts, x2, x1, Context(context, named))
        y2 = x2 + self._shift_second(parts, y1, x2, Context(context, named))
        return parts.joined(y1, y2)

    def inverse(self, y: Tensor, *context: Any, **named: Any) -> Tensor:
        """Subtract both shifts, in reverse order."""
        parts = partition(self, y)
        y1, y2 = parts.kept(y), parts.moved(y)
        x2 = y2 - self._shift_second(parts, y1, y2, Context(context, named))
        x1 = y1 - self._shift_first(parts, x2, y1, Context(context, named))
        return parts.joined(x1, x2)

    def replay(self, y: Tensor, *context: Any, **named: Any) -> ShiftGraph:
        """Rebuild `x` and return the graph of the shifts, in one evaluation of each."""
        return rebuild(y, self._shifts(y, Context(context, named)), sign=1)

    def replay_inverse(self, x: Tensor, *context: Any, **named: Any) -> ShiftGraph:
        """Rebuild `y` and return the graph of the shifts, in one evaluation of each."""
        return rebuild(x, self._shifts(x, Context(context, named))[::-1], sign=-1)

    def _keywords(self) -> frozenset[str] | None:
        return all_keywords(map(keywords_of, (self.f, self.g)))

    def extra_repr(self) -> str:
        """Show where the state is split."""
        return shows_partition(self)

    def _shifts(
        self, state: Tensor, context: Context
    ) -> list[tuple[ShiftFunction, Partition]]:
        """Return the shifts of the forward direction, in order."""

        def first(kept: Tensor, moved: Tensor) -> Tensor:
            return shift_of(self.f, kept, moved, context)

        def second(kept: Tensor, moved: Tensor) -> Tensor:
            return shift_of(self.g, kept, moved, context)

        parts = partition(self, state)
        return [(first, partition(self, state, other=True)), (second, parts)]

    def _shift_first(
        self, parts: Partition, x2: Tensor, x1: Tensor, context: Context
    ) -> Tensor:
        return parts.only_kept(shift_of(self.f, x2, x1, context))

    def _shift_second(
        self, parts: Partition, y1: Tensor, x2: Tensor, context: Context
    ) -> Tensor:
        return parts.only_moved(shift_of(self.g, y1, x2, context))
