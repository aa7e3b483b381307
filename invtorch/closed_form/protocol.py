"""The methods of a closed form, and the sums of parameter gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeAlias

from torch import Tensor


class Gradients:
    """The gradients of some tensors. Each is the sum of the parts added for its tensor.

    Args:
        needed: The tensors. Gradients of other tensors are ignored when added, and need
            not be computed.
    """

    def __init__(self, needed: Iterable[Tensor]) -> None:
        self._sums: dict[int, Tensor | None] = dict.fromkeys(map(id, needed))

    def needs(self, *tensors: Tensor) -> bool:
        """Return whether the gradient of at least one of the tensors is needed."""
        return any(id(tensor) in self._sums for tensor in tensors)

    def add(self, tensor: Tensor, gradient: Tensor) -> None:
        """Add a part of the gradient of a tensor."""
        place = id(tensor)
        if place in self._sums:
            before = self._sums[place]
            self._sums[place] = gradient if before is None else before + gradient

    def of(self, tensor: Tensor) -> Tensor | None:
        """Return the gradient of a tensor, or `None` if nothing was added for it."""
        return self._sums.get(id(tensor))


# Maps the gradient of the output to the gradient of the input, and adds the gradients
# of parameters to a `Gradients`. It can be called only once: it frees saved tensors.
PullBack: TypeAlias = Callable[[Tensor, Gradients], Tensor]


class Function(Protocol):
    """The closed form of a network: a function of its input and of its own tensors.

    It is a named tuple of tensors, numbers and other functions, so that its tensors can
    be replaced. It uses no random numbers, hooks or modules, and has no side effects.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output, differentiable by autograd."""

    def with_pull_back(self, x: Tensor) -> tuple[Tensor, PullBack]:
        """Return the output and a function that computes its derivative."""


# The `PullBack` of $x \mapsto x \pm s(x)$. Its arguments are the gradient of the
# output, the input, the sign, and the `Gradients` that receives those of parameters.
ShiftPullBack: TypeAlias = Callable[[Tensor, Tensor, int, Gradients], Tensor]


class Shift(Protocol):
    r"""The closed form of a layer whose shift is the same at its input and output.

    $y = x + s(x)$ with $s(y) = s(x)$, so that $x = y - s(y)$. One evaluation of $s$
    inverts the layer and gives its derivative.
    """

    def shifted(self, state: Tensor, sign: int) -> Tensor:
        r"""Return `state` $\pm s($`state`$)$, differentiable by autograd."""

    def with_pull_back(self, state: Tensor, sign: int) -> tuple[Tensor, ShiftPullBack]:
        r"""Return the same and a function that computes the derivative."""
