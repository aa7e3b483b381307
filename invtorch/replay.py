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


class Parts(Protocol):
    """How a tensor of a state is divided into what a shift reads and what it moves."""

    def moved(self, state: Tensor) -> Tensor:
        """Return the entries that are shifted."""

    def plus_kept(self, state: Tensor, kept: Tensor, *, own: bool = False) -> Tensor:
        """Return the tensor with `kept` added to the entries that the shift reads.

        With `own`, the tensor itself may be changed and returned.
        """


class Whole(NamedTuple):
    """A shift that reads and moves all entries."""

    def moved(self, state: Tensor) -> Tensor:
        """Return all entries."""
        return state

    def plus_kept(self, state: Tensor, kept: Tensor, *, own: bool = False) -> Tensor:
        """Add to all entries."""
        del own
        return state + kept


class Shift(NamedTuple):
    r"""The graph of one shift $x \mapsto x \pm E\,s(Kx)$ of a tensor of the state.

    $K$ selects the entries that $s$ depends on, and $E$ places $s$ on the entries that
    it moves.

    Attributes:
        kept: The leaf $Kx$ that $s$ depends on.
        edge: The end of the graph of $s$, if $s$ needs a gradient.
        parts: How $K$ and $E$ divide the tensor.
        sign: 1 or -1.
        part: Which tensor of the state it is, counted from 0.
    """

    kept: Tensor
    edge: GradientEdge | None
    parts: Parts
    sign: int
    part: int = 0

    @classmethod
    def of(cls, shift: Tensor, kept: Tensor, parts: Parts, sign: int) -> Self:
        """Keep what is needed to differentiate a shift, without its values."""
        return cls(kept, edge_of(shift), parts, sign)

    def pull_back(
        self, grad: Tensor, others: Tensors, needed: Sequence[bool], *, own: bool
    ) -> Gradients:
        """Return the gradients of the tensor and of `others`, given that of its sum.

        With `own`, the given gradient may be changed in place.
        """
        moved = self.parts.moved(grad)
        cotangent = (moved if self.sign > 0 else -moved,)
        grad_kept, *rest = gradients(
            (self.edge,), cotangent, (self.kept, *others), needed
        )
        if needed[0] and grad_kept is not None:
            grad = self.parts.plus_kept(grad, grad_kept, own=own)
        return [grad, *rest]


