"""Replays: a call of a layer evaluated again, and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from invtorch import _torch

Tensors: TypeAlias = tuple[Tensor, ...]
Gradients: TypeAlias = list[Tensor | None]

# Maps the gradients of the outputs, and a flag for each input that needs a gradient, to
# the gradients of the inputs: first the state, then the context and parameters.
PullBack: TypeAlias = Callable[[Sequence[Tensor | None], Sequence[bool]], Gradients]


class Replay(NamedTuple):
    """A call evaluated again.

    Attributes:
        state: Its input state, without a graph.
        outputs: Its outputs, or `()` if only the derivative was needed.
        pull_back: Computes gradients of the inputs from those of the outputs.
    """

    state: Tensors
    outputs: Tensors
    pull_back: PullBack


class Graph(Protocol):
    """The autograd graph of a call, from its input state to its outputs."""

    @property
    def state(self) -> Tensors:
        """The input state."""

    @property
    def outputs(self) -> Tensors:
        """The outputs, if they were computed."""

    @property
    def leaves(self) -> Tensors:
        """The tensors that represent the state at the start of the graph."""

    @property
    def ends(self) -> list[Node]:
        """The last nodes of the graph."""

    def pull_back(
        self,
        others: Tensors,
        grads: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> Gradients:
        """Return the gradients of the state and of `others`, `None` if not needed."""


class FullGraph(NamedTuple):
    """The graph of a whole call, from its input state to its outputs."""

    state: Tensors
    outputs: Tensors

    @property
    def leaves(self) -> Tensors:
        """The state."""
        return self.state

    @property
    def ends(self) -> list[Node]:
        """The nodes that computed the outputs."""
        return [t.grad_fn for t in self.outputs if t.grad_fn is not None]

    def pull_back(
        self,
        others: Tensors,
        grads: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> Gradients:
        """Differentiate the outputs."""
        return gradients(self.outputs, grads, (*self.state, *others), needed)


class ShiftGraph(NamedTuple):
    r"""The graph of the shift of a layer that adds to a part of its input.

    $$ y = x \pm E\,s(Kx) $$

    $K$ selects what $s$ depends on, the first entries of $x$ or all of them. $E$ places
    $s$ on the last entries along an axis, or on all of them if $s$ has as many entries
    as $x$. With $\bar x$ the gradient with respect to $x$,

    $$ \bar x = \bar y + K^\top \bar k, \qquad
       \bar k = (\partial s / \partial k)^\top (\pm E^\top \bar y), \qquad k = Kx. $$

    The sum needs no graph. Only the graph of $s$ is kept, without the values of $s$.

    Attributes:
        x: The rebuilt input, without a graph.
        kept: The leaf that $s$ depends on: the first entries of $x$, or all of $x$.
        edge: The end of the graph of $s$, if $s$ needs a gradient.
        size: The number of entries of $s$ along the axis.
        dim: The axis.
        sign: 1 or -1.
    """

    x: Tensor
    kept: Tensor
    edge: GradientEdge | None
    size: int
    dim: int
    sign: int

    @classmethod
    def of(cls, shift: Tensor, x: Tensor, kept: Tensor, dim: int, sign: int) -> Self:
        """Keep what is needed to differentiate a shift."""
        edge = get_gradient_edge(shift) if shift.requires_grad else None
        return cls(x, kept, edge, shift.shape[dim], dim, sign)

    @property
    def state(self) -> Tensors:
        """The rebuilt input."""
        return (self.x,)

    @property
    def outputs(self) -> Tensors:
        """Empty: the output is known, since the input was rebuilt from it."""
        return ()

    @property
    def leaves(self) -> Tensors:
        """The tensor that the shift depends on."""
        return (self.kept,)

    @property
    def ends(self) -> list[Node]:
        """The node that computed the shift."""
        return [self.edge.node] if self.edge else []

    def pull_back(
        self,
        others: Tensors,
        grads: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> Gradients:
        """Differentiate the shift, and add the gradient of the output."""
        (grad,) = grads
        if grad is None:
            return [None] * len(needed)
        grad_shift = (self._grad_of_shift(grad),)
        grad_kept, *rest = gradients(
            (self.edge,), grad_shift, (self.kept, *others), needed
        )
        return [self._grad_of_state(grad, grad_kept) if needed[0] else None, *rest]

    def _grad_of_shift(self, grad: Tensor) -> Tensor:
        tail = grad.narrow(self.dim, grad.shape[self.dim] - self.size, self.size)
        return tail if self.sign > 0 else -tail

    def _grad_of_state(self, grad: Tensor, grad_kept: Tensor | None) -> Tensor:
        if grad_kept is None:
            return grad
        if grad_kept.shape == grad.shape:
            return grad + grad_kept
        grad_state = grad.clone()
        grad_state.narrow(self.dim, 0, grad_kept.shape[self.dim]).add_(grad_kept)
        return grad_state


def start_of(leaf: Tensor) -> Tensor:
    """Return what a layer is given in the place of a leaf.

    Hooks for all modules, as those of `FlopCounterMode`, may not be on a leaf while its
    gradient is computed.
    """
    return alias_of(leaf) if _torch.has_global_hooks() else leaf


def alias_of(tensor: Tensor) -> Tensor:
    """Return the same tensor as the result of an operation.

    A sparse tensor cannot be viewed, and is copied.
    """
    strided = tensor.layout is torch.strided
    return tensor.view_as(tensor) if strided else tensor.clone()


def gradients(
    outputs: Sequence[Tensor | GradientEdge | None],
    grads: Sequence[Tensor | None],
    inputs: Tensors,
    needed: Sequence[bool],
) -> Gradients:
    """Return the gradients of the inputs that need one, and `None` for the others."""
    reached = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and _is_differentiable(output)
    ]
    targets = [t for t, need in zip(inputs, needed, strict=True) if need]
    if not reached or not targets:
        return [None] * len(needed)
    roots, cotangents = zip(*reached, strict=True)
    create_graph = torch.is_grad_enabled()
    result = iter(
        _torch.run_backward(roots, cotangents, targets, create_graph=create_graph)
    )
    return [next(result) if need else None for need in needed]


def _is_differentiable(output: Tensor | GradientEdge | None) -> bool:
    return output.requires_grad if isinstance(output, Tensor) else output is not None
