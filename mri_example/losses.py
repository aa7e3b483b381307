"""What models are trained with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mri_example.data import Sample
from mri_example.models import Reconstructor
from mri_example.transforms import root_sum_of_squares

LossName: TypeAlias = Literal["nmse", "l1", "ssim"]
WINDOW = 7
K1, K2 = 0.01, 0.03


class SubsampledNMSE(nn.Module):
    r"""Normalized squared error on a random subset of the pixels (eq. 18).

    $$ L = \frac{N}{\sum_i m_i} \cdot
       \frac{\sum_i m_i \lvert \hat x_i - x_i \rvert^2}{\sum_i \lvert x_i \rvert^2},
       \qquad m_i \sim \mathrm{Bernoulli}(f) $$

    averaged over the batch. The same mask hides pixels of estimate and target, and the
    expectation is the NMSE whatever the fraction $f$: a cheap source of gradient noise.

    Args:
        fraction: The share $f$ of pixels that count, in (0, 1]; 1 draws nothing.
        magnitude: Compare magnitudes instead of complex values. An estimate of one
            image for several coils is compared by magnitude in any case.

    Shape:
        Two images `(batch, copies, *space)`, complex or real; the loss is a scalar.

    Raises:
        ValueError: If `fraction` is not in (0, 1], or the shapes differ.

    Examples:
        >>> loss = SubsampledNMSE(fraction=0.5)
        >>> target = torch.ones(2, 1, 8, 8, dtype=torch.complex64)
        >>> float(loss(1.5 * target, target))
        0.25
    """

    def __init__(self, fraction: float = 0.01, *, magnitude: bool = False) -> None:
        super().__init__()
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}, but must be in (0, 1]")
        self.fraction = fraction
        self.magnitude = magnitude

    def forward(
        self,
        estimate: Tensor,
        target: Tensor,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the loss, drawing the pixels from `generator`."""
        if self.magnitude or estimate.shape[1] != target.shape[1]:
            estimate, target = magnitudes(estimate, target)
        _check_shapes(estimate, target)
        error = (estimate - target).abs().square().flatten(1)
        energy = target.abs().square().flatten(1).sum(1)
        energy = torch.where(energy > 0, energy, torch.ones_like(energy))
        counted = self._draw(error, generator)
        share = counted.sum(1).clamp(min=1) / error.shape[1]
        return ((counted * error).sum(1) / energy / share).mean()

    def _draw(self, like: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.fraction == 1:
            return torch.ones_like(like)
        chances = torch.rand(like.shape, generator=generator, dtype=like.dtype)
        return (chances < self.fraction).to(like)


class NormalizedL1(nn.Module):
    r"""Absolute error of the magnitudes, $\lVert t - p \rVert_1 / \lVert t \rVert_1$.

    Averaged over the batch.

    Shape:
        Two images `(batch, copies, *space)`; the loss is a scalar.

    Raises:
        ValueError: If the shapes differ.

    Examples:
        >>> target = torch.ones(2, 1, 8, 8, dtype=torch.complex64)
        >>> float(NormalizedL1()(1.5 * target, target))
        0.5
    """

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        p, t = magnitudes(estimate, target)
        size = t.flatten(1).sum(1)
        size = torch.where(size > 0, size, torch.ones_like(size))
        return ((t - p).abs().flatten(1).sum(1) / size).mean()


class StructuralDissimilarity(nn.Module):
    r"""One minus the structural similarity of the magnitudes.

    On whole slices, with the maximum of the target volume, $1 - L$ is the metric
    `mri_example.metrics.ssim`: a uniform window of 7 by 7 within the slice, K1 = 0.01,
    K2 = 0.03, and covariances of a sample.

    Shape:
        Two images `(batch, copies, *space)`, the last two axes being rows and columns,
        and the maxima `(batch,)`; the loss is a scalar.

    Raises:
        ValueError: If the shapes differ, or an image is smaller than the window.

    References:
        Wang et al., *Image quality assessment: from error visibility to structural
        similarity*, 2004.
    """

    def forward(self, estimate: Tensor, target: Tensor, maximum: Tensor) -> Tensor:
        """Return the loss."""
        p, t = magnitudes(estimate, target)
        if min(t.shape[-2:]) < WINDOW:
            raise ValueError(
                f"images are {t.shape[-2]} by {t.shape[-1]}, but SSIM needs at least "
                f"{WINDOW} by {WINDOW}: crop less, or take another loss"
            )
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
    name: LossName = "nmse",
    fraction: float = 0.01,
    magnitude: bool = False,
    coils_per_step: int | None = None,
) -> Callable[[Reconstructor, Sample], Tensor]:
    """Return a function of model and batch, the mean over the model's trajectory."""
    nmse, l1 = SubsampledNMSE(fraction, magnitude=magnitude), NormalizedL1()
    ssim = StructuralDissimilarity()

    def one(estimate: Tensor, batch: Sample) -> Tensor:
        if name == "ssim":
            maximum = torch.as_tensor(batch.maximum)
            return ssim(estimate, batch.image, maximum)  # type: ignore[no-any-return]
        out: Tensor = (nmse if name == "nmse" else l1)(estimate, batch.image)
        return out

    def loss(model: Reconstructor, batch: Sample) -> Tensor:
        options = {}
        if coils_per_step is not None and coils_per_step < batch.image.shape[1]:
            options["scale"] = model.scale_of(batch.zero_filled)
            batch = _some_coils(batch, coils_per_step)
        estimates = model.trajectory(*batch.inputs, **options)
        return torch.stack([one(estimate, batch) for estimate in estimates]).mean()

    return loss


def _some_coils(batch: Sample, coils: int) -> Sample:
    """Draw some of the coils, the same ones for all samples."""
    chosen = torch.randperm(batch.image.shape[1])[:coils].sort().values
    return batch._replace(
        zero_filled=batch.zero_filled[:, chosen], image=batch.image[:, chosen]
    )


def magnitudes(estimate: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the root-sum-of-squares of both over their copies, `(batch, *space)`.

    Raises:
        ValueError: If their shapes differ.
    """
    p, t = (root_sum_of_squares(images, dim=1) for images in (estimate, target))
    _check_shapes(p, t)
    return p, t


def _windows(images: Tensor) -> Tensor:
    """Return the mean over every window."""
    planes = images.reshape(-1, 1, *images.shape[-2:])
    return F.avg_pool2d(planes, WINDOW, stride=1)


def _check_shapes(estimate: Tensor, target: Tensor) -> None:
    if estimate.shape != target.shape:
        raise ValueError(
            f"estimate has shape {tuple(estimate.shape)}, but target "
            f"{tuple(target.shape)}: crop both to the same size"
        )
