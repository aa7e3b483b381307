"""Validate, and train, as one of two gloo processes: `python -m ... ROOT OUTPUT`.

Which of them it is stands in the environment, where Lightning looks for it.
"""

import json
import logging
import sys
from pathlib import Path

import lightning
import torch

from mri_example.masks import MaskFunction
from mri_example.models import IRIM3D, UNet
from mri_example.training import TrainingConfig, fit
from mri_example.training.data import SliceData
from mri_example.training.module import ReconstructionTask

MODELS = {
    "slices": UNet(2, 2),
    "slabs": IRIM3D(8, 1, hidden=(4, 4), strides=(1, 2), slab=2),
}
TRAINING = TrainingConfig(epochs=1, batch_size=2, fraction=0.5, accelerator="cpu")
MASKS = MaskFunction("random", [0.2], [3])


class Witness(ReconstructionTask):
    """A task that remembers what it was given to validate."""

    seen: list[tuple[str, int]]

    def validation_step(self, batch) -> None:
        self.seen.append((batch.name[0], int(batch.slice_index)))
        super().validation_step(batch)


def validate(root: Path, name: str, devices: int) -> dict[str, object]:
    """Return scores of an untrained model, and what this process reconstructed."""
    config = MODELS[name]
    torch.manual_seed(0)
    slices = SliceData(root, MASKS, TRAINING, config)
    files = {file.path.name: file for file in slices.validation.files}
    task = Witness(config.build(), TRAINING, files, {})
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
    (scores,) = trainer.validate(task, slices, verbose=False)
    return {"scores": scores, "seen": task.seen}


def main(root: Path, output: Path, rank: int) -> None:
    """Take part as one of two processes and write what came out."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    found = {name: validate(root, name, devices=2) for name in MODELS}
    two = TrainingConfig(epochs=1, batch_size=2, accelerator="cpu", devices=2)
    fit(root, output / "run", MODELS["slices"], training=two)
    (output / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
