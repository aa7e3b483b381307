"""What a mask does to k-space."""

from __future__ import annotations

import torch
from torch import Tensor


def undersample(kspace: Tensor, mask: Tensor) -> Tensor:
    """Keep the measured part of k-space; the rest is +0.0.

    A product with the mask would leave -0.0, and NaN where unmeasured values are not
    finite.

    Args:
        kspace: Complex, `(..., rows, cols)`.
        mask: 1 where measured, 0 elsewhere; it broadcasts against `kspace`.

    Returns:
        Masked k-space.

    Examples:
        >>> undersample(torch.tensor([-1.0, -2.0]), mask=torch.tensor([0.0, 1.0]))
        tensor([ 0., -2.])
    """
    return torch.where(mask.bool(), kspace, 0)
