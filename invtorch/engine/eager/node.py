"""The autograd function of one recorded call: it saves a handle instead of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from invtorch._torch import untraced
from invtorch.engine.checks import check_transforms
from invtorch.engine.eager.call import RecordedCall, add_label
from invtorch.engine.guard.end_of_backward import ReportsDeferred
from invtorch.replay import Replay, Tensors


class HandleLike(Protocol):
    """What a node needs of its handle on the tape."""

    call: RecordedCall

    def replay(self) -> Replay:
        """Evaluate the call again, detached from the graph around it."""

    def replay_again(self, replay: Replay) -> None:
        """Allow another replay of the call, after a backward pass that failed."""


class CallNode(torch.autograd.Function):
    """Represents a call in the graph, and replays it to compute its gradient.

    The graph inside the call is freed after the forward evaluation, unless something
    holds a part of it, for instance an auxiliary loss.

    The node saves its input state through hooks that save a handle instead. So it has
    the lifetime of a saved tensor: a second backward pass needs `retain_graph=True`,
    and the state is freed when a stored activation would be. Context and parameters are
    inputs of the node, so that `autograd.grad`, gradient hooks and the gradient buckets
    of DDP work layer by layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        handle: Callable[[], HandleLike | None],
        outputs: Tensors,
        *tensors: Tensor,
    ) -> Tensors:
        """Return the outputs. Save the handle instead of the state.

        `ctx.handle` is a function that looks up the handle: the node itself must not
        hold it, so that it is freed with the saved tensors, even if the node lives on.
        """
        on_tape = handle()
        assert on_tape is not None
        ctx.handle = handle
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: on_tape.call.arity])
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Rebuild the input, evaluate the call again, and differentiate it."""
        return _differentiate(ctx, *grads)


@untraced
def _differentiate(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Compute the gradients of a node; compiled autograd must not trace it."""
    if torch.is_inference_mode_enabled():  # a replay must record a graph
        with torch.inference_mode(mode=False), torch.no_grad():
            return _differentiate(ctx, *grads)
    handle: HandleLike | None = ctx.handle()
    if handle is None:
        # the graph was freed: reading saved tensors raises PyTorch's own error
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
