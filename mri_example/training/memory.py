"""What a training step takes."""

from __future__ import annotations

import torch

from invtorch.planning import measure_memory
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask


def step_memory(task: ReconstructionTask, data: SliceData) -> int:
    """Measure the peak memory of one training step, on the first training slices.

    Returns:
        Bytes that the step takes on top of data, parameters and their gradients.

    Raises:
        InputError: If the data cannot be used.
    """
    dataset = data.training_slices(task.model)
    samples = [dataset[i] for i in range(data.batch_size)]
    batch = torch.utils.data.default_collate(samples)
    for parameter in task.model.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        torch.autograd.backward(task.loss(task.model, batch))

    peak = measure_memory(step).peak
    task.zero_grad()
    return peak
