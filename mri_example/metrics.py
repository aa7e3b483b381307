"""The metrics of the fastMRI challenge, per volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from skimage.metrics import structural_similarity

from mri_example.errors import InputError
from mri_example.signal import center_crop

WINDOW = 7
Volume = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """How close a reconstruction is: NMSE (lower is better), PSNR in dB, SSIM."""

    nmse: float
    psnr: float
    ssim: float


def score(target: ArrayLike, reconstruction: ArrayLike) -> Scores:
    """Compare a reconstructed volume with its target.

    Args:
        target: Magnitudes, `(slices, H, W)`.
        reconstruction: Magnitudes; both are cropped to `(W, W)` around the center.

    Returns:
        All metrics of the volume.

    Raises:
        InputError: If the shapes do not fit, a volume is empty or not finite, or a slice
            is smaller than the window of SSIM.
    """
    t, p = _prepared(target, reconstruction)
    return Scores(nmse(t, p), psnr(t, p), ssim(t, p))


def mse(target: Volume, reconstruction: Volume) -> float:
    r"""Return $\operatorname{mean}((t - p)^2)$."""
    return float(np.mean((target - reconstruction) ** 2))


def nmse(target: Volume, reconstruction: Volume) -> float:
    r"""Return $\lVert t - p \rVert^2 / \lVert t \rVert^2$."""
    return float(np.sum((target - reconstruction) ** 2) / np.sum(target**2))


def psnr(target: Volume, reconstruction: Volume, maximum: float | None = None) -> float:
    r"""Return $10 \log_{10}(\max^2 / \mathrm{MSE})$ in dB.

    Args:
        target: The volume, `(slices, H, W)`.
        reconstruction: Another of the same shape.
        maximum: The range of the data; that of the target volume by default.
    """
    maximum = float(target.max()) if maximum is None else maximum
    error = mse(target, reconstruction)
    return float(10 * np.log10(maximum**2 / error)) if error else float("inf")


def ssim(target: Volume, reconstruction: Volume, maximum: float | None = None) -> float:
    """Return the structural similarity, the mean over slices.

    A uniform window of 7 by 7, K1 = 0.01, K2 = 0.03, sample covariance, windows that lie
    within the slice.

    Args:
        target: The volume, `(slices, H, W)`.
        reconstruction: Another of the same shape.
        maximum: The range of the data; that of the target volume by default.

    References:
        Wang et al., *Image quality assessment: from error visibility to structural
        similarity*, 2004.
    """
    maximum = float(target.max()) if maximum is None else maximum
    slices = zip(target, reconstruction, strict=True)
    each = [
        structural_similarity(t, p, win_size=WINDOW, data_range=maximum)
        for t, p in slices
    ]
    return float(np.mean(each))


@dataclass(frozen=True)
class Summary:
    """Mean over volumes and twice the standard deviation, each a set of scores."""

    mean: Scores
    spread: Scores
    volumes: int


def summarize(scores: Iterable[Scores]) -> Summary:
    """Summarize the scores of several volumes.

    Args:
        scores: One entry per volume.

    Returns:
        Mean and two standard deviations (ddof 1; 0 for a single volume).

    Raises:
        InputError: If there is no volume.
    """
    table = np.array([astuple(s) for s in scores], dtype=np.float64)
    if not len(table):
        raise InputError("there is no volume to summarize: check the folders given")
    spread = (
        2 * table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(table.shape[1])
    )
    mean = table.mean(axis=0)
    return Summary(Scores(*mean.tolist()), Scores(*spread.tolist()), len(table))


METRICS = tuple(field.name for field in fields(Scores))


def _prepared(target: ArrayLike, reconstruction: ArrayLike) -> tuple[Volume, Volume]:
    t, p = (np.asarray(v, dtype=np.float64) for v in (target, reconstruction))
    if t.ndim != 3 or p.ndim != 3 or len(t) != len(p):
        raise InputError(
            f"the target has shape {t.shape} and the reconstruction {p.shape}, but both "
            f"must be (slices, rows, columns) with as many slices"
        )
    if not t.size or not (np.isfinite(t).all() and np.isfinite(p).all()):
        raise InputError("a volume is empty or holds values that are not finite")
    width = t.shape[-1]
    if min(t.shape[-2:], default=0) < width or min(p.shape[-2:]) < width:
        raise InputError(
            f"the target has slices of {t.shape[-2:]} and the reconstruction of "
            f"{p.shape[-2:]}: a square of {width}, the target's width, does not fit"
        )
    if width < WINDOW:
        raise InputError(f"slices are {width} wide, but SSIM needs at least {WINDOW}")
    if not t.any():
        raise InputError(
            "the target is zero everywhere, so no error can be relative to it"
        )
    return _square(t, width), _square(p, width)


def _square(volume: Volume, width: int) -> Volume:
    cropped: Volume = center_crop(torch.from_numpy(volume), (width, width)).numpy()
    return cropped
