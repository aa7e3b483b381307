"""The measurement of accelerated MRI and the gradient of its likelihood."""

from __future__ import annotations

from torch import Tensor, nn

from mri_example.sampling import undersample
from mri_example.signal import (
    channels_to_complex,
    complex_to_channels,
    fft2c,
    ifft2c,
)


class SingleCoil:
    r"""Measure an image with one coil, $d = P F \eta$ (eq. 17).

    $F$ is the unitary Fourier transform and $P$ keeps the measured columns.

    Args:
        mask: 1 where k-space is measured, broadcasting against it, real.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def forward(self, image: Tensor) -> Tensor:
        r"""Return $P F \eta$."""
        return undersample(fft2c(image), self.mask)

    def adjoint(self, kspace: Tensor) -> Tensor:
        r"""Return $F^{-1} P\, k$, the zero-filled image of measured k-space."""
        return ifft2c(undersample(kspace, self.mask))

    def gradient(self, image: Tensor, zero_filled: Tensor) -> Tensor:
        r"""Return the gradient of $\tfrac12 \lVert P F \eta - d \rVert^2$.

        Args:
            image: The estimate $\eta$.
            zero_filled: The measured data $F^{-1} d$, as an image.

        Returns:
            $F^{-1} P F \eta - F^{-1} d$.
        """
        return self.adjoint(fft2c(image)) - zero_filled


class LikelihoodGradient(nn.Module):
    """The gradient of the likelihood on estimates written as real channels.

    Every complex copy of the estimate gets its own gradient from the same data.

    Shape:
        Estimate: real `(batch, 2 * copies, H, W)`, all real parts first. Zero-filled
        image: complex `(batch, 1, H, W)`. Mask: `(batch, 1, 1, W)`. The gradient has the
        shape of the estimate.
    """

    def forward(self, estimate: Tensor, zero_filled: Tensor, mask: Tensor) -> Tensor:
        """Return the gradient."""
        image = channels_to_complex(estimate)
        return complex_to_channels(SingleCoil(mask).gradient(image, zero_filled))
