"""The measurement with several coils of known sensitivity."""

from __future__ import annotations

from torch import Tensor

from mri_example.fourier import fftc, ifftc
from mri_example.physics.measurement import Measurement


class Sense(Measurement):
    r"""Measure one image with several coils, each of which sees it in its own way.

    $$ d_c = P F (S_c \eta) + n_c, \qquad
       A^* d = \textstyle\sum_c \bar S_c\, F^{-1} P\, d_c $$

    $S_c$ is the complex sensitivity of coil $c$ at every pixel. The noise is white and
    the same in all coils; if it is not, whiten k-space and maps alike.

    Args:
        mask: 1 where k-space is measured, 0 elsewhere; it broadcasts against k-space.
        sensitivity_maps: Complex, `(..., coils, rows, cols)`, or with an axis of slices
            before the rows. See `sensitivity_maps` for an estimate.
        dims: Number of axes of an image: 2 for slices, 3 for volumes. Maps, image and
            Fourier transform have as many.

    Shape:
        Images: complex `(..., rows, cols)` or `(..., slices, rows, cols)`; k-space has
        one more axis, that of the coils, before these.

    Examples:
        >>> maps = torch.randn(3, 4, 4, dtype=torch.complex64)
        >>> model = Sense(torch.tensor([0.0, 1.0, 1.0, 0.0]), maps)
        >>> image = torch.randn(4, 4, dtype=torch.complex64)
        >>> kspace = model.forward(image)
        >>> kspace.shape, model.adjoint(kspace).shape
        (torch.Size([3, 4, 4]), torch.Size([4, 4]))

    References:
        Pruessmann et al., *SENSE: sensitivity encoding for fast MRI*, 1999.
    """

    def __init__(
        self, mask: Tensor, sensitivity_maps: Tensor, *, dims: int = 2
    ) -> None:
        super().__init__(mask)
        self.sensitivity_maps, self.dims = sensitivity_maps, dims

    def encode(self, image: Tensor) -> Tensor:
        r"""Return the full k-space of all coils, $F S_c \eta$."""
        seen = self.sensitivity_maps * image.unsqueeze(-self.dims - 1)
        return fftc(seen, self.dims)

    def decode(self, kspace: Tensor) -> Tensor:
        r"""Return the image $\sum_c \bar S_c F^{-1} k_c$."""
        seen = self.sensitivity_maps.conj() * ifftc(kspace, self.dims)
        return seen.sum(dim=-self.dims - 1)
