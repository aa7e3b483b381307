"""How close is equal: the one table of tolerances, and how errors are measured."""

import torch
from torch import Tensor

EQUAL = {torch.float64: 1e-10, torch.float32: 1e-4, torch.complex128: 1e-10}


def relative_error(value: Tensor, reference: Tensor, least: float = 0.0) -> float:
    """Return the norm of the difference over that of the reference, or over `least`."""
    scale = max(reference.norm().item(), least) or 1.0
    return (value - reference).norm().item() / scale


def assert_equal(
    value: Tensor, reference: Tensor, what: str = "", least: float = 0.0
) -> None:
    """Assert that two tensors agree to the tolerance of their dtype."""
    assert value.shape == reference.shape
    assert value.dtype == reference.dtype
    error = relative_error(value, reference, least)
    assert error <= EQUAL[reference.dtype], f"{what}: relative error {error:.1e}"


def assert_all_equal(values, references) -> None:
    """Assert that two sequences of optional tensors agree one by one.

    A gradient that vanishes but for rounding is measured against the others, and where
    all vanish, as behind a layer and its own inverse, against terms of size one.
    """
    present = [r for r in references if r is not None]
    total = sum(r.norm().item() for r in present)
    rounding = 1e3 * max((torch.finfo(r.dtype).eps for r in present), default=0.0)
    least = 1e-3 * total if total > rounding else 1e-2
    for i, (value, reference) in enumerate(zip(values, references, strict=True)):
        assert (value is None) == (reference is None), f"tensor {i}"
        if value is not None:
            assert_equal(value, reference, f"tensor {i}", least=least)
