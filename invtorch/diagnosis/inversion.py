"""Sizes, round trips and gains of the layers of a model."""

from __future__ import annotations

from typing import Any

import torch

from invtorch.composite import Step, elementary
from invtorch.diagnosis.states import (
    as_tuple,
    cast_like,
    draw_like,
    in_double,
    norm,
    relative_error,
    shaped_like,
)
from invtorch.module import InvertibleModule
from invtorch.recording import Context

# Relative step of the finite difference. In float64 its rounding error is about 1e-10.
STEP = 1e-6
TINY = 1e-300  # replaces a norm of zero, which cannot be divided by


def measure_inversion(
    model: InvertibleModule, exact: InvertibleModule, x: Any, context: Context
) -> tuple[list[float], list[float], list[float]]:
    """Return the norms of all states, and the round trip and gain of every layer.

    Args:
        model: The model.
        exact: Its copy in float64.
        x: The input of the model.
        context: Further arguments of the model.
    """
    steps, exact_steps = elementary([Step(model)]), elementary([Step(exact)])
    exact_context = in_double(context)
    states, trips = [in_double(x)], []
    with torch.no_grad():
        for step, exact_step in zip(steps, exact_steps, strict=True):
            state = cast_like(states[-1], x)
            back = step.inverse(step(state, context), context)
            trips.append(relative_error(as_tuple(back), as_tuple(state)))
            states.append(exact_step(states[-1], exact_context))
        sizes = [max(norm(as_tuple(state)), TINY) for state in states]
        gains = _gains(exact_steps, states, sizes, exact_context)
    return sizes, trips, gains


def _gains(
    steps: list[Step], states: list[Any], sizes: list[float], context: Context
) -> list[float]:
    """Pass a small error down through the inverses, as a rounding error passes."""
    generator = torch.Generator("cpu").manual_seed(0)
    errors = tuple(draw_like(t, generator) for t in as_tuple(states[-1]))
    gains = []
    for i in reversed(range(len(steps))):
        back, y = steps[i].inverse, states[i + 1]
        before = max(norm(errors), TINY) / sizes[i + 1]
        scale = STEP / before
        pairs = zip(as_tuple(y), errors, strict=True)
        moved = shaped_like(tuple((t + scale * e).to(t.dtype) for t, e in pairs), y)
        ends = zip(
            as_tuple(back(moved, context)), as_tuple(back(y, context)), strict=True
        )
        errors = tuple((a - b) / scale for a, b in ends)
        gains.append(norm(errors) / sizes[i] / before)
    return gains[::-1]
