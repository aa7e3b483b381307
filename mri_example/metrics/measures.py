"""How far a reconstructed volume is from its target.

All functions take volumes `(slices, H, W)` of magnitudes, as tensors or arrays, crop
both to the square of the target's width, and compute in float64.
"""

from __future__ import annotations

import numpy as np
from skimage.metrics import structural_similarity

from mri_example.errors import InputError
from mri_example.metrics.volumes import Magnitudes, Volume, comparable

WINDOW = 7


def mse(target: Volume, reconstruction: Volume) -> float:
    r"""Return the mean squared error, $\operatorname{mean}((t - p)^2)$.

    Examples:
        >>> mse(np.ones((1, 2, 2)), np.zeros((1, 2, 2)))
        1.0
    """
    t, p = comparable(target, reconstruction)
    return float(np.mean((t - p) ** 2))


def nmse(target: Volume, reconstruction: Volume) -> float:
    r"""Return the normalized error, $\lVert t - p \rVert^2 / \lVert t \rVert^2$.

    Raises:
        InputError: If the target is zero everywhere.

    Examples:
        >>> nmse(np.full((1, 2, 2), 2.0), np.ones((1, 2, 2)))
        0.25
    """
    t, p = comparable(target, reconstruction)
    if not t.any():
        raise InputError(
            "the target is zero everywhere, so no error can be relative to it: leave "
            "out this volume"
        )
    return float(np.sum((t - p) ** 2) / np.sum(t**2))


def psnr(target: Volume, reconstruction: Volume, maxval: float | None = None) -> float:
    r"""Return the peak signal-to-noise ratio, $10 \log_{10}(\max^2 / \mathrm{MSE})$.

    Args:
        target: The volume.
        reconstruction: What is compared with it.
        maxval: The peak; by default the maximum of the target volume.

    Returns:
        Decibels; infinite if there is no error.

    Raises:
        InputError: If the peak is not positive.

    Examples:
        >>> psnr(np.full((1, 2, 2), 4.0), np.full((1, 2, 2), 3.5))  # 20 log10(8)
        18.06...
    """
    t, p = comparable(target, reconstruction)
    peak, error = _peak(t, maxval), mse(t, p)
    return float(10 * np.log10(peak**2 / error)) if error else float("inf")


def ssim(target: Volume, reconstruction: Volume, maxval: float | None = None) -> float:
    """Return the structural similarity, the mean over slices.

    The window is uniform, 7 by 7, and stays within the slice; K1 = 0.01, K2 = 0.03,
    and covariances are those of a sample (48 degrees of freedom).

    Args:
        target: The volume.
        reconstruction: What is compared with it.
        maxval: The range of the data; by default the maximum of the target volume.

    Returns:
        At most 1, which means equal.

    Raises:
        InputError: If a slice is smaller than the window, or the range not positive.

    Examples:
        >>> ssim(np.ones((1, 8, 8)), np.ones((1, 8, 8)))
        1.0

    References:
        Wang et al., *Image quality assessment: from error visibility to structural
        similarity*, 2004.
    """
    t, p = comparable(target, reconstruction)
    if t.shape[-1] < WINDOW:
        raise InputError(
            f"slices are {t.shape[-1]} wide, but SSIM needs at least {WINDOW}: leave "
            f"out this volume"
        )
    peak = _peak(t, maxval)
    each = [
        structural_similarity(
            *pair, win_size=WINDOW, data_range=peak, use_sample_covariance=True
        )
        for pair in zip(t, p, strict=True)
    ]
    return float(np.mean(each))


def _peak(target: Magnitudes, maxval: float | None) -> float:
    peak = float(target.max()) if maxval is None else maxval
    if not peak > 0:
        raise InputError(
            f"maxval, the maximum of the target, is {peak}, but must be positive: "
            f"leave out this volume or give its maxval"
        )
    return peak
