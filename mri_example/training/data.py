"""The loaders of a training run."""

from __future__ import annotations

from pathlib import Path

import lightning
from torch.utils.data import DataLoader, DistributedSampler

from mri_example.data import Sample, SliceDataset
from mri_example.data.augmentation import flip_and_turn
from mri_example.errors import InputError
from mri_example.sampling import MaskFunction
from mri_example.training.configuration import TrainingConfig


class EpochSampler(DistributedSampler[Sample]):
    """Let the masks and the augmentation of a data set follow from the epoch too.

    Lightning tells a sampler the epoch, after a resumption as well, before the workers
    that load it are started.
    """

    dataset: SliceDataset

    def set_epoch(self, epoch: int) -> None:
        """Take up an epoch."""
        super().set_epoch(epoch)
        self.dataset.epoch = epoch


class SliceData(lightning.LightningDataModule):
    """Training and validation slices of a data root.

    Args:
        root: Folder with `singlecoil_train` and `singlecoil_val`.
        mask_function: Draws the masks.
        config: Batch size, crop, seed and the like.
    """

    def __init__(
        self, root: Path, mask_function: MaskFunction, config: TrainingConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.training = SliceDataset(
            root / "singlecoil_train",
            mask_function,
            epoch=0,
            seed=config.seed,
            crop=config.crop,
            augment=flip_and_turn if config.augment else None,
        )
        sizes = {(f.crop[0], f.shape[-1]) for f in self.training.files}
        if len(sizes) > 1 and config.crop is None and config.batch_size > 1:
            raise InputError(
                f"the training images have {len(sizes)} sizes, among them "
                f"{sorted(sizes)[0]} and {sorted(sizes)[-1]}: set `crop`, or a "
                f"batch_size of 1"
            )
        self.validation = SliceDataset(root / "singlecoil_val", mask_function)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return the training slices of this rank, shuffled anew in every epoch."""
        trainer = self.trainer
        assert trainer is not None
        sampler = EpochSampler(
            self.training,
            num_replicas=trainer.world_size,
            rank=trainer.global_rank,
            seed=self.config.seed,
        )
        return DataLoader(
            self.training,
            batch_size=self.config.batch_size,
            sampler=sampler,
            num_workers=self.config.workers,
        )

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return the validation slices, one at a time: volumes differ in size."""
        return DataLoader(
            self.validation, batch_size=1, num_workers=self.config.workers
        )
