"""The tape of one pass: the calls in order, and the few states that are kept.

State `i` is the input of call `i` and the output of call `i - 1`. Only the last state
and the anchors are kept. Any other state is rebuilt from the nearest kept state above
it, with one inversion for each call in between. A backward pass requests the states
from the last to the first, so every call is inverted once.

Calls with `memory="store"` are left to autograd and never inverted. The input of the
first of several such calls in a row is kept.

If the input of a pass is the output of another one, as in `b(a(x))`, the tape of `b`
can rebuild it. Then the tape of `a` need not keep its last state: it asks for that of
`b`. See `chain.py`.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NamedTuple
from weakref import ReferenceType, WeakValueDictionary, ref

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from invtorch import _torch
from invtorch._torch import backward_keeps_graph, untraced, versions
from invtorch.engine.checks import as_tensors, check_state_unmodified, check_unbroken
from invtorch.engine.eager.call import Call, RecordedCall
from invtorch.engine.eager.chain import Chain
from invtorch.engine.eager.closed_form_call import closed_form_call
from invtorch.engine.eager.node import CallNode
from invtorch.engine.first_layers import (
    has_samples,
    last_states,
    moves_of,
    with_entries_of,
)
from invtorch.engine.guard.guard import Guard
from invtorch.engine.restore.locks import gradient_accumulators
from invtorch.engine.restore.random_numbers import Quiet
from invtorch.module import MEMORY, InvertibleModule
from invtorch.recording import Context, Direction, State
from invtorch.replay import Replay, Tensors

LINK = -1  # stands for the link of the tape before among the indices of states


class Tape:
    """Records the calls of one pass and rebuilds their input states.

    Args:
        memory: The strategy of all calls, one of `MEMORY`. A layer, or an entry of
            `strategies`, can set one that keeps more.
        anchors: The indices of the states that are kept exactly.
        guard: Compares rebuilt states with those of the forward pass, if any.
        strategies: The strategy of each call, if there is a plan.
        limit: How many states between consecutive passes are kept.
    """

    replays = True

    def __init__(
        self,
        memory: str,
        anchors: frozenset[int],
        guard: Guard | None,
        strategies: Sequence[str] = (),
        limit: int = 0,
    ) -> None:
        self.memory = memory
        self.anchors = anchors
        self.guard = guard
        self.strategies = strategies
        self.limit = limit
        self.calls: list[RecordedCall] = []
        self.pending: list[bool] = []  # whether a node still needs this state
        self.top = -1  # the index of the last pending state
        self.states: dict[int, Snapshot | Packed | Linked] = {}
        self.order: list[int] = []  # the keys of `states`, sorted
        self.rebuilt: int | None = None  # the one rebuilt state that is held
        self.chain: Chain | None = None  # the passes of which this is one
        self.next: ReferenceType[Tape] | None = None  # the one after this
        self.linked = False  # whether the tape of the pass before needs state 0
        self.stored = False  # whether the last call was left to autograd
        self.first = 0  # the first layer that does more than mix, or is stored
        self.last_states: tuple[int, ...] | None = None  # see `first_layers`
        self.ended = False  # whether the forward pass has ended
        # indices that are no longer pending; appending to a deque is atomic, so that
        # `release` needs no lock
        self.dropped: deque[int] = deque()
        # backward passes of several threads may replay calls of the same tape; what a
        # replay calls may unpack a state of it, or free a handle, in the same thread
        self.lock = threading.RLock()
        self.quiet = Quiet()

    # --- the forward pass -------------------------------------------------------------

    def record(
        self,
        module: InvertibleModule,
        direction: Direction,
        state: State,
        context: Context,
    ) -> Any:
        """Evaluate one call as a node of the graph and append it to the tape."""
        tensors, index = as_tensors(state), len(self.calls)
        memory = self._memory_of(module, index)
        call = _recorded_call(index, module, direction, state, context, memory)
        if index:
            above = self.calls[-1].label
            check_unbroken(call.label, above, self._snapshot(index).is_of(tensors))
        after_stored, self.stored = self.stored, False
        if memory == "store" and _is_differentiable(tensors, call):
            assert isinstance(call, Call)
            outputs, kept = call.store(state, context), not after_stored
            self.stored = True
        else:
            outputs, kept = self._run(call, tensors, context), False
            self.first += index == self.first and call.mixes
            needed = _is_differentiable(tensors, call)
            if needed:
                outputs = tuple([t.detach() for t in outputs])  # frees the graph inside
                outputs = self._node(call, index, tensors, outputs)
                kept = memory != "invert" or index in self.anchors
            if not index and (needed or self.first):
                kept = self._begin(tensors) or kept
        self._append(call, tensors, outputs[: call.output_arity], kept, memory)
        return call.returned(outputs)

    @contextmanager
    def keeping(self, memory: str) -> Iterator[None]:
        """Make calls in this context keep at least what strategy `memory` keeps."""
        outside = self.memory
        self.memory = max(outside, memory, key=MEMORY.index)
        try:
            yield
        finally:
            self.memory = outside

    def end(self) -> None:
        """End the forward pass: from now on, states that are not needed are dropped."""
        self.ended = True
        if self.guard:
            self.guard.end()
        if self.chain is None:
            self.chain = Chain(self.limit)
        moved = self.quiet.end()
        if moved:
            for call in self.calls:
                call.watch(moved)  # a replay that draws could not repeat it
        with self.lock:
            self._drop_unreachable()
            if self.pending:  # a node needs the last state
                self._pack(self.order[-1])

    def _memory_of(self, module: InvertibleModule, index: int) -> str:
        planned = self.strategies[index : index + 1]
        asked = (module.memory or "invert", self.memory, *planned)
        return max(asked, key=MEMORY.index)

    def _run(self, call: RecordedCall, state: Tensors, context: Context) -> Tensors:
        outputs = call.run(state, context)
        self.quiet.follow(call.read)
        return outputs

    def _node(
        self, call: RecordedCall, index: int, state: Tensors, outputs: Tensors
    ) -> Tensors:
        """Attach the outputs of a call to one node."""
        inputs = (*state, *call.grad_inputs, *call.held_inside())
        # both must live until the node exists: then its saved tensors hold the handle
        handle, held = self._handle(index, call), gradient_accumulators(inputs)
        with handle.saved_instead():
            attached: Tensors = CallNode.apply(handle.finder(), outputs, *inputs)
        del handle, held
        return attached

    def _append(
        self,
        call: RecordedCall,
        state: Tensors,
        output: Tensors,
        kept: bool,
        memory: str,
    ) -> None:
        index = len(self.calls)
        self.calls.append(call)
        if self.guard and not index:
            self.guard.begin(tuple(t.detach() for t in state))
        if kept:
            self._keep(index, state, memory)
        elif index in self.states:
            self._drop(index)
        self._put(index + 1, output)
        if self.guard:
            kept_state = self._snapshot(index + 1).kept
            self.guard.take(call.label, call.dtypes(), kept_state)

    def _handle(self, index: int, call: RecordedCall) -> Handle:
        """Return a handle of state `index`; the state is pending while it exists."""
        self.pending.extend([False] * (index + 1 - len(self.pending)))
        self.pending[index], self.top = True, index
        return Handle(self, index, call)

    # --- passes one after another -----------------------------------------------------

    def _begin(self, state: Tensors) -> bool:
        """Continue the pass that computed the input, if any; return if it is kept.

        An input of the caller is kept: that costs nothing as long as it lives.
        """
        before = _tape_of(state)
        if before is None or before.chain is None:
            return True
        self.chain = before.chain
        before.link(self)
        return self.chain.extend(self)

    def link(self, other: Tape) -> None:
        """Let the next pass rebuild the last state, in place of keeping it."""
        with self.lock:
            self.next = self.next or ref(other)
            last = len(self.calls)
            if isinstance(self.states.get(last), Snapshot | Packed):
                self.states[last] = Linked(Link(other))

    def forget_input(self) -> None:
        """Do not keep the input any more: it can be rebuilt from the next pass."""
        after = None if self.next is None else self.next()
        last = len(self.calls)
        with self.lock:
            if last not in self.states and after is not None:
                self.states[last] = Linked(Link(after))
                insort(self.order, last)
            if last in self.states and 0 in self.states:
                self._drop(0)

    # --- the backward pass ------------------------------------------------------------

    def replay(self, index: int) -> Replay:
        """Evaluate call `index` again, from its input if kept, else from its output."""
        call = self.calls[index]
        with self.lock:
            self._find_last_states()
            self._begin_again(index)
            if index in self.states:
                replay = call.replay(state=self._read(index))
                self._compare(index, index + 1, replay.outputs[: call.output_arity])
            else:
                replay = call.replay(output=self._state(index + 1))
                if call.own_layer and len(replay.outputs) >= call.output_arity:
                    self._compare(index, index + 1, replay.outputs[: call.output_arity])
                self._move(index, replay.state)
            if not backward_keeps_graph():
                self.dropped.append(index)  # PyTorch is about to free its node
            self._trim()
        return replay

    def rebuild(self, index: int) -> Tensors:
        """Return state `index`: kept, or rebuilt from the nearest kept one above."""
        with self.lock:
            state = self._state(index)
            self._trim()
        return state

    def expect(self, index: int, state: Tensors) -> None:
        """Keep state `index` for another replay of its call."""
        with self.lock:
            self.dropped = deque(i for i in self.dropped if i != index)
            self.pending[index], self.top = True, max(self.top, index)
            if index not in self.states:
                self._put(index, state)

    def release(self, index: int) -> None:
        """Mark state `index` as not pending, and drop states that are not needed.

        Python may call this in any thread at any moment, because a destructor does. The
        thread may hold the locks of a layer that the owner of `lock` waits for, so that
        waiting for `lock` could deadlock. The index is appended without waiting; the
        owner of `lock` drops the states later.
        """
        self.dropped.append(index)
        if self.lock.acquire(blocking=False):
            try:
                self._trim()
            finally:
                self.lock.release()

    def _state(self, index: int) -> Tensors:
        self._find_last_states()
        self._begin_again(index)
        place = bisect_left(self.order, index)
        if place == len(self.order):
            raise RuntimeError(
                f"the output of {self.calls[index - 1].label} was freed by an earlier "
                f"backward pass: use `retain_graph=True`, or sum the losses first"
            )
        nearest = self.order[place]
        for i in range(nearest - 1, index - 1, -1):
            self._move(i, self.calls[i].invert(self._read(i + 1)))
        return self._read(index)

    def _begin_again(self, index: int) -> None:
        """Evaluate the first layers again, if state `index` is theirs and not kept.

        Layers that only mix leave a state as small as the input, beside which the
        states above may be so large that inversion loses all digits of it.
        """
        if index > self.first or not 0 < self.first < len(self.calls):
            return
        place = bisect_left(self.order, index)
        known = place < len(self.order) and self.order[place] <= self.first
        if known or 0 not in self.states or not self.states[0].unchanged():
            return
        state = self._read(0)
        for call in self.calls[: self.first]:
            outputs = call.replay(state=state).outputs[: call.output_arity]
            state = tuple([t.detach() for t in outputs])
        self._replace_rebuilt(self.first, state)
        self._compare(self.first - 1, self.first, state)

    def _move(self, index: int, state: Tensors) -> None:
        """Replace the rebuilt state by `state`."""
        self._replace_rebuilt(index, self._with_entries_of_the_input(index, state))
        self._compare(index, index, state)

    def _with_entries_of_the_input(self, index: int, state: Tensors) -> Tensors:
        """Return a rebuilt state with the entries that no layer has changed."""
        start = self._input() if index in (self.last_states or ()) else None
        if start is None:
            return state
        (rebuilt,) = state
        moves = moves_of(self.calls[:index])
        with _torch.unseen_by_modes():
            return (with_entries_of(start, moves, rebuilt.detach()),)

    def _find_last_states(self) -> None:
        """Find where entries of the input are lost, before a graph takes memory."""
        if self.last_states is None:
            start = self._input()
            moves = moves_of(self.calls)
            self.last_states = () if start is None else last_states(start, moves)

    def _input(self) -> Tensor | None:
        """Return the input of the pass, if it is kept and one tensor with samples."""
        kept = self.states.get(0)
        if not isinstance(kept, Snapshot) or not kept.unchanged():
            return None
        start, *others = kept.tensors
        return start if not others and has_samples(start) else None

    def _replace_rebuilt(self, index: int, state: Tensors) -> None:
        if self.rebuilt in self.states:
            self._drop(self.rebuilt)
        self._put(index, state)
        self.rebuilt = index

    def _compare(self, layer: int, index: int, state: Tensors) -> None:
        if self.guard:
            self.guard.compare(layer, index, tuple(t.detach() for t in state))

    def _read(self, index: int) -> Tensors:
        state = self.states[index]
        label = f"output of {self.calls[index - 1].label}" if index else "input"
        check_state_unmodified(label, state.unchanged())
        if isinstance(state, Linked):
            return state.tensors
        return self._snapshot(index).tensors

    # --- the states that are kept -----------------------------------------------------

    def _trim(self) -> None:
        """Drop the states that are not needed, once the forward pass has ended."""
        if self.ended and self.dropped:
            self._drop_unreachable()

    def _drop_unreachable(self) -> None:
        """Drop the states that no pending one is rebuilt from.

        The last pending state is rebuilt from the first state kept at or above it.
        States above that one are not needed.
        """
        while self.dropped:
            index = self.dropped.popleft()
            if index == LINK:
                self.linked = False
            else:
                self.pending[index] = False
        while self.top >= 0 and not self.pending[self.top]:
            self.top -= 1
        needed = max(self.top, 0) if self.linked else self.top
        while len(self.order) > 1 and self.order[-2] >= needed:
            del self.states[self.order.pop()]

    def _put(self, index: int, state: Tensors) -> None:
        self.states[index] = Snapshot.of(state)
        insort(self.order, index)

    def _keep(self, index: int, state: Tensors, memory: str) -> None:
        if index not in self.states:
            self._put(index, state)
        if memory == "offload":
            self.states[index] = self._snapshot(index).on_host()
        else:
            self._pack(index)

    def _snapshot(self, index: int) -> Snapshot:
        state = self.states[index]
        if isinstance(state, Packed):  # unpacked once: what packed it may allow no more
            state = self.states[index] = Snapshot.of(state.unpacked())
        assert isinstance(state, Snapshot)
        return state

    def _pack(self, index: int) -> None:
        """Pack a state that is kept, if hooks of saved tensors are active."""
        hooks, state = _torch.saved_tensors_hooks_now(), self.states[index]
        if hooks is not None and isinstance(state, Snapshot):
            self.states[index] = Packed.of(state.kept, hooks)

    def _drop(self, index: int) -> None:
        del self.states[index]
        self.order.remove(index)


def _is_differentiable(state: Tensors, call: RecordedCall) -> bool:
    """Return whether anything that a call reads needs a gradient."""
    return any(t.requires_grad for t in (*state, *call.grad_inputs))


def _recorded_call(
    index: int,
    module: InvertibleModule,
    direction: Direction,
    state: State,
    context: Context,
    memory: str,
) -> RecordedCall:
    """Return a call in closed form, if there is one and it is not left to autograd."""
    arguments = index, module, direction, state, context
    if memory != "store":
        call = closed_form_call(*arguments)
        if call is not None:
            return call
    return Call(*arguments)


class Handle:
    """What a node saves instead of its input state.

    The saved tensors of the nodes hold the handles, and the handles hold the tape: when
    PyTorch frees the saved tensors, the tape is freed.

    A node looks up its handle by number and holds no weak reference of its own. While
    other threads use a node, Python's garbage collector may consider it unreachable. It
    notices its mistake before it frees the node, but after it has cleared the weak
    references that the node holds.
    """

    living: ClassVar[WeakValueDictionary[int, Handle]] = WeakValueDictionary()
    numbers = itertools.count()

    def __init__(self, tape: Tape, index: int, call: RecordedCall) -> None:
        self.tape, self.index, self.call = tape, index, call
        self.number = next(self.numbers)
        self.living[self.number] = self

    def saved_instead(self) -> saved_tensors_hooks:
        """Return hooks that save this handle and a position instead of each tensor.

        Unpacking rebuilds the state.
        """
        position = itertools.count()
        return saved_tensors_hooks(lambda _: (self, next(position)), _unpack)

    def finder(self) -> Callable[[], Handle | None]:
        """Return a function that returns this handle while something else holds it."""
        return partial(self.living.get, self.number)

    def replay(self) -> Replay:
        """Evaluate the call again, detached from the graph around it."""
        return self.tape.replay(self.index)

    def replay_again(self, replay: Replay) -> None:
        """Allow another replay of the call, after a backward pass that failed."""
        self.tape.expect(self.index, replay.state)

    def __del__(self) -> None:
        self.tape.release(self.index)


@untraced
def _unpack(saved: tuple[Handle, int]) -> Tensor:
    handle, position = saved
    return handle.tape.rebuild(handle.index)[position]


class Link:
    """What a tape holds of the next one: while it exists, that one can rebuild state 0.

    Args:
        tape: The next tape.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        with tape.lock:
            tape.linked = True

    def __del__(self) -> None:
        self.tape.release(LINK)


