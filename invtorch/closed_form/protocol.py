"""What a closed form can do, and where the gradients of parameters are summed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from torch import Tensor


class Gradients:
    """The gradients of some tensors, each the sum of what was added for it.

    Args:
        needed: The tensors. What is added for others is dropped, and need not be
            computed.
    """

    def __init__(self, needed: Iterable[Tensor]) -> None:
        self._sums: dict[int, Tensor | None] = dict.fromkeys(map(id, needed))

    def needs(self, *tensors: Tensor) -> bool:
        """Return whether the gradient of one of them is needed."""
        return any(id(tensor) in self._sums for tensor in tensors)

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        """Add a part of the gradient of a tensor."""
        place = id(tensor)
        if place in self._sums:
            before = self._sums[place]
            self._sums[place] = gradient if before is None else before + gradient

    def of(self, tensor: Tensor) -> Tensor | None:
        """Return the gradient of a tensor, if it is needed and there is one."""
        return self._sums.get(id(tensor))


# From the gradient of the output to that of the input; adds those of parameters. It may
# be called once, since it frees what it no longer needs on its way.
PullBack: TypeAlias = Callable[[Tensor, Gradients], Tensor]


class Function(Protocol):
    """A network as a function of its input and of the tensors that it holds.

    It is a named tuple of tensors, numbers and other functions, so that its tensors can
    be replaced. It draws no random numbers, calls no hooks, reads no module and changes
    nothing.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output, by operations that autograd can differentiate."""

    def with_pull_back(self, x: Tensor) -> tuple[Tensor, PullBack]:
        """Return the output, and its derivative, without the help of autograd."""


# The same of $x \mapsto x \pm s(x)$: it is given the gradient of the output, the input,
# the sign, and where the gradients of parameters go.
ShiftPullBack: TypeAlias = Callable[[Tensor, Tensor, int, Gradients], Tensor]


class Shift(Protocol):
    r"""A layer that adds to its input what either of its ends gives.

    $y = x + s(x)$ with $s(y) = s(x)$, so that $x = y - s(y)$, and one evaluation of $s$
    gives the other end and the derivative.
    """

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        r"""Return `state` $\pm s($`state`$)$, differentiable by autograd."""

    def with_pull_back(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullBack]:
        r"""Return the same, and the derivative of a shift between these ends."""
