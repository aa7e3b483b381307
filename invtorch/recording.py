"""The recorder of a thread: it receives the calls of all invertible modules."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

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


def recorded(direction: Direction) -> Callable[..., Any]:
    """Wrap a method of an elementary module, to pass its calls to the recorder."""

    def call(self: nn.Module, state: State, *context: Any, **named: Any) -> Any:
        if named:
            _refuse(self, named)
        if not _running.recording:
            return direction(self, state, *context)
        return _record(self, direction, state, context)

    return call


def _refuse(module: nn.Module, named: Iterable[str]) -> None:
    """Refuse context that is given by name.

    Raises:
        TypeError: Always.
    """
    name = next(iter(named))
    raise TypeError(
        f"{type(module).__name__} was given {name}= by name, but takes its context by "
        f"position: write `net(x, {name})`"
    )


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

    def call(self: Any, state: State, *context: Any, **named: Any) -> Any:
        if named:
            _refuse(self, named)
        if not _running.recording or self.memory in (None, "auto"):
            return direction(self, state, *context)
        recorder = _running.recorder
        assert recorder is not None
        with recorder.keeping(self.memory):
            return direction(self, state, *context)

    return call
