"""One recorded call of a layer that has a closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from invtorch import _torch
from invtorch._torch import versions
from invtorch.closed_form import Gradients, Shift, ShiftPullBack, closed_form
from invtorch.engine.checks import check_unmodified, has_hooks, unshard
from invtorch.engine.eager.call import labeled
from invtorch.engine.restore.context import map_tensors
from invtorch.engine.restore.generators import Source, on_devices
from invtorch.engine.restore.locks import Locks
from invtorch.engine.restore.random_numbers import DRAWING, Drawn, RandomStatesKept
from invtorch.module import InvertibleModule
from invtorch.precision import autocast_enabled, eps_of, no_autocast, tf32_dtypes
from invtorch.recording import Context, Direction, Recording, State
from invtorch.replay import FullGraph, Replay, Tensors

SIGNS = {"forward": 1, "inverse": -1}
DTYPES = (torch.float32, torch.float64)
DEVICES = ("cpu", "cuda")
PLAIN = (Tensor, nn.Parameter)
LIMIT = 256.0  # eps by which a closed form may differ from the layer: both round

# For each layer: of which modules and for which dtype its closed form was compared with
# the layer itself, and whether they agreed.
_compared: dict[ref[nn.Module], tuple[tuple[object, ...], bool]] = {}


class ClosedFormCall:
    """One call of one direction of a layer that is a `Shift`.

    It holds all tensors that the call reads, so that a replay has nothing to restore.
    No graph is recorded, so that no part of one can be held elsewhere.

    Args:
        index: The position on the tape.
        module: The layer.
        sign: 1 for the forward direction, -1 for the inverse.
        function: Its closed form.
        tensors: The tensors that it holds.
    """

    arity = output_arity = 1
    mixes = False  # it has a network inside
    own_layer = False
    read: Sequence[Drawn] = ()  # it draws nothing

    def __init__(
        self,
        index: int,
        module: InvertibleModule,
        sign: int,
        function: Shift,
        tensors: list[Tensor],
    ) -> None:
        self.label = f"layer {index} ({type(module).__name__})"
        self.module = module
        self.sign = sign
        self.way = "forward" if sign > 0 else "inverse"
        self.function = function
        self.tensors = tensors
        self.versions = versions(self.tensors)
        needed = {id(t): t for t in self.tensors if t.requires_grad}
        self.grad_inputs: Tensors = tuple(needed.values())

    @labeled
    def run(self, state: Tensors, context: Context) -> Tensors:
        """Evaluate the call for the first time; there is no context."""
        del context
        (x,) = state
        with torch.no_grad():
            return (self.function.shifted(x, self.sign),)

    def held_inside(self) -> Tensors:
        """Return nothing: there was no graph."""
        return ()

    @labeled
    def invert(self, output: Tensors) -> Tensors:
        """Rebuild the input state from the output state."""
        gathered = unshard(self.label, self.module, self.tensors)
        self._check_unmodified()
        (y,) = output
        with torch.no_grad(), no_autocast(y):
            x = self.function.shifted(y, -self.sign)
        if gathered:
            self.module.reshard()  # type: ignore[operator]
        return (x,)

    @labeled
    def replay(
        self, *, state: Tensors | None = None, output: Tensors | None = None
    ) -> Replay:
        """Evaluate the call again, from its input or its output."""
        if state is not None:
            (x,) = state
            y, pull = self._with_pull_back(x, self.sign)
            return self._replay(x, (y,), pull)
        assert output is not None
        (y,) = output
        x, pull = self._with_pull_back(y, -self.sign)
        return self._replay(x, (), pull)

    @labeled
    def reconnect(self, state: Tensors) -> Replay:
        """Evaluate the call again from its input, attached to the graph around it."""
        self._check_unmodified()
        (x,) = state
        with torch.enable_grad(), no_autocast(x):
            alias = x.view_as(x)
            others = {id(t): t.view_as(t) for t in self.grad_inputs}
            (function,) = map_tensors(lambda t: others.get(id(t), t), (self.function,))
            graph = FullGraph((alias,), (function.shifted(alias, self.sign),))

        def pull_back(
            grads: Sequence[Tensor | None], needed: Sequence[bool]
        ) -> list[Tensor | None]:
            return graph.pull_back(tuple(others.values()), grads, needed)

        return Replay(graph.state, graph.outputs, pull_back)

    def watch(self, sources: set[Source]) -> None:
        """Do nothing: it draws nothing."""

    def dtypes(self) -> set[torch.dtype]:
        """Return the dtype of its tensors, and that of TF32."""
        if not self.tensors:
            return set()
        first = self.tensors[0]
        return {first.dtype} | tf32_dtypes(self.tensors, first.device)

    def returned(self, outputs: Tensors) -> Tensor:
        """Return the output alone."""
        return outputs[0]

    def _with_pull_back(self, end: Tensor, sign: int) -> tuple[Tensor, ShiftPullBack]:
        unshard(self.label, self.module, self.tensors)
        self._check_unmodified()
        with torch.no_grad(), no_autocast(end):
            return self.function.with_pull_back(end, sign)

    def _replay(self, x: Tensor, outputs: Tensors, pull: ShiftPullBack) -> Replay:
        def pull_back(
            grads: Sequence[Tensor | None], needed: Sequence[bool]
        ) -> list[Tensor | None]:
            (grad,) = grads
            if grad is None:
                return [None] * len(needed)
            pairs = zip(self.grad_inputs, needed[1:], strict=True)
            into = Gradients(t for t, need in pairs if need)
            with no_autocast(grad):
                of_x = pull(grad, x, self.sign, into)
            return [of_x if needed[0] else None, *map(into.of, self.grad_inputs)]

        return Replay((x,), outputs, pull_back)

    def _check_unmodified(self) -> None:
        now = versions(self.tensors)
        if now != self.versions:
            pairs = zip(self.tensors, now, self.versions, strict=True)
            changed = {id(t) for t, new, old in pairs if new != old}
            check_unmodified(self.label, _name(self.module, changed))


def closed_form_call(
    index: int,
    module: InvertibleModule,
    direction: Direction,
    state: State,
    context: Context,
) -> ClosedFormCall | None:
    """Return the call in closed form, or `None` if autograd must differentiate it."""
    sign = SIGNS.get(direction.name)
    if not isinstance(state, Tensor) or sign is None or context:
        return None
    if not _has_closed_form(state) or _is_watched():
        return None
    parts = _torch.modules_inside(module)
    with Locks(parts):
        if any(map(_is_changed, parts[1:])):
            return None
        function = closed_form(module, state)
    if function is None:
        return None
    tensors = tensors_of(function)
    if not all(_matches(state, t) for t in tensors):
        return None
    call = ClosedFormCall(index, module, sign, function, tensors)
    return call if _agrees(call, direction, state, parts) else None


def _agrees(
    call: ClosedFormCall, direction: Direction, state: Tensor, parts: list[nn.Module]
) -> bool:
    """Return whether a closed form returns what the layer returns.

    They are compared the first time that a layer has a closed form, and again if a
    module inside it was replaced. So whatever makes a module compute something else,
    its closed form is not used.
    """
    layer: ref[nn.Module] = ref(call.module)
    known = (state.dtype, *map(id, parts))
    before = _compared.get(layer)
    if before is not None and before[0] == known:
        return before[1]
    try:
        found, own = _both(call, direction, state.detach().clone())
    except Exception:  # autograd raises it again, in the layer
        return False
    eps = max(map(eps_of, {state.dtype} | call.dtypes()))
    agree = found.shape == own.shape and _close(found, own, state.detach(), eps)
    if found.isfinite().all() and own.isfinite().all():
        _compared[ref(call.module, _forget)] = known, agree
    return agree


def _both(
    call: ClosedFormCall, direction: Direction, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the output of a closed form, and that of the layer."""
    kept = RandomStatesKept(on_devices(x.device))
    # another thread must not draw meanwhile: its numbers would be drawn twice
    with DRAWING, torch.no_grad(), kept, Recording(None):
        none = Context()
        return call.run((x,), none)[0], direction(call.module, x, none)


