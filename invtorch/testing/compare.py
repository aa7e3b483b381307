"""How close is equal: errors relative to the size of what is compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from invtorch.precision import eps_of

Tensors = tuple[Tensor, ...]
Gradients = Sequence[Tensor | None]


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative error that rounding explains: a third of the digits.

    It is 4e-11 in double precision, 2e-5 in single precision and 0.04 in bfloat16. A
    layer multiplies rounding errors by its condition, so one or two eps are too few; an
    error of the formula is as large as the state.
    """
    return float(eps_of(dtype) ** (2 / 3))


def relative_error(value: Tensor, reference: Tensor, least: float = 0.0) -> float:
    """Return the norm of the difference over that of the reference, or over `least`."""
    scale = max(reference.norm().item(), least) or 1.0
    return float((value - reference).norm().item() / scale)


def least_norm(references: Gradients) -> float:
    """Return the least norm that an error of one of many gradients is measured by.

    A gradient that vanishes but for rounding is measured against the others, and where
    all vanish, as behind a layer and its own inverse, against terms of size one.
    """
    present = [r for r in references if r is not None]
    total = sum(r.norm().item() for r in present)
    rounding = 1e3 * max((torch.finfo(r.dtype).eps for r in present), default=0.0)
    return 1e-3 * total if total > rounding else 1e-2


def largest_error(values: Gradients, references: Gradients) -> float:
    """Return the largest relative error of all gradients, and infinity for NaN."""
    least, errors = least_norm(references), [0.0]
    for i, (value, reference) in enumerate(zip(values, references, strict=True)):
        assert (value is None) == (reference is None), f"tensor {i}"
        if value is not None and reference is not None:
            assert (value.dtype, value.shape) == (reference.dtype, reference.shape)
            errors.append(relative_error(value, reference, least))
    return math.inf if any(map(math.isnan, errors)) else max(errors)


def as_tuple(state: Any) -> Tensors:
    """Return a state as a tuple."""
    return state if isinstance(state, tuple) else (state,)


def assert_close(
    what: str, values: Gradients, references: Gradients, rtol: float | None
) -> None:
    """Assert that tensors agree one by one, up to a relative error.

    Args:
        what: What is compared, the beginning of the message.
        values: Tensors, or None.
        references: What they should be.
        rtol: The error allowed; `None` for that of their dtype.

    Raises:
        AssertionError: If they do not agree.
    """
    least = least_norm(references)
    for i, (value, reference) in enumerate(zip(values, references, strict=True)):
        if value is None or reference is None:
            if value is not reference:
                missing = "is missing" if value is None else "should be None"
                raise AssertionError(f"{what}: tensor {i} {missing}")
            continue
        if (value.dtype, value.shape) != (reference.dtype, reference.shape):
            raise AssertionError(
                f"{what}: tensor {i} is {value.dtype} of shape {tuple(value.shape)}, "
                f"but should be {reference.dtype} of shape {tuple(reference.shape)}"
            )
        error = relative_error(value, reference, least)
        allowed = tolerance(reference.dtype) if rtol is None else rtol
        if not error <= allowed:
            raise AssertionError(
                f"{what}: tensor {i} has a relative error of {error:.1e}, but at most "
                f"{allowed:.1e} is allowed in {reference.dtype}"
            )


def norm_of_all(tensors: Iterable[Tensor]) -> float:
    """Return the norm of all entries of some tensors."""
    return math.hypot(*(t.norm().item() for t in tensors))


def assert_close_together(
    what: str, values: Tensors, references: Tensors, least: float, rtol: float | None
) -> None:
    """Assert that tensors agree, up to an error relative to all of them.

    Args:
        what: What is compared, the beginning of the message.
        values: Tensors.
        references: What they should be.
        least: The size that an error is relative to, if they are smaller.
        rtol: The error allowed; `None` for that of their dtype.

    Raises:
        AssertionError: If they do not agree.
    """
    size = max(norm_of_all(references), least)
    coarsest = max(map(tolerance, {r.dtype for r in references}), default=0.0)
    allowed = coarsest if rtol is None else rtol
    for i, (value, reference) in enumerate(zip(values, references, strict=True)):
        error = (value - reference).norm().item() / (size or 1.0)
        if not error <= allowed:
            raise AssertionError(
                f"{what}: tensor {i} has an error of {error:.1e} relative to all, but "
                f"at most {allowed:.1e} is allowed in {reference.dtype}"
            )


def weighed(state: Tensor | Tensors) -> Tensor:
    """Return a scalar function of a state, nonlinear and different in every entry."""
    total: Any = 0.0
    for i, tensor in enumerate(as_tuple(state)):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        weights = torch.linspace(-1, 1, real.numel(), dtype=real.dtype).to(real.device)
        total = total + (real * (1 + i) * weights.view(real.shape)).sin().sum()
    return torch.as_tensor(total)
