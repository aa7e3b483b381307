"""A hyperbolic tangent with linear tails."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invtorch._checks import check_bound, check_real
from invtorch.elementwise.pointwise import Pointwise


class LeakyTanh(Pointwise):
    r"""Hyperbolic tangent, continued linearly where its slope is too small to invert.

    $$ y = \begin{cases}
       \tanh x & \lvert x \rvert \le m \\
       \pm \tanh m + (x \mp m) / b & \pm x > m
       \end{cases} \qquad b = \cosh^2 m $$

    The slope is between $1/b$ and 1, and continuous. The inverse is the area tangent
    with linear tails; it multiplies rounding errors by $b$ at most.

    Args:
        bound: The bound $b$, larger than 1.

    Shape:
        Any real tensor; the output has the same shape.

    Raises:
        TypeError: If `bound` is not a number, or the state not real.
        ValueError: If `bound` is not larger than 1 and finite.

    Examples:
        >>> layer, x = LeakyTanh(), torch.linspace(-5, 5, 11)[None]
        >>> torch.allclose(layer.inverse(layer(x)), x, atol=1e-5)
        True
    """

    def __init__(self, bound: float = 10.0) -> None:
        super().__init__()
        if not math.isfinite(check_bound(bound)):
            raise ValueError(f"bound is {bound}, but must be finite")
        self.bound = bound
        self.end = math.acosh(math.sqrt(bound))

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Apply the function."""
        check_real(self, x)
        inner = x.clamp(-self.end, self.end)
        return inner.tanh() + (x - inner) / self.bound

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Apply the inverse function."""
        check_real(self, y)
        # 1 has no image; closer to it than rounding the tail may begin earlier
        end = min(math.tanh(self.end), 1 - torch.finfo(y.dtype).eps)
        inner = y.clamp(-end, end)
        return inner.atanh() + (y - inner) * self.bound

    def log_slope(self, x: Tensor) -> Tensor:
        r"""Return $-2 \ln \cosh x$, and that of the end in the tails."""
        inner = x.clamp(-self.end, self.end)
        return -2 * (inner - F.logsigmoid(2 * inner) - math.log(2))

    def extra_repr(self) -> str:
        """Show the bound."""
        return f"bound={self.bound}"
