"""Leaky ReLU: two slopes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from invtorch._checks import check_number, check_real
from invtorch.elementwise.pointwise import Pointwise


class LeakyReLU(Pointwise):
    r"""Multiply negative entries by a slope.

    $$ y = \max(x, 0) + a \min(x, 0), \qquad x = \max(y, 0) + \min(y, 0) / a $$

    The log-determinant is $\ln a$ times the number of negative entries. The inverse
    multiplies rounding errors by $1/a$, so the default is a larger slope than that of
    `torch.nn.LeakyReLU`.

    Args:
        negative_slope: The slope $a$, larger than 0.

    Shape:
        Any real tensor; the output has the same shape.

    Raises:
        TypeError: If the slope is not a number, or the state not real.
        ValueError: If the slope is not larger than 0.

    Examples:
        >>> LeakyReLU(0.5)(torch.tensor([[-2.0, 2.0]]))
        tensor([[-1.,  2.]])
    """

    def __init__(self, negative_slope: float = 0.2) -> None:
        super().__init__()
        check_number("negative_slope", negative_slope)
        if not 0 < negative_slope < math.inf:
            raise ValueError(
                f"negative_slope is {negative_slope}, but must be larger than 0 and "
                f"finite: with 0 there is no inverse"
            )
        self.negative_slope = negative_slope

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Multiply negative entries by the slope."""
        check_real(self, x)
        return torch.where(x < 0, self.negative_slope * x, x)

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Divide negative entries by the slope."""
        check_real(self, y)
        return torch.where(y < 0, y / self.negative_slope, y)

    def log_slope(self, x: Tensor) -> Tensor:
        """Return the logarithm of the slope at each entry."""
        return torch.where(x < 0, math.log(self.negative_slope), torch.zeros_like(x))

    def extra_repr(self) -> str:
        """Show the slope."""
        return f"negative_slope={self.negative_slope}"
