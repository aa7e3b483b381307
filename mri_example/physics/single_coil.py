"""The measurement with one coil."""

from __future__ import annotations

from torch import Tensor

from mri_example.fourier import fftc, ifftc
from mri_example.physics.measurement import Measurement


class SingleCoil(Measurement):
    r"""Measure images with one coil (eq. 17).

    $$ d = P F \eta + n $$

    $F$ is the unitary Fourier transform, $P$ keeps the measured part and $n$ is white
    noise.

    Args:
        mask: 1 where k-space is measured, 0 elsewhere; it broadcasts against k-space.
        dims: Number of axes of the Fourier transform: 2 for slices, 3 for volumes of
            3-D acquisitions.

    Shape:
        Images and k-space: complex `(..., rows, cols)` or `(..., slices, rows, cols)`.

    Examples:
        >>> model = SingleCoil(mask=torch.tensor([0.0, 1.0, 1.0, 0.0]))
        >>> image = torch.randn(4, 4, dtype=torch.complex64)
        >>> zero_filled = model.adjoint(model.forward(image))
        >>> residual = model.likelihood_gradient(image, zero_filled)
        >>> torch.allclose(residual, torch.zeros_like(image), atol=1e-6)
        True
    """

    def __init__(self, mask: Tensor, *, dims: int = 2) -> None:
        super().__init__(mask)
        self.dims = dims

    def encode(self, image: Tensor) -> Tensor:
        r"""Return the full k-space $F \eta$."""
        return fftc(image, self.dims)

    def decode(self, kspace: Tensor) -> Tensor:
        r"""Return the image $F^{-1} k$."""
        return ifftc(kspace, self.dims)
