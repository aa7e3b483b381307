"""One training step, one validation step."""

import math
import time
from collections.abc import Iterator
from dataclasses import astuple
from resource import RUSAGE_SELF, getrusage
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from invtorch import OrthogonalCoupling
from mri_example.data.dataset import Magnitudes, Sample, SliceDataset, blend
from mri_example.data.files import KSpaceFile
from mri_example.errors import require
from mri_example.losses import LossName, training_loss
from mri_example.metrics import METRICS, score
from mri_example.models import Reconstructor
from mri_example.report import Slice
from mri_example.training.checkpoints import STOPPED
from mri_example.training.data import SliceData, check_range
from mri_example.transforms import center_crop, root_sum_of_squares

WARM_UP = 0.05
KEPT_VOLUMES = 2


class ReconstructionTask(lightning.LightningModule):
    """Learn to reconstruct complex images from undersampled k-space.

    Validation reports NMSE, PSNR and SSIM per volume, the numbers of the command
    `evaluate`, on however many ranks: each reconstructs a part of the slices, and a
    slice that two of them were given counts once.

    Args:
        model: The network.
        learning_rate: Highest learning rate of Adam; it warms up over the first
            twentieth of the run and falls along a cosine.
        loss: "nmse", normalized squared error of the complex images of the coils
            (eq. 18); "l1" or "ssim" of the magnitudes.
        fraction: Share of the pixels that count in the loss "nmse".
        coils_per_step: Coils of a slice that a step takes, drawn anew, for models that
            reconstruct each coil by itself; null for all.

    Attributes:
        options: The arguments but the network.
        notes: What is written into a checkpoint, to check it against.
        started: Whether everything is set up, and a checkpoint restored.
        validated: Volumes of the last validation by the names of their files, the
            first two.
    """

    def __init__(
        self,
        model: Reconstructor,
        learning_rate: float = 1e-3,
        loss: LossName = "nmse",
        fraction: float = 0.01,
        coils_per_step: int | None = None,
    ) -> None:
        super().__init__()
        finite = 0 < learning_rate < math.inf
        check_range("learning_rate", learning_rate, finite, "positive")
        check_range("fraction", fraction, 0 < fraction <= 1, "in (0, 1]")
        if coils_per_step is not None:
            _check_coils(coils_per_step, model, loss)
        self.model, self.learning_rate = model, learning_rate
        self.options: dict[str, Any] = {"learning_rate": learning_rate, "loss": loss}
        self.options |= {"fraction": fraction, "coils_per_step": coils_per_step}
        self.loss = training_loss(loss, fraction, coils_per_step)
        self.notes: dict[str, Any] = {}
        self.started = False
        self.outputs: dict[tuple[str, int], Magnitudes] = {}
        self.validated: dict[str, Magnitudes] = {}

    @property
    def data(self) -> SliceData:
        """The data that it is trained with."""
        data: SliceData = self.trainer.datamodule  # type: ignore[attr-defined]
        return data

    def configure_model(self) -> None:
        """Shard the network with FSDP2, where that is the strategy."""
        if isinstance(self.model, FSDPModule) or self.device_mesh is None:
            return
        mesh = self.device_mesh["data_parallel"]
        for layer in self.model.modules():
            if isinstance(layer, OrthogonalCoupling):
                fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        register_fsdp_forward_method(self.model, "trajectory")

    def on_train_start(self) -> None:
        """Note that everything is set up, and a checkpoint restored."""
        self.started = True

    def on_train_batch_start(self, _: Any, batch_idx: int) -> None:
        """Let the random numbers of a batch follow from its place in the run alone."""
        where = (self.data.seed, self.current_epoch, batch_idx, self.global_rank)
        (seed,) = np.random.SeedSequence(where).generate_state(1)
        torch.manual_seed(int(seed))

    def on_train_epoch_start(self) -> None:
        """Begin to count slices, seconds and bytes."""
        self.begun, self.slices = time.perf_counter(), 0
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def on_train_epoch_end(self) -> None:
        """Log the slices per second of all ranks, and the largest peak of memory."""
        rate = self.slices / (time.perf_counter() - self.begun)
        options: dict[str, Any] = {"sync_dist": True, "on_epoch": True}
        self.log("slices_per_second", rate, reduce_fx="sum", **options)
        self.log("peak_memory_mb", self.peak_megabytes, reduce_fx="max", **options)

    @property
    def peak_megabytes(self) -> float:
        """The peak of what PyTorch allocated on a GPU, else that of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 1e6
        return getrusage(RUSAGE_SELF).ru_maxrss / 1000

    def training_step(self, batch: Sample) -> Tensor:
        """Return the loss of a batch."""
        self.slices += len(batch.image)
        loss = self.loss(self.model, batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.image))
        return loss

    def on_train_batch_end(self, outputs: Any, *_: Any) -> None:
        """Stop a training that diverges, on all ranks."""
        loss = float(outputs["loss"])
        finite = self.trainer.strategy.reduce_boolean_decision(math.isfinite(loss))
        text = f"training diverged: the loss of step {self.global_step} is {loss}; "
        text += f"lower learning_rate, which is {self.learning_rate}, in another folder"
        require(finite, text)

    def validation_step(self, batch: Sample) -> None:
        """Reconstruct a slice or slab, and keep it for the end of the epoch."""
        files = self._files()
        image = root_sum_of_squares(self.model(*batch.inputs), dim=1)
        for i, name in enumerate(batch.name):
            cropped = center_crop(image[i], files[name].crop).float().cpu()
            slab = cropped.reshape(-1, *cropped.shape[-2:]).numpy()
            self.outputs[name, int(torch.as_tensor(batch.slice_index)[i])] = slab

    def on_validation_epoch_end(self) -> None:
        """Score whole volumes."""
        slabs = self._gathered()
        self.outputs = {}
        if self.trainer.sanity_checking or getattr(self.trainer, "fast_dev_run", False):
            return
        scores = []
        for name, file in self._files().items():
            own = {start: slab for (n, start), slab in slabs.items() if n == name}
            volume = blend(own, file.slices)
            text = f"training diverged: {name} is reconstructed to values that are not "
            text += f"finite; lower learning_rate, which is {self.learning_rate}, or "
            finite = np.isfinite(volume).all()
            require(finite, f"{text}choose another precision, in another folder")
            scores.append(score(file.target_volume(), volume))
            if len(scores) <= KEPT_VOLUMES:
                self.validated[name] = volume
        means = np.mean([astuple(one) for one in scores], axis=0)
        for metric, mean in zip(METRICS, means.tolist(), strict=True):
            shown = metric == "ssim"  # all ranks have the same value
            self.log(f"validation_{metric}", mean, prog_bar=shown, sync_dist=True)

    def validated_slices(self) -> Iterator[Slice]:
        """Yield the middle slices of the volumes that the last validation kept."""
        for name, volume in self.validated.items():
            file = self._files()[name]
            index = file.slices // 2
            before = {"zero-filled": _input(self.data.validation, file, index)}
            images = {**before, "reconstruction": volume[index]}
            yield Slice(f"{name}, slice {index}", images, file.target_volume(index))

    def configure_optimizers(self) -> Any:
        """Return Adam, with a warm-up and a cosine over the whole run.

        A run with a time limit is over when that is reached, or after its epochs: both
        follow whichever of the two is nearer to its end. Without an end the rate is
        constant.
        """
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        callbacks: list[Any] = getattr(self.trainer, "callbacks", [])
        clock = next((c for c in callbacks if isinstance(c, Timer)), Timer())
        total = max(1.0, float(self.trainer.estimated_stepping_batches))

        def factor(step: int) -> float:
            passed, left = clock.time_elapsed(), clock.time_remaining()
            if left is None and math.isinf(total):
                return 1.0
            spent = 0.0 if left is None else passed / max(passed + left, 1e-9)
            done = min(1.0, max(step / total, spent))
            warm = min(1.0, max((step + 1) / total, spent) / WARM_UP)
            return warm * (0.5 + 0.5 * math.cos(math.pi * done))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        followed = {"scheduler": schedule, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": followed}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write what a checkpoint is checked against."""
        stopped = self.trainer.should_stop and self.trainer.fit_loop.done
        checkpoint.update(self.notes | {STOPPED: stopped})

    def _files(self) -> dict[str, KSpaceFile]:
        """Return the validation files by name, for their targets."""
        return {file.path.name: file for file in self.data.validation.files}

    def _gathered(self) -> dict[tuple[str, int], Magnitudes]:
        """Return the slabs of all ranks, each once, by volume and first slice."""
        if self.trainer.world_size == 1:
            return self.outputs
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, self.outputs)
        return {key: value for part in parts for key, value in part.items()}


def _input(dataset: SliceDataset, file: KSpaceFile, index: int) -> Magnitudes:
    """Return the magnitude of what a model was given of a slice."""
    starts = {s: i for i, (f, s) in enumerate(dataset.items) if f is file}
    start = max(s for s in starts if s <= index)
    image = root_sum_of_squares(dataset[starts[start]].zero_filled, dim=0)
    slab: Magnitudes = center_crop(image, file.crop).numpy()
    return slab if slab.ndim == 2 else slab[index - start]


def _check_coils(coils: int, model: Reconstructor, loss: LossName) -> None:
    check_range("coils_per_step", coils, coils > 0, "positive")
    limit = 'null with the loss "ssim", which is that of all coils combined'
    check_range("coils_per_step", coils, loss != "ssim", limit)
    text = f"coils_per_step is {coils}, but {type(model).__name__} does not reconstruct"
    text += " each coil by itself: leave it null, or give an i-RIM coils=null"
    require(model.each_coil, text)
