"""Arithmetic without rounding: floating-point numbers on a fixed-point grid.

A grid is the set of all multiples of a power of two, its spacing. Sums and differences
on a grid are exact in floating point, as long as every result is less than $2^{24}$
times the spacing in single precision, or $2^{53}$ times in double. The limit itself is
refused, although it can be represented, because it may be the rounded value of another
sum, such as $2^{24} - 1 + 2$.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from invtorch import _torch
from invtorch._checks import check_number


def snap(x: Tensor, spacing: float) -> Tensor:
    """Round to the nearest multiple of `spacing`. The gradient is that of the identity.

    Args:
        x: A tensor of a real floating-point dtype.
        spacing: The distance between points of the grid, a power of two.

    Returns:
        A tensor on the grid, as `AdditiveCoupling(…, grid=spacing)` requires.

    Raises:
        ValueError: If `spacing` is not a positive power of two.

    Examples:
        >>> snap(torch.tensor([0.3, -0.3]), 0.25)
        tensor([ 0.2500, -0.2500])
    """
    snapped: Tensor = _Snapped.apply(x, check_spacing(spacing))
    return snapped


def check_spacing(spacing: float) -> float:
    """Return `spacing` if it is a positive power of two.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not.
    """
    check_number("grid", spacing)
    if not 0 < spacing < math.inf or math.frexp(spacing)[0] != 0.5:
        raise ValueError(
            f"grid is {spacing}, but must be a power of two, for instance 2**-18: only "
            f"sums of its multiples are exact"
        )
    return spacing


def check_exact(x: Tensor, spacing: float) -> None:
    """Check that `x` is on the grid and within its range, so that sums are exact.

    Under `torch.func.vmap` all samples have to be. On the device "meta" none is.

    Raises:
        RuntimeError: If it is not.
    """
    x = _torch.unwrapped(x.detach())
    limit = 2 / torch.finfo(x.dtype).eps  # 2**24 in float32
    if x.is_meta:
        return
    multiples = _divide(x, spacing)
    if not (multiples.abs() < limit).all():
        raise RuntimeError(
            f"a state reaches {x.abs().max():.3g}, but on a grid of {spacing} "
            f"{x.dtype} counts exactly only below {limit * spacing:.3g}: use a coarser "
            f"grid, weaker conditioners or fewer layers"
        )
    if not torch.equal(multiples.round() * spacing, x):
        raise RuntimeError(
            f"a state is not on the grid of {spacing}: snap the input of the container "
            f"(`invtorch.grid.snap`), and let no other layer leave the grid"
        )


def _divide(x: Tensor, spacing: float) -> Tensor:
    """Divide by a power of two, in two steps.

    A GPU multiplies by the reciprocal, which overflows for the finest grids. That of
    the square root does not.
    """
    half = 2.0 ** (math.frexp(spacing)[1] // 2)
    return x / half / (spacing / half)


class _Snapped(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, spacing: float) -> Tensor:
        return _divide(x, spacing).round() * spacing

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        del ctx
        return grad, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        del ctx
        return tangent.clone()
