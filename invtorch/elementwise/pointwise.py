"""The base class of functions that are applied to each entry."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from invtorch._checks import check_real_log_det
from invtorch.module import InvertibleModule


class Pointwise(InvertibleModule):
    """Base class of increasing functions of one real number.

    A subclass defines the two directions and `log_slope`.
    """

    def log_slope(self, x: Tensor) -> Tensor:
        """Return the logarithm of the derivative at each entry of `x`."""
        raise NotImplementedError

    def forward_and_log_det(self, x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Return `y` and the sum of the log-slopes."""
        return self.forward(x), self._log_det(x)

    def inverse_and_log_det(self, y: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        """Return `x` and minus the sum of the log-slopes."""
        x = self.inverse(y)
        return x, -self._log_det(x)

    def _log_det(self, x: Tensor) -> Tensor:
        check_real_log_det(self, x)
        log_slope = self.log_slope(x)
        return log_slope.flatten(1).sum(1) if x.ndim > 1 else log_slope
