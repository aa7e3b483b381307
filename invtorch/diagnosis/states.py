"""Convert states to float64, and compare them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from invtorch.engine.restore.context import map_tensors
from invtorch.precision import dtypes_as, is_differentiable

Tensors = tuple[Tensor, ...]


def in_double(value: Any) -> Any:
    """Convert a module, or the tensors in collections, to float64 or complex128.

    Integers are not converted. Modules are converted in place.
    """
    if isinstance(value, torch.nn.Module):
        return value.double()
    return map_tensors(_double, value)


def _double(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def cast_like(state: Any, like: Any) -> Any:
    """Convert a state to the dtypes of another one."""
    tensors = as_tuple(state)
    pairs = zip(tensors, dtypes_as(tensors, as_tuple(like)), strict=True)
    return shaped_like(tuple(t.to(dtype) for t, dtype in pairs), state)


def shaped_like(tensors: Tensors, state: Any) -> Any:
    """Return tensors as `state` is: a single tensor or a tuple."""
    return tensors if isinstance(state, tuple) else tensors[0]


def as_tuple(state: Any) -> Tensors:
    """Return a state as a tuple of tensors."""
    return state if isinstance(state, tuple) else (state,)


def precision(state: Any) -> torch.dtype:
    """Return the dtype of the first floating-point or complex tensor of a state."""
    dtypes = [t.dtype for t in as_tuple(state) if is_differentiable(t)]
    return dtypes[0] if dtypes else torch.get_default_dtype()


def draw_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Return a tensor of normally distributed numbers, or of zeros for integers."""
    if not is_differentiable(tensor):
        return torch.zeros_like(tensor)
    drawn = torch.randn(
        tensor.shape, generator=generator, dtype=tensor.dtype, device=generator.device
    )
    return drawn.to(tensor.device)


def norm(tensors: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of all tensors together."""
    return math.sqrt(sum(float(t.detach().abs().square().sum()) for t in tensors))


def joined(rows: list[Tensors]) -> Tensors:
    """Return the tensors of all layers in one tuple."""
    return tuple(tensor for row in rows for tensor in row)


def relative_error(values: Tensors, truth: Tensors) -> float:
    """Return the relative distance of two tuples; the absolute one if `truth` is 0."""
    distance = norm([f.to(t.dtype) - t for f, t in zip(values, truth, strict=True)])
    scale = norm(truth)
    return distance / scale if scale else distance
