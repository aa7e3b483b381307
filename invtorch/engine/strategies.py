"""How a pass through a container is run: which states are kept, which are rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad

from invtorch.base import InvertibleModule, Pass, PassWithLogDet
from invtorch.engine import compiled
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


def run(
    memory: str,
    anchor: Callable[[int], bool],
    walk: Pass,
    state: Any,
    context: tuple[Any, ...],
) -> Any:
    """Run a pass under a memory strategy.

    Inside of another pass this one becomes a part of it.

    Args:
        memory: One of `invtorch.base.MEMORY`.
        anchor: Tells which states `"invert"` keeps, by index.
        walk: The pass: invertible modules, one after another.
        state: The state it starts from.
        context: What rides along.

    Returns:
        What `walk` returns.
    """
    if current_recorder() is not None or _is_plain():
        return walk(state, context)
    if torch.compiler.is_compiling():
        return _run_compiled(memory, anchor, walk, state, context)
    recorder = Store() if memory == "store" else Tape(memory, anchor)
    return _record(recorder, walk, state, context)


def _walk(recorder: Store | Tape, walk: Pass, state: Any, context: Any) -> Any:
    with recording(recorder):
        return walk(state, context)


# Dynamo would look for graphs between the calls of the tape; conditioners that are
# compiled for themselves stay compiled.
_record = torch.compiler.disable(_walk)


def _run_compiled(
    memory: str,
    anchor: Callable[[int], bool],
    walk: Pass,
    state: Any,
    context: tuple[Any, ...],
) -> Any:
    if memory == "store":
        return walk(state, context)
    if memory != "invert" or isinstance(walk, PassWithLogDet):
        what = f"memory={memory!r}" if memory != "invert" else "a log-determinant"
        raise RuntimeError(
            f"{what} is not supported under torch.compile: call the container outside "
            f"of the compiled function, or set memory='store'"
        )
    return compiled.run(anchor, walk.steps, state, context)


def _is_plain() -> bool:
    """Tell whether the pass is autograd's alone: no tape is then needed, or safe."""
    return (
        not torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch.compiler.is_exporting()
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    )
