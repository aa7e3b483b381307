"""The contract every invertible module keeps, and the hook by which an engine sees it.

A module states its map in both directions. When a container records a pass, each
call of a direction is handed to the recorder of the running thread instead of being
evaluated at once; without a recorder a module is an ordinary `nn.Module`.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, ...]

MEMORY = ("invert", "offload", "checkpoint", "store")  # from what keeps least

DIRECTIONS = ("forward", "inverse", "forward_and_log_det", "inverse_and_log_det")


class Recorder(Protocol):
    """What receives the calls of invertible modules while a pass is recorded."""

    def record(
        self,
        module: InvertibleModule,
        direction: Callable[..., Any],
        state: State,
        context: tuple[Any, ...],
    ) -> Any:
        """Evaluate one call and remember what is needed to evaluate it again."""

    def keeping(self, memory: str) -> AbstractContextManager[object]:
        """Let the calls inside keep at least what the strategy `memory` keeps."""


class _Running(threading.local):
    recorder: Recorder | None = None


_running = _Running()


def current_recorder() -> Recorder | None:
    """Return the recorder of this thread, if a pass is being recorded."""
    return _running.recorder


@contextmanager
def recording(recorder: Recorder | None) -> Iterator[None]:
    """Hand the calls of invertible modules to `recorder`; `None` evaluates them."""
    previous, _running.recorder = _running.recorder, recorder
    try:
        yield
    finally:
        _running.recorder = previous


def _recorded(direction: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(direction)
    def call(self: InvertibleModule, state: State, *context: Any) -> Any:
        recorder = _running.recorder
        if recorder is None:
            return direction(self, state, *context)
        return recorder.record(self, direction, state, context)

    return call


def _nested(direction: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(direction)
    def call(self: InvertibleModule, state: State, *context: Any) -> Any:
        recorder = _running.recorder
        if recorder is None or self.memory is None:
            return direction(self, state, *context)
        with recorder.keeping(self.memory):
            return direction(self, state, *context)

    return call


class InvertibleModule(nn.Module):
    r"""A map $y = f(x; c)$ with an inverse, the building block of every container.

    A subclass writes `forward` and `inverse`, nothing else, and memory-saving training
    works. The state $x$ is one tensor or a tuple of tensors (batch first, channels
    second); the context $c$ rides along unchanged, is never inverted and may need
    gradients.

    Two optional refinements:

    * **Replay.** A layer that can invert and differentiate with one evaluation of its
      inner network also writes `replay(y, *context)` for `forward` and
      `replay_inverse(x, *context)` for `inverse` (with the suffix `_and_log_det` for
      the other two). Given the output of that direction, it returns the rebuilt input
      as a leaf that requires a gradient, and the output attached to it.
    * **Composites.** A class whose methods only call other invertible modules is
      declared with `class Stack(InvertibleModule, composite=True)`; a container then
      looks inside and inverts the parts one by one.

    A single module of a container can be made to keep more than the others:
    `net[3].memory = "store"`.

    Examples:
        >>> class Shift(InvertibleModule):
        ...     def forward(self, x):
        ...         return x + 1
        ...     def inverse(self, y):
        ...         return y - 1
        >>> shift = Shift()
        >>> x = torch.zeros(1, 2)
        >>> torch.equal(shift.inverse(shift(x)), x)
        True
    """

    _memory: str | None = None

    def __init_subclass__(cls, *, composite: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrapped = _nested if composite else _recorded
        for name in DIRECTIONS:
            if name in cls.__dict__:
                setattr(cls, name, wrapped(cls.__dict__[name]))

    @property
    def memory(self) -> str | None:
        """What a container keeps of this module: at least what this strategy keeps.

        `None`, the default, leaves it to the container. The strategies are, from the
        one that keeps least, `"invert"`, `"offload"`, `"checkpoint"` and `"store"`.
        """
        return self._memory

    @memory.setter
    def memory(self, memory: str | None) -> None:
        if memory is not None and memory not in MEMORY:
            raise ValueError(f"memory is {memory!r}, but can only be one of {MEMORY}")
        self._memory = memory

    def forward(self, x: Any, *context: Any) -> Any:
        """Map the state `x` to `y`, a state of as many tensors."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward")

    def inverse(self, y: Any, *context: Any) -> Any:
        """Map the state `y` back to `x`."""
        raise NotImplementedError(f"{type(self).__name__} does not define inverse")

    def forward_and_log_det(self, x: Any, *context: Any) -> tuple[Any, Tensor]:
        r"""Return `y` and $\log\lvert\det \partial y/\partial x\rvert$, `(batch,)`."""
        raise NotImplementedError(f"{type(self).__name__} has no log-determinant")

    def inverse_and_log_det(self, y: Any, *context: Any) -> tuple[Any, Tensor]:
        r"""Return `x` and $\log\lvert\det \partial x/\partial y\rvert$, `(batch,)`."""
        raise NotImplementedError(f"{type(self).__name__} has no log-determinant")

    @property
    def inv(self) -> InvertibleModule:
        """This module with its two directions swapped; parameters are shared."""
        return Inverse(self)

    @property
    def layers(self) -> int:
        """How many calls of elementary layers one pass makes (1 if elementary)."""
        return 1


class VolumePreserving(InvertibleModule, composite=True):
    r"""An invertible module with $\lvert\det \partial y/\partial x\rvert = 1$.

    Derive from it instead of `InvertibleModule`, and the log-determinants are zeros.

    Examples:
        >>> class Reverse(VolumePreserving):
        ...     def forward(self, x):
        ...         return x.flip(1)
        ...     def inverse(self, y):
        ...         return y.flip(1)
        >>> Reverse().forward_and_log_det(torch.zeros(2, 3))[1]
        tensor([0., 0.])
    """

    def forward_and_log_det(self, x: Any, *context: Any) -> tuple[Any, Tensor]:
        """Return `forward(x)` and zeros."""
        return self.forward(x, *context), no_log_det(x)

    def inverse_and_log_det(self, y: Any, *context: Any) -> tuple[Any, Tensor]:
        """Return `inverse(y)` and zeros."""
        return self.inverse(y, *context), no_log_det(y)


class Inverse(InvertibleModule, composite=True):
    """A module with its two directions swapped, as `module.inv` returns it."""

    def __init__(self, module: InvertibleModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Any, *context: Any) -> Any:
        """Apply the inverse of the module."""
        return self.module.inverse(x, *context)

    def inverse(self, y: Any, *context: Any) -> Any:
        """Apply the module."""
        return self.module(y, *context)

    def forward_and_log_det(self, x: Any, *context: Any) -> tuple[Any, Tensor]:
        """Apply the inverse of the module, with its log-determinant."""
        return self.module.inverse_and_log_det(x, *context)

    def inverse_and_log_det(self, y: Any, *context: Any) -> tuple[Any, Tensor]:
        """Apply the module, with its log-determinant."""
        return self.module.forward_and_log_det(y, *context)

    @property
    def inv(self) -> InvertibleModule:
        """The module itself."""
        return self.module

    @property
    def layers(self) -> int:
        """As many as the module has."""
        return self.module.layers


def no_log_det(state: State) -> Tensor:
    """Return the log-determinant of a volume-preserving map: a real zero a sample."""
    tensor = state[0] if isinstance(state, tuple) else state
    dtype = tensor.real.dtype if tensor.is_complex() else tensor.dtype
    return torch.zeros(len(tensor), dtype=dtype, device=tensor.device)
