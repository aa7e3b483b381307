"""The training loss of the paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SubsampledNMSE(nn.Module):
    r"""Normalized squared error on a random subset of the pixels (eq. 18).

    $$ L = \frac{N}{\sum_i m_i} \cdot
       \frac{\sum_i m_i \lvert \hat x_i - x_i \rvert^2}{\sum_i \lvert x_i \rvert^2},
       \qquad m_i \sim \mathrm{Bernoulli}(f) $$

    averaged over the batch. The same mask hides pixels of estimate and target, and the
    expectation is the NMSE whatever the fraction $f$: a cheap source of gradient noise.

    Args:
        fraction: The share $f$ of pixels that count, in (0, 1]; 1 draws nothing.
        magnitude: Compare magnitudes instead of complex values.

    Shape:
        Two images `(batch, *space)`, complex or real; the loss is a scalar.

    Raises:
        ValueError: If `fraction` is not in (0, 1], or the shapes differ.

    Examples:
        >>> loss = SubsampledNMSE(fraction=0.5)
        >>> target = torch.ones(2, 8, 8, dtype=torch.complex64)
        >>> float(loss(1.5 * target, target))
        0.25
    """

    def __init__(self, fraction: float = 0.01, *, magnitude: bool = False) -> None:
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}, but must be in (0, 1]")
        self.fraction = fraction
        self.magnitude = magnitude

    def forward(
        self,
        estimate: Tensor,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss, drawing the pixels from `generator`."""
        if estimate.shape != target.shape:
            raise ValueError(
                f"estimate has shape {tuple(estimate.shape)}, but target "
                f"{tuple(target.shape)}: crop both to the same size"
            )
        if self.magnitude:
            estimate, target = estimate.abs(), target.abs()
        error = (estimate - target).abs().square().flatten(1)
        energy = target.abs().square().flatten(1).sum(1)
        energy = torch.where(energy > 0, energy, torch.ones_like(energy))
        counted = self._draw(error, generator)
        share = counted.sum(1).clamp(min=1) / error.shape[1]
        return ((counted * error).sum(1) / energy / share).mean()

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.fraction == 1:
            return torch.ones_like(like)
        chances = torch.rand(like.shape, generator=generator, dtype=like.dtype)
        return (chances < self.fraction).to(like)
