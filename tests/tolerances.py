"""How close is equal: the one table of tolerances, and how errors are measured.

Two computations of one thing agree to `EQUAL`. Gradients from rebuilt states may differ
by more: each layer rounds what it rebuilds, and what the layers above rounded is
multiplied by the condition of the layers below, that is, by how much the state shrinks
on its way back and by how differently a layer treats its directions. Such a gradient is
off by `A * eps`. The amplification `A` belongs to the network and its input and not to
the precision, so it can be measured: in single precision, the gradients from rebuilt
states differ from those of plain autograd by `A * eps` with the `eps` of single
precision. `assert_same_gradients` allows `MARGIN` times what follows from that in
double precision, for either error is one draw of many random roundings.

An error that is no rounding does not shrink with `eps`. A gradient that is wrong by
`error` in both precisions is allowed `error * MARGIN * eps64 / eps32`, a five-millionth
of it, and is caught. However badly conditioned a network is, no gradient may be off by
more than `4e-7`: in single precision all digits are then lost.

Gradients that vanish, as behind a layer and its own inverse, have no digits: plain
autograd returns rounding errors, which are `B * eps`. `B` is measured in single
precision too, by how far plain autograd is from itself in double precision. Where all
gradients of plain autograd are within `MARGIN` times that, so must the others be. None
above `4e-7` vanishes, against terms of size one.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invtorch.testing.compare import (
    Gradients,
    difference_of,
    largest_error,
    least_norm,
    norm_of,
    relative_error,
)

__all__ = ["Gradients", "largest_error", "least_norm", "relative_error"]

EQUAL = {torch.float64: 1e-10, torch.float32: 1e-4, torch.complex128: 1e-10}
SINGLE = {torch.float64: torch.float32, torch.complex128: torch.complex64}
FINER = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
MARGIN = 100.0  # the ratio of both errors was at most 10.5 for 33 of 600 networks
ALL_DIGITS = 2.0  # a larger relative error says no more than that all digits are lost


def assert_equal(
    value: Tensor, reference: Tensor, what: str = "", least: float = 0.0
) -> None:
    """Assert that two tensors agree to the tolerance of their dtype."""
    assert value.shape == reference.shape
    assert value.dtype == reference.dtype
    error = relative_error(value, reference, least)
    assert error <= EQUAL[reference.dtype], f"{what}: relative error {error:.1e}"


def assert_all_equal(values: Gradients, references: Gradients) -> None:
    """Assert that two sequences of optional tensors agree one by one."""
    least = least_norm(references)
    for i, (value, reference) in enumerate(zip(values, references, strict=True)):
        assert (value is None) == (reference is None), f"tensor {i}"
        if value is not None:
            assert_equal(value, reference, f"tensor {i}", least=least)


def assert_same_gradients(
    values: Gradients,
    references: Gradients,
    in_single: Callable[[], tuple[Gradients, Gradients]],
) -> None:
    """Assert that gradients in double precision agree but for amplified rounding.

    Args:
        values: Gradients from states that may have been rebuilt.
        references: The gradients of plain autograd.
        in_single: Computes both in single precision, on the same network and input. It
            is called only where there is more than `EQUAL` to explain.
    """
    error = largest_error(values, references)
    if error <= EQUAL[torch.float64]:
        return
    in_single_values, plain = in_single()
    amplified = min(largest_error(in_single_values, plain), ALL_DIGITS)
    allowed = MARGIN * amplified * FINER
    rounding = MARGIN * min(farthest(plain, references), ALL_DIGITS) * FINER
    vanishing = all(r is None or norm_of(r) <= rounding for r in references)
    assert error <= allowed or (
        vanishing and farthest(values, references) <= rounding
    ), f"relative error {error:.1e}, but rounding explains at most {allowed:.1e}"


def farthest(values: Gradients, references: Gradients) -> float:
    """Return the norm of the largest difference, and infinity for NaN."""
    pairs = zip(values, references, strict=True)
    found = [difference_of(v, r) for v, r in pairs if v is not None and r is not None]
    return math.inf if any(map(math.isnan, found)) else max(found, default=0.0)
