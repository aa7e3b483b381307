"""The errors of rebuilt states, and runs of rebuilt states.

A run is a sequence of states, each rebuilt from the one before. It starts below a state
that is kept exactly, and is listed from the last state of the pass to the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

# An error "appears at once" in a layer if the layer multiplies the error by a factor
# between these two, which depends on the tolerance (see `appeared`).
SUDDEN = (4.0, 100.0)


class Measured(NamedTuple):
    """How far one state of the backward pass was from that of the forward pass.

    Attributes:
        layer: The layer that was inverted, or evaluated again.
        state: Which state: its input if it was inverted, its output if evaluated again.
        error: The distance, relative to the size of the state. It is that of the block
            of samples and channels where it is the largest.
        eps: The eps of the coarsest dtype in which the state was computed, since the
            state kept exactly above it.
        block: The index of that block.
        whole: The distance of the whole state, relative to its size.
    """

    layer: int
    state: int
    error: float
    eps: float
    block: int = 0
    whole: float = 0.0

    @property
    def rebuilt(self) -> bool:
        """Whether the layer was inverted."""
        return self.state == self.layer

    def follows(self, other: Measured) -> bool:
        """Return whether this state was rebuilt from the other one."""
        return self.rebuilt and other.rebuilt and other.state == self.state + 1


def runs(measured: Iterable[Measured]) -> list[list[Measured]]:
    """Group rebuilt states into runs."""
    grouped: list[list[Measured]] = []
    for one in measured:
        if not one.rebuilt:
            continue
        if grouped and one.follows(grouped[-1][-1]):
            grouped[-1].append(one)
        else:
            grouped.append([one])
    return grouped


def until_first(
    run: list[Measured], condition: Callable[[Measured], bool]
) -> list[Measured]:
    """Return a run down to the first state that meets a condition; `[]` if none."""
    for i, one in enumerate(run):
        if condition(one):
            return run[: i + 1]
    return []


def appeared(run: list[Measured], eps: float, allowed: float) -> Measured | None:
    """Return the state where the error of a run appeared at once, if there is one.

    Args:
        run: The run, last state first.
        eps: The relative rounding of one layer.
        allowed: The tolerance. For a coarse conditioner it is only a few times its
            rounding, so that a factor of 100 would never occur. Then the limit is half
            of their ratio, at least 4.
    """
    if not eps:  # integers, whose errors are no rounding
        return next((one for one in run if one.error > 0), None)
    least, most = SUDDEN
    sudden = min(max(allowed / 2 / eps, least), most)
    before = [eps, *(max(one.error, eps) for one in run)]
    factors = [one.error / b for one, b in zip(run, before, strict=False)]
    place = max(range(len(run)), key=factors.__getitem__)
    return run[place] if factors[place] >= sudden else None
