"""How a pass through a container is run: which states are kept, which are rebuilt."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from invtorch.base import InvertibleModule, Pass, PassWithLogDet
from invtorch.engine import compiled
from invtorch.engine.anchors import Anchors
from invtorch.engine.frame import differentiable
from invtorch.engine.guard import Guard
from invtorch.engine.tape import Tape
from invtorch.recording import Direction, Recording, State, is_recording

HALF = (torch.float16, torch.bfloat16)


class Planner(Protocol):
    """What chooses a strategy for each layer of a pass."""

    def assign(
        self, walk: Pass, state: Any, context: tuple[Any, ...], anchors: Anchors
    ) -> tuple[str, ...]:
        """Return the strategies of the layers, in their order."""


class Store:
    """A recorder that leaves every call to autograd, which keeps its activations."""

    def record(
        self,
        module: InvertibleModule,
        direction: Direction,
        state: State,
        context: tuple[Any, ...],
    ) -> Any:
        """Evaluate the call."""
        with Recording(None):
            return direction(module, state, *context)

    def end(self) -> None:
        """Forget nothing: nothing was remembered."""

    def keeping(self, memory: str) -> AbstractContextManager[object]:
        """Go on keeping everything."""
        del memory
        return nullcontext()


class Strategy(NamedTuple):
    """How the passes of a container are run.

    Attributes:
        memory: One of `invtorch.base.MEMORY`.
        anchors: Which states `"invert"` keeps.
        guard: One of `invtorch.engine.guard.GUARDS`.
        layers: How many layers a pass has.
        state_dtype: The precision in which the state is kept, if not the caller's.
        planner: What chooses a strategy for each layer, if `memory` is `"auto"`.
    """

    memory: str
    anchors: Anchors
    guard: str | None
    layers: int
    state_dtype: torch.dtype | None
    planner: Planner | None = None

    def recorder(
        self, walk: Pass, state: Any, context: tuple[Any, ...]
    ) -> Store | Tape:
        """Return what records one pass.

        Raises:
            RuntimeError: If a state in half precision would be rebuilt unguarded.
        """
        if self.memory == "store":
            return Store()
        watched = self.guard is not None or self.anchors.wanted == "auto"
        guard = Guard(self.guard, self.anchors) if watched and _real(state) else None
        places = self.anchors.places(self.layers)
        if self.guard is None and self.memory in ("invert", "auto"):
            self._check_precision(state, places)
        if self.planner is None or not _real(state):
            memory = "invert" if self.planner else self.memory
            return Tape(memory, places, guard)
        assigned = self.planner.assign(walk, state, context, self.anchors)
        return Tape("invert", places, guard, assigned)

    def _check_precision(self, state: Any, kept: frozenset[int]) -> None:
        half = [t.dtype for t in _tensors(state) if t.dtype in HALF]
        if half and not kept >= set(range(self.layers)):
            raise RuntimeError(
                f"a state in {half[0]} cannot be rebuilt by inversion without a guard: "
                f"its rounding would be amplified until the gradients are wrong; keep "
                f"the state in float32 (`state_dtype=torch.float32`) over conditioners "
                f'in half precision, or keep every state (`memory="checkpoint"`)'
            )


def run(strategy: Strategy, walk: Pass, state: Any, context: tuple[Any, ...]) -> Any:
    """Run a pass under a memory strategy.

    Inside of another pass this one becomes a part of it.

    Args:
        strategy: What is kept, and what is watched.
        walk: The pass: invertible modules, one after another.
        state: The state it starts from.
        context: What rides along.

    Returns:
        What `walk` returns.
    """
    if is_recording():
        return walk(state, context)
    if strategy.state_dtype is not None:
        return _run_in(strategy.state_dtype, strategy, walk, state, context)
    if _is_plain():
        return walk(state, context)
    if torch.compiler.is_compiling():
        return _run_compiled(strategy, walk, state, context)
    return _record(strategy, walk, state, context)


def _run_in(
    dtype: torch.dtype, strategy: Strategy, walk: Pass, state: Any, context: Any
) -> Any:
    """Run a pass on a state in another precision, and come back."""
    strategy = strategy._replace(state_dtype=None)
    given = _tensors(state)
    cast = tuple(t.to(_like(dtype, t)) for t in given)
    single = isinstance(state, Tensor)
    result = run(strategy, walk, cast[0] if single else cast, context)
    if not isinstance(walk, PassWithLogDet):
        return _returned(result, given, single)
    output, log_det = result
    floating = next(t.dtype for t in given if differentiable(t))
    return _returned(output, given, single), log_det.to(floating.to_real())


def _returned(output: Any, given: tuple[Tensor, ...], single: bool) -> Any:
    pairs = zip(_tensors(output), given, strict=True)
    found = tuple(y.to(x.dtype) for y, x in pairs)
    return found[0] if single else found


def _like(dtype: torch.dtype, tensor: Tensor) -> torch.dtype:
    """Return a precision in the kind of a tensor: complex and integers stay so."""
    if not differentiable(tensor):
        return tensor.dtype
    return dtype.to_complex() if tensor.is_complex() else dtype


def _walk(strategy: Strategy, walk: Pass, state: Any, context: Any) -> Any:
    recorder = strategy.recorder(walk, state, context)
    with Recording(recorder):
        result = walk(state, context)
    recorder.end()
    return result


# Dynamo would look for graphs between the calls of the tape; conditioners that are
# compiled for themselves stay compiled.
_record = torch.compiler.disable(_walk)


def _run_compiled(
    strategy: Strategy, walk: Pass, state: Any, context: tuple[Any, ...]
) -> Any:
    memory = strategy.memory
    if memory == "store":
        return walk(state, context)
    if memory != "invert" or isinstance(walk, PassWithLogDet):
        what = f"memory={memory!r}" if memory != "invert" else "a log-determinant"
        raise RuntimeError(
            f"{what} is not supported under torch.compile: call the container outside "
            f"of the compiled function, or set memory='store'"
        )
    places, guard = strategy.anchors.places(strategy.layers), strategy.guard
    if guard is None:
        strategy._check_precision(state, places)
    elif guard != "raise":
        raise RuntimeError(
            f"guard={guard!r} is not supported under torch.compile, where a graph can "
            f"only raise: set guard='raise' or guard=None, call the container outside "
            f"of the compiled function, or set memory='store'"
        )
    return compiled.run(places, guard is not None, walk.steps, state, context)


def _real(state: Any) -> bool:
    """Tell whether a state has values that can be compared; fakes have none."""
    plain = (Tensor, nn.Parameter)
    return all(type(t) in plain and t.device.type != "meta" for t in _tensors(state))


def _tensors(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _is_plain() -> bool:
    """Tell whether the pass is autograd's alone: no tape is then needed, or safe."""
    return (
        not torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.compiler._is_exporting_flag  # torch 2.11 traces is_exporting() as true
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )
