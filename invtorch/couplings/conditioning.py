"""How a coupling splits a state and evaluates its conditioner."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from invtorch import _torch
from invtorch._checks import check_batched
from invtorch.precision import is_differentiable
from invtorch.recording import evaluated


def in_its_precision(
    conditioner: nn.Module, x: Tensor, context: tuple[Any, ...]
) -> Any:
    """Evaluate a conditioner in the precision of its parameters, not of the state.

    Args:
        conditioner: The network.
        x: The part of the state that the conditioner receives.
        context: Further arguments of the conditioner.

    Returns:
        The output of the conditioner.

    Raises:
        ValueError: If a convolution would interpret the batch axis as channels.
    """
    check_batched(conditioner, x)
    parameter = _parameter(conditioner)
    if parameter is None:
        return evaluated(conditioner, x, context)
    if parameter.dtype != x.dtype and parameter.is_complex() == x.is_complex():
        x = x.to(parameter.dtype)
    return evaluated(conditioner, x, context)


def _parameter(module: nn.Module) -> Tensor | None:
    """Return the first floating or complex parameter, faster than `parameters()`."""
    for parameter in _torch.parameters_of(module).values():
        if parameter is not None and is_differentiable(parameter):
            return parameter
    parts = _torch.submodules_of(module).values()
    inner = (_parameter(part) for part in parts if part is not None)
    return next((p for p in inner if p is not None), None)


def split_state(state: Tensor, split: int | None, dim: int) -> tuple[Tensor, Tensor]:
    """Split a state into two parts along `dim`, at `split` or in the middle.

    Raises:
        ValueError: If one part would be empty, or the state has no axis `dim`.
    """
    if not -state.ndim <= dim < state.ndim:
        raise ValueError(
            f"a state of shape {tuple(state.shape)} has no dim {dim} to be split "
            f"along: give it (batch, channels, ...)"
        )
    size = state.shape[dim]
    place = size // 2 if split is None else split
    if not 0 < place < size:
        raise ValueError(
            f"a state with {size} entries along dim {dim} cannot be split at "
            f"{place}: both parts need at least one"
        )
    first, second = state.tensor_split((place,), dim)
    return first, second
