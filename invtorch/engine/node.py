"""The autograd function of one recorded call: it saves a promise instead of a state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.graph import GradientEdge

from invtorch.engine.contract import check_transforms
from invtorch.engine.frame import note_on
from invtorch.engine.pure_frame import AnyFrame
from invtorch.engine.replayed import Replayed, Tensors
from invtorch.engine.reports import HandedOutward


class ReplayNode(torch.autograd.Function):
    """Stand for a call that was evaluated, and evaluate it again for its gradient.

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
        ctx: Any, handle: Callable[[], Any], outputs: list[Tensor], *tensors: Tensor
    ) -> Tensors:
        """Hand the outputs on; `handle` finds a place on the tape while it is held.

        What the call is evaluated again with is freed where PyTorch frees what is
        saved, even if the node itself lives on.
        """
        ctx.handle = handle
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[: handle().frame.arity])
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """Rebuild the input, evaluate the call again, and differentiate it."""
        if torch.is_inference_mode_enabled():  # no graph could be made in it
            with torch.inference_mode(mode=False), torch.no_grad():
                return ReplayNode.backward(ctx, *grads)
        handle, needed = ctx.handle(), ctx.needs_input_grad[2:]
        if handle is None:
            return ctx.saved_tensors  # type: ignore[no-any-return] # PyTorch refuses
        frame: AnyFrame = handle.frame
        check_transforms(frame.label)
        again = torch.is_grad_enabled()
        replayed = frame.reconnect(ctx.saved_tensors) if again else handle.replay()
        try:
            with HandedOutward():
                return None, None, *_pull_back(replayed, grads, needed)
        except Exception as error:
            note_on(error, frame.label)
            if not again:
                handle.replay_again(replayed)
            raise


def _pull_back(
    replayed: Replayed, grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> list[Tensor | None]:
    shifted, pull_back = replayed.shifted, replayed.pull_back
    if shifted is None and pull_back is None:
        return _gradients(replayed.outputs, grads, replayed.inputs, needed)
    (grad,) = grads
    if grad is None:
        return [None] * len(needed)
    if pull_back is not None:
        return pull_back(grad, needed)
    assert shifted is not None
    moved = (shifted.edge,), (shifted.cotangent(grad),)
    of_kept, *others = _gradients(*moved, replayed.leaves, needed)
    return [shifted.gradient(grad, of_kept) if needed[0] else None, *others]


def _gradients(
    outputs: Sequence[Tensor | GradientEdge | None],
    grads: Sequence[Tensor | None],
    inputs: Tensors,
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of those inputs that need one."""
    reached = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and _differentiable(output)
    ]
    wanted = [t for t, need in zip(inputs, needed, strict=True) if need]
    if not reached or not wanted:
        return [None] * len(needed)
    roots, cotangents = zip(*reached, strict=True)
    again = torch.is_grad_enabled()
    # what `torch.autograd.grad` calls after it has looked at arguments that are right
    run: Callable[..., Tensors] = Variable._execution_engine.run_backward
    arguments = roots, cotangents, again, again, tuple(wanted), True
    found = iter(run(*arguments, accumulate_grad=False))
    return [next(found) if need else None for need in needed]


def _differentiable(output: Tensor | GradientEdge | None) -> bool:
    return output.requires_grad if isinstance(output, Tensor) else output is not None
