"""What modules of FrEIA take and return, and which of them do otherwise."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]

# what no adapter can correct, and what to use instead
REFUSED = {
    "InvAutoFC": "its reverse is no inverse: use invtorch.LU1x1",
    "InvAutoConv2D": "its reverse is no inverse: use invtorch.ResidualFlow",
    "IResNetLayer": "its log-determinant and reverse have no gradient: use "
    "invtorch.ResidualFlow",
}
WRITES_INPUT = {"HaarDownsampling", "HaarUpsampling"}  # in place, in one direction
WRONG_REVERSE = {"LearnedElementwiseScaling"}  # the sign of its log-determinant
NOT_SUMMED = {"InvertibleSigmoid"}  # its log-determinant, over the axes of space
NEARLY_ORTHOGONAL = {"OrthogonalTransform"}  # only when it was corrected just now


def shapes_of(dims: Sequence[Any]) -> list[Shape]:
    """Return a list of shapes; some modules of FrEIA keep the one shape alone."""
    if any(isinstance(entry, int) for entry in dims):
        return [tuple(dims)]
    return [tuple(shape) for shape in dims]


def shapes_without_batch(tensors: Sequence[Tensor]) -> list[Shape]:
    """Return the shapes of tensors without the axis of the batch."""
    return [tuple(t.shape[1:]) for t in tensors]


def named(module: nn.Module, names: set[str]) -> Iterator[nn.Module]:
    """Yield the modules inside, and the module itself, that FrEIA defines so."""
    for inner in module.modules():
        if any(map(names.__contains__, _names(inner))):
            yield inner


def _names(module: nn.Module) -> list[str]:
    kinds = type(module).__mro__
    return [kind.__name__ for kind in kinds if _of_freia(kind)]


def _of_freia(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "FrEIA"


def initializing(module: nn.Module) -> list[Any]:
    """Return the modules inside that may set their parameters in a call."""
    return [m for m in module.modules() if hasattr(m, "init_on_next_batch")]


def has_inner(module: nn.Module) -> bool:
    """Return whether a module calls others of FrEIA, as `GraphINN` does."""
    return any(is_freia(m) for m in module.modules() if m is not module)


def has_own(module: nn.Module) -> bool:
    """Return whether there are modules with these conventions that FrEIA lacks."""
    return any(is_freia(m) and not _of_freia(type(m)) for m in module.modules())


def is_freia(module: nn.Module) -> bool:
    """Return whether a module has the attributes of FrEIA's base class."""
    return hasattr(module, "dims_in") and hasattr(module, "output_dims")


def arguments(module: nn.Module) -> frozenset[str]:
    """Return the names of the arguments of `forward`."""
    return frozenset(inspect.signature(module.forward).parameters)


def condition_count(module: nn.Module) -> int:
    """Return how many conditions a module takes.

    `SequenceINN` has no `dims_c`, but a list with the index of each module's condition.
    """
    if "c" not in arguments(module):
        return 0
    indices: Any = getattr(module, "conditions", ())
    listed = indices if isinstance(indices, (list, tuple)) else ()
    highest = max((i for i in listed if isinstance(i, int)), default=-1)
    return max(len(shapes_of(getattr(module, "dims_c", None) or ())), highest + 1)


def check_conventions(module: nn.Module) -> None:
    """Refuse a module that does not follow the conventions.

    Raises:
        TypeError: If it lacks an attribute or argument of a module of FrEIA 0.2.
    """
    name = type(module).__name__
    if not is_freia(module):
        raise TypeError(
            f"{name} is no module of FrEIA: it has no `dims_in` or no `output_dims`"
        )
    for argument in ("rev", "jac"):
        if argument not in arguments(module):
            raise TypeError(
                f"`forward` of {name} has no argument `{argument}`: write it as FrEIA "
                f"0.2 does, `forward(x, c=None, rev=False, jac=True)`"
            )
    check_members(module)


def check_members(module: nn.Module) -> None:
    """Refuse a module of FrEIA, or one that has it inside, which can't be corrected.

    Raises:
        ValueError: If there is one.
    """
    name = type(module).__name__
    for refused, reason in REFUSED.items():
        if any(named(module, {refused})):
            raise ValueError(f"{refused} of FrEIA can't be used: {reason}")
    for inner in named(module, NOT_SUMMED):
        if inner is not module and len(shapes_of(inner.dims_in)[0]) > 1:  # type: ignore[arg-type]
            raise ValueError(
                f"{type(inner).__name__} in {name} is given images, whose "
                f"log-determinant it does not sum: use it as a layer of its own"
            )


def check_shapes(name: str, given: list[Shape], known: list[Shape], what: str) -> None:
    """Refuse tensors of other shapes than a module was made for.

    Raises:
        ValueError: If a shape, or their number, is another one.
    """
    if given != known:
        raise ValueError(
            f"{name} got {what} of shapes {given}, but was made for {known}, without "
            f"the batch: make one for these shapes"
        )


def log_det_of(name: str, value: Any, state: Tensor, sums: bool) -> Tensor:
    """Return a log-determinant as one number for each sample.

    Args:
        name: The class that returned it.
        value: What it returned: a number, or a tensor of one number or one per sample.
        state: A tensor of the state.
        sums: Whether it is summed over the axes of space.

    Raises:
        RuntimeError: If it is none of these.
    """
    batch, dtype = len(state), state.real.dtype if state.is_complex() else state.dtype
    try:
        log_det = torch.as_tensor(value, dtype=dtype, device=state.device)
    except (TypeError, ValueError, RuntimeError):
        raise RuntimeError(
            f"{name} returned {type(value).__name__} as log-determinant, but with "
            f"jac=True it must be a number or a tensor"
        ) from None
    if sums and log_det.shape == (batch, *state.shape[2:]):
        log_det = log_det.reshape(batch, -1).sum(1)
    if log_det.shape in ((), (1,)):  # the same for all samples
        log_det = log_det.expand(batch)
    if log_det.shape != (batch,):
        raise RuntimeError(
            f"{name} returned a log-determinant of shape {tuple(log_det.shape)} for a "
            f"batch of {batch}: sum it, so that it is one number for each sample"
        )
    return log_det


def tensors_of(name: str, value: Any) -> tuple[Tensor, ...]:
    """Return the tensors of a state, which may be one, a list or a tuple.

    Raises:
        RuntimeError: If it is none of these.
    """
    tensors = (value,) if isinstance(value, Tensor) else value
    listed = isinstance(tensors, (tuple, list)) and len(tensors) > 0
    if not listed or not all(isinstance(t, Tensor) for t in tensors):
        raise RuntimeError(
            f"{name} returned {type(value).__name__} as its output, but it must be a "
            f"tuple of tensors, beside the log-determinant"
        )
    return tuple(tensors)
