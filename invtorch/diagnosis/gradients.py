"""Gradients of a model under one strategy, layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from invtorch.composite import Step, elementary
from invtorch.containers import InvertibleSequential
from invtorch.diagnosis.states import Tensors, as_tuple, in_double
from invtorch.engine import DriftWarning
from invtorch.engine.restore.context import map_tensors
from invtorch.module import InvertibleModule
from invtorch.precision import is_differentiable
from invtorch.recording import Context


def gradients(model: InvertibleModule, x: Any, context: Context) -> list[Tensors]:
    """Return the gradients of each layer's parameters, in float64.

    The loss is the mean square of the output.
    """
    model.zero_grad()
    x, context = map_tensors(torch.Tensor.detach, (x, context))
    outputs = as_tuple(context.call(model, x))
    squares = [y.abs().square().mean() for y in outputs if is_differentiable(y)]
    loss = torch.stack(squares).sum()
    if loss.requires_grad:
        loss.backward()
    grads_of_layers = []
    for step in elementary([Step(model)]):
        grads = (p.grad for p in step.module.parameters() if p.requires_grad)
        grads_of_layers.append(tuple(in_double(g) for g in grads if g is not None))
    return grads_of_layers


def containers(model: InvertibleModule) -> list[InvertibleSequential]:
    """Return all containers of a model."""
    return [m for m in model.modules() if isinstance(m, InvertibleSequential)]


def stored(model: InvertibleModule, finer: bool = False) -> InvertibleModule:
    """Set a model to store all states, as plain autograd does.

    Args:
        model: The model.
        finer: Whether to keep the model's `state_dtype`.
    """
    for container in containers(model):
        container.memory = "store"
        container.state_dtype = container.state_dtype if finer else None
    return model


def warning(model: InvertibleModule) -> InvertibleModule:
    """Set the guards of a model to warn instead of raising."""
    for container in containers(model):
        container.guard = "warn" if container.guard else None
    return model


@contextmanager
def drift_warnings() -> Iterator[list[str]]:
    """Collect the messages of guards that warn of drift."""
    messages: list[str] = []

    def collect(message: Warning | str, *_: object, **__: object) -> None:
        if isinstance(message, DriftWarning):
            messages.append(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = collect
        yield messages
