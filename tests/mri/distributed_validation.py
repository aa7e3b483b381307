"""Validate, and train, as one of two gloo processes.

Which of them it is stands in the environment, where Lightning looks for it.
"""

import json
import logging
import os
from pathlib import Path

import lightning
import torch

from benchmarks.reproduce.unet import UNet
from mri_example.masks import Masks
from mri_example.models import IRIM3D
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask
from tests.mri.runs import train

MODELS = ("slices", "slabs")
MASKS = Masks("random", (0.2,), (3,))


def model(name: str):
    torch.manual_seed(0)
    if name == "slices":
        return UNet(2, 2)
    return IRIM3D(8, 1, hidden=(4, 4), strides=(1, 2), slab=2)


class Witness(ReconstructionTask):
    """A task that remembers what it was given to validate."""

    seen: list[tuple[str, int]]

    def validation_step(self, batch) -> None:
        self.seen.append((batch.name[0], int(batch.slice_index)))
        super().validation_step(batch)


def validate(root: Path, name: str, devices: int) -> dict[str, object]:
    """Return scores of an untrained model, and what this process reconstructed."""
    task = Witness(model(name), fraction=0.5)
    task.seen = []
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=devices,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = SliceData(root, MASKS, batch_size=2)
    data.check(task.model)
    (scores,) = trainer.validate(task, data, verbose=False)
    return {"scores": scores, "seen": task.seen}


def main(root: Path, output: Path) -> int:
    """Take part as one of two processes and write what came out."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    found = {name: validate(root, name, devices=2) for name in MODELS}
    train(root, output / "run", model("slices"), batch_size=2, trainer={"devices": 2})
    (output / f"{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(found))
    return 0
