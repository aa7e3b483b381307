"""The contract of invertible modules, and how they are made of one another."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from invtorch._repr import describe, parameter_count
from invtorch.recording import Direction, State, nested, recorded

MEMORY = ("invert", "offload", "checkpoint", "store")  # from what keeps least

DIRECTIONS = ("forward", "inverse", "forward_and_log_det", "inverse_and_log_det")
OPPOSITE = {"forward": "inverse", "inverse": "forward"}
REPLAYS = {
    "forward": "replay",
    "inverse": "replay_inverse",
    "forward_and_log_det": "replay_and_log_det",
    "inverse_and_log_det": "replay_inverse_and_log_det",
}


class InvertibleModule(nn.Module):
    r"""A map $y = f(x; c)$ with an inverse, the building block of every container.

    A subclass writes `forward` and `inverse`, nothing else, and memory-saving training
    works. The state $x$ is one tensor or a tuple of tensors (batch first, channels
    second); the context $c$ rides along unchanged, is never inverted and may need
    gradients.

    A layer that can invert and differentiate with one evaluation of its inner network
    also writes `replay(y, *context)` for `forward` and `replay_inverse(x, *context)`
    for `inverse` (with the suffix `_and_log_det` for the other two). Given the output
    of that direction, it returns the rebuilt input as a leaf that requires a gradient,
    and the output attached to it. A class that writes a direction anew does not inherit
    the replays of the old one.

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

    def __init_subclass__(cls, *, elementary: bool = True, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrapped = recorded if elementary else nested
        for name in DIRECTIONS:
            if name in cls.__dict__:
                method = cls.__dict__[name]
                call = wrapped(Direction(name, method))
                setattr(cls, name, functools.wraps(method)(call))
        if not cls.__dict__.keys().isdisjoint(DIRECTIONS):
            for replay in REPLAYS.values():
                if replay not in cls.__dict__:
                    setattr(cls, replay, None)

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

    __repr__ = describe

    def _repr_facts(self, nested: bool) -> list[str]:  # noqa: ARG002
        """Return what `repr` shows before the inner modules; see `invtorch._repr`.

        Args:
            nested: Whether the module runs as a part of a container.
        """
        memory = f"memory={self._memory!r}" if self._memory else ""
        count = parameter_count(self)
        match [*self._modules.values()]:
            case [InvertibleModule() as inner] if parameter_count(inner) == count:
                count = ""  # it stands there
        return [self.extra_repr(), memory, count]

    @property
    def _layers(self) -> int:
        """How many calls of elementary layers one pass makes (1 if elementary)."""
        return 1


class VolumePreserving(InvertibleModule, elementary=False):
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


class Step(NamedTuple):
    """One module of a chain, the direction it is called in, and if it sees the context.

    Attributes:
        module: The module.
        direction: `"forward"` or `"inverse"`.
        context: Whether the context of the chain is handed on to it.

    Examples:
        >>> there = Step(Householder1x1(4))
        >>> x = torch.randn(2, 4)
        >>> torch.allclose(there.inverse(there(x, ()), ()), x, atol=1e-5)
        True
    """

    module: InvertibleModule
    direction: str = "forward"
    context: bool = True

    @property
    def inverse(self) -> Step:
        """The step back."""
        return self._replace(direction=OPPOSITE[self.direction])

    def __call__(self, state: Any, context: tuple[Any, ...]) -> Any:
        """Take the step."""
        forward = self.direction == "forward"
        function = self.module if forward else self.module.inverse
        return function(state, *context) if self.context else function(state)

    def and_log_det(self, state: Any, context: tuple[Any, ...]) -> tuple[Any, Tensor]:
        """Take the step and return its log-determinant."""
        function = getattr(self.module, f"{self.direction}_and_log_det")
        found: tuple[Any, Tensor] = function(state, *(context if self.context else ()))
        return found


class Composite(InvertibleModule, elementary=False):
    r"""A module that applies others one after another, $y = f_L(\cdots f_1(x))$.

    A subclass says which ones by writing `chain`, nothing else. A container looks
    inside and inverts the parts one by one.

    Examples:
        >>> class Twice(Composite):
        ...     def __init__(self, module):
        ...         super().__init__()
        ...         self.module = module
        ...     def chain(self):
        ...         return [Step(self.module), Step(self.module)]
        >>> mix = Householder1x1(4)
        >>> x = torch.randn(2, 4)
        >>> torch.equal(Twice(mix)(x), mix(mix(x)))
        True
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(elementary=False, **kwargs)

    def chain(self) -> Sequence[Step]:
        """Return the steps of the forward direction; the inverse takes them back."""
        raise NotImplementedError(f"{type(self).__name__} does not define chain")

    def _steps(self, direction: str) -> list[Step]:
        """Return the steps of a direction, `"forward"` or `"inverse"`."""
        steps = list(self.chain())
        return steps if direction == "forward" else [s.inverse for s in steps[::-1]]

    def forward(self, x: Any, *context: Any) -> Any:
        """Take the steps from first to last."""
        return self._run(Pass(self._steps("forward")), x, context)

    def inverse(self, y: Any, *context: Any) -> Any:
        """Take the steps back, from last to first."""
        return self._run(Pass(self._steps("inverse")), y, context)

    def forward_and_log_det(self, x: Any, *context: Any) -> tuple[Any, Tensor]:
        """Do as `forward` and sum the log-determinants."""
        return self._run(PassWithLogDet(self._steps("forward")), x, context)  # type: ignore[no-any-return]

    def inverse_and_log_det(self, y: Any, *context: Any) -> tuple[Any, Tensor]:
        """Do as `inverse` and sum the log-determinants."""
        return self._run(PassWithLogDet(self._steps("inverse")), y, context)  # type: ignore[no-any-return]

    def _run(self, walk: Pass, state: Any, context: tuple[Any, ...]) -> Any:
        """Take all steps; a container does more here."""
        return walk(state, context)

    @property
    def _layers(self) -> int:
        """The elementary layers of all steps."""
        return sum(step.module._layers for step in self.chain())


class Pass:
    """All steps of a chain in one direction."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps

    def __call__(self, state: Any, context: tuple[Any, ...]) -> Any:
        """Take the steps."""
        for step in self.steps:
            state = step(state, context)
        return state


class PassWithLogDet(Pass):
    """All steps of a chain in one direction, summing their log-determinants."""

    def __call__(self, state: Any, context: tuple[Any, ...]) -> Any:
        """Take the steps and return the sum beside the state."""
        total = None
        for step in self.steps:
            state, log_det = step.and_log_det(state, context)
            total = log_det if total is None else total + log_det
        return state, no_log_det(state) if total is None else total


class Inverse(Composite):
    """A module with its two directions swapped, as `module.inv` returns it."""

    def __init__(self, module: InvertibleModule) -> None:
        super().__init__()
        self.module = module

    def chain(self) -> Sequence[Step]:
        """Return the one step back."""
        return [Step(self.module, "inverse")]

    @property
    def inv(self) -> InvertibleModule:
        """The module itself."""
        return self.module


def no_log_det(state: State) -> Tensor:
    """Return the log-determinant of a volume-preserving map: a real zero a sample."""
    tensor = state[0] if isinstance(state, tuple) else state
    dtype = tensor.real.dtype if tensor.is_complex() else tensor.dtype
    return torch.zeros(len(tensor), dtype=dtype, device=tensor.device)
