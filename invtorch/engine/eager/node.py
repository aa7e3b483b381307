"""The autograd function of one recorded call: it saves a handle instead of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from invtorch.engine.checks import check_transforms
from invtorch.engine.eager.call import RecordedCall, add_label
from invtorch.engine.guard.end_of_backward import ReportsDeferred
from invtorch.replay import Replay, Tensors


class HandleLike(Protocol):
    """What a node needs of the handle that finds its place on the tape."""

    call: RecordedCall

    def replay(self) -> Replay:
        """Evaluate the call again, detached from the graph around it."""

    def replay_again(self, replay: Replay) -> None:
        """Let the call be evaluated once more, after a backward that failed."""


class CallNode(torch.autograd.Function):
    """Stand for a call that was evaluated, and replay it for its gradient.

    The graph of that first evaluation ends with it, except where something inside of
    the layer was kept, for instance for an auxiliary loss.

    The node saves its input state through hooks that put a handle in its place, so that
    PyTorch's own rules hold for it: a second backward needs `retain_graph`, and what a
    stored activation would free is freed. Context and parameters are inputs of the node
    like any other, which is why `autograd.grad`, gradient hooks and bucketed gradient
    exchange see them layer by layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        handle: Callable[[], HandleLike | None],
        outputs: list[Tensor],
        *tensors: Tensor,
    ) -> Tensors:
        """Return the outputs; `handle` finds a place on the tape while it is held.

        What a replay needs is freed where PyTorch frees what is saved, even if the node
        itself lives on.
        """
        on_tape = handle()
        assert on_tape is not None
        ctx.handle = handle
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: on_tape.call.arity])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Rebuild the input, evaluate the call again, and differentiate it."""
        if torch.is_inference_mode_enabled():  # no graph could be made in it
            with torch.inference_mode(mode=False), torch.no_grad():
                return CallNode.backward(ctx, *grads)
        handle: HandleLike | None = ctx.handle()
        if handle is None:
            # the graph was freed: PyTorch refuses, in its own words
            return ctx.saved_tensors  # type: ignore[no-any-return]
        label, create_graph = handle.call.label, torch.is_grad_enabled()
        check_transforms(label)
        if create_graph:
            replay = handle.call.reconnect(ctx.saved_tensors)
        else:
            replay = handle.replay()
        try:
            with ReportsDeferred():
                needed = ctx.needs_input_grad[2:]
                return None, None, *replay.pull_back(grads, needed)
        except Exception as error:
            add_label(error, label)
            if not create_graph:
                handle.replay_again(replay)
            raise
