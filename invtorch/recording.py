"""The recorder of a thread: it receives the calls of all invertible modules."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from invtorch import _torch

State = Tensor | tuple[Tensor, ...]


class Direction(NamedTuple):
    """A direction of a class: the name of the method, and its function."""

    name: str
    function: Callable[..., Any]

    def __call__(self, module: Any, state: State, *context: Any) -> Any:
        """Evaluate the function on a module."""
        return self.function(module, state, *context)


class Recorder(Protocol):
    """Receives the calls of invertible modules while a pass is recorded."""

    def record(
        self,
        module: Any,
        direction: Direction,
        state: State,
        context: tuple[Any, ...],
    ) -> Any:
        """Evaluate one call and keep what is needed to evaluate it again."""

    def keeping(self, memory: str) -> AbstractContextManager[object]:
        """Make calls in this context keep at least what strategy `memory` keeps."""


class _Running(threading.local):
    recorder: Recorder | None = None
    recording = False  # Dynamo can guard on a boolean, but not on every object
    counting = False
    counts: list[int | None] | None = None


_running = _Running()


def is_recording() -> bool:
    """Return whether a pass of this thread is being recorded."""
    return _running.recording


class Recording:
    """Pass the calls of invertible modules to `recorder`; `None` evaluates them."""

    def __init__(self, recorder: Recorder | None) -> None:
        self.recorder = recorder

    def __enter__(self) -> None:
        self.previous, _running.recorder = _running.recorder, self.recorder
        _running.recording = self.recorder is not None

    def __exit__(self, *_: object) -> None:
        _running.recorder = self.previous
        _running.recording = self.previous is not None


class NodesCounted:
    """Count the nodes that a call, and each conditioner in it, adds to the graph.

    A replay that adds another number than the forward pass has taken another branch.

    Args:
        state: The state of the call. Where a part of it needs no gradient, the forward
            pass adds fewer nodes than the replay, and nothing is counted.
    """

    def __init__(self, state: tuple[Tensor, ...]) -> None:
        self.whole: int | None = None
        self.of_conditioners: list[int | None] = []
        self.comparable = all(t.requires_grad or _is_discrete(t) for t in state)

    def __enter__(self) -> None:
        self.outside = _running.counting, _running.counts
        _running.counting, _running.counts = True, self.of_conditioners
        self.start = _nodes()

    def __exit__(self, *_: object) -> None:
        _running.counting, _running.counts = self.outside
        self.whole = _since(self.start) if self.comparable else None

    def differ(self, replay: NodesCounted, whole: bool) -> bool:
        """Return whether a replay has added another number of nodes.

        Args:
            replay: The nodes of the replay.
            whole: Whether it evaluated the whole direction, or only its conditioners.
        """
        pairs = zip(self.of_conditioners, replay.of_conditioners, strict=False)
        counts = [*pairs, *[(self.whole, replay.whole)] * whole]
        return any(a != b for a, b in counts if a is not None and b is not None)


def evaluated(network: nn.Module, x: Tensor, context: tuple[Any, ...]) -> Any:
    """Evaluate a conditioner, and count the nodes that it adds to the graph."""
    if not _running.counting:
        return network(x, *context)
    counts, start = _running.counts, _nodes()
    _running.counting = False
    try:
        output = network(x, *context)
    finally:
        _running.counting = True
    assert counts is not None
    counts.append(_since(start) if x.requires_grad else None)
    return output


def _nodes() -> tuple[int, int]:
    return _torch.nodes_created(), _torch.frames_compiled()


def _since(start: tuple[int, int]) -> int | None:
    """Return the nodes created since; `None` if something was compiled meanwhile."""
    nodes, frames = _nodes()
    return nodes - start[0] if frames == start[1] else None


def _is_discrete(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def recorded(direction: Direction) -> Callable[..., Any]:
    """Wrap a method of an elementary module, to pass its calls to the recorder."""

    def call(self: nn.Module, state: State, *context: Any) -> Any:
        if not _running.recording:
            return direction(self, state, *context)
        return _record(self, direction, state, context)

    return call


def _untraced(
    module: nn.Module, direction: Direction, state: State, context: tuple[Any, ...]
) -> Any:
    recorder = _running.recorder
    assert recorder is not None
    return recorder.record(module, direction, state, context)


# Dynamo must not trace into the recorder from a layer that is compiled on its own.
_record = torch.compiler.disable(_untraced)


def nested(direction: Direction) -> Callable[..., Any]:
    """Wrap a method of a module made of others, so that its `memory` has an effect."""

    def call(self: Any, state: State, *context: Any) -> Any:
        if not _running.recording or self.memory in (None, "auto"):
            return direction(self, state, *context)
        recorder = _running.recorder
        assert recorder is not None
        with recorder.keeping(self.memory):
            return direction(self, state, *context)

    return call
