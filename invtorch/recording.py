"""The recorder of a thread: it receives the calls of all invertible modules."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from invtorch import _torch
from invtorch._torch import untraced
from invtorch.keywords import check_keywords, keywords_of, taken

State = Tensor | tuple[Tensor, ...]


class Context(NamedTuple):
    """The further arguments of a pass, which its layers receive unchanged.

    Attributes:
        args: The positional ones: every layer receives all of them.
        named: The keyword ones: a layer receives those that it names.
    """

    args: tuple[Any, ...] = ()
    named: Mapping[str, Any] = {}

    def __bool__(self) -> bool:
        return bool(self.args or self.named)

    def call(self, function: Callable[..., Any], state: Any) -> Any:
        """Call a function with a state and this context."""
        return function(state, *self.args, **self.named)

    def offer(self, function: Callable[..., Any], *state: Any) -> Any:
        """Call a function with the keyword context that its signature names."""
        if not self.named:
            return function(*state, *self.args)
        given = len(state) + len(self.args)
        named = taken(keywords_of(function, given), self.named)
        return function(*state, *self.args, **named)


class Direction(NamedTuple):
    """A direction of a class: the name of the method, and its function."""

    name: str
    function: Callable[..., Any]

    def __call__(self, module: Any, state: State, context: Context) -> Any:
        """Evaluate the function on a module.

        Raises:
            TypeError: If the module reads an attribute that the state has not, as those
                of a tensor in place of a tuple.
        """
        try:
            return self.function(module, state, *context.args, **context.named)
        except AttributeError as error:
            if error.obj is not state:
                raise
            raise TypeError(_wrong_state(module, state)) from error


def _wrong_state(module: Any, state: Any) -> str:
    """Return the message about a tuple in place of a tensor, or something else."""
    kind = type(state).__name__
    what = f"a tuple of {len(state)}" if isinstance(state, tuple) else f"a {kind}"
    way = "select one by `OnPart`" if isinstance(state, tuple) else "give it a tensor"
    return f"the state of {type(module).__name__} is one tensor, but got {what}: {way}"


class Recorder(Protocol):
    """Receives the calls of invertible modules while a pass is recorded.

    Attributes:
        replays: Whether it evaluates calls again in the backward pass.
    """

    replays: bool

    def record(
        self,
        module: Any,
        direction: Direction,
        state: State,
        context: Context,
    ) -> Any:
        """Evaluate one call and keep what is needed to evaluate it again."""

    def keeping(self, memory: str) -> AbstractContextManager[object]:
        """Make calls in this context keep at least what strategy `memory` keeps."""


# what a layer evaluates: a conditioner, or a function that computes its scale
Network: TypeAlias = Callable[..., Any]
# returns a context in which one is evaluated
Around = Callable[[Network], AbstractContextManager[object]]


class _Running(threading.local):
    recorder: Recorder | None = None
    recording = False  # Dynamo can guard on a boolean, but not on every object
    replays = False
    counting = False
    around: Around | None = None
    repeated: int | None = None  # which evaluation of a conditioner a replay repeats
    ignored = 0  # nodes that are no part of what a layer computes
    counted: NodesCounted | None = None


_running = _Running()
# the buffers `initialized` of layers, and their versions, when they were last read
_FLAGS: WeakKeyDictionary[nn.Module, tuple[Tensor, int]] = WeakKeyDictionary()


def is_recording() -> bool:
    """Return whether a pass of this thread is being recorded."""
    return _running.recording


class Recording:
    """Pass the calls of invertible modules to `recorder`; `None` evaluates them."""

    def __init__(self, recorder: Recorder | None) -> None:
        self.recorder = recorder

    def __enter__(self) -> None:
        self.previous = _running.recorder
        self._set(self.recorder)

    def __exit__(self, *_: object) -> None:
        self._set(self.previous)

    @staticmethod
    def _set(recorder: Recorder | None) -> None:
        _running.recorder = recorder
        _running.recording = recorder is not None
        _running.replays = recorder is not None and recorder.replays


class Nodes(NamedTuple):
    """The nodes that an evaluation added to the graph.

    Attributes:
        number: How many; `None` if it is not known.
        shapes: What those returned that the result depends on, in their order; `None`
            if it is not known.
        layouts: The memory layouts of what was evaluated, and whether it needs a
            gradient. With others, operations such as `reshape` copy, and there are
            other nodes.
    """

    number: int | None
    shapes: list[tuple[Any, ...]] | None
    layouts: tuple[Any, ...]

    @classmethod
    def since(
        cls,
        start: tuple[int, int, int],
        inputs: tuple[Tensor, ...],
        outputs: Any,
        below: frozenset[Node] | None,
    ) -> Nodes:
        """Count the nodes since `start`.

        Args:
            start: What `_nodes` returned then.
            inputs: What is evaluated.
            outputs: What the evaluation returned.
            below: Nodes of other tensors that the evaluation reads; `None` if no shapes
                are compared.
        """
        number, layouts = _since(start), tuple(map(_layout, inputs))
        if below is None:
            return cls(number, None, layouts)
        ends = () if number is None else _torch.tree_leaves(outputs)
        nodes = [t.grad_fn for t in ends if isinstance(t, Tensor)]
        known = below.union(t.grad_fn for t in inputs if t.grad_fn is not None)
        shapes = _shapes([n for n in nodes if n is not None], start[2], known)
        return cls(number, shapes, layouts)

    def differ(self, other: Nodes) -> bool:
        """Return whether the evaluations took different branches."""
        if self.layouts != other.layouts or None in (self.number, other.number):
            return False
        unknown = self.shapes is None or other.shapes is None
        return self.number != other.number or not (
            unknown or self.shapes == other.shapes
        )


def _shapes(
    ends: list[Node], start: int, below: frozenset[Node]
) -> list[tuple[Any, ...]] | None:
    """Return the shapes of what nodes since `start` returned, down to `below`.

    Another thread counts its nodes on its own. If the evaluation used one, or read a
    tensor that is not known, the result is `None`.
    """
    found: dict[Node, tuple[int, tuple[Any, ...]]] = {}
    pending = ends
    while pending:
        node = pending.pop()
        if node in found or node in below:
            continue
        number = _torch.number_of(node)
        if number == _torch.LEAF:
            continue
        if number < start:
            return None
        found[node] = number, _torch.shapes_of(node)
        pending += [parent for parent, _ in node.next_functions if parent is not None]
    return [shapes for _, shapes in sorted(found.values())]


Counts = list[tuple[Network, Nodes]]


class NodesCounted:
    """Note the nodes that a call, and each conditioner in it, adds to the graph.

    A replay that adds others than the forward pass has taken another branch.

    Args:
        state: The state of the call; `None` if only its conditioners are evaluated.
        others: Further tensors that it reads; `None` if only the numbers of nodes are
            compared.
        own_layer: Whether the layer is not one of this library.
    """

    def __init__(
        self,
        state: tuple[Tensor, ...] | None,
        others: Iterable[Tensor] | None,
        own_layer: bool,
    ) -> None:
        self.state = state
        self.own_layer = own_layer
        self.outputs: Any = ()  # what the call returned
        self.below: frozenset[Node] | None = None
        if others is not None:
            self.below = frozenset(t.grad_fn for t in others if t.grad_fn is not None)
        self.counts: Counts = []
        self.whole = Nodes(None, None, ())

    def __enter__(self) -> None:
        self.outside = _running.counting, _running.counted
        _running.counting, _running.counted = True, self
        self.start = _nodes()

    def __exit__(self, *_: object) -> None:
        _running.counting, _running.counted = self.outside
        if self.state is not None:
            # the rest of a layer of this library takes no branches
            below = None if self.counts and not self.own_layer else self.below
            self.whole = Nodes.since(self.start, self.state, self.outputs, below)
        self.state, self.outputs, self.below = None, (), None

    def add(
        self,
        network: Network,
        start: tuple[int, int, int],
        inputs: tuple[Tensor, ...],
        output: Any,
    ) -> None:
        """Note the nodes of a conditioner that was evaluated."""
        self.counts.append((network, Nodes.since(start, inputs, output, self.below)))

    def differ(self, replay: NodesCounted) -> bool:
        """Return whether a replay has added other nodes.

        It may evaluate the conditioners in another order.
        """
        pairs = [(self.whole, replay.whole)]
        for network in {network for network, _ in self.counts}:
            ours, others = (
                [nodes for one, nodes in counts if one is network]
                for counts in (self.counts, replay.counts)
            )
            pairs += zip(ours, others, strict=False)
        return any(a.differ(b) for a, b in pairs)


class Conditioners:
    """Context manager in which conditioners are evaluated in contexts of their own.

    Conditioners inside of conditioners are not.

    Args:
        around: Returns the context of a conditioner; `None` for no context.
    """

    def __init__(self, around: Around | None) -> None:
        self.around = around

    def __enter__(self) -> None:
        self.previous, _running.around = _running.around, self.around

    def __exit__(self, *_: object) -> None:
        _running.around = self.previous


@contextmanager
def repeating(number: int) -> Iterator[None]:
    """Say in a replay which evaluation of a conditioner of the layer it repeats.

    Args:
        number: Its place among those of the forward pass, counted from 0.
    """
    before, _running.repeated = _running.repeated, number
    try:
        yield
    finally:
        _running.repeated = before


def evaluation_repeated() -> int | None:
    """Return the number that `repeating` has set, if any."""
    return _running.repeated


def evaluated(network: Network, context: Context, *inputs: Tensor) -> Any:
    """Evaluate a conditioner, and count the nodes that it adds to the graph.

    A layer evaluates all that is given to it in this way, functions too: what they
    draw is repeated in a replay, and one that takes another branch is refused.
    """
    if _running.around is None:
        return _counted(network, context, inputs)
    with _running.around(network), Conditioners(None):
        return _counted(network, context, inputs)


def _counted(network: Network, context: Context, inputs: tuple[Tensor, ...]) -> Any:
    if not _running.counting:
        return context.offer(network, *inputs)
    counted, start = _running.counted, _nodes()
    assert counted is not None
    _running.counting = False
    try:
        output = context.offer(network, *inputs)
    finally:
        _running.counting = True
    counted.add(network, start, inputs, output)
    return output


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    return type(tensor), strides, _torch.is_view(tensor), tensor.requires_grad


@contextmanager
def nodes_ignored() -> Iterator[None]:
    """Return a context whose nodes are not counted: those of the engine itself."""
    start = _torch.nodes_created()
    try:
        yield
    finally:
        _running.ignored += _torch.nodes_created() - start


def _nodes() -> tuple[int, int, int]:
    created = _torch.nodes_created()
    return created - _running.ignored, _torch.frames_compiled(), created


def _since(start: tuple[int, int, int]) -> int | None:
    """Return the nodes created since; `None` if something was compiled meanwhile."""
    nodes, frames, _ = _nodes()
    return nodes - start[0] if frames == start[1] else None


def initialize(module: Any, direction: str, state: Any, context: Context) -> None:
    """Initialize a layer from the first state of training, if it has to be.

    It is called before the layer: the call must record the parameters that result, and
    FSDP2 gathers the parameters of a layer when it is called.

    Raises:
        RuntimeError: If the direction is an inverse one, or a function is compiled or
            transformed.
    """
    if not module.training:
        return
    inner, part = module._to_initialize(state)
    name = type(inner).__name__
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"{name} initializes from its first input, which torch.compile cannot "
            f"record: call the model once on a batch before it is compiled"
        )
    if _torch.is_functorch_active():
        raise RuntimeError(
            f"{name} initializes from its first input, but a transform of torch.func "
            f"lets nothing be kept: call the model once on a batch before"
        )
    if direction.startswith("inverse"):
        raise RuntimeError(
            f"{name} initializes from its first input, but was first called in the "
            f"inverse direction: call `forward` on data first, or `eval()`"
        )
    if _torch.is_gathered(module):
        raise RuntimeError(
            f"{name} initializes from its first input, but is inside a module that "
            f"`fully_shard` gathered: apply it to the layer too, or call the model "
            f"once before"
        )
    context.call(inner.initialize, part)


def initializing(method: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method `initialize`: no graph, no recording, and it is noted as called."""

    @functools.wraps(method)
    def call(self: Any, state: State, *context: Any, **named: Any) -> None:
        with torch.no_grad(), Recording(None):
            method(self, state, *context, **named)
        self.initialized.fill_(True)
        self._waited = False

    return call


