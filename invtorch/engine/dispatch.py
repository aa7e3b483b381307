"""Run a pass: as plain PyTorch, recorded on a tape, or as one compiled function."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from invtorch import _torch
from invtorch.composite import Pass, PassWithLogDet
from invtorch.engine.checks import as_tensors, check_half_precision, converted
from invtorch.engine.compiled import function
from invtorch.engine.eager.tape import Tape
from invtorch.engine.guard.anchors import Anchors
from invtorch.engine.guard.guard import Guard
from invtorch.module import InvertibleModule
from invtorch.precision import dtypes_as, is_differentiable
from invtorch.recording import (
    Context,
    Direction,
    Recorder,
    Recording,
    State,
    is_recording,
)


class Planner(Protocol):
    """Chooses a memory strategy for each layer of a pass."""

    def assign(
        self,
        chain: Pass,
        state: Any,
        context: Context,
        anchors: Anchors,
        dtype: torch.dtype | None,
    ) -> tuple[str, ...]:
        """Return the strategies of the layers, in order, for a state in `dtype`."""


class Observer(Protocol):
    """Observes which layers a pass calls, and in which order."""

    def observe(self, recorder: Recorder, state: Any) -> Recorder:
        """Return a recorder that passes all calls of a pass on to `recorder`."""

    def end(self, result: Any) -> None:
        """Receive what the pass returned."""


class Store:
    """A recorder that evaluates every call under autograd, which saves activations."""

    replays = False

    def record(
        self,
        module: InvertibleModule,
        direction: Direction,
        state: State,
        context: Context,
    ) -> Any:
        """Evaluate the call."""
        with Recording(None):
            return direction(module, state, context)

    def end(self) -> None:
        """Do nothing: nothing was recorded."""

    def keeping(self, memory: str) -> AbstractContextManager[object]:
        """Do nothing: autograd saves everything already."""
        del memory
        return nullcontext()


class Strategy(NamedTuple):
    """How the passes of a container are run.

    Attributes:
        memory: One of `invtorch.module.MEMORY`.
        anchors: Which states `"invert"` keeps.
        guard: One of `invtorch.engine.GUARDS`.
        layers: The number of layers of a pass.
        state_dtype: The dtype in which the state is kept, if not that of the input.
        planner: Chooses a strategy for each layer, if `memory` is `"auto"`.
        planned: The strategy of each layer, once chosen.
        observer: Observes the pass, unless it is compiled or its state has no values.
    """

    memory: str
    anchors: Anchors
    guard: str | None
    layers: int
    state_dtype: torch.dtype | None
    planner: Planner | None = None
    planned: tuple[str, ...] = ()
    observer: Observer | None = None

    def recorder(self, state: Any) -> Store | Tape:
        """Return the recorder of one pass.

        Raises:
            RuntimeError: If a state in half precision is rebuilt without a guard.
        """
        if self.guard is None and (self.planned or self.memory in ("invert", "auto")):
            self.check_precision(state)
        if self.memory == "store":
            return Store()
        measured = self.guard is not None or self.anchors.requested == "auto"
        has_values = _has_values(state)
        guard = Guard(self.guard, self.anchors) if measured and has_values else None
        kept = self.anchors.places(self.layers)
        limit = self.anchors.between_passes
        memory = "invert" if self.memory == "auto" else self.memory
        return Tape(memory, kept, guard, self.planned, limit)

    def plan(self, chain: Pass, state: Any, context: Context) -> Strategy:
        """Choose the strategy of each layer, if they are planned for a budget.

        Returns:
            The strategy, with `memory="store"` if everything fits in the budget.
        """
        if self.planner is None or not _records() or not _has_values(state):
            return self
        dtype = self.state_dtype
        planned = self.planner.assign(chain, state, context, self.anchors, dtype)
        everything = all(memory == "store" for memory in planned)
        return self._replace(memory="store" if everything else "auto", planned=planned)

    def check_precision(self, state: Any) -> None:
        """Refuse a state in half precision, unless every state is kept."""
        kept = self.anchors.places(self.layers)
        check_half_precision(_tensors(state), kept >= set(range(self.layers)))


def run(strategy: Strategy, chain: Pass, state: Any, context: Context) -> Any:
    """Run a pass under a memory strategy.

    A pass inside another pass is recorded as a part of that one.

    Args:
        strategy: What is kept, and what is compared.
        chain: The pass: invertible modules, one after another.
        state: The input of the pass.
        context: Further arguments of the modules.

    Returns:
        What the pass returns.
    """
    if is_recording():
        return chain(state, context)
    if strategy.state_dtype is not None:
        return _run_in(strategy.state_dtype, strategy, chain, state, context)
    if _is_transformed():
        return chain(state, context)
    if not torch.is_grad_enabled():
        if strategy.observer is None:
            return chain(state, context)
        return _record(strategy._replace(memory="store"), chain, state, context)
    return _run_recorded(strategy, chain, state, context)


def _records() -> bool:
    """Return whether a pass is recorded, and not a part of another one."""
    return torch.is_grad_enabled() and not is_recording() and not _is_transformed()


def _is_transformed() -> bool:
    """Return whether the pass is transformed, and so has to be plain PyTorch.

    Transforms of `torch.func`, export, tracing and forward-mode differentiation cannot
    run through a tape.
    """
    return (
        _torch.is_functorch_active()
        or _torch.is_exporting()
        or _torch.is_tracing()
        or _torch.is_forward_ad_active()
    )


def _record(strategy: Strategy, chain: Pass, state: Any, context: Any) -> Any:
    as_tensors(state)
    recorder = strategy.recorder(state)
    observer = strategy.observer if _is_plain(state) else None
    with Recording(observer.observe(recorder, state) if observer else recorder):
        result = chain(state, context)
    recorder.end()
    if observer:
        observer.end(result)
    return result


def _trace(strategy: Strategy, chain: Pass, state: Any, context: Context) -> Any:
    """Run a pass as a part of the graph that `torch.compile` makes."""
    if strategy.memory == "store":
        return chain(state, context)
    expected = _torch.expect_break(True)  # a layer may break it too, without an error
    try:
        _check_compilable(strategy, chain, state)
        kept = strategy.anchors.places(strategy.layers)
        guarded = strategy.guard is not None
        output = function.run(kept, guarded, chain.steps, state, context)
    except Exception as error:  # of a check, or of a layer
        reason = str(error)
    else:
        _torch.expect_break(expected)
        return output
    _torch.break_graph(reason)
    return _run_outside(strategy, chain, state, context)


def _check_compilable(strategy: Strategy, chain: Pass, state: Any) -> None:
    """Refuse options that a graph does not support.

    Raises:
        RuntimeError: If there is one.
    """
    memory, guard = strategy.memory, strategy.guard
    if memory != "invert" or isinstance(chain, PassWithLogDet):
        what = f"memory={memory!r}" if memory != "invert" else "a log-determinant"
        raise RuntimeError(
            f"{what} is not supported under torch.compile: call the container outside "
            f"the compiled function, or set memory='store'"
        )
    if strategy.anchors.requested == "auto":
        raise RuntimeError(
            "anchors='auto' is not supported under torch.compile: set a number of "
            "anchors, or memory='store'"
        )
    if guard is None:
        strategy.check_precision(state)
    elif guard != "raise":
        raise RuntimeError(
            f"guard={guard!r} is not supported under torch.compile: set guard='raise' "
            f"or None, or memory='store'"
        )


def _trace_plan(
    strategy: Strategy, chain: Pass, state: Any, context: Context
) -> Strategy:
    """Break the graph where the strategies of layers are planned.

    Layers are measured outside of a graph. If everything is stored, they are compiled
    in the next graph.
    """
    if strategy.planner is None or not _records():
        return strategy
    _torch.break_graph(
        "memory='auto' is planned outside of the graph, which breaks: set "
        "memory='store' if everything fits, or call the container outside the "
        "compiled function"
    )
    return _plan_outside(strategy, chain, state, context)


_plan_outside = _torch.untraced(Strategy.plan)
plan = _torch.traced_as(_trace_plan, _plan_outside)


# Dynamo traces `_trace` where `_run_recorded` is called. If it cannot make a part of
# its graph of that, it breaks the graph there and calls `_run_outside`, into which it
# must not look. Conditioners that are compiled on their own stay compiled.
_run_outside = _torch.untraced(_record)
_run_recorded = _torch.traced_as(_trace, _run_outside)


def _run_in(
    dtype: torch.dtype, strategy: Strategy, chain: Pass, state: Any, context: Any
) -> Any:
    """Run a pass on a state in another dtype, and convert the result back."""
    strategy = strategy._replace(state_dtype=None)
    given = as_tensors(state)
    result = run(strategy, chain, converted(state, dtype), context)
    if not isinstance(chain, PassWithLogDet):
        return _cast_back(result, given)
    output, log_det = result
    floating = next(t.dtype for t in given if is_differentiable(t))
    return _cast_back(output, given), log_det.to(floating.to_real())


def _cast_back(output: Any, given: tuple[Tensor, ...]) -> Any:
    """Convert the output to the dtypes of the input."""
    outputs = _tensors(output)
    pairs = zip(outputs, dtypes_as(outputs, given), strict=True)
    converted = tuple(y.to(dtype) for y, dtype in pairs)
    return converted[0] if isinstance(output, Tensor) else converted


def _has_values(state: Any) -> bool:
    """Return whether a state has values to compare; fake and meta tensors have none."""
    return all(isinstance(t, Tensor) and _torch.has_values(t) for t in _tensors(state))


def _is_plain(state: Any) -> bool:
    """Return whether a state is of tensors with values, none of them of a subclass."""
    return all(
        type(t) in (Tensor, nn.Parameter) and t.device.type != "meta"
        for t in _tensors(state)
    )


def _tensors(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)
