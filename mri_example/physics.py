"""The measurements of accelerated MRI and the gradients of their likelihoods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from mri_example.errors import InputError
from mri_example.masks import encoded_axes, undersample
from mri_example.transforms import (
    channels_to_complex,
    complex_to_channels,
    fftc,
    ifftc,
)

KERNEL = 6  # samples along each axis of the kernels of ESPIRiT


class Measurement(ABC):
    r"""Measure images: $d = A\eta + n$ with $A = P E$.

    The encoding $E$ is linear and leads from an image to full k-space, $P$ keeps the
    measured part of it, and $n$ is white noise.

    Args:
        mask: 1 where k-space is measured, 0 elsewhere; it broadcasts against k-space.
        dims: Number of axes of the Fourier transform: 2 for slices, 3 for volumes of
            3-D acquisitions.
    """

    def __init__(self, mask: Tensor, *, dims: int = 2) -> None:
        self.mask, self.dims = mask, dims

    @abstractmethod
    def encode(self, image: Tensor) -> Tensor:
        r"""Return the full k-space $E \eta$."""

    @abstractmethod
    def decode(self, kspace: Tensor) -> Tensor:
        r"""Return $E^* k$, the adjoint of `encode`."""

    def forward(self, image: Tensor) -> Tensor:
        r"""Return the noiseless k-space $P E \eta$."""
        return undersample(self.encode(image), self.mask)

    def adjoint(self, kspace: Tensor) -> Tensor:
        r"""Return $E^* P\, k$, the zero-filled image of measured k-space."""
        return self.decode(undersample(kspace, self.mask))

    def likelihood_gradient(self, image: Tensor, zero_filled: Tensor) -> Tensor:
        r"""Return the gradient of $\tfrac12 \lVert P E \eta - d \rVert^2$.

        Args:
            image: The estimate $\eta$.
            zero_filled: The measured data as an image, $E^* d$.

        Returns:
            $E^* P E \eta - E^* d$.
        """
        return self.adjoint(self.encode(image)) - zero_filled


class SingleCoil(Measurement):
    r"""Measure images with one coil (eq. 17), $d = P F \eta + n$.

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

    def encode(self, image: Tensor) -> Tensor:
        r"""Return the full k-space $F \eta$."""
        return fftc(image, self.dims)

    def decode(self, kspace: Tensor) -> Tensor:
        r"""Return the image $F^{-1} k$."""
        return ifftc(kspace, self.dims)


class Sense(Measurement):
    r"""Measure one image with several coils of known sensitivity.

    $$ d_c = P F (S_c \eta) + n_c, \qquad
       A^* d = \textstyle\sum_c \bar S_c\, F^{-1} P\, d_c $$

    The noise is white and the same in all coils; if it is not, whiten k-space and maps
    alike.

    Args:
        mask: 1 where k-space is measured, 0 elsewhere; it broadcasts against k-space.
        sensitivity_maps: Complex, `(..., coils, rows, cols)`, or with an axis of slices
            before the rows. See `sensitivity_maps` for an estimate.
        dims: Number of axes of an image: 2 for slices, 3 for volumes.

    Shape:
        Images: complex `(..., rows, cols)` or `(..., slices, rows, cols)`; k-space has
        one more axis, that of the coils, before these.

    Examples:
        >>> maps = torch.randn(3, 4, 4, dtype=torch.complex64)
        >>> model = Sense(torch.tensor([0.0, 1.0, 1.0, 0.0]), maps)
        >>> kspace = model.forward(torch.randn(4, 4, dtype=torch.complex64))
        >>> kspace.shape, model.adjoint(kspace).shape
        (torch.Size([3, 4, 4]), torch.Size([4, 4]))

    References:
        Pruessmann et al., *SENSE: sensitivity encoding for fast MRI*, 1999.
    """

    def __init__(
        self, mask: Tensor, sensitivity_maps: Tensor, *, dims: int = 2
    ) -> None:
        super().__init__(mask, dims=dims)
        self.sensitivity_maps = sensitivity_maps

    def encode(self, image: Tensor) -> Tensor:
        r"""Return the full k-space of all coils, $F S_c \eta$."""
        seen = self.sensitivity_maps * image.unsqueeze(-self.dims - 1)
        return fftc(seen, self.dims)

    def decode(self, kspace: Tensor) -> Tensor:
        r"""Return the image $\sum_c \bar S_c F^{-1} k_c$."""
        seen = self.sensitivity_maps.conj() * ifftc(kspace, self.dims)
        return seen.sum(dim=-self.dims - 1)


