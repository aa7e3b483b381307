"""The Fourier transform of slices and of volumes."""

from __future__ import annotations

import torch
from torch import Tensor

from mri_example.signal import fft2c, ifft2c

SLICES = -3


def fftc(image: Tensor, dims: int) -> Tensor:
    r"""Transform images to k-space over their last two or three axes.

    With three it is `fft2c` and the same transform along the slices: orthonormal, with
    the origin in the middle.

    Args:
        image: Complex, `(..., rows, cols)` or `(..., slices, rows, cols)`.
        dims: Number of axes that are transformed: 2 for slices, which excitation told
            apart, 3 for volumes of 3-D acquisitions.

    Returns:
        k-space of the same shape.

    Raises:
        ValueError: If `dims` is neither 2 nor 3.

    Examples:
        >>> image = torch.randn(4, 8, 7, dtype=torch.complex64)
        >>> torch.allclose(ifftc(fftc(image, dims=3), dims=3), image, atol=1e-6)
        True
    """
    kspace = fft2c(image)
    if not _is_volume(dims):
        return kspace
    unshifted = torch.fft.ifftshift(kspace, dim=SLICES)
    along: Tensor = torch.fft.fft(unshifted, dim=SLICES, norm="ortho")
    return _shift(along)


def ifftc(kspace: Tensor, dims: int) -> Tensor:
    """Transform k-space to images, the inverse and the adjoint of `fftc`.

    Args:
        kspace: Complex, `(..., rows, cols)` or `(..., slices, rows, cols)`.
        dims: Number of axes that are transformed, 2 or 3.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: If `dims` is neither 2 nor 3.
    """
    image = ifft2c(kspace)
    if not _is_volume(dims):
        return image
    unshifted = torch.fft.ifftshift(image, dim=SLICES)
    along: Tensor = torch.fft.ifft(unshifted, dim=SLICES, norm="ortho")
    return _shift(along)


def _shift(x: Tensor) -> Tensor:
    shifted: Tensor = torch.fft.fftshift(x, dim=SLICES)
    return shifted


def _is_volume(dims: int) -> bool:
    if dims not in (2, 3):
        raise ValueError(
            f"dims is {dims}, but k-space has 2 axes for slices or 3 for volumes"
        )
    return dims == 3
