"""What a training step takes."""

from __future__ import annotations

from pathlib import Path

import torch

from invtorch.planning import measure_memory
from mri_example.data import SliceDataset
from mri_example.model import ModelConfig
from mri_example.training.configuration import MaskConfig, TrainingConfig
from mri_example.training.losses import training_loss


def step_memory(
    data: Path, model: ModelConfig, masks: MaskConfig, training: TrainingConfig
) -> int:
    """Measure the peak memory of one training step, on the first training slices.

    Args:
        data: The data root.
        model: The model; it has random weights here.
        masks: How k-space is undersampled.
        training: Batch size, crop and loss.

    Returns:
        Bytes that the step takes on top of data, parameters and their gradients.

    Raises:
        InputError: If the data cannot be used.
    """
    dataset = SliceDataset(
        data / f"{training.challenge}_train",
        masks.build(),
        slab=model.slab,
        crop=training.crop,
        metadata=model.metadata,
        epoch=0,
    )
    samples = [dataset[i] for i in range(training.batch_size)]
    batch = torch.utils.data.default_collate(samples)
    network, loss = model.build(), training_loss(training)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        torch.autograd.backward(loss(network, batch))

    return measure_memory(step).peak
