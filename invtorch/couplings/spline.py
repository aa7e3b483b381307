"""Spline coupling: one part of the state passes through splines given by the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from invtorch._checks import (
    check_bound,
    check_conditioner,
    check_count,
    check_number,
    check_returned,
)
from invtorch.couplings.conditioning import in_its_precision
from invtorch.couplings.partition import (
    Partition,
    Split,
    checked_partition,
    kept_and_moved,
    partition,
    shows_partition,
    unchanged_part,
)
from invtorch.couplings.rational_quadratic import Bins, RationalQuadratic, clamped
from invtorch.keywords import keywords_of
from invtorch.module import OPPOSITE, InvertibleModule
from invtorch.precision import no_autocast
from invtorch.recording import Context

TAILS = ("linear", "circular")

Deferred: TypeAlias = Callable[[], Tensor]  # computes it where it is asked for


class SplineCoupling(InvertibleModule):
    r"""Pass one part of the state through monotone splines given by the other part.

    $$ y_1 = x_1, \qquad y_2 = S_{G(x_1; c)}(x_2) $$

    Each entry of $x_2$ has a spline $S$ of its own: rational quadratic functions on the
    bins of the interval $[-B, B]$. The inverse solves one quadratic equation for each
    entry, and costs as much as the forward pass. $G$ is evaluated once in each
    direction, and once in the backward pass.

    The mean slopes of the bins and the derivatives at the knots are between $1/b$ and
    $b$. The slope of $S$ is then between $1/b^3$ and $2 b^3/(1 + b^2) < 2b$, so the
    inverse amplifies rounding errors by a bounded factor; without a bound, training
    makes it fail. Parameters of 0 are the identity.

    With `tails="linear"`, entries outside of the interval do not change. With
    `tails="circular"`, the interval is a circle, for angles: $S$ continues
    periodically, $S(x + 2B) = S(x) + 2B$.

    Args:
        conditioner: The network $G$. It takes $x_1$ and the context. For each entry of
            $x_2$ it returns `3 * bins - 1` parameters, or `3 * bins` if circular:
            widths, heights and derivatives. Those of one entry are adjacent along
            `dim`.
        bins: The number of bins.
        tails: `"linear"` or `"circular"`.
        tail_bound: The end $B$ of the interval.
        bound: The bound $b$, larger than 1.
        min_bin_width: The least width of a bin, as a fraction of the interval.
        split: Which entries $x_1$ has, as for `AffineCoupling`; by default half of
            them.
        dim: The axis of the channels; -1 for sequences and vectors.
        swap: Whether $x_2$ conditions $x_1$ instead.

    Shape:
        Any real tensor with at least two entries along `dim`; the output has the same
        shape.

    Raises:
        TypeError: If the conditioner is not an `nn.Module`, an option is of another
            type, or the state is not real.
        ValueError: If an option is out of its range, `split` does not fit the state, or
            the conditioner returns a tensor of the wrong shape.

    Examples:
        >>> from torch import nn
        >>> layer = SplineCoupling(nn.Linear(1, 3 * 8 - 1), bins=8)
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-4)
        True

    References:
        Durkan et al., *Neural spline flows*, 2019. arXiv:1906.04032

        Rezende et al., *Normalizing flows on tori and spheres*, 2020. arXiv:2002.02428
    """

    def __init__(
        self,
        conditioner: nn.Module,
        *,
        bins: int = 8,
        tails: str = "linear",
        tail_bound: float = 5.0,
        bound: float = 4.0,
        min_bin_width: float = 1e-3,
        split: Split = None,
        dim: int = 1,
        swap: bool = False,
    ) -> None:
        super().__init__()
        check_count("bins", bins, least=2)
        check_number("tail_bound", tail_bound)
        check_number("min_bin_width", min_bin_width)
        _check_options(tails, tail_bound, bins * min_bin_width)
        if not math.isfinite(check_bound(bound)):
            raise ValueError(f"bound is {bound}, but must be finite")
        self.split, self.dim, self.swap = checked_partition(self, split, dim, swap=swap)
        self.bins = bins
        self.tails = tails
        self.tail_bound = tail_bound
        self.bound = bound
        self.min_bin_width = min_bin_width
        kept, moved = kept_and_moved(self) if dim == 1 else (None, None)
        outputs = None if moved is None else moved * self.parameters_per_entry
        check_conditioner(conditioner, kept, outputs)
        self.conditioner = conditioner

    @property
    def parameters_per_entry(self) -> int:
        """How many parameters the conditioner returns for each entry that moves."""
        return 3 * self.bins - (self.tails == "linear")

    def forward(self, x: Tensor, *context: Any, **named: Any) -> Tensor:
        """Apply the splines."""
        return self._mapped(x, Context(context, named), "forward")[0]

    def inverse(self, y: Tensor, *context: Any, **named: Any) -> Tensor:
        """Apply the inverse splines."""
        return self._mapped(y, Context(context, named), "inverse")[0]

    def forward_and_log_det(
        self, x: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Return `y` and the sum of the logarithms of the slopes."""
        y, log_det = self._mapped(x, Context(context, named), "forward")
        return y, log_det()

    def inverse_and_log_det(
        self, y: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Return `x` and minus the sum of the logarithms of the slopes there."""
        x, log_det = self._mapped(y, Context(context, named), "inverse")
        return x, -log_det()

    def replay(self, y: Tensor, *context: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Rebuild `x`, and compute `y` from it, in one evaluation of $G$."""
        x, y, _ = self._replay(y, Context(context, named), "forward")
        return x, y

    def replay_inverse(
        self, x: Tensor, *context: Any, **named: Any
    ) -> tuple[Tensor, Tensor]:
        """Rebuild `y`, and compute `x` from it, in one evaluation of $G$."""
        y, x, _ = self._replay(x, Context(context, named), "inverse")
        return y, x

    def replay_and_log_det(self, y: Tensor, *context: Any, **named: Any) -> Any:
        """Same as `replay`, with the log-determinant."""
        x, y, log_det = self._replay(y, Context(context, named), "forward")
        return x, (y, log_det())

    def replay_inverse_and_log_det(self, x: Tensor, *context: Any, **named: Any) -> Any:
        """Same as `replay_inverse`, with the log-determinant."""
        y, x, log_det = self._replay(x, Context(context, named), "inverse")
        return y, (x, -log_det())

    unchanged = unchanged_part

    def _keywords(self) -> frozenset[str] | None:
        return keywords_of(self.conditioner)

    def extra_repr(self) -> str:
        """Show the options."""
        return (
            f"bins={self.bins}, tails={self.tails!r}, tail_bound={self.tail_bound}, "
            f"bound={self.bound}, {shows_partition(self)}"
        )

    def _mapped(
        self, state: Tensor, context: Context, direction: str
    ) -> tuple[Tensor, Deferred]:
        parts = partition(self, state)
        kept, moved = parts.kept(state), parts.moved(state)
        spline, turns = self._spline(kept, moved, context), self._turns(moved)
        bins = self._bins(spline, moved, turns, direction)
        moved, log_slope = self._through(bins, moved, turns, direction)
        return parts.joined(kept, moved), lambda: _sum(parts, log_slope())

    def _replay(
        self, output: Tensor, context: Context, direction: str
    ) -> tuple[Tensor, Tensor, Deferred]:
        state = output.detach().clone().requires_grad_()
        parts = partition(self, state)
        kept, moved = parts.kept(state), parts.moved(output)
        spline, turns = self._spline(kept, moved, context), self._turns(moved)
        bins = self._bins(spline, moved, turns, OPPOSITE[direction])
        with torch.no_grad():
            before, _ = self._through(bins, moved, turns, OPPOSITE[direction])
            parts.update_(state.data, lambda part: part.copy_(before))
        moved = parts.moved(state)
        # an entry and its image are in the same bin, but for rounding
        if moved.dtype != spline.x.dtype:
            turns = self._turns(moved)
            bins = self._bins(spline, moved, turns, direction)
        moved, log_slope = self._through(bins, moved, turns, direction)
        return state, parts.joined(kept, moved), lambda: _sum(parts, log_slope())

    def _spline(
        self, kept: Tensor, moved: Tensor, context: Context
    ) -> RationalQuadratic:
        """Evaluate the conditioner, and return the splines of its parameters.

        In half precision the knots would lie on top of each other.
        """
        if not moved.is_floating_point():
            raise TypeError(
                f"a state in {moved.dtype} has no splines, which are functions of real "
                f"numbers: give SplineCoupling a floating state (`x.float()`)"
            )
        raw: Tensor = in_its_precision(self.conditioner, kept, context)
        dim, count = self.dim % moved.ndim, self.parameters_per_entry
        shape = [*moved.shape[:dim], count * moved.shape[dim], *moved.shape[dim + 1 :]]
        check_returned(type(self.conditioner).__name__, raw, tuple(shape), moved)
        apart = (*moved.shape[: dim + 1], count, *moved.shape[dim + 1 :])
        raw = raw.to(torch.promote_types(moved.dtype, torch.float32))
        raw = raw.reshape(apart).movedim(dim + 1, -1)
        with no_autocast(moved):
            return RationalQuadratic.of(
                raw, self.bins, self.tail_bound, self.bound, self.min_bin_width
            )

    def _bins(
        self,
        spline: RationalQuadratic,
        entries: Tensor,
        turns: Tensor | None,
        direction: str,
    ) -> Bins:
        values = entries.to(spline.x.dtype)
        with no_autocast(entries):
            return spline.bins(self._within(values, turns), direction)

    def _through(
        self, bins: Bins, entries: Tensor, turns: Tensor | None, direction: str
    ) -> tuple[Tensor, Deferred]:
        """Apply splines or their inverses; return a function for the log-slopes too."""
        values = entries.to(bins.x.dtype)
        inside = values.abs() < self.tail_bound
        function = bins.forward if direction == "forward" else bins.inverse
        with no_autocast(entries):
            result, theta = function(self._within(values, turns))
            if turns is None:
                result = torch.where(inside, result, values)
            else:
                result = result + turns

        def log_slope() -> Tensor:
            with no_autocast(entries):
                slopes = bins.log_slope(theta)
                if turns is None:
                    slopes = torch.where(inside, slopes, 0)
            return slopes.to(entries.dtype)

        return result.to(entries.dtype), log_slope

    def _turns(self, entries: Tensor) -> Tensor | None:
        """Return by how much entries of circles are off, in whole turns."""
        if self.tails == "linear":
            return None
        length = 2 * self.tail_bound
        wide = torch.promote_types(entries.dtype, torch.float32)
        values = entries.detach().to(wide)
        return length * ((values + self.tail_bound) / length).floor()

    def _within(self, values: Tensor, turns: Tensor | None) -> Tensor:
        end = self.tail_bound
        if turns is None:  # a gradient of NaN outside, times 0, would be NaN
            return values.clamp(-end, end)
        return clamped(values - turns, -end, end)


def _sum(parts: Partition, log_slope: Tensor) -> Tensor:
    return parts.only_moved(log_slope).flatten(1).sum(1)


def _check_options(tails: str, tail_bound: float, least_total: float) -> None:
    if tails not in TAILS:
        raise ValueError(f"tails is {tails!r}, but must be one of {TAILS}")
    if not 0 < tail_bound < math.inf:
        raise ValueError(
            f"tail_bound is {tail_bound}, but must be larger than 0 and finite"
        )
    if not 0 < least_total < 1:
        raise ValueError(
            f"min_bin_width times bins is {least_total}, but must be between 0 and 1: "
            f"widths are fractions of the interval"
        )