def waits_for_data(module: Any) -> bool:
    """Return whether `initialize` of a layer is still to be called.

    Its buffer says so. It is read again, which synchronizes with the device, where it
    was written or replaced.
    """
    if torch.compiler.is_compiling():
        return bool(module._waited)
    flag = _torch.unwrapped(module.initialized)
    (version,) = _torch.versions([flag])
    seen, when = _FLAGS.get(module, (None, 0))
    if (seen is not flag or when != version) and _torch.has_values(flag):
        _FLAGS[module] = flag, version
        module._waited = not bool(flag.all())
    return bool(module._waited)


def check_hooks(module: nn.Module) -> None:
    """Refuse a module whose hooks see the graph inside, which is not there.

    Raises:
        RuntimeError: If it has hooks of `register_backward_hook`.
    """
    if _torch.has_node_hooks(module):
        raise RuntimeError(
            f"{type(module).__name__} has a hook of the deprecated "
            f"`register_backward_hook`, which depends on the graph inside: use "
            f"`register_full_backward_hook`"
        )


def recorded(direction: Direction) -> Callable[..., Any]:
    """Wrap a method of an elementary module, to pass its calls to the recorder."""

    def call(self: Any, state: State, *context: Any, **named: Any) -> Any:
        _own_graph(self)
        if named:
            check_keywords(type(self).__name__, named, self._keywords())
        if self._waits_for_data:
            initialize(self, direction.name, state, Context(context, named))
        if not _running.recording:
            return direction(self, state, Context(context, named))
        if _running.replays:
            check_hooks(self)
        return _record(self, direction, state, Context(context, named))

    return call


def _own_graph(module: Any) -> None:
    """Let Dynamo compile a module apart from those of which it could compile nothing.

    The directions of all modules have one code. Where Dynamo breaks the graph in one of
    them, it would use the result for other modules, whose passes it could compile.
    """
    if torch.compiler.is_compiling():
        bool(module.breaks_graph), bool(module.training)  # it compares what is read


def _record_call(
    module: nn.Module, direction: Direction, state: State, context: Context
) -> Any:
    recorder = _running.recorder
    assert recorder is not None
    return recorder.record(module, direction, state, context)


# Dynamo must not trace into the recorder from a layer that is compiled on its own.
_record = untraced(_record_call)


def nested(direction: Direction) -> Callable[..., Any]:
    """Wrap a method of a module made of others, so that its `memory` has an effect."""

    def call(self: Any, state: State, *context: Any, **named: Any) -> Any:
        _own_graph(self)
        if _running.replays:
            check_hooks(self)
        if not _running.recording or self.memory in (None, "auto"):
            return direction.function(self, state, *context, **named)
        recorder = _running.recorder
        assert recorder is not None
        with recorder.keeping(self.memory):
            return direction.function(self, state, *context, **named)

    return call
