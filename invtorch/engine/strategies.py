"""How a pass through a container is run: which states are kept, which are rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from invtorch.base import InvertibleModule, Pass, PassWithLogDet
from invtorch.engine import compiled
from invtorch.engine.anchors import Anchors
from invtorch.engine.guard import Guard
from invtorch.engine.tape import Tape
from invtorch.recording import State, current_recorder, recording


class Store:
    """A recorder that leaves every call to autograd, which keeps its activations."""

    def record(
        self,
        module: InvertibleModule,
        direction: Callable[..., Any],
        state: State,
        context: tuple[Any, ...],
    ) -> Any:
        """Evaluate the call."""
        with recording(None):
            return direction(module, state, *context)

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
    """

    memory: str
    anchors: Anchors
    guard: str | None
    layers: int

    def recorder(self, state: Any) -> Store | Tape:
        """Return what records one pass."""
        if self.memory == "store":
            return Store()
        watched = self.guard is not None or self.anchors.wanted == "auto"
        guard = Guard(self.guard, self.anchors) if watched and _real(state) else None
        return Tape(self.memory, self.anchors.places(self.layers), guard)


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
    if current_recorder() is not None or _is_plain():
        return walk(state, context)
    if torch.compiler.is_compiling():
        return _run_compiled(strategy, walk, state, context)
    return _record(strategy.recorder(state), walk, state, context)


def _walk(recorder: Store | Tape, walk: Pass, state: Any, context: Any) -> Any:
    with recording(recorder):
        return walk(state, context)


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
    places = strategy.anchors.places(strategy.layers)
    return compiled.run(places, walk.steps, state, context)


def _real(state: Any) -> bool:
    """Tell whether a state has values that can be compared; fakes have none."""
    tensors = state if isinstance(state, tuple) else (state,)
    return all(type(t) is Tensor and t.device.type != "meta" for t in tensors)


def _is_plain() -> bool:
    """Tell whether the pass is autograd's alone: no tape is then needed, or safe."""
    return (
        not torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.compiler.is_exporting()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )
