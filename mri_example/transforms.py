"""The Fourier transform of slices and volumes, crops, coils and channels."""

from collections.abc import Callable

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from mri_example.errors import require


def fftc(image: Tensor, dims: int = 2) -> Tensor:
    r"""Transform images to k-space over their last two or three axes.

    $$ k = \mathrm{shift}\, F\, \mathrm{shift}^{-1} x $$

    $F$ is orthonormal, so energies agree and `ifftc` is inverse and adjoint at once.
    The middle of `n` samples is the one at index `n // 2`.

    Args:
        image: Complex, `(..., rows, cols)` or `(..., slices, rows, cols)`.
        dims: Number of axes that are transformed: 2 for slices, which excitation told
            apart, 3 for volumes of 3-D acquisitions.

    Examples:
        >>> image = torch.randn(4, 8, 7, dtype=torch.complex64)
        >>> torch.allclose(ifftc(fftc(image, dims=3), dims=3), image, atol=1e-6)
        True
    """
    return _centered(torch.fft.fftn, image, dims)


def ifftc(kspace: Tensor, dims: int = 2) -> Tensor:
    """Transform k-space to images, the inverse and the adjoint of `fftc`."""
    return _centered(torch.fft.ifftn, kspace, dims)


def _centered(transform: Callable[..., Tensor], values: Tensor, dims: int) -> Tensor:
    text = f"dims is {dims}, but k-space has 2 axes for slices or 3 for volumes"
    require(dims in (2, 3), text)
    axes = tuple(range(-dims, 0))
    unshifted = torch.fft.ifftshift(values, dim=axes)
    transformed = transform(unshifted, dim=axes, norm="ortho")
    shifted: Tensor = torch.fft.fftshift(transformed, dim=axes)
    return shifted


def center_crop(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Cut the central `shape` out of the last two axes, from `(size - crop) // 2`.

    Examples:
        >>> center_crop(torch.arange(5).view(1, 5), (1, 2))
        tensor([[1, 2]])
    """
    sizes = image.shape[-2:]
    text = f"shape is {tuple(shape)}, but must lie within the image of {tuple(sizes)}: "
    within = all(0 < crop <= size for crop, size in zip(shape, sizes, strict=True))
    require(within, f"{text}crop to at most that, or pad the image first")
    for axis, crop in zip((-2, -1), shape, strict=True):
        image = image.narrow(axis, (image.shape[axis] - crop) // 2, crop)
    return image


def fitted(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Crop or zero-pad the last two axes to `shape`, around the center."""
    rows, cols = (min(n, s) for n, s in zip(image.shape[-2:], shape, strict=True))
    below, right = shape[0] - rows, shape[1] - cols
    sides = (right // 2, right - right // 2, below // 2, below - below // 2)
    return torch.nn.functional.pad(center_crop(image, (rows, cols)), sides)


def root_sum_of_squares(images: Tensor, dim: int) -> Tensor:
    r"""Combine images along an axis of coils, $m = \sqrt{\sum_c |x_c|^2}$.

    The gradient is 0 where all are 0.

    Examples:
        >>> root_sum_of_squares(torch.tensor([[3 + 0j], [4j]]), dim=0)
        tensor([5.])
    """
    magnitude: Tensor = torch.linalg.vector_norm(images, dim=dim)
    return magnitude


def magnitudes(
    kspace: NDArray[np.complex64], crop: tuple[int, int]
) -> NDArray[np.float32]:
    """Return the target that k-space `(slices, [coils,] rows, cols)` has in its file.

    The root-sum-of-squares of the coils, cropped: `(slices, *crop)`.
    """
    volume = []
    for one in kspace:  # a copy of all slices may not fit
        images = ifftc(torch.from_numpy(one)).view(-1, *one.shape[-2:])
        volume.append(center_crop(root_sum_of_squares(images, dim=0), crop))
    target: NDArray[np.float32] = torch.stack(volume).numpy()
    return target


def complex_to_channels(images: Tensor) -> Tensor:
    """Write complex `(batch, copies, *space)` as real `(batch, 2 * copies, *space)`.

    Examples:
        >>> complex_to_channels(torch.tensor([[1 + 2j, 3 + 4j]]))
        tensor([[1., 3., 2., 4.]])
    """
    return torch.cat([images.real, images.imag], dim=1)


def channels_to_complex(channels: Tensor) -> Tensor:
    """Read complex images from channels, the inverse of `complex_to_channels`.

    Examples:
        >>> channels_to_complex(torch.tensor([[1.0, 3.0, 2.0, 4.0]]))
        tensor([[1.+2.j, 3.+4.j]])
    """
    real, imaginary = rearrange(
        channels, "batch (part copies) ... -> part batch copies ...", part=2
    )
    if real.dtype in (torch.float16, torch.bfloat16):  # no complex type, or no FFT
        real, imaginary = real.float(), imaginary.float()
    return torch.complex(real, imaginary)