def _close(found: Tensor, own: Tensor, state: Tensor, eps: float) -> bool:
    """Return whether two outputs agree up to what rounding explains.

    The error of what a layer adds to its input is measured relative to what it adds.
    """
    largest = [float(t.abs().max()) for t in (found - own, own - state, state)]
    error, added, kept = largest
    # sqrt(eps): half of the digits, where a precision has few of them
    return error <= min(LIMIT * eps, math.sqrt(eps)) * added + 4 * eps * kept


def _forget(layer: ref[nn.Module], compared: dict[Any, Any] = _compared) -> None:
    compared.pop(layer, None)


def tensors_of(function: Any) -> list[Tensor]:
    """Return the tensors that a closed form holds."""
    tensors = []
    for field in function:
        if isinstance(field, Tensor):
            tensors.append(field)
        elif isinstance(field, tuple):
            tensors += tensors_of(field)
    return tensors


def _has_closed_form(state: Tensor) -> bool:
    """Return whether closed forms support the dtype, device and layout of a state."""
    return (
        type(state) in PLAIN
        and state.dtype in DTYPES
        and state.device.type in DEVICES
        and state.layout is torch.strided
        and state.numel() > 0
        and not autocast_enabled(state.device.type)
    )


def _is_watched() -> bool:
    """Return whether a global hook or mode intercepts calls, and may change them."""
    return (
        _torch.has_global_hooks()
        or torch.is_anomaly_enabled()
        or _torch.modes_are_active()
    )


def _matches(state: Tensor, tensor: Tensor) -> bool:
    """Return whether a parameter can be used with the state without a conversion."""
    return (
        type(tensor) in PLAIN
        and tensor.dtype == state.dtype
        and tensor.device == state.device
        and not tensor.is_inference()
    )


def _is_changed(part: nn.Module) -> bool:
    """Return whether hooks or compilation may change what a module computes."""
    return has_hooks(part) or _torch.is_compiled(part)


def _name(module: nn.Module, ids: set[int]) -> str:
    named = module.named_parameters(remove_duplicate=False)
    names = (name.rpartition(".")[2] for name, p in named if id(p) in ids)
    return next(names, "a parameter")
