"""Fourier transforms, crops, and the two ways to write a complex image."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

PLANE = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    r"""Transform images to k-space, $k = \mathrm{shift}(F(\mathrm{shift}^{-1}(x)))$.

    The transform is unitary; the origin of both spaces is at index `n // 2`.

    Args:
        image: Complex, `(..., rows, cols)`.

    Returns:
        k-space of the same shape.
    """
    shifted = torch.fft.ifftshift(image, dim=PLANE)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=PLANE)


def ifft2c(kspace: Tensor) -> Tensor:
    """Transform k-space to images, the inverse and the adjoint of `fft2c`.

    Args:
        kspace: Complex, `(..., rows, cols)`.

    Returns:
        Images of the same shape.
    """
    shifted = torch.fft.ifftshift(kspace, dim=PLANE)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=PLANE)


def center_crop(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cut the central `shape` out of the last two axes, from `(size - crop) // 2`.

    Args:
        image: `(..., rows, cols)`.
        shape: Rows and columns of the result.

    Raises:
        ValueError: If `shape` is larger than the image.
    """
    sizes = image.shape[-2:]
    if any(not 0 < crop <= size for crop, size in zip(shape, sizes, strict=True)):
        raise ValueError(
            f"shape is {tuple(shape)}, but a crop of an image of {tuple(sizes)} must lie "
            f"within it"
        )
    for axis, crop in zip(PLANE, shape, strict=True):
        image = image.narrow(axis, (image.shape[axis] - crop) // 2, crop)
    return image


def complex_to_channels(images: Tensor) -> Tensor:
    """Write complex images as channels: all real parts, then all imaginary parts.

    Args:
        images: Complex, `(batch, copies, *space)`.

    Returns:
        Real, `(batch, 2 * copies, *space)`.
    """
    parts = torch.view_as_real(images)
    return rearrange(parts, "batch copies ... part -> batch (part copies) ...")


def channels_to_complex(channels: Tensor) -> Tensor:
    """Read complex images from channels, the inverse of `complex_to_channels`.

    Args:
        channels: Real, `(batch, 2 * copies, *space)`.

    Returns:
        Complex, `(batch, copies, *space)`.
    """
    parts = rearrange(
        channels, "batch (part copies) ... -> batch copies ... part", part=2
    )
    return torch.view_as_complex(parts.contiguous())
