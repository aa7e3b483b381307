"""The recurrent inference machine, the method that the i-RIM makes invertible."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_example.models.base import Reconstructor, check_counts
from mri_example.physics import LikelihoodGradient
from mri_example.transforms import channels_to_complex, complex_to_channels

INPUTS, OUTPUTS = 4, 2  # estimate and gradient, and the update; each a complex image


class ConvGRU(nn.Module):
    r"""A gated recurrent unit at every pixel (Cho et al., 2014, arXiv:1406.1078).

    $$ h' = (1 - z) \odot n + z \odot h, \qquad
       n = \tanh(W_n x + r \odot U_n h) $$

    with $r$ and $z$ the logistic functions of $W_r x + U_r h$ and $W_z x + U_z h$, and
    biases in all of them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.from_input = nn.Conv2d(channels, 3 * channels, 1)
        self.from_hidden = nn.Conv2d(channels, 3 * channels, 1)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the next hidden state."""
        xr, xz, xn = self.from_input(x).chunk(3, dim=1)
        hr, hz, hn = self.from_hidden(h).chunk(3, dim=1)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        n = torch.tanh(xn + r * hn)
        return (1 - z) * n + z * h


class RIM(Reconstructor):
    r"""Improve an estimate step by step with a recurrent network (eq. 6 and 7).

    $$ s_{t+1} = f(\nabla D, \eta_t, s_t), \qquad
       \eta_{t+1} = \eta_t + g(\nabla D, \eta_t, s_{t+1}) $$

    All steps share their weights. Coils are reconstructed each by itself, as a batch.
    Images are divided by their standard deviation.

    Args:
        channels: Channels of the hidden states.
        steps: Number of steps $T$.

    Shape:
        See `Reconstructor`; the reconstruction has an image for every coil.

    Examples:
        >>> sum(p.numel() for p in RIM().parameters())
        94464

    References:
        Putzky and Welling, *Recurrent inference machines for solving inverse problems*,
        2017. arXiv:1706.04008; Lønning et al., *Recurrent inference machines for
        reconstructing heterogeneous MRI data*, 2019.
    """

    each_coil = True

    def __init__(self, channels: int = 64, steps: int = 8) -> None:
        super().__init__()
        check_counts(channels=channels, steps=steps)
        self.channels, self.steps = channels, steps
        self.gradient = LikelihoodGradient()
        self.look = nn.Conv2d(INPUTS, channels, 5, padding=2)
        self.remember = ConvGRU(channels)
        self.widen = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        self.recall = ConvGRU(channels)
        self.update = nn.Conv2d(channels, OUTPUTS, 3, padding=1, bias=False)

    def forward(
        self, zero_filled: Tensor, mask: Tensor, *, scale: Tensor | None = None
    ) -> Tensor:
        """Return the last estimate."""
        return self.trajectory(zero_filled, mask, scale=scale)[-1]

    def trajectory(
        self,
        zero_filled: Tensor,
        mask: Tensor,
        metadata: Tensor | None = None,
        *,
        scale: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the estimates of all steps."""
        del metadata
        batch, coils, *space = zero_filled.shape
        scale = self.scale_of(zero_filled) if scale is None else scale
        measured = (zero_filled / scale).reshape(batch * coils, 1, *space)
        mask = mask.expand(batch, *mask.shape[1:])
        masks = mask.repeat_interleave(coils, dim=0)
        estimate = complex_to_channels(measured)
        first = second = estimate.new_zeros(batch * coils, self.channels, *space)
        estimates = []
        for _ in range(self.steps):
            gradient = self.gradient(estimate, measured, masks)
            seen = F.relu(self.look(torch.cat([estimate, gradient], 1)))
            first = self.remember(seen, first)
            second = self.recall(F.relu(self.widen(first)), second)
            estimate = estimate + self.update(second)
            estimates.append(estimate)
        return [scale * channels_to_complex(e).view_as(zero_filled) for e in estimates]
