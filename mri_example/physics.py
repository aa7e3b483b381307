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
    r"""Measure images with one coil (eq. 17).

    $$ d = P F \eta + n $$

    $F$ is the unitary Fourier transform, $P$ keeps the measured columns and $n$ is
    white noise. All that belongs to one measurement is handed to the constructor, so
    another measurement (several coils with their sensitivity maps) is another class
    with the same three methods.

    Args:
        mask: 1 where k-space is measured, 0 elsewhere; it broadcasts against k-space.

    Shape:
        Images and k-space: complex `(..., rows, cols)`.

    Examples:
        >>> model = SingleCoil(mask=torch.tensor([0.0, 1.0, 1.0, 0.0]))
        >>> image = torch.randn(4, 4, dtype=torch.complex64)
        >>> zero_filled = model.adjoint(model.forward(image))
        >>> residual = model.likelihood_gradient(image, zero_filled)
        >>> torch.allclose(residual, torch.zeros_like(image), atol=1e-6)
        True
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def forward(self, image: Tensor) -> Tensor:
        r"""Return the noiseless k-space $P F \eta$."""
        return undersample(fft2c(image), self.mask)

    def adjoint(self, kspace: Tensor) -> Tensor:
        r"""Return $F^{-1} P\, k$, the zero-filled image of measured k-space."""
        return ifft2c(undersample(kspace, self.mask))

    def likelihood_gradient(self, image: Tensor, zero_filled: Tensor) -> Tensor:
        r"""Return the gradient of $\tfrac12 \lVert P F \eta - d \rVert^2$.

        Args:
            image: The estimate $\eta$.
            zero_filled: The measured data as an image, $F^{-1} d$.

        Returns:
            $F^{-1} P F \eta - F^{-1} d$.
        """
        return self.adjoint(fft2c(image)) - zero_filled


class LikelihoodGradient(nn.Module):
    """The gradient of the likelihood, for estimates written as real channels.

    Every complex copy of the estimate gets its own gradient from the same data.

    Shape:
        - Estimate: real `(batch, 2 * copies, H, W)`, all real parts first.
        - Zero-filled image: complex `(batch, 1, H, W)` or `(batch, copies, H, W)`.
        - Mask: `(batch, 1, 1, W)`.
        - Gradient: as the estimate.

    Examples:
        >>> estimate, mask = torch.randn(2, 6, 8, 8), torch.ones(2, 1, 1, 8)
        >>> zero_filled = torch.randn(2, 1, 8, 8, dtype=torch.complex64)
        >>> LikelihoodGradient()(estimate, zero_filled, mask).shape
        torch.Size([2, 6, 8, 8])
    """

    def forward(self, estimate: Tensor, zero_filled: Tensor, mask: Tensor) -> Tensor:
        """Return the gradient."""
        image = channels_to_complex(estimate)
        data = zero_filled.expand_as(image)
        return complex_to_channels(SingleCoil(mask).likelihood_gradient(image, data))
