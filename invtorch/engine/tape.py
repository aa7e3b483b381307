"""The tape of one pass: the calls in order, and the few states that are kept.

State `i` is the input of call `i` and the output of call `i - 1`. Of all states only
the last one and the anchors are kept; any other is rebuilt from the nearest kept state
above it, one inversion a call. A backward pass asks for the states from the top down,
so it makes each of those steps once.

Calls that are left to autograd ("store") are never walked through: the input of the
first of a row of them is kept.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from invtorch.base import MEMORY, InvertibleModule
from invtorch.engine.frame import Frame, as_tensors
from invtorch.engine.guard import Guard
from invtorch.engine.locks import accumulators
from invtorch.engine.node import ReplayNode
from invtorch.engine.pure_frame import AnyFrame, pure_frame
from invtorch.engine.replayed import Replayed, Tensors
from invtorch.engine.snapshot import Snapshot
from invtorch.recording import Direction, State


class Handle:
    """What a node saves in place of its input state. Without handles the tape dies.

    A node finds its handle by a number, and holds no weak reference of its own: while
    other threads use a node, Python's garbage collector may take it for unreachable. It
    finds out before it frees the node, but after it cleared such weak references.
    """

    living: ClassVar[WeakValueDictionary[int, Handle]] = WeakValueDictionary()
    numbers = itertools.count()

    def __init__(self, tape: Tape, index: int, frame: AnyFrame) -> None:
        self.tape, self.index, self.frame = tape, index, frame
        self.number = next(self.numbers)
        self.living[self.number] = self

    def promised(self) -> saved_tensors_hooks:
        """Let what is saved inside be this handle instead of tensors."""
        place = itertools.count()
        return saved_tensors_hooks(lambda _: (self, next(place)), _kept_promise)

    def finder(self) -> Callable[[], Handle | None]:
        """Return what finds this handle for as long as somebody else holds it."""
        return partial(self.living.get, self.number)

    def replay(self) -> Replayed:
        """Evaluate the call again, detached from the graph around it."""
        return self.tape.replay(self.index)

    def replay_again(self, replayed: Replayed) -> None:
        """Let the call be evaluated once more, after a backward that failed."""
        self.tape.want(self.index, replayed.inputs[: self.frame.arity])

    def __del__(self) -> None:
        self.tape.release(self.index)


class Tape:
    """Records the calls of one pass and rebuilds their input states.

    Args:
        memory: What is kept of calls that do not ask for more, one of `MEMORY`.
        anchors: The indices of the states that are kept exactly in any case.
        guard: What compares rebuilt states with those of the forward pass, if wanted.
        assigned: What is kept of each call, if a plan says so.
    """

    def __init__(
        self,
        memory: str,
        anchors: frozenset[int],
        guard: Guard | None,
        assigned: Sequence[str] = (),
    ) -> None:
        self.memory = memory
        self.anchors = anchors
        self.guard = guard
        self.assigned = assigned
        self.frames: list[AnyFrame] = guard.frames if guard else []
        self.wanted: list[bool] = []
        self.top = -1
        self.states: dict[int, Snapshot] = {}
        self.order: list[int] = []
        self.rebuilt: int | None = None
        self.stored = False
        self.ended = False
        self.dropped: deque[int] = deque()
        self.lock = threading.RLock()

    def record(
        self,
        module: InvertibleModule,
        direction: Direction,
        state: State,
        context: tuple[Any, ...],
    ) -> Any:
        """Evaluate one call as a node of the graph and remember it."""
        tensors = as_tensors(state)
        index = len(self.frames)
        wanted = *self.assigned[index : index + 1], self.memory
        memory = max(module.memory or "invert", *wanted, key=MEMORY.index)
        call = index, module, direction, state, context
        frame = (memory != "store" and pure_frame(*call)) or Frame(*call)
        self._check_unbroken(frame, tensors)
        inputs = (*tensors, *frame.companions)
        after_stored, self.stored = self.stored, False
        if not any(t.requires_grad for t in inputs):
            outputs, kept = frame.run(tensors, context), False
        elif memory == "store":
            assert isinstance(frame, Frame)
            outputs, kept = frame.store(state, context), not after_stored
            self.stored = True
        else:
            found = [t.detach() for t in frame.run(tensors, context)]
            handle, held = self._handle(index, frame), accumulators(inputs)
            with handle.promised():
                outputs = ReplayNode.apply(handle.finder(), found, *inputs)
            del handle, held
            kept = memory != "invert" or index in self.anchors
        self._append(frame, tensors, outputs[: frame.arity], kept, memory)
        return frame.returned(outputs)

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
        """Expect no more calls: from now on states that nobody asks for are dropped."""
        self.ended = True
        with self.lock:
            self._drop_unreachable()

    def replay(self, index: int) -> Replayed:
        """Evaluate call `index` again, from its input if kept, else from its output."""
        frame = self.frames[index]
        with self.lock:
            if index in self.states:
                replayed = frame.rerun(self._read(index))
                self._compare(index, index + 1, replayed.outputs[: frame.arity])
            else:
                replayed = frame.replay(self._state(index + 1))
                self._move(index, replayed.inputs[: frame.arity])
            if not torch._C._autograd._get_current_graph_task_keep_graph():
                self.dropped.append(index)  # its node is about to be freed
            self._trim()
        return replayed

    def rebuild(self, index: int) -> Tensors:
        """Return state `index`: kept, or rebuilt from the nearest kept one above."""
        with self.lock:
            state = self._state(index)
            self._trim()
        return state

    def want(self, index: int, state: Tensors) -> None:
        """Keep state `index`, which was not expected to be asked for again."""
        with self.lock:
            self.dropped = deque(i for i in self.dropped if i != index)
            self.wanted[index], self.top = True, max(self.top, index)
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

    def _trim(self) -> None:
        """Drop the states that are out of reach.

        The highest state still wanted is rebuilt from the first one kept at or above
        it, so whatever lies higher is of no use any more. A pass that goes on may want
        any of them.
        """
        if self.ended and self.dropped:
            self._drop_unreachable()

    def _drop_unreachable(self) -> None:
        while self.dropped:
            self.wanted[self.dropped.popleft()] = False
        while self.top >= 0 and not self.wanted[self.top]:
            self.top -= 1
        while len(self.order) > 1 and self.order[-2] >= self.top:
            del self.states[self.order.pop()]

    def _state(self, index: int) -> Tensors:
        place = bisect_left(self.order, index)
        if place == len(self.order):
            raise RuntimeError(
                f"the output of {self.frames[index - 1].label} is gone, from which its "
                f"input would be rebuilt: a backward pass freed the layers above it; "
                f"give that one `retain_graph=True`, or add the losses up"
            )
        nearest = self.order[place]
        for i in range(nearest - 1, index - 1, -1):
            self._move(i, self.frames[i].invert(self._read(i + 1)))
        return self._read(index)

    def _compare(self, layer: int, index: int, state: Tensors) -> None:
        if self.guard:
            self.guard.compare(layer, index, tuple(t.detach() for t in state))

    def _move(self, index: int, state: Tensors) -> None:
        """Let the one rebuilt state be `state`."""
        if self.rebuilt in self.states:
            self._drop(self.rebuilt)
        self._put(index, state)
        self.rebuilt = index
        self._compare(index, index, state)

    def _read(self, index: int) -> Tensors:
        snapshot = self.states[index]
        if not snapshot.unchanged():
            what = f"output of {self.frames[index - 1].label}" if index else "input"
            raise RuntimeError(
                f"the {what} was modified in place after the forward pass, and the "
                f"states before it can no longer be rebuilt: change a copy of it, for "
                f"instance `y = y + 1` in place of `y += 1`"
            )
        return snapshot.tensors

    def _append(
        self, frame: AnyFrame, state: Tensors, output: Tensors, kept: bool, memory: str
    ) -> None:
        index = len(self.frames)
        self.frames.append(frame)
        if self.guard and not index:
            self.guard.take(tuple(t.detach() for t in state))
        if index in self.states and not kept:
            self._drop(index)
        if kept and index not in self.states:
            self._put(index, state)
        if kept and memory == "offload":
            self.states[index] = self.states[index].on_host()
        self._put(index + 1, output)
        if self.guard:
            self.guard.take(self.states[index + 1].kept)

    def _put(self, index: int, state: Tensors) -> None:
        self.states[index] = Snapshot.of(state)
        insort(self.order, index)

    def _drop(self, index: int) -> None:
        del self.states[index]
        self.order.remove(index)

    def _handle(self, index: int, frame: AnyFrame) -> Handle:
        """Return a handle of state `index`, which is wanted for as long as it lives."""
        self.wanted.extend([False] * (index + 1 - len(self.wanted)))
        self.wanted[index], self.top = True, index
        return Handle(self, index, frame)

    def _check_unbroken(self, frame: AnyFrame, state: Tensors) -> None:
        index = len(self.frames)
        if index and not self.states[index].is_of(state):
            raise RuntimeError(
                f"the input of {frame.label} is not the output of "
                f"{self.frames[-1].label}: a hook or an in-place operation changed the "
                f"state between two layers, which inversion cannot undo; make the "
                f"change an invertible module of its own"
            )


def _kept_promise(promise: tuple[Handle, int]) -> Tensor:
    handle, place = promise
    return handle.tape.rebuild(handle.index)[place]
