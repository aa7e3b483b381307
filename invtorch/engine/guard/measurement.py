"""The errors of rebuilt states, and rows of them between states kept exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

SUDDEN = (4.0, 100.0)  # factors by which one layer raises an error that appears at once


class Measured(NamedTuple):
    """How far one state of the backward pass was from that of the forward pass.

    Attributes:
        layer: The layer that was inverted, or evaluated again.
        state: Which state: its input if it was inverted, its output if evaluated again.
        error: The distance, relative to the larger of the layer's input and output.
        eps: The eps of the coarsest dtype that it was computed in, from the state kept
            exactly above it.
    """

    layer: int
    state: int
    error: float
    eps: float

    @property
    def rebuilt(self) -> bool:
        """Whether the layer was inverted."""
        return self.state == self.layer

    def follows(self, other: Measured) -> bool:
        """Tell whether this state was rebuilt from that one."""
        return self.rebuilt and other.rebuilt and other.state == self.state + 1


def runs(measured: Iterable[Measured]) -> list[list[Measured]]:
    """Group rebuilt states into rows that start below a state kept exactly."""
    rows: list[list[Measured]] = []
    for one in measured:
        if not one.rebuilt:
            continue
        if rows and one.follows(rows[-1][-1]):
            rows[-1].append(one)
        else:
            rows.append([one])
    return rows


def until_first(
    run: list[Measured], condition: Callable[[Measured], bool]
) -> list[Measured]:
    """Return a run down to the first state that meets a condition; `[]` if none."""
    for i, one in enumerate(run):
        if condition(one):
            return run[: i + 1]
    return []


def appeared(run: list[Measured], eps: float, allowed: float) -> Measured | None:
    """Return where the error of a run was there at once, unless it grew slowly.

    Args:
        run: States from the top down.
        eps: The relative rounding of one layer.
        allowed: The error that is allowed. A coarse conditioner leaves little room
            between its rounding and this: a leap of a hundred times would never be
            seen.
    """
    least, most = SUDDEN
    sudden = min(max(allowed / 2 / eps, least), most)
    before = [eps, *(max(one.error, eps) for one in run)]
    factors = [one.error / b for one, b in zip(run, before, strict=False)]
    place = max(range(len(run)), key=factors.__getitem__)
    return run[place] if factors[place] >= sudden else None
