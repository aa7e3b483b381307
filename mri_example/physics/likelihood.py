"""Gradients of the likelihood, for estimates written as real channels."""

from __future__ import annotations

from torch import Tensor, nn

from mri_example.physics.sense import Sense
from mri_example.physics.single_coil import SingleCoil
from mri_example.sampling import encoded_axes
from mri_example.signal import channels_to_complex, complex_to_channels


class LikelihoodGradient(nn.Module):
    """The gradient of the likelihood, for estimates written as real channels.

    Every complex copy of the estimate gets its own gradient from the same data, or, of
    several coils, from those of its coil.

    The Fourier transform has the axes that the mask is for, see `encoded_axes`.

    Shape:
        - Estimate: real `(batch, 2 * copies, H, W)`, all real parts first; of slabs
          `(batch, 2 * copies, slices, H, W)`.
        - Zero-filled image: complex `(batch, 1, ...)` or `(batch, copies, ...)`.
        - Mask: `(batch, 1, *ones, W)`, or `(batch, 1, slices, 1, W)`.
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
        model = SingleCoil(mask, dims=encoded_axes(mask))
        data = zero_filled.expand_as(image)
        return complex_to_channels(model.likelihood_gradient(image, data))


class SenseLikelihoodGradient(nn.Module):
    """The gradient of the likelihood of several coils, for one estimate for all.

    The sensitivity maps are data as the mask is: `irim(state, zero_filled, mask, maps)`
    with `IRIM(step_networks, SenseLikelihoodGradient())`. Every complex copy of the
    estimate gets its own gradient from the same data.

    Shape:
        - Estimate: real `(batch, 2 * copies, H, W)`, all real parts first; of volumes
          `(batch, 2 * copies, slices, H, W)`.
        - Zero-filled image, combined by `Sense.adjoint`: complex `(batch, 1, ...)`.
        - Mask: `(batch, 1, *ones, W)`, or `(batch, 1, slices, 1, W)`.
        - Sensitivity maps: complex `(batch, coils, ...)`.
        - Gradient: as the estimate.

    Raises:
        ValueError: If mask or maps have not as many axes as the estimate.

    Examples:
        >>> estimate, mask = torch.randn(2, 2, 8, 8), torch.ones(2, 1, 1, 8)
        >>> zero_filled = torch.randn(2, 1, 8, 8, dtype=torch.complex64)
        >>> maps = torch.randn(2, 4, 8, 8, dtype=torch.complex64)
        >>> SenseLikelihoodGradient()(estimate, zero_filled, mask, maps).shape
        torch.Size([2, 2, 8, 8])
    """

    def forward(
        self,
        estimate: Tensor,
        zero_filled: Tensor,
        mask: Tensor,
        sensitivity_maps: Tensor,
    ) -> Tensor:
        """Return the gradient."""
        _check_axes(estimate, mask=mask, sensitivity_maps=sensitivity_maps)
        image = channels_to_complex(estimate)
        of_all_copies = (data.unsqueeze(1) for data in (mask, sensitivity_maps))
        model = Sense(*of_all_copies, dims=estimate.ndim - 2)
        data = zero_filled.expand_as(image)
        return complex_to_channels(model.likelihood_gradient(image, data))


def _check_axes(estimate: Tensor, **data: Tensor) -> None:
    """Make sure that nothing broadcasts along an axis it was not meant for."""
    for name, tensor in data.items():
        if tensor.ndim != estimate.ndim:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but needs {estimate.ndim} "
                f"axes like the estimate of {tuple(estimate.shape)}: insert axes of "
                f"length one"
            )
