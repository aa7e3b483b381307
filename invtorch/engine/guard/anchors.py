"""Anchors: which states of a pass are kept exactly."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from invtorch._checks import check_count
from invtorch.engine.guard.measurement import Measured, appeared, runs

AnchorsArgument: TypeAlias = int | Sequence[int] | str

EVENLY = 8
BUDGET = 16.0  # allowed error between two anchors, in eps of the state
# Anchors are placed for BUDGET / MARGIN, because batches differ; 1.75 is empirical.
MARGIN = 1.75
ROUNDING = 0.25  # estimate of the error that one layer adds, in eps


class Anchors:
    r"""The requested anchors, and for `"auto"` the measurements that place them.

    `"auto"` starts with eight, spread evenly. Each backward pass measures the errors of
    rebuilt states. The anchors of the next pass are placed so that, according to these
    measurements, the error between two anchors stays below 16 eps of the state's dtype.
    The placement has a margin. The first passes, and a batch unlike those before, may
    exceed it.

    Args:
        requested: How many states are kept, spread evenly; their indices; or `"auto"`.

    Raises:
        TypeError: If it is not a whole number, a sequence of them, or a string.
        ValueError: If a number is negative, or the string is not `"auto"`.
    """

    def __init__(self, requested: AnchorsArgument) -> None:
        if isinstance(requested, str) and requested != "auto":
            raise ValueError(
                f"anchors is {requested!r}, but must be a number of states, their "
                f"indices, or 'auto'"
            )
        self.requested: AnchorsArgument = (
            requested if isinstance(requested, str) else _counts(requested)
        )
        self.gains: dict[int, float] | None = None
        self.growth = 0.0
        self.added: frozenset[int] = frozenset()

    def places(self, layers: int) -> frozenset[int]:
        """Return the indices of the states that are kept in a pass of `layers`.

        Raises:
            ValueError: If an index is beyond the pass.
        """
        if isinstance(self.requested, int):
            return frozenset(_evenly(self.requested, layers))
        if not isinstance(self.requested, str):
            return frozenset(_inside(self.requested, layers))
        if self.gains is None:
            return self.added.union(_evenly(EVENLY, layers))
        return self.added.union(_within_budget(self.gains, layers))

    @property
    def between_passes(self) -> int:
        """The number of states kept between consecutive passes, as in `b(a(x))`."""
        if isinstance(self.requested, int):
            return self.requested
        return EVENLY if isinstance(self.requested, str) else len(self.requested)

    def learn(self, measured: list[Measured], eps: float) -> None:
        """Update the placement from the errors of a backward pass, last state first."""
        if not eps:
            return
        gains = dict(self.gains or {})
        for run in runs(measured):
            flips = run[-1].eps > eps  # a rounding of a coarser conditioner may flip
            rate = _rate([min(one.error, 1.0) / eps for one in run], flips)
            for one in run:
                gains[one.layer] = (rate + gains.get(one.layer, rate)) / 2
        self.gains = gains

    def add(
        self,
        layers: int,
        breaches: Iterable[list[Measured]],
        computed: float,
        allowed: float,
    ) -> list[int]:
        """Add anchors, so that these runs of rebuilt states stay within the tolerance.

        If the error appears in one layer, its input is kept. If it grows over several
        layers, anchors are added at half of the distance after which it exceeded the
        tolerance. `"auto"` keeps them in addition to those that it places.

        Args:
            layers: The number of layers of the pass.
            breaches: For each run, its states down to the first that exceeds the
                tolerance.
            computed: The relative rounding of one layer.
            allowed: The error that is allowed.

        Returns:
            The indices of the states added.
        """
        present, added = self.places(layers), set[int]()
        for run in breaches:
            suspect = appeared(run, computed, allowed)
            if suspect:
                added.add(suspect.state)
                continue
            end = max((p for p in present if p < run[-1].state), default=0)
            half = max(len(run) // 2, 1)
            added.update(range(run[0].state + 1 - half, end, -half))
        if self.requested == "auto":
            added -= self.added
            self.added |= added
        else:
            added -= present
            self.requested = tuple(sorted(present | added))
        return sorted(added)


def _counts(requested: Any) -> int | tuple[int, ...]:
    if isinstance(requested, Iterable):
        return tuple(map(_count, requested))
    return _count(requested)


def _count(requested: Any) -> int:
    check_count("anchors", requested, least=0)
    return operator.index(requested)


def _evenly(count: int, layers: int) -> list[int]:
    parts = min(count, layers - 1) + 1
    return [i * layers // parts for i in range(1, parts)]


def _inside(indices: Sequence[int], layers: int) -> Sequence[int]:
    beyond = [i for i in indices if i >= layers]
    if beyond:
        raise ValueError(
            f"anchors has the indices {beyond}, but a pass has {layers} layers: use "
            f"indices from 0 to {layers - 1}"
        )
    return indices


def _rate(errors: list[float], flips: bool) -> float:
    """Return by how much one layer of a run increases the logarithm of the error.

    Only the states until the error first exceeds the planned one count, because it
    grows faster at first than later. If a rounding of a coarser conditioner may flip,
    the error can jump far beyond, and the whole run counts.

    Args:
        errors: The errors of the run, last state first, in eps.
        flips: Whether the conditioners are coarser than the state.
    """
    beyond = (i for i, error in enumerate(errors, 1) if error > BUDGET / MARGIN)
    within = errors if flips else errors[: next(beyond, len(errors))]
    return math.log(max(*within, 1.0) / ROUNDING) / len(within)


def _within_budget(gains: dict[int, float], layers: int) -> list[int]:
    """Place an anchor wherever the summed gains would exceed the budget."""
    places, spent = [], 0.0
    for layer in range(layers - 1, 0, -1):
        spent += gains.get(layer, 0.0)
        if spent > math.log(BUDGET / MARGIN / ROUNDING):
            places.append(layer)
            spent = 0.0
    return places
