"""The metrics of the fastMRI challenge, per volume, with their summaries."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from skimage.metrics import structural_similarity
from torch import Tensor

from mri_example.errors import require
from mri_example.transforms import center_crop

Volume: TypeAlias = Tensor | ArrayLike
Magnitudes: TypeAlias = NDArray[np.float64]
WINDOW = 7
LEVEL, DRAWS, SEED = 0.95, 10_000, 0


@dataclass(frozen=True)
class Scores:
    """How close a reconstruction is: NMSE (lower is better), PSNR in dB, SSIM."""

    nmse: float
    psnr: float
    ssim: float


METRICS = tuple(field.name for field in fields(Scores))


def score(
    target: Volume, reconstruction: Volume, maxval: float | None = None
) -> Scores:
    r"""Compare a reconstructed volume $p$ with its target $t$.

    - NMSE is $\lVert t - p \rVert^2 / \lVert t \rVert^2$;
    - PSNR is $10 \log_{10}(\max(t)^2 / \operatorname{mean}((t - p)^2))$ in decibels,
      infinite if there is no error;
    - SSIM is the mean over slices. The window is uniform, 7 by 7, and stays within the
      slice; K1 = 0.01, K2 = 0.03, covariances are those of a sample (48 degrees of
      freedom), and the range is up to $\max(t)$.

    Args:
        target: Magnitudes `(slices, H, W)`, of which the square of width W counts.
        reconstruction: Likewise.
        maxval: Instead of the maximum of the target.

    Raises:
        InputError: If they cannot be compared, see `comparable`.

    Examples:
        >>> t = np.full((1, 8, 8), 4.0)
        >>> score(t, t), score(t, t - 0.5).psnr  # 20 log10(8)
        (Scores(nmse=0.0, psnr=inf, ssim=1.0), 18.06...)

    References:
        Wang et al., *Image quality assessment: from error visibility to structural
        similarity*, 2004.
    """
    t, p = comparable(target, reconstruction)
    peak, squares = t.max() if maxval is None else maxval, (t - p) ** 2
    with np.errstate(divide="ignore"):  # without an error
        psnr = 10 * np.log10(peak**2 / squares.mean())
    options = {"win_size": WINDOW, "data_range": peak}
    pairs = zip(t, p, strict=True)
    ssim = np.mean([structural_similarity(*pair, **options) for pair in pairs])
    return Scores(float(squares.sum() / np.sum(t**2)), float(psnr), float(ssim))


def comparable(target: Volume, reconstruction: Volume) -> tuple[Magnitudes, Magnitudes]:
    """Check two volumes and cut the square of the target's width out of both.

    Raises:
        InputError: If a volume is empty, not real or not finite, their numbers of
            slices differ, one is too small for the square, that is too small for SSIM,
            or the target has no maximum.
    """
    t = _magnitudes("target", target)
    p = _magnitudes("reconstruction", reconstruction)
    text = f"the target has {len(t)} slices and the reconstruction {len(p)}: compare "
    require(len(t) == len(p), f"{text}volumes of as many slices")
    width = t.shape[-1]
    text = f"slices are {width} wide, but SSIM needs at least {WINDOW}: leave it out"
    require(width >= WINDOW, text)
    t, p = _square("target", t, width), _square("reconstruction", p, width)
    nothing = "positive nowhere" if t.any() else "zero everywhere"
    text = f"the target is {nothing}, so no error can be relative to it: leave it out"
    require(t.max() > 0, text)
    return t, p


def _magnitudes(name: str, given: Volume) -> Magnitudes:
    volume = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    text = f"the {name} has shape {volume.shape}, but must be (slices, rows, cols)"
    require(volume.ndim == 3 and volume.size, f"{text}, none of them 0")
    real = not np.iscomplexobj(volume)
    require(real, f"the {name} is complex: compare magnitudes")
    wrong = np.flatnonzero(~np.isfinite(volume).all(axis=(1, 2)))
    text = f"the {name} is not finite in {wrong.size} of {len(volume)} slices, first in"
    require(not wrong.size, f"{text} slice {wrong[:1]}: mend or leave it out")
    return volume.astype(np.float64)


def _square(name: str, volume: Magnitudes, width: int) -> Magnitudes:
    rows, cols = volume.shape[1:]
    text = f"slices of the {name} are {rows} by {cols}, but must hold a square of the "
    text += f"target's width, {width}: pad them or crop the columns of the target"
    require(min(rows, cols) >= width, text)
    return center_crop(torch.from_numpy(volume), (width, width)).numpy()


@dataclass(frozen=True)
class Interval:
    """The ends of the interval of a mean."""

    low: Scores
    high: Scores


@dataclass(frozen=True)
class Summary:
    """Mean over volumes, and what it says of other volumes if there are several."""

    count: int
    mean: Scores
    two_standard_deviations: Scores | None = None  # ddof 1; NaN of infinite values
    interval: Interval | None = None  # of the mean


def summarize(scores: Iterable[Scores]) -> Summary:
    """Return mean and spread over volumes, and the interval of the mean by bootstrap.

    As many volumes as there are, each any number of times, are drawn again and again;
    the interval holds the middle 95 % of their means. With few volumes it is too
    narrow.

    Examples:
        >>> summary = summarize([Scores(0.1, 20.0, 0.5), Scores(0.3, 22.0, 0.5)])
        >>> summary.mean.psnr, summary.interval.low.psnr, summary.interval.high.psnr
        (21.0, 20.0, 22.0)

    References:
        Efron, *Bootstrap methods: another look at the jackknife*, 1979.
    """
    table = np.array([astuple(one) for one in scores], dtype=np.float64)
    require(len(table), "there is no volume to summarize: check the folders given")
    mean = Scores(*table.mean(axis=0).tolist())
    if len(table) == 1:
        return Summary(1, mean)
    options = {"n_resamples": DRAWS, "batch": 1000, "confidence_level": LEVEL}
    with np.errstate(invalid="ignore"):  # inf - inf, of a perfect PSNR
        spread = 2 * table.std(axis=0, ddof=1)
        interval = stats.bootstrap(
            (table,), np.mean, method="percentile", rng=SEED, **options
        ).confidence_interval
    parts = (spread, interval.low, interval.high)
    spread, low, high = (Scores(*part.tolist()) for part in parts)
    return Summary(len(table), mean, spread, Interval(low, high))
