"""What a pure function is asked for, and where its gradients go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from torch import Tensor


class Gradients:
    """The gradients of some tensors, each the sum of what was added for it.

    Args:
        wanted: The tensors; what is added for others is dropped, and need not be
            computed.
    """

    def __init__(self, wanted: Iterable[Tensor]) -> None:
        self._found: dict[int, Tensor | None] = dict.fromkeys(map(id, wanted))

    def wants(self, *tensors: Tensor) -> bool:
        """Tell whether the gradient of one of them is wanted."""
        return any(id(tensor) in self._found for tensor in tensors)

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        """Add a part of the gradient of a tensor."""
        place = id(tensor)
        if place in self._found:
            before = self._found[place]
            self._found[place] = gradient if before is None else before + gradient

    def of(self, tensor: Tensor) -> Tensor | None:
        """Return the gradient of a tensor, if it is wanted and there is one."""
        return self._found.get(id(tensor))


# From the gradient of the output to that of the input; adds those of parameters. It may
# be called once, since it frees what it no longer needs on its way.
Pullback: TypeAlias = Callable[[Tensor, Gradients], Tensor]


class PureFunction(Protocol):
    """A network whose output is decided by its input and the tensors it holds alone.

    It is a named tuple of tensors, numbers and other pure functions, so that others can
    stand in for its tensors. It draws no random numbers, calls no hooks, reads no
    module and changes nothing.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output, by operations that autograd can differentiate."""

    def with_pullback(self, x: Tensor) -> tuple[Tensor, Pullback]:
        """Return the output, and its derivative, without the help of autograd."""


# The same of $x \mapsto x \pm s(x)$: it is given the gradient of the output, the input,
# the sign, and where the gradients of parameters go.
ShiftPullback: TypeAlias = Callable[[Tensor, Tensor, int, Gradients], Tensor]


class Shift(Protocol):
    r"""A pure function that adds to a state what both of its ends agree on.

    $y = x + s(x)$ with $s(y) = s(x)$, so that $x = y - s(y)$, and one evaluation of $s$
    gives the other end and the derivative.
    """

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        r"""Return `state` $\pm s($`state`$)$, differentiable by autograd."""

    def with_pullback(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullback]:
        r"""Return the same, and the derivative of a shift between these ends."""
