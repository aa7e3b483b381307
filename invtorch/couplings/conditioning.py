"""How a coupling evaluates its conditioner, and rebuilds its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from invtorch import _torch
from invtorch._checks import check_batched, check_returned, check_takes
from invtorch.couplings.partition import Partition
from invtorch.precision import is_differentiable
from invtorch.recording import Context, evaluated, repeating
from invtorch.replay import Shift, ShiftGraph, start_of


def in_its_precision(conditioner: nn.Module, x: Tensor, context: Context) -> Any:
    """Evaluate a conditioner in the precision of its parameters, not of the state.

    Args:
        conditioner: The network.
        x: The part of the state that the conditioner receives.
        context: Further arguments of the conditioner.

    Returns:
        The output of the conditioner.

    Raises:
        ValueError: If a convolution would interpret the batch axis as channels.
        TypeError: If the conditioner does not take the context.
    """
    check_batched(conditioner, x)
    parameter = _parameter(conditioner)
    if parameter is None:
        parameter = _attribute(conditioner)
    if parameter is not None:
        own = parameter.dtype
        if own != x.dtype and parameter.is_complex() == x.is_complex():
            x = x.to(own)
    try:
        return evaluated(conditioner, context, x)
    except TypeError as error:
        check_takes(conditioner, context.args, error)
        raise


def shift_of(
    network: nn.Module, kept: Tensor, moved: Tensor, context: Context
) -> Tensor:
    """Evaluate a network that returns what is added to a part of the state.

    Args:
        network: The network.
        kept: What it receives.
        moved: The part that its output is added to.
        context: Further arguments of the network.

    Returns:
        The output, in the dtype of `moved`.

    Raises:
        TypeError: If `moved` cannot hold such numbers.
        ValueError: If the output does not have the shape of `moved`.
    """
    shift: Tensor = in_its_precision(network, kept, context)
    check_returned(type(network).__name__, shift, tuple(moved.shape), moved)
    return shift.to(moved.dtype)


# a function of the kept and the moved part of a state
ShiftFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def rebuild(
    output: Tensor, shifts: Sequence[tuple[ShiftFunction, Partition]], sign: int
) -> ShiftGraph:
    """Undo shifts of a state, the last one first, and keep the graph of each.

    Args:
        output: The state after all shifts.
        shifts: For each shift its function, and how it divides the state.
        sign: 1 if the shifts were added, -1 if they were subtracted.
    """
    state, graphs = output.detach().clone(), []
    for n, (function, parts) in reversed(list(enumerate(shifts))):
        # `data` has its own version counter: a change of `state` is not one of `kept`
        kept = parts.kept(state.data)
        if n > 0:  # the next shift to be undone changes this part of `state`
            kept = kept.clone()
        with repeating(n):
            shift = function(start_of(kept.requires_grad_()), parts.moved(state))
        _subtract(parts, state, shift.detach(), sign)
        graphs.append(Shift.of(shift, kept, parts, sign))
    return ShiftGraph((state,), tuple(graphs[::-1]))


def _subtract(parts: Partition, state: Tensor, shift: Tensor, sign: int) -> None:
    parts.update_(state, lambda moved: moved.sub_(shift, alpha=sign))


def _parameter(module: nn.Module) -> Tensor | None:
    """Return the first floating or complex parameter, faster than `parameters()`."""
    for parameter in _torch.parameters_of(module).values():
        if parameter is not None and is_differentiable(parameter):
            return parameter
    parts = _torch.submodules_of(module).values()
    inner = (_parameter(part) for part in parts if part is not None)
    return next((p for p in inner if p is not None), None)


def _attribute(module: nn.Module) -> Tensor | None:
    """Return the first such tensor that a replica has in the place of a parameter."""
    for part in _torch.modules_inside(module):
        for value in vars(part).values():
            if isinstance(value, Tensor) and is_differentiable(value):
                return value
    return None


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
