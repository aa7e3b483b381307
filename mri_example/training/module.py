"""One training step, one validation step."""

from __future__ import annotations

import math
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from mri_example.data import KSpaceFile, Sample, blend
from mri_example.errors import InputError
from mri_example.metrics import METRICS, score, summarize
from mri_example.model import Reconstructor
from mri_example.training.checkpoints import CONFIGURATION
from mri_example.training.configuration import TrainingConfig
from mri_example.training.losses import training_loss
from mri_example.transforms import center_crop, root_sum_of_squares

WARM_UP = 0.05


class ReconstructionTask(lightning.LightningModule):
    """Learn to reconstruct complex images from undersampled k-space.

    Validation reports NMSE, PSNR and SSIM per volume, the numbers of the command
    `evaluate`, on however many ranks: each reconstructs a part of the slices, and a
    slice that two of them were given counts once.

    Args:
        model: The model.
        config: How it is trained.
        files: The validation files by name, for their targets.
        configuration: What a checkpoint is checked against, plain values.
    """

    def __init__(
        self,
        model: Reconstructor,
        config: TrainingConfig,
        files: dict[str, KSpaceFile],
        configuration: dict[str, Any],
    ) -> None:
        super().__init__()
        self.model = model
        self.loss = training_loss(config)
        self.config = config
        self.files = files
        self.configuration = configuration
        self.started = False
        self.outputs: dict[tuple[str, int], np.ndarray[Any, Any]] = {}

    def on_train_start(self) -> None:
        """Note that everything is set up, and a checkpoint restored."""
        self.started = True

    def on_train_batch_start(self, *_: Any) -> None:
        """Let the random numbers of a step follow from its number alone."""
        where = (self.config.seed, self.global_step, self.global_rank)
        (seed,) = np.random.SeedSequence(where).generate_state(1)
        torch.manual_seed(int(seed))

    def training_step(self, batch: Sample) -> Tensor:
        """Return the loss of a batch."""
        loss = self.loss(self.model, batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.image))
        return loss

    def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
        """Stop a training that diverges.

        Raises:
            InputError: If the loss is not finite any more.
        """
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"training diverged: the loss of step {self.global_step} is {loss}; "
                f"lower learning_rate, which is {self.config.learning_rate}, and train "
                f"into another folder"
            )

    def validation_step(self, batch: Sample) -> None:
        """Reconstruct a slice or slab, and keep it for the end of the epoch."""
        image = root_sum_of_squares(self.model(*batch.inputs), dim=1)
        for i, name in enumerate(batch.name):
            cropped = center_crop(image[i], self.files[name].crop).float().cpu()
            slab = cropped.reshape(-1, *cropped.shape[-2:]).numpy()
            self.outputs[name, int(torch.as_tensor(batch.slice_index)[i])] = slab

    def on_validation_epoch_end(self) -> None:
        """Score whole volumes."""
        slabs = self._gathered()
        self.outputs = {}
        if self.trainer.sanity_checking:
            return
        scores = []
        for name, file in self.files.items():
            own = {start: slab for (n, start), slab in slabs.items() if n == name}
            scores.append(score(file.target_volume(), blend(own, file.slices)))
        mean = summarize(scores).mean
        for metric in METRICS:
            value = getattr(mean, metric)
            self.log(
                f"validation_{metric}",
                value,
                prog_bar=metric == "ssim",
                sync_dist=True,  # all ranks have the same value
            )

    def configure_optimizers(self) -> Any:
        """Return Adam, with a warm-up and a cosine over the whole run.

        A run with a time limit is over when that is reached, or after its epochs: both
        follow whichever of the two is nearer to its end.
        """
        optimizer = torch.optim.Adam(self.parameters(), lr=self.config.learning_rate)
        total = max(1, int(self.trainer.estimated_stepping_batches))

        def factor(step: int) -> float:
            spent = self._time_spent()
            done = min(1.0, max(step / total, spent))
            warm = min(1.0, max((step + 1) / total, spent) / WARM_UP)
            return warm * (0.5 + 0.5 * math.cos(math.pi * done))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _time_spent(self) -> float:
        """Return the share of the time limit that is over, 0 without one."""
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        clock = next((c for c in callbacks if isinstance(c, Timer)), None)
        if clock is None or not self.config.minutes:
            return 0.0
        return clock.time_elapsed() / (60 * self.config.minutes)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the configuration into the checkpoint."""
        checkpoint[CONFIGURATION] = self.configuration

    def _gathered(self) -> dict[tuple[str, int], np.ndarray[Any, Any]]:
        """Return the slabs of all ranks, each once, by volume and first slice.

        A rank that was given a slab to have as many as the others brings the very one
        that another brings.
        """
        if self.trainer.world_size == 1:
            return self.outputs
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, self.outputs)
        return {key: value for part in parts for key, value in part.items()}
