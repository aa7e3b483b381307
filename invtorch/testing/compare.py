"""How close is equal: errors relative to the size of what is compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from invtorch.precision import eps_of, is_differentiable

ROUNDINGS = 8  # of a layer, each of half an eps of its largest terms
USUAL = 128.0  # sizes up to this, and down to its inverse, are used as they are

Tensors = tuple[Tensor, ...]
Gradients = Sequence[Tensor | None]


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative error that rounding explains: a third of the digits.

    It is 4e-11 in double precision, 2e-5 in single precision, and 32 eps in half
    precision, 0.03 in float16 and 0.25 in bfloat16. A layer multiplies rounding errors
    by its condition, so one or two eps are too few; an error of the formula is as large
    as the state.
    """
    eps = eps_of(dtype)
    return float(max(eps ** (2 / 3), 32 * eps))


def norm_of(tensor: Tensor) -> float:
    """Return the norm of a tensor, of any dtype and size: no square overflows."""
    values = tensor.detach().cpu()
    values = (values.abs() if is_differentiable(values) else values).double().abs()
    largest = values.max().item() if values.numel() else 0.0
    if not 0 < largest < math.inf:
        return float(largest)
    return largest * float((values / largest).norm().item())


def relative_error(value: Tensor, reference: Tensor, least: float = 0.0) -> float:
    """Return the norm of the difference over that of the reference, or over `least`."""
    scale = max(norm_of(reference), least) or 1.0
    return difference_of(value, reference) / scale


def difference_of(value: Tensor, reference: Tensor) -> float:
    """Return the norm of the difference, which is not rounded to the dtype."""
    wide = torch.promote_types(reference.dtype, torch.float64)
    return norm_of(value.detach().cpu().to(wide) - reference.detach().cpu().to(wide))


def least_norm(references: Gradients) -> float:
    """Return the least norm that an error of one of many gradients is measured by.

    A gradient that vanishes but for rounding is measured against the others, and where
    all vanish, as behind a layer and its own inverse, against terms of size one.
    """
    present = [r for r in references if r is not None]
    total = sum(map(norm_of, present))
    rounding = 1e3 * max((eps_of(r.dtype) for r in present), default=0.0)
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
    assert_same_form(what, values, references)
    least = least_norm(references)
    for i, (value, reference) in enumerate(zip(values, references, strict=True)):
        if value is None or reference is None:
            continue
        error = relative_error(value, reference, least)
        allowed = tolerance(reference.dtype) if rtol is None else rtol
        if not error <= allowed:
            raise AssertionError(
                f"{what}: tensor {i} has a relative error of {error:.1e}, but at most "
                f"{allowed:.1e} is allowed in {reference.dtype}"
            )


def norm_of_all(tensors: Iterable[Tensor]) -> float:
    """Return the norm of all entries of some tensors."""
    return math.hypot(*map(norm_of, tensors))


def assert_states_close(
    what: str,
    values: Tensors,
    references: Tensors,
    others: Tensors,
    rtol: float | None,
) -> bool:
    """Assert that two states agree, up to what rounding explains.

    A layer rounds sums of its state and of what it adds. Where a state is small beside
    the other end of the layer, or beside numbers of size one, rounding alone may be
    large beside the state. Whether it is can be seen in a finer precision only.

    Args:
        what: What is compared, the beginning of the message.
        values: Tensors.
        references: What they should be.
        others: The state at the other end of the layer.
        rtol: The error allowed relative to the state; `None` for that of its dtype.

    Returns:
        Whether they agree, not counting what larger terms may have rounded.

    Raises:
        AssertionError: If they do not agree.
    """
    assert_same_form(what, values, references)
    least, terms = 1e-3 * norm_of_all(references), norm_of_all(others)
    certain = True
    for i, (value, reference) in enumerate(zip(values, references, strict=True)):
        error = difference_of(value, reference)
        allowed = tolerance(reference.dtype) if rtol is None else rtol
        size = max(norm_of(reference), least)
        if error <= allowed * size:
            continue
        certain = False
        rounded = ROUNDINGS * eps_of(reference.dtype)
        if not error <= rounded * (terms + math.sqrt(reference.numel())):
            raise AssertionError(
                f"{what}: tensor {i} has a relative error of {error / (size or 1):.1e},"
                f" but at most {allowed:.1e} is allowed in {reference.dtype}"
            )
    return certain


def assert_same_form(what: str, values: Gradients, references: Gradients) -> None:
    """Assert that tensors have the dtypes and shapes of others.

    Raises:
        AssertionError: If they have not.
    """
    if len(values) != len(references):
        raise AssertionError(
            f"{what}: there are {len(values)} tensors, but should be {len(references)}"
        )
    for i, (value, reference) in enumerate(zip(values, references, strict=True)):
        if value is None or reference is None:
            if value is not reference:
                missing = "is missing" if value is None else "should be None"
                raise AssertionError(f"{what}: tensor {i} {missing}")
        elif (value.dtype, value.shape) != (reference.dtype, reference.shape):
            raise AssertionError(
                f"{what}: tensor {i} is {value.dtype} of shape {tuple(value.shape)}, "
                f"but should be {reference.dtype} of shape {tuple(reference.shape)}"
            )


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
        error = difference_of(value, reference) / (size or 1.0)
        if not error <= allowed:
            raise AssertionError(
                f"{what}: tensor {i} has an error of {error:.1e} relative to all, but "
                f"at most {allowed:.1e} is allowed in {reference.dtype}"
            )


def weighed(state: Tensor | Tensors) -> Tensor:
    """Return a scalar function of a state, nonlinear and different in every entry.

    It is as nonlinear at any size of the state, see `unit_of`.
    """
    total: Any = 0.0
    for i, tensor in enumerate(as_tuple(state)):
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        weights = torch.linspace(-1, 1, real.numel(), dtype=real.dtype).to(real.device)
        unit = unit_of(tensor)
        total = total + (real / unit * (1 + i) * weights.view(real.shape)).sin().sum()
    return torch.as_tensor(total)


def summed(state: Tensor | Tensors, units: Sequence[float]) -> Tensor:
    """Return a sum of all entries, each with another weight, in units of the tensors.

    It is linear: its gradient does not depend on rounding of the state.
    """
    total: Any = 0.0
    for i, tensor in enumerate(as_tuple(state)):
        if tensor.is_floating_point() or tensor.is_complex():
            resolved = tensor.resolve_conj()
            real = torch.view_as_real(resolved) if tensor.is_complex() else resolved
            weights = torch.linspace(1, 2, real.numel()).to(real)
            weighted = real / units[min(i, len(units) - 1)] * weights.view(real.shape)
            total = total + weighted.sum()
    return torch.as_tensor(total)


def unit_of(tensor: Tensor) -> float:
    """Return a power of two of the size of a tensor, 1 for usual sizes and for zeros.

    Products with it are exact.
    """
    if not (tensor.numel() and is_differentiable(tensor)):
        return 1.0
    largest = tensor.detach().abs().max().item()
    if not 0 < largest < math.inf or 1 / USUAL <= largest <= USUAL:
        return 1.0
    return 2.0 ** (math.frexp(largest)[1] - 1)
