"""K-space and its target, written with numpy alone."""

import logging
from contextlib import contextmanager

import numpy as np


def fourier(images: np.ndarray) -> np.ndarray:
    """Return the centered, orthonormal transform over the last two axes."""
    axes = (-2, -1)
    spectrum = np.fft.fft2(np.fft.ifftshift(images, axes), norm="ortho")
    return np.fft.fftshift(spectrum, axes)


def padded(images: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Pad the last two axes with zeros, around the center."""
    missing = [
        (n - s, (n - s) // 2)
        for s, n in zip(images.shape[-2:], (rows, cols), strict=True)
    ]
    sides = [(before, both - before) for both, before in missing]
    return np.pad(images, [(0, 0)] * (images.ndim - 2) + sides)


def kspace_of(target: np.ndarray, rows: int, cols: int, coils: int = 0) -> np.ndarray:
    """Return k-space whose target is `target`, `(slices, [coils,] rows, cols)`."""
    kspace = fourier(padded(target, rows, cols))
    if coils:
        kspace = np.stack([kspace] * coils, axis=1) / np.sqrt(coils)
    return kspace.astype(np.complex64)


def magnitudes(kspace: np.ndarray, crop: tuple[int, int] | None = None) -> np.ndarray:
    """Return the target of k-space, the root-sum-of-squares of its coils, cropped."""
    axes = (-2, -1)
    images = np.fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho")
    power = np.abs(np.fft.fftshift(images, axes)) ** 2
    combined = np.sqrt(power if kspace.ndim == 3 else power.sum(1)).astype(np.float32)
    height, width = crop or combined.shape[-2:]
    top, left = (combined.shape[-2] - height) // 2, (combined.shape[-1] - width) // 2
    return combined[..., top : top + height, left : left + width]


@contextmanager
def logged():
    """Collect the warnings of a block."""
    handler = logging.Handler(logging.WARNING)
    said = []
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger("mri_example").addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger("mri_example").removeHandler(handler)