class LikelihoodGradient(nn.Module):
    """The gradient of the likelihood, for estimates written as real channels.

    Every complex copy of the estimate gets its own gradient from the same data, or, of
    several coils, from those of its coil. The Fourier transform has the axes that the
    mask is for, see `encoded_axes`.

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
    with `IRIM(step_networks, SenseLikelihoodGradient())`.

    Shape:
        - Estimate, mask, gradient: as in `LikelihoodGradient`.
        - Zero-filled image, combined by `Sense.adjoint`: complex `(batch, 1, ...)`.
        - Sensitivity maps: complex `(batch, coils, ...)`.

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


def sensitivity_maps(kspace: Tensor, width: int = 24) -> Tensor:
    r"""Estimate what each coil sees from the center of its k-space: ESPIRiT of sigpy.

    The maps are those of the largest eigenvalue, $\sum_c |S_c|^2 = 1$, and 0 where it
    is small. Their phase is free at every pixel.

    Args:
        kspace: Complex, `(coils, rows, cols)`, or `(coils, slices, rows, cols)` of a
            3-D acquisition.
        width: Samples in the center that the maps follow from, along each axis. They
            must all be measured.

    Returns:
        Maps of the shape, type and device of the k-space, computed in single precision
        on the CPU.

    Raises:
        InputError: If k-space has another number of axes, the center is wider than an
            axis, narrower than a kernel or not fully sampled, or sigpy is not
            installed.

    References:
        Uecker et al., *ESPIRiT - an eigenvalue approach to autocalibrating parallel
        MRI*, 2014.
    """
    _check_center(kspace, width)
    if find_spec("sigpy") is None:
        raise InputError(
            "sensitivity maps are estimated with sigpy, which is not installed: "
            "`pip install sigpy`"
        )
    data = kspace.detach().cpu().to(torch.complex64).numpy()
    app = import_module("sigpy.mri.app")
    maps = app.EspiritCalib(data, calib_width=width, show_pbar=False).run()
    return torch.as_tensor(maps).to(kspace)


def _check_axes(estimate: Tensor, **data: Tensor) -> None:
    """Make sure that nothing broadcasts along an axis it was not meant for."""
    for name, tensor in data.items():
        if tensor.ndim != estimate.ndim:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, but needs {estimate.ndim} "
                f"axes like the estimate of {tuple(estimate.shape)}: insert axes of "
                f"length one"
            )


def _check_center(kspace: Tensor, width: int) -> None:
    space = kspace.shape[1:]
    if len(space) not in (2, 3) or not kspace.is_complex():
        raise InputError(
            f"kspace is {kspace.dtype} of shape {tuple(kspace.shape)}, but must be "
            f"complex (coils, rows, cols) or (coils, slices, rows, cols)"
        )
    if not KERNEL < width <= min(space):
        raise InputError(
            f"width is {width}, but must be above the {KERNEL} samples of a kernel and "
            f"at most the {min(space)} of the shortest axis of {tuple(kspace.shape)}"
        )
    middle = kspace
    for axis, size in enumerate(space, start=1):
        middle = middle.narrow(axis, size // 2 - width // 2, width)
    missing = int((middle == 0).all(dim=0).sum())
    if missing:
        raise InputError(
            f"width is {width}, but {missing} of the {width}**{len(space)} samples in "
            f"the center are not measured: choose it no wider than the fully sampled "
            f"center"
        )
