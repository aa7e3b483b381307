"""The measurement of accelerated MRI and the gradient of its likelihood."""

from torch import Tensor, nn

from mri_example.errors import require
from mri_example.masks import encoded_axes, undersample
from mri_example.transforms import channels_to_complex, complex_to_channels, fftc, ifftc


class Measurement:
    r"""Measure images with one coil (eq. 17), or with several of known sensitivity.

    $$ d_c = P F (S_c \eta) + n_c, \qquad
       A^* d = \textstyle\sum_c \bar S_c\, F^{-1} P\, d_c $$

    $P$ keeps the measured part of k-space, and the noise $n$ is white and the same in
    all coils.

    Args:
        mask: 1 where k-space is measured, 0 elsewhere; it broadcasts against k-space.
        sensitivity_maps: The maps $S_c$, complex `(..., coils, rows, cols)`, or with
            slices before the rows; `None` for one coil that sees all alike.
        dims: Number of axes of an image: 2 for slices, 3 for volumes.

    Shape:
        Images: complex `(..., rows, cols)` or `(..., slices, rows, cols)`; k-space
        alike, with maps with an axis of coils before these.

    Examples:
        >>> maps = torch.randn(3, 4, 4, dtype=torch.complex64)
        >>> model = Measurement(torch.tensor([0.0, 1.0, 1.0, 0.0]), maps)
        >>> kspace = model.forward(torch.randn(4, 4, dtype=torch.complex64))
        >>> kspace.shape, model.adjoint(kspace).shape
        (torch.Size([3, 4, 4]), torch.Size([4, 4]))

    References:
        Pruessmann et al., *SENSE: sensitivity encoding for fast MRI*, 1999.
    """

    def __init__(
        self, mask: Tensor, sensitivity_maps: Tensor | None = None, *, dims: int = 2
    ) -> None:
        self.mask, self.maps, self.dims = mask, sensitivity_maps, dims

    def forward(self, image: Tensor) -> Tensor:
        r"""Return the noiseless k-space $P F S \eta$."""
        if self.maps is not None:
            image = self.maps * image.unsqueeze(-self.dims - 1)
        return undersample(fftc(image, self.dims), self.mask)

    def adjoint(self, kspace: Tensor) -> Tensor:
        r"""Return $S^* F^{-1} P\, k$, the zero-filled image of measured k-space."""
        image = ifftc(undersample(kspace, self.mask), self.dims)
        if self.maps is None:
            return image
        return (self.maps.conj() * image).sum(dim=-self.dims - 1)

    def likelihood_gradient(self, image: Tensor, zero_filled: Tensor) -> Tensor:
        r"""Return that of $\tfrac12 \lVert A \eta - d \rVert^2$, $A^* A \eta - A^* d$.

        The zero-filled image is $A^* d$.
        """
        return self.adjoint(self.forward(image)) - zero_filled


class LikelihoodGradient(nn.Module):
    """The gradient of the likelihood, for estimates written as real channels.

    Every complex copy of the estimate gets its own gradient: from the same data, from
    those of its coil, or, with sensitivity maps, from those of all coils.

    Shape:
        - Estimate: real `(batch, 2 * copies, H, W)`, all real parts first; of slabs
          `(batch, 2 * copies, slices, H, W)`.
        - Zero-filled image: complex `(batch, 1, ...)` or `(batch, copies, ...)`; with
          maps that of all coils, `Measurement.adjoint`.
        - Mask: `(batch, 1, *ones, W)`, or `(batch, 1, slices, 1, W)`.
        - Sensitivity maps: complex `(batch, coils, ...)`, or none.
        - Gradient: as the estimate.

    Raises:
        ValueError: If one of them has not as many axes as the estimate.

    Examples:
        >>> estimate, mask = torch.randn(2, 6, 8, 8), torch.ones(2, 1, 1, 8)
        >>> zero_filled = torch.randn(2, 1, 8, 8, dtype=torch.complex64)
        >>> LikelihoodGradient()(estimate, zero_filled, mask).shape
        torch.Size([2, 6, 8, 8])
    """

    def forward(
        self,
        estimate: Tensor,
        zero_filled: Tensor,
        mask: Tensor,
        sensitivity_maps: Tensor | None = None,
    ) -> Tensor:
        """Return the gradient."""
        _check_axes(estimate, mask, zero_filled, sensitivity_maps)
        image, dims = channels_to_complex(estimate), encoded_axes(mask)
        if sensitivity_maps is not None:
            # an axis of copies before that of the coils
            mask, sensitivity_maps = mask.unsqueeze(1), sensitivity_maps.unsqueeze(1)
            dims = estimate.ndim - 2
        model = Measurement(mask, sensitivity_maps, dims=dims)
        gradient = model.likelihood_gradient(image, zero_filled.expand_as(image))
        return complex_to_channels(gradient)


def _check_axes(estimate: Tensor, *data: Tensor | None) -> None:
    """Make sure that nothing broadcasts along an axis it was not meant for."""
    names = ("mask", "zero_filled", "sensitivity_maps")
    for name, tensor in zip(names, data, strict=True):
        if tensor is not None:
            text = f"{name} has shape {tuple(tensor.shape)}, but needs {estimate.ndim} "
            text += f"axes like the estimate of {tuple(estimate.shape)}: insert axes of"
            require(tensor.ndim == estimate.ndim, f"{text} length one")
