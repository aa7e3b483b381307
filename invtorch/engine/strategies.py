"""How a pass through a container is run: which states are kept, which are rebuilt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from invtorch.base import InvertibleModule, State, current_recorder, recording
from invtorch.engine.tape import Tape

MEMORY = ("invert", "checkpoint", "store")

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


def run(memory: str, anchor: Callable[[int], bool], body: Pass) -> Any:
    """Run a pass under a memory strategy.

    Inside another pass the strategy of that pass holds.

    Args:
        memory: One of `MEMORY`.
        anchor: Tells which states `"invert"` keeps, by index.
        body: The pass; it calls invertible modules one after another.

    Returns:
        What `body` returns.
    """
    if current_recorder() is not None or _is_plain():
        return body()
    if memory == "store":
        return _record(Store(), body)
    return _record(Tape(anchor if memory == "invert" else lambda _: True), body)


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
