"""The logit function, for data in an interval."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from invtorch import _torch
from invtorch._checks import check_number, check_real, holds
from invtorch.elementwise.pointwise import Pointwise


class Logit(Pointwise):
    r"""Map numbers between 0 and 1, such as pixels, to all real numbers.

    $$ y = \operatorname{logit}(p), \qquad p = \alpha + (1 - 2 \alpha)\, x,
       \qquad x = \frac{\sigma(y) - \alpha}{1 - 2 \alpha} $$

    The log-determinant is $\sum \ln (1 - 2\alpha) - \ln p - \ln (1 - p)$. With $\alpha$
    larger than 0 the values 0 and 1 have finite images. The view `.inv` is a sigmoid.
    Where $\lvert y \rvert$ is large, the inverse is flat and digits of $y$ are lost, so
    keep this layer at an end of a network.

    Args:
        alpha: The margin $\alpha$, at least 0 and less than 1/2.

    Shape:
        Any real tensor of entries between 0 and 1; the output has the same shape.

    Raises:
        TypeError: If `alpha` is not a number, or the state not real.
        ValueError: If `alpha` is out of its range.
        RuntimeError: If an entry has no image. The check synchronizes with the device.

    Examples:
        >>> Logit(0.05)(torch.tensor([[0.5]]))
        tensor([[0.]])

    References:
        Dinh et al., *Density estimation using Real NVP*, 2016. arXiv:1605.08803
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        check_number("alpha", alpha)
        if not 0 <= alpha < 0.5:
            raise ValueError(
                f"alpha is {alpha}, but must be at least 0 and less than 0.5, for "
                f"instance 0.05"
            )
        self.alpha = alpha

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """Apply the logit function."""
        check_real(self, x)
        p = self.alpha + (1 - 2 * self.alpha) * x
        inside = ((p > 0) & (p < 1)).all()
        message = (
            f"{type(self).__name__}(alpha={self.alpha}) got entries that are not "
            f"between 0 and 1: scale the data, or use a larger alpha"
        )
        if torch.compiler.is_compiling():
            _torch.assert_async(inside, message)
        elif not holds(inside):
            raise RuntimeError(message)
        return torch.log(p) - torch.log1p(-p)

    def inverse(self, y: Tensor, *_: Any) -> Tensor:
        """Apply the sigmoid function."""
        check_real(self, y)
        return (torch.sigmoid(y) - self.alpha) / (1 - 2 * self.alpha)

    def forward_and_log_det(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Return `y` and the log-determinant, computed from `y`."""
        y = self.forward(x)
        return y, self._log_det(y)

    def inverse_and_log_det(self, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Return `x` and the log-determinant."""
        return self.inverse(y), -self._log_det(y)

    def log_slope(self, x: Tensor) -> Tensor:
        r"""Return $\ln (1 - 2\alpha) - \ln p - \ln (1 - p)$, given $y$ and not $x$."""
        # from y, which does not cancel: ln p is that of the sigmoid
        return math.log(1 - 2 * self.alpha) - F.logsigmoid(x) - F.logsigmoid(-x)

    def extra_repr(self) -> str:
        """Show the margin."""
        return f"alpha={self.alpha}"
