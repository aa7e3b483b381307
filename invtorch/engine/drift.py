"""Drift: by how much rebuilt states differ from those of the forward pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

SUDDEN = (4.0, 100.0)
STEEP = 64.0  # eps that an error may reach where the state grows beyond all digits
LEAP = 10.0  # the growth of one layer that counts: more is a change of units


class Measured(NamedTuple):
    """How far one state of the backward pass was from that of the forward pass.

    Attributes:
        layer: The layer that was inverted, or evaluated again.
        state: Which state: its input if it was inverted, its output if evaluated again.
        error: The distance, relative to the larger of the layer's input and output.
        noise: The eps of the coarsest dtype that it was computed in, from the state
            kept exactly above it.
    """

    layer: int
    state: int
    error: float
    noise: float

    @property
    def rebuilt(self) -> bool:
        """Whether the layer was inverted."""
        return self.state == self.layer

    def follows(self, other: Measured) -> bool:
        """Tell whether this state was rebuilt from that one."""
        return self.rebuilt and other.rebuilt and other.state == self.state + 1

    def after(self, other: Measured) -> Measured:
        """Take over the noise of the state that this one was rebuilt from."""
        if not self.follows(other):
            return self
        return self._replace(noise=max(self.noise, other.noise))


def eps_of(dtype: torch.dtype) -> float:
    """Return the rounding of a dtype; integers have none."""
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0


def rounded(parameters: Iterable[Tensor], device: torch.device) -> set[torch.dtype]:
    """Return what products with these parameters are rounded to inside, if coarser.

    A GPU may round the factors of float32 to TF32, which has the mantissa of float16.
    PyTorch allows it to convolutions, whose weights have more than two axes, unless
    told otherwise, and to products of matrices where told so.
    """
    if device.type != "cuda":
        return set()
    axes = [p.ndim for p in parameters if p.dtype in (torch.float32, torch.complex64)]
    of_convolutions, of_matrices = _in_tf32()
    least = 0 if of_matrices else 3 if of_convolutions else math.inf
    return {torch.float16} if any(n >= least for n in axes) else set()


def _allowed() -> tuple[bool, bool]:
    """Tell whether convolutions, and products of matrices, may round to TF32."""
    backends: Any = torch.backends
    kinds = backends.cudnn.conv, backends.cuda.matmul
    of_convolutions, of_matrices = (kind.fp32_precision == "tf32" for kind in kinds)
    return of_convolutions, of_matrices


# Dynamo does not look into the backends: it takes the answer for a constant.
_in_tf32: Callable[[], tuple[bool, bool]]
_in_tf32 = torch.compiler.assume_constant_result(_allowed)


def tolerance(state: float, computed: float, growth: float = 1.0) -> float:
    """Return how far a rebuilt state may be off, relative to its size.

    Half of the digits of what is computed in, but of half precision nearly all: half of
    its digits would be too few. A finer state is judged by its conditioners, because
    plain autograd in their precision would lose as much.

    Where the state grows by more than one over this precision, small errors of it weigh
    heavily in the gradients: there it may be off by four times the budget of
    `anchors="auto"`, with which gradients were as exact as those of plain autograd.

    Args:
        state: The eps of the state's dtype.
        computed: The eps of the coarsest dtype that the layer computes in.
        growth: By how much the state grows or shrinks in this pass (`growth_of`).
    """
    half = math.sqrt(min(computed, torch.finfo(torch.float32).eps))
    usual = max(math.sqrt(state), half, 4 * computed)
    return min(usual, STEEP * computed) if growth * computed > 1 else usual


def growth_of(sizes: Iterable[float]) -> float:
    """Return by how much a state grows or shrinks on its way.

    Of one layer at most a factor of ten counts: a leap beyond that changes the units in
    which the state is measured, and makes nothing less exact.
    """
    positive = [math.log(size) for size in sizes if size > 0]
    most = math.log(LEAP)
    steps = (min(max(b - a, -most), most) for a, b in itertools.pairwise(positive))
    way = [*itertools.accumulate(steps, initial=0.0)]
    return math.exp(max(way) - min(way))


def runs(measured: Iterable[Measured]) -> list[list[Measured]]:
    """Group rebuilt states into rows that start below a state kept exactly."""
    found: list[list[Measured]] = []
    for one in measured:
        if not one.rebuilt:
            continue
        if found and one.follows(found[-1][-1]):
            found[-1].append(one)
        else:
            found.append([one])
    return found


def until_first(
    run: list[Measured], condition: Callable[[Measured], bool]
) -> list[Measured]:
    """Return a run down to the first state that meets a condition; `[]` if none."""
    for i, one in enumerate(run):
        if condition(one):
            return run[: i + 1]
    return []


def appeared(run: list[Measured], noise: float, allowed: float) -> Measured | None:
    """Return where the error of a run was there at once, unless it grew slowly.

    Args:
        run: States from the top down.
        noise: The relative rounding of one layer.
        allowed: The error that is allowed. A coarse conditioner leaves little room
            between noise and this: a leap of a hundred times would never be seen.
    """
    least, most = SUDDEN
    sudden = min(max(allowed / 2 / noise, least), most)
    before = [noise, *(max(one.error, noise) for one in run)]
    factors = [one.error / b for one, b in zip(run, before, strict=False)]
    place = max(range(len(run)), key=factors.__getitem__)
    return run[place] if factors[place] >= sudden else None
