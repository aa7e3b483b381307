"""One recorded call of a layer, and the ways to evaluate it again."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.graph import Node

from invtorch import _torch
from invtorch._torch import versions
from invtorch.engine.checks import (
    as_tensors,
    check_closed,
    check_copied,
    check_dtypes,
    check_input_unmodified,
    check_inverse_arity,
    check_inverse_kinds,
    check_kinds,
    check_log_det,
    check_output_unmodified,
    check_own_tensors,
    check_parts,
    check_same_branch,
    check_same_inputs,
    check_shapes,
    check_unmodified,
    inputs_reached,
    reached,
    unshard,
)
from invtorch.engine.eager.held import Held, cut, skipping, watched
from invtorch.engine.first_layers import mixes
from invtorch.engine.restore.context import (
    copy_context,
    exchange_context,
    objects_in,
    tensors_in,
)
from invtorch.engine.restore.environment import Environment, WeightCachesOff
from invtorch.engine.restore.generators import Source
from invtorch.engine.restore.locks import Locks
from invtorch.engine.restore.module_state import ChangedBufferError
from invtorch.engine.restore.random_numbers import DRAWING, Drawn
from invtorch.module import REPLAYS, InvertibleModule
from invtorch.precision import tf32_dtypes
from invtorch.recording import Context, Direction, NodesCounted, Recording, State
from invtorch.replay import (
    FullGraph,
    Graph,
    PullBack,
    Replay,
    ShiftGraph,
    StepGraph,
    Tensors,
    alias_of,
    start_of,
)

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
        module: The layer.
        way: The direction in which it is called, `"forward"` or `"inverse"`.
        mixes: Whether the layer has no network inside, and is evaluated at little cost.
        arity: The number of tensors of the input state.
        own_layer: Whether the layer is not one of this library.
        output_arity: The number of tensors of the output state.
        grad_inputs: The tensors of context and modules that need a gradient. Attributes
            and buffers among them are known once the call was run.
    """

    label: str
    module: InvertibleModule
    way: str
    mixes: bool
    own_layer: bool
    grad_inputs: Tensors

    @property
    def arity(self) -> int:
        """The number of tensors of the input state."""

    @property
    def output_arity(self) -> int:
        """The number of tensors of the output state, known after `run`."""

    @property
    def read(self) -> Sequence[Drawn]:
        """The states of Python's and NumPy's generators that it read, if any."""

    def watch(self, sources: set[Source]) -> None:
        """Refuse a replay that draws from these generators, if it has not read them."""

    def run(self, state: Tensors, context: Context) -> Tensors:
        """Evaluate the call for the first time; log-determinants come last."""

    def held_inside(self) -> Tensors:
        """Return the tensors of the freed graph of `run` that somebody holds."""

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
        except ChangedBufferError as error:
            check_unmodified(self.label, error.name)
            raise
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
        context: Context,
    ) -> None:
        self.label = f"layer {index} ({type(module).__name__})"
        self.module = module
        self.direction = direction
        self.way = direction.name.removesuffix("_and_log_det")
        self.input_form = self.output_form = Form.of(state)
        self.context = copy_context(context)
        self.context_tensors = tensors_in(context)
        self.versions = versions(self.context_tensors)
        first = as_tensors(state)[0]
        parts = _torch.modules_inside(module)
        self.locks = Locks(parts)
        check_parts(self.label, parts[1:])
        with self.locks:
            self.environment = Environment(
                parts, first.device, direction.name, objects_in(context)
            )
        self.own_layer = self.environment.own_layer
        # what others wrote, as the gradient of an i-RIM, may take long
        others = self.own_layer or self.environment.own_code
        self.mixes = not others and mixes(module)
        parameters = self.environment.parameters
        check_shapes(self.label, [*parameters, *self.environment.buffers])
        own = (*self.context_tensors, *parameters)
        needed = {id(t): t for t in own if t.requires_grad}
        self.grad_inputs: Tensors = tuple(needed.values())
        self.returned_inside: list[Held] = []
        self.held: list[Held] = []

    @exclusive
    def run(self, state: Tensors, context: Context) -> Tensors:
        """Evaluate the call for the first time, with the context as it was given."""
        counts, before = versions(state), self.environment.before()
        parts = self.environment.parts
        watch: AbstractContextManager[list[Held]] = nullcontext([])
        if self.environment.hooked_inside:  # a hook may keep what a module returns
            watch = watched(parts)
        off = _torch.SavedTensorsHooksOff()
        self.needed = [t.requires_grad for t in state]
        self.received = [(t.shape, t.dtype) for t in state]
        own_code, own_layer = self.environment.own_code, self.environment.own_layer
        read = self.grad_inputs if own_code else None
        self.nodes = NodesCounted(state, read, own_layer)
        given = self.input_form.of_tensors(state)
        with (
            WeightCachesOff(),
            Recording(None),
            off,
            watch as self.returned_inside,
            self.nodes,
            self.environment.of_conditioners(before),
        ):
            outputs = self._first(self.direction(self.module, given, context))
            self.nodes.outputs = outputs
        changed = self.environment.after(before)
        self._check(state, outputs)
        ends = [t.grad_fn for t in outputs if t.grad_fn is not None]
        self.grad_inputs += self._computed(state, ends)
        if own_code:
            self.reached = inputs_reached(self.grad_inputs, state, ends)
        check_own_tensors(self.label, self.environment.changed_parameter(), changed)
        check_input_unmodified(self.label, versions(state) == counts)
        return outputs

    def held_inside(self) -> Tensors:
        """Return the tensors of the graph inside that somebody holds, if it was freed.

        The call itself must not hold them: their graph may lead back to it.
        """
        now = [(one, one.now()) for one in self.returned_inside]
        self.returned_inside = []
        self.held = [one for one, tensor in now if tensor is not None]
        return tuple(tensor for _, tensor in now if tensor is not None)

    @exclusive
    def store(self, state: State, context: Context) -> Tensors:
        """Evaluate the call and leave it to autograd, which keeps its activations."""
        with Recording(None):
            outputs = self._first(self.direction(self.module, state, context))
        self._check(as_tensors(state), outputs)
        return outputs

    @exclusive
    def invert(self, output: Tensors) -> Tensors:
        """Rebuild the input state from the output state, without a graph."""
        gathered = unshard(self.label, self.module, self.environment.parameters)
        self._check_unmodified()
        inverse = getattr(self.module, INVERSES[self.direction.name])
        context, counts = copy_context(self.context), versions(output)
        restored = self.environment.restored({}, self.locks, inverse=True)
        with torch.no_grad(), restored, Recording(None):
            state = as_tensors(
                context.call(inverse, self.output_form.of_tensors(output))
            )
        if gathered:
            self.module.reshard()  # type: ignore[operator]
        check_inverse_arity(self.label, self.arity, len(state))
        check_inverse_kinds(self.label, self.received, state)
        check_output_unmodified(self.label, versions(output) == counts)
        return state

    def replay(
        self, *, state: Tensors | None = None, output: Tensors | None = None
    ) -> Replay:
        """Evaluate the call again, from its input if it is kept."""
        if state is None:
            assert output is not None
            replay = getattr(self.module, REPLAYS[self.direction.name], None)
            # it may write on tensors whose values a wrapper would not see
            if replay is not None and not any(map(_torch.is_wrapper, output)):
                return self._record_replay(replay, output)
            state = self.invert(output)
        pairs = zip(state, self.needed, strict=True)
        leaves = tuple(t.detach().requires_grad_(needed) for t, needed in pairs)
        return self._record(leaves, _leaf)

    def reconnect(self, state: Tensors) -> Replay:
        """Evaluate the call again from its input, attached to the graph around it."""
        return self._record(tuple(map(alias_of, state)), alias_of)

    def dtypes(self) -> set[torch.dtype]:
        """Return the floating dtypes of its parameters, of autocast, and of TF32."""
        computed = [slot.tensor for slot in self.environment.computed]
        parameters = self.environment.parameters + computed
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
        state = self.output_form.of_tensors(outputs[: self.output_arity])
        return (state, outputs[-1]) if self._with_log_det else state

    def _record(self, state: Tensors, stand_in: Callable[[Tensor], Tensor]) -> Replay:
        """Record the graph of the direction, from the state to the outputs."""
        with torch.enable_grad():
            start = self.input_form.of_tensors(tuple(map(start_of, state)))

        def evaluate(context: Context) -> Graph:
            outputs = self.direction(self.module, start, context)
            return FullGraph(state, self._flat(outputs))

        return self._graph(evaluate, stand_in, whole=state)

    def _record_replay(self, replay: Callable[..., Any], output: Tensors) -> Replay:
        """Record the graph of the layer's own `replay`, which rebuilds the state."""

        def evaluate(context: Context) -> Graph:
            counts = versions(output)
            graph = context.call(replay, self.output_form.of_tensors(output))
            check_output_unmodified(self.label, versions(output) == counts)
            if isinstance(graph, ShiftGraph | StepGraph):
                return graph
            state, outputs = graph
            return FullGraph(as_tensors(state), self._flat(outputs))

        return self._graph(evaluate, _leaf)

    @exclusive
    def _graph(
        self,
        evaluate: Callable[[Context], Graph],
        stand_in: Callable[[Tensor], Tensor],
        whole: Tensors | None = None,
    ) -> Replay:
        """Record a graph in the environment of the forward pass; check its leaves.

        Context and parameters that need a gradient are replaced by stand-ins. The graph
        then ends at the stand-ins, and the graphs and hooks of the originals run once,
        on the gradients that the node returns.

        Args:
            evaluate: Records the graph.
            stand_in: Makes a stand-in.
            whole: The state, if the graph is that of the whole direction.
        """
        unshard(self.label, self.module, self.environment.parameters)
        self._check_unmodified()
        with torch.enable_grad():
            own = (*self.context_tensors, *self.environment.parameters)
            stand_ins = {id(t): stand_in(t) for t in self.grad_inputs}
            # those that were frozen in the forward pass, and are not any more
            trained = [t for t in own if t.requires_grad and id(t) not in stand_ins]
            instead = stand_ins | {id(t): t.detach() for t in trained}
            starts = {id(t): instead.get(id(t), t) for t in self.context_tensors}
            starts = {i: start_of(stand_in) for i, stand_in in starts.items()}
            context = exchange_context(self.context, starts)
            # a graph that is attached to the one around it is kept, and so are hooks
            kept = stand_in is alias_of
            hooks = nullcontext() if kept else _torch.SavedTensorsHooksOff()
            stop: AbstractContextManager[list[Tensor | None]] = nullcontext([])
            if self.held:
                stop = cut(self.held, kept)
            own_code, own_layer = self.environment.own_code, self.environment.own_layer
            read = (*stand_ins.values(), *starts.values())
            nodes = NodesCounted(whole, read if own_code else None, own_layer)
            restored = self.environment.restored(instead, self.locks)
            with restored, Recording(None), hooks, stop as found, nodes:
                graph = evaluate(context)
                nodes.outputs = graph.outputs
        compiled = any(map(_torch.is_compiled, self.environment.parts))
        # a graph that is cut at tensors that somebody holds has other nodes
        comparable = not compiled and not self.held
        if comparable:
            check_same_branch(self.label, not self.nodes.differ(nodes))
        inside = [t for t in found if t is not None]
        others = (*stand_ins.values(), *inside)
        fixed = [t for t in own if id(t) not in stand_ins]
        known = (*graph.leaves, *others, *fixed)
        check_closed(self.label, known, graph.ends, self.context)
        if comparable and own_code:
            again = inputs_reached((*stand_ins.values(),), graph.leaves, graph.ends)
            method = REPLAYS[self.direction.name] if whole is None else None
            check_same_inputs(self.label, self.reached, again, method)
        pull_back: PullBack = functools.partial(graph.pull_back, others)
        if len(inside) < len(found):
            pull_back = skipping(pull_back, found)
        return Replay(graph.state, graph.outputs, pull_back)

    @property
    def arity(self) -> int:
        """The number of tensors of its input state."""
        return self.input_form.arity

    @property
    def output_arity(self) -> int:
        """The number of tensors of its output state."""
        return self.output_form.arity

    @property
    def _with_log_det(self) -> bool:
        return self.direction.name.endswith("log_det")

    def _first(self, output: Any) -> Tensors:
        """Return the outputs of the first evaluation, and keep their form."""
        self.output_form = Form.of(output[0] if self._with_log_det else output)
        return self._flat(output)

    def _computed(self, state: Tensors, ends: list[Node]) -> Tensors:
        """Return the attributes and buffers on whose graph the outputs depend."""
        if not self.environment.computed:
            return ()
        computed = {id(slot.tensor): slot.tensor for slot in self.environment.computed}
        known = (*state, *self.grad_inputs)
        used = reached([*computed.values()], known, ends)
        # others are not kept: a graph that a hook stored would keep earlier passes
        slots = self.environment.computed
        self.environment.computed = [
            s for s in slots if any(s.tensor is t for t in used)
        ]
        return used

    def _flat(self, output: Any) -> Tensors:
        if not self._with_log_det:
            return as_tensors(output)
        state, log_det = output
        check_log_det(self.label, log_det)
        return (*as_tensors(state), log_det)

    def _check(self, state: Tensors, outputs: Tensors) -> None:
        check_dtypes(self.label, state, outputs[: self.output_arity])

    def _check_unmodified(self) -> None:
        check_kinds(self.label, self.environment.has_same_kinds())
        check_copied(self.label, self.environment.lost_buffer())
        changed = versions(self.context_tensors) != self.versions
        name = "the context" if changed else self.environment.changed_tensor()
        check_unmodified(self.label, name)


class Form(NamedTuple):
    """The form of a state: one tensor, a tuple or a named tuple of tensors.

    Attributes:
        arity: The number of tensors.
        of_tensors: Returns a state of this form that has these tensors.
    """

    arity: int
    of_tensors: Callable[[Tensors], State]

    @classmethod
    def of(cls, state: Any) -> Form:
        """Return the form of a state."""
        if isinstance(state, Tensor):
            return SINGLE
        return cls(len(as_tensors(state)), getattr(type(state), "_make", tuple))


SINGLE = Form(1, operator.itemgetter(0))


def _leaf(tensor: Tensor) -> Tensor:
    """Return a leaf without hooks, the tensor itself where possible.

    Hooks of the tensor must run once, on the gradient that the node returns.
    """
    if tensor.is_leaf and tensor.requires_grad and not _torch.has_tensor_hooks(tensor):
        return tensor
    return tensor.detach().requires_grad_()
