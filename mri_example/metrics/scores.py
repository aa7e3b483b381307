"""What is reported of one volume, and of many."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

import numpy as np

from mri_example.errors import InputError
from mri_example.metrics.measures import nmse, psnr, ssim
from mri_example.metrics.volumes import Volume


@dataclass(frozen=True)
class Scores:
    """How close a reconstruction is: NMSE (lower is better), PSNR in dB, SSIM."""

    nmse: float
    psnr: float
    ssim: float


METRICS = tuple(field.name for field in fields(Scores))


@dataclass(frozen=True)
class Summary:
    """Mean over volumes and twice the standard deviation, each a set of scores."""

    mean: Scores
    spread: Scores
    volumes: int


def score(target: Volume, reconstruction: Volume) -> Scores:
    """Compare a reconstructed volume with its target.

    Args:
        target: Magnitudes, `(slices, H, W)`, as a tensor or an array.
        reconstruction: Magnitudes; both are cropped to `(W, W)` around the center.

    Returns:
        All metrics of the volume.

    Raises:
        InputError: If the two cannot be compared.

    Examples:
        >>> score(np.ones((1, 8, 8)), np.ones((1, 8, 8)))
        Scores(nmse=0.0, psnr=inf, ssim=1.0)
    """
    return Scores(
        nmse(target, reconstruction),
        psnr(target, reconstruction),
        ssim(target, reconstruction),
    )


def summarize(scores: Iterable[Scores]) -> Summary:
    """Summarize the scores of several volumes.

    Args:
        scores: One entry per volume.

    Returns:
        Mean and two standard deviations (ddof 1) of each metric. The spread is 0 for
        a single volume, and NaN where a value is infinite.

    Raises:
        InputError: If there is no volume.

    Examples:
        >>> summarize([Scores(0.1, 20.0, 0.5), Scores(0.3, 22.0, 0.5)]).mean.psnr
        21.0
    """
    table = np.array([astuple(one) for one in scores], dtype=np.float64)
    if not len(table):
        raise InputError("there is no volume to summarize: check the folders given")
    mean, spread = table.mean(axis=0), np.zeros(len(METRICS))
    if len(table) > 1:
        with np.errstate(invalid="ignore"):  # inf - inf, the spread of a perfect PSNR
            spread = 2 * table.std(axis=0, ddof=1)
    return Summary(Scores(*mean.tolist()), Scores(*spread.tolist()), len(table))
