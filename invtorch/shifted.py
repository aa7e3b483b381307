"""A layer that adds to its input, evaluated again."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


class Shifted(NamedTuple):
    r"""The replay of a layer whose output is its input with a part of it shifted.

    $$ y = x \pm E\,s(Kx) $$

    $E$ puts $s$ on the last entries along an axis, on all of them if it has as many.
    Then $\bar x = \bar y + K^\top \bar k$, where $\bar k$ is what $\pm E^\top \bar y$
    becomes on its way back through $s$. The sum needs no graph, and what is held until
    then is the graph of $s$ without its values.

    Attributes:
        state: The rebuilt input $x$, without a graph.
        kept: $Kx$, its first entries or all of it: the leaf that $s$ depends on.
        edge: Where the graph of $s$ ends, if it needs a gradient.
        size: The entries of $s$ along the axis.
        dim: The axis.
        sign: 1 or -1.
    """

    state: Tensor
    kept: Tensor
    edge: GradientEdge | None
    size: int
    dim: int
    sign: int

    @classmethod
    def by(
        cls, shift: Tensor, state: Tensor, kept: Tensor, dim: int, sign: int
    ) -> Self:
        """Keep of a shift what is needed to differentiate it."""
        edge = get_gradient_edge(shift) if shift.requires_grad else None
        return cls(state, kept, edge, shift.shape[dim], dim, sign)

    def cotangent(self, grad: Tensor) -> Tensor:
        """Return the gradient of the shift, given that of the output."""
        tail = grad.narrow(self.dim, grad.shape[self.dim] - self.size, self.size)
        return tail if self.sign > 0 else -tail

    def gradient(self, grad: Tensor, of_kept: Tensor | None) -> Tensor:
        """Return the gradient of the input, given those of the output and of `kept`."""
        if of_kept is None:
            return grad
        if of_kept.shape == grad.shape:
            return grad + of_kept
        whole = grad.clone()
        whole.narrow(self.dim, 0, of_kept.shape[self.dim]).add_(of_kept)
        return whole
