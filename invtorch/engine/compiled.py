"""The engine under `torch.compile`: one autograd function over a whole pass.

Dynamo cannot trace a tape, whose nodes find their states by looking back in Python.
Here the pass is one function of tensors: it saves its output, the anchors and a few
numbers of every state; its backward pass inverts and differentiates step by step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from invtorch.base import Step
from invtorch.engine.calls import (
    Call,
    Layout,
    Tensors,
    as_tuple,
    elementary,
    tensors_of,
)
from invtorch.engine.contract import check_arity, check_dtypes
from invtorch.engine.replayable import (
    check_arguments,
    check_closed,
    check_finite,
    check_rebuilt,
    check_replayable,
    check_round_trip,
    check_unchanged,
    growth_of,
    mark,
    noise_of,
    scales_of,
    tolerance_of,
)
from invtorch.recording import State


def run(
    anchors: frozenset[int],
    guarded: bool,
    steps: Sequence[Step],
    state: State,
    context: tuple[Any, ...],
) -> State:
    """Take the steps as one function that saves its output and the anchors.

    Args:
        anchors: The indices of the states that are kept.
        guarded: Whether rebuilt states are compared with those of the forward pass.
        steps: The steps; those of composites among them are taken one by one.
        state: The state to start from, one tensor or a tuple of several.
        context: What rides along.

    Returns:
        The final state.

    Raises:
        RuntimeError: If a step cannot be replayed under `torch.compile`, or the state
            or a context is not of a kind that can be.
    """
    check_arguments(as_tuple(state), context)
    layout, calls, single = Layout(), [], isinstance(state, Tensor)
    start = tuple(layout.place(t) for t in as_tuple(state))
    riding = tuple(layout.place(c) for c in context)
    for i, step in enumerate(elementary(steps)):
        label = f"layer {i} ({type(step.module).__name__})"
        check_replayable(label, step.module)
        named = tensors_of(step.module)
        places = tuple(layout.place(t) for t in named.values())
        places = (riding if step.context else ()) + places
        learned = tuple(layout.tensors[i].requires_grad for i in places)
        names = tuple(named)
        calls.append(Call(label, step, names, places, learned, single, i in anchors))
    outputs = CompiledPass.apply(calls, guarded, start, *layout.tensors)
    return outputs[0] if single else outputs  # type: ignore[no-any-return]


class CompiledPass(torch.autograd.Function):
    """All steps of a pass; saved are output, anchors, marks and what `Layout` holds.

    Without a guard the output alone is marked.
    """

    @staticmethod
    def forward(
        ctx: Any,
        calls: list[Call],
        guarded: bool,
        start: tuple[int, ...],
        *tensors: Any,
    ) -> Tensors:
        """Take the steps."""
        ctx.calls, ctx.guarded, ctx.start = calls, guarded, start
        state: Tensors = tuple(tensors[i] for i in start)
        anchors: Tensors = ()
        marks = [mark(list(state))] if guarded else []
        for i, call in enumerate(calls):
            if call.anchor:  # Dynamo saves no view of another tensor
                anchors += state if i == 0 else tuple(t.clone() for t in state)
            companions = [detached(c) for c in call.companions(tensors)]
            given = tuple(map(detached, state))
            with torch.enable_grad():
                state = call.evaluate(given, companions)
            check_arity(call.label, len(given), len(state))
            check_dtypes(call.label, given, state)
            check_closed(call.label, state)
            marks += [mark(list(state))] if guarded else []
        marks = marks or [mark(list(state))]
        ctx.save_for_backward(*state, *anchors, torch.stack(marks), *tensors)
        return state

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """Invert and differentiate the steps, the last one first."""
        arity = len(ctx.start)
        kept = arity * (1 + sum(call.anchor for call in ctx.calls))
        state = after(grads, ctx.saved_tensors[:arity])
        anchors, tensors = ctx.saved_tensors[arity:kept], ctx.saved_tensors[kept:]
        (table,), tensors = after(grads, tensors[:1]), tensors[1:]
        check_unchanged(mark(list(state)), table[-1])
        marks = (table,) if ctx.guarded else ()
        check_norms(ctx.calls, marks)
        found: list[Any] = [None] * len(tensors)

        def collect(places: Sequence[int], values: Sequence[Any]) -> None:
            for i, value in zip(places, values, strict=True):
                found[i] = value if found[i] is None else found[i] + value

        noise, scales = 0.0, table[-1][:, -1]  # noise since the last anchor
        for i, call in reversed(list(enumerate(ctx.calls))):
            companions, output = call.companions(tensors), state
            if call.anchor:
                state, anchors = after(grads, anchors[-arity:]), anchors[:-arity]
            else:
                with torch.no_grad():
                    state = call.back.evaluate(output, companions)

            def forward(
                *inputs: Tensor, call: Call = call, fixed: list[Any] = companions
            ) -> Tensors:
                replaced = call.replaced(fixed, inputs[arity:])
                return call.again.evaluate(inputs[:arity], replaced)

            noise = max(noise, noise_of(call.step.module, output))
            learned = call.choose(companions)
            again, pull = torch.func.vjp(forward, *state, *learned)  # type: ignore[misc]
            scales = scales_of(table[i], table[i + 1], scales) if marks else scales
            check_replay(i, call, marks, state, output, again, noise, scales)
            noise = 0.0 if call.anchor else noise
            pulled = pull(grads)
            grads = pulled[:arity]
            collect(call.choose(call.places), pulled[arity:])
        collect(ctx.start, grads)
        return None, None, None, *found


def check_norms(calls: Sequence[Call], marks: Tensors) -> None:
    """Assert in the graph that the states were finite, if they were marked."""
    for table in marks:
        for call, norms in zip(calls, table[1:, :, -1].unbind(), strict=True):
            check_finite(call.label, norms)


def check_replay(
    index: int,
    call: Call,
    marks: Tensors,
    state: Tensors,
    output: Tensors,
    again: Tensors,
    noise: float,
    scales: Tensor,
) -> None:
    """Assert in the graph that a replay is right.

    Its output must be that of the layer. If the states were marked, the one that was
    rebuilt must be off by no more than the layers allow that it was rebuilt through.
    """
    limit = tolerance_of(output, noise_of(call.step.module, output))
    least = torch.zeros_like(scales)
    for table in marks:
        least = torch.where(table[index + 1][:, -1] > 0, least, scales)
    check_round_trip(call.label, again, output, least.unbind(), limit)
    for table in marks:
        if not call.anchor:
            now, steep = mark(list(state)), growth_of(table) * noise > 1
            limits = tolerance_of(output, noise), tolerance_of(output, noise, math.inf)
            check_rebuilt(call.label, now, table[index], scales, limits, steep)


def after(grads: Sequence[Tensor], state: Tensors) -> Tensors:
    """Return the state as values that depend on the gradient.

    What does not depend on it could be computed in the forward pass already: the
    partitioner would share it with the forward pass and keep activations after all.
    """
    first = grads[0].flatten()[:1].isnan().any()
    return tuple(torch.where(first, t, t) for t in state)


def detached(value: Any) -> Any:
    """Return a tensor without its graph, and anything else as it is."""
    return value.detach() if isinstance(value, Tensor) else value
