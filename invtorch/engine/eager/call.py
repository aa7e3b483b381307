"""One recorded call of a layer, and the ways to evaluate it again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from invtorch import _torch
from invtorch._torch import versions
from invtorch.engine.checks import (
    as_tensors,
    check_arity,
    check_closed,
    check_copied,
    check_dtypes,
    check_input_unmodified,
    check_kinds,
    check_log_det,
    check_output_unmodified,
    check_own_tensors,
    check_parts,
    check_same_branch,
    check_shapes,
    check_unmodified,
)
from invtorch.engine.restore.context import (
    copy_context,
    exchange_context,
    objects_in,
    tensors_in,
)
from invtorch.engine.restore.environment import Environment, WeightCachesOff
from invtorch.engine.restore.generators import Source
from invtorch.engine.restore.locks import Locks
from invtorch.engine.restore.random_numbers import DRAWING, Drawn
from invtorch.module import REPLAYS, InvertibleModule
from invtorch.precision import is_differentiable, tf32_dtypes
from invtorch.recording import Direction, NodesCounted, Recording, State
from invtorch.replay import FullGraph, Graph, Replay, ShiftGraph, Tensors

Method = TypeVar("Method", bound=Callable[..., Any])

INVERSES = {
    "forward": "inverse",
    "inverse": "forward",
    "forward_and_log_det": "inverse",
    "inverse_and_log_det": "forward",
}


class RecordedCall(Protocol):
    """One call of one direction of a layer, as the tape records it.

    It holds the layer and what the call reads besides its state, but neither the state
    nor the tape. There are two implementations: `Call`, which autograd differentiates,
    and `ClosedFormCall`, whose derivative is written by hand.

    Attributes:
        label: The name of the layer in error messages: its index and class.
        arity: The number of tensors of the state.
        grad_inputs: The tensors of context and parameters that need a gradient.
    """

    label: str
    arity: int
    grad_inputs: Tensors

    @property
    def read(self) -> Sequence[Drawn]:
        """The states of Python's and NumPy's generators that it read, if any."""

    def watch(self, sources: set[Source]) -> None:
        """Refuse a replay that draws from these generators, if it has not read them."""

    def run(self, state: Tensors, context: tuple[Any, ...]) -> Tensors:
        """Evaluate the call for the first time; log-determinants come last."""

    def invert(self, output: Tensors) -> Tensors:
        """Rebuild the input state from the output state, without a graph."""

    def replay(
        self, *, state: Tensors | None = None, output: Tensors | None = None
    ) -> Replay:
        """Evaluate the call again, detached from the graph around it.

        Args:
            state: Its input, if it is kept.
            output: Otherwise its output, from which the input is rebuilt.
        """

    def reconnect(self, state: Tensors) -> Replay:
        """Evaluate the call again from its input, attached to the graph around it.

        It is used by a backward pass under `create_graph=True`: the gradients have a
        graph themselves, which takes memory.
        """

    def dtypes(self) -> set[torch.dtype]:
        """Return the floating dtypes in which it computes, as far as known."""

    def returned(self, outputs: Tensors) -> Any:
        """Give the outputs the form in which the caller expects them."""


def labeled(method: Method) -> Method:
    """Add the label of the layer to errors."""

    @functools.wraps(method)
    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return method(self, *arguments, **options)
        except Exception as error:
            add_label(error, self.label)
            raise

    return call  # type: ignore[return-value]


def exclusive(method: Method) -> Method:
    """Hold the locks of the layer during the call, and add its label to errors.

    The lock of layers that draw comes first, in every thread.
    """

    @functools.wraps(method)
    def call(self: Call, *arguments: Any, **options: Any) -> Any:
        if self.environment.may_draw():
            with DRAWING, self.locks:
                return method(self, *arguments, **options)
        with self.locks:
            return method(self, *arguments, **options)

    return cast(Method, labeled(call))


def add_label(error: Exception, label: str) -> None:
    """Add the label of a layer to an error, unless it is already there."""
    notes = (str(error), *getattr(error, "__notes__", ()))
    if not any(label in text for text in notes):
        error.add_note(f"in {label} of an invertible container")


class Call:
    """A call of any layer: autograd records it again when it is replayed.

    Args:
        index: The position on the tape.
        module: The layer.
        direction: The method that was called.
        state: The input of the call.
        context: Its further arguments.
    """

    def __init__(
        self,
        index: int,
        module: InvertibleModule,
        direction: Direction,
        state: State,
        context: tuple[Any, ...],
    ) -> None:
        self.label = f"layer {index} ({type(module).__name__})"
        self.module = module
        self.direction = direction
        self.single = isinstance(state, Tensor)
        self.form = getattr(type(state), "_make", tuple)  # of a named tuple
        self.context = copy_context(context)
        self.context_tensors = tensors_in(context)
        self.versions = versions(self.context_tensors)
        self.flags = [t.requires_grad for t in self.context_tensors]
        first, *others = as_tensors(state)
        self.arity = 1 + len(others)
        parts = _torch.modules_inside(module)
        self.locks = Locks(parts)
        check_parts(self.label, parts[1:])
        with self.locks:
            self.environment = Environment(
                parts, first.device, direction.name, objects_in(context)
            )
        parameters = self.environment.parameters
        check_shapes(self.label, [*parameters, *self.environment.buffers])
        own = (*self.context_tensors, *parameters)
        needed = {id(t): t for t in own if t.requires_grad}
        self.grad_inputs: Tensors = tuple(needed.values())

    @exclusive
    def run(self, state: Tensors, context: tuple[Any, ...]) -> Tensors:
        """Evaluate the call for the first time, with the context as it was given."""
        counts, before = versions(state), self.environment.before()
        self.nodes = NodesCounted(state)
        with WeightCachesOff(), Recording(None), self.nodes:
            outputs = self._flat(self.direction(self.module, self._as(state), *context))
        changed = self.environment.after(before)
        self._check(state, outputs)
        check_own_tensors(self.label, self.environment.changed_parameter(), changed)
        check_input_unmodified(self.label, versions(state) == counts)
        return outputs

    @exclusive
    def store(self, state: State, context: tuple[Any, ...]) -> Tensors:
        """Evaluate the call and leave it to autograd, which keeps its activations."""
        with Recording(None):
            outputs = self._flat(self.direction(self.module, state, *context))
        self._check(as_tensors(state), outputs)
        return outputs

    @exclusive
    def invert(self, output: Tensors) -> Tensors:
        """Rebuild the input state from the output state, without a graph."""
        self._check_unmodified()
        inverse = getattr(self.module, INVERSES[self.direction.name])
        context, counts = copy_context(self.context), versions(output)
        restored = self.environment.restored({}, self.locks, inverse=True)
        with torch.no_grad(), restored, Recording(None):
            state = as_tensors(inverse(self._as(output), *context))
        check_output_unmodified(self.label, versions(output) == counts)
        return state

    def replay(
        self, *, state: Tensors | None = None, output: Tensors | None = None
    ) -> Replay:
        """Evaluate the call again, from its input if it is kept."""
        if state is None:
            assert output is not None
            replay = getattr(self.module, REPLAYS[self.direction.name], None)
            if replay is not None:
                return self._record_replay(replay, output)
            state = self.invert(output)
        leaves = tuple(t.detach().requires_grad_(is_differentiable(t)) for t in state)
        return self._record(leaves, _leaf)

    def reconnect(self, state: Tensors) -> Replay:
        """Evaluate the call again from its input, attached to the graph around it."""
        return self._record(tuple(map(_alias, state)), _alias)

    def dtypes(self) -> set[torch.dtype]:
        """Return the floating dtypes of its parameters, of autocast, and of TF32."""
        parameters = self.environment.parameters
        used = [p.dtype for p in parameters]
        if self.environment.autocast is not None:
            used.append(self.environment.autocast)
        known = {d for d in used if d.is_floating_point or d.is_complex}
        return known | tf32_dtypes(parameters, self.environment.device)

    @property
    def read(self) -> Sequence[Drawn]:
        """The states of Python's and NumPy's generators that it read, if any."""
        return self.environment.read

    def watch(self, sources: set[Source]) -> None:
        """Refuse a replay that draws from these generators, if it has not read them."""
        self.environment.watch(sources)

    def returned(self, outputs: Tensors) -> Any:
        """Give the outputs the form in which the caller expects them."""
        state = self._as(outputs)
        return (state, outputs[-1]) if len(outputs) > self.arity else state

    def _record(self, state: Tensors, stand_in: Callable[[Tensor], Tensor]) -> Replay:
        """Record the graph of the direction, from the state to the outputs."""

        def evaluate(*context: Any) -> Graph:
            outputs = self.direction(self.module, self._as(state), *context)
            return FullGraph(state, self._flat(outputs))

        return self._graph(evaluate, stand_in, whole=True)

    def _record_replay(self, replay: Callable[..., Any], output: Tensors) -> Replay:
        """Record the graph of the layer's own `replay`, which rebuilds the state."""

        def evaluate(*context: Any) -> Graph:
            counts = versions(output)
            graph = replay(self._as(output), *context)
            check_output_unmodified(self.label, versions(output) == counts)
            if isinstance(graph, ShiftGraph):
                return graph
            state, outputs = graph
            return FullGraph(as_tensors(state), self._flat(outputs))

        return self._graph(evaluate, _leaf, whole=False)

    @exclusive
    def _graph(
        self,
        evaluate: Callable[..., Graph],
        stand_in: Callable[[Tensor], Tensor],
        *,
        whole: bool,
    ) -> Replay:
        """Record a graph in the environment of the forward pass; check its leaves.

        Context and parameters that need a gradient are replaced by stand-ins. The graph
        then ends at the stand-ins, and the graphs and hooks of the originals run once,
        on the gradients that the node returns.

        Args:
            evaluate: Records the graph.
            stand_in: Makes a stand-in.
            whole: Whether the graph is that of the whole direction.
        """
        self._check_unmodified()
        with torch.enable_grad():
            stand_ins = {id(t): stand_in(t) for t in self.grad_inputs}
            context = exchange_context(self.context, stand_ins)
            nodes = NodesCounted(())
            restored = self.environment.restored(stand_ins, self.locks)
            with restored, Recording(None), nodes:
                graph = evaluate(*context)
        flags = [t.requires_grad for t in self.context_tensors]
        compiled = any(map(_torch.is_compiled, self.environment.parts))
        if flags == self.flags and not compiled:
            check_same_branch(self.label, not self.nodes.differ(nodes, whole))
        others = tuple(stand_ins.values())
        own = (*self.context_tensors, *self.environment.parameters)
        fixed = [t for t in own if id(t) not in stand_ins]
        check_closed(self.label, (*graph.leaves, *others, *fixed), graph.ends)
        pull_back = functools.partial(graph.pull_back, others)
        return Replay(graph.state, graph.outputs, pull_back)

    def _as(self, state: Tensors) -> State:
        return state[0] if self.single else self.form(state[: self.arity])

    def _flat(self, output: Any) -> Tensors:
        if not self.direction.name.endswith("log_det"):
            return as_tensors(output)
        state, log_det = output
        check_log_det(self.label, log_det)
        return (*as_tensors(state), log_det)

    def _check(self, state: Tensors, outputs: Tensors) -> None:
        log_dets = self.direction.name.endswith("log_det")
        check_arity(self.label, self.arity, len(outputs) - log_dets)
        check_dtypes(self.label, state, outputs)

    def _check_unmodified(self) -> None:
        check_kinds(self.label, self.environment.has_same_kinds())
        check_copied(self.label, self.environment.lost_buffer())
        changed = versions(self.context_tensors) != self.versions
        name = "the context" if changed else self.environment.changed_tensor()
        check_unmodified(self.label, name)


def _leaf(tensor: Tensor) -> Tensor:
    """Return a leaf without hooks, the tensor itself where possible.

    Hooks of the tensor must run once, on the gradient that the node returns.
    """
    if tensor.is_leaf and tensor.requires_grad and not _torch.has_tensor_hooks(tensor):
        return tensor
    return tensor.detach().requires_grad_()


def _alias(tensor: Tensor) -> Tensor:
    return tensor.view_as(tensor)