class Linked(NamedTuple):
    """The last state of a pass, which the next pass rebuilds."""

    link: Link

    @property
    def tensors(self) -> Tensors:
        """The state, rebuilt."""
        return self.link.tape.rebuild(0)

    def unchanged(self) -> bool:
        """Return `True`: the next tape checks what it rebuilds the state from."""
        return True


def _tape_of(state: Tensors) -> Tape | None:
    """Return the tape whose last state this is, unmodified, or `None`."""
    nodes = {t.grad_fn for t in state}
    find = getattr(nodes.pop(), "handle", None) if len(nodes) == 1 else None
    handle = find() if isinstance(find, partial) else None
    if not isinstance(handle, Handle):
        return None
    tape, last = handle.tape, len(handle.tape.calls)
    kept = tape.states.get(last)
    modified = isinstance(kept, Snapshot) and not kept.is_of(state)
    is_last = tape.ended and handle.index == last - 1 and not modified
    return tape if is_last else None


class Snapshot(NamedTuple):
    """A state that is kept, and the version counters of its tensors.

    Attributes:
        kept: The tensors, without their graph.
        versions: The version counter of each, which in-place operations increment.
        devices: The devices of the state, if it is kept in the memory of the host.
    """

    kept: Tensors
    versions: list[int]
    devices: tuple[torch.device, ...] = ()

    @classmethod
    def of(cls, state: Tensors) -> Snapshot:
        """Take a snapshot that shares memory with `state` but not its graph."""
        return cls(tuple([t.detach() for t in state]), versions(state))

    def on_host(self) -> Snapshot:
        """Return a copy in the memory of the host; tensors on the CPU are shared."""
        kept = tuple(map(_on_host, self.kept))
        devices = tuple(t.device for t in self.kept)
        return Snapshot(kept, versions(kept), devices)

    @property
    def tensors(self) -> Tensors:
        """The state on its device."""
        if not self.devices:
            return self.kept
        pairs = zip(self.kept, self.devices, strict=True)
        return tuple(t.to(device, non_blocking=True) for t, device in pairs)

    def unchanged(self) -> bool:
        """Return whether no tensor was changed in place since."""
        return versions(self.kept) == self.versions

    def is_of(self, state: Tensors) -> bool:
        """Return whether `state` is the same memory, unchanged."""
        return self.unchanged() and [*map(_memory, self.kept)] == [*map(_memory, state)]


