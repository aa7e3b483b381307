"""How a pass through a container is run: which states are kept, which are rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.autograd import forward_ad

from invtorch.base import InvertibleModule, State, current_recorder, recording
from invtorch.engine.tape import Tape

Pass = Callable[[], Any]


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


def run(memory: str, anchor: Callable[[int], bool], body: Pass) -> Any:
    """Run a pass under a memory strategy.

    Inside of another pass this one becomes a part of it.

    Args:
        memory: One of `invtorch.base.MEMORY`.
        anchor: Tells which states `"invert"` keeps, by index.
        body: The pass; it calls invertible modules one after another.

    Returns:
        What `body` returns.
    """
    if current_recorder() is not None or _is_plain():
        return body()
    if memory == "store":
        return _record(Store(), body)
    return _record(Tape(memory, anchor), body)


def _record(recorder: Store | Tape, body: Pass) -> Any:
    with recording(recorder):
        return body()


def _is_plain() -> bool:
    """Tell whether the pass is autograd's alone: no tape is then needed, or safe."""
    return (
        not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )
