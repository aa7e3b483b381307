"""What models are trained with; images are `(batch, copies, *space)`, losses scalars.

An estimate of one image for several coils is compared by its magnitude, the
root-sum-of-squares over the copies.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from mri_example.data.dataset import Sample
from mri_example.errors import require
from mri_example.models import Reconstructor
from mri_example.transforms import root_sum_of_squares

LossName: TypeAlias = Literal["nmse", "l1", "ssim"]
WINDOW = 7
K1, K2 = 0.01, 0.03


def subsampled_nmse(estimate: Tensor, target: Tensor, fraction: float = 0.01) -> Tensor:
    r"""Normalized squared error on a random subset of the pixels (eq. 18).

    $$ L = \frac{N}{\sum_i m_i} \cdot
       \frac{\sum_i m_i \lvert \hat x_i - x_i \rvert^2}{\sum_i \lvert x_i \rvert^2},
       \qquad m_i \sim \mathrm{Bernoulli}(f) $$

    averaged over the batch. The same mask hides pixels of estimate and target, and the
    expectation is the NMSE whatever the fraction $f$: a cheap source of gradient noise.
    A fraction of 1 draws nothing.

    Examples:
        >>> target = torch.ones(2, 1, 8, 8, dtype=torch.complex64)
        >>> float(subsampled_nmse(1.5 * target, target, fraction=0.5))
        0.25
    """
    if estimate.shape[1] != target.shape[1]:
        estimate, target = magnitudes(estimate, target)
    _check_shapes(estimate, target)
    error = (estimate - target).abs().square().flatten(1)
    energy = target.abs().square().flatten(1).sum(1)
    counted = torch.ones_like(error)
    if fraction < 1:
        counted = (torch.rand(error.shape, dtype=error.dtype) < fraction).to(error)
    share = counted.sum(1).clamp(min=1) / error.shape[1]
    energy = torch.where(energy > 0, energy, 1)
    return ((counted * error).sum(1) / energy / share).mean()


def normalized_l1(estimate: Tensor, target: Tensor) -> Tensor:
    r"""Absolute error of the magnitudes, $\lVert t - p \rVert_1 / \lVert t \rVert_1$.

    Examples:
        >>> target = torch.ones(2, 1, 8, 8, dtype=torch.complex64)
        >>> float(normalized_l1(1.5 * target, target))
        0.5
    """
    p, t = magnitudes(estimate, target)
    error, total = (t - p).abs().flatten(1).sum(1), t.flatten(1).sum(1)
    return (error / torch.where(total > 0, total, 1)).mean()


def dissimilarity(estimate: Tensor, target: Tensor, maximum: Tensor) -> Tensor:
    """One minus the structural similarity of magnitudes, as `metrics.score` has it.

    The maxima `(batch,)` are those of the target volumes.
    """
    p, t = magnitudes(estimate, target)
    rows, cols = t.shape[-2:]
    text = f"images are {rows} by {cols}, but SSIM needs at least {WINDOW} by {WINDOW}"
    require(min(rows, cols) >= WINDOW, f"{text}: crop less, or take another loss")
    peak = maximum.to(t).view(-1, *(1,) * (t.ndim - 1))
    p, t = p / peak, t / peak  # the scale of the data must not underflow
    mean_p, mean_t = _windows(p), _windows(t)
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    var_p = unbiased * (_windows(p * p) - mean_p**2)
    var_t = unbiased * (_windows(t * t) - mean_t**2)
    covariance = unbiased * (_windows(p * t) - mean_p * mean_t)
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_p * mean_t + c1) / (mean_p**2 + mean_t**2 + c1)
    structure = (2 * covariance + c2) / (var_p + var_t + c2)
    return 1 - (luminance * structure).mean()


def training_loss(
    name: LossName = "nmse", fraction: float = 0.01, coils_per_step: int | None = None
) -> Callable[[Reconstructor, Sample], Tensor]:
    """Return a function of model and batch, the mean over the model's trajectory."""

    def one(x: Tensor, batch: Sample) -> Tensor:
        if name == "nmse":
            return subsampled_nmse(x, batch.image, fraction)
        if name == "l1":
            return normalized_l1(x, batch.image)
        return dissimilarity(x, batch.image, torch.as_tensor(batch.maximum))

    def loss(model: Reconstructor, batch: Sample) -> Tensor:
        options = {}
        if coils_per_step is not None and coils_per_step < batch.image.shape[1]:
            options["scale"] = model.scale_of(batch.zero_filled)
            order = torch.randperm(batch.image.shape[1])  # the same for all samples
            chosen = order[:coils_per_step].sort().values
            zero_filled, image = batch.zero_filled[:, chosen], batch.image[:, chosen]
            batch = batch._replace(zero_filled=zero_filled, image=image)
        estimates = model.trajectory(*batch.inputs, **options)
        return torch.stack([one(estimate, batch) for estimate in estimates]).mean()

    return loss


def magnitudes(estimate: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the root-sum-of-squares of both over their copies, `(batch, *space)`."""
    p, t = (root_sum_of_squares(images, dim=1) for images in (estimate, target))
    _check_shapes(p, t)
    return p, t


def _windows(images: Tensor) -> Tensor:
    """Return the mean over every window."""
    planes = images.reshape(-1, 1, *images.shape[-2:])
    return F.avg_pool2d(planes, WINDOW, stride=1)


def _check_shapes(estimate: Tensor, target: Tensor) -> None:
    text = f"estimate has shape {tuple(estimate.shape)}, but target "
    text += f"{tuple(target.shape)}: crop both to the same size"
    require(estimate.shape == target.shape, text)
