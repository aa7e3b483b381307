"""Uniform dequantization: a density for data of whole numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from invtorch._checks import check_count, check_generator, holds

LARGEST_MARGIN = 1 / 8  # at both ends of the noise, of its interval


class Dequantize(nn.Module):
    r"""Map whole numbers to real ones by adding noise.

    $$ u = (x + \epsilon) / L, \qquad \epsilon \sim \mathcal U[0, 1) $$

    A flow has a density of real numbers, which would grow without bound on data of
    whole numbers $0, \dots, L - 1$. The density of $u$ gives a lower bound of the
    probability of $x$: $\ln P(x) \ge \mathbb E\,[\ln p(u)] - D \ln L$ with $D$ entries.

    Args:
        levels: The number $L$ of different values.

    Shape:
        Any; the output has the same shape and is in $[0, 1)$.

    Raises:
        TypeError: If `levels` is not a whole number, or the data are complex or no
            tensor.
        ValueError: If `levels` is less than 2, or too large for the precision of the
            data; or the data are not whole numbers from 0 to `levels` - 1.

    Examples:
        >>> from invtorch.flows import Dequantize
        >>> dequantize = Dequantize(levels=16)
        >>> x = torch.tensor([[0, 7, 15]])
        >>> torch.equal(dequantize.inverse(dequantize(x)), x)
        True

    References:
        Theis et al., *A note on the evaluation of generative models*, 2016.
        arXiv:1511.01844
    """

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        check_count("levels", levels, least=2)
        self.levels = levels

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Add noise and divide by the number of levels."""
        check_generator(generator)
        if not isinstance(x, Tensor) or x.is_complex():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"the data to dequantize are a {kind}, but must be one tensor of whole "
                f"numbers"
            )
        real = x if x.is_floating_point() else x.to(torch.get_default_dtype())
        whole = (real >= 0) & (real < self.levels) & (real == real.floor())
        if not holds(whole.all()):
            raise ValueError(
                f"the data are not whole numbers from 0 to {self.levels - 1}: scale "
                f"and round them first, or use a flow without dequantization"
            )
        # as far from whole numbers as the operations here and in `inverse` may round
        margin = self._margin(real.dtype)
        noise = torch.rand(
            real.shape, generator=generator, dtype=real.dtype, device=real.device
        )
        return (real + noise.clamp(margin, 1 - margin)) / self.levels

    def inverse(self, u: Tensor) -> Tensor:
        """Return the whole numbers, as `int64`."""
        return (u * self.levels).floor().clamp(0, self.levels - 1).long()

    def _margin(self, dtype: torch.dtype) -> float:
        margin = torch.finfo(dtype).eps * self.levels
        if margin > LARGEST_MARGIN:
            most = int(LARGEST_MARGIN / torch.finfo(dtype).eps)
            raise ValueError(
                f"levels is {self.levels}, but {dtype} tells only {most} values and "
                f"their noise apart: give the data in another dtype (`x.float()`)"
            )
        return margin

    def log_det(self, x: Tensor) -> Tensor:
        r"""Return $-D \ln L$ for each sample."""
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        entries = x.shape[1:].numel()
        return torch.full(
            (len(x),), -entries * math.log(self.levels), dtype=dtype, device=x.device
        )

    def extra_repr(self) -> str:
        """Show the number of levels."""
        return f"levels={self.levels}"