class Packed(NamedTuple):
    """A state that hooks of saved tensors have packed.

    Attributes:
        packed: What they made of each tensor.
        unpack: Returns the tensor again.
        versions: The version counters of the tensors inside `packed`.
    """

    packed: tuple[Any, ...]
    unpack: Callable[[Any], Tensor]
    versions: list[int]

    @classmethod
    def of(cls, tensors: Tensors, hooks: _torch.SavedTensorsHooks) -> Packed:
        """Pack the tensors of a state."""
        pack, unpack = hooks
        packed = tuple(map(pack, tensors))
        return cls(packed, unpack, versions(_tensors_in(packed)))

    def unpacked(self) -> Tensors:
        """Return the tensors of the state."""
        return tuple(map(self.unpack, self.packed))

    def unchanged(self) -> bool:
        """Return whether no tensor was changed in place since."""
        return versions(_tensors_in(self.packed)) == self.versions


def _tensors_in(packed: tuple[Any, ...]) -> list[Tensor]:
    leaves = _torch.tree_leaves(packed)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _on_host(tensor: Tensor) -> Tensor:
    """Copy to pinned memory, asynchronously on the current stream."""
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return pinned.copy_(tensor, non_blocking=tensor.is_cuda)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Return a key that is equal for two tensors with the same memory and layout."""
    view = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    plain = type(tensor) is Tensor or not hasattr(tensor, "fake_mode")
    address = tensor.data_ptr() if plain else 0  # fake tensors have no memory
    return address, tensor.shape, tensor.stride(), *view
