"""The tape of one pass: the calls in order, and the few states that are kept.

State `i` is the input of call `i` and the output of call `i - 1`. Of all states only
the last one and the anchors are kept; any other is rebuilt from the nearest kept state
above it, one inversion a call. A backward pass asks for the states from the top down,
so it makes each of those steps once.

Calls that are left to autograd ("store") are never inverted: the input of the first of
a row of them is kept.
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
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from invtorch._torch import backward_keeps_graph, versions
from invtorch.engine.checks import as_tensors, check_state_unmodified, check_unbroken
from invtorch.engine.eager.call import Call, RecordedCall
from invtorch.engine.eager.closed_form_call import closed_form_call
from invtorch.engine.eager.node import CallNode
from invtorch.engine.guard.guard import Guard
from invtorch.engine.restore.locks import gradient_accumulators
from invtorch.module import MEMORY, InvertibleModule
from invtorch.recording import Direction, State
from invtorch.replay import Replay, Tensors


class Tape:
    """Records the calls of one pass and rebuilds their input states.

    Args:
        memory: What is kept of calls that do not ask for more, one of `MEMORY`.
        anchors: The indices of the states that are kept exactly in any case.
        guard: What compares rebuilt states with those of the forward pass, if any.
        strategies: What is kept of each call, if a plan says so.
    """

    def __init__(
        self,
        memory: str,
        anchors: frozenset[int],
        guard: Guard | None,
        strategies: Sequence[str] = (),
    ) -> None:
        self.memory = memory
        self.anchors = anchors
        self.guard = guard
        self.strategies = strategies
        self.calls: list[RecordedCall] = []
        self.pending: list[bool] = []  # whether a state will be asked for
        self.top = -1  # the highest one that will
        self.states: dict[int, Snapshot] = {}
        self.order: list[int] = []  # the keys of `states`, sorted
        self.rebuilt: int | None = None
        self.stored = False
        self.ended = False
        self.dropped: deque[int] = deque()
        self.lock = threading.RLock()

    # --- the forward pass -------------------------------------------------------------

    def record(
        self,
        module: InvertibleModule,
        direction: Direction,
        state: State,
        context: tuple[Any, ...],
    ) -> Any:
        """Evaluate one call as a node of the graph and remember it."""
        tensors, index = as_tensors(state), len(self.calls)
        memory = self._memory_of(module, index)
        call = _recorded_call(index, module, direction, state, context, memory)
        if index:
            above = self.calls[-1].label
            check_unbroken(call.label, above, self.states[index].is_of(tensors))
        inputs = (*tensors, *call.grad_inputs)
        after_stored, self.stored = self.stored, False
        if not any(t.requires_grad for t in inputs):
            outputs, kept = call.run(tensors, context), False
        elif memory == "store":
            assert isinstance(call, Call)
            outputs, kept = call.store(state, context), not after_stored
            self.stored = True
        else:
            outputs = self._node(call, index, tensors, context)
            kept = memory != "invert" or index in self.anchors
        self._append(call, tensors, outputs[: call.arity], kept, memory)
        return call.returned(outputs)

    @contextmanager
    def keeping(self, memory: str) -> Iterator[None]:
        """Let the calls inside keep at least what the strategy `memory` keeps."""
        outside = self.memory
        self.memory = max(outside, memory, key=MEMORY.index)
        try:
            yield
        finally:
            self.memory = outside

    def end(self) -> None:
        """Expect no more calls: from now on, drop states that nothing asks for."""
        self.ended = True
        with self.lock:
            self._drop_unreachable()

    def _memory_of(self, module: InvertibleModule, index: int) -> str:
        planned = self.strategies[index : index + 1]
        asked = (module.memory or "invert", self.memory, *planned)
        return max(asked, key=MEMORY.index)

    def _node(
        self, call: RecordedCall, index: int, state: Tensors, context: tuple[Any, ...]
    ) -> Tensors:
        """Evaluate a call, and let a node of the graph stand for it."""
        outputs = [t.detach() for t in call.run(state, context)]
        inputs = (*state, *call.grad_inputs)
        # both live until the node does: the handle is then held by what it saves
        handle, held = self._handle(index, call), gradient_accumulators(inputs)
        with handle.saved_instead():
            tied: Tensors = CallNode.apply(handle.finder(), outputs, *inputs)
        del handle, held
        return tied

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
        if index in self.states and not kept:
            self._drop(index)
        if kept and index not in self.states:
            self._put(index, state)
        if kept and memory == "offload":
            self.states[index] = self.states[index].on_host()
        self._put(index + 1, output)
        if self.guard:
            self.guard.take(call.label, call.dtypes(), self.states[index + 1].kept)

    def _handle(self, index: int, call: RecordedCall) -> Handle:
        """Return a handle of state `index`, which is pending while it lives."""
        self.pending.extend([False] * (index + 1 - len(self.pending)))
        self.pending[index], self.top = True, index
        return Handle(self, index, call)

    # --- the backward pass ------------------------------------------------------------

    def replay(self, index: int) -> Replay:
        """Evaluate call `index` again, from its input if kept, else from its output."""
        call = self.calls[index]
        with self.lock:
            if index in self.states:
                replay = call.replay(state=self._read(index))
                self._compare(index, index + 1, replay.outputs[: call.arity])
            else:
                replay = call.replay(output=self._state(index + 1))
                self._move(index, replay.state)
            if not backward_keeps_graph():
                self.dropped.append(index)  # its node is about to be freed
            self._trim()
        return replay

    def rebuild(self, index: int) -> Tensors:
        """Return state `index`: kept, or rebuilt from the nearest kept one above."""
        with self.lock:
            state = self._state(index)
            self._trim()
        return state

    def expect(self, index: int, state: Tensors) -> None:
        """Keep state `index`, which was not expected to be asked for again."""
        with self.lock:
            self.dropped = deque(i for i in self.dropped if i != index)
            self.pending[index], self.top = True, max(self.top, index)
            if index not in self.states:
                self._put(index, state)

    def release(self, index: int) -> None:
        """Drop what is out of reach once state `index` will not be asked for again.

        Any thread may come here at any moment, while it holds a layer that the thread
        which holds the tape waits for; so it leaves a note and does not wait.
        """
        self.dropped.append(index)
        if self.lock.acquire(blocking=False):
            try:
                self._trim()
            finally:
                self.lock.release()

    def _state(self, index: int) -> Tensors:
        place = bisect_left(self.order, index)
        if place == len(self.order):
            raise RuntimeError(
                f"the output of {self.calls[index - 1].label} is gone, since backward "
                f"freed the layers above it: use `retain_graph=True`, or add the losses"
            )
        nearest = self.order[place]
        for i in range(nearest - 1, index - 1, -1):
            self._move(i, self.calls[i].invert(self._read(i + 1)))
        return self._read(index)

    def _move(self, index: int, state: Tensors) -> None:
        """Let the one rebuilt state be `state`."""
        if self.rebuilt in self.states:
            self._drop(self.rebuilt)
        self._put(index, state)
        self.rebuilt = index
        self._compare(index, index, state)

    def _compare(self, layer: int, index: int, state: Tensors) -> None:
        if self.guard:
            self.guard.compare(layer, index, tuple(t.detach() for t in state))

    def _read(self, index: int) -> Tensors:
        snapshot = self.states[index]
        label = f"output of {self.calls[index - 1].label}" if index else "input"
        check_state_unmodified(label, snapshot.unchanged())
        return snapshot.tensors

    # --- the states that are kept -----------------------------------------------------

    def _trim(self) -> None:
        """Drop the states that are out of reach, unless the pass still goes on."""
        if self.ended and self.dropped:
            self._drop_unreachable()

    def _drop_unreachable(self) -> None:
        """Drop the states that no pending one is rebuilt from.

        The highest pending state is rebuilt from the first one kept at or above it, so
        whatever lies higher is of no use any more.
        """
        while self.dropped:
            self.pending[self.dropped.popleft()] = False
        while self.top >= 0 and not self.pending[self.top]:
            self.top -= 1
        while len(self.order) > 1 and self.order[-2] >= self.top:
            del self.states[self.order.pop()]

    def _put(self, index: int, state: Tensors) -> None:
        self.states[index] = Snapshot.of(state)
        insort(self.order, index)

    def _drop(self, index: int) -> None:
        del self.states[index]
        self.order.remove(index)


def _recorded_call(
    index: int,
    module: InvertibleModule,
    direction: Direction,
    state: State,
    context: tuple[Any, ...],
    memory: str,
) -> RecordedCall:
    """Return a call in closed form where it has one and autograd is not to keep it."""
    arguments = index, module, direction, state, context
    if memory != "store":
        call = closed_form_call(*arguments)
        if call is not None:
            return call
    return Call(*arguments)


class Handle:
    """What a node saves in place of its input state. Without handles the tape dies.

    A node finds its handle by a number, and holds no weak reference of its own: while
    other threads use a node, Python's garbage collector may take it for unreachable. It
    finds out before it frees the node, but after it cleared such weak references.
    """

    living: ClassVar[WeakValueDictionary[int, Handle]] = WeakValueDictionary()
    numbers = itertools.count()

    def __init__(self, tape: Tape, index: int, call: RecordedCall) -> None:
        self.tape, self.index, self.call = tape, index, call
        self.number = next(self.numbers)
        self.living[self.number] = self

    def saved_instead(self) -> saved_tensors_hooks:
        """Let what is saved inside be this handle and a position, instead of tensors.

        Unpacking them rebuilds the state.
        """
        position = itertools.count()
        return saved_tensors_hooks(lambda _: (self, next(position)), _unpack)

    def finder(self) -> Callable[[], Handle | None]:
        """Return what finds this handle for as long as something else holds it."""
        return partial(self.living.get, self.number)

    def replay(self) -> Replay:
        """Evaluate the call again, detached from the graph around it."""
        return self.tape.replay(self.index)

    def replay_again(self, replay: Replay) -> None:
        """Let the call be evaluated once more, after a backward that failed."""
        self.tape.expect(self.index, replay.state)

    def __del__(self) -> None:
        self.tape.release(self.index)


def _unpack(saved: tuple[Handle, int]) -> Tensor:
    handle, position = saved
    return handle.tape.rebuild(handle.index)[position]


class Snapshot(NamedTuple):
    """A state that is kept, and how often it had been changed in place.

    Attributes:
        kept: The tensors, without their graph.
        versions: How often each had been changed in place.
        devices: Where the state belongs, if it is kept elsewhere.
    """

    kept: Tensors
    versions: list[int]
    devices: tuple[torch.device, ...] = ()

    @classmethod
    def of(cls, state: Tensors) -> Snapshot:
        """Take a snapshot that shares memory with `state` but not its graph."""
        return cls(tuple([t.detach() for t in state]), versions(state))

    def on_host(self) -> Snapshot:
        """Move to the memory of the host; what lives there already stays as it is."""
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
        """Tell whether nothing was written into these tensors since."""
        return versions(self.kept) == self.versions

    def is_of(self, state: Tensors) -> bool:
        """Tell whether `state` is this very memory, unchanged."""
        return self.unchanged() and [*map(_memory, self.kept)] == [*map(_memory, state)]


def _on_host(tensor: Tensor) -> Tensor:
    """Queue a copy to pinned memory, on the stream of the computation."""
    if tensor.device.type == "cpu":
        return tensor
    pinned = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return pinned.copy_(tensor, non_blocking=tensor.is_cuda)


def _memory(tensor: Tensor) -> tuple[Any, ...]:
    """Return what two tensors have in common that are the same memory, seen alike."""
    view = tensor.dtype, tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), *view
