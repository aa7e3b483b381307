"""The scale of affine layers, as a function of what a network returns."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invtorch._checks import (
    check_bound,
    check_can_hold,
    check_real_log_det,
    check_tensor,
)
from invtorch.recording import Context, evaluated

# what the argument `scale` of an affine layer can be
Scale: TypeAlias = str | Callable[[Tensor], Tensor]


def _sigmoid(a: Tensor, limit: float) -> Tensor:
    """Return the logarithm of a sigmoid from $1/b$ to 1, close to 0 where $a$ is 0."""
    least = math.exp(-limit)
    if least < torch.finfo(a.dtype).tiny:  # the logarithm of 0 has no derivative
        return F.logsigmoid(a + 2)
    return torch.log(least + (1 - least) * torch.sigmoid(a + 2))


# computes $\ln s$ from $a$ and $\ln b$
LOG_SCALES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "tanh": lambda a, limit: limit * torch.tanh(a / limit),
    "sigmoid": _sigmoid,
    "exp": lambda a, limit: a.clamp(-limit, limit),
}
BOUND = 2.0  # by default


def checked_scale(scale: Scale, bound: float | None) -> tuple[Scale, float | None]:
    """Return the scale and the bound of a layer.

    Raises:
        TypeError: If `scale` is neither a name nor a callable.
        ValueError: If `scale` is unknown, or `bound` is not possible with it.
    """
    if isinstance(scale, str):
        if scale not in LOG_SCALES:
            raise ValueError(f"scale is {scale!r}, but must be one of {[*LOG_SCALES]}")
        bound = check_bound(BOUND if bound is None else bound)
        if scale == "tanh" and not math.isfinite(bound):
            raise ValueError(
                f"bound is {bound}, but must be finite with scale='tanh', whose slope "
                f"it sets; use scale='exp' without a bound"
            )
    elif not callable(scale):
        raise TypeError(
            f"scale is of type {type(scale).__name__}, but must be one of "
            f"{[*LOG_SCALES]}, or a callable that computes ln(s)"
        )
    elif bound is not None:
        raise ValueError(
            f"bound is {bound}, but a callable scale has none: leave it out, and let "
            f"the callable bound what it returns"
        )
    return scale, bound


def log_scale(layer: Any, a: Tensor) -> Tensor:
    r"""Return $\ln s$. The imaginary part of a complex $a$ is the phase of $s$.

    Raises:
        ValueError: If a callable scale returns another shape.
        TypeError: If it returns no tensor, or complex numbers for real ones.
    """
    if not isinstance(layer.scale, str):
        result: Tensor = evaluated(layer.scale, Context(), a)
        check_tensor(_name(layer.scale), result, "scale")
        if result.shape != a.shape:
            raise ValueError(
                f"scale returned shape {tuple(result.shape)} for an argument of shape "
                f"{tuple(a.shape)}: let it return one number for each"
            )
        check_can_hold(_name(layer.scale), result, a, "scale")
        return result.to(a.dtype)
    function, limit = LOG_SCALES[layer.scale], math.log(layer.bound)
    if a.is_complex():
        return torch.complex(function(a.real, limit), a.imag)
    return function(a, limit)


def sum_per_sample(layer: nn.Module, log_s: Tensor) -> Tensor:
    r"""Return the sum of $\ln s$ of each sample.

    Raises:
        NotImplementedError: If it is complex.
    """
    check_real_log_det(layer, log_s)
    return log_s.flatten(1).sum(1)


def shows_scale(layer: Any) -> str:
    """Return what `extra_repr` shows of the scale."""
    if isinstance(layer.scale, str):
        return f"scale={layer.scale!r}, bound={layer.bound}"
    return f"scale={_name(layer.scale)}"


def _name(function: Any) -> str:
    name: str = getattr(function, "__qualname__", type(function).__name__)
    return name