class ShiftGraph(NamedTuple):
    r"""The graph of a layer that adds to parts of its input, one after another.

    For one shift, $y = x \pm E\,s(Kx)$. With $\bar x$ the gradient with respect to $x$,

    $$ \bar x = \bar y + K^\top \bar k, \qquad
       \bar k = (\partial s / \partial k)^\top (\pm E^\top \bar y), \qquad k = Kx. $$

    The sum needs no graph. Only the graph of $s$ is kept, without the values of $s$.

    Attributes:
        state: The rebuilt input, without a graph.
        shifts: The shifts, in the order in which the layer applies them.
    """

    state: Tensors
    shifts: tuple[Shift, ...]

    @classmethod
    def of(
        cls, shift: Tensor, x: Tensor, kept: Tensor, parts: Parts, sign: int
    ) -> Self:
        """Return the graph of a layer with one shift and a state of one tensor."""
        return cls((x,), (Shift.of(shift, kept, parts, sign),))

    def on_part(self, index: int, states: Tensors) -> Self:
        """Return the graph of the same layer that acts on one tensor of a tuple.

        Args:
            index: Which tensor of the tuple.
            states: The tensors of the tuple; the others do not change.
        """
        before, after = states[:index], states[index + 1 :]
        shifts = tuple(shift._replace(part=index) for shift in self.shifts)
        return self._replace(state=(*before, *self.state, *after), shifts=shifts)

    @property
    def outputs(self) -> Tensors:
        """Empty: the output is known, since the input was rebuilt from it."""
        return ()

    @property
    def leaves(self) -> Tensors:
        """The tensors that the shifts depend on."""
        return tuple(shift.kept for shift in self.shifts)

    @property
    def ends(self) -> list[Node]:
        """The nodes that computed the shifts."""
        return [shift.edge.node for shift in self.shifts if shift.edge]

    def pull_back(
        self,
        others: Tensors,
        grads: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> Gradients:
        """Differentiate the shifts, the last one first, and add up the gradients."""
        count = len(self.state)
        states = list(grads[:count])  # a log-determinant of 0 may follow
        sums: Gradients = [None] * len(others)
        for n, shift in reversed(list(enumerate(self.shifts))):
            grad = states[shift.part]
            if grad is None:
                continue
            below = needed[shift.part] or n > 0  # an earlier shift reads this gradient
            # gradients of parameters may be views of what a shift before was given
            own = n == len(self.shifts) - 2 and grad is not grads[shift.part]
            states[shift.part], *rest = shift.pull_back(
                grad, others, (below, *needed[count:]), own=own
            )
            sums = [_plus(a, b) for a, b in zip(sums, rest, strict=True)]
        state_needed = zip(states, needed, strict=False)
        return [*(g if need else None for g, need in state_needed), *sums]


class StepGraph(NamedTuple):
    r"""The graph of a layer that adds a network to a linear map of its tensors.

    $$ y_i = \sum_j M_{ij} x_j + a_i\, s(k), \qquad k = \sum_j w_j x_j $$

    with numbers $M$, $a$ and $w$. With $\bar y_i$ the gradients of the outputs,

    $$ \bar x_j = \sum_i M_{ij} \bar y_i + w_j \bar k, \qquad
       \bar k = (\partial s / \partial k)^\top \sum_i a_i \bar y_i. $$

    The linear map needs no graph. Only the graph of $s$ is kept, without its values.

    Attributes:
        state: The rebuilt input, without a graph.
        kept: The leaf $k$.
        edge: The end of the graph of $s$, if $s$ needs a gradient.
        matrix: The rows of $M$.
        a: The factors $a$.
        w: The factors $w$.
    """

    state: Tensors
    kept: Tensor
    edge: GradientEdge | None
    matrix: Sequence[Sequence[float]]
    a: Sequence[float]
    w: Sequence[float]

    @property
    def outputs(self) -> Tensors:
        """Empty: the output is known, since the input was rebuilt from it."""
        return ()

    @property
    def leaves(self) -> Tensors:
        """The tensor that the network depends on."""
        return (self.kept,)

    @property
    def ends(self) -> list[Node]:
        """The node that computed the output of the network."""
        return [self.edge.node] if self.edge else []

    def pull_back(
        self,
        others: Tensors,
        grads: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> Gradients:
        """Differentiate the network, and add what the linear map passes on."""
        count = len(self.state)
        outputs = grads[:count]  # the gradient of a constant log-determinant may follow
        flags = any(needed[:count]), *needed[count:]
        cotangent = _combined(self.a, outputs)
        of_kept, *rest = gradients(
            (self.edge,), (cotangent,), (self.kept, *others), flags
        )
        columns = zip(*self.matrix, strict=True)
        states = [
            _combined((*column, w), (*outputs, of_kept)) if need else None
            for column, w, need in zip(columns, self.w, needed[:count], strict=True)
        ]
        return [*states, *rest]


def edge_of(tensor: Tensor) -> GradientEdge | None:
    """Return the end of the graph of a tensor, if it needs a gradient."""
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _combined(
    factors: Sequence[float], tensors: Sequence[Tensor | None]
) -> Tensor | None:
    """Return a linear combination; `None` stands for zeros."""
    total: Tensor | None = None
    for factor, tensor in zip(factors, tensors, strict=True):
        if tensor is None or factor == 0:
            continue
        if total is not None:
            total = torch.add(total, tensor, alpha=factor)
        else:
            total = tensor if factor == 1 else factor * tensor
    return total


def _plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


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
