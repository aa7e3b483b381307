"""One recorded call of a layer that is a pure function and knows its derivative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode

from invtorch.base import InvertibleModule
from invtorch.engine.contract import check_unmodified
from invtorch.engine.drift import rounded
from invtorch.engine.environment import HOOKS
from invtorch.engine.frame import Frame, noted, parts_of
from invtorch.engine.locks import Locks
from invtorch.engine.replayed import Replayed, Tensors
from invtorch.engine.riding import exchanged
from invtorch.engine.tables import versions
from invtorch.functional import autocast_enabled, no_autocast
from invtorch.pure import Gradients, Shift, ShiftPullback, bind
from invtorch.recording import Direction, State

SIGNS = {"forward": 1, "inverse": -1}
DTYPES = (torch.float32, torch.float64)
DEVICES = ("cpu", "cuda")
PLAIN = (Tensor, nn.Parameter)
OWN = {"forward", "_conv_forward", "weight", "bias"}  # not to be put on an instance


class PureFrame:
    """One call of one direction of a layer that is a `Shift`.

    It holds all that the call read. So there is nothing to bring back when it is
    evaluated again, and nothing to watch while it is evaluated: no graph is made, and
    nobody can have kept a part of one.

    Args:
        index: Position on the tape.
        module: The layer.
        sign: 1 for its forward direction, -1 for its inverse.
        function: What it computes.
    """

    arity = 1

    def __init__(
        self, index: int, module: InvertibleModule, sign: int, function: Shift
    ) -> None:
        self.label = f"layer {index} ({type(module).__name__})"
        self.module = module
        self.sign = sign
        self.function = function
        self.tensors = tensors_of(function)
        self.versions = versions(self.tensors)
        needed = {id(t): t for t in self.tensors if t.requires_grad}
        self.companions: Tensors = tuple(needed.values())

    @noted
    def run(self, state: Tensors, context: tuple[Any, ...]) -> Tensors:
        """Evaluate the call for the first time; there is no context."""
        del context
        (x,) = state
        with torch.no_grad():
            return (self.function.shifted(x, self.sign),)

    @noted
    def invert(self, output: Tensors) -> Tensors:
        """Rebuild the input state from the output state."""
        self._check_unmodified()
        (y,) = output
        with torch.no_grad(), no_autocast(y):
            return (self.function.shifted(y, -self.sign),)

    @noted
    def rerun(self, state: Tensors) -> Replayed:
        """Evaluate the call again from its input."""
        (x,) = state
        y, pull = self._with_pullback(x, self.sign)
        return self._replayed(x, (y,), pull)

    @noted
    def replay(self, output: Tensors) -> Replayed:
        """Evaluate the call again from its output, inverting on the way."""
        (y,) = output
        x, pull = self._with_pullback(y, -self.sign)
        return self._replayed(x, (), pull)

    @noted
    def reconnect(self, state: Tensors) -> Replayed:
        """Evaluate the call again from its input, attached to the graph around it."""
        self._check_unmodified()
        (x,) = state
        with torch.enable_grad(), no_autocast(x):
            alias = x.view_as(x)
            others = {id(t): t.view_as(t) for t in self.companions}
            (function,) = exchanged((self.function,), others)
            output = function.shifted(alias, self.sign)
        return Replayed((alias, *others.values()), (output,))

    def precisions(self) -> set[torch.dtype]:
        """Return the floating dtypes that it computes in."""
        if not self.tensors:
            return set()
        first = self.tensors[0]
        return {first.dtype} | rounded(self.tensors, first.device)

    def returned(self, outputs: Tensors) -> Tensor:
        """Give the output the form in which the caller expects it."""
        return outputs[0]

    def _with_pullback(self, end: Tensor, sign: int) -> tuple[Tensor, ShiftPullback]:
        self._check_unmodified()
        with torch.no_grad(), no_autocast(end):
            return self.function.with_pullback(end, sign)

    def _replayed(self, x: Tensor, outputs: Tensors, pull: ShiftPullback) -> Replayed:
        def pull_back(grad: Tensor, needed: Sequence[bool]) -> list[Tensor | None]:
            pairs = zip(self.companions, needed[1:], strict=True)
            into = Gradients(t for t, need in pairs if need)
            with no_autocast(grad):
                of_x = pull(grad, x, self.sign, into)
            return [of_x if needed[0] else None, *map(into.of, self.companions)]

        return Replayed((x, *self.companions), outputs, pull_back=pull_back)

    def _check_unmodified(self) -> None:
        now = versions(self.tensors)
        if now != self.versions:
            pairs = zip(self.tensors, now, self.versions, strict=True)
            written = {id(t) for t, new, old in pairs if new != old}
            check_unmodified(self.label, _name(self.module, written))


AnyFrame: TypeAlias = Frame | PureFrame


def pure_frame(
    index: int,
    module: InvertibleModule,
    direction: Direction,
    state: State,
    context: tuple[Any, ...],
) -> PureFrame | None:
    """Return a frame of the call of a pure function, or `None` if it may be another."""
    sign = SIGNS.get(direction.name)
    if not isinstance(state, Tensor) or sign is None or context:
        return None
    if not _usual(state) or _somebody_watches():
        return None
    parts = parts_of(module)
    with Locks(parts):
        if any(map(_observed, parts[1:])):
            return None
        function = bind(module, state)
    if function is None or not all(_meets(state, t) for t in tensors_of(function)):
        return None
    return PureFrame(index, module, sign, function)


def tensors_of(function: Any) -> list[Tensor]:
    """Return the tensors that a pure function holds."""
    found = []
    for field in function:
        if isinstance(field, Tensor):
            found.append(field)
        elif isinstance(field, tuple):
            found += tensors_of(field)
    return found


def _usual(state: Tensor) -> bool:
    """Tell whether a state is one that derivatives were written for."""
    return (
        type(state) in PLAIN
        and state.dtype in DTYPES
        and state.device.type in DEVICES
        and state.layout is torch.strided
        and state.numel() > 0
        and not autocast_enabled(state.device.type)
    )


def _somebody_watches() -> bool:
    """Tell whether somebody sees every call, and may have it do something else."""
    modes = map(torch._C._get_function_stack_at, range(_len_torch_function_stack()))
    return (
        _has_any_global_hook()
        or torch.is_anomaly_enabled()
        or _get_current_dispatch_mode() is not None
        or any(type(mode) is not DeviceContext for mode in modes)
    )


def _meets(state: Tensor, tensor: Tensor) -> bool:
    """Tell whether a parameter needs no conversion to meet the state."""
    return (
        type(tensor) in PLAIN
        and tensor.dtype == state.dtype
        and tensor.device == state.device
        and not tensor.is_inference()
    )


def _observed(part: nn.Module) -> bool:
    """Tell whether somebody else has a hand in what a module does."""
    own = vars(part)
    return (
        any(own[name] for name in HOOKS)
        or not own.keys().isdisjoint(OWN)
        or part._compiled_call_impl is not None
    )


def _name(module: nn.Module, ids: set[int]) -> str:
    named = module.named_parameters(remove_duplicate=False)
    names = (name.rpartition(".")[2] for name, p in named if id(p) in ids)
    return next(names, "a parameter")
