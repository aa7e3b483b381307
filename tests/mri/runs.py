"""Short training runs."""

import copy
from pathlib import Path

from mri_example.masks import Masks
from mri_example.models import Reconstructor
from mri_example.training.data import SliceData
from mri_example.training.fit import fit
from mri_example.training.module import ReconstructionTask


def train(
    root: Path,
    output: Path,
    model: Reconstructor,
    masks: Masks = Masks(),
    *,
    training: dict | None = None,
    trainer: dict | None = None,
    **data,
) -> Path:
    """Train a copy of a model for an epoch, and return the last checkpoint."""
    task = ReconstructionTask(copy.deepcopy(model), **(training or {}))
    options = {"max_epochs": 1, "accelerator": "cpu"} | (trainer or {})
    return fit(task, SliceData(root, masks, **data), output, **options)
