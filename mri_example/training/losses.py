"""The loss of a batch, as a training run is configured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from mri_example.data import Sample
from mri_example.model import (
    NormalizedL1,
    Reconstructor,
    StructuralDissimilarity,
    SubsampledNMSE,
)
from mri_example.training.configuration import TrainingConfig

Loss: TypeAlias = Callable[[Tensor, Sample], Tensor]


def training_loss(config: TrainingConfig) -> Callable[[Reconstructor, Sample], Tensor]:
    """Return a function of model and batch, the mean over the model's trajectory."""
    one = _LOSSES[config.loss](config)

    def loss(model: Reconstructor, batch: Sample) -> Tensor:
        options, coils = {}, config.coils_per_step
        if coils is not None and coils < batch.image.shape[1]:
            options["scale"] = model.scale_of(batch.zero_filled)
            batch = _some_coils(batch, coils)
        estimates = model.trajectory(*batch.inputs, **options)
        return torch.stack([one(estimate, batch) for estimate in estimates]).mean()

    return loss


def _some_coils(batch: Sample, coils: int) -> Sample:
    """Draw some of the coils, the same ones for all samples."""
    chosen = torch.randperm(batch.image.shape[1])[:coils].sort().values
    return batch._replace(
        zero_filled=batch.zero_filled[:, chosen], image=batch.image[:, chosen]
    )


def _nmse(config: TrainingConfig) -> Loss:
    nmse = SubsampledNMSE(config.fraction, magnitude=config.magnitude)
    return lambda estimate, batch: nmse(estimate, batch.image)


def _l1(_: TrainingConfig) -> Loss:
    l1 = NormalizedL1()
    return lambda estimate, batch: l1(estimate, batch.image)


def _ssim(_: TrainingConfig) -> Loss:
    ssim = StructuralDissimilarity()
    return lambda estimate, batch: ssim(
        estimate, batch.image, torch.as_tensor(batch.maximum)
    )


_LOSSES: dict[str, Callable[[TrainingConfig], Loss]] = {
    "nmse": _nmse,
    "l1": _l1,
    "ssim": _ssim,
}
